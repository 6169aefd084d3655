//! From what changes touched to plans: the order of steps that keeps every intermediate verdict
//! an old or a new one. New rows first, addresses next (old sets cannot see new atoms, and a set
//! that is edited in place says of each address what it says of its class), Services with the new
//! classes of their backends, then endpoints, then flows, then garbage (new sets cannot see old
//! atoms). A Service that is gone is taken away before flows are judged again, like any other
//! change of a verdict; as garbage go those that no endpoint asks about any more.
//!
//! It is done all at once or in slices ([`Compiler::slice`]), in the same order for each namespace.

use std::collections::BTreeSet;

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};

use super::engine::{Move, steps};
use super::services::{Changed, Interest};
use super::sets::Gathering;
use super::wanted::Why;
use super::work::{FutureSet, Job, JobOwner, Mark, UnderWay, Which};
use super::{CompiledEndpoint, Compiler, Dirt, EndpointId, EndpointSets, Plan, SetId, Step};
use netpol_model::{ObjectName, Pod};

/// The sets of an endpoint that no policy selects.
pub(super) const NOT_ISOLATED: EndpointSets =
    EndpointSets { ingress: SetId::NONE, egress: SetId::NONE };

/// How often a block waits for others who have begun more inside it than is done at a time: they
/// might always. After that all of it is done at once, which is no more than they had read at once.
const MOST_WAITS: u32 = 8;

/// How many slices' worth of what nobody uses may be left behind before it is taken away as fast as
/// all namespaces together work.
const MOST_UNUSED: usize = 4;

impl Compiler {
    /// Works off what was touched, also by [`Compiler::enqueue`].
    pub(super) fn settle(&mut self) -> Plan {
        self.retry_unnumbered();
        self.share_out();
        let mut plan = Plan::new();
        if self.slice_size == usize::MAX {
            while !self.jobs.is_empty() {
                plan.extend(self.slice(usize::MAX));
            }
            // All of it at once, where nobody waits for anything else.
            let touched = std::mem::take(&mut self.taken_in.touched);
            let mut all = Dirt::default();
            for dirt in std::mem::take(&mut self.taken_in.of).into_values() {
                all.endpoints.extend(dirt.endpoints);
                all.policies.extend(dirt.policies);
            }
            plan.extend(self.begin(&JobOwner::Everybody, touched, all));
            let mut left = usize::MAX;
            plan.extend(self.go_on(&JobOwner::Everybody, &mut left));
        }
        while self.has_work() {
            plan.extend(self.slice(self.slice_size));
        }
        plan
    }

    /// What could not be numbered is tried again.
    pub(super) fn retry_unnumbered(&mut self) {
        for id in std::mem::take(&mut self.unnumbered) {
            if let Some(endpoint) = self.endpoints.get(&id) {
                self.taken_in.look_at(endpoint.home(), id, Why::Anything);
            }
        }
        self.taken_in.touched.blocks.extend(std::mem::take(&mut self.engine.unnumbered));
    }

    // === In slices ===

    /// Whether anything that was taken in is not in any plan yet.
    pub fn has_work(&self) -> bool {
        self.is_touched()
            || self.shares.is_touched()
            || !self.taken_in.of.is_empty()
            || !self.jobs.is_empty()
            || self.engine.has_garbage()
    }

    /// Whether that is more than to tidy up.
    pub fn is_behind(&self) -> bool {
        self.is_touched()
            || self.shares.is_touched()
            || !self.taken_in.of.is_empty()
            || self.jobs.keys().any(|whose| *whose != JobOwner::Nobody)
    }

    /// Whether the policies and pods of a namespace are not all in plans yet.
    pub fn is_busy(&self, namespace: &str) -> bool {
        self.taken_in.of.contains_key(namespace)
            || self.jobs.contains_key(&JobOwner::Namespace(namespace.into()))
    }

