//! Services whose addresses the node translates, with real agents and real traffic: some backends
//! allowed and some not, the pod itself, and a change under a flow. Needs root, `nft` and the eBPF
//! object.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use netpol_common::layout::Reason;
use netpol_isolation::netns::Netns;
use netpol_model::Direction::Egress;

use netpol_testkit::world::traffic::{Server, assert_allowed, assert_denied};
use netpol_testkit::world::{NODE, PATIENCE, World, eventually};

const VIP: &str = "10.96.0.1:80";
const CLIENT: &str = "10.244.0.1";
const GOOD: &str = "10.244.0.2";
const BAD: &str = "10.244.0.3";

/// Runs `nft` and returns what it prints.
fn nft(netns: &Netns, script: &str) -> String {
    let run = || {
        let mut nft = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        nft.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        nft.wait_with_output().unwrap()
    };
    let output = netns.run(run).unwrap();
    assert!(output.status.success(), "nft failed on:\n{script}");
    String::from_utf8(output.stdout).unwrap()
}

/// Pods, and a Service of some of them that the node translates in turn, hiding who calls itself.
fn world(backends: &[&str]) -> (World, Vec<Server>) {
    let mut world = World::new();
    for (name, address) in [("client", CLIENT), ("good", GOOD), ("bad", BAD)] {
        world.pod(name, address, &format!("{{app: {name}}}"));
    }
    world.write(
        "service",
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: default}\n\
         spec: {clusterIP: 10.96.0.1, ports: [{name: t, port: 80, targetPort: 8080}, \
         {name: u, protocol: UDP, port: 80, targetPort: 8080}]}\n",
    );
    let endpoints: Vec<String> =
        backends.iter().map(|address| format!("{{addresses: [{address}]}}")).collect();
    world.write(
        "slice",
        &format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: web-1, namespace: default, \
             labels: {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\n\
             ports: [{{name: t, port: 8080}}, {{name: u, protocol: UDP, port: 8080}}]\n\
             endpoints: [{}]\n",
            endpoints.join(", ")
        ),
    );
    let numbered = backends.iter().enumerate();
    let map: Vec<String> = numbered.map(|(n, address)| format!("{n}: {address}")).collect();
    let n = backends.len();
    nft(
        &world.node,
        &format!(
            "table ip proxy {{\n\
               chain before {{ type nat hook prerouting priority dstnat;\n\
                 ip daddr 10.96.0.1 meta l4proto {{ tcp, udp }} th dport 80 \
                   dnat to numgen inc mod {n} map {{ {} }} : 8080\n\
               }}\n\
               chain after {{ type nat hook postrouting priority srcnat;\n\
                 ct status dnat ip saddr {CLIENT} ip daddr {CLIENT} snat to {NODE}\n\
               }}\n\
             }}\n",
            map.join(", ")
        ),
    );
    let servers = ["client", "good", "bad"].map(|pod| Server::start(&world.of(pod), 8080)).into();
    (world, servers)
}

fn may_reach(world: &World, app: &str) {
    world.policy(
        "client",
        &format!(
            "podSelector: {{matchLabels: {{app: client}}}}, policyTypes: [Egress], \
             egress: [{{to: [{{podSelector: {{matchLabels: {{app: {app}}}}}}}]}}]"
        ),
    );
}

/// Counts what arrives in a pod by TCP and UDP.
fn start_counting(pod: &Netns) {
    nft(
        pod,
        "table inet count { chain seen { type filter hook prerouting priority -400; \
         meta l4proto { tcp, udp } counter; }; }\n",
    );
}

fn arrived(pod: &Netns) -> u64 {
    let text = nft(pod, "list table inet count");
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "packets").unwrap();
    words[at + 1].parse().unwrap()
}

#[test]
fn of_a_mixed_service_the_allowed_backends_answer_and_the_others_hear_nothing() {
    let (mut world, _servers) = world(&[GOOD, BAD]);
    may_reach(&world, "good");
    world.start();
    let client = world.of("client");
    for pod in ["good", "bad"] {
        start_counting(&world.of(pod));
    }
    // In turn: half of the flows go to each.
    const N: usize = 20;
    let denied = || world.counted("client", Egress, Reason::Policy);
    let sockets: Vec<UdpSocket> = client
        .run(|| {
            let socket = || UdpSocket::bind("0.0.0.0:0").unwrap();
            (0..N).map(|_| socket()).collect()
        })
        .unwrap();
    for socket in &sockets {
        socket.set_nonblocking(true).unwrap();
        socket.connect(VIP).unwrap();
        socket.send(b"?").unwrap();
    }
    let mut answered = vec![false; N];
    eventually("the allowed half is answered and the other half dropped", || {
        for (socket, answered) in sockets.iter().zip(&mut answered) {
            *answered |= socket.recv(&mut [0; 8]).is_ok();
        }
        answered.iter().filter(|answered| **answered).count() == N / 2 && denied() == N as u64 / 2
    });
    for _ in 0..3 {
        connect(&client);
    }
    assert!(arrived(&world.of("good")) >= N as u64 / 2);
    assert_eq!(arrived(&world.of("bad")), 0);
    assert_eq!(world.counted("client", Egress, Reason::ServiceMixed), 0);
    // With a policy for both everything is answered, and nothing needs a second look.
    may_reach(&world, "good}}}, {podSelector: {matchLabels: {app: bad");
    world.settle();
    for _ in 0..2 {
        assert_allowed(&client, VIP);
    }
    assert!(arrived(&world.of("bad")) > 0);
}

