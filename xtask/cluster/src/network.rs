//! What joins the machines: an underlay bridge in the control plane's namespace, and VXLAN or routes
//! between the nodes' pods. Also what the nodes' CNI plugins are told. Must never touch an interface
//! of the host.

use std::fmt::Write as _;
use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::addresses::{self, NodeAddresses};
use crate::machine::Machine;

/// How packets get from one node's pods to another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// In VXLAN between the nodes, as flannel does by default.
    #[default]
    BridgeVxlan,
    /// By routes on the underlay.
    BridgeRoutes,
}

/// Debian's plugins that a node gets.
const PLUGINS: [&str; 5] = ["bridge", "host-local", "loopback", "portmap", "ptp"];
const PLUGIN_DIRECTORIES: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// The underlay's bridge, with the control plane on it.
pub(crate) fn connect_control(control: &Machine) -> Result<()> {
    let (ipv4, ipv6) = addresses::CONTROL;
    batch(
        control,
        &format!(
            "link add underlay type bridge\naddress add {ipv4}/24 dev underlay\n\
             address add {ipv6}/64 dev underlay nodad\nlink set underlay up\n"
        ),
    )
}

/// Joins a node to the underlay, and its pods to those of the others, of which there are `count`
/// in all.
pub(crate) fn connect_node(
    control: &Machine,
    node: &Machine,
    own: NodeAddresses,
    count: u8,
    network: Network,
) -> Result<()> {
    let (gateway4, gateway6) = addresses::CONTROL;
    let (ipv4, ipv6) = own.node();
    let (pods4, pods6) = own.pods();
    let (pid, port) = (node.pid(), node.name());
    // The same as before a restart, as a machine's is: others still know it.
    let ethernet = format!("02:00:00:00:01:{:02x}", own.0);
    let remove = control.command("ip").args(["link", "delete", port]).output();
    remove.context("start nsenter (package util-linux)")?;
    batch(
        control,
        &format!(
            "link add {port} type veth peer name eth0 address {ethernet} netns {pid}\n\
             link set {port} master underlay up\n\
             route replace {pods4} via {ipv4}\nroute replace {pods6} via {ipv6}\n"
        ),
    )?;
    let mut lines = format!(
        "link set eth0 up\naddress add {ipv4}/24 dev eth0\naddress add {ipv6}/64 dev eth0 nodad\n\
         route add default via {gateway4}\nroute add default via {gateway6}\n"
    );
    if network == Network::BridgeVxlan {
        let (vxlan4, vxlan6) = own.vxlan();
        let ethernet = format!("02:00:00:00:02:{:02x}", own.0);
        write!(
            lines,
            "link add vxlan0 address {ethernet} mtu 1450 type vxlan id 1 dstport 8472 local {ipv4} dev eth0\n\
             address add {vxlan4}/24 dev vxlan0\naddress add {vxlan6}/64 dev vxlan0 nodad\n\
             link set vxlan0 up\n"
        )?;
    }
    let others = (0..count).map(NodeAddresses).filter(|other| *other != own);
    for other in others.clone() {
        let (pods4, pods6) = other.pods();
        let (via4, via6) = match network {
            Network::BridgeVxlan => other.vxlan(),
            Network::BridgeRoutes => other.node(),
        };
        writeln!(lines, "route add {pods4} via {via4}\nroute add {pods6} via {via6}")?;
    }
    batch(node, &lines)?;
    if network == Network::BridgeVxlan {
        for other in others {
            let (peer, _) = other.node();
            let mut command = node.command("bridge");
            command.args(["fdb", "append", "00:00:00:00:00:00", "dev", "vxlan0", "dst"]);
            crate::process::run(command.arg(peer.to_string()))?;
        }
    }
    Ok(())
}

/// Puts the plugins and their configuration on a node's disk.
pub(crate) fn install_plugins(node: &Machine, own: NodeAddresses, network: Network) -> Result<()> {
    for plugin in PLUGINS {
        let to = node.home().join("opt/cni/bin").join(plugin);
        let from = PLUGIN_DIRECTORIES.map(|directory| format!("{directory}/{plugin}"));
        let from = from.iter().find(|path| fs::exists(path).unwrap_or_default());
        let from = from.with_context(|| {
            format!(
                "there is no CNI plugin {plugin} in {}: install containernetworking-plugins",
                PLUGIN_DIRECTORIES.join(" or ")
            )
        })?;
        fs::copy(from, &to).with_context(|| format!("copy {from} to {}", to.display()))?;
    }
    let directory = node.home().join("etc/cni/net.d");
    let file = directory.join("10-bridge.conflist");
    if file.exists() {
        // A node that boots again finds on its disk what was added there.
        return Ok(());
    }
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory)?;
    let text = serde_json::to_string_pretty(&conflist(own, network))?;
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))
}

fn conflist(own: NodeAddresses, network: Network) -> serde_json::Value {
    let (pods4, pods6) = own.pods();
    let mtu = if network == Network::BridgeVxlan { 1450 } else { 1500 };
    json!({
        "cniVersion": "1.0.0",
        "name": "cluster",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isDefaultGateway": true,
                "hairpinMode": true,
                "ipMasq": false,
                "mtu": mtu,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/cni-ipam",
                    "ranges": [[{ "subnet": pods4 }], [{ "subnet": pods6 }]],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
}

/// Runs lines of `ip` in a machine's network namespace, where process numbers are the host's.
fn batch(machine: &Machine, lines: &str) -> Result<()> {
    use std::io::Write as _;
    let mut child = Command::new("nsenter")
        .args(["--target", &machine.pid().to_string(), "--net", "--", "ip", "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start nsenter")?;
    child.stdin.take().context("no standard input")?.write_all(lines.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "cannot set up the network of {}: {}\n{lines}",
        machine.name(),
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(())
}
