//! Numbers for endpoints. Pure.
//!
//! The endpoint table has room for so many; endpoints beyond that get numbers above its limit,
//! which mean "no room": the datapath closes such an endpoint as soon as a policy isolates it.
//! They get proper numbers when others are gone. Must never give one number to two endpoints.

use std::collections::{HashMap, HashSet};

use netpol_compile::EndpointId;
use netpol_endpoint::Endpoint;

/// What makes an endpoint the same one: the link and the pod behind it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    ifindex: u32,
    incarnation: u64,
    uid: String,
}

impl Key {
    /// The key of a matched endpoint.
    pub(crate) fn of(endpoint: &Endpoint) -> Self {
        Self {
            ifindex: endpoint.ifindex,
            incarnation: endpoint.incarnation,
            uid: endpoint.uid.to_string(),
        }
    }
}

/// Hands out endpoint ids, the longest unused first.
#[derive(Debug)]
pub(crate) struct Numbers {
    /// The last number that the endpoint table has room for.
    limit: u16,
    by_key: HashMap<Key, EndpointId>,
    used: HashSet<u16>,
    next: u16,
    /// Ids of an earlier agent by (ifindex, uid); taken at most once each.
    adopted: HashMap<(u32, String), EndpointId>,
    /// Ids that the maps hold and that nobody has claimed.
    reserved: HashSet<u16>,
}

impl Numbers {
    /// Starts with the ids that an earlier agent left in force: `in_force` are all of them, which
    /// nobody else may have, `adopted` those of which it is known whose they are.
    pub(crate) fn adopt(
        limit: u16,
        adopted: HashMap<(u32, String), EndpointId>,
        in_force: impl IntoIterator<Item = EndpointId>,
    ) -> Self {
        let reserved: HashSet<u16> = in_force.into_iter().map(|id| id.0).collect();
        let used = reserved.clone();
        Self { limit, by_key: HashMap::new(), used, next: 0, adopted, reserved }
    }

    /// The id of a known endpoint.
    pub(crate) fn get(&self, key: &Key) -> Option<EndpointId> {
        self.by_key.get(key).copied()
    }

    /// An id for a new endpoint, above the limit if all others are in use; `None` if those are too.
    pub(crate) fn assign(&mut self, key: Key) -> Option<EndpointId> {
        let adopted = self.adopted.remove(&(key.ifindex, key.uid.clone()));
        let id = match adopted {
            Some(id) => {
                self.reserved.remove(&id.0);
                id
            }
            None => self.free().or_else(|| self.above_limit())?,
        };
        self.by_key.insert(key, id);
        Some(id)
    }

    fn free(&mut self) -> Option<EndpointId> {
        for _ in 0..self.limit {
            self.next = self.next % self.limit + 1;
            if self.used.insert(self.next) {
                return Some(EndpointId(self.next));
            }
        }
        None
    }

    fn above_limit(&mut self) -> Option<EndpointId> {
        let id = (self.limit + 1..=u16::MAX).find(|id| self.used.insert(*id))?;
        Some(EndpointId(id))
    }

    /// Gives one endpoint above the limit a proper id, if there is one and it is free. Returns its
    /// old and its new id; the old one is free again.
    pub(crate) fn promote(&mut self) -> Option<(EndpointId, EndpointId)> {
        let limit = self.limit;
        let old = self.by_key.values().copied().filter(|id| id.0 > limit).min_by_key(|id| id.0)?;
        let new = self.free()?;
        let id = self.by_key.values_mut().find(|id| **id == old)?;
        *id = new;
        self.used.remove(&old.0);
        Some((old, new))
    }

    /// Gives the id of an endpoint that is gone back.
    pub(crate) fn release(&mut self, key: &Key) -> Option<EndpointId> {
        let id = self.by_key.remove(key)?;
        self.used.remove(&id.0);
        Some(id)
    }

    /// Gives back what was never claimed: the maps hold it no more.
    pub(crate) fn forget_adopted(&mut self) {
        self.adopted.clear();
        for id in self.reserved.drain() {
            self.used.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(ifindex: u32, uid: &str) -> Key {
        Key { ifindex, incarnation: 1, uid: uid.into() }
    }

    const LIMIT: u16 = 6;

    fn empty() -> Numbers {
        Numbers::adopt(LIMIT, HashMap::new(), [])
    }

    #[test]
    fn an_adopted_id_goes_to_the_same_link_and_pod_only() {
        let adopted = HashMap::from([((7, "a".to_owned()), EndpointId(1))]);
        let mut numbers = Numbers::adopt(LIMIT, adopted, [EndpointId(1)]);
        assert_eq!(numbers.assign(key(7, "b")), Some(EndpointId(2)));
        assert_eq!(numbers.assign(key(7, "a")), Some(EndpointId(1)));
    }

    #[test]
    fn an_id_in_force_that_nobody_claims_is_free_only_once_it_is_out_of_force() {
        let mut numbers = Numbers::adopt(LIMIT, HashMap::new(), [EndpointId(1), EndpointId(3)]);
        assert_eq!(numbers.assign(key(7, "a")), Some(EndpointId(2)));
        assert_eq!(numbers.assign(key(8, "b")), Some(EndpointId(4)));
        numbers.forget_adopted();
        let rest = (10..14).map(|i| numbers.assign(key(i, "c")).map(|id| id.0));
        assert_eq!(rest.collect::<Vec<_>>(), [Some(5), Some(6), Some(1), Some(3)]);
    }

    #[test]
    fn a_released_id_is_not_the_next_one() {
        let mut numbers = empty();
        assert_eq!(numbers.assign(key(1, "a")), Some(EndpointId(1)));
        assert_eq!(numbers.release(&key(1, "a")), Some(EndpointId(1)));
        assert_eq!(numbers.assign(key(1, "a")), Some(EndpointId(2)));
    }

    #[test]
    fn endpoints_beyond_the_limit_are_numbered_above_it_until_there_is_room() {
        let mut numbers = empty();
        for number in 1..=8_u16 {
            assert_eq!(numbers.assign(key(number.into(), "a")), Some(EndpointId(number)));
        }
        assert_eq!(numbers.promote(), None);
        assert_eq!(numbers.release(&key(3, "a")), Some(EndpointId(3)));
        assert_eq!(numbers.promote(), Some((EndpointId(7), EndpointId(3))));
        assert_eq!(numbers.get(&key(7, "a")), Some(EndpointId(3)));
        assert_eq!(numbers.promote(), None);
        // The number above the limit is free again.
        assert_eq!(numbers.assign(key(9, "a")), Some(EndpointId(7)));
        assert_eq!(numbers.release(&key(8, "a")), Some(EndpointId(8)));
    }

    #[test]
    fn runs_out_without_handing_an_id_out_twice() {
        let mut numbers = Numbers::adopt(u16::MAX - 3, HashMap::new(), []);
        let mut seen = HashSet::new();
        for ifindex in 1..=u32::from(u16::MAX) {
            assert!(seen.insert(numbers.assign(key(ifindex, "a")).expect("an id is free")));
        }
        assert_eq!(numbers.assign(key(70_000, "a")), None);
    }
}
