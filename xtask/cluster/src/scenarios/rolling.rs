//! Deployments that are replaced under load: the servers, then the clients.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use super::lab::{Lab, PATIENCE};
use super::pods::{DENY_ALL, PORT, Pod, allow, service};
use super::tally::{Outcome, Stats};
use crate::process::wait_for;

/// Connections to a Service while its Deployment is replaced, without policies and with them:
/// kube-proxy loses some by itself.
pub(super) fn servers(lab: &mut Lab) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let (lost, sent) = replace_servers(lab, "rolling-open", false, &mut Outcome::default())?;
    outcome.figure(format!("without policies: {lost} of {sent} connections lost"));
    let (lost, sent) = replace_servers(lab, "rolling-servers", true, &mut outcome)?;
    outcome.figure(format!("with policies: {lost} of {sent} connections lost"));
    Ok(outcome)
}

fn replace_servers(
    lab: &Lab,
    name: &str,
    is_isolated: bool,
    outcome: &mut Outcome,
) -> Result<(u64, u64)> {
    let space = lab.space(name)?;
    if is_isolated {
        space.apply(&format!("{DENY_ALL}{}", allow("client", "server")))?;
    }
    space.apply(&service("server", "server", ""))?;
    let to = format!("{}:{PORT}", space.cluster_ip("server")?);
    space.apply(&server().deployment("server", 3))?;
    let mut clients = String::new();
    for node in lab.cluster.nodes() {
        let client = Pod::new("client").on(node.name()).argument("--hold").probed();
        let client = client.flow("ok-tcp", "tcp-connect", &to, 20.0).flow(
            "ok-udp",
            "udp-connect",
            &to,
            20.0,
        );
        clients += &client.pod(&format!("client-{}", node.name()));
        let spy = Pod::new("spy").on(node.name()).argument("--hold").probed();
        let prefix = if is_isolated { "no" } else { "ok" };
        let spy = spy.flow(&format!("{prefix}-tcp"), "tcp-connect", &to, 10.0);
        clients += &spy.pod(&format!("spy-{}", node.name()));
    }
    space.apply(&clients)?;
    space.ready("app=server", 3)?;
    space.ready("app in (client,spy)", 2 * lab.cluster.nodes().len())?;
    lab.settle()?;
    lab.forget_drops();
    space.start_all("app in (client,spy)")?;
    sleep(Duration::from_secs(3));
    for _ in 0..2 {
        space.kubectl(&["rollout", "restart", "deployment/server"])?;
        space.kubectl(&["rollout", "status", "deployment/server", "--timeout=300s"])?;
    }
    sleep(Duration::from_secs(5));
    let (mut lost, mut sent) = (0, 0);
    for pod in space.pods("app in (client,spy)")? {
        let stats = space.stop(&pod.name)?;
        outcome.sender_beside_proxy(&stats);
        for flow in stats.flows.iter().filter(|(name, _)| name.starts_with("ok-")) {
            sent += flow.1.sent;
            lost += flow.1.sent - flow.1.answered;
        }
    }
    for pod in space.pods("app=server")? {
        let allowed: &[&str] = if is_isolated { &["client"] } else { &["client", "spy"] };
        outcome.server(&space.stats(&pod.name)?, allowed);
    }
    lab.judge_drops(outcome, name, &[("client", "server")]);
    Ok((lost, sent))
}

/// Serves on for a while after it was told to end, as rollouts without losses need it.
fn server() -> Pod {
    Pod::new("server")
        .serve()
        .argument("--drain=1")
        .container("lifecycle: {preStop: {sleep: {seconds: 8}}}")
        .probed()
}

/// Clients that are replaced, and connect from their first moment on.
pub(super) fn clients(lab: &mut Lab) -> Result<Outcome> {
    let space = lab.space("rolling-clients")?;
    space.apply(&format!("{DENY_ALL}{}", allow("client", "server")))?;
    space.apply(&service("server", "server", ""))?;
    space.apply(&server().deployment("server", 3))?;
    let to = format!("{}:{PORT}", space.cluster_ip("server")?);
    space.ready("app=server", 3)?;
    lab.settle()?;
    lab.forget_drops();
    let client = Pod::new("client").flow("ok-tcp", "tcp-connect", &to, 10.0).probed();
    let spy = Pod::new("spy").flow("no-tcp", "tcp-connect", &to, 10.0).probed();
    space.apply(&format!("{}{}", client.deployment("client", 4), spy.deployment("spy", 2)))?;
    let mut outcome = Outcome::default();
    for _ in 0..3 {
        for name in ["client", "spy"] {
            let what = format!("deployment/{name}");
            space.kubectl(&["rollout", "status", &what, "--timeout=300s"])?;
            judge_clients(&space.pods(&format!("app={name}"))?, &space, &mut outcome)?;
            space.kubectl(&["rollout", "restart", &what])?;
        }
    }
    for pod in space.pods("app=server")? {
        outcome.server(&space.stats(&pod.name)?, &["client"]);
    }
    first_packets(lab, &mut outcome);
    Ok(outcome)
}

fn judge_clients(
    pods: &[super::lab::PodView],
    space: &super::lab::Space<'_>,
    outcome: &mut Outcome,
) -> Result<()> {
    for pod in pods.iter().filter(|pod| super::lab::is_ready(pod)) {
        let mut stats = Stats::default();
        wait_for("some messages", PATIENCE, || {
            stats = space.stats(&pod.name)?;
            Ok(stats.flows.values().all(|flow| flow.sent >= 20))
        })?;
        outcome.sender(&space.stop(&pod.name)?);
    }
    Ok(())
}

/// Until a new pod's address has reached the other nodes by way of the API server, they drop what
/// comes from it: TCP asks again.
pub(super) fn first_packets(lab: &Lab, outcome: &mut Outcome) {
    let mut dropped = Outcome::default();
    lab.judge_drops(&mut dropped, "rolling-clients", &[("client", "server")]);
    outcome.figure(format!(
        "{} first packets of new pods dropped where their address was not known yet",
        dropped.wrong_drops
    ));
    outcome.figures.extend(dropped.figures);
}
