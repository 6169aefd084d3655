//! Which sets endpoints should have: found by what changed, where that is enough, and by all
//! policies where it is not. Must never leave an endpoint on a set that says something else than
//! the policies that select its pod.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::atoms::Atoms;
use super::edits::{EarlierPolicies, Edits, Mentions, Selection};
use super::ports::Allowed;
use super::sets::{Changes, Content, Gathering, Predicate, Renewed};
use super::tiers::{Applying, is_tiered};
use super::work::FutureSet;
use super::{Compiler, EndpointId, SetId, sets};
use netpol_model::{Cluster, Direction, NamedPort, Pod, Policy, Str};

/// Why an endpoint is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why {
    /// A policy that selects its pod was edited.
    Policy,
    /// A pod changed that it may be.
    Pod,
    /// It is new, or has not got what it should have.
    Anything,
}

/// What an endpoint should have in one direction.
enum Wanted {
    Set(SetId),
    /// A set that somebody else has got since the policies of the cluster changed.
    Known(SetId),
    Content(Content),
    Edited(SetId, Rc<Changes>),
    /// What the gathering of this number leads to.
    Gathered(usize),
}

/// Contents of pods that the same policies select and that declare the same ports.
type Contents = FxHashMap<Key, Content>;

/// The sets that pods have by ClusterNetworkPolicies alone: of one edit of these very many pods get
/// the same new set, each namespace's in its own turn.
#[derive(Debug, Default)]
pub(super) struct ClusterSets(FxHashMap<Key, (SetId, u64)>);

impl ClusterSets {
    /// The policies of the cluster, or what they mean, are others now.
    pub fn forget(&mut self) {
        self.0.clear();
    }

    fn get(&self, key: &Key, sets: &sets::Sets) -> Option<SetId> {
        let (id, stamp) = *self.0.get(key)?;
        sets.get(id).filter(|set| set.stamp == stamp).map(|_| id)
    }

    fn learn(
        &mut self,
        contents: Contents,
        acquired: &FxHashMap<*const [(Predicate, Arc<Allowed>)], SetId>,
        sets: &sets::Sets,
    ) {
        for (key, content) in contents.into_iter().filter(|(key, _)| key.is_of_cluster) {
            let id = acquired.get(&Arc::as_ptr(&content)).filter(|id| **id != sets::CLOSED);
            if let Some((id, set)) = id.and_then(|id| Some((*id, sets.get(*id)?))) {
                self.0.insert(key, (id, set.stamp));
            }
        }
    }
}

/// What decides what policies say of a pod.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    direction: Direction,
    /// Where the policies are.
    policies: Vec<usize>,
    /// Its ports, where these matter.
    ports: Vec<NamedPort>,
    judges_own: bool,
    /// Its addresses, where these matter.
    own: Vec<IpAddr>,
    /// No NetworkPolicy is among them.
    is_of_cluster: bool,
}

/// What is to be gathered, and how much has been looked at without that.
#[derive(Default)]
struct Gatherings {
    all: Vec<Gathering>,
    /// As [`Contents`].
    known: FxHashMap<Key, usize>,
    n_looked_at: usize,
}

impl Gatherings {
    /// The number of what these policies, which make this key, say of a pod.
    fn of(&mut self, key: Key, applying: &Applying<'_>, cluster: &Cluster, pod: &Pod) -> usize {
        let Key { direction, judges_own, .. } = key;
        *self.known.entry(key).or_insert_with(|| {
            let own = sets::own_ports(pod, direction).map(<[_]>::to_vec);
            let ranked = applying.ranked(cluster, pod, direction, judges_own);
            let names = applying.policies.iter().map(|policy| policy.id.clone()).collect();
            let n_peers = applying.n_peers(direction);
            self.all.push(Gathering::new(ranked, names, direction, own, n_peers));
            self.all.len() - 1
        })
    }
}

/// How many peers a policy names, and one more.
fn n_peers(policy: &Policy, direction: Direction) -> usize {
    1 + policy.n_peers(direction)
}

impl Key {
    fn of(applying: &Applying<'_>, cluster: &Cluster, pod: &Pod, direction: Direction) -> Self {
        let policies = applying.policies.iter().map(|policy| std::ptr::from_ref(*policy).addr());
        let tiers = applying.tiers().map(|policy| std::ptr::from_ref(policy).addr());
        let judges_own = applying.judges_own(cluster, pod, direction);
        Self {
            direction,
            policies: policies.chain(tiers).collect(),
            ports: sets::own_ports(pod, direction).unwrap_or_default().to_vec(),
            judges_own,
            own: applying.own_addresses(pod, judges_own).to_vec(),
            is_of_cluster: applying.policies.is_empty() && applying.is_tiered(),
        }
    }
}