    /// Whether neither they nor pods of all namespaces are on their way.
    pub fn is_settled(&self, namespace: &str) -> bool {
        let is_everybodys = self.is_touched() || self.jobs.contains_key(&JobOwner::Everybody);
        !is_everybodys && !self.is_busy(namespace)
    }

    /// Whether a pod has its policies, and whoever has policies about it knows of it, as far as what
    /// others write does not have to be in force for that.
    pub fn is_pod_settled(&self, pod: &Pod) -> bool {
        let touched = &self.taken_in.touched;
        let own: Vec<IpNet> = pod.addresses.iter().map(|&address| IpNet::from(address)).collect();
        let everybodys = self.jobs.get(&JobOwner::Everybody);
        let is_waiting = |block| everybodys.is_some_and(|job| job.blocks.contains(block));
        !self.is_busy(&pod.id.namespace)
            && !touched.pods.contains(&pod.id)
            && !touched.blocks.iter().any(|block| own.contains(block))
            && !own.iter().any(is_waiting)
    }

    /// Marks this moment, to ask later whether what was taken in before is in plans.
    pub fn mark(&mut self) -> Mark {
        let number = self.taken_in.n_marks;
        self.taken_in.n_marks += 1;
        Mark { number, n_everybodys: self.everybodys.0 + u64::from(self.is_touched()) }
    }

    /// Whether everything that was taken in before a mark is in plans, whatever came after it.
    pub fn has_done(&self, mark: &Mark) -> bool {
        let waiting = self.taken_in.of.values().map(|dirt| dirt.since);
        let begun = self.jobs.iter().filter(|(whose, _)| matches!(whose, JobOwner::Namespace(_)));
        let mut since = waiting.chain(begun.map(|(_, job)| job.since));
        // What Services lead to is taken along by whoever's turn it is.
        let is_everybodys = self.is_touched() || self.jobs.contains_key(&JobOwner::Everybody);
        let is_done = !is_everybodys || self.everybodys.1 >= mark.n_everybodys;
        is_done && since.all(|since| since > mark.number)
    }

    /// What work is under way.
    pub fn under_way(&self) -> Vec<UnderWay> {
        let begun = self.jobs.iter().filter(|(whose, _)| **whose != JobOwner::Nobody);
        let begun = begun.map(|(whose, job)| UnderWay {
            namespace: match whose {
                JobOwner::Namespace(name) => Some(name.clone()),
                JobOwner::Everybody | JobOwner::Nobody => None,
            },
            done: job.n_done,
            all: job.n_done + job.n_left(),
        });
        let is_begun = |name: &&netpol_model::Str| {
            self.jobs.contains_key(&JobOwner::Namespace((*name).clone()))
        };
        let waiting = self.taken_in.of.keys().filter(|name| !is_begun(name));
        let waiting =
            waiting.map(|name| UnderWay { namespace: Some(name.clone()), done: 0, all: 0 });
        begun.chain(waiting).collect()
    }

    /// The next part of what there is to do, about so many steps of it. Every second turn is
    /// everybody's: pods come and go. Namespaces take turns with the others, and so does nobody, who
    /// has every second of them when there is much of what nobody uses. The datapath is to carry out each plan
    /// before the next one is asked for.
    pub fn slice(&mut self, n_most: usize) -> Plan {
        self.share_out();
        let mut plan = Plan::new();
        let mut left = n_most;
        let Some(whose) = self.next_turn(n_most) else { return plan };
        match &whose {
            JobOwner::Everybody if self.is_touched() => plan.extend(self.begin_everybodys()),
            JobOwner::Nobody => {
                let (removed, blocks) = self.engine.collect_garbage(&self.cluster, n_most);
                plan.extend(removed);
                self.add_blocks(&whose, blocks);
            }
            JobOwner::Namespace(name) if !self.jobs.contains_key(&whose) => {
                plan.extend(self.begin_with_pods());
                if let Some(dirt) = self.taken_in.of.remove(name) {
                    plan.extend(self.begin(&whose, super::engine::Touched::default(), dirt));
                }
            }
            JobOwner::Everybody | JobOwner::Namespace(_) => {}
        }
        plan.extend(self.go_on(&whose, &mut left));
        plan
    }

