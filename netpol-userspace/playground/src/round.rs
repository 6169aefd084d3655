//! One round of probes: every ordered pair of hosts and every port, in each family both have.
//! Must never report a difference after one look only.

use std::io::IsTerminal;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::expect::Expectations;
use super::outcome::Outcome;
use super::plan::{Host, Place};
use super::probe::{self, Answer, Observed, Patience, Probe};
use super::session::{progress, seconds};
use super::wiring::Network;

/// Tries every pair and port; what is not as expected is looked at a second time.
pub(crate) async fn probe_all(
    network: &Network,
    hosts: &[Host],
    expectations: &Expectations,
) -> Result<Vec<Outcome>> {
    let begun = Instant::now();
    let (mut outcomes, probes) = prepare(network, hosts, expectations)?;
    let all: Vec<usize> = (0..probes.len()).collect();
    let answers = look(&mut outcomes, &probes, &all, Patience::FIRST).await?;
    again_if_slow(&mut outcomes, &probes, &answers).await?;
    let differing: Vec<usize> =
        all.into_iter().filter(|&index| outcomes[index].differs()).collect();
    if !differing.is_empty() {
        look(&mut outcomes, &probes, &differing, Patience::SECOND).await?;
        let n_real = differing.iter().filter(|&&index| outcomes[index].differs()).count();
        progress(&format!(
            "{} probes were not as expected at first, {n_real} still are not",
            differing.len()
        ));
    }
    progress(&format!("{} probes in {}", probes.len(), seconds(begun)));
    Ok(outcomes)
}

fn prepare(
    network: &Network,
    hosts: &[Host],
    expectations: &Expectations,
) -> Result<(Vec<Outcome>, Vec<Probe>)> {
    let (mut outcomes, mut probes) = (Vec::new(), Vec::new());
    for (from, to, source, destination) in pairs(hosts) {
        let (client, server) = (&hosts[from], &hosts[to]);
        for port in &server.ports {
            let expected = expectations.allows(client, source, server, destination, port)?;
            let observed = Observed::Blocked;
            let port = port.clone();
            probes.push(Probe {
                space: network.space(client)?.clone(),
                source,
                destination: (destination, port.number).into(),
                protocol: port.protocol,
                server: server.to_string(),
                expected,
            });
            outcomes.push(Outcome { from, to, source, destination, port, expected, observed });
        }
    }
    Ok((outcomes, probes))
}

/// How many probes a round has.
pub fn n_probes(hosts: &[Host]) -> usize {
    pairs(hosts).map(|(_, to, _, _)| hosts[to].ports.len()).sum()
}

/// Who tries to reach whom: client and server as indices, and an address of each, once for each
/// family that both have. What hosts outside do among themselves concerns nobody.
fn pairs(hosts: &[Host]) -> impl Iterator<Item = (usize, usize, IpAddr, IpAddr)> {
    let all = 0..hosts.len();
    let ordered = all.clone().flat_map(move |from| all.clone().map(move |to| (from, to)));
    let is_outside = |index: usize| hosts[index].place == Place::Outside;
    let tried = ordered.filter(move |&(from, to)| !(is_outside(from) && is_outside(to)));
    tried.flat_map(move |(from, to)| {
        hosts[from].addresses.iter().flat_map(move |&source| {
            let same = move |address: &&IpAddr| address.is_ipv4() == source.is_ipv4();
            let destinations = hosts[to].addresses.iter().filter(same);
            destinations.map(move |&destination| (from, to, source, destination))
        })
    })
}

/// Tries the chosen probes and writes down what they saw.
async fn look(
    outcomes: &mut [Outcome],
    probes: &[Probe],
    chosen: &[usize],
    patience: Patience,
) -> Result<Vec<Answer>> {
    let total = chosen.len();
    let show = std::io::stderr().is_terminal();
    let count = move |done: usize| {
        if show && (done.is_multiple_of(50) || done == total) {
            eprint!("\rprobing {done}/{total}{}", if done == total { "\r\x1b[K" } else { "" });
        }
    };
    let selected = chosen.iter().map(|&index| probes[index].clone()).collect();
    let answers = probe::run_all(selected, patience, count).await?;
    for (&index, answer) in chosen.iter().zip(&answers) {
        outcomes[index].observed = answer.observed.clone();
    }
    Ok(answers)
}

/// On a machine where answers came late, silence may have been lateness: it is tried again with
/// time enough for the slowest answer seen.
async fn again_if_slow(
    outcomes: &mut [Outcome],
    probes: &[Probe],
    answers: &[Answer],
) -> Result<()> {
    let answered = answers.iter().filter(|answer| answer.observed == Observed::Allowed);
    let slowest = answered.map(|answer| answer.took).max().unwrap_or(Duration::ZERO);
    if slowest <= Patience::FIRST.blocked / 2 {
        return Ok(());
    }
    let silent: Vec<usize> = (0..outcomes.len())
        .filter(|&index| !outcomes[index].expected && outcomes[index].observed == Observed::Blocked)
        .collect();
    if silent.is_empty() {
        return Ok(());
    }
    progress(&format!(
        "answers took up to {} ms: looking again at {} silent connections",
        slowest.as_millis(),
        silent.len()
    ));
    let patience =
        Patience { blocked: slowest * 4, at_once: Patience::FIRST.at_once / 2, ..Patience::FIRST };
    look(outcomes, probes, &silent, patience).await?;
    Ok(())
}