/// What policies, which make this key, say of a pod.
fn content_of<'a>(
    contents: &'a mut Contents,
    key: Key,
    applying: &Applying<'_>,
    cluster: &Cluster,
    pod: &Pod,
    atoms: &mut Atoms,
) -> &'a Content {
    let Key { direction, judges_own, .. } = key;
    contents.entry(key).or_insert_with(|| {
        let ranked = applying.ranked(cluster, pod, direction, judges_own);
        sets::content(applying.policies.iter().copied(), &ranked, pod, direction, atoms)
    })
}

/// What is changed for pods of a namespace that have a set in a direction, are selected alike and
/// declare the same ports.
type Alike = (Str, Direction, SetId, Selection, Vec<NamedPort>);

impl Compiler {
    /// The sets that these endpoints should have, each with one user more; and what is to be gathered
    /// for those that are to have more than is looked at at once, if that may be.
    pub(super) fn compile_endpoints(
        &mut self,
        dirty: BTreeMap<EndpointId, Why>,
        befores: &EarlierPolicies,
        may_gather: bool,
    ) -> (Vec<(EndpointId, [FutureSet; 2])>, Vec<Gathering>) {
        let n_most = if may_gather { self.gathered_from } else { usize::MAX };
        let mut gatherings = Gatherings::default();
        let mut contents = Contents::default();
        let mut wanted = self.wanted(dirty, befores, n_most, &mut gatherings, &mut contents);
        let mut edits = self.edits_in_place(&wanted);
        self.gather_what_is_copied(&mut wanted, &edits, n_most, &mut gatherings);
        let n_users = |sets: &sets::Sets, id| sets.get(id).map_or(0, |set| set.n_users);
        let n_wanting: FxHashMap<SetId, u32> =
            edits.keys().map(|id| (*id, n_users(&self.engine.sets, *id))).collect();
        let mut found: Vec<(EndpointId, [Option<SetId>; 2])> =
            wanted.iter().map(|(id, _)| (*id, [None, None])).collect();
        let mut made: FxHashMap<SetId, Vec<(Rc<Changes>, SetId)>> = FxHashMap::default();
        let mut acquired: FxHashMap<*const [(Predicate, Arc<Allowed>)], SetId> =
            FxHashMap::default();
        // Whatever is not edited in place first: it may mention what an edit would drop.
        let mut is_settled = false;
        while !is_settled {
            for ((id, wanted), (_, found)) in wanted.iter().zip(&mut found) {
                for (wanted, found) in wanted.iter().zip(found) {
                    if found.is_some() {
                        continue;
                    }
                    *found = match wanted {
                        Wanted::Edited(old, _) if edits.contains_key(old) => None,
                        Wanted::Gathered(_) => None,
                        Wanted::Set(set) => {
                            self.engine.sets.retain(*set);
                            Some(*set)
                        }
                        Wanted::Known(set) => {
                            let engine = &mut self.engine;
                            Some(engine.sets.share(*set, &mut engine.atoms))
                        }
                        // Replicas have the very same.
                        Wanted::Content(content) => match acquired.get(&Arc::as_ptr(content)) {
                            Some(set) if *set != sets::CLOSED => {
                                self.engine.sets.retain(*set);
                                Some(*set)
                            }
                            _ => {
                                let set = self.acquire(*id, content);
                                acquired.insert(Arc::as_ptr(content), set);
                                Some(set)
                            }
                        },
                        Wanted::Edited(old, changes) => {
                            let made = made.entry(*old).or_default();
                            let known = made.iter().find(|(known, _)| known == changes);
                            Some(match known {
                                Some((_, set)) if *set != sets::CLOSED => {
                                    self.engine.sets.retain(*set);
                                    *set
                                }
                                _ => {
                                    let set = self.engine.sets.get(*old);
                                    let content = set.map(|set| set.content_with(changes));
                                    let set = self.acquire(*id, &content.unwrap_or_default());
                                    made.push((changes.clone(), set));
                                    set
                                }
                            })
                        }
                    };
                }
            }
            let mut bound = self.engine.sets.bound(&edits, &self.engine.atoms);
            // Somebody else wants what it said before.
            let has_others = |id: &&SetId| n_users(&self.engine.sets, **id) > n_wanting[*id];
            bound.extend(edits.keys().filter(has_others));
            is_settled = bound.is_empty();
            bound.iter().for_each(|id| drop(edits.remove(id)));
            self.gather_what_is_copied(&mut wanted, &edits, n_most, &mut gatherings);
        }
        self.cluster_sets.learn(contents, &acquired, &self.engine.sets);
        let mut renewed = Renewed::default();
        for (&id, changes) in &edits {
            self.engine.sets.edit(id, changes, &mut self.engine.atoms, &mut renewed);
        }
        let settled = found.into_iter().zip(wanted).map(|((id, found), (_, wanted))| {
            let both = [0, 1].map(|index| match (found[index], &wanted[index]) {
                (Some(set), _) => FutureSet::Set(set),
                (None, Wanted::Edited(set, _) | Wanted::Set(set) | Wanted::Known(set)) => {
                    self.engine.sets.retain(*set);
                    FutureSet::Set(*set)
                }
                (None, Wanted::Content(_)) => FutureSet::Set(sets::CLOSED),
                (None, Wanted::Gathered(number)) => FutureSet::Gathered(*number),
            });
            (id, both)
        });
        (settled.collect(), gatherings.all)
    }

