//! `cargo xtask bench load`: what a namespace pays that has very much of something, and what others
//! pay for it. For each kind of thing: how long an agent takes to begin with it and the memory that
//! it needs, an edit among it, and how long others' edits take while it is being compiled. Each is
//! a curve over four sizes: where it is straight, cost follows what is there. Must never count an
//! edit that the agent had not read yet.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::agent::lab::{FirstSync, Lab};
use crate::agent::probe::Probe;
use crate::agent::{MEBIBYTE, p50_p99, row, table};
use crate::manifests::{self, Manifests};
use crate::report::{Goal, Limit, Line, Plot, Report};
use crate::sample::Samples;
use crate::{Options, program, progress};

mod floods;

use floods::{Kind, NAMESPACE};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);
/// The first of the tenant's pods; the others follow.
const TENANT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 0);
/// No packet goes there; the laboratory wires it all the same.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// Shares of the whole for which a kind is measured.
const SHARES: [u32; 4] = [8, 4, 2, 1];
/// Edits of the tenant's own, among all the rest.
const N_EDITS: usize = 10;
/// Pause between others' edits while the tenant's objects are compiled.
const PAUSE: Duration = Duration::from_millis(10);
const MILLISECOND: f64 = 1e-3;

/// How much is measured.
struct Plan {
    n_rounds: usize,
    /// Sizes are divided by this.
    divisor: u32,
    /// How many pods the tenant has; with the last number only the whole is measured.
    n_pods: &'static [u32],
}

const FULL: Plan = Plan { n_rounds: 2, divisor: 1, n_pods: &[1, 110] };
const QUICK: Plan = Plan { n_rounds: 1, divisor: 50, n_pods: &[1] };

/// What the rounds gave for one size of one kind.
#[derive(Default)]
struct Cell {
    ready: Samples,
    processor: Samples,
    peak: Samples,
    edit: Samples,
    in_force: Samples,
    others: [Samples; 2],
}

/// What a curve is of.
type Column = fn(&Cell) -> &Samples;

impl Cell {
    /// What is known by now, for whoever waits.
    fn brief(&self) -> String {
        let median = |samples: &Samples| samples.figure().map_or(f64::NAN, |figure| figure.median);
        format!(
            "to ready {:.1} s, peak {:.0} MiB, in force {:.2} s, others' edits {:.0} ms at p99",
            median(&self.ready),
            median(&self.peak),
            median(&self.in_force),
            median(&self.others[1]),
        )
    }
}

/// Measures.
///
/// # Errors
/// Something cannot be made, the agent complains, or something never comes into force.
pub fn run(options: &Options) -> Result<Report> {
    let plan = if options.is_quick { QUICK } else { FULL };
    let most = plan.n_pods.iter().max().copied().unwrap_or_default();
    let pods: Vec<Ipv4Addr> = [SERVER, CLIENT].into_iter().chain((0..most).map(tenant)).collect();
    progress::say(format_args!("a node with {} pods", pods.len()));
    let mut lab = Lab::set_up(program::netpol()?, &pods, OUTSIDE)?;
    let mut found: Vec<(u32, Kind, u32, Cell)> = Vec::new();
    for &n_pods in plan.n_pods {
        let shares = if n_pods == 1 { &SHARES[..] } else { &SHARES[SHARES.len() - 1..] };
        for kind in Kind::ALL {
            let sizes = shares.iter().map(|share| (kind.whole() / plan.divisor / share).max(1));
            found.extend(sizes.map(|n| (n_pods, kind, n, Cell::default())));
        }
    }
    for round in 1..=plan.n_rounds {
        for (n_pods, kind, n, cell) in &mut found {
            progress::say(format_args!(
                "round {round} of {}, {n_pods} pods: {n} {}",
                plan.n_rounds,
                kind.name()
            ));
            measure(&mut lab, *n_pods, *kind, *n, cell)
                .with_context(|| format!("{n_pods} pods, {n} {}", kind.name()))?;
            progress::say(format_args!("  {}", cell.brief()));
        }
    }
    Ok(tell(options, &found))
}

/// Address of one of the tenant's pods.
fn tenant(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(TENANT.to_bits() + number)
}

