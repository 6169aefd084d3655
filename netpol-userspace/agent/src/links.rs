//! Which link-layer and link-local address is whose. An interface has the link-layer address with
//! which it was first known: a pod may give itself another one, but that is not its own. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use netpol_datapath::Link;
use netpol_endpoint::{Interface, Switch};

/// In place of the address of an interface that has another one's: no frame has such a source.
const NOBODYS: [u8; 6] = [0xff; 6];

/// The first link-layer addresses of pods' interfaces.
#[derive(Debug, Default)]
pub(crate) struct Links {
    /// By [`Interface::incarnation`].
    first: BTreeMap<u64, [u8; 6]>,
}

impl Links {
    /// With what an earlier agent knew of interfaces, by their indexes, that are still the same.
    pub(crate) fn adopt(
        interfaces: &[Interface],
        known: impl IntoIterator<Item = (u32, [u8; 6])>,
    ) -> Self {
        let known: BTreeMap<u32, [u8; 6]> = known.into_iter().collect();
        let of =
            |interface: &Interface| Some((interface.incarnation, *known.get(&interface.ifindex)?));
        Self { first: interfaces.iter().filter_map(of).collect() }
    }

    /// Whether an interface of a pod has another address now.
    pub(crate) fn is_changed(&self, interface: &Interface) -> bool {
        let first = self.first.get(&interface.incarnation);
        interface.link_address.zip(first).is_some_and(|(now, first)| now != *first)
    }

    /// How the interfaces of pods, with these indexes, are linked to a node that has these
    /// addresses.
    pub(crate) fn of_pods(
        &mut self,
        interfaces: &[Interface],
        node: &BTreeSet<IpAddr>,
        is_pods: impl Fn(u32) -> bool,
    ) -> Vec<(u32, Link)> {
        let incarnations: BTreeSet<u64> = interfaces.iter().map(|i| i.incarnation).collect();
        self.first.retain(|incarnation, _| incarnations.contains(incarnation));
        let mut pods: Vec<&Interface> =
            interfaces.iter().filter(|interface| is_pods(interface.ifindex)).collect();
        pods.sort_unstable_by_key(|interface| interface.incarnation);
        for interface in &pods {
            if let Some(address) = interface.link_address {
                self.first.entry(interface.incarnation).or_insert(address);
            }
        }
        let mut taken = BTreeSet::new();
        let mut links = Vec::new();
        for interface in pods {
            let address = self.first.get(&interface.incarnation).copied();
            let is_anothers = address.is_some_and(|address| {
                let is_nodes = node.contains(&IpAddr::V6(link_local(address)));
                let is_pods = interface.switch != Switch::None
                    && !taken.insert((index_of(interface.switch), address));
                is_nodes || is_pods
            });
            let address = if is_anothers { Some(NOBODYS) } else { address };
            links.push((
                interface.ifindex,
                Link {
                    address,
                    link_local: address.filter(|address| *address != NOBODYS).map(link_local),
                    is_shared: interface.switch != Switch::None,
                    routed_by: match interface.switch {
                        Switch::None => Some(interface.ifindex),
                        Switch::Bridge(bridge) => Some(bridge),
                        Switch::Other(_) => None,
                    },
                },
            ));
        }
        links
    }
}

fn index_of(switch: Switch) -> u32 {
    match switch {
        Switch::None => 0,
        Switch::Bridge(index) | Switch::Other(index) => index,
    }
}

/// The link-local address that follows from a link-layer address (RFC 4291, appendix A).
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    let word = |high, low| u16::from_be_bytes([high, low]);
    let (first, second) = (word(a ^ 2, b), word(c, 0xff));
    Ipv6Addr::new(0xfe80, 0, 0, 0, first, second, word(0xfe, d), word(e, f))
}

/// IPv6 link-local addresses are the interface's own affair, and never the pod's addresses.
pub(crate) fn is_link_local6(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(ifindex: u32, address: [u8; 6], switch: Switch) -> Interface {
        Interface {
            ifindex,
            name: format!("v{ifindex}"),
            incarnation: u64::from(ifindex),
            nsid: ifindex.cast_signed(),
            netns: None,
            peer_ifindex: 2,
            peer_name: "eth0".to_owned(),
            addresses: Vec::new(),
            link_address: Some(address),
            switch,
            appeared: 0,
        }
    }

    const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
    const B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];
    const BRIDGE: Switch = Switch::Bridge(90);

    fn addresses(links: &mut Links, interfaces: &[Interface]) -> Vec<Option<[u8; 6]>> {
        let links = links.of_pods(interfaces, &BTreeSet::new(), |_| true);
        links.into_iter().map(|(_, link)| link.address).collect()
    }

    #[test]
    fn an_interface_keeps_the_address_that_it_was_known_with() {
        let mut links = Links::default();
        let before = [interface(1, A, BRIDGE), interface(2, B, BRIDGE)];
        assert_eq!(addresses(&mut links, &before), [Some(A), Some(B)]);
        let after = [interface(1, A, BRIDGE), interface(2, A, BRIDGE)];
        assert_eq!(addresses(&mut links, &after), [Some(A), Some(B)]);
        // A new agent knows it too, and a new interface with that index has its own.
        let mut next = Links::adopt(&after, [(1, A), (2, B)]);
        assert_eq!(addresses(&mut next, &after), [Some(A), Some(B)]);
        let renewed = [Interface { incarnation: 7, ..interface(2, A, BRIDGE) }];
        assert_eq!(addresses(&mut next, &renewed), [Some(A)]);
    }

    #[test]
    fn of_two_with_one_address_on_a_link_the_first_has_it() {
        let mut links = Links::default();
        let both = [interface(1, A, BRIDGE), interface(2, A, BRIDGE)];
        assert_eq!(addresses(&mut links, &both), [Some(A), Some(NOBODYS)]);
        assert_eq!(addresses(&mut links, &both[1..]), [Some(A)]);
        for switch in [Switch::None, Switch::Bridge(91)] {
            let apart = [interface(1, A, BRIDGE), interface(2, A, switch)];
            assert_eq!(addresses(&mut Links::default(), &apart), [Some(A), Some(A)]);
        }
    }

    #[test]
    fn no_pod_has_the_link_local_address_of_the_node() {
        let node = BTreeSet::from([IpAddr::V6(link_local(A))]);
        for switch in [Switch::None, BRIDGE, Switch::Other(90)] {
            let all = [interface(1, A, switch), interface(2, B, switch)];
            let links = Links::default().of_pods(&all, &node, |_| true);
            assert_eq!((links[0].1.address, links[0].1.link_local), (Some(NOBODYS), None));
            assert_eq!(links[1].1.link_local, Some(link_local(B)));
        }
    }

    #[test]
    fn the_interface_that_routes_is_the_bridge_where_there_is_one() {
        for (switch, is_shared, routed_by) in [
            (Switch::None, false, Some(1)),
            (BRIDGE, true, Some(90)),
            (Switch::Other(7), true, None),
        ] {
            let links =
                Links::default().of_pods(&[interface(1, A, switch)], &BTreeSet::new(), |_| true);
            assert_eq!((links[0].1.is_shared, links[0].1.routed_by), (is_shared, routed_by));
        }
    }

    #[test]
    fn link_local_addresses_are_made_as_the_kernel_makes_them() {
        let expected: Ipv6Addr = "fe80::858:aff:fef4:1".parse().expect("an address");
        assert_eq!(link_local([0x0a, 0x58, 0x0a, 0xf4, 0, 1]), expected);
    }
}