    /// Of sets that are not edited in place a new one is made, which is gathered if they are large.
    fn gather_what_is_copied(
        &self,
        wanted: &mut [(EndpointId, [Wanted; 2])],
        edits: &FxHashMap<SetId, Changes>,
        n_most: usize,
        gatherings: &mut Gatherings,
    ) {
        for (id, both) in wanted {
            for (wanted, direction) in both.iter_mut().zip(Direction::BOTH) {
                let Wanted::Edited(old, _) = wanted else { continue };
                let n_entries = self.engine.sets.get(*old).map_or(0, sets::Set::n_entries);
                if edits.contains_key(old) || n_entries <= n_most {
                    continue;
                }
                if let Some([pod]) = self.endpoints.get(id).map(|endpoint| &*endpoint.pods) {
                    let applying = Applying::of(&self.cluster, pod, direction);
                    let key = Key::of(&applying, &self.cluster, pod, direction);
                    let number = gatherings.of(key, &applying, &self.cluster, pod);
                    *wanted = Wanted::Gathered(number);
                }
            }
        }
    }

    fn acquire(&mut self, id: EndpointId, content: &Content) -> SetId {
        self.engine.sets.exhausted = false;
        let set = self.engine.sets.acquire(content, &mut self.engine.atoms);
        if self.engine.sets.exhausted {
            self.unnumbered.insert(id);
        }
        set
    }

    fn wanted(
        &mut self,
        dirty: BTreeMap<EndpointId, Why>,
        befores: &EarlierPolicies,
        n_most: usize,
        gatherings: &mut Gatherings,
        contents: &mut Contents,
    ) -> Vec<(EndpointId, [Wanted; 2])> {
        self.mentions.retain(|namespace, _| self.endpoints_in.contains_key(namespace));
        let edited =
            befores.iter().flat_map(|(id, before)| [before.as_ref(), self.cluster.policy(id)]);
        let n_edited: usize = edited
            .flatten()
            .flat_map(|policy| Direction::BOTH.map(|direction| n_peers(policy, direction)))
            .sum();
        // Else it is less to look at all policies, a part at a time.
        let are_edits_few = n_edited <= n_most;
        for id in befores.keys().filter(|_| are_edits_few) {
            self.mentions.entry(id.namespace.clone()).or_insert_with(|| {
                let policies = self.cluster.policies.get(&id.namespace);
                Mentions::of(policies.into_iter().flat_map(|p| p.values()).map(|p| &**p))
            });
        }
        let Self { cluster, endpoints, engine, mentions, unnumbered, cluster_sets, .. } = self;
        let mut edits: FxHashMap<(Str, bool), Edits<'_>> = FxHashMap::default();
        let mut alike: FxHashMap<Alike, Option<Rc<Changes>>> = FxHashMap::default();
        let mut wanted = Vec::new();
        for (id, mut why) in dirty {
            let Some(endpoint) = endpoints.get_mut(&id) else { continue };
            let is_same = endpoint.refresh(cluster);
            if why == Why::Pod && is_same {
                why = Why::Policy;
            }
            if unnumbered.contains(&id) {
                // What its set says is not what its policies said.
                why = Why::Anything;
            }
            let endpoint = &*endpoint;
            let mut of = |direction: Direction, old: SetId| {
                let is_ranked = engine.sets.get(old).is_some_and(sets::Set::is_ranked);
                if let ([pod], Why::Policy, true, false) =
                    (endpoint.pods.as_slice(), why, are_edits_few, is_ranked)
                    && !is_tiered(cluster, pod, direction)
                {
                    let key = (pod.id.namespace.clone(), direction == Direction::Egress);
                    let Some(mentions) = mentions.get(&key.0) else { return Wanted::Set(old) };
                    let edits = edits.entry(key).or_insert_with_key(|(namespace, _)| {
                        Edits::new(cluster, befores, namespace, direction, mentions)
                    });
                    let changes = match engine.sets.get(old) {
                        Some(set) => edits.selection(cluster, pod).and_then(|selection| {
                            let own = sets::own_ports(pod, direction).unwrap_or_default();
                            let namespace = pod.id.namespace.clone();
                            let key = (namespace, direction, old, selection, own.to_vec());
                            let changes = alike.entry(key).or_insert_with_key(|key| {
                                edits.changes(&key.3, pod, set, &mut engine.atoms).map(Rc::new)
                            });
                            changes.clone()
                        }),
                        // It was not isolated, and by what was not edited it is not now.
                        None if edits.isolate(pod) => None,
                        None => return Wanted::Set(old),
                    };
                    match changes {
                        Some(changes) if changes.is_empty() => return Wanted::Set(old),
                        Some(changes) => return Wanted::Edited(old, changes),
                        None => {}
                    }
                }
                if endpoint.is_unknown() {
                    return Wanted::Content(Arc::new([]));
                }
                let pods = &endpoint.pods;
                if let [pod] = pods.as_slice() {
                    let applying = Applying::of(cluster, pod, direction);
                    if applying.is_empty() {
                        return Wanted::Set(SetId::NONE);
                    }
                    let key = Key::of(&applying, cluster, pod, direction);
                    if let Some(content) = contents.get(&key) {
                        return Wanted::Content(content.clone());
                    }
                    if let Some(set) = cluster_sets.get(&key, &engine.sets) {
                        return Wanted::Known(set);
                    }
                    let n = applying.n_peers(direction);
                    if gatherings.n_looked_at.saturating_add(n) > n_most {
                        let number = gatherings.of(key, &applying, cluster, pod);
                        return Wanted::Gathered(number);
                    }
                    gatherings.n_looked_at += n;
                    let atoms = &mut engine.atoms;
                    let content = content_of(contents, key, &applying, cluster, pod, atoms);
                    return Wanted::Content(content.clone());
                }
                match strictest(cluster, pods, direction, &mut engine.atoms, contents) {
                    Some(content) => Wanted::Content(content),
                    None => Wanted::Set(SetId::NONE),
                }
            };
            let sets = endpoint.sets;
            let both = [of(Direction::Ingress, sets.ingress), of(Direction::Egress, sets.egress)];
            wanted.push((id, both));
        }
        wanted
    }

