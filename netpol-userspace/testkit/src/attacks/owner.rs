//! A pod that owns its network namespace (NET_ADMIN): it changes its interface, its addresses, its
//! routes, or everything.

use std::net::{IpAddr, UdpSocket};

use netpol_isolation::netns::Netns;

use crate::hostile::attack::Attack;
use crate::hostile::frames::udp;
use crate::hostile::sender::Sender;
use crate::hostile::ways::Way;
use crate::lab::wire::Wire;
use crate::lab::{Pod, Scene};
use crate::world::{eventually, ip};

fn plain(way: &Way) -> Vec<u8> {
    udp(way.own, way.to, (4000, 80), way.marker)
}

/// A pod of node 1 to which nothing is allowed.
fn owner(scene: &Scene<'_>) -> Pod {
    let pod = scene.pod("owner", 1, "{app: owner}");
    scene.policy("nothing", "podSelector: {}, policyTypes: [Ingress, Egress]");
    scene.settle();
    pod
}

/// The pod's own stack sends the marker to every address that it has a route for, from whatever
/// interface and address it chooses.
fn send_by_sockets(attack: &Attack<'_>, netns: &Netns) {
    for to in attack.stage.destinations() {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let marker = attack.marker.0;
        let send = move || {
            // Without a route, or a neighbour, it gets nowhere.
            let _ = UdpSocket::bind(any).unwrap().send_to(&marker, (to, 80));
        };
        netns.run(send).unwrap();
    }
}

/// Nobody has seen the marker: neither pods, nor who looks behind the programs, nor other hosts.
fn is_seen_by_nobody(attack: &Attack<'_>) {
    attack.is_heard();
    attack.is_only_seen_before();
}

pub fn renamed_interface(attack: &Attack<'_>) {
    let scene = attack.stage.lab.scene(&format!("renamed-{}", attack.number()));
    let pod = owner(&scene);
    let part = attack.by(&pod);
    pod.ip("link set eth0 down\nlink set eth0 name other0\nlink set other0 up");
    part.spray(plain);
    part.is_held();
    // The name that everybody looks for is that of another interface.
    pod.ip("link add eth0 type ifb\nlink set eth0 up\naddr add 192.0.2.66/32 dev eth0");
    scene.settle();
    part.spray(plain);
    part.is_held();
}

pub fn interface_down_and_up(attack: &Attack<'_>) {
    let scene = attack.stage.lab.scene(&format!("down-{}", attack.number()));
    let pod = owner(&scene);
    let part = attack.by(&pod);
    for _ in 0..3 {
        pod.ip("link set eth0 down\nlink set eth0 up");
        part.spray(plain);
    }
    scene.settle();
    part.spray(plain);
    part.is_held();
}

/// Another link-layer address does not make another pod.
pub fn changed_link_address(attack: &Attack<'_>) {
    let scene = attack.stage.lab.scene(&format!("link-{}", attack.number()));
    let pod = owner(&scene);
    for address in ["02:00:00:00:00:77", "0a:58:0a:f4:00:01"] {
        pod.ip(&format!("link set eth0 down\nlink set eth0 address {address}\nlink set eth0 up"));
        let part = attack.by(&pod);
        part.spray(plain);
        part.is_held_in_part();
    }
}

/// The pod's end goes to a namespace of the attacker's making.
pub fn moved_interface(attack: &Attack<'_>) {
    let stage = attack.stage;
    let scene = stage.lab.scene(&format!("moved-{}", attack.number()));
    let pod = owner(&scene);
    let dir = tempfile::tempdir().unwrap();
    let place = Netns::create(dir.path(), "cellar").unwrap();
    pod.ip(&format!("link set eth0 netns {}", dir.path().join("cellar").display()));
    ip(&place, "link set lo up\nlink set eth0 up");
    for address in &pod.addresses {
        ip(&place, &address_and_route(*address, "eth0"));
    }
    for _ in 0..2 {
        let wire = Wire::open(&place);
        let part = attack.through(&pod, Sender::at(&place, &wire));
        part.spray(plain);
        part.is_held_in_part();
        scene.settle();
    }
    drop(place);
    netpol_isolation::netns::delete(dir.path(), "cellar").unwrap();
}

