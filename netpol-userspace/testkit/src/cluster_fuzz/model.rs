//! The specification of a sequence of packets, in plain collections: the reference evaluator says
//! whether a flow may be opened, and this model what follows from that for replies, fragments and
//! ICMP errors. Flows have no epochs here: each is judged by the policies of the moment, in the
//! direction in which it was opened. Must never share code with what it is compared with.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use netpol_model::Direction;
use netpol_reference::Reference;
use netpol_reference::services::{Answer, Services};

use super::packets::{Body, Frame, Packet, Part, Quoted};

/// Who sent the first packet of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opener {
    Pod,
    Remote,
    Node,
    /// Nobody saw: it was met midway, and either end may have.
    Unseen,
}

/// Protocol, local address and port, remote address and port.
type FlowKey = (u8, IpAddr, u16, IpAddr, u16);

/// Direction, local and remote address, identification, and IPv4's protocol: IPv6 datagrams are
/// told apart without it (RFC 8200).
type DatagramKey = (Direction, IpAddr, IpAddr, u16, Option<u8>);

/// One pod's past.
#[derive(Debug, Default)]
struct Past {
    flows: HashMap<FlowKey, Opener>,
    /// Those of the pod's that nobody translates and that must not leave as they are: nothing
    /// answers them.
    barred: HashSet<FlowKey>,
    first_fragments: HashMap<DatagramKey, Packet>,
}

/// All pods' pasts, and the rules.
#[derive(Debug)]
pub struct Model {
    /// Whether flows outlive the policy that allowed them.
    keeps: bool,
    pasts: HashMap<String, Past>,
}

/// A pod and the policies of the moment.
pub struct View<'a> {
    pub reference: &'a Reference,
    pub services: &'a Services,
    pub pod: &'a Pod,
    pub own: &'a HashSet<IpAddr>,
}

/// A packet from the pod's view.
struct Seen<'a> {
    packet: &'a Packet,
    direction: Direction,
    is_from_node: bool,
}

/// IPv6 extension headers are followed so far.
const MAX_EXTENSION_HEADERS: usize = 8;
/// A reserved number, which stands for a protocol with ports that are not known.
const NO_PORTS: u8 = 255;

impl Model {
    /// Pods without a past.
    pub fn new(keeps: bool) -> Self {
        Self { keeps, pasts: HashMap::new() }
    }

    /// Nothing is known of the pod's flows any more. What its fragments said stays: nobody has
    /// two datagrams of one identification here.
    pub fn forget_flows(&mut self, pod: &str) {
        if let Some(past) = self.pasts.get_mut(pod) {
            past.flows.clear();
            past.barred.clear();
        }
    }

    /// Whether a frame passes towards the pod or from it.
    pub fn passes(
        &mut self,
        view: &View<'_>,
        name: &str,
        direction: Direction,
        is_from_node: bool,
        frame: &Frame,
    ) -> bool {
        let is_open = !view.isolates(direction);
        match frame {
            // It says nothing, in nobody's name.
            Frame::Arp => direction == Direction::Ingress,
            Frame::Tagged(_) | Frame::Other(_) => is_open,
            Frame::Ip(packet) => {
                let seen = Seen { packet, direction, is_from_node };
                if seen.has_too_many_headers() {
                    return is_open && !is_spoofed(view, &seen);
                }
                if let Some(passes) = seen.without_policy(is_open) {
                    return passes;
                }
                let past = self.pasts.entry(name.to_owned()).or_default();
                past.passes(self.keeps, view, &seen)
            }
        }
    }
}

/// What becomes of a packet that the pod sent to a Service.
pub struct SecondLook {
    /// The packet as a proxy sends it on.
    pub translated: Packet,
    pub passes: bool,
}

impl Model {
    /// Whether a packet that passed from the pod has to be looked at again once it is translated;
    /// `None` if it opened nothing that could tell.
    pub fn is_stamped(&self, view: &View<'_>, name: &str, packet: &Packet) -> Option<bool> {
        let key = flow_key(packet, Direction::Egress);
        let is_pods = self.pasts.get(name)?.flows.get(&key) == Some(&Opener::Pod);
        // Flows that are kept go on as they were opened. What is not read to its end has none.
        let is_read = packet.part == Part::Whole && packet.n_extensions() < MAX_EXTENSION_HEADERS;
        if !is_pods || self.keeps || !has_flow(&packet.body) || !is_read {
            return None;
        }
        Some(view.is_stamped(&key))
    }

