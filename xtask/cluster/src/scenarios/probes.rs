//! The kubelet's probes under default deny: they come from the node, which may always talk to its
//! own pods.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use super::lab::{Lab, PodView};
use super::pods::{DENY_ALL, HEALTH_PORT, PORT, Pod};
use super::tally::Outcome;

pub(super) fn run(lab: &mut Lab) -> Result<Outcome> {
    let space = lab.space("probes")?;
    space.apply(DENY_ALL)?;
    lab.settle()?;
    lab.forget_drops();
    let mut manifests = String::new();
    for node in lab.cluster.nodes() {
        manifests += &probed().on(node.name()).pod(&format!("probed-{}", node.name()));
    }
    space.apply(&manifests)?;
    let count = lab.cluster.nodes().len();
    let before = space.ready("app=probed", count)?;
    let target = before[0].ip.clone();
    let spies: String = lab
        .cluster
        .nodes()
        .iter()
        .map(|node| {
            let spy = Pod::new("spy").on(node.name());
            let spy =
                spy.flow("no-health", "tcp-connect", &format!("{target}:{HEALTH_PORT}"), 10.0);
            spy.flow("no-tcp", "tcp-connect", &format!("{target}:{PORT}"), 10.0)
                .pod(&format!("spy-{}", node.name()))
        })
        .collect();
    space.apply(&spies)?;
    space.ready("app=spy", count)?;
    sleep(Duration::from_secs(30));
    let mut outcome = Outcome::default();
    space.stop_all("app=spy", &mut outcome)?;
    for (before, after) in before.iter().zip(space.pods("app=probed")?) {
        outcome.allowed += 30;
        let (old, new) = (steadiness(before), steadiness(&after));
        if old != new {
            outcome.problem(format!("{} was not ready all the time: {old} then {new}", after.name));
        }
    }
    outcome.figure("30 s of five probes a second on each pod");
    // Nothing at all may come from the node, whose packets have no name of a pod.
    lab.judge_drops(&mut outcome, "probes", &[("", "probed")]);
    Ok(outcome)
}

/// All kinds of probes that need no other program.
fn probed() -> Pod {
    let http = format!("httpGet: {{path: /healthz, port: {HEALTH_PORT}}}");
    let often = "periodSeconds: 1, timeoutSeconds: 10";
    Pod::new("probed")
        .serve()
        .container(&format!("startupProbe: {{{http}, {often}, failureThreshold: 100}}"))
        .container(&format!("livenessProbe: {{tcpSocket: {{port: {PORT}}}, {often}}}"))
        .container(&format!("readinessProbe: {{{http}, {often}, failureThreshold: 1}}"))
}

/// Since when it is ready, and how often it was started.
fn steadiness(pod: &PodView) -> String {
    let status = &pod.object["status"];
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.into_iter().find(|condition| condition["type"] == "Ready");
    let ready = ready.unwrap_or_default();
    format!(
        "{} since {}, {} restarts",
        ready["status"],
        ready["lastTransitionTime"],
        status["containerStatuses"][0]["restartCount"]
    )
}
