//! The maps, and their view for `netpol_common::verdict`.

use core::ffi::c_void;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_loop};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::{Key as LpmKey, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use netpol_common::flow::{self, Claim, Clock, Place, Timeouts, WORDS4, WORDS6};
use netpol_common::layout::{
    self, Address, Backend, BlockKey, Direction, ExactClass, FragmentKey, FragmentPorts,
    OwnAddress, RowKey, ServiceKey, ServiceValue,
};
use netpol_common::packet::Packet;
use netpol_common::ports::Intervals;
use netpol_common::service::{self, Asked, ToService};
use netpol_common::verdict::{self, Endpoint, Judged, Maps, Policies};

#[map]
static ENDPOINTS: Array<layout::Endpoint> =
    Array::with_max_entries(layout::ENDPOINT_SLOTS + layout::ENDPOINT_PROBES, BPF_F_MMAPABLE);
#[map]
static FLOWS4: Array<[u64; WORDS4 * flow::SLOTS]> =
    Array::with_max_entries(layout::flow_map_entries(layout::FLOW4_BUCKETS), BPF_F_MMAPABLE);
#[map]
static FLOWS6: Array<[u64; WORDS6 * flow::SLOTS]> =
    Array::with_max_entries(layout::flow_map_entries(layout::FLOW6_BUCKETS), BPF_F_MMAPABLE);
#[map]
static FLOW_USE: Array<layout::FlowUse> =
    Array::with_max_entries(layout::MAX_ENDPOINTS, BPF_F_MMAPABLE);
#[map]
static ADDRESSES: HashMap<Address, ExactClass> =
    HashMap::with_max_entries(layout::MAX_ADDRESSES, BPF_F_NO_PREALLOC);
#[map]
static BLOCKS: LpmTrie<Address, u32> =
    LpmTrie::with_max_entries(layout::MAX_BLOCKS, BPF_F_NO_PREALLOC);
#[map]
static ROWS: HashMap<RowKey, layout::Row> =
    HashMap::with_max_entries(layout::MAX_ROWS, BPF_F_NO_PREALLOC);
#[map]
static INTERVALS: Array<u64> = Array::with_max_entries(layout::MAX_INTERVALS, BPF_F_MMAPABLE);
#[map]
static OWN_ADDRESSES: HashMap<OwnAddress, u32> =
    HashMap::with_max_entries(layout::MAX_OWN_ADDRESSES, BPF_F_NO_PREALLOC);
#[map]
static SOURCE_PREFIXES: LpmTrie<layout::SourcePrefix, u32> =
    LpmTrie::with_max_entries(layout::MAX_SOURCE_PREFIXES, BPF_F_NO_PREALLOC);
#[map]
static SOURCES: HashMap<Address, u32> =
    HashMap::with_max_entries(layout::MAX_OWN_ADDRESSES, BPF_F_NO_PREALLOC);
#[map]
static SERVICES: HashMap<ServiceKey, ServiceValue> =
    HashMap::with_max_entries(layout::MAX_SERVICES, BPF_F_NO_PREALLOC);
#[map]
static BACKENDS: Array<u64> = Array::with_max_entries(layout::MAX_BACKENDS, BPF_F_MMAPABLE);
#[map]
static SPEAKERS: Array<layout::Speaker> =
    Array::with_max_entries(layout::ENDPOINT_SLOTS + layout::ENDPOINT_PROBES, BPF_F_MMAPABLE);
#[map]
static FRAGMENTS: LruHashMap<FragmentKey, u64> =
    LruHashMap::with_max_entries(layout::MAX_FRAGMENTS, 0);
#[map]
pub static COUNTERS: PerCpuArray<layout::Counters> =
    PerCpuArray::with_max_entries(layout::MAX_ENDPOINTS * 2, 0);
#[map]
pub static CONTROL: Array<layout::Control> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(layout::EVENT_RING_BYTES, 0);
#[map]
pub static EVENT_BUDGET: PerCpuArray<layout::EventBudget> = PerCpuArray::with_max_entries(1, 0);

/// Key of the flow hash, from [`layout::Control::secret`].
#[unsafe(no_mangle)]
static SECRET: Global<[u64; 2]> = Global::new([0; 2]);
/// Numbers of buckets for all, minus one.
#[unsafe(no_mangle)]
static FLOW4_MASK: Global<u32> = Global::new(layout::FLOW4_BUCKETS - 1);
#[unsafe(no_mangle)]
static FLOW6_MASK: Global<u32> = Global::new(layout::FLOW6_BUCKETS - 1);
/// Numbers of buckets of each endpoint's reserve, minus one.
#[unsafe(no_mangle)]
static RESERVE4_MASK: Global<u32> = Global::new(layout::reserve_buckets(layout::FLOW4_BUCKETS) - 1);
#[unsafe(no_mangle)]
static RESERVE6_MASK: Global<u32> = Global::new(layout::reserve_buckets(layout::FLOW6_BUCKETS) - 1);
/// Idle limits in ticks: [`Timeouts`] in field order.
#[unsafe(no_mangle)]
static TIMEOUTS: Global<[u64; 6]> = Global::new([0; 6]);
/// 1: flows outlive the policy that allowed them.
#[unsafe(no_mangle)]
static KEEP_ESTABLISHED: Global<u8> = Global::new(0);
/// 1: a pod may send from its own addresses only.
#[unsafe(no_mangle)]
static CHECK_SOURCE: Global<u8> = Global::new(1);
/// The bit of a packet's mark that says that it is stamped.
#[unsafe(no_mangle)]
static STAMP_MARK: Global<u32> = Global::new(layout::STAMP_MARK);

/// The slot that the endpoint with this interface has: its index, where it is, and its words.
#[inline(always)]
fn find_slot(ifindex: u32) -> Option<(u32, *const layout::Endpoint, EndpointWords)> {
    let first = ifindex & (layout::ENDPOINT_SLOTS - 1);
    let mut probe = 0;
    while probe < layout::ENDPOINT_PROBES {
        let index = first + probe;
        let slot = ENDPOINTS.get_ptr(index)?;
        let words = words_of(slot);
        probe += 1;
        if words.ifindex() == ifindex {
            return Some((index, slot, words));
        }
    }
    None
}

/// The endpoint with this interface.
#[inline(always)]
pub fn endpoint_at(ifindex: u32) -> Option<Endpoint> {
    find_slot(ifindex)?.2.endpoint()
}

/// The same, and [`layout::Endpoint::link`].
#[inline(always)]
pub fn endpoint_and_link(ifindex: u32) -> Option<(Endpoint, u64)> {
    let (_, slot, words) = find_slot(ifindex)?;
    // SAFETY: as for the other words, see words_of.
    Some((words.endpoint()?, unsafe { read_volatile(&raw const (*slot).link) }))
}

/// The index of the slot that the endpoint with this interface has.
#[inline(always)]
pub fn slot_of(ifindex: u32) -> Option<u32> {
    find_slot(ifindex).map(|(index, ..)| index)
}

/// Whether the pod of this interface may send from the address though it is not its own, since it
/// forwards for others. A function of its own for its stack.
#[inline(never)]
pub fn may_forward(ifindex: u32, address: &Address) -> bool {
    if Kernel.flags() & layout::HAS_SOURCE_PREFIXES == 0 {
        return false;
    }
    let key = layout::SourcePrefix { ifindex, address: *address };
    SOURCE_PREFIXES.get(LpmKey::new(layout::SOURCE_PREFIX_BITS + 128, key)).is_some()
}

/// Who speaks on an interface.
#[derive(Clone, Copy)]
pub struct Speaker(*const layout::Speaker);

/// Reads a word of a [`Speaker`]'s entry, at once: the agent stores it so.
macro_rules! speaker_word {
    ($speaker:expr, $($field:tt)+) => {
        // SAFETY: array values live as long as the map, and every word of them is readable.
        unsafe { read_volatile(&raw const (*$speaker.0).$($field)+) }
    };
}

impl Speaker {
    /// Who speaks on this interface, if anybody is declared to.
    #[inline(always)]
    pub fn on(ifindex: u32) -> Option<Self> {
        let first = ifindex & (layout::ENDPOINT_SLOTS - 1);
        let mut probe = 0;
        while probe < layout::ENDPOINT_PROBES {
            let speaker = Self(SPEAKERS.get_ptr(first + probe)?);
            probe += 1;
            if speaker_word!(speaker, identity) >> 32 == u64::from(ifindex) {
                return Some(speaker);
            }
        }
        None
    }

    /// The interface.
    #[inline(always)]
    pub fn ifindex(self) -> u32 {
        (speaker_word!(self, identity) >> 32) as u32
    }

    /// Its endpoint's id.
    #[inline(always)]
    pub fn id(self) -> u16 {
        speaker_word!(self, identity) as u16
    }

    /// [`layout::Speaker::link`].
    #[inline(always)]
    pub fn link(self) -> u64 {
        speaker_word!(self, link)
    }

    /// [`layout::Speaker::routed_by`].
    #[inline(always)]
    pub fn routed_by(self) -> u32 {
        speaker_word!(self, routed_by) as u32
    }

    /// Whether this is the endpoint's address as far as its entry tells.
    #[inline(always)]
    pub fn is_own4(self, word: u32) -> bool {
        word != 0 && speaker_word!(self, own4) == u64::from(word)
    }

    /// As above; two words in memory's order.
    #[inline(always)]
    pub fn is_own6(self, words: [u64; 2]) -> bool {
        words[0] != 0
            && speaker_word!(self, own6[0]) == words[0]
            && speaker_word!(self, own6[1]) == words[1]
    }

    /// Whether this is the interface's own link-local address.
    #[inline(always)]
    pub fn is_link_local(self, words: [u64; 2]) -> bool {
        words[0] != 0
            && speaker_word!(self, link_local[0]) == words[0]
            && speaker_word!(self, link_local[1]) == words[1]
    }
}

/// Whether the interface's own link-local address is this one. Nobody else has it on that link, and
/// no router forwards what comes from it. A function of its own for its stack.
#[inline(never)]
pub fn is_link_local_of(ifindex: u32, address: &Address) -> bool {
    match Speaker::on(ifindex) {
        Some(speaker) => speaker.is_link_local(two_words(address)),
        None => false,
    }
}

/// An IPv6 address as two words in memory's order.
#[inline(always)]
pub fn two_words(address: &Address) -> [u64; 2] {
    let [a, b, c, d] = address.words.map(u64::from);
    if cfg!(target_endian = "big") {
        [a << 32 | b, c << 32 | d]
    } else {
        [b << 32 | a, d << 32 | c]
    }
}

/// [`layout::Endpoint::own4`] of the endpoint with this interface; 0: not known here.
#[inline(always)]
pub fn own4(ifindex: u32) -> u32 {
    let Some((_, slot, _)) = find_slot(ifindex) else { return 0 };
    // SAFETY: as for the other words, see words_of.
    unsafe { read_volatile(&raw const (*slot).own4) as u32 }
}

/// What a slot of the endpoint table holds.
pub struct EndpointWords {
    identity: u64,
    policy: u64,
    born: u64,
}

impl EndpointWords {
    /// The endpoint's interface, 0 if the slot is free.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        (self.identity >> 32) as u32
    }

    /// The endpoint, if it was completely written.
    #[inline(always)]
    pub fn endpoint(&self) -> Option<Endpoint> {
        Endpoint::from_words(self.identity, self.policy, self.born)
    }
}

