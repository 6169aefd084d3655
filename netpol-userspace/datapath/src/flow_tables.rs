//! The flow tables in our address space: for entering flows, listing them, saying what is whose
//! share, and moving them into tables of another size. Must never decide whether a flow is allowed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use netpol_common::flow::{self, ANSWERED, Clock, KEY4, KEY6, SLOTS, Slot, account};
use netpol_common::layout::{self, MAX_ENDPOINTS, names};

use super::control::ControlEntry;
use super::error::DatapathError;
use super::mapped::{Bucket, Mapped};
use super::pinned::map_for_writing;
use super::pins::Pins;
use netpol_compile::EndpointId;

/// One flow table.
#[derive(Clone, Copy)]
pub struct FlowTable<'a> {
    buckets: &'a Mapped,
    accounts: &'a Mapped,
    secret: [u64; 2],
    /// Buckets for all.
    common: u32,
}

/// What one endpoint has of the flow tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlowUse {
    /// Slots with a flow of its, expired ones included.
    pub held: u64,
    /// Those of them whose flow was answered.
    pub answered: u64,
    /// Up to how many are its own, of both tables together.
    pub share: u64,
    /// Live flows of its that made room for its own.
    pub displaced: u64,
    /// Live flows of its that made room for other endpoints'.
    pub given: u64,
    /// Packets whose flow found no room.
    pub refused: u64,
}

/// Both flow tables, and what endpoints have of them. Owns the two maps of flows and the one of
/// accounts. Must never say whose a flow is but by the endpoint number in its key.
#[derive(Debug, Clone)]
pub(crate) struct FlowTables {
    flows4: Arc<Mapped>,
    flows6: Arc<Mapped>,
    accounts: Arc<Mapped>,
    /// Has the key of their hash.
    control: ControlEntry,
}

impl FlowTables {
    /// Tables of IPv4 and IPv6 flows with the accounts of both.
    pub(crate) fn new(
        flows4: Arc<Mapped>,
        flows6: Arc<Mapped>,
        accounts: Arc<Mapped>,
        control: ControlEntry,
    ) -> Self {
        Self { flows4, flows6, accounts, control }
    }

    /// Opens those that are pinned.
    pub(crate) fn open(pins: &Pins, control: ControlEntry) -> Result<Self, DatapathError> {
        Ok(Self {
            flows4: map_for_writing(pins, names::FLOWS4)?,
            flows6: map_for_writing(pins, names::FLOWS6)?,
            accounts: map_for_writing(pins, names::FLOW_USE)?,
            control,
        })
    }

    /// The maps: IPv4 flows, IPv6 flows, accounts.
    pub(crate) fn maps(&self) -> [&Arc<Mapped>; 3] {
        [&self.flows4, &self.flows6, &self.accounts]
    }

    /// The IPv4 flow table.
    pub(crate) fn table4(&self) -> FlowTable<'_> {
        FlowTable::new(&self.flows4, &self.accounts, self.control.secret())
    }

    /// The IPv6 flow table.
    pub(crate) fn table6(&self) -> FlowTable<'_> {
        FlowTable::new(&self.flows6, &self.accounts, self.control.secret())
    }

    /// What the endpoint with this id has.
    pub(crate) fn use_of(&self, id: u16) -> FlowUse {
        let word = |word| self.accounts.load(usize::from(id), word);
        let both = |first| word(first) + word(first + 1);
        FlowUse {
            held: both(account::HELD),
            answered: both(account::ANSWERED),
            share: both(account::SHARE),
            displaced: word(account::DISPLACED),
            given: word(account::GIVEN),
            refused: word(account::REFUSED),
        }
    }

    /// Slots that hold a flow, expired or not, by table.
    pub(crate) fn held(&self) -> [u64; 2] {
        let ids = 0..self.accounts.len();
        let sum =
            |family| ids.clone().map(|id| self.accounts.load(id, account::HELD + family)).sum();
        [sum(0), sum(1)]
    }

    /// Gives each of these endpoints an equal share of the tables.
    pub(crate) fn divide(&self, ids: &[EndpointId]) {
        for id in ids {
            for (family, table) in [self.table4(), self.table6()].into_iter().enumerate() {
                let share = share(table.common, ids.len());
                self.accounts.store(usize::from(id.0), account::SHARE + family, share);
            }
        }
    }

    /// What an endpoint with this id has left in the tables is nobody's.
    pub(crate) fn clear_share(&self, id: EndpointId) {
        for family in 0..2 {
            self.accounts.store(usize::from(id.0), account::SHARE + family, 0);
        }
    }

    /// Flows of earlier epochs are an earlier owner's of the id.
    pub(crate) fn set_born(&self, id: EndpointId, born: u32) {
        self.accounts.store(usize::from(id.0), account::BORN, u64::from(born));
    }

    /// A new owner of the id has lost nothing yet.
    pub(crate) fn clear_losses(&self, id: EndpointId) {
        for word in [account::DISPLACED, account::GIVEN, account::REFUSED] {
            self.accounts.store(usize::from(id.0), word, 0);
        }
    }
}