/// A connection that works, to whichever backend may be reached: the others are tried in turn.
fn connect(client: &Netns) -> TcpStream {
    let attempt = || {
        let mut stream =
            TcpStream::connect_timeout(&VIP.parse().unwrap(), Duration::from_millis(300)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        Some(stream)
    };
    let mut found = None;
    eventually("a connection to an allowed backend", || {
        found = client.run(attempt).unwrap();
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn a_flow_through_a_mixed_service_ends_with_its_permission_and_comes_back_with_it() {
    let (mut world, _servers) = world(&[GOOD, BAD]);
    may_reach(&world, "good");
    world.start();
    start_counting(&world.of("bad"));
    let mut stream = connect(&world.of("client"));
    may_reach(&world, "bad");
    world.settle();
    let before = arrived(&world.of("bad"));
    let cut = || world.counted("client", Egress, Reason::PolicyCut);
    assert_eq!(cut(), 0);
    stream.write_all(b"y").unwrap();
    // Also when it is sent again.
    eventually("the flow's packets are dropped", || cut() >= 2);
    assert_eq!(arrived(&world.of("bad")), before, "it stays with its backend");
    stream.set_nonblocking(true).unwrap();
    assert!(stream.read(&mut [0]).is_err(), "no answer");
    stream.set_nonblocking(false).unwrap();
    may_reach(&world, "good");
    world.settle();
    stream.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_pod_reaches_itself_through_its_service_whatever_the_policies() {
    for types in ["[Egress]", "[Ingress]", "[Ingress, Egress]"] {
        let (mut world, _servers) = world(&[CLIENT]);
        world.policy(
            "closed",
            &format!("podSelector: {{matchLabels: {{app: client}}}}, policyTypes: {types}"),
        );
        world.start();
        assert_allowed(&world.of("client"), VIP);
        // Nobody else does by the node's address, nor the pod anybody else.
        if types.contains("Ingress") {
            assert_denied(&world.of("bad"), VIP);
        }
        if types.contains("Egress") {
            assert_denied(&world.of("client"), &format!("{GOOD}:8080"));
        }
    }
}

#[test]
fn the_second_look_goes_on_without_the_agent_and_ends_with_cleanup() {
    let (mut world, _servers) = world(&[GOOD, BAD]);
    may_reach(&world, "good");
    world.start();
    start_counting(&world.of("bad"));
    let transits = |world: &World| {
        let links = world.links();
        links.iter().filter(|name| name.ends_with("-transit")).count()
    };
    assert_eq!(transits(&world), 3, "{:?}", world.links());
    world.kill();
    for _ in 0..2 {
        connect(&world.of("client"));
    }
    assert_eq!(arrived(&world.of("bad")), 0);
    world.start();
    assert_eq!(transits(&world), 3);
    // A pod that comes gets its program before it can be anybody's backend.
    world.pod("late", "10.244.0.4", "{app: late}");
    world.settle();
    assert_eq!(transits(&world), 4);
    world.remove("policy-client");
    world.settle();
    assert_eq!(transits(&world), 0);
    may_reach(&world, "good");
    world.settle();
    world.kill();
    assert!(world.clean_up().status.success());
    assert_eq!(transits(&world), 0);
}

#[test]
fn a_namespace_with_too_many_services_takes_no_place_from_others() {
    let (mut world, _servers) = world(&[GOOD]);
    world.arguments = ["--limit", "services=4"].map(str::to_owned).into();
    may_reach(&world, "good");
    // Its addresses are written first where all of them are new.
    let ports: Vec<String> = (1..=10).map(|n| format!("{{name: p{n}, port: {n}}}")).collect();
    world.write(
        "many",
        &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: many, namespace: bulk}}\n\
             spec: {{clusterIP: 10.95.0.1, ports: [{}]}}\n",
            ports.join(", ")
        ),
    );
    world.start_only();
    let status = world.agent.as_mut().unwrap().wait();
    assert_eq!(status["ready"], false, "{status}");
    let errors = status["datapath"]["errors"].as_array().unwrap();
    let [error] = errors.as_slice() else { panic!("{errors:?}") };
    assert_eq!(error["object"], "Service bulk/many");
    assert!(error["message"].as_str().unwrap().starts_with("8 of its addresses"), "{error}");
    assert_eq!(world.http("/readyz").0, 200, "a tenant stops no rollout");
    assert_allowed(&world.of("client"), VIP);
    world.remove("many");
    let status = world.settle();
    assert_eq!(status["ready"], true, "{status}");
}