/// Reads a slot of the endpoint table.
#[inline(always)]
pub fn endpoint_words(slot: u32) -> Option<EndpointWords> {
    ENDPOINTS.get_ptr(slot).map(words_of)
}

#[inline(always)]
fn words_of(slot: *const layout::Endpoint) -> EndpointWords {
    // SAFETY: array values live as long as the map; words are read one by one, each with a single
    // load, because the agent stores them so.
    unsafe {
        EndpointWords {
            identity: read_volatile(&raw const (*slot).identity),
            policy: read_volatile(&raw const (*slot).policy),
            born: read_volatile(&raw const (*slot).born),
        }
    }
}

/// The interface of the local endpoint that has this address.
#[inline(always)]
pub fn interface_of(address: &Address) -> Option<u32> {
    let key = on_stack(address);
    // SAFETY: a 32-bit value is read with one load. One that is being reused names another
    // endpoint, as after the address has changed hands.
    unsafe { SOURCES.get(key).map(|ifindex| read_volatile(ifindex)) }
}

/// A copy on the stack of what a function was given a pointer to: only since Linux 6.2 may such a
/// pointer itself be a map's key (kernel/bpf/verifier.c: map_key_value_types).
#[inline(always)]
fn on_stack(address: &Address) -> Address {
    *address
}