    /// The second look at a stamped packet that nobody translates: whether it passes.
    pub fn untranslated_look(&mut self, view: &View<'_>, name: &str, packet: &Packet) -> bool {
        let (protocol, (_, port)) = (packet.protocol(), packet.ports());
        let (services, to) = (view.services, packet.destination);
        let passes = services.leaves_untranslated(view.reference, view.pod, to, protocol, port);
        let key = flow_key(packet, Direction::Egress);
        let past = self.pasts.entry(name.to_owned()).or_default();
        if passes {
            past.barred.remove(&key)
        } else {
            past.barred.insert(key)
        };
        passes
    }

    /// The second look at a stamped packet, if the proxy chooses this one of the backends.
    pub fn second_look(
        &mut self,
        view: &View<'_>,
        name: &str,
        packet: &Packet,
        choice: usize,
    ) -> Option<SecondLook> {
        let (protocol, (_, port)) = (packet.protocol(), packet.ports());
        let places = view.services.backends(packet.destination, protocol, port)?;
        let &(address, number) = places.iter().nth(choice.checked_rem(places.len())?)?;
        let translated = packet.translated(address, number);
        let key = flow_key(&translated, Direction::Egress);
        let past = self.pasts.get_mut(name)?;
        // A backend that is a Service again, or that has opened the very same flow: no proxy's
        // packet.
        if past.flows.get(&key).is_some_and(|&opener| opener != Opener::Pod)
            || view.services.backends(address, protocol, number).is_some()
        {
            return None;
        }
        // Another backend than the flow's: an answer opens nothing there.
        let is_stray = is_answer(&packet.body)
            && !past.flows.contains_key(&key)
            && !view.own.contains(&address)
            && view.isolates(Direction::Egress);
        let is_allowed = view.reference.allows_backend(view.pod, address, protocol, number);
        let passes = is_allowed && !is_stray;
        if passes && !view.own.contains(&address) && !is_answer(&packet.body) {
            past.flows.insert(key, Opener::Pod);
        }
        Some(SecondLook { translated, passes })
    }
}

impl View<'_> {
    fn isolates(&self, direction: Direction) -> bool {
        self.reference.is_judged(direction, self.pod)
    }

    /// Whether the policies let a flow be opened.
    fn permits(&self, direction: Direction, key: &FlowKey) -> bool {
        let &(protocol, _, local_port, remote, remote_port) = key;
        if protocol == NO_PORTS {
            return self.permits_without_ports(direction, remote, protocol);
        }
        match direction {
            Direction::Ingress => {
                self.reference.allows(direction, self.pod, remote, protocol, local_port)
            }
            // Where it depends on the backend, that is judged where it can be seen.
            Direction::Egress => self.egress(remote, protocol, remote_port) != Answer::No,
        }
    }

    fn egress(&self, remote: IpAddr, protocol: u8, port: u16) -> Answer {
        self.services.egress(self.reference, self.pod, remote, protocol, port)
    }

    /// Whether what passes of a flow of the pod's is judged again once it is translated.
    fn is_stamped(&self, key: &FlowKey) -> bool {
        let &(protocol, local, _, remote, port) = key;
        // What is said of a Service comes first, if the pod is isolated.
        let is_judged = self.isolates(Direction::Egress)
            && self.services.backends(remote, protocol, port).is_some();
        if !is_judged && local == remote && self.own.contains(&remote) {
            // It has to recognise what comes back.
            return true;
        }
        match self.egress(remote, protocol, port) {
            Answer::Depends => true,
            // A proxy may know of other backends than those that are allowed.
            Answer::Yes => {
                let places = self.services.backends(remote, protocol, port);
                self.isolates(Direction::Egress) && places.is_some_and(|places| !places.is_empty())
            }
            Answer::No => false,
        }
    }

    fn permits_flow(&self, opener: Opener, key: &FlowKey) -> bool {
        match opener {
            Opener::Pod => self.permits(Direction::Egress, key),
            Opener::Remote => self.permits(Direction::Ingress, key),
            Opener::Unseen => {
                self.permits(Direction::Ingress, key) && self.permits(Direction::Egress, key)
            }
            Opener::Node => true,
        }
    }

    /// What comes without ports is allowed where ports do not matter.
    fn permits_without_ports(&self, direction: Direction, remote: IpAddr, protocol: u8) -> bool {
        match protocol {
            6 | 17 | 132 | NO_PORTS => self.reference.allows_all(direction, self.pod, remote),
            _ => self.reference.allows(direction, self.pod, remote, protocol, 0),
        }
    }
}

