//! Work that is under way: what is left to do until endpoints can have their new sets. It is done in
//! slices, so that the work of one namespace does not keep another one's waiting. Pure.
//!
//! Before its addresses have their classes, a new set is nobody's; a set that is edited in place says
//! of each address what it says of its class. So a job may be left at any point, and others go on
//! meanwhile. What they may not do is to use what a job has not made ready: atoms and sets know
//! which job makes them so, and whoever wants one of them does the same work for itself.

use ipnet::IpNet;

use super::atoms::AtomId;
use super::{ClassId, EndpointId, EndpointSets, SetId};
use crate::model::{Protocol, Str};

/// Whose work it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Whose {
    /// Pods have changed, or Services, or nodes, which concerns whoever has policies about them.
    Everybody,
    /// Policies of a namespace, or its endpoints.
    Namespace(Str),
    /// What nobody uses any more.
    Nobody,
}

/// How far the work of one is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnderWay {
    /// The namespace whose policies or pods they are; `None`: it is no one's alone.
    pub namespace: Option<Str>,
    /// How many steps have been done.
    pub done: usize,
    /// Of how many, as far as is known.
    pub all: usize,
}

/// What there was to do at some moment.
#[derive(Debug)]
pub struct Mark {
    pub(super) number: u64,
    /// How often everybody's work will have been begun then.
    pub(super) n_everybodys: u64,
}

/// For which classes a set needs rows.
#[derive(Debug, Clone, Copy)]
pub(super) enum Which {
    /// All that have this atom, as many as they are.
    Having(AtomId),
    /// This one.
    Class(ClassId),
}

/// What is left to do for one.
#[derive(Debug, Default)]
pub(super) struct Job {
    /// Unlike that of any other job.
    pub number: u32,
    /// How many marks there were when that changed for which it is.
    pub since: u64,
    /// The sets that endpoints get in the end, each with a user more.
    pub switches: Vec<(EndpointId, EndpointSets)>,
    /// Addresses and blocks that are to get their classes.
    pub blocks: Blocks,
    /// New sets, and for which classes they need rows.
    pub rows: Vec<(SetId, Which)>,
    /// What it makes ready.
    pub atoms: Vec<AtomId>,
    pub names: Vec<(Protocol, Str)>,
    pub sets: Vec<SetId>,
    pub n_done: usize,
    /// How often in turn the next blocks have waited for what others have begun inside them.
    pub n_waits: u32,
}

impl Job {
    /// How many steps are left, the last one aside.
    pub fn n_left(&self) -> usize {
        self.blocks.len() + self.rows.len()
    }

    /// The endpoint is gone, or another one; returns the sets that it does not get.
    pub fn forget(&mut self, endpoint: EndpointId) -> Vec<EndpointSets> {
        let gone = self.switches.extract_if(.., |(id, _)| *id == endpoint);
        gone.map(|(_, sets)| sets).collect()
    }
}

/// Blocks in the order of nesting: what is inside a block gets its class before the block does, and
/// keeps its entry until all around it have their classes. So nothing falls to a class that is
/// neither its old nor its new one.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// The next one is the last.
    sorted: Vec<((bool, u8), IpNet)>,
}

impl Blocks {
    /// Which of two comes first. Those that will have no entry of their own come last.
    pub fn order(block: &IpNet, stays: bool) -> (bool, u8) {
        match stays {
            true => (false, u8::MAX - block.prefix_len()),
            false => (true, block.prefix_len()),
        }
    }

    /// Adds blocks, each once.
    pub fn extend(&mut self, blocks: Vec<IpNet>, stays: impl Fn(&IpNet) -> bool) {
        if blocks.is_empty() {
            return;
        }
        let new = blocks.into_iter().map(|block| (Self::order(&block, stays(&block)), block));
        self.sorted.extend(new);
        self.tidy();
    }

    /// Adds what another job has left to do.
    pub fn extend_by(&mut self, other: &Self) {
        self.sorted.extend_from_slice(&other.sorted);
        self.tidy();
    }

    fn tidy(&mut self) {
        self.sorted.sort_unstable_by(|a, b| b.cmp(a));
        self.sorted.dedup();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// Whether a block is among them.
    pub fn contains(&self, block: &IpNet) -> bool {
        [true, false].into_iter().any(|stays| {
            let key = (Self::order(block, stays), *block);
            self.sorted.binary_search_by(|other| key.cmp(other)).is_ok()
        })
    }

    /// They come next after all.
    pub fn put_back(&mut self, blocks: Vec<IpNet>, stay: bool) {
        let with_order = blocks.into_iter().rev().map(|block| (Self::order(&block, stay), block));
        self.sorted.extend(with_order);
    }

    /// The next ones, no more than that, and whether they are of those that stay.
    pub fn take(&mut self, n_most: usize) -> (Vec<IpNet>, bool) {
        let stays = self.sorted.last().is_some_and(|((is_last, _), _)| !is_last);
        let n_alike = self.sorted.iter().rev().take(n_most);
        let n = n_alike.take_while(|((is_last, _), _)| *is_last != stays).count();
        let taken = self.sorted.drain(self.sorted.len() - n..).rev();
        (taken.map(|(_, block)| block).collect(), stays)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn blocks_come_in_the_order_of_nesting() {
        let block = |text: &&str| text.parse::<IpNet>().unwrap();
        let stays = |block: &IpNet| block.addr().to_string().starts_with("10.");
        let texts = ["10.0.0.0/8", "20.1.0.0/16", "10.1.0.0/16", "20.0.0.0/8", "10.0.0.0/8"];
        let mut blocks = Blocks::default();
        blocks.extend(texts[..2].iter().map(block).collect(), stays);
        blocks.extend(texts[2..].iter().map(block).collect(), stays);
        assert_eq!(blocks.len(), 4);
        assert!(texts.iter().all(|text| blocks.contains(&block(text))));
        assert!(!blocks.contains(&block(&"10.0.0.0/9")));
        let (next, stay) = blocks.take(1);
        blocks.put_back(next, stay);
        let mut taken = Vec::new();
        while !blocks.is_empty() {
            let (next, stay) = blocks.take(3);
            assert!(next.iter().all(|block| stays(block) == stay), "never of both kinds");
            taken.extend(next.iter().map(ToString::to_string));
        }
        assert_eq!(taken, ["10.1.0.0/16", "10.0.0.0/8", "20.0.0.0/8", "20.1.0.0/16"]);
    }
}