    fn begin_everybodys(&mut self) -> Plan {
        let touched = std::mem::take(&mut self.taken_in.touched);
        self.begin(&JobOwner::Everybody, touched, Dirt::default())
    }

    /// Begins everybody's work if pods have changed: to be called before new atoms look at pods. Else a
    /// pod that has changed and that new policies are about would be theirs alone, since nothing of it
    /// is another thing when everybody's turn comes.
    fn begin_with_pods(&mut self) -> Plan {
        match self.taken_in.touched.pods.is_empty() {
            true => Plan::new(),
            false => self.begin_everybodys(),
        }
    }

    fn is_touched(&self) -> bool {
        let touched = &self.taken_in.touched;
        !touched.pods.is_empty() || !touched.blocks.is_empty() || self.engine.services.is_touched()
    }

    fn next_turn(&mut self, n_most: usize) -> Option<JobOwner> {
        let is_everybodys = self.is_touched() || self.jobs.contains_key(&JobOwner::Everybody);
        let begun = self.jobs.keys().filter(|whose| **whose != JobOwner::Everybody).cloned();
        let waiting = self.taken_in.of.keys().cloned().map(JobOwner::Namespace);
        let garbage = self.engine.has_garbage().then_some(JobOwner::Nobody);
        let others: BTreeSet<JobOwner> = begun.chain(waiting).chain(garbage).collect();
        self.was_everybodys = is_everybodys && (others.is_empty() || !self.was_everybodys);
        if self.was_everybodys {
            return Some(JobOwner::Everybody);
        }
        // Then as often as all namespaces together: they leave more behind than is taken away.
        self.was_nobodys = !self.was_nobodys
            && others.contains(&JobOwner::Nobody)
            && self.n_unused() > n_most.saturating_mul(MOST_UNUSED);
        if self.was_nobodys {
            return Some(JobOwner::Nobody);
        }
        let next = others.iter().find(|whose| **whose > self.last_turn).or_else(|| others.first());
        self.last_turn = next?.clone();
        Some(self.last_turn.clone())
    }

    /// How many steps it would take to tidy up, about.
    fn n_unused(&self) -> usize {
        self.engine.n_garbage() + self.jobs.get(&JobOwner::Nobody).map_or(0, Job::n_left)
    }

    fn add_blocks(&mut self, whose: &JobOwner, blocks: Vec<IpNet>) {
        if !blocks.is_empty() {
            let mut job = self.take_job(whose);
            job.blocks.extend(blocks, |block| self.engine.stays(block));
            self.jobs.insert(whose.clone(), job);
        }
    }

    fn take_job(&mut self, whose: &JobOwner) -> Job {
        self.jobs.remove(whose).unwrap_or_else(|| {
            self.last_job = self.last_job.wrapping_add(1).max(1);
            Job { number: self.last_job, ..Job::default() }
        })
    }

    /// Finds what is to be done for what was touched.
    fn begin(&mut self, whose: &JobOwner, mut touched: super::engine::Touched, dirt: Dirt) -> Plan {
        let mut job = self.take_job(whose);
        job.since = dirt.since;
        self.everybodys.0 += u64::from(*whose == JobOwner::Everybody);
        let first = self.engine.atoms.n_maybe_dead();
        // Everybody's is done all at once where it has endpoints.
        let may_gather = matches!(whose, JobOwner::Namespace(_));
        let (coming, gatherings) =
            self.compile_endpoints(dirt.endpoints, &dirt.policies, may_gather);
        job.coming.extend(coming);
        job.gatherings.extend(gatherings);
        // What only sets mentioned that were edited in place: see [`Sets::edit`](super::sets::Sets).
        let given_up = self.engine.atoms.maybe_dead(first);
        let blocks = self.engine.drop_dead_atoms(&self.cluster, Vec::new(), given_up);
        touched.blocks.extend(blocks);
        let plan = self.take_up(&mut job, touched);
        self.jobs.insert(whose.clone(), job);
        plan
    }