impl Seen<'_> {
    fn local(&self) -> IpAddr {
        if self.direction == Direction::Ingress {
            self.packet.destination
        } else {
            self.packet.source
        }
    }

    fn remote(&self) -> IpAddr {
        if self.direction == Direction::Ingress {
            self.packet.source
        } else {
            self.packet.destination
        }
    }

    fn has_too_many_headers(&self) -> bool {
        // Of a later fragment nothing behind its fragment header is looked at.
        let is_later = matches!(self.packet.part, Part::Later(..));
        self.packet.n_extensions() >= MAX_EXTENSION_HEADERS + usize::from(is_later)
    }

    /// The verdict on what no policy is asked about.
    fn without_policy(&self, is_open: bool) -> Option<bool> {
        let packet = self.packet;
        let Body::Icmp { kind, .. } = packet.body else { return None };
        if !packet.is_v6() || matches!(packet.part, Part::Later(..)) {
            return None;
        }
        let is_to_pod = self.direction == Direction::Ingress;
        match (kind, packet.hop_limit) {
            // None of them is as a neighbour would have it.
            (131 | 132 | 133 | 135 | 136 | 143, _) if !is_to_pod => Some(false),
            // None of them is from the link to a group.
            (133..=137, 255) if is_to_pod => Some(true),
            (130, _) if !is_to_pod => Some(is_open),
            (134 | 137, _) => Some(is_open),
            _ => None,
        }
    }

    /// The protocol as far as the packet says it: what stands behind extension headers is in the
    /// first of an IPv6 datagram's fragments only.
    fn visible_protocol(&self) -> u8 {
        let packet = self.packet;
        let is_hidden = packet.is_v6()
            && matches!(packet.part, Part::Later(..))
            && (!packet.inner_extensions.is_empty()
                || matches!(packet.protocol(), 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140));
        if is_hidden { NO_PORTS } else { packet.protocol() }
    }

    fn datagram(&self, id: u16) -> DatagramKey {
        let protocol = (!self.packet.is_v6()).then(|| self.packet.protocol());
        (self.direction, self.local(), self.remote(), id, protocol)
    }
}

/// The flow of a packet, seen in this direction.
fn flow_key(packet: &Packet, direction: Direction) -> FlowKey {
    let (source_port, destination_port) = packet.ports();
    let protocol = packet.protocol();
    match direction {
        Direction::Ingress => {
            (protocol, packet.destination, destination_port, packet.source, source_port)
        }
        Direction::Egress => {
            (protocol, packet.source, source_port, packet.destination, destination_port)
        }
    }
}

fn is_opening(body: &Body) -> bool {
    match *body {
        Body::Tcp { flags, .. } => flags & 0x16 == 0x02,
        Body::Sctp { chunk, .. } => chunk == 1,
        Body::Echo { kind, .. } => matches!(kind, 8 | 13 | 17 | 128),
        _ => false,
    }
}

fn is_answer(body: &Body) -> bool {
    match *body {
        Body::Tcp { flags, .. } => flags & 0x12 == 0x12 || flags & 0x04 != 0,
        Body::Sctp { chunk, .. } => chunk == 2,
        Body::Echo { kind, .. } => !matches!(kind, 8 | 13 | 17 | 128),
        _ => false,
    }
}

impl Past {
    fn passes(&mut self, keeps: bool, view: &View<'_>, seen: &Seen<'_>) -> bool {
        let packet = seen.packet;
        match packet.part {
            Part::First(id) => {
                self.first_fragments.insert(seen.datagram(id), packet.clone());
            }
            Part::Later(id, _) => {
                let first = self.first_fragments.get(&seen.datagram(id)).cloned();
                return match first.filter(|first| has_flow(&first.body)) {
                    // Like the datagram's first fragment, but it starts nothing.
                    Some(first) => self.passes_in_flow(keeps, view, seen, &first, false),
                    None => self.passes_alone(view, seen),
                };
            }
            Part::Whole | Part::Atomic => {}
        }
        match &packet.body {
            Body::Icmp { .. } => self.passes_alone(view, seen),
            Body::Error { about, quoted, .. } => {
                if is_spoofed(view, seen) {
                    return false;
                }
                self.is_related(keeps, view, seen, about, *quoted) || self.passes_alone(view, seen)
            }
            _ => self.passes_in_flow(keeps, view, seen, packet, true),
        }
    }

