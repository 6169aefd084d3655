//! A tenant: writes what it likes into namespaces of its own (pods with any labels and annotations,
//! Services, EndpointSlices, policies), and deletes it by force. It owns pods on the node as well.

use std::net::IpAddr;
use std::process::Command;
use std::thread;

use crate::hostile::attack::Attack;
use crate::hostile::frames::{tcp, udp};
use crate::hostile::stage::{OPEN, Stage};
use crate::hostile::ways::Way;
use crate::lab::{Pod, Scene};
use crate::world::eventually;

fn plain(way: &Way) -> Vec<u8> {
    udp(way.own, way.to, (4000, OPEN), way.marker)
}

/// A pod of the tenant's on node 1, which may reach its own backend alone.
fn owner(scene: &Scene<'_>) -> [Pod; 2] {
    let pods = ["owner", "backend"].map(|app| scene.pod(app, 1, &format!("{{app: {app}}}")));
    scene.policy(
        "owner",
        "podSelector: {matchLabels: {app: owner}}, policyTypes: [Ingress, Egress], \
         egress: [{to: [{podSelector: {matchLabels: {app: backend}}}]}]",
    );
    scene.settle();
    pods
}

/// An attack by the tenant's pod.
fn attack_by<'a>(attack: &'a Attack<'a>, pod: &'a Pod) -> Attack<'a> {
    let mut part = attack.by(pod);
    // On a routed network each pod has another one.
    part.gateway = pod.gateway();
    part
}

/// What was sent is dropped, on its way at the latest, or goes nowhere: no other host and no pod sees
/// it. `before`: what had been dropped.
fn stays_on_the_node(attack: &Attack<'_>, before: u64) {
    eventually("something is dropped", || attack.stage.n_dropped(attack.attacker) > before);
    attack.is_heard();
    let observers = &attack.stage.observers;
    for (place, count) in observers.counts(&attack.marker.0).into_iter().enumerate() {
        let name = observers.name(place);
        assert!(count == 0 || name.starts_with("node 1"), "{count} frames are seen at {name}");
    }
}