/// The bit of a packet's mark that says that it is stamped.
#[inline(always)]
pub fn stamp_mark() -> u32 {
    STAMP_MARK.load()
}

/// A flow bucket in an array map.
#[derive(Clone, Copy)]
pub struct Bucket(*mut u64);

impl flow::Bucket for Bucket {
    #[inline(always)]
    fn load(self, word: usize) -> u64 {
        // SAFETY: callers index below the bucket's words, which the verifier checks as well.
        unsafe { read_volatile(self.0.add(word)) }
    }

    #[inline(always)]
    fn store(self, word: usize, value: u64) {
        // SAFETY: as above.
        unsafe { write_volatile(self.0.add(word), value) }
    }

    #[inline(always)]
    fn store_zero(self, byte: usize) {
        // SAFETY: callers stay within the bucket, which the verifier checks as well.
        unsafe { write_volatile(self.0.cast::<u8>().add(byte), 0) }
    }

    #[inline(always)]
    fn compare_and_swap(self, word: usize, old: u64, new: u64) -> bool {
        let found: u64;
        // SAFETY: as above. rustc has no compare-exchange for this target (it declares it
        // single-threaded); the instruction is BPF_CMPXCHG of the v3 instruction set.
        unsafe {
            core::arch::asm!(
                "r0 = {old}",
                "r0 = cmpxchg_64({address} + 0, r0, {new})",
                old = in(reg) old,
                address = in(reg) self.0.add(word),
                new = in(reg) new,
                out("r0") found,
            );
        }
        found == old
    }
}

