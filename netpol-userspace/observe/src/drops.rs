//! Dropped packets by reason, from the programs' counters.

use std::collections::BTreeMap;

use netpol_common::layout::{N_COUNTERS, Reason};

use netpol_datapath::{DatapathError, Maps, observe};
use netpol_model::Direction;

/// Packets dropped, by [`Reason::as_str`]; reasons that did not occur are absent.
pub type Drops = BTreeMap<&'static str, u64>;

/// What an endpoint lost in a direction since it is known.
pub(crate) fn of_endpoint(
    maps: &Maps,
    id: u16,
    direction: Direction,
) -> Result<Drops, DatapathError> {
    observe::counters(maps, id, direction).map(|counters| by_reason(&counters))
}

/// The drops among a set of counters.
pub(crate) fn by_reason(counters: &[u64; N_COUNTERS]) -> Drops {
    Reason::ALL
        .iter()
        .filter(|reason| reason.is_drop())
        .map(|&reason| (reason.as_str(), counters[reason as usize]))
        .filter(|&(_, packets)| packets > 0)
        .collect()
}

/// All reasons together.
pub fn total(drops: &Drops) -> u64 {
    drops.values().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_drops_that_happened_are_listed() {
        let mut counters = [0; N_COUNTERS];
        counters[Reason::NewFlow as usize] = 100;
        counters[Reason::EventLost as usize] = 50;
        counters[Reason::Policy as usize] = 3;
        counters[Reason::Fragment as usize] = 1;
        let drops = by_reason(&counters);
        assert_eq!(drops, Drops::from([("fragment", 1), ("policy", 3)]));
        assert_eq!(total(&drops), 4);
    }
}
