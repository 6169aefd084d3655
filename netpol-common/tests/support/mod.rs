//! The maps as plain collections, so that the code that the kernel runs can run here. It must
//! hold no rule of its own: what a verdict is stands in `netpol_common`.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};

use netpol_common::flow::{self, Clock, Slot, Timeouts, account};
use netpol_common::layout::{
    Address, Backend, BlockKey, Direction, ExactClass, FlowUse, FragmentPorts, INTERVAL_ALLOW,
    MAX_ENDPOINTS, ROW_ALL, ROW_PORTS, ROW_PORTS_AND_OTHERS, Reason, Row, ServiceKey, ServiceValue,
    TRANSIT_READY, backend, exact_class, flow_map_entries, fragment_ports, interval,
    reserve_buckets, service_value,
};
use netpol_common::neighbour::{self, Speaker};
use netpol_common::packet::{self, Frame, Kind, Outcome, Packet};
use netpol_common::ports::Intervals;
use netpol_common::service::{self, ToService};
use netpol_common::verdict::{
    self, Arrival, Endpoint, FlowState, Judge, Maps, Policies, Then, Verdict,
};

/// A frame in memory.
pub struct Bytes<'a>(pub &'a [u8]);

impl Frame for Bytes<'_> {
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.0.get(offset as usize..)?.first_chunk().copied()
    }

    fn length(&self) -> u32 {
        self.0.len() as u32
    }

    fn has_vlan_tag(&self) -> bool {
        false
    }
}

/// Key of all flow tables' hash.
pub const SECRET: [u64; 2] = [0x5eed, 0xfeed];

/// A flow table of real atomics. Loads and stores are relaxed, as the kernel program's are.
pub struct AtomicTable {
    words: Vec<AtomicU64>,
    bucket_words: usize,
    n_buckets: u32,
    accounts: Vec<AtomicU64>,
}

const ACCOUNT_WORDS: usize = size_of::<FlowUse>() / 8;

impl AtomicTable {
    /// `buckets` for all, a power of two; `slot_words` is `flow::WORDS4` or `flow::WORDS6`. Every
    /// endpoint's share is the whole table.
    pub fn new(buckets: u32, slot_words: usize) -> Self {
        assert!(buckets.is_power_of_two());
        let bucket_words = slot_words * flow::SLOTS;
        let zeros = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
        let words = zeros(flow_map_entries(buckets) as usize * bucket_words);
        let accounts = zeros(MAX_ENDPOINTS as usize * ACCOUNT_WORDS);
        let table = Self { words, bucket_words, n_buckets: buckets, accounts };
        for endpoint in 0..MAX_ENDPOINTS as u16 {
            table.set_share(endpoint, u64::from(u32::MAX));
        }
        table
    }

    pub fn n_buckets(&self) -> u32 {
        self.n_buckets
    }

    /// Every bucket: those for all, and then the reserves.
    pub fn buckets(&self) -> impl Iterator<Item = AtomicBucket<'_>> {
        self.words.chunks(self.bucket_words).map(AtomicBucket)
    }

    pub fn set_share(&self, endpoint: u16, share: u64) {
        for family in 0..2 {
            let word = self.word(endpoint, account::SHARE + family);
            word.store(share, Ordering::Relaxed);
        }
    }

    /// A word of an endpoint's account.
    pub fn word(&self, endpoint: u16, word: usize) -> &AtomicU64 {
        &self.accounts[usize::from(endpoint) * ACCOUNT_WORDS + word]
    }

    /// Compares all accounts with what is there.
    pub fn assert_accounts<const KEY: usize>(&self) {
        let mut expected = HashMap::<u16, [u64; 2]>::new();
        for slot in self.buckets().flat_map(Slot::<KEY>::read) {
            let counts = expected.entry(slot.endpoint()).or_default();
            counts[0] += 1;
            counts[1] += u64::from(slot.state & flow::ANSWERED != 0);
        }
        let family = usize::from(KEY != flow::KEY4);
        for endpoint in 0..MAX_ENDPOINTS as u16 {
            let counts = [account::HELD, account::ANSWERED]
                .map(|word| self.word(endpoint, word + family).load(Ordering::SeqCst));
            let expected = expected.get(&endpoint).copied().unwrap_or_default();
            assert_eq!(counts, expected, "endpoint {endpoint}: held, answered");
        }
    }
}

impl<'a> flow::Table for &'a AtomicTable {
    type Bucket = AtomicBucket<'a>;
    type Account = AtomicAccount<'a>;

