//! The programs once more, on the node's policy maps but with flows, fragments, counters and
//! events of their own: for asking without leaving a trace.

use netpol_common::layout::{Control, Event, Reason, names};
use netpol_common::service::ToService;
use zerocopy::FromBytes as _;

use aya::maps::{Array, MapData, RingBuf};

use super::clock::clock;
use super::error::{DatapathError, bpf_error};
use super::load::{EGRESS, INGRESS, LoadOptions, Programs};
use super::maps::Maps;
use super::pins::Pins;
use super::run::{Place, run};
use netpol_compile::ServiceKey;
use netpol_model::Direction;

/// Maps that hold policy and are read only by the programs; the others are the scratch copy's own.
const SHARED: [&str; 10] = [
    names::ENDPOINTS,
    names::ADDRESSES,
    names::BLOCKS,
    names::ROWS,
    names::INTERVALS,
    names::OWN_ADDRESSES,
    names::SOURCE_PREFIXES,
    names::SOURCES,
    names::SERVICES,
    names::BACKENDS,
];

/// The loaded copy. Gone when dropped.
pub struct Scratch {
    programs: Programs,
    maps: Maps,
    events: RingBuf<MapData>,
}

impl Scratch {
    /// Loads it, if this is the build whose programs are in force on the node.
    pub fn load(pins: &Pins) -> Result<Self, DatapathError> {
        // Checks that there is something to ask, and that it has the layout of this build.
        let maps = Maps::open(pins, false)?;
        let flags = maps.control.flags();
        let options = LoadOptions { flow_buckets: Some([64, 64]), ..LoadOptions::default() };
        let mut programs = Programs::load_scratch(pins, &options, &SHARED)?;
        for name in [INGRESS, EGRESS] {
            let in_force = aya::programs::ProgramInfo::from_pin(pins.program(name))
                .map_err(bpf_error(format!("open pinned program {name}")))?;
            if in_force.tag() != programs.info(name)?.tag() {
                return Err(DatapathError::Missing(
                    "the programs in force are of another netpol build than this command: use the \
                     agent's own binary, or restart the agent with this one"
                        .to_owned(),
                ));
            }
        }
        let take = |programs: &mut Programs, name: &str| {
            programs
                .ebpf()
                .take_map(name)
                .ok_or_else(|| DatapathError::Missing(format!("the eBPF object has no map {name}")))
        };
        let control = take(&mut programs, names::CONTROL)?;
        let mut control: Array<_, [u8; size_of::<Control>()]> =
            control.try_into().map_err(bpf_error("open the scratch control map"))?;
        // Report everything, as long as it takes.
        let until = clock().now + (1 << 32);
        let entry = Control {
            listen_drops_until: until,
            listen_flows_until: until,
            flags,
            ..Control::default()
        };
        let entry: [u8; size_of::<Control>()] = zerocopy::transmute!(entry);
        control.set(0, entry, 0).map_err(bpf_error("write the scratch control map"))?;
        let events = take(&mut programs, names::EVENTS)?;
        let events = events.try_into().map_err(bpf_error("open the scratch event ring"))?;
        Ok(Self { programs, maps, events })
    }

    /// What an endpoint's policy set says of packets to a Service, by the programs' own code.
    pub fn to_service(&self, set: u16, endpoint: u16, key: &ServiceKey) -> ToService {
        super::evaluate::to_service(&self.maps, set, endpoint, key)
    }

    /// The verdict on a frame, and its reason if the packet was noted at all. From a pod it comes from
    /// its own link-layer address.
    pub fn judge(
        &mut self,
        direction: Direction,
        frame: &[u8],
        place: Place,
    ) -> Result<(bool, Option<Reason>), DatapathError> {
        let name = match direction {
            Direction::Ingress => INGRESS,
            Direction::Egress => EGRESS,
        };
        let mut frame = frame.to_vec();
        if direction == Direction::Egress
            && let Some(link) = super::observe::link_source(&self.maps, place.ifindex)
        {
            frame[6..12].copy_from_slice(&link);
        }
        let result = run(self.programs.program(name)?, &frame, place, 1)?;
        let mut reason = None;
        while let Some(item) = self.events.next() {
            if let Ok((event, _)) = Event::read_from_prefix(&item) {
                reason = Reason::from_number(event.reason);
            }
        }
        Ok((result.is_allowed, reason))
    }
}