/// What an endpoint has of the flow tables.
#[derive(Clone, Copy)]
pub struct Account(*mut u64);

impl flow::Account for Account {
    #[inline(always)]
    fn load(self, word: usize) -> u64 {
        // SAFETY: callers index below the words of a FlowUse, which the verifier checks as well.
        unsafe { read_volatile(self.0.add(word)) }
    }

    #[inline(always)]
    fn add(self, word: usize, value: u64) {
        // SAFETY: as above. As for the compare-and-swap, rustc has no instruction for it.
        unsafe {
            core::arch::asm!(
                "lock *(u64 *)({address} + 0) += {value}",
                address = in(reg) self.0.add(word),
                value = in(reg) value,
            );
        }
    }
}

#[inline(always)]
fn account(endpoint: u16) -> Option<Account> {
    FLOW_USE.get_ptr_mut(u32::from(endpoint)).map(|account| Account(account.cast()))
}

/// The IPv4 flow table.
pub struct Flows4;

/// The IPv6 flow table.
pub struct Flows6;

/// Defines a flow table, and functions for choosing slots, which are verified on their own. They
/// are cut so that nobody knows how a score came about: what is chosen by it would be verified
/// once for each way.
macro_rules! flow_table {
    ($name:ident, $map:ident, $key:path, $masks:expr,
        $score:ident, $count:ident) => {
        impl flow::Table for $name {
            type Bucket = Bucket;
            type Account = Account;

            #[inline(always)]
            fn bucket(&self, index: u32) -> Option<Bucket> {
                $map.get_ptr_mut(index).map(|bucket| Bucket(bucket.cast()))
            }

            #[inline(always)]
            fn masks(&self) -> [u32; 2] {
                $masks
            }

            #[inline(always)]
            fn secret(&self) -> [u64; 2] {
                SECRET.load()
            }

            #[inline(always)]
            fn account(&self, endpoint: u16) -> Option<Account> {
                account(endpoint)
            }

            #[inline(always)]
            fn score<const KEY: usize>(
                &self,
                index: u32,
                place: Place,
                claim: &Claim,
                _: &Clock,
            ) -> u64 {
                $score(index, place.0, claim.bits, claim.held, claim.answered)
            }

            #[inline(always)]
            fn count<const KEY: usize>(&self, index: u32, ports: u64, remote: u64) -> u64 {
                $count(index, ports, remote)
            }
        }

        /// [`flow::score`] in this table; what is known of the claim is the last three.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $score(
            index: u32,
            place: u32,
            bits: u32,
            held: u64,
            answered: u64,
        ) -> u64 {
            let claim = Claim { bits, held, answered };
            flow::score::<_, { $key }>(&$name, index, Place(place), &claim, &Kernel.clock())
        }

        /// [`flow::count`] in this table.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $count(index: u32, ports: u64, remote: u64) -> u64 {
            flow::count::<_, { $key }>(&$name, index, ports, remote)
        }
    };
}