    /// Finds what is to be done for the sets that a job has got.
    fn take_up(&mut self, job: &mut Job, touched: super::engine::Touched) -> Plan {
        // Whoever has begun to edit a set may take longer than who wants it now. What it has not done
        // yet may be judged by what the set said before.
        let awaited = self.engine.sets.awaited();
        for other in self.jobs.values().filter(|other| awaited.contains(&other.number)) {
            let blocks = other.blocks.iter().copied().collect();
            job.blocks.extend(blocks, |block| self.engine.stays(block));
        }
        self.engine.begin(&self.cluster, job, touched)
    }

    /// Gathers what new sets are to say, and finds what is to be done for them, as far as so many steps
    /// go.
    fn prepare(&mut self, whose: &JobOwner, job: &mut Job, left: &mut usize) -> Plan {
        let mut plan = Plan::new();
        while *left > 0
            && let Some(mut gathering) = job.gatherings.pop_front()
        {
            if !job.is_gathering_wanted() {
                gathering.give_up(&mut self.engine.atoms);
                job.n_gathered += 1;
                continue;
            }
            let before = *left;
            // Policies as they were when the job began: what has changed since is the next one's.
            let Self { cluster, taken_in, engine, .. } = self;
            let since = match whose {
                JobOwner::Namespace(name) => taken_in.of.get(name).map(|dirt| &dirt.policies),
                JobOwner::Everybody | JobOwner::Nobody => None,
            };
            let policy = |id: &ObjectName| match since.and_then(|since| since.get(id)) {
                Some(before) => before.as_ref(),
                None => cluster.policy(id),
            };
            let first = engine.atoms.n_maybe_dead();
            let is_done = gathering.go_on(left, policy, &mut engine.atoms);
            engine.atoms.keep_written(first);
            job.n_done += before - *left;
            if !is_done {
                job.gatherings.push_front(gathering);
                break;
            }
            plan.extend(self.finish_gathering(whose, job, gathering));
        }
        job.complete_switches();
        if *left > 0 && job.gatherings.is_empty() && !job.unmatched.is_empty() {
            let n = job.unmatched.len().min(*left);
            self.engine.match_blocks(job, n);
            *left -= n;
            job.n_done += n;
        }
        if !job.is_unprepared() {
            self.engine.list_rows(job);
        }
        plan
    }

    /// What a job has gathered is a set, for whoever waits for it.
    fn finish_gathering(&mut self, whose: &JobOwner, job: &mut Job, gathering: Gathering) -> Plan {
        // Among the others: what it has begun to edit is looked for there.
        self.jobs.insert(whose.clone(), std::mem::take(job));
        let mut plan = self.begin_with_pods();
        *job = self.take_job(whose);
        let number = FutureSet::Gathered(job.n_gathered);
        let engine = &mut self.engine;
        engine.sets.exhausted = false;
        let set = engine.sets.acquire_gathered(gathering, &mut engine.atoms);
        if engine.sets.exhausted {
            let without = job.coming.iter().filter(|(_, both)| both.contains(&number));
            self.unnumbered.extend(without.map(|(id, _)| *id));
        }
        for _ in 1..job.resolve_gathered(set) {
            self.engine.sets.retain(set);
        }
        plan.extend(self.take_up(job, super::engine::Touched::default()));
        plan
    }