    /// The sets that can be edited in place: those that everybody who uses them wants changed, and
    /// alike.
    fn edits_in_place(&self, wanted: &[(EndpointId, [Wanted; 2])]) -> FxHashMap<SetId, Changes> {
        let mut edits: FxHashMap<SetId, (&Rc<Changes>, u32)> = FxHashMap::default();
        let mut apart = FxHashSet::default();
        for wanted in wanted.iter().flat_map(|(_, wanted)| wanted) {
            let Wanted::Edited(set, changes) = wanted else { continue };
            let (known, n_users) = edits.entry(*set).or_insert((changes, 0));
            *n_users += 1;
            if *known != changes {
                apart.insert(*set);
            }
        }
        let super::engine::Engine { sets, atoms, classes, .. } = &self.engine;
        let n_addresses = |class| classes.get(class).map_or(0, |class| class.n_addresses as usize);
        let is_editable = |id: SetId, changes: &Changes, n_users: u32| {
            let known = sets.get(id).filter(|set| set.n_users == n_users);
            // Rows that would be written anew.
            let n_rows = known.map_or(0, |set| set.rows.len());
            let most_moves = if self.edited_from == 0 { usize::MAX } else { n_rows };
            known.is_some()
                && n_rows >= self.edited_from
                && sets.is_editable(id, changes, most_moves, atoms, n_addresses)
        };
        edits.retain(|id, (changes, n_users)| {
            !apart.contains(id) && is_editable(*id, changes, *n_users)
        });
        edits.into_iter().map(|(id, (changes, _))| (id, (**changes).clone())).collect()
    }
}

/// What all of these pods may do. Replicas may the same; where pods differ it is nothing.
fn strictest(
    cluster: &Cluster,
    pods: &[Pod],
    direction: Direction,
    atoms: &mut Atoms,
    contents: &mut Contents,
) -> Option<Content> {
    let mut strictest: Option<Content> = None;
    for pod in pods {
        let applying = Applying::of(cluster, pod, direction);
        if applying.is_empty() {
            continue;
        }
        let key = Key::of(&applying, cluster, pod, direction);
        let content = content_of(contents, key, &applying, cluster, pod, atoms);
        strictest = match strictest {
            Some(known) if !is_equal(&known, content) => Some(Arc::new([])),
            _ => Some(content.clone()),
        };
    }
    strictest
}

/// Whether two contents are the same in whatever order.
fn is_equal(a: &Content, b: &Content) -> bool {
    if Arc::ptr_eq(a, b) {
        return true;
    }
    let known: FxHashMap<_, _> =
        a.iter().map(|(predicate, allowed)| (predicate, allowed)).collect();
    a.len() == b.len()
        && b.iter().all(|(predicate, allowed)| known.get(predicate) == Some(&allowed))
}