/// A Service with these labels and this spec beside its ports, of which these are the backends.
fn write_service(scene: &Scene<'_>, name: &str, labels: &str, spec: &str, backends: &[IpAddr]) {
    let (namespace, status) = (&scene.namespace, spec.split_once(" status: "));
    let (spec, status) = status.unwrap_or((spec, "{}"));
    scene.write(
        &format!("service-{name}"),
        &format!(
            "apiVersion: v1\nkind: Service\n\
             metadata: {{name: {name}, namespace: {namespace}, labels: {labels}}}\n\
             spec: {{{spec}, ports: [{{name: t, port: {OPEN}}}, \
             {{name: u, protocol: UDP, port: {OPEN}}}]}}\nstatus: {status}\n"
        ),
    );
    for (number, backend) in backends.iter().enumerate() {
        let family = if backend.is_ipv4() { "IPv4" } else { "IPv6" };
        scene.write(
            &format!("slice-{name}-{number}"),
            &format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {{name: {name}-{number}, namespace: {namespace}, \
                 labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: {family}\n\
                 ports: [{{name: t, port: {OPEN}}}, {{name: u, protocol: UDP, port: {OPEN}}}]\n\
                 endpoints: [{{addresses: [\"{backend}\"], conditions: {{ready: true}}}}]\n"
            ),
        );
    }
}

/// Services of addresses that are others', with a backend that the pod may reach: external ones and
/// those of load balancers, for this node's proxy or another's, headless or not. Nobody translates.
pub fn services_of_addresses_of_others(attack: &Attack<'_>) {
    let stage = attack.stage;
    let scene = stage.lab.scene(&format!("services-{}", attack.number()));
    let [pod, backend] = owner(&scene);
    let mut targets = stage.lab.outside_addresses();
    targets.extend(stage.free.addresses.iter().chain(&stage.far_free.addresses));
    targets.extend(stage.lab.node_addresses(2));
    let mine = "{service.kubernetes.io/service-proxy-name: mine}";
    for (form, labels, spec) in [
        ("external", "{}", "selector: {app: backend}, externalIPs: [\"TARGET\"]"),
        ("unhandled", mine, "selector: {app: backend}, externalIPs: [\"TARGET\"]"),
        ("headless", "{}", "clusterIP: None, externalIPs: [\"TARGET\"]"),
        (
            "balanced",
            "{}",
            "type: LoadBalancer, selector: {app: backend} status: \
             {loadBalancer: {ingress: [{ip: \"TARGET\"}]}}",
        ),
    ] {
        for (number, target) in targets.iter().enumerate() {
            let spec = spec.replace("TARGET", &target.to_string());
            let backends = [backend.address(*target)];
            write_service(&scene, &format!("{form}-{number}"), labels, &spec, &backends);
        }
        scene.settle();
        let (part, before) = (attack_by(attack, &pod), stage.n_dropped(&pod));
        part.spray_to(&targets, &[part.gateway], |way| Some(plain(way)));
        part.spray_to(&targets, &[part.gateway], |way| {
            Some(tcp(way.own, way.to, (4001, OPEN), 2, way.marker))
        });
        stays_on_the_node(&part, before);
        for number in 0..targets.len() {
            scene.remove(&format!("service-{form}-{number}"));
            scene.remove(&format!("slice-{form}-{number}-0"));
        }
        scene.settle();
    }
}

/// EndpointSlices that name whom they like, and a proxy that believes them.
pub fn backends_that_are_others(attack: &Attack<'_>) {
    let stage = attack.stage;
    let scene = stage.lab.scene(&format!("backends-{}", attack.number()));
    let [pod, backend] = owner(&scene);
    let node = &stage.lab.node(1).netns;
    let table = format!("tenant{}", attack.number());
    let nft = |script: String| {
        let output = node.run(|| Command::new("nft").arg(&script).output().unwrap()).unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let service: IpAddr = "10.96.0.77".parse().unwrap();
    for target in stage.lab.outside_addresses().iter().chain(&stage.far_free.addresses) {
        let IpAddr::V4(target) = *target else { continue };
        nft(format!(
            "table ip {table} {{ chain in {{ type nat hook prerouting priority -100; \
             ip daddr {service} dnat to {target}; }}; }}"
        ));
        let backends = [[target.into()], [backend.address(target.into())]];
        for (number, backends) in backends.iter().enumerate() {
            // As it says of itself; and as it said before the proxy went on by something else.
            let spec = format!("clusterIP: {service}, clusterIPs: [{service}]");
            write_service(&scene, "backends", "{}", &spec, backends);
            scene.settle();
            let (part, before) = (attack_by(attack, &pod), stage.n_dropped(&pod));
            let own = pod.address(service);
            let port = 4002 + number as u16;
            part.fire_at(part.gateway, &udp(own, service, (port, OPEN), part.marker));
            part.fire_at(part.gateway, &tcp(own, service, (port, OPEN), 2, part.marker));
            stays_on_the_node(&part, before);
        }
        nft(format!("delete table ip {table}"));
    }
}

/// Addresses that annotations say a pod has: of Multus, Calico, OVN, and whoever reads such.
pub fn addresses_by_annotation(attack: &Attack<'_>) {
    let stage = attack.stage;
    let scene = stage.lab.scene(&format!("annotated-{}", attack.number()));
    let list: Vec<String> = stage.friend.addresses.iter().map(ToString::to_string).collect();
    let (all, quoted) = (list.join(","), list.join("\\\", \\\""));
    let annotations = format!(
        "annotations: {{cni.projectcalico.org/podIP: \"{}\", cni.projectcalico.org/podIPs: \"{all}\", \
         k8s.v1.cni.cncf.io/network-status: \"[{{\\\"name\\\": \\\"a\\\", \\\"interface\\\": \
         \\\"eth0\\\", \\\"default\\\": true, \\\"ips\\\": [\\\"{quoted}\\\"]}}]\", \
         k8s.v1.cni.cncf.io/networks-status: \"[{{\\\"interface\\\": \\\"eth0\\\", \\\"ips\\\": \
         [\\\"{quoted}\\\"]}}]\", k8s.ovn.org/pod-networks: \"{{\\\"default\\\": \
         {{\\\"ip_addresses\\\": [\\\"{quoted}\\\"]}}}}\", kubernetes.io/podIPs: \"{all}\"}}",
        list[0]
    );
    let pod = scene.wire("poses", 1);
    scene.declare_as(&pod, "{app: friend}", "containers: [{name: c}]", "Running", &annotations);
    for address in &stage.friend.addresses {
        let nodad = if address.is_ipv4() { "" } else { "nodad" };
        pod.ip(&format!("addr add {address} dev eth0 {nodad}"));
    }
    scene.settle();
    let part = attack_by(attack, &pod);
    for (victim, _) in attack.victims() {
        for &to in &victim.addresses {
            let from = stage.friend.address(to);
            part.fire_at(part.gateway, &udp(from, to, (4000, OPEN), part.marker));
            part.fire_at(part.gateway, &tcp(from, to, (4001, OPEN), 2, part.marker));
        }
    }
    part.is_held();
}

/// Pods and policies of another namespace, with the labels that the victims' policy names.
pub fn friends_of_another_namespace(attack: &Attack<'_>) {
    let stage = attack.stage;
    let scene = stage.lab.scene(&format!("friends-{}", attack.number()));
    scene.label("{app: friend, name: stage, kubernetes.io/metadata.name: stage}");
    let pod = scene.pod("friend", 1, "{app: friend}");
    scene.policy("everything", "podSelector: {}, ingress: [{}], egress: [{}]");
    scene.policy(
        "victim",
        "podSelector: {matchLabels: {app: victim}}, \
         ingress: [{from: [{namespaceSelector: {}, podSelector: {}}]}]",
    );
    scene.settle();
    let part = attack_by(attack, &pod);
    for (victim, _) in attack.victims() {
        for &to in &victim.addresses {
            let own = pod.address(to);
            part.is_kept_from(victim, 2, || {
                part.fire_at(part.gateway, &udp(own, to, (4000, OPEN), part.marker));
                part.fire_at(part.gateway, &tcp(own, to, (4001, OPEN), 2, part.marker));
            });
        }
    }
}

/// By their objects they have ended, or there is none: they run all the same.
pub fn pods_that_have_ended_by_their_objects(attack: &Attack<'_>) {
    let stage = attack.stage;
    let scene = stage.lab.scene(&format!("ended-{}", attack.number()));
    let pod = scene.pod("owner", 1, "{app: owner}");
    scene.policy("nothing", "podSelector: {}, policyTypes: [Ingress, Egress]");
    scene.settle();
    let part = attack_by(attack, &pod);
    let spec = "containers: [{name: c}]";
    for phase in ["Running", "Failed", "Succeeded"] {
        scene.declare_as(&pod, "{app: owner}", spec, phase, "");
        scene.settle();
        part.spray(plain);
    }
    let terminating = "deletionTimestamp: \"2026-01-01T00:00:00Z\", deletionGracePeriodSeconds: 0";
    scene.declare_as(&pod, "{app: owner}", spec, "Running", terminating);
    scene.settle();
    part.spray(plain);
    scene.remove("pod-owner");
    scene.settle();
    part.spray(plain);
    part.is_held();
}

/// The same of a pod that no policy selects: it speaks as itself, or as nobody once its address is
/// another pod's by the word of an object.
pub fn free_pods_that_have_ended_by_their_objects(attack: &Attack<'_>) {
    let stage = attack.stage;
    let scene = stage.lab.scene(&format!("freed-{}", attack.number()));
    let pod = scene.pod("free", 1, "{app: free}");
    scene.settle();
    let forge = || {
        // By its number, which may be another one now.
        let part = attack_by(attack, &pod);
        for (victim, _) in attack.victims() {
            for &to in &victim.addresses {
                let from = stage.friend.address(to);
                part.fire_at(part.gateway, &udp(from, to, (4000, OPEN), part.marker));
            }
        }
        part.is_held_in_part();
    };
    forge();
    scene.declare_as(&pod, "{app: free}", "containers: [{name: c}]", "Failed", "");
    scene.settle();
    forge();
    scene.remove("pod-free");
    scene.settle();
    forge();
    // Another pod of the node is said to have its address.
    let uid = format!("uid: uid-heir-{}", attack.number());
    let spec = "containers: [{name: c}]";
    scene.declare_at("heir", 1, &pod.addresses, "{}", spec, "Running", &uid);
    let agent = stage.lab.node(1).agent.as_ref().unwrap();
    // (That this one has no interface is no matter here.)
    agent.wait();
    forge();
    scene.remove("pod-heir");
    scene.settle();
}

/// An agent that is killed leaves everything as it was, and the next one takes it over without a
/// gap: with the attacker sending all the time.
pub fn agent_killed(stage: &mut Stage) {
    for _ in 0..2 {
        let attack = stage.attack();
        for number in [1, 2] {
            let agent = stage.lab.node(number).agent.as_ref().unwrap();
            attack.spray(plain);
            agent.kill_now();
            attack.spray(plain);
        }
        attack.is_held();
        drop(attack);
        for number in [1, 2] {
            stage.lab.start_agent(number);
        }
        let attack = stage.attack();
        thread::scope(|scope| {
            let settling = scope.spawn(|| stage.lab.settle());
            while !settling.is_finished() {
                attack.spray(plain);
            }
        });
        attack.spray(plain);
        attack.is_held();
        attack.friend_reaches(&stage.victim, |from, to, port, marker| {
            vec![udp(from, to, (4960, port), marker)]
        });
    }
}
