//! The control entry: the one value of the map that the agent, the programs and observers share. Must
//! never give out an epoch twice, nor change a flag that was not named.

use std::mem::offset_of;
use std::sync::Arc;

use netpol_common::layout::{Control, EPOCH_MASK, names};

use super::error::DatapathError;
use super::mapped::{Mapped, word_at};
use super::pinned::map_for_writing;
use super::pins::Pins;

const DROPS_UNTIL: usize = word_at(offset_of!(Control, listen_drops_until));
const FLOWS_UNTIL: usize = word_at(offset_of!(Control, listen_flows_until));
const SECRET: usize = word_at(offset_of!(Control, secret));
const EPOCH: usize = word_at(offset_of!(Control, epoch));
const FLAGS: usize = word_at(offset_of!(Control, flags));

/// The control entry, [`Control`], word by word.
#[derive(Debug, Clone)]
pub(crate) struct ControlEntry(Arc<Mapped>);

impl ControlEntry {
    /// The one in this map.
    pub(crate) fn new(map: Arc<Mapped>) -> Self {
        Self(map)
    }

    /// The one that is pinned.
    pub(crate) fn open(pins: &Pins) -> Result<Self, DatapathError> {
        map_for_writing(pins, names::CONTROL).map(Self)
    }

    /// The map that it stands in.
    pub(crate) fn map(&self) -> &Arc<Mapped> {
        &self.0
    }

    /// A new epoch, above every one given out so far, also by earlier agents.
    #[expect(clippy::cast_possible_truncation, reason = "an epoch has 31 bits")]
    pub(crate) fn next_epoch(&self) -> u32 {
        let epoch = (self.0.load(0, EPOCH) as u32).wrapping_add(1) & EPOCH_MASK;
        self.0.store(0, EPOCH, u64::from(epoch));
        epoch
    }

    /// All flags.
    pub(crate) fn flags(&self) -> u64 {
        self.0.load(0, FLAGS)
    }

    /// Whether this flag is set.
    pub(crate) fn has_flag(&self, flag: u64) -> bool {
        self.flags() & flag != 0
    }

    /// Sets or clears this flag.
    pub(crate) fn set_flag(&self, flag: u64, is_set: bool) {
        let flags = self.flags();
        self.0.store(0, FLAGS, if is_set { flags | flag } else { flags & !flag });
    }

    /// The key of the flow tables' hash.
    pub(crate) fn secret(&self) -> [u64; 2] {
        [self.0.load(0, SECRET), self.0.load(0, SECRET + 1)]
    }

    /// Writes the key of new flow tables.
    pub(crate) fn set_secret(&self, secret: [u64; 2]) {
        self.0.store(0, SECRET, secret[0]);
        self.0.store(0, SECRET + 1, secret[1]);
    }

    /// Drops are reported until this tick.
    pub(crate) fn report_drops_until(&self, tick: u64) {
        self.0.store(0, DROPS_UNTIL, tick);
    }

    /// New flows are reported until this tick.
    pub(crate) fn report_flows_until(&self, tick: u64) {
        self.0.store(0, FLOWS_UNTIL, tick);
    }
}
