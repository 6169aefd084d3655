//! Which address of its own the node gives to packets that it masquerades, by the rules of the
//! kernel (`inet_select_addr` for IPv4, RFC 6724 for IPv6), which look at the interface that the
//! packets leave by and at nothing that a pod could change. Where they depend on more than netlink
//! tells, all that come into question. Must never change anything in the kernel.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use super::netlink::{OwnAddress, Rtnl};

/// Of linux/rtnetlink.h.
const RT_SCOPE_UNIVERSE: u8 = 0;
/// Of linux/if_addr.h. For IPv6 the first one means a temporary address.
const IFA_F_SECONDARY: u8 = 0x01;
const IFA_F_DADFAILED: u8 = 0x08;
const IFA_F_DEPRECATED: u8 = 0x20;
const IFA_F_TENTATIVE: u8 = 0x40;
/// The first device of every namespace.
const LOOPBACK: u32 = 1;

/// What packets to `to` may have for a source once they are masqueraded in the calling thread's
/// namespace: one address if that is certain, none if they cannot leave or there is none. Sorted.
pub fn masquerades(to: IpAddr) -> io::Result<Vec<IpAddr>> {
    let mut rtnl = Rtnl::open()?;
    let Some(route) = rtnl.route_to(to)? else { return Ok(Vec::new()) };
    Ok(select(&rtnl.listed_addresses()?, route.ifindex, to))
}

fn select(listed: &[OwnAddress], exit: u32, to: IpAddr) -> Vec<IpAddr> {
    let may_be =
        |own: &&OwnAddress| own.address.is_ipv6() == to.is_ipv6() && own.scope == RT_SCOPE_UNIVERSE;
    let usable: Vec<&OwnAddress> = listed.iter().filter(may_be).collect();
    let mut selected = match to {
        IpAddr::V4(_) => select_v4(&usable, exit, to),
        IpAddr::V6(_) => select_v6(usable, exit, to),
    };
    selected.sort_unstable();
    selected.dedup();
    selected
}

fn select_v4(usable: &[&OwnAddress], exit: u32, to: IpAddr) -> Vec<IpAddr> {
    let is_primary = |own: &&&OwnAddress| own.flags & IFA_F_SECONDARY == 0;
    let primary: Vec<&OwnAddress> = usable.iter().filter(is_primary).copied().collect();
    let first_on = |ifindex| primary.iter().find(|own| own.ifindex == ifindex);
    let is_around = |own: &&&OwnAddress| {
        own.ifindex == exit
            && IpNet::new(own.peer, own.prefix_length).is_ok_and(|net| net.contains(&to))
    };
    let on_exit = primary.iter().find(is_around).or_else(|| first_on(exit));
    // Else the first one of the first device that has any: which device that is after loopback,
    // only the kernel's list of them says.
    if let Some(own) = on_exit.or_else(|| first_on(LOOPBACK)) {
        return vec![own.address];
    }
    let firsts = primary
        .iter()
        .filter(|own| first_on(own.ifindex).is_some_and(|first| first.address == own.address));
    firsts.map(|own| own.address).collect()
}

/// The best by each rule in turn; those that no rule here tells apart.
fn select_v6(mut left: Vec<&OwnAddress>, exit: u32, to: IpAddr) -> Vec<IpAddr> {
    left.retain(|own| own.flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED) == 0);
    keep_best(&mut left, |own| own.flags & IFA_F_DEPRECATED == 0);
    keep_best(&mut left, |own| own.ifindex == exit);
    keep_best(&mut left, |own| is_unique_local(own.address) == is_unique_local(to));
    // Whether temporary ones are preferred is a setting of each device.
    let is_temporary = |own: &&OwnAddress| own.flags & IFA_F_SECONDARY != 0;
    if !left.iter().any(is_temporary) {
        keep_best(&mut left, |own| common_prefix(own.address, to).min(own.prefix_length));
    }
    left.iter().map(|own| own.address).collect()
}

fn keep_best<T: Ord>(left: &mut Vec<&OwnAddress>, score: impl Fn(&OwnAddress) -> T) {
    let best = left.iter().map(|own| score(own)).max();
    left.retain(|own| Some(score(own)) == best);
}

fn is_unique_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unique_local())
}

