//! Puts the programs on interfaces and takes them off, by TCX links (kernel 6.6 and later) or as
//! clsact filters. Either way they outlive the agent. Must never decide which interface gets what.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcHandle};
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};
use rustix::net::netdevice::{index_to_name, name_to_index};
use rustix::net::{AddressFamily, SocketType, socket};

use super::clsact::{attach_clsact, detach_clsact, require_clsact};
use super::error::{DatapathError, bpf_error, io_error};
use super::features;
use super::filters::{filter_programs, filters};
use super::grace::grace_period;
use super::load::{EGRESS, GUARD, INGRESS, Programs, SHIELD, TRANSIT, TRANSIT_RAW};
use super::pins::Pins;
use super::tcx::{attach_tcx, detach_now, replace_pinned};

/// How programs are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AttachMode {
    /// TCX where the kernel has it, else clsact.
    #[default]
    Auto,
    /// TCX links, pinned.
    Tcx,
    /// Filters on the clsact qdisc.
    Clsact,
}

/// Handle of netpol's clsact filters, recognisable.
const HANDLE: TcHandle = TcHandle::new(0, 0x6e70);

/// A pod's ingress is the tc egress hook of its host-side interface, and the reverse.
const HOOKS: [(&str, TcAttachType, &str); 2] =
    [(INGRESS, TcAttachType::Egress, "ingress"), (EGRESS, TcAttachType::Ingress, "egress")];

/// Likewise of the transit programs', which may be on the same hook.
const TRANSIT_HANDLE: TcHandle = TcHandle::new(0, 0x6e71);
/// Transit programs and what their links are called.
const TRANSIT_LINKS: [(&str, &str); 2] = [(TRANSIT, "transit"), (TRANSIT_RAW, "transitraw")];

/// A program for pods that no policy selects, and how it is attached.
struct Warden {
    program: &'static str,
    hook: TcAttachType,
    handle: TcHandle,
    /// What its links are called.
    link: &'static str,
}

/// The guard, and the shield that goes with it where others share the link.
const WARDENS: [Warden; 2] = [
    Warden {
        program: GUARD,
        hook: TcAttachType::Ingress,
        handle: TcHandle::new(0, 0x6e72),
        link: "guard",
    },
    Warden {
        program: SHIELD,
        hook: TcAttachType::Egress,
        handle: TcHandle::new(0, 0x6e73),
        link: "shield",
    },
];

/// Attaches in one of the two ways.
#[derive(Debug)]
pub(crate) struct Attacher {
    is_tcx: bool,
    pins: Pins,
}

impl Attacher {
    /// Resolves `mode` for this kernel.
    pub(crate) fn new(mode: AttachMode, pins: &Pins) -> Self {
        let is_tcx = match mode {
            AttachMode::Auto => features::has_tcx(),
            AttachMode::Tcx => true,
            AttachMode::Clsact => false,
        };
        Self { is_tcx, pins: pins.clone() }
    }

    /// Where the links are pinned.
    pub(crate) fn pins(&self) -> &Pins {
        &self.pins
    }