flow_table!(
    Flows4,
    FLOWS4,
    flow::KEY4,
    [FLOW4_MASK.load(), RESERVE4_MASK.load()],
    netpol_score4,
    netpol_count4
);
flow_table!(
    Flows6,
    FLOWS6,
    flow::KEY6,
    [FLOW6_MASK.load(), RESERVE6_MASK.load()],
    netpol_score6,
    netpol_count6
);

/// The kernel's maps.
pub struct Kernel;

/// Now, in ticks.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper has no arguments.
    flow::tick(unsafe { bpf_jiffies64() })
}

impl Intervals for Kernel {
    #[inline(always)]
    fn interval(&self, index: u32) -> Option<u64> {
        INTERVALS.get(index).copied()
    }
}

impl Policies for Kernel {
    #[inline(always)]
    fn exact_class(&self, key: &BlockKey) -> Option<ExactClass> {
        // SAFETY: the value is read with one 64-bit load and carries its key's echo, so an
        // element that is reused meanwhile is noticed.
        unsafe { ADDRESSES.get(&key.address).map(|value| read_volatile(value)) }
    }

    #[inline(always)]
    fn block_class(&self, key: &BlockKey) -> Option<u32> {
        const { assert!(size_of::<BlockKey>() == size_of::<LpmKey<Address>>()) };
        // SAFETY: both are the number of bits, then the address, and the other is packed.
        let key = unsafe { &*(&raw const *key).cast::<LpmKey<Address>>() };
        BLOCKS.get(key).copied()
    }

    #[inline(always)]
    fn row(&self, set: u16, class: u32) -> Option<layout::Row> {
        // SAFETY: rows never change, and are removed a grace period after their last use.
        unsafe { ROWS.get(RowKey { set: u32::from(set), class }).copied() }
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<ServiceValue> {
        // SAFETY: as for exact_class: one load, with an echo of the key.
        unsafe { SERVICES.get(key).map(|value| read_volatile(value)) }
    }

    #[inline(always)]
    fn backend(&self, index: u32) -> Option<Backend> {
        BACKENDS.get(index).copied()
    }
}

/// [`verdict::row_allows`] as 1 or 0, for [`each_backend`]: a function that is verified on its own,
/// since otherwise the steps of the port search would multiply with the paths that lead to it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn netpol_row_allows(set: u32, class: u32, protocol: u32, port: u32) -> u32 {
    u32::from(verdict::row_allows(&Kernel, set as u16, class, protocol as u8, port as u16))
}

