//! What ClusterNetworkPolicies cost the compiler, beside the same cluster without them: a hundred of
//! 25 rules over thousands of namespaces. Must never measure what carries the plans out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use netpol_compile::{Compiler, EndpointId, Plan};
use netpol_model::{
    Action, Change, ClusterPolicy, ClusterRule, IpBlock, Labels, Namespace, NamespaceScope,
    ObjectName, Operator, Peer, Peers, Pod, PortMatch, PortRange, Ports, Protocol, Requirement,
    Selector, Str, Subject, Tier,
};

use crate::agent::{p50_p99, row, table};
use crate::report::{Goal, Limit, Report};
use crate::sample::Samples;
use crate::{Options, progress};

/// How large the cluster is.
#[derive(Clone, Copy)]
struct Size {
    namespaces: usize,
    /// In each namespace.
    pods: usize,
    policies: usize,
    /// Of this node, each in a namespace of its own.
    endpoints: usize,
    edits: usize,
    rounds: usize,
}

const FULL: Size =
    Size { namespaces: 5_000, pods: 20, policies: 100, endpoints: 110, edits: 100, rounds: 5 };
const QUICK: Size =
    Size { namespaces: 200, pods: 5, policies: 10, endpoints: 10, edits: 10, rounds: 2 };

/// The rules of each policy and direction.
const RULES: usize = 25;
/// How many teams namespaces are of.
const TEAMS: usize = 100;
/// About how many steps are done at a time, as the agent does.
const SLICE: usize = 500;
const MILLISECOND: f64 = 1e-3;

#[derive(Default)]
struct Found {
    /// Everything at once, as at the start.
    first: Samples,
    /// One edit, at the 50th and 99th percentile.
    edit: [Samples; 2],
    /// The longest slice of an edit.
    slice: Samples,
    rows: Samples,
}

/// Measures.
///
/// # Errors
/// None so far: all of it is arithmetic.
pub fn run(options: &Options) -> Result<Report> {
    let size = if options.is_quick { QUICK } else { FULL };
    let mut found: BTreeMap<usize, Found> = BTreeMap::new();
    for round in 1..=size.rounds {
        for n_policies in [0, size.policies] {
            progress::say(format_args!(
                "round {round} of {}: {} pods, {n_policies} ClusterNetworkPolicies",
                size.rounds,
                size.namespaces * size.pods
            ));
            measure(size, n_policies, found.entry(n_policies).or_default());
        }
    }
    Ok(tell(options, size, &found))
}

fn measure(size: Size, n_policies: usize, found: &mut Found) {
    let mut compiler = Compiler::new();
    let policies = (0..n_policies).map(|number| Change::ClusterPolicy(policy(number, 0)));
    let changes: Vec<Change> = objects(size).chain(policies).collect();
    let since = Instant::now();
    let mut plan = compiler.apply_all(changes);
    let endpoints = (0..size.endpoints).map(|number| {
        let id = u16::try_from(number + 1).unwrap_or(u16::MAX);
        (EndpointId(id), ObjectName::new(namespace(number), "pod-0"))
    });
    plan.extend(compiler.set_endpoints(endpoints));
    found.first.push(since.elapsed().as_secs_f64());
    #[expect(clippy::cast_precision_loss, reason = "few")]
    found.rows.push(compiler.tables().rows.len() as f64);
    if n_policies == 0 {
        return;
    }
    let (mut times, mut slices) = (Vec::new(), Vec::new());
    for edit in 0..size.edits {
        let since = Instant::now();
        compiler.enqueue([Change::ClusterPolicy(policy(edit % n_policies, edit + 1))]);
        while compiler.is_behind() {
            let begun = Instant::now();
            let _carried_out: Plan = compiler.slice(SLICE);
            slices.push(begun.elapsed());
        }
        times.push(since.elapsed());
        // What the edit left behind is tidied up when nobody waits.
        while compiler.has_work() {
            compiler.slice(SLICE);
        }
        compiler.free_numbers();
    }
    for (share, samples) in p50_p99(&times, MILLISECOND).iter().zip(&mut found.edit) {
        samples.push(*share);
    }
    let longest = slices.into_iter().max().unwrap_or(Duration::ZERO);
    found.slice.push(longest.as_secs_f64() / MILLISECOND);
}

