//! What the files together say, against what was sent before: problems and changes. Pure; must
//! never forget an object because its file is unreadable just now.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Event;
use super::convert::{self, Problem};
use super::parse::{Contents, Key, Object};
use super::slices::{self, Condition, Selecting};
use netpol_model::{
    Change, ClusterPolicy, EndpointSlice, Namespace, Node, ObjectName, Pod, Policy, Service, Str,
};

/// What is known of one file, by its path.
#[derive(Debug, Clone)]
pub enum FileState {
    /// It was read.
    Read(Arc<Contents>),
    /// It (or, if it is a directory, what is below it) could not be read, for this reason.
    Unreadable(String),
}

/// All files in path order, named relative to the directory.
pub type Files = BTreeMap<String, FileState>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Model {
    Namespace(Namespace),
    Pod(Pod),
    Policy(Policy),
    ClusterPolicy(ClusterPolicy),
    Service(Service),
    Slice(EndpointSlice),
    Node(Node),
}

#[derive(Debug, Clone)]
struct InForce {
    model: Model,
    /// What else of it decides who is a backend of a Service.
    backend_facts: BackendFacts,
    /// The file it comes from; `None` for a namespace that is only referred to and for a derived
    /// slice.
    file: Option<Str>,
}

#[derive(Debug, Clone)]
enum BackendFacts {
    Nothing,
    Pod(Condition),
    Service(Arc<Selecting>),
}

/// The objects in force and the problems known.
#[derive(Debug, Default)]
pub struct Catalog {
    in_force: BTreeMap<Key, InForce>,
    problems: BTreeMap<String, String>,
}

impl Catalog {
    /// Takes what the files say now and returns what is new since the last call: at most one
    /// [`Event::Changes`], then problems and ends of problems.
    pub fn update(&mut self, files: &Files) -> Vec<Event> {
        let mut next = Next { before: &self.in_force, ..Next::default_for(&self.in_force) };
        for (file, state) in files {
            next.add_file(file, state);
        }
        next.keep_what_is_hidden(files);
        next.add_implied_namespaces();
        next.add_derived_slices();
        let Next { desired, problems, .. } = next;
        let mut events = Vec::new();
        let changes = changes(&self.in_force, &desired);
        if !changes.is_empty() {
            events.push(Event::Changes(changes));
        }
        for (object, message) in &problems {
            if self.problems.get(object) != Some(message) {
                let (object, message) = (object.clone(), message.clone());
                events.push(Event::Problem { object, message });
            }
        }
        let over = self.problems.keys().filter(|object| !problems.contains_key(*object));
        events.extend(over.map(|object| Event::Resolved { object: object.clone() }));
        self.in_force = desired;
        self.problems = problems;
        events
    }

    /// The problems known, by object.
    pub fn problems(&self) -> &BTreeMap<String, String> {
        &self.problems
    }
}

/// The next state while it is put together.
struct Next<'a> {
    before: &'a BTreeMap<Key, InForce>,
    desired: BTreeMap<Key, InForce>,
    /// Which file defines an object first, and how it names it, also if it is refused.
    claimed: BTreeMap<Key, (Str, String)>,
    problems: BTreeMap<String, String>,
}

impl<'a> Next<'a> {
    fn default_for(before: &'a BTreeMap<Key, InForce>) -> Self {
        Self {
            before,
            desired: BTreeMap::new(),
            claimed: BTreeMap::new(),
            problems: BTreeMap::new(),
        }
    }

    fn problem(&mut self, object: &str, message: String) {
        let text = self.problems.entry(object.to_owned()).or_default();
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(&message);
    }

