//! `cargo xtask bench latency`: how long it takes from a policy file's write (its rename into
//! place) to the first packet that is judged by it. One node with many pods and policies, a real
//! agent, and a pod that sends to another one about every 100 microseconds while the policy that
//! decides it is rewritten. Must never count a packet that an earlier edit has judged.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::agent::lab::{Agent, Lab};
use crate::agent::probe::Probe;
use crate::manifests::{self, Manifests};
use crate::report::{Report, Row, Table};
use crate::sample::{Samples, quantile};
use crate::{Options, program, progress};

/// Local pods besides the two that talk.
const PODS: u32 = 50;
/// Policies besides the one that is edited.
const POLICIES: u32 = 100;
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);
/// No packet goes there; the laboratory wires it all the same.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// Edits follow each other with these pauses.
const PAUSES: [(&str, Duration); 2] =
    [("edits apart", Duration::from_millis(150)), ("edits at once", Duration::ZERO)];
/// What the edit does to the packets.
const TURNS: [(&str, bool); 2] = [("to denied", false), ("to allowed", true)];
/// Rounds, and edits to denied and to allowed in each.
const FULL: (u32, u32) = (5, 40);
const QUICK: (u32, u32) = (2, 8);
/// Ways of attaching, and what of them somebody may take off.
const ATTACHED: [(&str, &str); 2] = [("tcx", "TCX links"), ("clsact", "the clsact qdisc")];
const MILLISECONDS: f64 = 1e3;

/// Measures.
///
/// # Errors
/// Something cannot be made, the agent complains, or an edit never comes into force.
pub fn run(options: &Options) -> Result<Report> {
    let (rounds, edits) = if options.is_quick { QUICK } else { FULL };
    let manifests = objects()?;
    let pods: Vec<Ipv4Addr> = [SERVER, CLIENT].into_iter().chain((0..PODS).map(other)).collect();
    progress::say(format_args!("a node with {} pods", pods.len()));
    let mut lab = Lab::set_up(program::netpol()?, &pods, OUTSIDE)?;
    let agent = lab.start_with("--manifests", &manifests.directory())?;
    agent.wait_ready(pods.len())?;
    let mut probe = Probe::new(&lab.pod(CLIENT)?, &lab.pod(SERVER)?, SERVER)?;
    probe.until(true, Instant::now()).context("before anything has changed")?;
    let mut rows: Vec<[Samples; 3]> = vec![Default::default(); PAUSES.len() * TURNS.len()];
    for round in 0..rounds {
        progress::say(format_args!("round {} of {rounds}", round + 1));
        for ((_, pause), rows) in PAUSES.into_iter().zip(rows.chunks_mut(TURNS.len())) {
            let times = edit_by_turns(&manifests, &mut probe, pause, edits)?;
            for (times, row) in times.into_iter().zip(rows) {
                tell(times, row)?;
            }
        }
    }
    agent.check()?;
    drop((agent, probe));
    let mut open: Vec<[Samples; 3]> = vec![Default::default(); ATTACHED.len()];
    edit(&manifests, false)?;
    for ((attach, name), row) in ATTACHED.into_iter().zip(&mut open) {
        progress::say(format_args!("{name} taken off, {rounds} rounds"));
        let agent = lab.start_attached(attach, "--manifests", &manifests.directory())?;
        agent.wait_ready(pods.len())?;
        for _ in 0..rounds {
            tell(open_times(&lab, &agent, edits / 4)?, row)?;
        }
        agent.check()?;
    }
    Ok(report(&rows, &open, options, rounds * edits))
}

/// For how many seconds packets that are denied pass when somebody takes the programs off.
fn open_times(lab: &Lab, agent: &Agent, n: u32) -> Result<Vec<f64>> {
    let mut probe = Probe::new(&lab.pod(CLIENT)?, &lab.pod(SERVER)?, SERVER)?;
    let mut times = Vec::new();
    for number in 0..n {
        // At no particular moment of the agent's second.
        probe.send_for(Duration::from_millis(300 + u64::from(number * 137 % 1_000)));
        let since = Instant::now();
        lab.take_off(agent)?;
        probe.until(true, since).context("nothing passed when the programs were off")?;
        times.push(probe.until(false, since).context("programs are not back")?.as_secs_f64());
    }
    Ok(times)
}

