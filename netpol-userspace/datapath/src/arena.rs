//! Places port sets in the interval arena, and lists of backends in theirs. Pure bookkeeping:
//! which words are whose.
//!
//! A region that was released is not handed out again before [`Arena::reclaim`]: a packet in
//! flight may still be reading it.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use netpol_compile::{Backend, PortSet};

/// Something that takes a number of words in an arena.
pub(crate) trait Content: Hash + Eq {
    /// How many.
    fn length(&self) -> u32;
}

impl Content for PortSet {
    fn length(&self) -> u32 {
        length_of(self.intervals.iter().map(Vec::len).sum())
    }
}

impl Content for [Backend] {
    fn length(&self) -> u32 {
        length_of(self.len())
    }
}

fn length_of(n_words: usize) -> u32 {
    u32::try_from(n_words).expect("invariant: one content is shorter than a map can be")
}

/// Offset and length, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    /// Index of the first word.
    pub offset: u32,
    /// Number of words.
    pub length: u32,
}

/// The arena.
#[derive(Debug)]
pub(crate) struct Arena<C: Content + ?Sized> {
    free: BTreeMap<u32, u32>,
    placed: HashMap<Arc<C>, (Region, u32)>,
    released: Vec<Region>,
    capacity: u32,
}

/// What [`Arena::place`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placed {
    /// The set is there already.
    Known(Region),
    /// The caller must write the words to this region before using it.
    New(Region),
}

impl<C: Content + ?Sized> Arena<C> {
    /// An empty arena of `capacity` words.
    pub(crate) fn new(capacity: u32) -> Self {
        Self {
            free: BTreeMap::from([(0, capacity)]),
            placed: HashMap::new(),
            released: Vec::new(),
            capacity,
        }
    }

    /// Number of words it can hold.
    pub(crate) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Whether [`Self::reclaim`] would free anything.
    pub(crate) fn has_released(&self) -> bool {
        !self.released.is_empty()
    }

    /// Number of words in use or waiting to be reclaimed.
    pub(crate) fn used(&self) -> u32 {
        self.capacity - self.free.values().sum::<u32>()
    }

    /// Takes a reference to the set's region; `None` if there is no room.
    pub(crate) fn place(&mut self, set: &Arc<C>) -> Option<Placed> {
        if let Some((region, references)) = self.placed.get_mut(set) {
            *references += 1;
            return Some(Placed::Known(*region));
        }
        let region = self.take(set.length())?;
        self.placed.insert(Arc::clone(set), (region, 1));
        Some(Placed::New(region))
    }

    /// Notes that `set` already stands at `region` (after a restart), with one reference.
    /// Returns false if that contradicts what is known.
    pub(crate) fn adopt(&mut self, set: &Arc<C>, region: Region) -> bool {
        if let Some((known, references)) = self.placed.get_mut(set)
            && *known == region
        {
            *references += 1;
            return true;
        }
        if self.placed.contains_key(set) || !self.cut(region) {
            return false;
        }
        self.placed.insert(Arc::clone(set), (region, 1));
        true
    }

    /// Gives a reference back.
    pub(crate) fn release(&mut self, set: &Arc<C>) {
        let Some((region, references)) = self.placed.get_mut(set) else { return };
        *references -= 1;
        if *references == 0 {
            self.released.push(*region);
            self.placed.remove(set);
        }
    }

    /// Makes released regions free: call it when no packet can be reading them any more.
    pub(crate) fn reclaim(&mut self) {
        for region in std::mem::take(&mut self.released) {
            self.give_back(region);
        }
    }

    fn take(&mut self, length: u32) -> Option<Region> {
        let (&offset, &available) =
            self.free.iter().find(|&(_, &available)| available >= length)?;
        self.free.remove(&offset);
        if available > length {
            self.free.insert(offset + length, available - length);
        }
        Some(Region { offset, length })
    }

    /// Takes exactly this region out of the free ones.
    fn cut(&mut self, region: Region) -> bool {
        let Some((&offset, &available)) = self.free.range(..=region.offset).next_back() else {
            return false;
        };
        let (end, free_end) = (region.offset + region.length, offset + available);
        if end > free_end {
            return false;
        }
        self.free.remove(&offset);
        if region.offset > offset {
            self.free.insert(offset, region.offset - offset);
        }
        if free_end > end {
            self.free.insert(end, free_end - end);
        }
        true
    }

    fn give_back(&mut self, region: Region) {
        let (mut offset, mut length) = (region.offset, region.length);
        if let Some((&before, &available)) = self.free.range(..offset).next_back()
            && before + available == offset
        {
            self.free.remove(&before);
            (offset, length) = (before, length + available);
        }
        if let Some(available) = self.free.remove(&(offset + length)) {
            length += available;
        }
        self.free.insert(offset, length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ports: &[u16]) -> Arc<PortSet> {
        let tcp = ports.iter().map(|&port| (port, port)).collect();
        Arc::new(PortSet { intervals: [tcp, Vec::new(), Vec::new()] })
    }

    #[test]
    fn equal_sets_share_a_region() {
        let mut arena = Arena::new(10);
        let first = arena.place(&set(&[80, 443])).expect("room");
        assert_eq!(first, Placed::New(Region { offset: 0, length: 2 }));
        let again = arena.place(&set(&[80, 443])).expect("room");
        assert_eq!(again, Placed::Known(Region { offset: 0, length: 2 }));
    }

    #[test]
    fn a_released_region_waits_for_reclaim() {
        let mut arena = Arena::new(3);
        let (one, two) = (set(&[1, 3]), set(&[2, 4]));
        arena.place(&one).expect("room");
        arena.release(&one);
        assert_eq!(arena.place(&two), None);
        arena.reclaim();
        assert_eq!(arena.place(&two), Some(Placed::New(Region { offset: 0, length: 2 })));
    }

    #[test]
    fn neighbours_merge_when_given_back() {
        let mut arena = Arena::new(6);
        let sets = [set(&[1, 3]), set(&[2, 4]), set(&[5, 7])];
        for each in &sets {
            arena.place(each).expect("room");
        }
        for index in [0, 2, 1] {
            arena.release(&sets[index]);
        }
        arena.reclaim();
        assert_eq!(arena.used(), 0);
        assert!(arena.place(&set(&[1, 3, 5, 7, 9, 11])).is_some());
    }

    #[test]
    fn adopting_takes_the_region_and_refuses_overlaps() {
        let mut arena = Arena::new(10);
        assert!(arena.adopt(&set(&[1, 3]), Region { offset: 4, length: 2 }));
        assert!(arena.adopt(&set(&[1, 3]), Region { offset: 4, length: 2 }));
        assert!(!arena.adopt(&set(&[2, 4]), Region { offset: 5, length: 2 }));
        assert_eq!(arena.place(&set(&[9])), Some(Placed::New(Region { offset: 0, length: 1 })));
        assert_eq!(arena.used(), 3);
    }
}
