//! Agents that are replaced, deleted and killed while pods talk.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use super::lab::{Lab, PATIENCE};
use super::pods::{DENY_ALL, PORT, Pod, allow};
use super::tally::Outcome;
use crate::process::{run as run_program, wait_for};

pub(super) fn run(lab: &mut Lab) -> Result<Outcome> {
    let space = lab.space("rollout")?;
    space.apply(&format!("{DENY_ALL}{}", allow("client", "server")))?;
    let nodes: Vec<&str> =
        lab.cluster.nodes().iter().map(super::super::machine::Machine::name).collect();
    let servers: String = nodes
        .iter()
        .map(|node| Pod::new("server").on(node).serve().probed().pod(&format!("server-{node}")))
        .collect();
    space.apply(&servers)?;
    let servers = space.ready("app=server", nodes.len())?;
    let mut senders = String::new();
    for node in &nodes {
        for (app, prefix) in [("client", "ok"), ("spy", "no")] {
            let mut pod = Pod::new(app).on(node).argument("--hold").probed();
            for server in &servers {
                for kind in ["tcp-stream", "udp-stream", "tcp-connect", "udp-connect"] {
                    let name = format!("{prefix}-{}-{kind}", server.node);
                    pod = pod.flow(&name, kind, &format!("{}:{PORT}", server.ip), 20.0);
                }
            }
            senders += &pod.pod(&format!("{app}-{node}"));
        }
    }
    space.apply(&senders)?;
    let selector = "app in (client,spy)";
    space.ready(selector, 2 * nodes.len())?;
    lab.settle()?;
    lab.forget_drops();
    space.start_all(selector)?;
    sleep(Duration::from_secs(3));
    let replaced = replace_agents(lab);
    sleep(Duration::from_secs(3));
    let mut outcome = Outcome::default();
    for stats in space.stop_all(selector, &mut outcome)? {
        if stats.name.starts_with("client") {
            let segments = stats.retransmitted.unwrap_or(u64::MAX);
            outcome.figure(format!("{}: {segments} TCP segments sent again", stats.name));
        }
    }
    replaced?;
    for pod in space.pods("app=server")? {
        outcome.server(&space.stats(&pod.name)?, &["client"]);
    }
    lab.judge_drops(&mut outcome, "rollout", &[("client", "server")]);
    outcome.figure("agents restarted by rollout, deleted, killed, and given another image");
    Ok(outcome)
}

fn replace_agents(lab: &Lab) -> Result<()> {
    let kubectl = |arguments: &[&str]| lab.cluster.kubectl(arguments).map(drop);
    kubectl(&["rollout", "restart", "ds/netpol", "-n", "netpol"])?;
    lab.agents_ready()?;
    kubectl(&["delete", "pods", "--all", "-n", "netpol"])?;
    lab.agents_ready()?;
    for old in lab.agents()? {
        run_program(std::process::Command::new("kill").args(["-s", "KILL", &old.to_string()]))?;
        wait_for(
            "the agent to end",
            PATIENCE,
            || Ok(!Path::new(&format!("/proc/{old}")).exists()),
        )?;
    }
    wait_for("other agents", PATIENCE, || Ok(lab.agents().is_ok()))?;
    lab.settle()?;
    lab.agents_ready()?;
    other_image(lab)
}

/// The same image under another name, as an upgrade brings.
fn other_image(lab: &Lab) -> Result<()> {
    let jsonpath = "jsonpath={.spec.template.spec.containers[0].image}";
    let image = lab.cluster.kubectl(&["get", "ds/netpol", "-n", "netpol", "-o", jsonpath])?;
    for node in lab.cluster.nodes() {
        let mut command = node.command("ctr");
        command.args(["-n", "k8s.io", "images", "tag", "--force", &image, "localhost/netpol:next"]);
        run_program(&mut command)?;
    }
    for name in ["localhost/netpol:next", &image] {
        let set = format!("netpol={name}");
        lab.cluster.kubectl(&["set", "image", "ds/netpol", &set, "-n", "netpol"])?;
        lab.agents_ready()?;
    }
    Ok(())
}