    /// Does a part of a job, and what concludes it if it was the last one.
    fn go_on(&mut self, whose: &JobOwner, left: &mut usize) -> Plan {
        let Some(mut job) = self.jobs.remove(whose) else { return Plan::new() };
        let mut plan = self.prepare(whose, &mut job, left);
        if job.is_unprepared() {
            self.jobs.insert(whose.clone(), job);
            return plan;
        }
        let mut moves = Vec::new();
        while *left > 0 && !job.blocks.is_empty() {
            let (rows, moved) = self.reclassify(&mut job, left);
            plan.extend(rows);
            plan.extend(steps(&moved));
            moves.extend(moved);
        }
        while *left > 0
            && job.blocks.is_empty()
            && let Some((set, which)) = job.rows.pop()
        {
            job.n_done += 1;
            *left = left.saturating_sub(1);
            match which {
                Which::Having(atom) => {
                    let classes = self.engine.classes_without_row(set, atom);
                    job.rows.extend(classes.into_iter().map(|id| (set, Which::Class(id))));
                }
                Which::Class(class) => plan.extend(self.engine.add_row(set, class)),
            }
        }
        if job.n_left() > 0 {
            let services = self.engine.update_services(&self.cluster, &moves);
            plan.extend(services.iter().map(Changed::step));
            let mut rejudge = self.users(&self.engine.shrunk_sets(&moves));
            rejudge.extend(self.cut_off(&services));
            plan.extend(rejudge_step(rejudge));
            self.jobs.insert(whose.clone(), job);
            return plan;
        }
        self.conclude(job, &moves, &mut plan);
        if *whose == JobOwner::Everybody {
            self.everybodys.1 = self.everybodys.0;
        }
        if *whose != JobOwner::Nobody {
            // What is around them may have its classes now.
            let lingering = std::mem::take(&mut self.engine.lingering);
            self.add_blocks(&JobOwner::Nobody, lingering);
        }
        plan
    }

    /// Gives the next blocks of a job their classes, about as many as are left to do.
    fn reclassify(&mut self, job: &mut Job, left: &mut usize) -> (Plan, Vec<Move>) {
        let (blocks, stay) = job.blocks.take(*left);
        // What others have begun inside them: it would have the classes of these for a while, and
        // be judged by what is new of them without what is new of itself, such as an exception.
        let n_most = if job.n_waits < MOST_WAITS { *left } else { usize::MAX };
        let missing = self.engine.addresses.missing_inside(&blocks, n_most);
        let is_all = missing.len() < n_most;
        *left = left.saturating_sub(missing.len());
        let (mut rows, mut moves) = self.engine.reclassify(missing);
        if !is_all {
            job.n_waits += 1;
            job.blocks.put_back(blocks, stay);
            return (rows, moves);
        }
        job.n_waits = 0;
        *left = left.saturating_sub(blocks.len());
        job.n_done += blocks.len();
        let (now, later) = blocks.into_iter().partition(|b| !stay || self.engine.stays(b));
        // They have lost their own in between; all around them come first.
        job.blocks.extend(later, |_| false);
        let (more_rows, more_moves) = self.engine.reclassify(now);
        rows.extend(more_rows);
        moves.extend(more_moves);
        (rows, moves)
    }

    /// All is ready: endpoints get their sets.
    fn conclude(&mut self, job: Job, moves: &[Move], plan: &mut Plan) {
        let Job { number, switches, atoms, names, sets, .. } = job;
        self.engine.atoms.settle(number, &atoms, &names);
        self.engine.sets.settle(number, &sets);
        let coming = switches.iter().map(|(_, sets)| Interest::of(*sets));
        let interest = coming.chain([self.interest()]).max().unwrap_or_default();
        self.engine.services.raise(interest, &self.cluster);
        self.lead_to_itself(&switches);
        let services = self.engine.update_services(&self.cluster, moves);
        plan.extend(services.iter().map(Changed::step));
        let mut rejudge = self.users(&self.engine.shrunk_sets(moves));
        rejudge.extend(self.cut_off(&services));
        let mut covers = FxHashMap::default();
        for &(id, sets) in &switches {
            if self.switch(id, sets, &mut covers, plan) {
                rejudge.insert(id);
            }
        }
        // A Service that leads to the endpoint no more is one that does until now: what it sends
        // there is looked at twice, by its old sets and by its new ones.
        for (id, _) in switches {
            if let Some(endpoint) = self.endpoints.get(&id) {
                self.engine.services.set_addresses(id, endpoint.addresses().to_vec());
            }
        }
        let services = self.engine.update_services(&self.cluster, &[]);
        plan.extend(services.iter().map(Changed::step));
        rejudge.extend(self.cut_off(&services));
        plan.extend(rejudge_step(rejudge));
        plan.extend(self.engine.services.lower(self.interest()));
    }