    /// Something without a flow.
    fn passes_alone(&self, view: &View<'_>, seen: &Seen<'_>) -> bool {
        !is_spoofed(view, seen)
            && (seen.is_from_node
                || view.permits_without_ports(
                    seen.direction,
                    seen.remote(),
                    seen.visible_protocol(),
                ))
    }

    /// An error about a live and allowed flow; a pod's own goes to whom it quotes.
    fn is_related(
        &self,
        keeps: bool,
        view: &View<'_>,
        seen: &Seen<'_>,
        about: &Packet,
        quoted: Quoted,
    ) -> bool {
        if quoted == Quoted::TooLittle
            || matches!(about.part, Part::Later(..))
            || !has_flow(&about.body)
            || about.n_extensions() >= MAX_EXTENSION_HEADERS
        {
            return false;
        }
        let went = match seen.direction {
            Direction::Ingress => Direction::Egress,
            Direction::Egress => Direction::Ingress,
        };
        let key = flow_key(about, went);
        let goes_to_sender =
            seen.direction == Direction::Ingress || seen.packet.destination == about.source;
        self.flows
            .get(&key)
            .filter(|_| !self.barred.contains(&key))
            .is_some_and(|&opener| goes_to_sender && (keeps || view.permits_flow(opener, &key)))
    }

    /// A packet of the flow that `named` names.
    fn passes_in_flow(
        &mut self,
        keeps: bool,
        view: &View<'_>,
        seen: &Seen<'_>,
        named: &Packet,
        is_first: bool,
    ) -> bool {
        let key = flow_key(named, seen.direction);
        let opens = is_first && is_opening(&named.body);
        let sender = match (seen.direction, seen.is_from_node) {
            (Direction::Egress, _) => Opener::Pod,
            (Direction::Ingress, false) => Opener::Remote,
            (Direction::Ingress, true) => Opener::Node,
        };
        let is_barred = self.barred.contains(&key);
        if is_barred && sender == Opener::Pod && !opens {
            // It is sent on to where it was dropped, and makes the flow no better.
            return !is_spoofed(view, seen) && view.permits(Direction::Egress, &key);
        }
        let known = self.flows.get(&key).copied().filter(|_| !is_barred).filter(|&opener| {
            // Who opens a connection that the other end opened opens one of its own, and nobody
            // else speaks for the node.
            (!opens || opener == sender) && (opener != Opener::Node || sender != Opener::Remote)
        });
        let has_opening = matches!(named.body, Body::Tcp { .. } | Body::Sctp { .. });
        if let Some(opener) = known {
            // What it opened from an address that it has no longer goes on in another's name. Who
            // opened a connection to it there is still answered.
            if is_spoofed(view, seen) && matches!(opener, Opener::Pod | Opener::Unseen) {
                return false;
            }
            let is_new = opens && has_opening;
            return view.permits_flow(opener, &key) || (keeps && !is_new) || sender == Opener::Node;
        }
        if is_spoofed(view, seen) {
            return false;
        }
        let answers = is_first && is_answer(&named.body);
        let is_permitted =
            view.permits(seen.direction, &key) && !(answers && view.isolates(seen.direction));
        if sender != Opener::Node && !is_permitted {
            return false;
        }
        if !answers {
            let is_midway = has_opening && !opens;
            let opener = if is_midway { opener_midway(view, sender, &key) } else { sender };
            self.barred.remove(&key);
            self.flows.insert(key, opener);
        }
        true
    }
}

/// Who may have opened a connection that is met midway: the sender, unless the other end was
/// allowed to as well.
fn opener_midway(view: &View<'_>, sender: Opener, key: &FlowKey) -> Opener {
    let may_be_others = match sender {
        // Nobody opens a connection from a Service's address.
        Opener::Pod => !view.is_stamped(key) && view.permits(Direction::Ingress, key),
        // From an address that it does not have the pod opens nothing.
        Opener::Remote => view.own.contains(&key.1) && view.permits(Direction::Egress, key),
        _ => false,
    };
    if may_be_others { Opener::Unseen } else { sender }
}

fn has_flow(body: &Body) -> bool {
    !matches!(body, Body::Icmp { .. } | Body::Error { .. })
}

fn is_spoofed(view: &View<'_>, seen: &Seen<'_>) -> bool {
    seen.direction == Direction::Egress && !view.own.contains(&seen.packet.source)
}