/// An interface on the interface, with a link-layer address of its own and an address of a friend.
pub fn interfaces_on_the_interface(attack: &Attack<'_>) {
    let stage = attack.stage;
    let scene = stage.lab.scene(&format!("upper-{}", attack.number()));
    let pod = owner(&scene);
    let friends: Vec<IpAddr> = stage.friend.addresses.clone();
    for kind in ["macvlan mode bridge", "macvlan mode private", "macvlan mode vepa", "macvtap"] {
        let before = stage.n_dropped(&pod);
        pod.ip(&format!("link add link eth0 name up0 type {kind}\nlink set up0 up"));
        for &address in &friends {
            pod.ip(&address_and_route(address, "up0"));
        }
        // Whom it asks for an address nobody answers; so it knows one by itself.
        for to in stage.destinations() {
            pod.ip(&format!("neigh replace {to} lladdr {} dev up0", text(attack.gateway)));
        }
        send_by_sockets(attack, &pod.netns);
        eventually("something is dropped", || stage.n_dropped(&pod) > before);
        is_seen_by_nobody(attack);
        pod.ip("link del up0");
    }
}

/// Lines of `ip` that give the interface this address, and everything of its family the way there.
fn address_and_route(address: IpAddr, interface: &str) -> String {
    let (everything, nodad) = if address.is_ipv4() { ("0.0.0.0/0", "") } else { ("::/0", "nodad") };
    format!(
        "addr add {address} dev {interface} {nodad}\n\
         route replace {everything} dev {interface} src {address} metric 1\n"
    )
}

fn text(link: [u8; 6]) -> String {
    link.map(|byte| format!("{byte:02x}")).join(":")
}

/// A bridge in the pod, with a namespace behind it that has a friend's address.
pub fn bridge_in_the_pod(attack: &Attack<'_>) {
    let stage = attack.stage;
    let scene = stage.lab.scene(&format!("inner-{}", attack.number()));
    let pod = owner(&scene);
    let dir = tempfile::tempdir().unwrap();
    let place = Netns::create(dir.path(), "cellar").unwrap();
    pod.ip(&format!(
        "link add br0 type bridge\nlink set br0 up\nlink set eth0 master br0\n\
         link add in0 type veth peer name eth0 netns {}\nlink set in0 master br0\nlink set in0 up",
        dir.path().join("cellar").display()
    ));
    ip(&place, "link set lo up\nlink set eth0 up");
    let before = stage.n_dropped(&pod);
    for &address in &stage.friend.addresses {
        ip(&place, &address_and_route(address, "eth0"));
    }
    for to in stage.destinations() {
        ip(&place, &format!("neigh replace {to} lladdr {} dev eth0", text(attack.gateway)));
    }
    send_by_sockets(attack, &place);
    eventually("something is dropped", || stage.n_dropped(&pod) > before);
    is_seen_by_nobody(attack);
    drop(place);
    netpol_isolation::netns::delete(dir.path(), "cellar").unwrap();
}

/// Policies of others come and go while the attacker sends without a pause.
pub fn while_policies_change(attack: &Attack<'_>) {
    let scene = attack.stage.lab.scene(&format!("changes-{}", attack.number()));
    let pod = owner(&scene);
    let part = attack.by(&pod);
    let other = scene.pod("other", 1, "{app: other}");
    for round in 0..4 {
        scene.policy(
            "other",
            "podSelector: {matchLabels: {app: other}}, ingress: [{}], egress: [{}]",
        );
        part.spray(plain);
        scene.policy(
            "more",
            "podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: \
                              {matchLabels: {app: nobody}}}]}]",
        );
        part.spray(plain);
        scene.declare(&other, &format!("{{app: other, round: \"{round}\"}}"));
        part.spray(plain);
        scene.settle();
        scene.remove_policy("other");
        scene.remove_policy("more");
        part.spray(plain);
        scene.settle();
    }
    part.is_held();
}