/// One agent's life: begins with everything, has edits, loses and gets everything.
fn measure(lab: &mut Lab, n_pods: u32, kind: Kind, n: u32, cell: &mut Cell) -> Result<()> {
    let files = objects(n_pods)?;
    let mut flood = kind.objects(n);
    files.write("flood", &manifests::list(flood.clone()))?;
    let agent = lab.start_with("--manifests", &files.directory())?;
    let n_endpoints = 2 + n_pods as usize;
    let FirstSync { elapsed, processor, peak, .. } = agent.wait_ready(n_endpoints)?;
    cell.ready.push(elapsed.as_secs_f64());
    cell.processor.push(processor.as_secs_f64());
    cell.peak.push(peak as f64 / MEBIBYTE);

    let (client, own) = (lab.pod(CLIENT)?, lab.pod(TENANT)?);
    let mut door = Probe::new(&client, &own, TENANT)?;
    let mut times = Vec::new();
    for _ in 0..N_EDITS {
        for opens in [true, false] {
            let since = Instant::now();
            files.write("door", &entrance("door", opens))?;
            times.push(door.until(opens, since).context("an edit among the tenant's own")?);
        }
    }
    cell.edit.push(p50_p99(&times, MILLISECOND)[0]);

    // What is read together is in force together: when this one is, all the rest is gone.
    for opens in [true, false] {
        files.write("flood", &entrance("flood-door", opens))?;
        door.until(opens, Instant::now()).context("without what is much")?;
    }
    agent.wait_ready(n_endpoints)?;
    flood.push(entrance("flood-door", true));
    let mut others = Probe::new(&client, &lab.pod(SERVER)?, SERVER)?;
    let is_over = AtomicBool::new(false);
    let times = std::thread::scope(|scope| -> Result<Vec<Duration>> {
        let editing = scope.spawn(|| edit_until(&files, &mut others, &is_over));
        let since = Instant::now();
        let in_force = files
            .write("flood", &manifests::list(flood))
            .and_then(|()| door.until(true, since).context("what the tenant wrote"));
        is_over.store(true, Ordering::SeqCst);
        cell.in_force.push(in_force?.as_secs_f64());
        editing.join().map_err(|_| anyhow::anyhow!("others' edits have panicked"))?
    })?;
    for (share, samples) in p50_p99(&times, MILLISECOND).iter().zip(&mut cell.others) {
        samples.push(*share);
    }
    agent.wait_ready(n_endpoints)?;
    agent.check()
}

/// Others' edits, one after the other; the time that each took to the first packet.
fn edit_until(files: &Manifests, probe: &mut Probe, is_over: &AtomicBool) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    while !is_over.load(Ordering::SeqCst) || times.is_empty() {
        for opens in [false, true] {
            let since = Instant::now();
            files.write("others", &others(opens))?;
            times.push(probe.until(opens, since).context("an edit of another namespace")?);
            probe.send_for(PAUSE);
        }
    }
    Ok(times)
}

// === Telling ===

fn tell(options: &Options, found: &[(u32, Kind, u32, Cell)]) -> Report {
    let mut report = Report {
        subject: "load",
        is_quick: options.is_quick,
        tables: Vec::new(),
        goals: Vec::new(),
        plots: Vec::new(),
        notes: vec![
            "To ready: from the agent's start with everything there. In force: from the write of \
             everything, at a running agent, to the first packet judged by it; others' edits are \
             made meanwhile."
                .into(),
        ],
    };
    let mut all = table(
        "One namespace with very much of something",
        &[
            "to ready, s",
            "processor, s",
            "peak, MiB",
            "an edit, ms",
            "in force, s",
            "others p50, ms",
            "others p99, ms",
        ],
    );
    for (n_pods, kind, n, cell) in found {
        let [p50, p99] = &cell.others;
        let columns =
            [&cell.ready, &cell.processor, &cell.peak, &cell.edit, &cell.in_force, p50, p99];
        let pods = if *n_pods == 1 { "1 pod".to_owned() } else { format!("{n_pods} pods") };
        all.rows.push(row(format!("{pods}, {n} {}", kind.name()), columns.map(Clone::clone)));
    }
    report.tables.push(all);
    let columns: [(&str, &str, Column); 3] = [
        ("load-in-force", "seconds to in force", |cell| &cell.in_force),
        ("load-memory", "MiB at the peak", |cell| &cell.peak),
        ("load-others", "ms, 99th percentile of others' edits", |cell| &cell.others[1]),
    ];
    for (file, y, samples) in columns {
        report.plots.push(plot(found, file, y, samples));
    }
    report.goals = goals(found);
    report
}

