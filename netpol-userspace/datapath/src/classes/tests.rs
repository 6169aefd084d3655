//! Random changes on tables that are too small and sometimes fail: every state on the way allows
//! no address more than the old or the new classes do.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;

/// Tables in memory; checks after each write.
#[derive(Debug, Default)]
struct Memory {
    entries: BTreeMap<IpNet, ClassId>,
    /// What the caller wanted before and wants now.
    wanted: [BTreeMap<IpNet, ClassId>; 2],
    /// Writes to refuse from now on, in turn.
    failures: Vec<bool>,
}

fn class_in(entries: &BTreeMap<IpNet, ClassId>, address: IpAddr) -> ClassId {
    let around = entries.iter().filter(|(block, _)| block.contains(&address));
    around.max_by_key(|(block, _)| block.prefix_len()).map_or(ClassId::NONE, |(_, &class)| class)
}

fn addresses() -> impl Iterator<Item = IpAddr> {
    (0..16).map(|last| IpAddr::from(Ipv4Addr::new(10, 0, 0, last)))
}

/// Whether only what a policy allows to everybody is allowed.
fn is_closed(class: ClassId) -> bool {
    class == ClassId::CLOSED || class == ClassId::NONE
}

impl Memory {
    fn check(&self) {
        for address in addresses() {
            let is = class_in(&self.entries, address);
            let fine = self.wanted.each_ref().map(|wanted| class_in(wanted, address));
            assert!(is_closed(is) || fine.contains(&is), "{address}: {is:?}, not {fine:?}");
        }
    }

    fn fails(&mut self) -> bool {
        self.failures.pop().unwrap_or(false)
    }
}

impl Store for Memory {
    fn put(&mut self, block: &IpNet, class: ClassId, may_add: bool) -> Result<Put, DatapathError> {
        let is_there = self.entries.contains_key(block);
        if !is_there && !may_add {
            return Ok(Put::Absent);
        }
        if self.fails() {
            return Err(DatapathError::Missing("a failure".into()));
        }
        self.entries.insert(*block, class);
        self.check();
        Ok(if is_there { Put::Changed } else { Put::Added })
    }

    fn remove(&mut self, block: &IpNet) -> Result<bool, DatapathError> {
        let was_there = self.entries.remove(block).is_some();
        self.check();
        Ok(was_there)
    }
}

/// Sets (or takes out) a block; the class is its own, so that no two are mixed up.
type Edit = (u8, u8, Option<u8>);

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let one = (28u8..=32, 0u8..16, prop::option::weighted(0.6, 2u8..6));
    prop::collection::vec(one, 1..60)
}

fn block((length, last, _): Edit) -> IpNet {
    IpNet::new(Ipv4Addr::new(10, 0, 0, last).into(), length).expect("a length").trunc()
}

/// Carries out one edit; true if it did anything.
fn edit(classes: &mut Classes, memory: &mut Memory, edit: Edit) -> bool {
    let block = block(edit);
    let wanted = match edit.2 {
        Some(class) => {
            let class = ClassId(u32::from(class) * 100 + u32::from(block.prefix_len()));
            let mut wanted = memory.wanted[1].clone();
            wanted.insert(block, class);
            wanted
        }
        None => {
            let mut wanted = memory.wanted[1].clone();
            if wanted.remove(&block).is_none() {
                return false;
            }
            wanted
        }
    };
    memory.wanted = [memory.wanted[1].clone(), wanted];
    // An error is told, and what it leaves is checked all the same.
    let _ = match memory.wanted[1].get(&block).copied() {
        Some(class) => classes.set(memory, block, class),
        None => classes.clear(memory, block),
    };
    true
}

/// What an address has once everything is carried out.
fn check_settled(classes: &Classes, memory: &Memory) {
    let missing: Vec<IpNet> = classes.missing().copied().collect();
    for address in addresses() {
        let (is, wanted) =
            (class_in(&memory.entries, address), class_in(&memory.wanted[1], address));
        if missing.is_empty() && classes.to_open.is_empty() {
            assert_eq!(is, wanted, "{address}");
        } else {
            assert!(is == wanted || is_closed(is), "{address}: {is:?}, not {wanted:?}");
        }
    }
    for (block, class) in &memory.wanted[1] {
        assert!(memory.entries.contains_key(block) || missing.contains(block), "{block}");
        let inside = missing.iter().any(|inner| block.contains(inner));
        if !inside && classes.to_open.is_empty() {
            assert_eq!(memory.entries.get(block), Some(class), "{block} is closed for nothing");
        }
    }
    let n_addresses = memory.entries.keys().filter(|block| is_address(block)).count();
    assert_eq!(
        classes.sizes().map(|size| size.0),
        [n_addresses, memory.entries.len() - n_addresses]
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn too_small_tables_never_open_anything(
        edits in edits(), n_addresses in 0u32..5, n_blocks in 0u32..5,
    ) {
        let mut classes = Classes::new(n_addresses, n_blocks);
        let mut memory = Memory::default();
        for each in edits {
            edit(&mut classes, &mut memory, each);
            memory.wanted[0] = memory.wanted[1].clone();
            classes.retry(&mut memory).expect("nothing fails");
            check_settled(&classes, &memory);
        }
        // Room returns.
        classes.limits = [100, 100];
        classes.retry(&mut memory).expect("nothing fails");
        prop_assert_eq!(classes.missing().count(), 0);
        prop_assert_eq!(&memory.entries, &memory.wanted[1]);
    }

    #[test]
    fn writes_that_fail_never_open_anything(
        edits in edits(), failures in prop::collection::vec(any::<bool>(), 0..60),
    ) {
        let mut classes = Classes::new(3, 3);
        let mut memory = Memory { failures, ..Memory::default() };
        for each in edits {
            edit(&mut classes, &mut memory, each);
            memory.wanted[0] = memory.wanted[1].clone();
            // As long as it fails, the next try comes later.
            let _ = classes.retry(&mut memory);
            memory.check();
        }
        memory.failures.clear();
        classes.retry(&mut memory).expect("nothing fails");
        check_settled(&classes, &memory);
    }

    #[test]
    fn a_new_agent_goes_on_where_the_last_one_ended(edits in edits()) {
        let mut classes = Classes::new(2, 2);
        let mut memory = Memory::default();
        for each in edits {
            edit(&mut classes, &mut memory, each);
        }
        memory.wanted[0] = memory.wanted[1].clone();
        let mut classes = Classes::new(2, 2);
        for (&block, &class) in &memory.entries {
            classes.adopt(block, class);
        }
        let mut wanted: Vec<_> = memory.wanted[1].clone().into_iter().collect();
        // As `Datapath::reconcile` does.
        wanted.sort_by_key(|(block, _)| std::cmp::Reverse(block.prefix_len()));
        for (block, class) in wanted {
            classes.set(&mut memory, block, class).expect("nothing fails");
        }
        classes.retry(&mut memory).expect("nothing fails");
        check_settled(&classes, &memory);
        classes.limits = [100, 100];
        classes.retry(&mut memory).expect("nothing fails");
        prop_assert_eq!(&memory.entries, &memory.wanted[1]);
    }
}
