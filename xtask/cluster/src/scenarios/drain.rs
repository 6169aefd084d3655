//! A node that is drained under load, and comes back.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use super::lab::Lab;
use super::pods::{DENY_ALL, PORT, Pod, allow, service};
use super::tally::Outcome;

pub(super) fn run(lab: &mut Lab) -> Result<Outcome> {
    let space = lab.space("drain")?;
    let nodes: Vec<&str> =
        lab.cluster.nodes().iter().map(super::super::machine::Machine::name).collect();
    space.apply(&format!(
        "{DENY_ALL}{}{}",
        allow("client", "server"),
        service("server", "server", "")
    ))?;
    let spread = "topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, \
                  whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: server}}}]";
    let server = Pod::new("server")
        .serve()
        .argument("--drain=1")
        .field(spread)
        .container("lifecycle: {preStop: {sleep: {seconds: 8}}}")
        .probed();
    let budget = "\n---\napiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: server}\n\
                  spec: {maxUnavailable: 1, selector: {matchLabels: {app: server}}}\n";
    space.apply(&format!("{}{budget}", server.deployment("server", 4)))?;
    let to = format!("{}:{PORT}", space.cluster_ip("server")?);
    let client = Pod::new("client").on(nodes[0]).argument("--hold").probed();
    let client =
        client.flow("ok-tcp", "tcp-connect", &to, 30.0).flow("ok-udp", "udp-connect", &to, 30.0);
    let spy = Pod::new("spy").on(nodes[0]).argument("--hold").probed();
    let spy = spy.flow("no-tcp", "tcp-connect", &to, 10.0);
    space.apply(&format!("{}{}", client.pod("client"), spy.pod("spy")))?;
    let servers = space.ready("app=server", 4)?;
    space.ready("app in (client,spy)", 2)?;
    lab.settle()?;
    lab.forget_drops();
    space.start_all("app in (client,spy)")?;
    let moved = servers.iter().filter(|pod| pod.node == nodes[1]).count();
    let drain = [
        "drain",
        nodes[1],
        "--ignore-daemonsets",
        "--force",
        "--delete-emptydir-data",
        "--timeout=300s",
    ];
    let drained = lab.cluster.kubectl(&drain);
    let settled = drained.and_then(|_| space.ready("app=server", 4));
    sleep(Duration::from_secs(3));
    lab.cluster.kubectl(&["uncordon", nodes[1]])?;
    let servers = settled?;
    let mut outcome = Outcome::default();
    for name in ["client", "spy"] {
        outcome.sender_beside_proxy(&space.stop(name)?);
    }
    for pod in &servers {
        outcome.server(&space.stats(&pod.name)?, &["client"]);
    }
    if moved == 0 || servers.iter().any(|pod| pod.node == nodes[1]) {
        outcome.problem("no pod had to move");
    }
    outcome.figure(format!("{moved} of 4 servers moved"));
    lab.judge_drops(&mut outcome, "drain", &[("client", "server")]);
    Ok(outcome)
}