/// The seconds that edits took, by turn.
fn edit_by_turns(
    manifests: &Manifests,
    probe: &mut Probe,
    pause: Duration,
    edits: u32,
) -> Result<[Vec<f64>; 2]> {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..edits {
        for ((what, is_allowed), times) in TURNS.into_iter().zip(&mut times) {
            probe.send_for(pause);
            let since = Instant::now();
            edit(manifests, is_allowed)?;
            let time = probe.until(is_allowed, since).context(what)?;
            times.push(time.as_secs_f64());
        }
    }
    Ok(times)
}

/// One sample for each column.
fn tell(mut times: Vec<f64>, row: &mut [Samples; 3]) -> Result<()> {
    times.sort_by(f64::total_cmp);
    for (samples, share) in row.iter_mut().zip([0.5, 0.99, 1.0]) {
        let time = quantile(&times, share).context("invariant: there were edits")?;
        samples.push(time * MILLISECONDS);
    }
    Ok(())
}

fn report(rows: &[[Samples; 3]], open: &[[Samples; 3]], options: &Options, n_edits: u32) -> Report {
    let names = PAUSES.iter().flat_map(|(pause, _)| TURNS.map(|(turn, _)| (pause, turn)));
    let rows = names.zip(rows).map(|((pause, turn), samples)| Row {
        name: format!("{pause}, {turn}"),
        cells: samples.iter().map(Samples::figure).collect(),
    });
    let columns = ["p50 ms", "p99 ms", "max ms"].map(str::to_owned).to_vec();
    let table = Table {
        title: "from a policy file's write to the first packet judged by it".into(),
        columns: columns.clone(),
        rows: rows.collect(),
    };
    let open = ATTACHED.into_iter().zip(open).map(|((_, name), samples)| Row {
        name: name.to_owned(),
        cells: samples.iter().map(Samples::figure).collect(),
    });
    let open = Table {
        title: "denied packets pass after somebody takes the programs off a pod's interface".into(),
        columns,
        rows: open.collect(),
    };
    let pods = PODS + 2;
    Report {
        subject: "latency",
        is_quick: options.is_quick,
        tables: vec![table, open],
        goals: Vec::new(),
        plots: Vec::new(),
        notes: vec![format!(
            "{pods} pods on the node, {} policies; {n_edits} edits for each row, their percentiles \
             taken in each round.",
            POLICIES + 1
        )],
    }
}

/// Address of another pod.
fn other(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 244, 0, 100).to_bits() + number)
}

/// Every pod and policy; the one that is edited allows.
fn objects() -> Result<Manifests> {
    let files = Manifests::new()?;
    let pod = |name: &str, address, labels| {
        files.write(&format!("pod-{name}"), &manifests::pod("default", name, address, &labels))
    };
    pod("server", SERVER, json!({"app": "server"}))?;
    pod("client", CLIENT, json!({"app": "client"}))?;
    for number in 0..PODS {
        pod(&format!("other-{number}"), other(number), json!({"n": format!("n{number}")}))?;
    }
    for number in 0..POLICIES {
        let labels = |number: u32| json!({"n": format!("n{}", number % PODS)});
        let ports = json!([{"port": 8000 + number}]);
        let name = format!("other-{number}");
        let policy = policy(&name, &labels(number), &labels(number + 1), &ports);
        files.write(&format!("policy-{number}"), &policy)?;
    }
    edit(&files, true)?;
    Ok(files)
}

/// Rewrites the policy that decides.
fn edit(files: &Manifests, is_allowed: bool) -> Result<()> {
    let who = if is_allowed { "client" } else { "nobody" };
    let policy = policy("server", &json!({"app": "server"}), &json!({"app": who}), &json!([]));
    files.write("policy-server", &policy)
}

/// Those with these labels are sent to by those with the others.
fn policy(name: &str, to: &Value, from: &Value, ports: &Value) -> Value {
    let peers = json!([{"podSelector": {"matchLabels": from}}]);
    let ingress = json!([{"from": peers, "ports": ports}]);
    let spec = json!({"podSelector": {"matchLabels": to}, "ingress": ingress});
    manifests::policy("default", name, &spec)
}
