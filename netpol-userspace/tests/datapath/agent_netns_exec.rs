//! An agent started by `ip netns exec`, which hides the host's bpffs under a /sys of its own: what
//! it pins must be on the host's all the same, and outlive it. Needs root and the eBPF object.

use std::process::{Child, Command};

use netpol_datapath::Pins;
use netpol_testkit::rig::{Cleanup, ip, unique_bpffs};

/// A named namespace and an agent in it, gone at the end.
struct Started {
    netns: String,
    agent: Child,
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
        let _ = Command::new("ip").args(["netns", "del", &self.netns]).status();
    }
}

#[test]
fn pins_are_on_the_hosts_bpffs_and_stay_there() {
    let pins = Pins::new(unique_bpffs());
    let _cleanup = Cleanup(pins.clone());
    let dir = tempfile::tempdir().unwrap();
    let (manifests, run_dir) = (dir.path().join("manifests"), dir.path().join("run"));
    std::fs::create_dir(&manifests).unwrap();
    let netns = format!("netpol-exec-{}", std::process::id());
    ip(&format!("netns add {netns}"));
    let netpol = env!("CARGO_BIN_EXE_netpol");
    let agent = Command::new("ip")
        .args(["netns", "exec", &netns, netpol, "agent", "--node-name", "node-1"])
        .args(["--metrics-address", "off", "--manifests"])
        .arg(&manifests)
        .arg("--bpffs")
        .arg(&pins.bpffs)
        .arg("--run-dir")
        .arg(&run_dir)
        .spawn()
        .unwrap();
    let mut started = Started { netns, agent };
    let status = Command::new(netpol)
        .args(["status", "--wait", "--timeout", "60s", "--run-dir"])
        .arg(&run_dir)
        .status()
        .unwrap();
    assert!(status.success(), "the agent is ready");
    assert!(pins.exist(), "its pins are seen from here");
    started.agent.kill().unwrap();
    started.agent.wait().unwrap();
    assert!(pins.exist(), "and outlive it");
}
