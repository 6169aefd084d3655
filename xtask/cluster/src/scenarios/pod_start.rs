//! Pods that send and are sent to in their first moment, under policies that change all the time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::drops::Drop as Dropped;
use super::lab::{Lab, PodView, Space};
use super::pods::{PORT, Pod};
use super::tally::{Outcome, Stats, percentile};
use crate::process::wait_for;

const SPACE: &str = "pod-start";
/// Of a starting pod, a port that nobody may reach.
const CLOSED: u16 = 8090;

/// With the CNI plugin, nothing may leak and nothing be dropped wrongly.
pub(super) fn with_plugin(lab: &mut Lab) -> Result<Outcome> {
    let (outcome, leaks) = start_pods(lab, 200)?;
    let mut outcome = outcome;
    outcome.passed += leaks.count;
    if leaks.count > 0 {
        outcome.problem(format!("{} packets or connections leaked from new pods", leaks.count));
    }
    Ok(outcome)
}

/// Without the plugin: how long new pods are open, for the docs.
pub(super) fn without_plugin(lab: &mut Lab) -> Result<Outcome> {
    const PODS: u32 = 40;
    lab.set_plugin(false)?;
    let started = start_pods(lab, PODS);
    lab.set_plugin(true)?;
    let (started, leaks) = started?;
    let mut outcome =
        Outcome { allowed: started.allowed, denied: started.denied, ..Outcome::default() };
    outcome.figure(format!(
        "without the plugin: {} of {PODS} pods leaked, {} messages in all; {} allowed packets \
         dropped; {} allowed messages lost",
        leaks.windows.len(),
        leaks.count,
        started.wrong_drops,
        started.lost,
    ));
    let of = |share| percentile(&leaks.windows, share).unwrap_or_default();
    outcome.figure(format!(
        "window from a pod's first to its last message that leaked: median {:.0} ms, most {:.0} ms",
        of(0.5),
        of(1.0)
    ));
    outcome.figures.extend(started.figures);
    Ok(outcome)
}

/// What got through that should not, and for how long.
#[derive(Debug, Default)]
struct Leaks {
    count: u64,
    /// Of each pod that leaked: milliseconds from its first to its last message that got through.
    windows: Vec<f64>,
}

fn start_pods(lab: &Lab, count: u32) -> Result<(Outcome, Leaks)> {
    let space = lab.space(SPACE)?;
    space.apply(&policies(9_000))?;
    let mut starter = Pod::new("starter").serve().argument(&format!("--serve={CLOSED}"));
    starter = starter.argument("--once").argument("--drain=4");
    for (server, forbidden) in servers(&space)? {
        let node = &server.node;
        let to = format!("{}:{PORT}", server.ip);
        starter = starter.burst(&format!("ok-{node}"), "tcp-connect", &to, 10.0, 3, 10_000);
        let to = format!("{}:{PORT}", forbidden.ip);
        starter = starter
            .burst(&format!("no-tcp-{node}"), "tcp-connect", &to, 50.0, 100, 900)
            .burst(&format!("no-udp-{node}"), "udp-connect", &to, 50.0, 100, 900);
    }
    lab.settle()?;
    lab.forget_drops();
    let is_over = AtomicBool::new(false);
    let edits = thread::scope(|scope| {
        let churn = scope.spawn(|| churn(&space, &is_over));
        let ran = run_job(&space, &starter, count);
        is_over.store(true, Ordering::Relaxed);
        let edits = churn.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        ran.and(edits)
    })?;
    judge(lab, &space, count, edits)
}

fn run_job(space: &Space<'_>, starter: &Pod, count: u32) -> Result<()> {
    space.apply(&starter.job("starter", count, 10))?;
    // A pod takes some seconds, and a machine that is busy longer.
    let patience = Duration::from_secs(180 + 6 * u64::from(count));
    wait_for("the job's pods to end", patience, || {
        let jsonpath = "jsonpath={.status.succeeded}/{.status.failed}";
        let ended = space.kubectl(&["get", "job/starter", "-o", jsonpath])?;
        let (succeeded, failed) = ended.split_once('/').unwrap_or_default();
        ensure!(failed.is_empty() || failed == "0", "{failed} pods of the job failed");
        Ok(succeeded == count.to_string())
    })
}

/// Changes what starting pods may do, in ways that do not matter to what they do.
fn churn(space: &Space<'_>, is_over: &AtomicBool) -> Result<u32> {
    let mut edits = 0;
    while !is_over.load(Ordering::Relaxed) {
        edits += 1;
        space.apply(&policies(9_000 + (edits % 2) as u16))?;
        sleep(Duration::from_millis(500));
    }
    Ok(edits)
}

/// On each node one that starting pods may talk to, and one that they may not, which takes
/// everything.
fn servers(space: &Space<'_>) -> Result<Vec<(PodView, PodView)>> {
    let mut manifests = String::new();
    let nodes = space.lab.cluster.nodes();
    for node in nodes {
        let server = Pod::new("server").on(node.name()).serve().probed();
        let server = server
            .argument(&format!("--call-back=ok-back={PORT}"))
            .argument(&format!("--call-back=no-back={CLOSED}"));
        manifests += &server.pod(&format!("server-{}", node.name()));
        let forbidden = Pod::new("forbidden").on(node.name()).serve().probed();
        manifests += &forbidden.pod(&format!("forbidden-{}", node.name()));
    }
    space.apply(&manifests)?;
    let servers = space.ready("app=server", nodes.len())?;
    let forbidden = space.ready("app=forbidden", nodes.len())?;
    Ok(servers.into_iter().zip(forbidden).collect())
}

