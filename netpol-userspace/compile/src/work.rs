//! Work that is under way: what is left to do until endpoints can have their new sets. It is done in
//! slices, so that the work of one namespace does not keep another one's waiting. Pure.
//!
//! Before its addresses have their classes, a new set is nobody's; a set that is edited in place says
//! of each address what it says of its class. So a job may be left at any point, and others go on
//! meanwhile. What they may not do is to use what a job has not made ready: atoms and sets know
//! which job makes them so, and whoever wants one of them does the same work for itself.

use std::collections::{BTreeSet, VecDeque};

use ipnet::IpNet;

use super::atoms::AtomId;
use super::sets::Gathering;
use super::{ClassId, EndpointId, EndpointSets, SetId};
use netpol_model::{Protocol, Str};

/// Of how many parts of what is in order more is put into it all at once.
const MANY: usize = 8;

/// JobOwner work it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum JobOwner {
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

/// What an endpoint gets in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FutureSet {
    /// A set, which has a user more for it.
    Set(SetId),
    /// What the gathering of this number leads to.
    Gathered(usize),
}

/// What is left to do for one.
#[derive(Debug, Default)]
pub(super) struct Job {
    /// Unlike that of any other job.
    pub number: u32,
    /// How many marks there were when that changed for which it is.
    pub since: u64,
    /// Contents of sets that are being gathered, and the number of the first one.
    pub gatherings: VecDeque<Gathering>,
    pub n_gathered: usize,
    /// What endpoints get when all of them are sets.
    pub coming: Vec<(EndpointId, [FutureSet; 2])>,
    /// The sets that endpoints get in the end, each with a user more.
    pub switches: Vec<(EndpointId, EndpointSets)>,
    /// Atoms of blocks that addresses are still to be held against.
    pub unmatched: Vec<AtomId>,
    /// New sets whose rows are not listed yet.
    pub fresh: Vec<SetId>,
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
        let gathering = self.gatherings.iter().map(Gathering::n_left).sum::<usize>();
        gathering + self.unmatched.len() + self.blocks.len() + self.rows.len()
    }

    /// Whether it is not known yet what all of the work is.
    pub(crate) fn is_unprepared(&self) -> bool {
        !(self.gatherings.is_empty() && self.unmatched.is_empty())
    }

    /// Whether some endpoint is to get what is gathered first.
    pub(crate) fn is_gathering_wanted(&self) -> bool {
        let wanted = FutureSet::Gathered(self.n_gathered);
        self.coming.iter().any(|(_, both)| both.contains(&wanted))
    }

    /// What was gathered first is this set; returns how many endpoints get it.
    pub(crate) fn resolve_gathered(&mut self, set: SetId) -> usize {
        let wanted = FutureSet::Gathered(self.n_gathered);
        self.n_gathered += 1;
        let both = self.coming.iter_mut().flat_map(|(_, both)| both);
        both.filter(|coming| **coming == wanted).map(|coming| *coming = FutureSet::Set(set)).count()
    }

    /// Puts down what endpoints get in the end, as soon as all of it is known.
    pub(crate) fn complete_switches(&mut self) {
        if !self.gatherings.is_empty() {
            return;
        }
        let set = |coming| match coming {
            FutureSet::Set(set) => set,
            FutureSet::Gathered(_) => unreachable!("all have been gathered"),
        };
        let known = self.coming.drain(..).map(|(id, [ingress, egress])| {
            (id, EndpointSets { ingress: set(ingress), egress: set(egress) })
        });
        self.switches.extend(known);
    }

    /// The endpoint is gone, or another one; returns the sets that it does not get.
    pub fn forget(&mut self, endpoint: EndpointId) -> Vec<SetId> {
        let gone = self.switches.extract_if(.., |(id, _)| *id == endpoint);
        let mut sets: Vec<SetId> = gone.flat_map(|(_, sets)| [sets.ingress, sets.egress]).collect();
        let gone = self.coming.extract_if(.., |(id, _)| *id == endpoint);
        sets.extend(gone.flat_map(|(_, both)| both).filter_map(|coming| match coming {
            FutureSet::Set(set) => Some(set),
            FutureSet::Gathered(_) => None,
        }));
        sets
    }
}

/// Blocks in the order of nesting: what is inside a block gets its class before the block does, and
/// keeps its entry until all around it have their classes. So nothing falls to a class that is
/// neither its old nor its new one.
#[derive(Debug, Default)]
pub(super) struct Blocks(BTreeSet<((bool, u8), IpNet)>);

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
        let is_many = blocks.len() > self.0.len() / MANY;
        let new = blocks.into_iter().map(|block| (Self::order(&block, stays(&block)), block));
        match is_many {
            true => self.0.append(&mut new.collect()),
            false => self.0.extend(new),
        }
    }

    /// All of them, in no order that matters.
    pub fn iter(&self) -> impl Iterator<Item = &IpNet> {
        self.0.iter().map(|(_, block)| block)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a block is among them.
    pub fn contains(&self, block: &IpNet) -> bool {
        [true, false].into_iter().any(|stays| self.0.contains(&(Self::order(block, stays), *block)))
    }

    /// They come again.
    pub(crate) fn put_back(&mut self, blocks: Vec<IpNet>, stay: bool) {
        self.0.extend(blocks.into_iter().map(|block| (Self::order(&block, stay), block)));
    }

    /// The next ones, no more than that, and whether they are of those that stay.
    pub fn take(&mut self, n_most: usize) -> (Vec<IpNet>, bool) {
        let is_last = self.0.first().is_none_or(|((is_last, _), _)| *is_last);
        let mut taken = Vec::new();
        while taken.len() < n_most
            && self.0.first().is_some_and(|((other, _), _)| *other == is_last)
        {
            taken.extend(self.0.pop_first().map(|(_, block)| block));
        }
        (taken, !is_last)
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
