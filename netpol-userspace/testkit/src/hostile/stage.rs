//! The pods of all attacks on one network, their policies, and who observes them. Set up once for
//! as many attacks as follow each other. Must never be changed by an attack: whoever needs other
//! pods or policies makes a scene of its own.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use netpol_datapath::observe;
use netpol_isolation::netns::Netns;
use netpol_model::Direction;

use super::attack::Attack;
use super::frames::{LLC, Marker, arp, arp_frame, frame, udp};
use super::observers::{Observers, Place};
use super::sender::Sender;
use crate::lab::wire::{ARP, BROADCAST, EVERYTHING, EXPERIMENTAL, IPV4, IPV6};
use crate::lab::{Cni, Families, Lab, Pod, Topology};
use crate::world::traffic::Server;

/// Pods may speak to the victim on this port, if they are its friends.
pub const OPEN: u16 = 80;
/// A port that nobody listens on and that no policy names (RFC 863).
const DISCARD: u16 = 9;

/// What is heard behind the programs of node 1's interfaces, by ethertype.
pub const HEARD: [u16; 23] = [
    IPV4,
    IPV6,
    ARP,
    EXPERIMENTAL,
    LLC,
    0x9100,
    0x8847,
    0x8848,
    0x8863,
    0x8864,
    0x8035,
    0x888e,
    0x88cc,
    0x88e5,
    0x6558,
    0x894f,
    0x22f3,
    0x88be,
    0x9000,
    0x0842,
    0x8137,
    0x88f7,
    0x8906,
];

/// Everyone, on one network.
pub struct Stage {
    /// On node 1. Nothing is allowed to it, both ways: what it sends is an attack.
    pub attacker: Pod,
    /// On node 1 and 2. Isolated both ways; lets in its friends, on [`OPEN`].
    pub victim: Pod,
    pub far_victim: Pod,
    /// On node 1. A friend of the victims, isolated both ways: it may do nothing else.
    pub friend: Pod,
    /// On node 1 and 2. No policy selects them.
    pub free: Pod,
    pub far_free: Pod,
    pub observers: Observers,
    pub(super) lock: Mutex<()>,
    free_sender: Sender,
    /// The link-layer address of what the attacker takes for its gateway; on a routed network each
    /// pod has another one.
    pub gateway: [u8; 6],
    /// Sends to those who hear of node 1, and of node 2.
    heralds: [UdpSocket; 2],
    _servers: Vec<Server>,
    /// Last: taken down when nobody is in it any more.
    pub lab: Lab,
}

/// Names of places that are no pods.
pub const BEFORE: &str = "node 1, before the programs";
const NODE_2: &str = "node 2";
const UNDERLAY: &str = "the network between";
const OUTSIDE: &str = "the host outside";

impl Stage {
    pub fn new(topology: Topology, families: Families) -> Self {
        let lab = Lab::new(topology, families);
        let scene = lab.scene("stage");
        let victim = scene.pod("victim", 1, "{app: victim}");
        let far_victim = scene.pod("far-victim", 2, "{app: victim}");
        let friend = scene.pod("friend", 1, "{app: friend}");
        let attacker = scene.pod("attacker", 1, "{app: attacker}");
        let [free, far_free] = [1, 2].map(|node| scene.pod(&format!("free-{node}"), node, "{}"));
        let both = "policyTypes: [Ingress, Egress]";
        let selects = |app: &str| format!("podSelector: {{matchLabels: {{app: {app}}}}}, {both}");
        let named = |app: &str| format!("[{{podSelector: {{matchLabels: {{app: {app}}}}}}}]");
        let ports = format!("ports: [{{port: {OPEN}}}, {{port: {OPEN}, protocol: UDP}}]");
        scene.policy("attacker", &selects("attacker"));
        let from = format!("ingress: [{{from: {}, {ports}}}]", named("friend"));
        scene.policy("victim", &format!("{}, {from}", selects("victim")));
        let to = format!("egress: [{{to: {}, {ports}}}]", named("victim"));
        scene.policy("friend", &format!("{}, {to}", selects("friend")));
        scene.settle();
        // What belongs to it goes with the lab.
        std::mem::forget(scene);
        let servers = [&victim, &far_victim].map(|pod| Server::start(&pod.netns, OPEN));
        let heralds = [1, 2].map(|number| herald(&lab.node(number).netns));
        let observers =
            Observers::new(places(&lab, &[&victim, &friend, &free], &[&far_victim, &far_free]));
        let (gateway, free_sender) = (attacker.gateway(), Sender::of(&free));
        // It sends much, and does not listen to itself.
        attacker.wire().deafen();
        let stage = Self {
            attacker,
            victim,
            far_victim,
            friend,
            free,
            far_free,
            observers,
            lock: Mutex::default(),
            free_sender,
            gateway,
            heralds,
            _servers: servers.into(),
            lab,
        };
        stage.is_quiet();
        stage
    }

