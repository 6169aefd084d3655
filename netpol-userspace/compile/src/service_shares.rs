//! Which Services go without a place in the tables where more are wanted than fit: the last ones, by
//! name, of namespaces that want more than their share, whoever came first. Must never change what
//! the tables should hold: who goes without is judged more strictly there.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashSet;

use super::shares::level;
use super::{Backend, Compiler, ServiceKey};
use netpol_model::{ObjectName, Str};

impl Compiler {
    /// The addresses and ports of Services that go without, where there is room for so many and for
    /// so many backends.
    pub fn services_beyond(&self, n_keys: u64, n_backends: u64) -> BTreeSet<ServiceKey> {
        let by_namespace = self.services_by_namespace();
        let sums: Vec<Vec<(ServiceKey, [u64; 2])>> = by_namespace.values().map(sums).collect();
        let wanted = |index: usize| sums.iter().filter_map(move |sums| Some(sums.last()?.1[index]));
        let levels = [level(n_keys, wanted(0)), level(n_backends, wanted(1))];
        let is_beyond = |sum: &[u64; 2]| sum[0] > levels[0] || sum[1] > levels[1];
        let beyond = sums.iter().flatten().filter(|(_, sum)| is_beyond(sum));
        beyond.map(|(key, _)| *key).collect()
    }

    /// What the tables should hold, sorted by the names of Services.
    fn services_by_namespace(&self) -> BTreeMap<&Str, BTreeMap<Key<'_>, &[Backend]>> {
        let services = &self.engine.services;
        let mut by_namespace: BTreeMap<&Str, BTreeMap<Key<'_>, &[Backend]>> = BTreeMap::new();
        for (key, backends) in services.stored() {
            if let Some(service) = services.named(key) {
                let here = by_namespace.entry(&service.namespace).or_default();
                here.insert((service, *key), backends);
            }
        }
        by_namespace
    }
}

type Key<'a> = (&'a ObjectName, ServiceKey);

/// What the Services of a namespace take, up to each one: entries and, where others of it have the
/// same ones not again, backends.
fn sums(services: &BTreeMap<Key<'_>, &[Backend]>) -> Vec<(ServiceKey, [u64; 2])> {
    let mut known = FxHashSet::default();
    let mut sum = [0; 2];
    let mut sums = Vec::with_capacity(services.len());
    for ((_, key), backends) in services {
        sum[0] += 1;
        if known.insert(*backends) {
            sum[1] += backends.len() as u64;
        }
        sums.push((*key, sum));
    }
    sums
}
