//! Sets of what a packet may be by its protocol and destination port. Pure; must never know who
//! allows or denies it.

use super::PortSet;
use super::ports::{Allowed, merge};

/// Some ports of TCP, UDP and SCTP, and all other protocols or none of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Space {
    /// In the normal form of [`PortSet`].
    pub ports: PortSet,
    /// ICMP and every protocol but the three.
    pub others: bool,
}

const WHOLE: (u16, u16) = (0, u16::MAX);

impl Space {
    /// Nothing.
    pub fn none() -> Self {
        Self { ports: PortSet::default(), others: false }
    }

    /// Everything.
    pub fn all() -> Self {
        Self { ports: PortSet { intervals: [vec![WHOLE], vec![WHOLE], vec![WHOLE]] }, others: true }
    }

    /// What is allowed, of which no names are left.
    pub fn of(allowed: &Allowed) -> Self {
        match allowed.everything {
            true => Self::all(),
            false => Self { ports: allowed.numbers.clone(), others: false },
        }
    }

    /// Whether it is everything.
    pub fn is_all(&self) -> bool {
        self.others && self.ports.intervals.iter().all(|list| *list == [WHOLE])
    }

    /// Whether it is nothing.
    pub fn is_none(&self) -> bool {
        !self.others && self.ports.is_empty()
    }

    /// What is in this or in the other.
    pub fn or(&self, other: &Self) -> Self {
        let both = |mine: &[(u16, u16)], theirs: &[(u16, u16)]| {
            let mut all = [mine, theirs].concat();
            merge(&mut all);
            all
        };
        Self { ports: self.each(other, both), others: self.others || other.others }
    }

    /// What is in both.
    pub fn and(&self, other: &Self) -> Self {
        Self { ports: self.each(other, common), others: self.others && other.others }
    }

    /// What is in this and not in the other.
    pub fn without(&self, other: &Self) -> Self {
        let rest = |mine: &[(u16, u16)], theirs: &[(u16, u16)]| common(mine, &gaps(theirs));
        Self { ports: self.each(other, rest), others: self.others && !other.others }
    }

    fn each(
        &self,
        other: &Self,
        make: impl Fn(&[(u16, u16)], &[(u16, u16)]) -> Vec<(u16, u16)>,
    ) -> PortSet {
        let [tcp, udp, sctp] = &self.ports.intervals;
        let [tcp2, udp2, sctp2] = &other.ports.intervals;
        PortSet { intervals: [make(tcp, tcp2), make(udp, udp2), make(sctp, sctp2)] }
    }
}

/// What two lists of intervals have in common.
fn common(a: &[(u16, u16)], b: &[(u16, u16)]) -> Vec<(u16, u16)> {
    let (mut at_a, mut at_b) = (0, 0);
    let mut found = Vec::new();
    while let (Some(&(first_a, last_a)), Some(&(first_b, last_b))) = (a.get(at_a), b.get(at_b)) {
        let (first, last) = (first_a.max(first_b), last_a.min(last_b));
        if first <= last {
            found.push((first, last));
        }
        if last_a <= last_b {
            at_a += 1;
        } else {
            at_b += 1;
        }
    }
    found
}

/// What is in none of the intervals.
fn gaps(list: &[(u16, u16)]) -> Vec<(u16, u16)> {
    let mut found = Vec::with_capacity(list.len() + 1);
    let mut next = Some(0);
    for &(first, last) in list {
        if let Some(start) = next
            && start < first
        {
            found.push((start, first - 1));
        }
        next = last.checked_add(1);
    }
    found.extend(next.map(|start| (start, u16::MAX)));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(list: &[(u16, u16)]) -> Space {
        Space {
            ports: PortSet { intervals: [list.to_vec(), Vec::new(), Vec::new()] },
            others: false,
        }
    }

    #[test]
    fn what_is_left_and_what_is_taken_are_all_of_it_and_have_nothing_in_common() {
        type Intervals = &'static [(u16, u16)];
        let cases: [(Intervals, Intervals, Intervals); 8] = [
            (&[(0, 65535)], &[(80, 80)], &[(0, 79), (81, 65535)]),
            (&[(0, 65535)], &[(0, 80)], &[(81, 65535)]),
            (&[(0, 65535)], &[(81, 65535)], &[(0, 80)]),
            (&[(0, 65535)], &[(0, 65535)], &[]),
            (&[(0, 65535)], &[], &[(0, 65535)]),
            (&[(10, 20), (30, 40)], &[(15, 35)], &[(10, 14), (36, 40)]),
            (&[(10, 20)], &[(1, 9), (21, 30)], &[(10, 20)]),
            (&[], &[(1, 9)], &[]),
        ];
        for (all, part, rest) in cases {
            let (all, part) = (tcp(all), tcp(part));
            let left = all.without(&part);
            assert_eq!(left, tcp(rest), "{all:?} without {part:?}");
            assert!(left.and(&part).is_none());
            assert_eq!(left.or(&all.and(&part)), all);
        }
    }

    #[test]
    fn protocols_without_ports_are_of_it_or_not() {
        let web = tcp(&[(80, 80)]);
        let rest = Space::all().without(&web);
        assert!(rest.others && !rest.is_all() && !rest.is_none());
        assert!(rest.or(&web).is_all());
        assert!(!rest.without(&Space::all()).others);
        assert!(Space::all().and(&web) == web);
    }
}