    /// Before endpoints get their sets: Services lead to them at their old addresses and at their new
    /// ones. By a set that does not judge its own they are exempt there, though: where only one of
    /// an endpoint's sets does, the addresses that go with the other one are not its own under it.
    fn lead_to_itself(&mut self, switches: &[(EndpointId, EndpointSets)]) {
        for (id, new) in switches {
            let Some(endpoint) = self.endpoints.get(id) else { continue };
            let services = &mut self.engine.services;
            match (endpoint.sets.egress.judges_own(), new.egress.judges_own()) {
                (false, true) => {}
                (true, false) => services.set_addresses(*id, endpoint.addresses().to_vec()),
                _ => services.add_addresses(*id, endpoint.addresses()),
            }
        }
    }

    /// Which Services some endpoint asks about.
    fn interest(&self) -> Interest {
        let wanted = self.endpoints.values().map(|endpoint| Interest::of(endpoint.sets));
        wanted.max().unwrap_or_default()
    }

    /// The endpoints that some Service may be reached from less after these changes.
    fn cut_off(&self, services: &[Changed]) -> BTreeSet<EndpointId> {
        if services.is_empty() {
            return BTreeSet::new();
        }
        let isolated = self.endpoints.iter().filter(|(_, e)| e.sets != NOT_ISOLATED);
        self.engine.cut_off(services, isolated.map(|(&id, endpoint)| (id, endpoint.sets.egress)))
    }

    /// The endpoints that use one of these sets now.
    fn users(&self, sets: &FxHashSet<SetId>) -> BTreeSet<EndpointId> {
        if sets.is_empty() {
            return BTreeSet::new();
        }
        let uses = |endpoint: &CompiledEndpoint| {
            sets.contains(&endpoint.sets.ingress) || sets.contains(&endpoint.sets.egress)
        };
        let users = self.endpoints.iter().filter(|(_, endpoint)| uses(endpoint));
        users.map(|(&id, _)| id).collect()
    }

    /// Gives an endpoint its new sets. Returns whether something may have been taken from it.
    fn switch(
        &mut self,
        id: EndpointId,
        new: EndpointSets,
        known: &mut FxHashMap<(SetId, SetId), bool>,
        plan: &mut Plan,
    ) -> bool {
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return false };
        let old = std::mem::replace(&mut endpoint.sets, new);
        let is_first = !std::mem::replace(&mut endpoint.announced, true);
        if old != new || is_first {
            plan.push(Step::SetEndpoint(id, new));
        }
        let engine = &self.engine;
        // Replicas change from the same sets to the same ones.
        let mut covered =
            |new, old| *known.entry((new, old)).or_insert_with(|| engine.set_covers(new, old));
        let mut covers = covered(new.ingress, old.ingress) && covered(new.egress, old.egress);
        let is_isolated = |set| set != SetId::NONE;
        if new != NOT_ISOLATED
            && (old == NOT_ISOLATED || is_isolated(old.egress) != is_isolated(new.egress))
        {
            // Even by a set that allows everything: what is looked at twice is another thing.
            covers &= !self.engine.services.may_stamp();
        }
        self.engine.sets.release(old.ingress);
        self.engine.sets.release(old.egress);
        !covers
    }
}

fn rejudge_step(endpoints: BTreeSet<EndpointId>) -> Option<Step> {
    (!endpoints.is_empty()).then(|| Step::Rejudge(endpoints.into_iter().collect()))
}
