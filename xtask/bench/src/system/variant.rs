//! The ways to filter that are compared. Must never let one be measured that does not filter:
//! each is tried first, with what it has to deny too.

use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow};
use netpol_isolation::netns::Netns;

use super::enforcer::{self, Attached, Selected};
use super::pair::{Pair, Wiring};
use super::population::Population;
use super::tools::set;
use super::{kube_router, nftables};

/// A way to filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// Nothing at all.
    Bare,
    /// On a bridge: nothing, and bridged packets never meet netfilter.
    WithoutNetfilter,
    /// Programs that do nothing, where netpol has its own.
    EmptyProgram,
    /// The kernel's connection tracking, which nodes with kube-proxy pay for anyway.
    Conntrack,
    /// nftables as kube-network-policies.
    OneSet,
    /// nftables as Calico.
    Chains,
    /// iptables and ipset as kube-router.
    KubeRouter,
    /// netpol.
    Netpol,
    /// netpol, and no policy selects the pods.
    Unselected,
}

impl Variant {
    /// As tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bare => "no filter",
            Self::WithoutNetfilter => "no filter, no br_netfilter",
            Self::EmptyProgram => "empty tcx programs",
            Self::Conntrack => "kernel conntrack only",
            Self::OneSet => "nftables, one set (kube-network-policies)",
            Self::Chains => "nftables, chains (Calico)",
            Self::KubeRouter => "iptables + ipset (kube-router)",
            Self::Netpol => "netpol",
            Self::Unselected => "netpol, pods not selected",
        }
    }

    /// Whether policies are enforced.
    pub fn is_filter(self) -> bool {
        self == Self::Netpol || self.is_peer()
    }

    /// Whether it is another's way to enforce them.
    pub fn is_peer(self) -> bool {
        matches!(self, Self::OneSet | Self::Chains | Self::KubeRouter)
    }
}

/// Two pods with one way to filter between them.
pub struct Site {
    pub variant: Variant,
    pub population: Population,
    pub pair: Pair,
    /// Dropped first: its namespace must still be there.
    _programs: Option<Keeper>,
}

impl Site {
    /// Connects the pods and puts the filter in force. `bpffs` is where netpol may pin.
    pub fn new(
        wiring: Wiring,
        variant: Variant,
        population: Population,
        bpffs: &Path,
    ) -> Result<Self> {
        let pair = Pair::connect(wiring)?;
        let programs = install(&pair, wiring, variant, population, bpffs).with_context(|| {
            format!("cannot set up \"{}\" with {} policies", variant.name(), population.policies)
        })?;
        Ok(Self { variant, population, pair, _programs: programs })
    }
}

fn install(
    pair: &Pair,
    wiring: Wiring,
    variant: Variant,
    population: Population,
    bpffs: &Path,
) -> Result<Option<Keeper>> {
    let node = &pair.node;
    let bpffs = bpffs.to_owned();
    let keep = |selected| {
        enforcer::add_other_interfaces(node)?;
        Keeper::start(node, move || enforcer::enforce(&bpffs, wiring, population, selected))
    };
    match variant {
        Variant::Bare => {}
        Variant::WithoutNetfilter => set(node, &[("bridge/bridge-nf-call-iptables", "0")])?,
        Variant::EmptyProgram => return Keeper::start(node, enforcer::attach_nothing).map(Some),
        Variant::Conntrack => nftables::install_conntrack(node)?,
        Variant::OneSet => nftables::install_set(node, population)?,
        Variant::Chains => nftables::install_chains(node, population)?,
        Variant::KubeRouter => kube_router::install(node, population)?,
        Variant::Netpol => return keep(Selected::Both).map(Some),
        Variant::Unselected => return keep(Selected::Neither).map(Some),
    }
    Ok(None)
}

/// A thread in the node's namespace that holds what was attached there, and takes it off there.
struct Keeper {
    end: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    fn start(
        node: &Netns,
        attach: impl FnOnce() -> Result<Attached> + Send + 'static,
    ) -> Result<Self> {
        let (end, ended) = mpsc::channel::<()>();
        let (told, outcome) = mpsc::channel();
        let thread = node.spawn("keeper", move || {
            let (attached, result) = match attach() {
                Ok(attached) => (Some(attached), Ok(())),
                Err(error) => (None, Err(error)),
            };
            // Whoever started this waits for it; if it has gone, the end comes next.
            let _ = told.send(result);
            let _ = ended.recv();
            drop(attached);
        })?;
        let keeper = Self { end: Some(end), thread: Some(thread) };
        outcome.recv().map_err(|_| anyhow!("attaching programs panicked"))??;
        Ok(keeper)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            // It has nothing to say any more.
            let _ = thread.join();
        }
    }
}