    fn add_file(&mut self, file: &str, state: &FileState) {
        let contents = match state {
            FileState::Unreadable(_) => return,
            FileState::Read(contents) => contents,
        };
        let path = Str::from(file);
        for unused in &contents.unused {
            self.problem(&format!("{} ({file})", unused.title), unused.note.clone());
        }
        for entry in &contents.entries {
            let title = format!("{} ({file})", entry.title);
            if let Some(key) = &entry.key {
                if let Some((first_file, first_title)) = self.claimed.get(key).cloned() {
                    let again = format!("also defined in {file}, which is ignored");
                    self.problem(&first_title, again);
                    if first_title != title {
                        self.problem(&title, format!("ignored: defined in {first_file} already"));
                    }
                    continue;
                }
                self.claimed.insert(key.clone(), (path.clone(), title.clone()));
                let model = entry.object.as_ref().map(model);
                let kept = self.before.get(key).filter(|old| old.file.is_some());
                let found = match model {
                    Some((model, backend_facts)) => {
                        Some(InForce { model, backend_facts, file: Some(path.clone()) })
                    }
                    None => kept.cloned(),
                };
                if let Some(found) = found {
                    self.desired.insert(key.clone(), found);
                }
            }
            if !entry.problems.is_empty() {
                let kept = entry.key.as_ref().is_some_and(|key| self.desired.contains_key(key));
                let message = entry_message(&entry.problems, entry.object.is_some(), kept);
                self.problem(&title, message);
            }
        }
    }

    /// Keeps the objects of files that cannot be fully read just now.
    fn keep_what_is_hidden(&mut self, files: &Files) {
        let hides = |file: &str| match files.get(file) {
            Some(FileState::Unreadable(_)) => true,
            Some(FileState::Read(contents)) => contents.is_incomplete(),
            // An unreadable directory hides everything below it.
            None => files.iter().any(|(path, state)| {
                (path == "." || is_at_or_below(path, file))
                    && matches!(state, FileState::Unreadable(_))
            }),
        };
        let mut kept = BTreeSet::new();
        for (key, old) in self.before {
            let Some(file) = &old.file else { continue };
            if !self.claimed.contains_key(key) && hides(file) {
                self.desired.insert(key.clone(), old.clone());
                kept.insert(file.clone());
            }
        }
        for (path, state) in files {
            let reason = match state {
                FileState::Unreadable(reason) => Some(reason),
                FileState::Read(contents) => contents.malformed.as_ref(),
            };
            let Some(reason) = reason else { continue };
            let is_within = |file: &Str| path == "." || is_at_or_below(path, file);
            let and = match kept.iter().any(is_within) {
                true => "what was defined there before stays in force",
                false => "nothing of that is in force",
            };
            self.problem(path, format!("{reason}; {and}"));
        }
    }

    /// A namespace that something is in exists, whether or not a file defines it.
    fn add_implied_namespaces(&mut self) {
        let names: Vec<Str> = self
            .desired
            .keys()
            .filter_map(|key| match key {
                Key::Namespace(_) | Key::Node(_) | Key::ClusterPolicy(_) => None,
                Key::Pod(id) | Key::Policy(id) | Key::Service(id) | Key::Slice(id) => {
                    Some(id.namespace.clone())
                }
            })
            .collect();
        for name in names {
            self.desired.entry(Key::Namespace(name.clone())).or_insert_with(|| InForce {
                model: Model::Namespace(convert::named_namespace(&name, [])),
                backend_facts: BackendFacts::Nothing,
                file: None,
            });
        }
    }

    /// A Service with a selector of which no file has a slice gets those that a cluster would
    /// make for it.
    fn add_derived_slices(&mut self) {
        let objects = || self.desired.values();
        let by_hand: BTreeSet<ObjectName> = objects()
            .filter_map(|object| match &object.model {
                Model::Slice(slice) => {
                    Some(ObjectName::new(slice.id.namespace.clone(), slice.service.clone()))
                }
                _ => None,
            })
            .collect();
        let mut derived = Vec::new();
        for object in objects() {
            let (Model::Service(service), BackendFacts::Service(selecting)) =
                (&object.model, &object.backend_facts)
            else {
                continue;
            };
            if by_hand.contains(&service.id) {
                continue;
            }
            let pods =
                objects().filter_map(|object| match (&object.model, &object.backend_facts) {
                    (Model::Pod(pod), BackendFacts::Pod(condition)) => Some((pod, *condition)),
                    _ => None,
                });
            derived.extend(slices::derive(service, selecting, pods));
        }
        for slice in derived {
            let key = Key::Slice(slice.id.clone());
            let (model, backend_facts) = (Model::Slice(slice), BackendFacts::Nothing);
            self.desired.insert(key, InForce { model, backend_facts, file: None });
        }
    }
}