    fn bucket(&self, index: u32) -> Option<AtomicBucket<'a>> {
        let start = index as usize * self.bucket_words;
        Some(AtomicBucket(&self.words[start..start + self.bucket_words]))
    }

    fn masks(&self) -> [u32; 2] {
        [self.n_buckets - 1, reserve_buckets(self.n_buckets) - 1]
    }

    fn secret(&self) -> [u64; 2] {
        SECRET
    }

    fn account(&self, endpoint: u16) -> Option<AtomicAccount<'a>> {
        let start = usize::from(endpoint) * ACCOUNT_WORDS;
        Some(AtomicAccount(self.accounts.get(start..start + ACCOUNT_WORDS)?))
    }
}

/// One endpoint's account.
#[derive(Clone, Copy)]
pub struct AtomicAccount<'a>(&'a [AtomicU64]);

impl flow::Account for AtomicAccount<'_> {
    fn load(self, word: usize) -> u64 {
        self.0[word].load(Ordering::Relaxed)
    }

    fn add(self, word: usize, value: u64) {
        self.0[word].fetch_add(value, Ordering::Relaxed);
    }
}

/// One bucket of it.
#[derive(Clone, Copy)]
pub struct AtomicBucket<'a>(&'a [AtomicU64]);

impl flow::Bucket for AtomicBucket<'_> {
    fn load(self, word: usize) -> u64 {
        self.0[word].load(Ordering::Relaxed)
    }

    fn store(self, word: usize, value: u64) {
        self.0[word].store(value, Ordering::Relaxed);
    }

    fn compare_and_swap(self, word: usize, old: u64, new: u64) -> bool {
        self.0[word].compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn store_zero(self, byte: usize) {
        let mut mask = [0xff; 8];
        mask[byte % 8] = 0;
        self.0[byte / 8].fetch_and(u64::from_ne_bytes(mask), Ordering::Relaxed);
    }
}

/// Idle limits that are all different and short.
pub const TIMEOUTS: Timeouts =
    Timeouts { tcp_established: 400, tcp_other: 20, sctp: 90, udp: 30, icmp: 10, other: 50 };

type FragmentKey = (u16, u8, Address, Address, u32, u8);

/// Everything the programs look at.
pub struct World<'a> {
    pub flows4: &'a AtomicTable,
    pub flows6: &'a AtomicTable,
    pub clock: Clock,
    pub keeps_established: bool,
    pub checks_source: bool,
    pub exact: HashMap<Address, u32>,
    /// Address, prefix length, class.
    pub blocks: Vec<(Address, u32, u32)>,
    pub rows: HashMap<(u16, u32), Row>,
    pub intervals: Vec<u64>,
    pub own: HashSet<(u16, Address)>,
    /// Offset and count in `backends`.
    pub services: HashMap<ServiceKey, (u32, u16)>,
    pub backends: Vec<Backend>,
    /// `Control::flags`.
    pub flags: u64,
    pub fragments: RefCell<HashMap<FragmentKey, FragmentPorts>>,
}

impl<'a> World<'a> {
    pub fn new(flows4: &'a AtomicTable, flows6: &'a AtomicTable) -> Self {
        Self {
            flows4,
            flows6,
            clock: Clock { now: 1_000, timeouts: TIMEOUTS },
            keeps_established: false,
            checks_source: true,
            exact: HashMap::new(),
            blocks: Vec::new(),
            rows: HashMap::new(),
            intervals: Vec::new(),
            own: HashSet::new(),
            services: HashMap::new(),
            backends: Vec::new(),
            flags: TRANSIT_READY,
            fragments: RefCell::default(),
        }
    }

    pub fn allow_all(&mut self, set: u16, class: u32) {
        self.rows.insert((set, class), Row { kind: ROW_ALL, ..Row::default() });
    }

    /// Sorted, disjoint intervals of TCP, UDP and SCTP.
    pub fn allow_ports(&mut self, set: u16, class: u32, ports: &[Vec<(u16, u16)>; 3]) {
        let row = Row {
            kind: ROW_PORTS,
            counts: std::array::from_fn(|i| ports[i].len() as u16),
            offset: self.intervals.len() as u32,
            reserved: 0,
        };
        let words = ports.iter().flatten().map(|&(a, b)| interval(a, b, INTERVAL_ALLOW));
        self.intervals.extend(words);
        self.rows.insert((set, class), row);
    }

