//! A packet that is being judged while edits are put in force: it reads the endpoint's policy
//! sets, then classes, then rows, and any number of steps may be taken in between. As the
//! programs do, it reads the policy sets again at the end and starts over if they have changed.
//! Whatever the interleaving, its verdict must be that of one of the states it lived in. All of
//! it on the compiler's plans, without a kernel.

use netpol_testkit::tables::TakeStep as _;
use std::collections::BTreeMap;
use std::net::IpAddr;

use netpol_compile::{ClassId, EndpointId, Row, SetId, Step, Tables};
use netpol_model::Direction;
use netpol_testkit::generate::Rng;
use netpol_testkit::generate::world::{Probe, Size};

use netpol_testkit::truth::{Cluster, Edit, Local};

const CLUSTERS: u64 = 6;
/// Windows of edits per cluster, and edits in each: a packet may be held up for longer than one.
const WINDOWS: usize = 12;
const EDITS: usize = 2;
const PROBES: usize = 16;

type Rows = BTreeMap<(SetId, ClassId), Row>;

/// The tables at each moment of a window, rows aside: they never change, and outlive the packets
/// that may still look for them.
struct Film {
    moments: Vec<Tables>,
    rows: Rows,
}

impl Film {
    fn new(mut tables: Tables) -> Self {
        let rows = std::mem::take(&mut tables.rows);
        Self { moments: vec![tables], rows }
    }

    fn take(&mut self, step: &Step) {
        let mut tables = self.moments.last().unwrap().clone();
        match step {
            Step::AddRow(set, class, row) => {
                self.rows.insert((*set, *class), row.clone());
                return;
            }
            Step::RemoveRow(..) | Step::Rejudge(_) => return,
            step => tables.take_step(step).unwrap(),
        }
        self.moments.push(tables);
    }

    /// The verdict by the endpoint's sets of one moment and the classes and Services of another.
    fn verdict(&self, sets: usize, classes: usize, question: &Question) -> bool {
        let Question { endpoint, direction, probe } = question;
        let sets = self.moments[sets].endpoints[endpoint];
        let set = match direction {
            Direction::Ingress => sets.ingress,
            Direction::Egress => sets.egress,
        };
        if set == SetId::NONE {
            return true;
        }
        let class = self.moments[classes].class_of(probe.remote);
        let row = self.rows.get(&(set, class)).or_else(|| self.rows.get(&(set, ClassId::NONE)));
        row.is_some_and(|row| row.allows(probe.protocol, probe.port))
    }
}

#[derive(Debug, Clone, Copy)]
struct Question {
    endpoint: EndpointId,
    direction: Direction,
    probe: Probe,
}

/// How often something happened.
#[derive(Debug, Default)]
struct Tally {
    judged: u64,
    again: u64,
    /// Starting over was what made it right: it would have been dropped, or passed.
    saved: [u64; 2],
}

/// Tries every interleaving of one question with a film of which these moments are completed
/// states.
fn try_all(film: &Film, states: &[usize], question: &Question, tally: &mut Tally) {
    let last = film.moments.len() - 1;
    let sets_at = |moment: usize| film.moments[moment].endpoints[&question.endpoint];
    let truth = |moment: usize| film.verdict(moment, moment, question);
    for begin in 0..=last {
        for read in begin..=last {
            tally.judged += 1;
            let verdict = film.verdict(begin, read, question);
            let lived_in = states.iter().copied().filter(|&state| {
                // The state that was complete when it began, and those completed meanwhile, and
                // the one that was being made at the end.
                let next = states.iter().position(|&other| other > read);
                let until = next.map_or(last, |index| states[index]);
                let from = states.iter().rev().find(|&&other| other <= begin).copied().unwrap();
                (from..=until).contains(&state)
            });
            let is_right = lived_in.clone().any(|state| truth(state) == verdict);
            if sets_at(begin) != sets_at(read) {
                // It starts over.
                tally.again += 1;
                tally.saved[usize::from(verdict)] += u64::from(!is_right);
                continue;
            }
            assert!(
                is_right,
                "{question:?}: sets of moment {begin}, classes of {read}: passes: {verdict}, but \
                 of the states {states:?} it lived in {:?}: {:?}",
                lived_in.clone().collect::<Vec<_>>(),
                lived_in.map(truth).collect::<Vec<_>>(),
            );
        }
    }
}

fn questions(cluster: &Cluster, rng: &mut Rng, locals: &[Local]) -> Vec<Question> {
    let remotes: Vec<IpAddr> = cluster.world.remotes(rng);
    let probes = cluster.world.probes(rng, &remotes, PROBES * locals.len());
    let pair = |(index, probe): (usize, Probe)| Question {
        endpoint: locals[index % locals.len()].id,
        direction: Direction::BOTH[index / locals.len() % 2],
        probe,
    };
    probes.into_iter().enumerate().map(pair).collect()
}

#[test]
fn a_packet_that_edits_overtake_is_judged_by_a_state_it_lived_in() {
    let mut tally = Tally::default();
    for seed in 0..CLUSTERS {
        let mut rng = Rng::new(seed);
        let size = Size::new(3, 16, 10).with_tiers_by(seed);
        let mut cluster = Cluster::random(&mut rng, size, 5);
        for _ in 0..WINDOWS {
            let mut film = Film::new(cluster.compiler.tables());
            let mut states = vec![0];
            while states.len() <= EDITS {
                let edit = cluster.step(&mut rng);
                if let Edit::Replace(..) = edit {
                    // Another endpoint: a packet of the old one finds no entry and is dropped.
                    replace(&mut cluster);
                    film = Film::new(cluster.compiler.tables());
                    states = vec![0];
                    continue;
                }
                for step in cluster.plan(&edit) {
                    film.take(&step);
                }
                states.push(film.moments.len() - 1);
            }
            for question in questions(&cluster, &mut rng, &cluster.locals.clone()) {
                try_all(&film, &states, &question, &mut tally);
            }
        }
    }
    println!("{tally:?}");
    assert!(tally.again > 1_000 && tally.judged > 100_000, "{tally:?}");
    // If no interleaving needed it, starting over would be in vain.
    assert!(tally.saved.iter().sum::<u64>() > 0, "{tally:?}");
}

/// Tells the compiler which endpoints there are now.
fn replace(cluster: &mut Cluster) {
    let known: Vec<EndpointId> = cluster.compiler.tables().endpoints.into_keys().collect();
    for id in known.into_iter().filter(|id| cluster.locals.iter().all(|local| local.id != *id)) {
        cluster.compiler.remove_endpoint(id);
    }
    let locals: Vec<_> =
        cluster.locals.iter().map(|local| (local.id, cluster.name(&local.pod))).collect();
    cluster.compiler.set_endpoints(locals);
}