/// Asks one backend of a Service.
unsafe extern "C" fn each_backend(index: u32, asked: *mut c_void) -> i64 {
    // SAFETY: the verifier knows the context as the Asked that bpf_loop was given.
    let asked = unsafe { &mut *asked.cast::<Asked>() };
    let index = asked.offset.wrapping_add(index);
    let backend = match BACKENDS.get(index) {
        Some(backend) => *backend,
        None => return 1,
    };
    let (set, protocol) = (u32::from(asked.set), u32::from(asked.protocol));
    asked.add(backend, |class, port| netpol_row_allows(set, class, protocol, u32::from(port)) == 1);
    0
}

/// The rest of [`service::judge_service`], as a number, once it is known where the backends stand.
/// The kernel's own loop (Linux 5.17) runs it for any number of them and verifies it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn netpol_ask_backends(
    set: u32,
    endpoint: u32,
    protocol: u32,
    offset: u32,
    count: u32,
) -> u32 {
    let mut asked = Asked::new(set as u16, endpoint as u16, protocol as u8, offset);
    // SAFETY: the callback and its context are as the helper wants them; count is 16 bits wide,
    // below the helper's limit.
    unsafe {
        bpf_loop(count, each_backend as *mut c_void, (&raw mut asked).cast(), 0);
    }
    asked.answer() as u32
}

/// [`verdict::ask_service`], as a number. `direction`: with bit 1 set, of a translated packet.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn netpol_ask_service(
    endpoint: *const Endpoint,
    direction: u32,
    packet: *const Packet,
) -> u32 {
    // SAFETY: the verifier lets only null or readable structs through.
    let (Some(endpoint), Some(packet)) = (unsafe { (endpoint.as_ref(), packet.as_ref()) }) else {
        return ToService::Denied as u32;
    };
    let (direction, is_translated) = flow_of(direction);
    verdict::ask_service(&Kernel, endpoint, direction, is_translated, packet) as u32
}

/// [`verdict::judge_flow_to`], packed: it is asked about both directions of some flows. `direction`
/// as above.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn netpol_judge_flow(
    endpoint: *const Endpoint,
    direction: u32,
    packet: *const Packet,
    to_service: u32,
) -> u64 {
    // SAFETY: the verifier lets only null or readable structs through.
    let (Some(endpoint), Some(packet)) = (unsafe { (endpoint.as_ref(), packet.as_ref()) }) else {
        return 0;
    };
    let (direction, is_translated) = flow_of(direction);
    let to_service = ToService::from_number(to_service);
    verdict::judge_flow_to(&Kernel, endpoint, direction, is_translated, packet, to_service).pack()
}

#[inline(always)]
fn flow_of(word: u32) -> (Direction, bool) {
    let direction = if word & 1 == 0 { Direction::Ingress } else { Direction::Egress };
    (direction, word & 2 != 0)
}

impl Maps for Kernel {
    type Flows4 = Flows4;
    type Flows6 = Flows6;

    #[inline(always)]
    fn flows4(&self) -> &Flows4 {
        &Flows4
    }

    #[inline(always)]
    fn flows6(&self) -> &Flows6 {
        &Flows6
    }

    #[inline(always)]
    fn secret(&self) -> [u64; 2] {
        SECRET.load()
    }

    #[inline(always)]
    fn clock(&self) -> Clock {
        let [tcp_established, tcp_other, sctp, udp, icmp, other] = TIMEOUTS.load();
        Clock {
            now: now(),
            timeouts: Timeouts { tcp_established, tcp_other, sctp, udp, icmp, other },
        }
    }