    /// Nobody else attacks until it ends.
    pub fn attack(&self) -> Attack<'_> {
        Attack::new(self, self.lock.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn is_bridged(&self) -> bool {
        self.lab.topology.cni != Cni::Routed
    }

    /// Pods other than the attacker, where somebody observes.
    pub fn others(&self) -> [&Pod; 5] {
        [&self.victim, &self.friend, &self.free, &self.far_victim, &self.far_free]
    }

    /// How many frames that this pod has sent were dropped, for whatever reason.
    pub fn n_dropped(&self, pod: &Pod) -> u64 {
        observe::drops(&self.lab.counters(pod, Direction::Egress))
    }

    /// How many packets for this pod were dropped.
    pub fn n_kept(&self, pod: &Pod) -> u64 {
        observe::drops(&self.lab.counters(pod, Direction::Ingress))
    }

    /// An attack is measured against silence, so the first traffic of all comes before.
    fn is_quiet(&self) {
        self.attack().is_heard();
    }

    /// Sends what may pass, to everyone, and says which place has to see which bytes.
    pub(super) fn proclaim(&self) -> Vec<(usize, Vec<u8>)> {
        let mut awaited = Vec::new();
        let mut say = |herald: &UdpSocket, to: IpAddr, places: &[usize]| {
            let marker = Marker::new();
            herald.send_to(&marker.0, SocketAddr::new(to, DISCARD)).unwrap();
            awaited.extend(places.iter().map(|&place| (place, marker.0.to_vec())));
        };
        let place = |name: &str| self.observers.place(name);
        for pod in self.others() {
            // Own nodes may always speak to their pods.
            say(&self.heralds[pod.node - 1], pod.addresses[0], &[place(&pod.name)]);
        }
        let outside = self.lab.outside_addresses()[0];
        say(&self.heralds[0], outside, &[place(BEFORE), place(UNDERLAY), place(OUTSIDE)]);
        say(&self.heralds[0], self.lab.node_addresses(2)[0], &[place(NODE_2)]);
        for ethertype in HEARD {
            let (frame, needle) = self.proclamation(ethertype);
            self.free_sender.send(&frame);
            awaited.push((place(&behind(ethertype)), needle));
        }
        awaited
    }

    /// A frame of this ethertype that a pod may send that no policy selects, and what it is known by.
    fn proclamation(&self, ethertype: u16) -> (Vec<u8>, Vec<u8>) {
        let (link, marker) = (self.free_sender.link, Marker::new());
        let own = |v4| self.free.addresses.iter().copied().find(|a| a.is_ipv4() == v4);
        let whole = |packet: Vec<u8>| frame(BROADCAST, link, ethertype, &packet);
        let bytes = match (ethertype, own(true), own(false)) {
            (IPV4, Some(own), _) => whole(udp(own, "192.0.2.9".parse().unwrap(), (9, 9), marker)),
            (IPV6, _, Some(own)) => whole(udp(own, "2001:db8::9".parse().unwrap(), (9, 9), marker)),
            (ARP, Some(IpAddr::V4(own)), _) => {
                // The address that it asks for is the mark.
                let [a, b, ..] = marker.0;
                let asked = [198, 18, a, b].into();
                let message = arp(1, (link, own), ([0; 6], asked));
                let needle = message[14..].to_vec();
                return (arp_frame(BROADCAST, link, &message), needle);
            }
            (LLC, ..) => whole_llc(link, marker),
            _ => whole(marker.0.to_vec()),
        };
        (bytes, marker.0.to_vec())
    }
}

/// A frame with a length in place of an ethertype, to a service access point of nobody.
fn whole_llc(link: [u8; 6], marker: Marker) -> Vec<u8> {
    frame(BROADCAST, link, 19, &[&[0x06, 0x06, 0x03][..], &marker.0].concat())
}

/// The place that hears this ethertype behind the programs of node 1.
pub fn behind(ethertype: u16) -> String {
    format!("node 1, behind the programs, {ethertype:#06x}")
}

fn places(lab: &Lab, near: &[&Pod], far: &[&Pod]) -> Vec<Place> {
    let mut places = vec![
        Place::new(BEFORE.into(), &lab.node(1).netns, EVERYTHING),
        Place::new(NODE_2.into(), &lab.node(2).netns, EVERYTHING),
        Place::new(UNDERLAY.into(), &lab.underlay, EVERYTHING),
        Place::new(OUTSIDE.into(), &lab.outside, EVERYTHING),
    ];
    let pods = near.iter().chain(far);
    places.extend(pods.map(|pod| Place::new(pod.name.clone(), &pod.netns, EVERYTHING)));
    let node = &lab.node(1).netns;
    places.extend(HEARD.iter().map(|&heard| Place::new(behind(heard), node, heard)));
    places
}

/// A socket of a node that sends in both families.
fn herald(node: &Netns) -> UdpSocket {
    node.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap()
}

/// A place for a stage, in a static: it lasts as long as anybody is on it.
pub struct Shared {
    topology: Topology,
    families: Families,
    stage: Mutex<Weak<Stage>>,
}

impl Shared {
    pub const fn new(topology: Topology, families: Families) -> Self {
        Self { topology, families, stage: Mutex::new(Weak::new()) }
    }

    /// The stage, which exists at least as long as what this returns.
    pub fn get(&self) -> Arc<Stage> {
        let mut place = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        place.upgrade().unwrap_or_else(|| {
            let stage = Arc::new(Stage::new(self.topology, self.families));
            *place = Arc::downgrade(&stage);
            stage
        })
    }
}