/// How many bits two addresses begin with in common.
fn common_prefix(a: IpAddr, b: IpAddr) -> u8 {
    match (a, b) {
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let n_bits = (a.to_bits() ^ b.to_bits()).leading_zeros();
            u8::try_from(n_bits).expect("invariant: at most 128")
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// Of linux/rtnetlink.h.
    const RT_SCOPE_HOST: u8 = 254;
    const RT_SCOPE_LINK: u8 = 253;
    const BRIDGE: u32 = 7;

    fn own(ifindex: u32, net: &str) -> OwnAddress {
        let net: IpNet = net.parse().unwrap();
        let (address, prefix_length) = (net.addr(), net.prefix_len());
        OwnAddress { ifindex, address, peer: address, prefix_length, scope: 0, flags: 0 }
    }

    fn selected(listed: &[OwnAddress], to: &str) -> Vec<String> {
        let found = select(listed, BRIDGE, to.parse().unwrap());
        found.iter().map(ToString::to_string).collect()
    }

    fn loopback() -> OwnAddress {
        OwnAddress { scope: RT_SCOPE_HOST, ..own(LOOPBACK, "127.0.0.1/8") }
    }

    #[test]
    fn an_interface_gives_the_address_of_the_destinations_subnet_or_its_first() {
        let listed = [
            loopback(),
            own(2, "172.16.0.1/24"),
            OwnAddress { scope: RT_SCOPE_LINK, ..own(BRIDGE, "10.244.3.7/16") },
            own(BRIDGE, "10.244.1.1/24"),
            own(BRIDGE, "10.244.2.1/24"),
            OwnAddress { flags: IFA_F_SECONDARY, ..own(BRIDGE, "10.244.2.2/24") },
        ];
        assert_eq!(selected(&listed, "10.244.2.9"), ["10.244.2.1"]);
        assert_eq!(selected(&listed, "10.244.3.9"), ["10.244.1.1"]);
        // Of two ends of one link the other's says where its net is.
        let far_end = OwnAddress {
            peer: "10.244.5.2".parse().unwrap(),
            prefix_length: 32,
            ..own(BRIDGE, "192.0.2.1/32")
        };
        assert_eq!(selected(&[listed[3], far_end], "10.244.5.2"), ["192.0.2.1"]);
    }

    #[test]
    fn without_one_loopback_has_it_and_then_any() {
        let others =
            [loopback(), own(2, "172.16.0.1/24"), own(2, "172.16.1.1/24"), own(3, "172.17.0.1/16")];
        assert_eq!(selected(&others, "10.244.2.9"), ["172.16.0.1", "172.17.0.1"]);
        let with_loopback = [&others[..], &[own(LOOPBACK, "192.0.2.9/32")]].concat();
        assert_eq!(selected(&with_loopback, "10.244.2.9"), ["192.0.2.9"]);
        assert!(selected(&others[..1], "10.244.2.9").is_empty());
        assert!(selected(&others, "fd00::9").is_empty());
    }

    #[test]
    fn ipv6_goes_by_interface_then_label_then_prefix() {
        let link_local = OwnAddress { scope: RT_SCOPE_LINK, ..own(BRIDGE, "fe80::1/64") };
        let listed = [
            own(2, "fd00:1::1/64"),
            own(3, "2001:db8::1/64"),
            own(3, "fd00:10:244::1/64"),
            link_local,
        ];
        assert_eq!(selected(&listed, "fd00:10:244:1::9"), ["fd00:10:244::1"]);
        assert_eq!(selected(&listed, "2001:db8:1::9"), ["2001:db8::1"]);
        let on_bridge = [&listed[..], &[own(BRIDGE, "2001:db8:5::1/64")]].concat();
        assert_eq!(selected(&on_bridge, "fd00:10:244:1::9"), ["2001:db8:5::1"]);
        let tentative = OwnAddress { flags: IFA_F_TENTATIVE, ..on_bridge[4] };
        let of_now = [&listed[..], &[tentative]].concat();
        assert_eq!(selected(&of_now, "fd00:10:244:1::9"), ["fd00:10:244::1"]);
        // No rule that is known here decides.
        let temporary = OwnAddress { flags: IFA_F_SECONDARY, ..own(BRIDGE, "2001:db8:5::7/64") };
        let both = [on_bridge[4], temporary];
        assert_eq!(selected(&both, "fd00::9"), ["2001:db8:5::1", "2001:db8:5::7"]);
    }
}