fn is_at_or_below(path: &str, file: &str) -> bool {
    file.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn entry_message(problems: &[Problem], accepted: bool, kept: bool) -> String {
    let what = convert::join(problems);
    match (accepted, kept) {
        (true, _) => format!("used without this: {what}"),
        (false, true) => format!("refused: {what}; its last good version stays in force"),
        (false, false) => format!("refused: {what}; nothing of it is in force"),
    }
}

fn model(object: &Object) -> (Model, BackendFacts) {
    match object {
        Object::Namespace(_, namespace) => {
            (Model::Namespace(namespace.clone()), BackendFacts::Nothing)
        }
        Object::Pod(_, pod, condition) => (Model::Pod(pod.clone()), BackendFacts::Pod(*condition)),
        Object::Policy(_, policy) => (Model::Policy(policy.clone()), BackendFacts::Nothing),
        Object::ClusterPolicy(_, policy) => {
            (Model::ClusterPolicy(policy.clone()), BackendFacts::Nothing)
        }
        Object::Service(_, service, selecting) => {
            let backend_facts =
                selecting.clone().map_or(BackendFacts::Nothing, BackendFacts::Service);
            (Model::Service(service.clone()), backend_facts)
        }
        Object::Slice(_, slice) => (Model::Slice(slice.clone()), BackendFacts::Nothing),
        Object::Node(_, node) => (Model::Node(node.clone()), BackendFacts::Nothing),
    }
}

/// Namespaces, nodes, pods, slices, Services, policies (the order of keys), then deletions in the
/// opposite order.
fn changes(before: &BTreeMap<Key, InForce>, after: &BTreeMap<Key, InForce>) -> Vec<Change> {
    let different = after
        .iter()
        .filter(|(key, new)| before.get(*key).is_none_or(|old| old.model != new.model))
        .map(|(_, new)| match new.model.clone() {
            Model::Namespace(namespace) => Change::Namespace(namespace),
            Model::Pod(pod) => Change::Pod(pod),
            Model::Policy(policy) => Change::Policy(policy),
            Model::ClusterPolicy(policy) => Change::ClusterPolicy(policy),
            Model::Service(service) => Change::Service(service),
            Model::Slice(slice) => Change::EndpointSlice(slice),
            Model::Node(node) => Change::Node(node),
        });
    let gone = before.iter().rev().filter(|(key, _)| !after.contains_key(*key));
    let gone = gone.map(|(_, old)| match &old.model {
        Model::Namespace(namespace) => Change::NamespaceGone(namespace.name.clone()),
        Model::Pod(pod) => Change::PodGone(pod.id.clone(), Some(pod.uid.clone())),
        Model::Policy(policy) => Change::PolicyGone(policy.id.clone()),
        Model::ClusterPolicy(policy) => Change::ClusterPolicyGone(policy.name.clone()),
        Model::Service(service) => Change::ServiceGone(service.id.clone()),
        Model::Slice(slice) => Change::EndpointSliceGone(slice.id.clone()),
        Model::Node(node) => Change::NodeGone(node.name.clone()),
    });
    different.chain(gone).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::parse::{self, Originals};
    use netpol_model::{Cluster, ObjectName};

    /// Files as they are edited, and the cluster that results from the events.
    #[derive(Default)]
    struct World {
        catalog: Catalog,
        files: Files,
        cluster: Cluster,
    }

    impl World {
        fn write(&mut self, path: &str, text: &str) -> Vec<Event> {
            let contents = parse::file(path, text, Originals::Dropped);
            self.files.insert(path.into(), FileState::Read(Arc::new(contents)));
            self.scan()
        }

        fn scan(&mut self) -> Vec<Event> {
            let events = self.catalog.update(&self.files);
            for event in &events {
                if let Event::Changes(changes) = event {
                    for change in changes {
                        assert!(self.cluster.apply(change.clone()), "needless: {change:?}");
                    }
                }
            }
            assert_eq!(self.catalog.update(&self.files), [], "the second look finds nothing new");
            events
        }

        fn ports(&self, name: &str) -> Option<String> {
            let policy = self.cluster.policy(&ObjectName::new("default", name))?;
            Some(format!("{:?}", policy.ingress.as_ref().unwrap()[0].ports))
        }
    }

    fn policy(name: &str, port: &str) -> String {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\n\
             spec: {{podSelector: {{}}, ingress: [{{ports: [{{port: {port}}}]}}]}}\n---\n"
        )
    }

    fn pod(name: &str, ip: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nstatus: {{podIP: {ip}}}\n---\n"
        )
    }

    fn problems(events: &[Event]) -> Vec<(String, String)> {
        let problem = |event: &Event| match event {
            Event::Problem { object, message } => Some((object.clone(), message.clone())),
            _ => None,
        };
        events.iter().filter_map(problem).collect()
    }

    #[test]
    fn only_what_differs_is_sent_in_a_sensible_order() {
        let mut world = World::default();
        let events = world.write("a.yaml", &(policy("x", "80") + &pod("p", "10.0.0.1")));
        let [Event::Changes(changes)] = &events[..] else { panic!("{events:?}") };
        assert!(matches!(
            &changes[..],
            [Change::Namespace(n), Change::Pod(_), Change::Policy(_)] if &*n.name == "default"
        ));
        let events = world.write("a.yaml", &(policy("x", "81") + &pod("p", "10.0.0.1")));
        let [Event::Changes(changes)] = &events[..] else { panic!("{events:?}") };
        assert!(matches!(&changes[..], [Change::Policy(_)]));
        let events = world.write("a.yaml", "");
        let [Event::Changes(changes)] = &events[..] else { panic!("{events:?}") };
        assert!(matches!(
            &changes[..],
            [Change::PolicyGone(_), Change::PodGone(_, Some(_)), Change::NamespaceGone(_)]
        ));
        assert_eq!(world.cluster.all_pods().count(), 0);
    }

    #[test]
    fn a_refused_policy_keeps_its_last_good_version() {
        let mut world = World::default();
        world.write("a.yaml", &(policy("x", "80") + &policy("z", "1")));
        let good = world.ports("x");
        let events = world.write("a.yaml", &(policy("x", "0") + &policy("z", "2")));
        let problem = &problems(&events)[0];
        assert_eq!(problem.0, "NetworkPolicy default/x (a.yaml)");
        assert!(
            problem.1.starts_with("refused: spec.ingress[0].ports[0].port: Invalid value: 0:")
                && problem.1.ends_with("its last good version stays in force"),
            "{problem:?}"
        );
        assert_eq!(world.ports("x"), good);
        assert!(world.ports("z").unwrap().contains('2'), "the others go on");
        let events = world.write("a.yaml", &(policy("x", "82") + &policy("z", "2")));
        let object = "NetworkPolicy default/x (a.yaml)".to_owned();
        assert_eq!(events.last(), Some(&Event::Resolved { object }));
        assert!(world.ports("x").unwrap().contains("82"));
    }

    #[test]
    fn a_policy_that_never_was_good_is_not_in_force() {
        let mut world = World::default();
        let events = world.write("a.yaml", &policy("x", "0"));
        assert!(problems(&events)[0].1.ends_with("nothing of it is in force"), "{events:?}");
        assert_eq!(world.ports("x"), None);
    }

    #[test]
    fn objects_of_a_malformed_file_stay_until_it_is_good_or_gone() {
        let mut world = World::default();
        world.write("a.yaml", &(policy("x", "80") + &policy("z", "80")));
        let events = world.write("a.yaml", "kind: [\n");
        assert_eq!(events.len(), 1, "{events:?}");
        let problem = &problems(&events)[0];
        assert_eq!(problem.0, "a.yaml");
        assert!(problem.1.contains("malformed YAML"), "{problem:?}");
        assert!(world.ports("x").is_some() && world.ports("z").is_some());
        // The same policy may move to another file meanwhile.
        world.write("b.yaml", &policy("z", "90"));
        assert!(world.ports("z").unwrap().contains("90"));
        world.write("a.yaml", &policy("x", "81"));
        assert!(world.ports("x").unwrap().contains("81"));
        world.write("a.yaml", "kind: [\n");
        world.files.remove("a.yaml");
        let events = world.scan();
        assert!(events.contains(&Event::Resolved { object: "a.yaml".into() }));
        assert_eq!(world.ports("x"), None);
    }

    #[test]
    fn what_cannot_be_read_says_whether_anything_of_it_is_in_force() {
        let mut world = World::default();
        let said = |events: &[Event]| problems(events)[0].1.clone();
        let bad = policy("x", "80") + "---\nkind: [\n";
        let first = said(&world.write("a.yaml", &bad));
        assert!(first.ends_with("; nothing of that is in force"), "{first}");
        world.write("a.yaml", &(policy("x", "80") + &policy("z", "80")));
        let later = said(&world.write("a.yaml", &bad));
        assert!(later.ends_with("; what was defined there before stays in force"), "{later}");
        world.files.insert("sub".into(), FileState::Unreadable("denied".into()));
        let events = world.scan();
        assert_eq!(said(&events), "denied; nothing of that is in force");
        let unnamed = policy("x", "80").replace("name: x", "generateName: x-");
        let unnamed = said(&world.write("b.yaml", &unnamed));
        assert!(unnamed.contains("metadata.name: Required value: generateName has"), "{unnamed}");
    }

    #[test]
    fn a_malformed_document_holds_back_nothing_but_itself() {
        let mut world = World::default();
        world.write("a.yaml", &(policy("x", "80") + &policy("z", "80")));
        let text = policy("x", "81") + "---\nkind: [\n---\n" + &policy("new", "82");
        let events = world.write("a.yaml", &text);
        assert!(problems(&events)[0].1.contains("malformed YAML"), "{events:?}");
        assert!(world.ports("x").unwrap().contains("81"));
        assert!(world.ports("new").unwrap().contains("82"));
        // It may be what cannot be read.
        assert!(world.ports("z").unwrap().contains("80"));
    }

    #[test]
    fn a_document_nobody_can_identify_hides_what_the_file_defined() {
        let mut world = World::default();
        world.write("a.yaml", &(policy("x", "80") + &policy("z", "80")));
        let misspelt = policy("x", "80").replace("NetworkPolicy", "NetworkPolcy");
        let events = world.write("a.yaml", &(misspelt + &policy("z", "81")));
        assert!(problems(&events)[0].1.contains("did you mean NetworkPolicy?"), "{events:?}");
        assert!(world.ports("x").is_some(), "a typo in the kind opens nothing");
        assert!(world.ports("z").unwrap().contains("81"));
        world.write("a.yaml", &policy("z", "81"));
        assert_eq!(world.ports("x"), None);
    }

    #[test]
    fn an_unreadable_file_or_directory_hides_and_removes_nothing() {
        let mut world = World::default();
        world.write("d/a.yaml", &policy("x", "80"));
        world.write("da.yaml", &policy("w", "80"));
        for hidden in ["d/a.yaml", "d", "."] {
            let saved = world.files.clone();
            world.files.remove("d/a.yaml");
            world.files.insert(hidden.into(), FileState::Unreadable("cannot be read: x".into()));
            let events = world.scan();
            assert_eq!(problems(&events)[0].0, hidden);
            assert!(world.ports("x").is_some(), "{hidden}");
            world.files = saved;
            world.scan();
        }
        world.files.remove("d/a.yaml");
        world.scan();
        assert_eq!(world.ports("x"), None);
        assert!(world.ports("w").is_some());
    }

    #[test]
    fn the_first_of_two_definitions_wins_and_both_are_named() {
        let mut world = World::default();
        world.write("b.yaml", &policy("x", "80"));
        let events = world.write("a.yaml", &policy("x", "81"));
        assert!(world.ports("x").unwrap().contains("81"));
        let found = problems(&events);
        assert_eq!(
            found,
            [
                (
                    "NetworkPolicy default/x (a.yaml)".into(),
                    "also defined in b.yaml, which is ignored".into()
                ),
                (
                    "NetworkPolicy default/x (b.yaml)".into(),
                    "ignored: defined in a.yaml already".into()
                ),
            ]
        );
        world.files.remove("a.yaml");
        let events = world.scan();
        assert_eq!(events.len(), 3, "one change and two problems less: {events:?}");
        assert!(world.ports("x").unwrap().contains("80"));
        let events = world.write("b.yaml", &(policy("x", "1") + &policy("x", "2")));
        assert_eq!(problems(&events).len(), 1, "twice in one file: {events:?}");
    }

    #[test]
    fn namespaces_that_are_only_referred_to_exist() {
        let mut world = World::default();
        world.write("a.yaml", &pod("p", "10.0.0.1"));
        let label = |world: &World, key: &str| {
            world.cluster.namespaces.get("default").and_then(|n| n.labels.get(key).cloned())
        };
        assert_eq!(label(&world, convert::NAMESPACE_NAME_LABEL).as_deref(), Some("default"));
        let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {a: b}}\n";
        world.write("n.yaml", text);
        assert_eq!(label(&world, "a").as_deref(), Some("b"));
        world.files.remove("n.yaml");
        world.scan();
        assert_eq!(label(&world, "a"), None);
        assert!(world.cluster.namespaces.contains_key("default"));
        // A refused definition of a namespace that was only implied leaves it implied.
        world.write("n.yaml", &text.replace("a: b", "a: 5"));
        assert!(world.cluster.namespaces.contains_key("default"));
    }

    #[test]
    fn a_pod_with_a_bad_address_is_kept_without_it() {
        let mut world = World::default();
        let events = world.write("a.yaml", &pod("p", "10.0.0.300"));
        let found = problems(&events);
        assert_eq!(found[0].0, "Pod default/p (a.yaml)");
        assert!(found[0].1.starts_with("used without this: status.podIP: Invalid value:"));
        let pod = world.cluster.pod(&ObjectName::new("default", "p")).unwrap();
        assert!(pod.addresses.is_empty());
    }

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  \
        clusterIP: 10.96.0.1\n  selector: {app: web}\n  \
        ports: [{port: 80, targetPort: 8080}]\n---\n";

    fn backend(name: &str, ip: &str, conditions: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: web}}}}\n\
             status: {{podIP: {ip}, conditions: [{conditions}]}}\n---\n"
        )
    }

    fn backends(world: &World) -> Vec<String> {
        let slices = world.cluster.slices.values().flat_map(|slices| slices.values());
        let endpoints = slices.flat_map(|slice| {
            let port = slice.ports[0].port;
            slice.endpoints.iter().map(move |e| format!("{}:{port} {}", e.address, e.ready))
        });
        endpoints.collect()
    }

    #[test]
    fn a_service_with_a_selector_gets_its_slices_from_the_pods() {
        let mut world = World::default();
        world.write("service.yaml", SERVICE);
        assert!(backends(&world).is_empty());
        assert!(world.cluster.namespaces.contains_key("default"));
        world.write("a.yaml", &backend("a", "10.0.0.1", ""));
        assert_eq!(backends(&world), ["10.0.0.1:8080 true"]);
        let events =
            world.write("a.yaml", &backend("a", "10.0.0.1", "{type: Ready, status: \"False\"}"));
        let [Event::Changes(changes)] = &events[..] else { panic!("{events:?}") };
        assert!(matches!(&changes[..], [Change::EndpointSlice(_)]), "the pod is as it was");
        assert_eq!(backends(&world), ["10.0.0.1:8080 false"]);
        world.write("service.yaml", "");
        assert!(world.cluster.slices.is_empty() && world.cluster.services.is_empty());
    }

    #[test]
    fn slices_by_hand_replace_derived_ones() {
        let mut world = World::default();
        world.write("a.yaml", &(backend("a", "10.0.0.1", "") + SERVICE));
        world.write(
            "slice.yaml",
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
             metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}\n\
             ports: [{port: 9}]\nendpoints: [{addresses: [192.0.2.1]}]\n",
        );
        assert_eq!(backends(&world), ["192.0.2.1:9 true"]);
        // It may still say the same when it can be read again.
        world.files.insert("slice.yaml".into(), FileState::Unreadable("denied".into()));
        world.scan();
        assert_eq!(backends(&world), ["192.0.2.1:9 true"]);
        world.files.remove("slice.yaml");
        world.scan();
        assert_eq!(backends(&world), ["10.0.0.1:8080 true"]);
    }
}