/// Each kind as a line over the share of its whole, on one pod.
fn plot(found: &[(u32, Kind, u32, Cell)], file: &str, y: &str, samples: Column) -> Plot {
    let line = |kind: Kind| {
        let cells = found.iter().filter(|(n_pods, of, ..)| *n_pods == 1 && *of == kind);
        let point = |(_, _, n, cell): &(u32, Kind, u32, Cell)| {
            let x = 100.0 * f64::from(*n) / f64::from(kind.whole());
            samples(cell).figure().map(|figure| (x, figure.median))
        };
        Line {
            name: format!("{} {}", kind.whole(), kind.name()),
            points: cells.filter_map(point).collect(),
        }
    };
    Plot {
        file: file.to_owned(),
        title: "One namespace with very much of something".to_owned(),
        x: "percent of it".to_owned(),
        y: y.to_owned(),
        lines: Kind::ALL.into_iter().map(line).collect(),
    }
}

fn goals(found: &[(u32, Kind, u32, Cell)]) -> Vec<Goal> {
    let mut goals = Vec::new();
    for (n_pods, kind, n, cell) in found.iter().filter(|(n_pods, ..)| *n_pods == 1) {
        let is_whole = *n == kind.whole();
        let what = format!("{n_pods} pod, {n} {}", kind.name());
        let mut goal = |measure: &str, samples: &Samples, limit| {
            goals.extend(samples.figure().map(|seen| Goal {
                measure: format!("{what}: {measure}"),
                seen,
                limit: Limit::AtMost(limit),
                best_peer: None,
            }));
        };
        match kind {
            Kind::Policies if is_whole => {
                goal("first sync, s", &cell.ready, 2.0);
                goal("peak, MiB", &cell.peak, 150.0);
                goal("one edit among them, ms", &cell.edit, 50.0);
            }
            Kind::Blocks if is_whole => {
                goal("in force, s", &cell.in_force, 3.0);
                goal("peak, MiB", &cell.peak, 200.0);
            }
            _ => {}
        }
        if is_whole {
            goal("others' edits meanwhile, p99, ms", &cell.others[1], 200.0);
        }
    }
    goals
}

// === Objects ===

/// The pods and what decides between them, without what is much.
fn objects(n_pods: u32) -> Result<Manifests> {
    let files = Manifests::new()?;
    let mut pods = vec![
        manifests::pod("default", "server", SERVER, &json!({"app": "server"})),
        manifests::pod("default", "client", CLIENT, &json!({"app": "client"})),
    ];
    let own = |i: u32| manifests::pod(NAMESPACE, &format!("pod-{i}"), tenant(i), &json!({}));
    pods.extend((0..n_pods).map(own));
    files.write("pods", &manifests::list(pods))?;
    files.write("others", &others(true))?;
    files.write("door", &entrance("door", false))?;
    Ok(files)
}

/// Another namespace's policy, which is edited.
fn others(opens: bool) -> serde_json::Value {
    let from =
        json!([{"podSelector": {"matchLabels": {"app": if opens { "client" } else { "x" }}}}]);
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "server"}}, "ingress": [{"from": from}],
    });
    manifests::policy("default", "server", &spec)
}

/// A policy of the tenant that lets the client in, or nobody.
fn entrance(name: &str, opens: bool) -> serde_json::Value {
    let cidr = if opens { CLIENT } else { OUTSIDE };
    let from = json!([{"ipBlock": {"cidr": format!("{cidr}/32")}}]);
    let spec = json!({"podSelector": {}, "ingress": [{"from": from}]});
    manifests::policy(NAMESPACE, name, &spec)
}