    #[inline(always)]
    fn keeps_established(&self) -> bool {
        KEEP_ESTABLISHED.load() != 0
    }

    #[inline(always)]
    fn checks_source(&self) -> bool {
        CHECK_SOURCE.load() != 0
    }

    #[inline(always)]
    fn class_of(&self, address: &Address) -> u32 {
        verdict::class_of(&Kernel, address)
    }

    #[inline(always)]
    fn row_allows(&self, set: u16, class: u32, protocol: u8, port: u16) -> bool {
        verdict::row_allows(&Kernel, set, class, protocol, port)
    }

    #[inline(always)]
    fn judge_service(&self, set: u16, endpoint: u16, key: &ServiceKey) -> ToService {
        let Some((offset, count)) = service::find_service(&Kernel, key) else {
            return ToService::None;
        };
        let (set, endpoint, protocol) = (set.into(), endpoint.into(), key.protocol.into());
        ToService::from_number(netpol_ask_backends(set, endpoint, protocol, offset, count))
    }

    #[inline(always)]
    fn judge_flow(
        &self,
        endpoint: &Endpoint,
        direction: Direction,
        is_translated: bool,
        packet: &Packet,
    ) -> Judged {
        let word = direction as u32 | u32::from(is_translated) << 1;
        // One after the other, so that their stacks do not add up; and a call that is known to be in
        // vain is none.
        let to_service = match direction {
            Direction::Ingress => ToService::None as u32,
            Direction::Egress => netpol_ask_service(endpoint, word, packet),
        };
        Judged::unpack(netpol_judge_flow(endpoint, word, packet, to_service))
    }

    #[inline(always)]
    fn flags(&self) -> u64 {
        let Some(control) = CONTROL.get_ptr(0) else { return 0 };
        // SAFETY: as for the endpoints: one load of a word that the agent stores at once.
        unsafe { read_volatile(&raw const (*control).flags) }
    }

    #[inline(always)]
    fn owns(&self, endpoint: u16, address: &Address) -> bool {
        let key = OwnAddress { endpoint: u32::from(endpoint), address: *address };
        // SAFETY: only the presence matters.
        unsafe { OWN_ADDRESSES.get(key).is_some() }
    }

    #[inline(always)]
    fn remember_fragment(&self, endpoint: u16, direction: Direction, packet: &Packet) {
        remember_fragment(endpoint, direction, packet);
    }

    #[inline(always)]
    fn fragment_ports(
        &self,
        endpoint: u16,
        direction: Direction,
        packet: &Packet,
    ) -> FragmentPorts {
        fragment_ports(endpoint, direction, packet)
    }
}

/// [`Maps::remember_fragment`], apart for its stack.
#[inline(never)]
fn remember_fragment(endpoint: u16, direction: Direction, packet: &Packet) {
    let ports = layout::fragment_ports(packet.protocol, packet.local_port, packet.remote_port);
    // A failure costs the later fragments' ports; they are then judged without.
    let _ = FRAGMENTS.insert(fragment_key(endpoint, direction, packet), ports, 0);
}

/// [`Maps::fragment_ports`], apart for its stack; 0: unknown.
#[inline(never)]
fn fragment_ports(endpoint: u16, direction: Direction, packet: &Packet) -> FragmentPorts {
    // SAFETY: one 64-bit load of a value written whole.
    match unsafe { FRAGMENTS.get(fragment_key(endpoint, direction, packet)) } {
        Some(ports) => *ports,
        None => 0,
    }
}

#[inline(always)]
fn fragment_key(endpoint: u16, direction: Direction, packet: &Packet) -> FragmentKey {
    FragmentKey {
        local: packet.local,
        remote: packet.remote,
        id: packet.fragment_id,
        endpoint,
        protocol: if packet.local.family == 6 { 0 } else { packet.protocol },
        direction: direction as u8,
    }
}
