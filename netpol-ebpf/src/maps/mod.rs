//! The maps, and their view for `netpol_common::verdict`. Must never decide a verdict.

mod endpoints;
mod flows;
mod fragments;
mod policies;
mod speakers;

pub use endpoints::{endpoint_and_link, endpoint_at, endpoint_words, interface_of, own4, slot_of};
pub use flows::{Flows4, Flows6};
pub use speakers::{Speaker, is_link_local_of, may_forward, two_words};

use core::ptr::read_volatile;

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::helpers::generated::bpf_jiffies64;
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::LpmTrie;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use netpol_common::flow::{self, Clock, Timeouts, WORDS4, WORDS6};
use netpol_common::layout::{
    self, Address, Direction, ExactClass, FragmentKey, FragmentPorts, OwnAddress, RowKey,
    ServiceKey, ServiceValue,
};
use netpol_common::packet::Packet;
use netpol_common::service::{self, ToService};
use netpol_common::verdict::{self, Endpoint, Maps, PolicyVerdict};

use fragments::{fragment_ports, remember_fragment};
use policies::{netpol_ask_backends, netpol_ask_service, netpol_judge_flow};

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

/// The bit of a packet's mark that says that it is stamped.
#[inline(always)]
pub fn stamp_mark() -> u32 {
    STAMP_MARK.load()
}

/// The kernel's maps.
pub struct Kernel;

/// Now, in ticks.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper has no arguments.
    flow::tick(unsafe { bpf_jiffies64() })
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
    ) -> PolicyVerdict {
        let word = direction as u32 | u32::from(is_translated) << 1;
        // One after the other, so that their stacks do not add up; and a call that is known to be in
        // vain is none.
        let to_service = match direction {
            Direction::Ingress => ToService::None as u32,
            Direction::Egress => netpol_ask_service(endpoint, word, packet),
        };
        PolicyVerdict::unpack(netpol_judge_flow(endpoint, word, packet, to_service))
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