    /// `tcx` or `clsact`.
    pub(crate) fn name(&self) -> &'static str {
        if self.is_tcx { "tcx" } else { "clsact" }
    }

    /// Puts both programs on the interface, replacing whatever this netpol had there.
    ///
    /// The name is looked up in the calling thread's network namespace, and must still belong
    /// to `ifindex`.
    pub(crate) fn attach(
        &self,
        programs: &mut Programs,
        ifindex: u32,
    ) -> Result<(), DatapathError> {
        let interface = interface_name(ifindex)?;
        for (name, hook, direction) in HOOKS {
            let what = format!("attach {name} to {interface}");
            let program = programs.program(name)?;
            let result = if self.is_tcx {
                let path = self.link_path(ifindex, direction);
                // What is denied on its way is not to be judged as if it arrived.
                let before = match hook {
                    TcAttachType::Egress => self.transit_link(ifindex),
                    _ => None,
                };
                attach_tcx(program, &interface, hook, before.as_ref(), &path)
            } else {
                require_clsact(ifindex, &interface, &what)?;
                attach_clsact(program, name, ifindex, &interface, hook, HANDLE)
            };
            result.map_err(bpf_error(what))?;
        }
        self.detach_other_mode(ifindex);
        Ok(())
    }

    /// Takes off what an agent with the other mode left: it would go on judging, and drop
    /// everything once the endpoint is gone.
    pub(crate) fn detach_other_mode(&self, ifindex: u32) {
        if self.is_tcx { detach_filters(ifindex) } else { self.detach_links(ifindex) }
    }

    /// Puts a transit program on the interface.
    pub(crate) fn attach_transit(
        &self,
        programs: &mut Programs,
        ifindex: u32,
        name: &str,
    ) -> Result<(), DatapathError> {
        let interface = interface_name(ifindex)?;
        programs.when_needed(name)?;
        programs.pin_program(&self.pins, name)?;
        let program = programs.program(name)?;
        let (hook, what) = (TcAttachType::Egress, format!("attach {name} to {interface}"));
        let result = if self.is_tcx {
            let path = self.link_path(ifindex, transit_link_name(name));
            attach_tcx(program, &interface, hook, None, &path)
        } else {
            require_clsact(ifindex, &interface, &what)?;
            attach_clsact(program, name, ifindex, &interface, hook, TRANSIT_HANDLE)
        };
        result.map_err(bpf_error(what))?;
        if self.is_tcx {
            detach_transit_filters(ifindex);
        } else {
            self.detach_transit_links(ifindex);
        }
        Ok(())
    }

    /// Puts the guard on the interface, where it sees what comes from the pod first, and where the
    /// link is shared the shield, which sees what comes to it; else takes that off.
    pub(crate) fn attach_guard(
        &self,
        programs: &mut Programs,
        ifindex: u32,
        is_shared: bool,
    ) -> Result<(), DatapathError> {
        let [guard, shield] = &WARDENS;
        self.attach_warden(programs, ifindex, guard)?;
        if is_shared {
            return self.attach_warden(programs, ifindex, shield);
        }
        self.detach_warden(ifindex, shield);
        Ok(())
    }

    fn attach_warden(
        &self,
        programs: &mut Programs,
        ifindex: u32,
        &Warden { program: name, hook, handle, link }: &Warden,
    ) -> Result<(), DatapathError> {
        let interface = interface_name(ifindex)?;
        programs.when_needed(name)?;
        programs.pin_program(&self.pins, name)?;
        let program = programs.program(name)?;
        let what = format!("attach {name} to {interface}");
        let path = self.link_path(ifindex, link);
        let result = if self.is_tcx {
            attach_tcx(program, &interface, hook, None, &path)
        } else {
            require_clsact(ifindex, &interface, &what)?;
            attach_clsact(program, name, ifindex, &interface, hook, handle)
        };
        result.map_err(bpf_error(what))?;
        // What an agent with the other mode left.
        if self.is_tcx {
            detach_warden_filters(ifindex, name, hook);
        } else {
            self.detach_link(&path);
        }
        Ok(())
    }

    /// Takes guard and shield off an interface, in whichever mode they are on.
    pub(crate) fn detach_guard(&self, ifindex: u32) {
        for warden in &WARDENS {
            self.detach_warden(ifindex, warden);
        }
    }

    fn detach_warden(&self, ifindex: u32, warden: &Warden) {
        self.detach_link(&self.link_path(ifindex, warden.link));
        detach_warden_filters(ifindex, warden.program, warden.hook);
    }

    /// Interfaces with a pinned link of a guard or a shield.
    pub(crate) fn guarded(&self) -> BTreeSet<u32> {
        let is_wardens = |name: &str| WARDENS.iter().any(|warden| warden.link == name);
        let guards = self.pinned_links().filter(|(_, _, name)| is_wardens(name));
        guards.map(|(_, ifindex, _)| ifindex).collect()
    }

    /// Whether the interface has a guard, of whichever agent and in whichever mode.
    pub(crate) fn is_guarded(&self, ifindex: u32) -> bool {
        let [guard, _] = &WARDENS;
        let has_filter = || {
            let filters = filters(ifindex, guard.hook).unwrap_or_default();
            filters.iter().any(|filter| filter.name == guard.program)
        };
        self.link_path(ifindex, guard.link).exists() || !self.is_tcx && has_filter()
    }

    /// Whether the guard still is on the interface, and the shield where the link is shared, by the
    /// ids of their programs.
    pub(crate) fn has_guard(&self, ifindex: u32, program_ids: [u32; 2], is_shared: bool) -> bool {
        let Ok(name) = interface_name(ifindex) else { return false };
        let mut wanted = WARDENS.iter().zip(program_ids).take(1 + usize::from(is_shared));
        wanted.all(|(warden, id)| self.has_program(ifindex, &name, warden.hook, id))
    }

    /// Takes transit programs off an interface, in whichever mode they are on.
    pub(crate) fn detach_transit(&self, ifindex: u32) {
        self.detach_transit_links(ifindex);
        detach_transit_filters(ifindex);
    }

    /// Takes transit programs off all interfaces that have links of them, and off these.
    pub(crate) fn detach_all_transit(&self, ifindexes: impl IntoIterator<Item = u32>) {
        for ifindex in ifindexes.into_iter().chain(self.transits()) {
            self.detach_transit(ifindex);
        }
    }

    /// Interfaces with a pinned link of a transit program.
    pub(crate) fn transits(&self) -> BTreeSet<u32> {
        let transits = self.pinned_links().filter(|(_, _, name)| is_transit_link(name));
        transits.map(|(_, ifindex, _)| ifindex).collect()
    }

    fn detach_transit_links(&self, ifindex: u32) {
        for (_, name) in TRANSIT_LINKS {
            self.detach_link(&self.link_path(ifindex, name));
        }
    }

    /// Whether the transit program (by id) still is on the interface.
    pub(crate) fn has_transit(&self, ifindex: u32, program_id: u32) -> bool {
        interface_name(ifindex)
            .is_ok_and(|name| self.has_program(ifindex, &name, TcAttachType::Egress, program_id))
    }

    /// Whether there is such an interface here.
    pub(crate) fn exists(&self, ifindex: u32) -> bool {
        interface_name(ifindex).is_ok()
    }

    fn transit_link(&self, ifindex: u32) -> Option<SchedClassifierLink> {
        let open = |name| PinnedLink::from_pin(self.link_path(ifindex, name)).ok();
        let pinned = TRANSIT_LINKS.into_iter().find_map(|(_, name)| open(name))?;
        SchedClassifierLink::try_from(FdLink::from(pinned)).ok()
    }

    /// Takes both programs off, in whichever mode they are on. An interface that is gone is fine.
    pub(crate) fn detach(&self, ifindex: u32) {
        self.detach_links(ifindex);
        detach_filters(ifindex);
    }

    /// Takes the links off.
    pub(crate) fn detach_links(&self, ifindex: u32) {
        for (_, _, direction) in HOOKS {
            self.detach_link(&self.link_path(ifindex, direction));
        }
    }

    fn detach_link(&self, path: &Path) {
        if let Ok(pinned) = PinnedLink::from_pin(path) {
            detach_now(FdLink::from(pinned));
        }
        let _ = fs::remove_file(path);
    }

    /// Switches every pinned link to the programs just loaded, each in one step, and forgets
    /// links whose interface is gone.
    pub(crate) fn adopt(&self, programs: &mut Programs) -> Result<(), DatapathError> {
        for (path, _, name) in self.pinned_links() {
            let transits = TRANSIT_LINKS.into_iter();
            let wardens = WARDENS.iter().map(|warden| (warden.program, warden.link));
            let when_needed = transits.chain(wardens).find(|(_, link)| *link == name);
            let program = match (name.as_str(), when_needed) {
                (_, Some((program, _))) => programs.when_needed(program)?,
                ("ingress", None) => programs.program(INGRESS)?,
                _ => programs.program(EGRESS)?,
            };
            replace_pinned(program, &path)
                .map_err(bpf_error(format!("replace the program of link {}", path.display())))?;
        }
        Ok(())
    }

    /// Path, interface and name of every pinned link.
    fn pinned_links(&self) -> impl Iterator<Item = (PathBuf, u32, String)> {
        let entries = fs::read_dir(self.pins.links()).into_iter().flatten().flatten();
        entries.filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let (ifindex, name) = name.split_once('-')?;
            Some((entry.path(), ifindex.parse().ok()?, name.to_owned()))
        })
    }

    /// Whether both programs (by id) are still on the interface's hooks.
    pub(crate) fn is_attached(&self, ifindex: u32, program_ids: [u32; 2]) -> bool {
        let Ok(interface) = interface_name(ifindex) else { return false };
        HOOKS
            .iter()
            .zip(program_ids)
            .all(|((_, hook, _), id)| self.has_program(ifindex, &interface, *hook, id))
    }

    fn has_program(&self, ifindex: u32, interface: &str, hook: TcAttachType, id: u32) -> bool {
        if self.is_tcx {
            SchedClassifier::query_tcx(interface, hook)
                .is_ok_and(|(_, programs)| programs.iter().any(|program| program.id() == id))
        } else {
            filter_programs(ifindex, hook).is_ok_and(|programs| programs.contains(&id))
        }
    }

    /// Whether the interface has what an agent attached for an endpoint, be it a guard, in whichever
    /// mode. A link is to this very device, and so is a filter: no other one that got its index has
    /// them. Links of devices that are gone are forgotten by [`Self::adopt`].
    pub(crate) fn is_enforced(&self, ifindex: u32) -> bool {
        let wardens = WARDENS.iter().map(|warden| (warden.program, warden.hook, warden.link));
        HOOKS.into_iter().chain(wardens).any(|(program, hook, link)| {
            self.link_path(ifindex, link).exists()
                || filters(ifindex, hook)
                    .is_ok_and(|filters| filters.iter().any(|filter| filter.name == program))
        })
    }

    /// Interfaces with a pinned link of an endpoint.
    pub(crate) fn linked(&self) -> BTreeSet<u32> {
        let is_endpoints = |name: &str| HOOKS.iter().any(|hook| hook.2 == name);
        let linked = self.pinned_links().filter(|(_, _, name)| is_endpoints(name));
        linked.map(|(_, ifindex, _)| ifindex).collect()
    }

    fn link_path(&self, ifindex: u32, direction: &str) -> PathBuf {
        self.pins.links().join(format!("{ifindex}-{direction}"))
    }
}