    /// The row that is there allows all protocols without ports too.
    pub fn allow_others(&mut self, set: u16, class: u32) {
        if let Some(row) = self.rows.get_mut(&(set, class)) {
            row.kind = ROW_PORTS_AND_OTHERS;
        }
    }

    /// A Service with these (class, port) kinds of backends.
    pub fn service(&mut self, address: Address, protocol: u8, port: u16, kinds: &[(u32, u16)]) {
        let words: Vec<Backend> =
            kinds.iter().map(|&(class, port)| backend(class, port, false)).collect();
        self.service_of(address, protocol, port, &words);
    }

    /// A Service with these words for its backends.
    pub fn service_of(&mut self, address: Address, protocol: u8, port: u16, words: &[Backend]) {
        let key = ServiceKey { address, port, protocol, reserved: 0 };
        self.services.insert(key, (self.backends.len() as u32, words.len() as u16));
        self.backends.extend(words);
    }

    /// Whether `address` lies in `block`, whose prefix has this many bits.
    fn contains(block: &Address, bits: u32, address: &Address) -> bool {
        let whole = |a: &Address| {
            a.words.iter().fold(0u128, |all, word| all << 32 | u128::from(u32::from_be(*word)))
        };
        let shift = 128 - bits;
        block.family == address.family
            && whole(block).checked_shr(shift) == whole(address).checked_shr(shift)
    }

    /// What the tc program does with a parsed packet: the short way where it may be taken
    /// (netpol-ebpf: main.rs, frame.rs), then the whole of it.
    pub fn judge_packet(
        &self,
        endpoint: &Endpoint,
        arrival: Arrival,
        packet: &Packet,
        inner: Option<&Packet>,
    ) -> Verdict {
        let is_common = packet.kind == Kind::Flow
            && matches!(packet.protocol, packet::TCP | packet::UDP)
            && !packet.is_first_fragment;
        if is_common {
            match self.is_established(endpoint, arrival, packet) {
                FlowState::Unknown => {}
                FlowState::Allowed => return PASSES_UNNOTED,
                // Of the transit program's this is merely "yes".
                FlowState::Stamped => {
                    return Verdict { is_stamped: !arrival.is_translated, ..PASSES_UNNOTED };
                }
            }
        }
        verdict::judge(self, endpoint, arrival, &mut packet.clone(), inner)
    }

    /// [`verdict::is_established`] in the table of the packet's family.
    pub fn is_established(
        &self,
        endpoint: &Endpoint,
        arrival: Arrival,
        packet: &Packet,
    ) -> FlowState {
        let clock = &self.clock;
        if packet.local.family == 6 {
            let key = flow::key6(packet, endpoint.id);
            let (table, hash) = (&self.flows6, flow::hash(&key, self.secret()));
            verdict::is_established(table, &key, hash, endpoint, arrival, packet, clock)
        } else {
            let key = flow::key4(packet, endpoint.id);
            let (table, hash) = (&self.flows4, flow::hash(&key, self.secret()));
            verdict::is_established(table, &key, hash, endpoint, arrival, packet, clock)
        }
    }

    /// What the tc program does with a frame (netpol-ebpf: slow.rs), without the short way.
    pub fn run(
        &self,
        endpoint: &Endpoint,
        direction: Direction,
        is_from_node: bool,
        frame: &[u8],
    ) -> Verdict {
        let arrival =
            Arrival { direction, is_from_node, is_translated: false, is_own_source: false };
        let (mut packet, mut inner) = (Packet::default(), Packet::default());
        let outcome = packet::parse(&Bytes(frame), direction, &mut packet, &mut inner);
        let inner = match outcome {
            Outcome::Pass => return PASSES_UNNOTED,
            Outcome::Neighbour => {
                let reason = neighbour::refuses(&Bytes(frame), &Talker(self, endpoint.id));
                return reason.map_or(PASSES_UNNOTED, |reason| Verdict::drop(reason, 0));
            }
            Outcome::Refuse(reason) => {
                return verdict::judge_refused(self, endpoint, arrival, &packet, reason);
            }
            Outcome::Packet => None,
            Outcome::Related => Some(&inner),
        };
        verdict::judge(self, endpoint, arrival, &mut packet, inner)
    }
}

/// An endpoint of the world whose interface nobody has told of: its link-layer address may be any,
/// and the node's routing has no say.
struct Talker<'a>(&'a World<'a>, u16);

