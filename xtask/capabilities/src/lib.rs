//! `cargo xtask capabilities`: tries each thing that the tests and the playground do to the
//! kernel, in namespaces of its own, and names what does not work and what to do about it.
//!
//! A test that cannot run must be a clear failure at the start, never a skip.

use std::io;
use std::process::{Command, ExitCode};
use std::thread;

use anyhow::{Result, anyhow};
use netpol_needs::Need;
use netpol_run::{self as run, find_program, is_root};

mod probe;

/// The loopback device's index in every network namespace.
const LOOPBACK: u32 = 1;

/// One thing that has to work.
struct Probe {
    name: &'static str,
    try_it: fn() -> Result<()>,
    advice: &'static str,
    /// Without it the later probes would fail for its lack, or touch the machine itself.
    isolates: bool,
    /// Only who has this need needs it.
    only_for: Option<Need>,
}

const PROBES: &[Probe] = &[
    Probe {
        name: "root",
        try_it: root,
        advice: "run as root: sudo -E cargo xtask test",
        isolates: true,
        only_for: None,
    },
    Probe {
        name: "network and mount namespaces (unshare)",
        try_it: || Ok(probe::own_namespaces()?),
        advice: "a container needs CAP_SYS_ADMIN, and a seccomp profile that allows unshare",
        isolates: true,
        only_for: None,
    },
    Probe {
        name: "veth interfaces",
        try_it: || tool("ip", &["link", "add", "xa", "type", "veth", "peer", "name", "xb"]),
        advice: "needs CAP_NET_ADMIN, iproute2 and the kernel module veth (modprobe veth)",
        isolates: false,
        only_for: None,
    },
    Probe {
        name: "bridges",
        try_it: || tool("ip", &["link", "add", "xbr", "type", "bridge"]),
        advice: "needs CAP_NET_ADMIN and the kernel module bridge (modprobe bridge)",
        isolates: false,
        only_for: None,
    },
    Probe {
        name: "bridged packets that meet netfilter (br_netfilter)",
        try_it: bridge_netfilter,
        advice: "needs the kernel module br_netfilter (modprobe br_netfilter)",
        isolates: false,
        only_for: Some(Need::Translation),
    },
    Probe {
        name: "VXLAN interfaces",
        try_it: || {
            let what = "link add xvx type vxlan id 7 dstport 4789 local 127.0.0.1 remote 127.0.0.2";
            tool("ip", &what.split(' ').collect::<Vec<_>>())
        },
        advice: "needs CAP_NET_ADMIN and the kernel module vxlan (modprobe vxlan)",
        isolates: false,
        only_for: None,
    },
    Probe {
        name: "BPF maps",
        try_it: || Ok(probe::bpf_map()?),
        advice: "needs CAP_BPF (or CAP_SYS_ADMIN) and CONFIG_BPF_SYSCALL",
        isolates: false,
        only_for: None,
    },
    Probe {
        name: "BPF classifier programs",
        try_it: || probe::bpf_program().map(drop).map_err(Into::into),
        advice: "needs CAP_BPF and CAP_NET_ADMIN, and CONFIG_NET_CLS_BPF",
        isolates: false,
        only_for: None,
    },
    Probe {
        name: "TCX attachment",
        try_it: || Ok(probe::tcx(LOOPBACK)?),
        advice: "needs Linux 6.6 or newer; netpol itself falls back to clsact, but its tests try both",
        isolates: false,
        only_for: None,
    },
    Probe {
        name: "clsact attachment",
        try_it: || tool("tc", &["qdisc", "add", "dev", "lo", "clsact"]),
        advice: "needs CAP_NET_ADMIN and the kernel module sch_ingress (modprobe sch_ingress)",
        isolates: false,
        only_for: None,
    },
    Probe {
        name: "address translation (nftables, iptables)",
        try_it: translation,
        advice: "needs CAP_NET_ADMIN and the kernel's nf_tables, nf_nat, and iptables' nat table \
                 (modprobe nf_tables nft_chain_nat iptable_nat)",
        isolates: false,
        only_for: Some(Need::Translation),
    },
    Probe {
        name: "sets of addresses (ipset)",
        try_it: address_sets,
        advice: "needs CAP_NET_ADMIN and the kernel's IP sets, and iptables' match for them \
                 (modprobe ip_set_hash_ip xt_set)",
        isolates: false,
        only_for: Some(Need::Translation),
    },
    Probe {
        name: "the BPF filesystem",
        try_it: bpf_filesystem,
        advice: "needs CAP_SYS_ADMIN; in a container also an LSM profile that allows mount",
        isolates: false,
        only_for: None,
    },
];

/// Options of `capabilities`.
#[derive(clap::Args)]
pub struct Args {
    /// For tests with these needs only [default: for all]
    #[arg(value_parser = need)]
    needs: Vec<Need>,
    /// For tests that need nothing
    #[arg(long, conflicts_with = "needs")]
    bare: bool,
}

fn need(name: &str) -> Result<Need, String> {
    let all = || Need::ALL.map(Need::name).join(", ");
    Need::of_name(name).ok_or_else(|| format!("there are {}", all()))
}