fn transit_link_name(program: &str) -> &'static str {
    TRANSIT_LINKS.into_iter().find(|(name, _)| *name == program).map_or("transit", |(_, link)| link)
}

fn is_transit_link(name: &str) -> bool {
    TRANSIT_LINKS.into_iter().any(|(_, link)| link == name)
}

/// Some of all interfaces, to be looked at in turn: a look at all of them takes a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    number: u32,
    of: u32,
}

impl Part {
    /// All interfaces.
    pub const ALL: Self = Self { number: 0, of: 1 };

    /// The first of so many parts.
    pub fn first_of(of: u32) -> Self {
        Self { number: 0, of }
    }

    /// The one that follows; after the last, the first.
    #[must_use]
    pub fn next(self) -> Self {
        Self { number: (self.number + 1) % self.of, ..self }
    }

    /// Whether an interface is in it.
    pub fn has(self, ifindex: u32) -> bool {
        ifindex % self.of == self.number
    }
}

/// Takes netpol's clsact filters off an interface.
fn detach_filters(ifindex: u32) {
    let Ok(interface) = interface_name(ifindex) else { return };
    let detached =
        HOOKS.map(|(program, hook, _)| detach_clsact(ifindex, &interface, hook, program));
    // Unlike a link's end, a filter's does not wait for the packets it is looking at: they would
    // meet an endpoint that is gone. The kernel always has this call.
    if detached.contains(&true) {
        let _ = grace_period();
    }
}