/// Half of the slots for all are divided among the endpoints: filled that far, hardly a flow finds
/// both its buckets full. Never less than an endpoint's reserve, which nobody else can use.
fn share(common: u32, n_endpoints: usize) -> u64 {
    let slots = u64::from(common) * SLOTS as u64;
    let reserve = u64::from(layout::reserve_buckets(common)) * SLOTS as u64;
    (slots / 2 / n_endpoints.max(1) as u64).max(reserve)
}

impl<'a> FlowTable<'a> {
    /// `buckets` and `accounts` are of the same tables, whose hash has this key.
    pub(crate) fn new(buckets: &'a Mapped, accounts: &'a Mapped, secret: [u64; 2]) -> Self {
        let common = u32::try_from(buckets.len())
            .ok()
            .and_then(layout::common_buckets)
            .expect("invariant: the size of a map is checked before it is mapped");
        Self { buckets, accounts, secret, common }
    }

    /// How many flows there is room for.
    pub fn n_slots(&self) -> u64 {
        (self.buckets.len() * SLOTS) as u64
    }

    /// Everything in it, expired flows included.
    pub fn slots<const KEY: usize>(self) -> impl Iterator<Item = Slot<KEY>> + use<'a, KEY> {
        let buckets = self.buckets;
        (0..buckets.len()).flat_map(move |index| Slot::read(Bucket(buckets.value(index))))
    }
}

impl<'a> flow::Table for FlowTable<'a> {
    type Bucket = Bucket<'a>;
    type Account = Account<'a>;

    fn bucket(&self, index: u32) -> Option<Bucket<'a>> {
        Some(Bucket(self.buckets.value(index as usize)))
    }

    fn masks(&self) -> [u32; 2] {
        [self.common - 1, layout::reserve_buckets(self.common) - 1]
    }

    fn secret(&self) -> [u64; 2] {
        self.secret
    }

    fn account(&self, endpoint: u16) -> Option<Account<'a>> {
        let id = usize::from(endpoint);
        (id < self.accounts.len()).then(|| Account(self.accounts.value(id)))
    }
}

/// An endpoint's account.
#[derive(Clone, Copy)]
pub struct Account<'a>(&'a [AtomicU64]);

impl flow::Account for Account<'_> {
    fn load(self, word: usize) -> u64 {
        self.0[word].load(Ordering::Acquire)
    }

    fn add(self, word: usize, value: u64) {
        self.0[word].fetch_add(value, Ordering::AcqRel);
    }
}

/// Tables that are no longer in force, whose flows are to go into others.
pub(crate) struct OldTables {
    /// IPv4 flow buckets.
    pub flows4: Mapped,
    /// IPv6 flow buckets.
    pub flows6: Mapped,
    /// Accounts of both.
    pub accounts: Mapped,
}

impl OldTables {
    /// Gives the endpoints in the new tables what they had in the old ones, as far as sizes allow.
    pub(crate) fn move_accounts(&self, into: &FlowTables) {
        let pairs = [(&self.flows4, into.table4()), (&self.flows6, into.table6())];
        for id in 0..MAX_ENDPOINTS as usize {
            for word in [account::BORN, account::DISPLACED, account::GIVEN, account::REFUSED] {
                into.accounts.store(id, word, self.accounts.load(id, word));
            }
            for (family, (old, new)) in pairs.iter().enumerate() {
                let word = account::SHARE + family;
                let share = u128::from(self.accounts.load(id, word));
                let share = (share * new.buckets.len() as u128).div_ceil(old.len() as u128);
                into.accounts.store(id, word, u64::try_from(share).unwrap_or(u64::MAX));
            }
        }
    }

    /// Enters all that is live and not yet in the new tables, answered flows first.
    pub(crate) fn copy_into(&self, into: &FlowTables, clock: &Clock) {
        let secret = into.control.secret();
        let old4 = FlowTable::new(&self.flows4, &self.accounts, secret);
        let old6 = FlowTable::new(&self.flows6, &self.accounts, secret);
        for is_answered in [true, false] {
            copy::<KEY4>(old4, into.table4(), is_answered, clock);
            copy::<KEY6>(old6, into.table6(), is_answered, clock);
        }
    }
}

fn copy<const KEY: usize>(
    old: FlowTable<'_>,
    new: FlowTable<'_>,
    is_answered: bool,
    clock: &Clock,
) {
    let wanted =
        |slot: &Slot<KEY>| !slot.is_expired(clock) && (slot.state & ANSWERED != 0) == is_answered;
    for slot in old.slots::<KEY>().filter(wanted) {
        let hash = flow::hash(&slot.key, new.secret);
        flow::restore(&new, &slot.key, hash, slot.state, slot.meta, clock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_half_the_table_by_the_endpoints_and_never_less_than_the_reserve() {
        let common = layout::FLOW4_BUCKETS;
        let slots = u64::from(common) * 4;
        assert_eq!(share(common, 0), slots / 2);
        assert_eq!(share(common, 1), slots / 2);
        assert_eq!(share(common, 110), slots / 220);
        assert_eq!(share(common, 1_023), 64);
        assert_eq!(share(1, 500), 4);
    }
}
