//! Numbers for endpoints. Pure.

use std::collections::{HashMap, HashSet};

use netpol_common::layout::MAX_ENDPOINTS;

use crate::compile::EndpointId;
use crate::endpoint::Endpoint;

/// What makes an endpoint the same one: the link and the pod behind it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    ifindex: u32,
    incarnation: u64,
    uid: String,
}

impl Key {
    /// The key of a matched endpoint.
    pub fn of(endpoint: &Endpoint) -> Self {
        Self {
            ifindex: endpoint.ifindex,
            incarnation: endpoint.incarnation,
            uid: endpoint.uid.to_string(),
        }
    }
}

/// Hands out endpoint ids, the longest unused first.
#[derive(Debug, Default)]
pub struct Numbers {
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
    pub fn adopt(
        adopted: HashMap<(u32, String), EndpointId>,
        in_force: impl IntoIterator<Item = EndpointId>,
    ) -> Self {
        let reserved: HashSet<u16> = in_force.into_iter().map(|id| id.0).collect();
        Self { adopted, used: reserved.clone(), reserved, ..Self::default() }
    }

    /// The id of a known endpoint.
    pub fn get(&self, key: &Key) -> Option<EndpointId> {
        self.by_key.get(key).copied()
    }

    /// An id for a new endpoint; `None` if all are in use.
    pub fn assign(&mut self, key: Key) -> Option<EndpointId> {
        let adopted = self.adopted.remove(&(key.ifindex, key.uid.clone()));
        let id = match adopted {
            Some(id) => {
                self.reserved.remove(&id.0);
                id
            }
            None => self.free()?,
        };
        self.by_key.insert(key, id);
        Some(id)
    }

    fn free(&mut self) -> Option<EndpointId> {
        let last = (MAX_ENDPOINTS - 1) as u16;
        for _ in 0..last {
            self.next = self.next % last + 1;
            if self.used.insert(self.next) {
                return Some(EndpointId(self.next));
            }
        }
        None
    }

    /// Gives the id of an endpoint that is gone back.
    pub fn release(&mut self, key: &Key) -> Option<EndpointId> {
        let id = self.by_key.remove(key)?;
        self.used.remove(&id.0);
        Some(id)
    }

    /// Gives back what was never claimed: the maps hold it no more.
    pub fn forget_adopted(&mut self) {
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

    #[test]
    fn an_adopted_id_goes_to_the_same_link_and_pod_only() {
        let adopted = HashMap::from([((7, "a".to_owned()), EndpointId(1))]);
        let mut numbers = Numbers::adopt(adopted, [EndpointId(1)]);
        assert_eq!(numbers.assign(key(7, "b")), Some(EndpointId(2)));
        assert_eq!(numbers.assign(key(7, "a")), Some(EndpointId(1)));
    }

    #[test]
    fn an_id_in_force_that_nobody_claims_is_free_only_once_it_is_out_of_force() {
        let mut numbers = Numbers::adopt(HashMap::new(), [EndpointId(1), EndpointId(3)]);
        assert_eq!(numbers.assign(key(7, "a")), Some(EndpointId(2)));
        assert_eq!(numbers.assign(key(8, "b")), Some(EndpointId(4)));
        numbers.forget_adopted();
        let rest: Vec<_> = (4..MAX_ENDPOINTS + 1).map(|i| numbers.assign(key(i, "c"))).collect();
        assert!(rest.contains(&Some(EndpointId(1))) && rest.contains(&Some(EndpointId(3))));
    }

    #[test]
    fn a_released_id_is_not_the_next_one() {
        let mut numbers = Numbers::default();
        assert_eq!(numbers.assign(key(1, "a")), Some(EndpointId(1)));
        assert_eq!(numbers.release(&key(1, "a")), Some(EndpointId(1)));
        assert_eq!(numbers.assign(key(1, "a")), Some(EndpointId(2)));
    }

    #[test]
    fn runs_out_without_handing_an_id_out_twice() {
        let mut numbers = Numbers::default();
        let mut seen = HashSet::new();
        for ifindex in 1..MAX_ENDPOINTS {
            assert!(seen.insert(numbers.assign(key(ifindex, "a")).expect("an id is free")));
        }
        assert_eq!(numbers.assign(key(5_000, "a")), None);
    }
}
