//! Programs on interfaces as filters of a clsact qdisc, beside those of others. Must never touch a filter
//! or a qdisc of others.

use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::{Link as _, ProgramError, SchedClassifier, TcAttachType};

use super::error::{DatapathError, bpf_error, io_error};
use super::filters::{Filter, Hooks, filters, hooks};
use super::load::TRANSITS;

/// Sees to a clsact qdisc on the interface. Fails where the kernel would put a filter for the
/// egress hook on the ingress hook.
///
/// One that is there is left alone, whoever made it, and it is never taken off again: for either
/// the kernel takes an interface that is up out of service for a moment, and drops what is under
/// way. An empty one does nothing.
pub(crate) fn require_clsact(
    ifindex: u32,
    interface: &str,
    what: &str,
) -> Result<(), DatapathError> {
    match hooks(ifindex).map_err(io_error(format!("{what}: list the qdiscs of {interface}")))? {
        Hooks::Clsact => Ok(()),
        Hooks::None => match tc::qdisc_add_clsact(interface) {
            Ok(()) | Err(TcError::AlreadyAttached) => Ok(()),
            // Somebody else was quicker.
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {
                Ok(())
            }
            Err(error) => Err(bpf_error(what)(error)),
        },
        Hooks::Ingress => Err(DatapathError::Missing(format!(
            "{what}: it has an ingress qdisc, where the kernel has no place for a program that \
             sees what leaves by it; have whoever made it use clsact instead (`tc qdisc del dev \
             {interface} ingress`, `tc qdisc add dev {interface} clsact`), or use TCX"
        ))),
    }
}

/// Priorities to try: one of them is free, or belongs to filters that ours can stand beside.
const PRIORITIES: std::ops::RangeInclusive<u16> = 1..=64;

/// Where a filter of this name is to be among those that are there, in the order in which they run:
/// the first priority to try, and what stands at a wrong place and has to go afterwards.
///
/// Filters run by their priorities, and of equal ones the newest first. What is denied on its way is
/// not to be judged as if it arrived, so all others stand behind the transit programs'.
fn place<'a>(filters: &'a [Filter], name: &str) -> (u16, Option<&'a Filter>) {
    let is_transit = |name: &str| TRANSITS.contains(&name);
    let own = filters.iter().position(|filter| filter.name == name);
    let ahead = filters.iter().rposition(|filter| is_transit(&filter.name) && !is_transit(name));
    match (own.map(|at| &filters[at]), ahead.map(|at| &filters[at])) {
        (Some(here), _) if ahead < own => (here.priority, None),
        (misplaced, Some(transit)) => {
            (transit.priority.saturating_add(1).min(*PRIORITIES.end()), misplaced)
        }
        (_, None) => (*PRIORITIES.start(), None),
    }
}

/// Attaches as a filter of the interface's clsact qdisc, in place of the one that has this handle.
pub(crate) fn attach_clsact(
    program: &mut SchedClassifier,
    name: &str,
    ifindex: u32,
    interface: &str,
    hook: TcAttachType,
    handle: TcHandle,
) -> Result<(), ProgramError> {
    let filters = filters(ifindex, hook).map_err(TcError::IoError)?;
    let (first, misplaced) = place(&filters, name);
    for priority in first..=*PRIORITIES.end() {
        // The kernel wants to be told whether to replace or to create.
        let existing = SchedClassifierLink::attached(interface, hook, priority, handle, None)
            .map_err(TcError::IoError)?;
        let attached = match program.attach_to_link(existing) {
            Err(error) if os_error(&error) == Some(libc::ENOENT) => {
                let options = NlOptions { priority, handle, ..NlOptions::default() };
                program.attach_with_options(interface, hook, TcAttachOptions::Netlink(options))
            }
            result => result,
        };
        match attached {
            Ok(id) => {
                // Dropping the link would take the filter off.
                std::mem::forget(program.take_link(id)?);
                if let Some(filter) = misplaced {
                    detach_filter(filter, interface, hook);
                }
                return Ok(());
            }
            // Someone else's filters of another kind or protocol have this priority.
            Err(error)
                if os_error(&error) == Some(libc::EINVAL) && priority < *PRIORITIES.end() => {}
            Err(error) => return Err(error),
        }
    }
    unreachable!("invariant: the last priority returns")
}

/// Removes our filters from the hook, whatever their priority. Returns whether there were any.
pub(crate) fn detach_clsact(
    ifindex: u32,
    interface: &str,
    hook: TcAttachType,
    program: &str,
) -> bool {
    // Not by aya's search for a name, which fails at filters of certain other kinds.
    let filters = filters(ifindex, hook).unwrap_or_default();
    let ours: Vec<_> = filters.into_iter().filter(|filter| filter.name == program).collect();
    for filter in &ours {
        detach_filter(filter, interface, hook);
    }
    !ours.is_empty()
}

fn detach_filter(filter: &Filter, interface: &str, hook: TcAttachType) {
    let Filter { priority, handle, name: program, .. } = filter;
    let handle = TcHandle::new(handle.major, handle.minor);
    let link = SchedClassifierLink::attached(interface, hook, *priority, handle, None);
    if let Err(error) = link
        .map_err(|error| error.to_string())
        .and_then(|link| link.detach().map_err(|error| error.to_string()))
    {
        tracing::warn!(interface, program, error, "cannot remove a filter");
    }
}

fn os_error(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::NetlinkError(error) | ProgramError::TcError(TcError::NetlinkError(error)) => {
            error.raw_os_error()
        }
        _ => None,
    }
}