/// Takes clsact filters of the guard or the shield off an interface. As above, they must not meet
/// that their entry is gone.
fn detach_warden_filters(ifindex: u32, program: &str, hook: TcAttachType) {
    let Ok(interface) = interface_name(ifindex) else { return };
    if detach_clsact(ifindex, &interface, hook, program) {
        let _ = grace_period();
    }
}

/// Takes clsact filters of transit programs off an interface.
fn detach_transit_filters(ifindex: u32) {
    let Ok(interface) = interface_name(ifindex) else { return };
    for (program, _) in TRANSIT_LINKS {
        detach_clsact(ifindex, &interface, TcAttachType::Egress, program);
    }
}

/// Ids of the programs on a hook of an interface of the calling thread's network namespace: those in
/// links where the kernel has such, else those of filters.
pub fn programs_on(interface: &str, hook: TcAttachType) -> Result<Vec<u32>, DatapathError> {
    let what = || format!("list the programs on {interface}");
    if features::has_tcx() {
        let (_, programs) =
            SchedClassifier::query_tcx(interface, hook).map_err(bpf_error(what()))?;
        return Ok(programs.iter().map(ProgramInfo::id).collect());
    }
    let any = socket(AddressFamily::INET, SocketType::DGRAM, None);
    let ifindex = any.and_then(|any| name_to_index(&any, interface));
    let ifindex = ifindex.map_err(|error| io_error(what())(error.into()))?;
    filter_programs(ifindex, hook).map_err(io_error(what()))
}

fn interface_name(ifindex: u32) -> Result<String, DatapathError> {
    let any_socket = socket(AddressFamily::INET, SocketType::DGRAM, None)
        .map_err(|error| io_error("open a socket")(error.into()))?;
    index_to_name(&any_socket, ifindex)
        .map_err(|error| io_error(format!("find interface {ifindex}"))(error.into()))
}