fn tell(options: &Options, size: Size, found: &BTreeMap<usize, Found>) -> Report {
    let columns = ["first compile, s", "edit p50, ms", "edit p99, ms", "longest slice, ms", "rows"];
    let mut all = table("The compiler alone", &columns);
    for (n_policies, Found { first, edit: [p50, p99], slice, rows }) in found {
        let name = format!("{n_policies} ClusterNetworkPolicies");
        all.rows.push(row(name, [first, p50, p99, slice, rows].map(Clone::clone)));
    }
    let last = found.values().next_back();
    let seen = last.and_then(|found| found.edit[1].figure());
    let goal = seen.map(|seen| Goal {
        measure: format!("{} policies, an edit, p99, ms", size.policies),
        seen,
        limit: Limit::AtMost(20.0),
        best_peer: None,
    });
    Report {
        subject: "tiers",
        is_quick: options.is_quick,
        tables: vec![all],
        goals: goal.into_iter().collect(),
        plots: Vec::new(),
        notes: vec![format!(
            "{} namespaces of {} teams, {} pods in each; {} pods of this node, in as many \
             namespaces; {RULES} rules in each direction of each policy, half of all namespaces \
             its subject. An edit: one rule of one policy, until all plans for it are there.",
            size.namespaces, TEAMS, size.pods, size.endpoints
        )],
    }
}

// === Objects ===

fn namespace(number: usize) -> Str {
    format!("namespace-{number}").into()
}

fn team(number: usize) -> String {
    format!("team-{}", number % TEAMS)
}

fn objects(size: Size) -> impl Iterator<Item = Change> {
    (0..size.namespaces).flat_map(move |number| {
        let name = namespace(number);
        let half = if number.is_multiple_of(2) { "even" } else { "odd" };
        let labels =
            [("kubernetes.io/metadata.name", &*name), ("team", &team(number / 2)), ("half", half)]
                .into_iter()
                .collect::<Labels>();
        let pods = (0..size.pods).map(move |index| Change::Pod(pod(number, index, size.pods)));
        [Change::Namespace(Namespace { name, labels })].into_iter().chain(pods)
    })
}

fn pod(number: usize, index: usize, n_pods: usize) -> Pod {
    let id = ObjectName::new(namespace(number), format!("pod-{index}").as_str());
    let address = 0x0a00_0000 + u32::try_from(number * n_pods + index).unwrap_or_default();
    Pod {
        uid: id.to_string().as_str().into(),
        labels: Labels::from_iter([("app", format!("app-{index}").as_str())]),
        id,
        node: None,
        addresses: vec![IpAddr::from(address.to_be_bytes())].into(),
        host_network: false,
        finished: false,
        running: true,
        ports: [].into(),
        annotations: None,
        created: 0,
    }
}

fn is(key: &str, value: &str) -> Selector {
    let operator = Operator::In(vec![value.into()]);
    Selector::new([Requirement { key: key.into(), operator }])
}

/// Policy `number` as it is after so many edits.
fn policy(number: usize, n_edits: usize) -> ClusterPolicy {
    let rules: Vec<ClusterRule> = (0..RULES).map(|place| rule(number, place, n_edits)).collect();
    let half = if number.is_multiple_of(2) { "even" } else { "odd" };
    ClusterPolicy {
        name: format!("policy-{number}").into(),
        tier: if number % 4 == 3 { Tier::Baseline } else { Tier::Admin },
        priority: u16::try_from(number).unwrap_or_default(),
        subject: Subject { namespaces: is("half", half), pods: Selector::everything() },
        ingress: rules.clone(),
        egress: rules,
    }
}

fn rule(number: usize, place: usize, n_edits: usize) -> ClusterRule {
    let peer = match place % 5 {
        4 => Peer::Block(IpBlock {
            cidr: format!("172.16.{}.{}/32", number % 256, place).parse().expect("a block"),
            except: Vec::new(),
        }),
        _ => Peer::Pods {
            namespaces: NamespaceScope::Matching(is("team", &team(number + 7 * place))),
            pods: is("app", &format!("app-{}", place % 20)),
        },
    };
    let action = [Action::Deny, Action::Accept, Action::Pass][(number + place) % 3];
    // An edit is another port of one rule.
    let edited = if place == n_edits % RULES { n_edits } else { 0 };
    let port = u16::try_from(1_000 + place + 25 * (edited % 1_000)).unwrap_or_default();
    let range = PortRange::Numbers(port, port);
    ClusterRule {
        name: None,
        action,
        peers: Peers::Only([peer].into()),
        ports: Ports::Only(vec![PortMatch { protocol: Protocol::Tcp, range }]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quick_run_has_every_figure() {
        let report = run(&Options { is_quick: true }).expect("a report");
        let [without, with] = &report.tables[0].rows[..] else { panic!("{report:?}") };
        assert!(without.cells[0].is_some() && without.cells[1].is_none());
        assert!(with.cells.iter().all(Option::is_some), "{with:?}");
        // Without policies no set has a row.
        assert!(with.cells[4].as_ref().is_some_and(|rows| rows.median > 0.0), "{with:?}");
    }
}