impl Speaker for Talker<'_> {
    fn is_own(&self, address: &Address) -> bool {
        !self.0.checks_source() || self.0.owns(self.1, address)
    }

    fn is_own_link_address(&self, _address: [u8; 6]) -> bool {
        true
    }

    fn is_on_link(&self, source: &Address, destination: &Address) -> bool {
        neighbour::is_same_subnet(source, destination)
    }
}

/// A verdict on a packet that nobody hears of.
pub const PASSES_UNNOTED: Verdict = Verdict {
    then: Then::NOTHING,
    is_allowed: true,
    reason: Reason::NewFlow,
    is_noted: false,
    has_evicted: false,
    is_stamped: false,
    class: 0,
};

impl Intervals for World<'_> {
    fn interval(&self, index: u32) -> Option<u64> {
        self.intervals.get(index as usize).copied()
    }
}

impl Policies for World<'_> {
    fn exact_class(&self, key: &BlockKey) -> Option<ExactClass> {
        let address = &key.address;
        self.exact.get(address).map(|&class| exact_class(address, class))
    }

    fn block_class(&self, key: &BlockKey) -> Option<u32> {
        let address = &key.address;
        let containing =
            self.blocks.iter().filter(|(block, bits, _)| Self::contains(block, *bits, address));
        containing.max_by_key(|(_, bits, _)| *bits).map(|(_, _, class)| *class)
    }

    fn row(&self, set: u16, class: u32) -> Option<Row> {
        self.rows.get(&(set, class)).copied()
    }

    fn service(&self, key: &ServiceKey) -> Option<ServiceValue> {
        let (offset, count) = *self.services.get(key)?;
        Some(service_value(key, offset, count))
    }

    fn backend(&self, index: u32) -> Option<Backend> {
        self.backends.get(index as usize).copied()
    }
}

impl<'a> Maps for World<'a> {
    type Flows4 = &'a AtomicTable;
    type Flows6 = &'a AtomicTable;

    fn flows4(&self) -> &Self::Flows4 {
        &self.flows4
    }

    fn flows6(&self) -> &Self::Flows6 {
        &self.flows6
    }

    fn secret(&self) -> [u64; 2] {
        SECRET
    }

    fn clock(&self) -> Clock {
        self.clock
    }

    fn keeps_established(&self) -> bool {
        self.keeps_established
    }

    fn checks_source(&self) -> bool {
        self.checks_source
    }

    fn class_of(&self, address: &Address) -> u32 {
        verdict::class_of(self, address)
    }

    fn row_allows(&self, set: u16, class: u32, protocol: u8, port: u16) -> bool {
        verdict::row_allows(self, set, class, protocol, port)
    }

    fn judge_service(&self, set: u16, endpoint: u16, key: &ServiceKey) -> ToService {
        service::judge_service(self, set, endpoint, key)
    }

    fn flags(&self) -> u64 {
        self.flags
    }

    fn owns(&self, endpoint: u16, address: &Address) -> bool {
        self.own.contains(&(endpoint, *address))
    }

    fn remember_fragment(&self, endpoint: u16, direction: Direction, packet: &Packet) {
        let ports = fragment_ports(packet.protocol, packet.local_port, packet.remote_port);
        self.fragments.borrow_mut().insert(fragment_key(endpoint, direction, packet), ports);
    }

    fn fragment_ports(
        &self,
        endpoint: u16,
        direction: Direction,
        packet: &Packet,
    ) -> FragmentPorts {
        let key = fragment_key(endpoint, direction, packet);
        self.fragments.borrow().get(&key).copied().unwrap_or(0)
    }
}

impl Judge for World<'_> {}

fn fragment_key(endpoint: u16, direction: Direction, packet: &Packet) -> FragmentKey {
    let Packet { local, remote, fragment_id, protocol, .. } = *packet;
    let protocol = if local.family == 6 { 0 } else { protocol };
    (endpoint, direction as u8, local, remote, fragment_id, protocol)
}

/// An IPv4 address as the maps hold it.
pub fn v4(octets: [u8; 4]) -> Address {
    Address::v4(u32::from_ne_bytes(octets))
}

/// An IPv6 address as the maps hold it, from its last two bytes: `fd00::a:b`.
pub fn v6(net: u8, host: u8) -> Address {
    let word = |bytes| u32::from_ne_bytes(bytes);
    Address::v6([word([0xfd, 0, 0, net]), 0, 0, word([0, 0, 0, host])])
}

/// Randomness that a seed repeats (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of these.
    pub fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize].clone()
    }
}
