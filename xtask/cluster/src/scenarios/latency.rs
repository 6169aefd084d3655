//! From `kubectl apply` of a policy to its being in force on every node, as packets tell.

use std::thread::sleep;
use std::time::{Duration, SystemTime};

use anyhow::Result;

use super::lab::Lab;
use super::pods::{PORT, Pod};
use super::tally::{Outcome, Stats, percentile};

const EDITS: usize = 50;
const RATE: f64 = 250.0;

/// One edit: when kubectl began and returned, in microseconds since 1970, and what it made of it.
struct Edit {
    began: u64,
    returned: u64,
    allows: bool,
}

pub(super) fn run(lab: &mut Lab) -> Result<Outcome> {
    let space = lab.space("latency")?;
    let nodes: Vec<&str> =
        lab.cluster.nodes().iter().map(super::super::machine::Machine::name).collect();
    space.apply(&policy(true))?;
    let servers: String = nodes
        .iter()
        .map(|node| Pod::new("server").on(node).serve().probed().pod(&format!("server-{node}")))
        .collect();
    space.apply(&servers)?;
    let mut client = Pod::new("client").on(nodes[0]).argument("--hold").probed();
    for server in space.ready("app=server", nodes.len())? {
        let to = format!("{}:{PORT}", server.ip);
        client = client.flow(&server.node, "udp-stream", &to, RATE);
    }
    space.apply(&client.pod("client"))?;
    space.ready("app=client", 1)?;
    lab.settle()?;
    space.start_all("app=client")?;
    sleep(Duration::from_secs(2));
    let mut edits = Vec::new();
    for number in 0..EDITS {
        let allows = number % 2 == 1;
        let began = now();
        space.apply(&policy(allows))?;
        edits.push(Edit { began, returned: now(), allows });
        sleep(Duration::from_secs(1));
    }
    sleep(Duration::from_secs(2));
    let stats = space.stop("client")?;
    Ok(judge(&stats, &edits))
}

fn judge(stats: &Stats, edits: &[Edit]) -> Outcome {
    let mut outcome = Outcome::default();
    let [mut after, mut whole] = [Vec::new(), Vec::new()];
    for (index, edit) in edits.iter().enumerate() {
        let next = edits.get(index + 1).map_or(u64::MAX, |next| next.began);
        // The last node's first packet that was judged by the new policy.
        let mut seen = Some(0);
        for (name, flow) in &stats.flows {
            let first = flow.runs.iter().find(|(at, is_answered, _)| {
                *is_answered == edit.allows && *at >= edit.began && *at < next
            });
            match first {
                Some(&(at, ..)) => seen = seen.map(|seen: u64| seen.max(at)),
                None => {
                    outcome
                        .problem(format!("edit {index} was not in force on {name} a second later"));
                    seen = None;
                }
            }
        }
        if let Some(at) = seen {
            after.push((at as f64 - edit.returned as f64) / 1_000.0);
            whole.push((at as f64 - edit.began as f64) / 1_000.0);
        }
    }
    outcome.allowed = stats.flows.values().map(|flow| flow.sent).sum();
    for (what, values) in [("returned", after), ("was started", whole)] {
        if let (Some(p50), Some(p99)) = (percentile(&values, 0.5), percentile(&values, 0.99)) {
            outcome.figure(format!(
                "{} edits; from when kubectl apply {what} to the first packet judged by it on the \
                 last node: p50 {p50:.0} ms, p99 {p99:.0} ms (a packet each {:.0} ms)",
                values.len(),
                1_000.0 / RATE
            ));
        }
    }
    outcome
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_micros() as u64
}

fn policy(allows: bool) -> String {
    let from = if allows { "client" } else { "nobody" };
    format!(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: server}}
spec:
  podSelector: {{matchLabels: {{app: server}}}}
  ingress: [{{from: [{{podSelector: {{matchLabels: {{app: {from}}}}}}}]}}]
"
    )
}

#[cfg(test)]
mod tests {
    use super::super::tally::Flow;
    use super::*;

    #[test]
    fn the_slowest_node_counts_and_what_never_comes_is_a_problem() {
        let flow =
            |runs: &[(u64, bool, u64)]| Flow { sent: 9, runs: runs.to_vec(), ..Flow::default() };
        let edit = |began, returned, allows| Edit { began, returned, allows };
        let edits = [edit(1_000, 2_000, false), edit(9_000, 10_000, true)];
        let mut stats = Stats::default();
        stats.flows.insert("a".into(), flow(&[(0, true, 5), (3_000, false, 5), (12_000, true, 1)]));
        stats.flows.insert("b".into(), flow(&[(0, true, 5), (5_000, false, 5), (11_000, true, 1)]));
        let outcome = judge(&stats, &edits);
        assert!(outcome.is_fine(), "{outcome:?}");
        assert!(outcome.figures[0].contains("p50 2 ms, p99 3 ms"), "{outcome:?}");
        stats.flows.insert("c".into(), flow(&[(0, true, 50)]));
        assert!(!judge(&stats, &edits).is_fine());
    }
}
