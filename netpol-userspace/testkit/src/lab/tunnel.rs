//! What carries packets from node to node in an overlay. VXLAN, which this machine's kernel has,
//! unless the environment names another one, as inside other kernels (`cargo xtask test kernels`).

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use netpol_isolation::netns::Netns;

use super::wiring::{MTU, main_addresses};
use crate::world::ip;

/// The name of the device on each node.
pub const DEVICE: &str = "tunnel0";
/// The variable that names a kind.
const VARIABLE: &str = "NETPOL_TUNNEL";
const PORT: u16 = 51_820;

/// A kind of tunnel, over IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tunnel {
    Vxlan,
    /// Carries IPv4 only.
    Ipip,
    Gre,
    WireGuard,
}

impl Tunnel {
    pub fn chosen() -> Self {
        match std::env::var(VARIABLE).as_deref() {
            Err(_) | Ok("vxlan") => Self::Vxlan,
            Ok("ipip") => Self::Ipip,
            Ok("gre") => Self::Gre,
            Ok("wireguard") => Self::WireGuard,
            Ok(other) => panic!("{VARIABLE}: there is no tunnel {other}"),
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::Ipip => "ipip",
            Self::Gre => "gre",
            Self::WireGuard => "wireguard",
        }
    }

    /// What fits into a packet of the network below.
    pub fn mtu(self) -> u32 {
        let overhead = match self {
            Self::Vxlan => 50,
            Self::Ipip => 20,
            Self::Gre => 24,
            // As it takes for both families of the network below.
            Self::WireGuard => 80,
        };
        MTU - overhead
    }

    /// The device on a node, up and without addresses; `[number, other]` are the nodes.
    pub(super) fn create(self, node: &Netns, [number, other]: [usize; 2]) {
        let [local, remote] = [number, other].map(|node| main_addresses(node)[0].clone());
        let details = match self {
            Self::Vxlan => format!("id 42 dstport 4789 dev eth0 local {local} remote {remote}"),
            Self::Ipip | Self::Gre => format!("local {local} remote {remote} ttl 64"),
            Self::WireGuard => String::new(),
        };
        let kind = self.kind();
        let line = format!("link add {DEVICE} type {kind} {details}");
        let output = run(node, "ip", &line, "");
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!said.contains("Unknown device type"), "missing feature: {kind}: {said}");
            panic!("ip {line}: {said}");
        }
        if self == Self::WireGuard {
            let peer = String::from_utf8(run(node, "wg", "pubkey", &key(other)).stdout).unwrap();
            let line = format!(
                "set {DEVICE} listen-port {PORT} private-key /dev/stdin peer {} \
                 endpoint {remote}:{PORT} allowed-ips 0.0.0.0/0,::/0",
                peer.trim()
            );
            let output = run(node, "wg", &line, &key(number));
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        ip(node, &format!("link set {DEVICE} mtu {} up", self.mtu()));
    }
}

/// A node's key, which nobody has to guess: 32 bytes with its number in each, in base 64.
fn key(node: usize) -> String {
    let word = ["AQEB", "AgIC"][node - 1];
    format!("{}{}=\n", word.repeat(10), &word[..3])
}

fn run(node: &Netns, program: &str, arguments: &str, input: &str) -> Output {
    let run = || {
        let mut command = Command::new(program);
        command.args(arguments.split_whitespace()).stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    node.run(run).unwrap()
}