/// The pod's interface goes, and the next sandbox of the pod has another with the same addresses.
pub fn interface_recreated(attack: &Attack<'_>) {
    let stage = attack.stage;
    let scene = stage.lab.scene(&format!("again-{}", attack.number()));
    let first = owner(&scene);
    let addresses = first.addresses.clone();
    {
        let part = attack.by(&first);
        part.spray(plain);
        part.is_held();
    }
    // The pod takes its interface away; the runtime gives the next sandbox its addresses.
    first.ip("link del eth0");
    scene.is_unwired(&first);
    // Enforced from its first moment, it could not show that its interface works.
    scene.remove("pod-owner");
    scene.settle();
    let again = scene.wire_at("owner", 1, addresses);
    scene.declare(&again, "{app: owner}");
    scene.settle();
    let part = attack.by(&again);
    part.spray(plain);
    part.is_held_in_part();
}

/// Addresses that the pod gives itself are not its own: the friend's, the node's, and that of a
/// cloud's metadata service, at which somebody answers.
pub fn addresses_of_others_added(attack: &Attack<'_>) {
    let stage = attack.stage;
    let scene = stage.lab.scene(&format!("added-{}", attack.number()));
    let pod = owner(&scene);
    let metadata: IpAddr = "169.254.169.254".parse().unwrap();
    ip(&stage.lab.node(1).netns, "addr add 169.254.169.254/32 dev lo");
    let mut added = vec![metadata, "2001:db8:77::77".parse().unwrap()];
    added.extend(&stage.friend.addresses);
    added.extend(stage.lab.outside_addresses());
    for address in &added {
        let nodad = if address.is_ipv4() { "" } else { "nodad" };
        pod.ip(&format!("addr add {address} dev eth0 {nodad}"));
    }
    // A change of policy makes the agent look at everything anew.
    scene.policy("more", "podSelector: {matchLabels: {app: nobody}}");
    scene.settle();
    let mut destinations = stage.destinations();
    destinations.extend(&added);
    let part = attack.by(&pod);
    for &to in &destinations {
        let mut sources = added.clone();
        sources.push(pod.address(to));
        for from in sources.into_iter().filter(|from| from.is_ipv4() == to.is_ipv4()) {
            part.fire_at(part.gateway, &udp(from, to, (4000, 80), part.marker));
        }
    }
    part.is_held();
    ip(&stage.lab.node(1).netns, "addr del 169.254.169.254/32 dev lo");
    // Whose address it is keeps it.
    attack.friend_reaches(&stage.victim, |from, to, port, marker| {
        vec![udp(from, to, (4960, port), marker)]
    });
}

/// The same of a pod that no policy selects, which then is no friend of the victim's.
pub fn a_friends_address_added_by_a_free_pod(attack: &Attack<'_>) {
    let stage = attack.stage;
    let scene = stage.lab.scene(&format!("poses-{}", attack.number()));
    let pod = scene.pod("poses", 1, "{}");
    for address in &stage.friend.addresses {
        let nodad = if address.is_ipv4() { "" } else { "nodad" };
        pod.ip(&format!("addr add {address} dev eth0 {nodad}"));
    }
    scene.settle();
    let part = attack.by(&pod);
    for (victim, _) in attack.victims() {
        for &to in &victim.addresses {
            part.fire_at(part.gateway, &udp(stage.friend.address(to), to, (4000, 80), part.marker));
        }
    }
    part.is_held();
    attack.friend_reaches(&stage.victim, |from, to, port, marker| {
        vec![udp(from, to, (4970, port), marker)]
    });
}