/// Prints what works, what does not, and what to do about it.
///
/// # Errors
/// It could not be tried.
pub fn command(args: &Args) -> Result<ExitCode> {
    let probes = match (args.needs.as_slice(), args.bare) {
        ([], false) => probes(&Need::ALL),
        (needs, _) => probes(needs),
    };
    let results = try_all(&probes)?;
    for (probe, result) in probes.iter().zip(&results) {
        match result {
            Ok(()) => run::say(format_args!("ok         {}", probe.name)),
            Err(error) => run::say(format_args!(
                "missing    {}: {error:#}\n           {}",
                probe.name, probe.advice
            )),
        }
    }
    for probe in &probes[results.len()..] {
        run::say(format_args!("not tried  {}", probe.name));
    }
    let complete = results.iter().all(Result::is_ok);
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Fails with the names of what this machine or user cannot do of what is needed.
///
/// # Errors
/// As said; or it could not be tried.
pub fn require(needs: &[Need]) -> Result<()> {
    let probes = probes(needs);
    let mut text = String::from("the tests need what this machine or user does not have:");
    let mut complete = true;
    for (probe, result) in probes.iter().zip(try_all(&probes)?) {
        if let Err(error) = result {
            complete = false;
            text.push_str(&format!("\n  {}: {error:#}\n    {}", probe.name, probe.advice));
        }
    }
    if complete { Ok(()) } else { Err(anyhow!(text)) }
}

/// Those that matter to who has these needs.
fn probes(needs: &[Need]) -> Vec<&'static Probe> {
    let matters = |probe: &&Probe| probe.only_for.is_none_or(|need| needs.contains(&need));
    PROBES.iter().filter(matters).collect()
}

/// Runs the probes on one thread, whose namespaces, and all that was made in them, end with it.
/// There are fewer results than probes if one failed that the later ones must not go without.
fn try_all(probes: &[&'static Probe]) -> Result<Vec<Result<()>>> {
    let probes = probes.to_vec();
    let thread = thread::spawn(move || {
        let mut results = Vec::new();
        for probe in probes {
            let result = (probe.try_it)();
            let stop = result.is_err() && probe.isolates;
            results.push(result);
            if stop {
                break;
            }
        }
        results
    });
    thread.join().map_err(|_| anyhow!("the thread that tries the kernel's features panicked"))
}

fn root() -> Result<()> {
    if is_root() { Ok(()) } else { Err(anyhow!("this process runs as an ordinary user")) }
}

/// Runs a tool. A child starts in the network namespace of the thread that starts it.
fn tool(program: &str, arguments: &[&str]) -> Result<()> {
    let path = find_program(program)
        .ok_or_else(|| anyhow!("the program `{program}` is missing; run `cargo xtask setup`"))?;
    let mut command = Command::new(path);
    command.args(arguments);
    run::output(command, "").map(drop)
}

fn translation() -> Result<()> {
    tool("nft", &["add table ip xn; add chain ip xn c { type nat hook prerouting priority 0; }"])?;
    tool("iptables", &["-t", "nat", "-A", "PREROUTING", "-j", "ACCEPT"])?;
    tool("ip6tables", &["-t", "nat", "-A", "PREROUTING", "-j", "ACCEPT"])?;
    tool("conntrack", &["--version"])
}

/// As kube-router filters, which benchmarks compare with.
fn address_sets() -> Result<()> {
    tool("ipset", &["create", "xn", "hash:ip"])?;
    tool("iptables", &["-A", "FORWARD", "-m", "set", "--match-set", "xn", "src", "-j", "ACCEPT"])
}

/// Its switch exists once per network namespace, if the module is there at all.
fn bridge_netfilter() -> Result<()> {
    let path = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    std::fs::write(path, "1").map_err(|error| anyhow!("{path}: {error}"))
}

fn bpf_filesystem() -> Result<()> {
    let mount = |arguments: &[&str]| {
        let mut command = Command::new("mount");
        command.args(arguments);
        run::output(command, "").map(drop)
    };
    mount(&["--make-rprivate", "/"])?;
    let dir = std::env::temp_dir().join(format!("netpol-xtask-bpffs-{}", std::process::id()));
    std::fs::create_dir(&dir).map_err(|e: io::Error| anyhow!("{}: {e}", dir.display()))?;
    let mounted = mount(&["-t", "bpf", "bpf", &dir.to_string_lossy()]);
    if mounted.is_ok() {
        let mut unmount = Command::new("umount");
        unmount.arg(&dir);
        run::output(unmount, "")?;
    }
    std::fs::remove_dir(&dir).map_err(|e| anyhow!("{}: {e}", dir.display()))?;
    mounted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probing_leaves_no_interface_and_no_mount_behind() {
        let state = || {
            let interfaces = std::fs::read_to_string("/proc/net/dev").expect("procfs");
            let names: Vec<String> = interfaces
                .lines()
                .filter_map(|l| Some(l.split_once(':')?.0.trim().to_owned()))
                .collect();
            assert!(
                !names.iter().any(|n| ["xa", "xb", "xbr", "xvx"].contains(&n.as_str())),
                "{names:?}"
            );
            let mounts = std::fs::read_to_string("/proc/self/mounts").expect("procfs");
            let mine = format!("netpol-xtask-bpffs-{}", std::process::id());
            assert!(!mounts.contains(&mine), "{mounts}");
        };
        state();
        let all = probes(&Need::ALL);
        let results = try_all(&all).expect("the probing thread ends");
        assert!(results.len() == PROBES.len() && results.iter().all(Result::is_ok), "{results:?}");
        state();
    }

    #[test]
    fn what_only_some_need_is_asked_only_of_them() {
        assert!(probes(&[]).iter().all(|probe| probe.only_for.is_none()));
        assert!(probes(&[]).len() < probes(&[Need::Translation]).len());
    }

    #[test]
    fn every_probe_says_what_to_do() {
        for probe in PROBES {
            assert!(!probe.advice.is_empty() && !probe.name.is_empty());
        }
    }
}