fn judge(lab: &Lab, space: &Space<'_>, count: u32, edits: u32) -> Result<(Outcome, Leaks)> {
    let (mut outcome, mut leaks) = (Outcome::default(), Leaks::default());
    let pods = space.pods("app=starter")?;
    let [mut near, mut far] = [Vec::new(), Vec::new()];
    for pod in &pods {
        let stats = last_words(pod)?;
        count_sent(&stats, pod, &mut outcome, &mut leaks, &mut near, &mut far);
    }
    if pods.len() != count as usize {
        outcome.problem(format!("{} pods of {count} are there", pods.len()));
    }
    for pod in space.pods("app=server")? {
        let stats = space.stats(&pod.name)?;
        outcome.sender(&stats);
        outcome.server(&stats, &["starter"]);
    }
    for pod in space.pods("app=forbidden")? {
        leaks.count +=
            space.stats(&pod.name)?.received.values().map(|got| got.messages).sum::<u64>();
    }
    let first = first_packets(lab, &pods, &mut outcome);
    outcome.figure(format!("{} pods, {edits} policy edits meanwhile", pods.len()));
    outcome.figure(format!(
        "{first} first packets dropped on the other node, where the address was not known yet"
    ));
    for (what, values) in [("on its node", near), ("on another node", far)] {
        if let (Some(p50), Some(max)) = (percentile(&values, 0.5), percentile(&values, 1.0)) {
            outcome.figure(format!(
                "slowest of a new pod's first three connections {what}: median {p50:.1} ms, most \
                 {max:.0} ms"
            ));
        }
    }
    Ok((outcome, leaks))
}

/// What a pod sent; connections to its own node must not even have taken a second attempt.
fn count_sent(
    stats: &Stats,
    pod: &PodView,
    outcome: &mut Outcome,
    leaks: &mut Leaks,
    near: &mut Vec<f64>,
    far: &mut Vec<f64>,
) {
    let mut sent = Outcome::default();
    sent.sender(stats);
    // Leaks are counted by who got them.
    sent.passed = 0;
    sent.problems.retain(|text| !text.contains(" passed"));
    outcome.add(sent);
    let mut window: Option<f64> = None;
    for (name, flow) in &stats.flows {
        if name.starts_with("no-") {
            if let (Some(first), Some(last)) = (flow.first_sent_us, flow.last_answered_us) {
                let this = (last as f64 - first as f64) / 1_000.0;
                window = Some(window.unwrap_or_default().max(this));
            }
            continue;
        }
        let longest = flow.longest_us.map(|longest| longest as f64 / 1_000.0);
        match name.strip_prefix("ok-") == Some(&pod.node) {
            true => near.extend(longest),
            false => far.extend(longest),
        }
    }
    leaks.windows.extend(window);
}

/// Judges drops: those on another node than the new pod's, of what it sends, are counted, all others
/// of allowed flows are wrong.
fn first_packets(lab: &Lab, pods: &[PodView], outcome: &mut Outcome) -> u64 {
    let nodes: BTreeMap<&str, &str> =
        pods.iter().map(|pod| (pod.ip.as_str(), pod.node.as_str())).collect();
    let mut first = 0;
    for (index, dropped) in lab.take_drops(outcome) {
        let from_new = lab.is_between(&dropped, SPACE, "starter", "server");
        let to_new = lab.is_between(&dropped, SPACE, "server", "starter");
        if !from_new && !to_new || is_to(&dropped, CLOSED) {
            continue;
        }
        let here = lab.cluster.node(index).name();
        let home = dropped.source.as_ref().and_then(|end| nodes.get(end.ip.as_str()));
        if from_new && home.is_some_and(|home| *home != here) {
            first += 1;
        } else {
            outcome.wrong_drop(&dropped);
        }
    }
    first
}

fn is_to(dropped: &Dropped, port: u16) -> bool {
    dropped.destination.as_ref().is_some_and(|end| end.port == Some(port))
}

/// What a pod that has ended said at last.
fn last_words(pod: &PodView) -> Result<Stats> {
    let state = &pod.object["status"]["containerStatuses"][0]["state"]["terminated"];
    let text = state["message"].as_str();
    let text = text.with_context(|| format!("{} said nothing: {state}", pod.name))?;
    serde_json::from_str(text).with_context(|| format!("understand {}: {text}", pod.name))
}

fn policies(extra_port: u16) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: starter}}
spec:
  podSelector: {{matchLabels: {{app: starter}}}}
  policyTypes: [Ingress, Egress]
  ingress:
    - from: [{{podSelector: {{matchLabels: {{app: server}}}}}}]
      ports: [{{port: {PORT}}}, {{port: {extra_port}}}]
  egress:
    - to: [{{podSelector: {{matchLabels: {{app: server}}}}}}]
      ports: [{{port: {PORT}}}, {{port: {extra_port}}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: server}}
spec:
  podSelector: {{matchLabels: {{app: server}}}}
  policyTypes: [Ingress]
  ingress:
    - from: [{{podSelector: {{matchLabels: {{app: starter}}}}}}]
      ports: [{{port: {PORT}}}, {{port: {extra_port}}}]
"
    )
}
