//! The text of one manifest file -> Kubernetes objects and their model. Pure; must never touch
//! the file system, and never let an object disappear without a problem that names it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::Value;

use self::document::Twice;
use super::cluster_policy::{self, ClusterNetworkPolicy};
use super::convert::{self, Problem};
use super::foreign;
use super::schema::{self, Unknown};
use super::slices::{Condition, Selecting};
use netpol_model::{self as model, ObjectName, Str};

mod document;
mod scalar;
mod yaml;

/// What one file says.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    /// The objects, in order; those of kinds that policy does not depend on are left out.
    pub entries: Vec<Entry>,
    /// Why some of its documents cannot be read; the entries are those of the others.
    pub malformed: Option<String>,
    /// Policies of other products, which are not used.
    pub unused: Vec<Unused>,
    /// The pods that workloads of the file make, one for each workload, without addresses. They
    /// are no pods yet: only advice on policies looks at them.
    pub templates: Vec<model::Pod>,
}

impl Contents {
    /// Whether the file may define more objects than are recognisable: what it defined before
    /// must then stay.
    pub fn is_incomplete(&self) -> bool {
        self.malformed.is_some() || self.entries.iter().any(|entry| entry.key.is_none())
    }

    fn add(&mut self, document: Document) {
        match document {
            Ok(contents) => self.append(contents),
            Err(message) => match &mut self.malformed {
                Some(all) => *all = format!("{all}; {message}"),
                none => *none = Some(message),
            },
        }
    }

    /// Adds what another part of the file says.
    fn append(&mut self, mut other: Self) {
        self.entries.append(&mut other.entries);
        self.unused.append(&mut other.unused);
        self.templates.append(&mut other.templates);
    }
}

/// A policy that is none of those that are enforced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unused {
    /// Kind and name for people.
    pub title: String,
    /// The line its document starts at, from 1.
    pub line: usize,
    /// Why it is not used.
    pub note: String,
}

/// Which object an entry is, across files.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A namespace.
    Namespace(Str),
    /// A node.
    Node(Str),
    /// A pod.
    Pod(ObjectName),
    /// An EndpointSlice.
    Slice(ObjectName),
    /// A Service.
    Service(ObjectName),
    /// A NetworkPolicy.
    Policy(ObjectName),
    /// A ClusterNetworkPolicy.
    ClusterPolicy(Str),
}

/// One object of a file.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Kind and name for people: `NetworkPolicy shop/web`.
    pub title: String,
    /// The line its document starts at, from 1.
    pub line: usize,
    /// Which object it is; `None` if that cannot be known.
    pub key: Option<Key>,
    /// The object, unless refused.
    pub object: Option<Object>,
    /// What is wrong with it: with `object`, the parts that are left out; without, why it is
    /// refused.
    pub problems: Vec<Problem>,
    /// Of a policy, the fields that were written without a value ([`schema::left_empty`]).
    pub left_empty: Vec<String>,
}

/// An accepted object, as it was written, if that is kept, and as policy sees it.
#[derive(Debug, Clone)]
pub enum Object {
    /// A namespace.
    Namespace(Original<Namespace>, model::Namespace),
    /// A pod, and what decides whether it is a ready backend.
    Pod(Original<Pod>, model::Pod, Condition),
    /// A NetworkPolicy.
    Policy(Original<NetworkPolicy>, model::Policy),
    /// A ClusterNetworkPolicy.
    ClusterPolicy(Original<ClusterNetworkPolicy>, model::ClusterPolicy),
    /// A Service, and what selects its backends.
    Service(Original<Service>, model::Service, Option<Arc<Selecting>>),
    /// An EndpointSlice.
    Slice(Original<EndpointSlice>, model::EndpointSlice),
    /// A node.
    Node(Original<Node>, model::Node),
}

/// An object as it was written.
pub(crate) type Original<T> = Option<Box<T>>;

/// Whether objects are kept as they were written: people are told about these, and they take many
/// times the room of what policy sees of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Originals {
    /// They are.
    Kept,
    /// They are not.
    Dropped,
}

impl Originals {
    fn of<T>(self, object: T) -> Original<T> {
        (self == Self::Kept).then(|| Box::new(object))
    }
}

/// Reads a file. Its name only tells JSON from YAML.
pub fn file(name: &str, text: &str, originals: Originals) -> Contents {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match name.ends_with(".json") {
        true => json_documents(text, originals),
        false => yaml_documents(text, originals),
    }
}

/// A document, or why it cannot be read.
type Document = Result<Contents, String>;

fn json_documents(text: &str, originals: Originals) -> Contents {
    let mut contents = Contents::default();
    let mut rest = serde_json::Deserializer::from_str(text);
    while rest.end().is_err() {
        let document = document(1, originals, |elements| elements.read(Twice::Allowed, &mut rest));
        let is_end = document.is_err();
        contents.add(document.map_err(|error| {
            let message = error.to_string();
            let what = message.split(" at line ").next().unwrap_or_default();
            format!("line {}: malformed JSON: {what}", error.line())
        }));
        // Nobody knows where the next document would begin.
        if is_end {
            break;
        }
    }
    contents
}

fn yaml_documents(text: &str, originals: Originals) -> Contents {
    let mut contents = Contents::default();
    for (line, chunk) in split_documents(text) {
        let document = json_in_yaml(line, chunk, originals);
        contents.add(document.map_or_else(|| yaml(line, chunk, originals), Ok));
    }
    contents
}

/// What begins like JSON mostly is JSON, as for kubectl, and read in a fraction of the time; `None`
/// if it is not, or if YAML could take offence at it.
fn json_in_yaml(line: usize, chunk: &str, originals: Originals) -> Option<Contents> {
    let text = chunk.strip_prefix("---").unwrap_or(chunk).trim_start();
    if !text.starts_with('{') {
        return None;
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let read = |elements: &mut Elements<'_>| {
        let document = elements.read(Twice::Refused, &mut json)?;
        json.end().map(|()| document)
    };
    document(line, originals, read).ok()
}

fn yaml(line: usize, chunk: &str, originals: Originals) -> Document {
    let document = document(line, originals, |elements| yaml::read(chunk, elements));
    document.map_err(|yaml::Malformed { line: inside, message }| {
        format!("line {}: malformed YAML: {message}", line + inside.max(1) - 1)
    })
}

/// The documents of a YAML stream that hold anything, each with the number of its first line. A
/// line that starts with `---` separates documents wherever it stands, also in a block scalar.
fn split_documents(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut first_line, mut start, mut offset) = (1, 0, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let rest = line.strip_prefix("---").map(|rest| rest.chars().next());
        if matches!(rest, Some(None | Some(' ' | '\t' | '\r' | '\n'))) {
            documents.push((first_line, &text[start..offset]));
            (first_line, start) = (index + 1, offset);
        }
        offset += line.len();
    }
    documents.push((first_line, &text[start..]));
    documents.retain(|(_, chunk)| chunk.lines().any(holds_content));
    documents
}

fn holds_content(line: &str) -> bool {
    let line = line.trim_end();
    let marker = line.starts_with('%') || line == "..." || line == "---";
    let text = line.strip_prefix("--- ").unwrap_or(line).trim_start();
    !marker && !text.is_empty() && !text.starts_with('#')
}

/// What a document says that `read` reads.
fn document<E>(
    line: usize,
    originals: Originals,
    read: impl FnOnce(&mut Elements<'_>) -> Result<Value, E>,
) -> Result<Contents, E> {
    // What does not say what it is may be told by its list, whose kind may come last.
    let mut make = |element: Value| match ["kind", "apiVersion"].map(|key| element.get(key)) {
        [Some(_), Some(_)] => {
            let mut contents = Contents::default();
            add_document(element, None, line, originals, &mut contents);
            Element::Read(contents)
        }
        _ => Element::Untold(element),
    };
    let mut elements = Elements::new(&mut make);
    let document = read(&mut elements)?;
    let mut contents = Contents::default();
    add_document(document, elements.made(), line, originals, &mut contents);
    Ok(contents)
}

type Elements<'a> = document::Elements<Element, &'a mut dyn FnMut(Value) -> Element>;

/// An element of a list.
enum Element {
    /// What it says.
    Read(Contents),
    /// It does not say what it is.
    Untold(Value),
}

/// Adds the object of one document, or the objects of a list, whose `elements` were taken out.
fn add_document(
    mut document: Value,
    elements: Option<Vec<Element>>,
    line: usize,
    originals: Originals,
    contents: &mut Contents,
) {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(String::from);
    let (kind, version) = (text(&document, "kind"), text(&document, "apiVersion"));
    // As for kubectl, like one that is empty.
    if document.is_null() {
        return;
    }
    let Some(fields) = document.as_object_mut() else {
        let title = format!("document at line {line}");
        let problem = Problem::new("", "is not a Kubernetes object (no map of fields)");
        return contents.entries.push(Entry::unknown(title, line, problem));
    };
    let element = kind.as_deref().and_then(|kind| kind.strip_suffix("List"));
    if let (Some(element), Some(Value::Array(items))) = (element, fields.get_mut(document::ITEMS)) {
        let items = std::mem::take(items).into_iter().map(Element::Untold);
        for item in elements.into_iter().flatten().chain(items) {
            let mut item = match item {
                Element::Read(of_it) => {
                    contents.append(of_it);
                    continue;
                }
                Element::Untold(item) => item,
            };
            // The items of a typed list carry no type of their own.
            if let (false, Some(fields)) = (element.is_empty(), item.as_object_mut()) {
                fields.entry("kind").or_insert_with(|| element.into());
                if let Some(version) = &version {
                    fields.entry("apiVersion").or_insert_with(|| version.as_str().into());
                }
            }
            add_document(item, None, line, originals, contents);
        }
        return;
    }
    if element.is_some() && matches!(fields.get(document::ITEMS), None | Some(Value::Null)) {
        return;
    }
    if let Some(unused) = unused(kind.as_deref(), version.as_deref(), &document, line) {
        return contents.unused.push(unused);
    }
    contents.templates.extend(kind.as_deref().and_then(|kind| template(kind, &document)));
    contents.entries.extend(entry(kind.as_deref(), version.as_deref(), document, line, originals));
}

/// The pod that a workload makes, under a name that no pod has.
fn template(kind: &str, workload: &Value) -> Option<model::Pod> {
    let place = match kind {
        "Deployment"
        | "ReplicaSet"
        | "StatefulSet"
        | "DaemonSet"
        | "ReplicationController"
        | "Job" => "/spec/template",
        "CronJob" => "/spec/jobTemplate/spec/template",
        _ => return None,
    };
    let metadata = workload.get("metadata")?;
    let template = workload.pointer(place)?;
    let mut pod: Pod = serde_json::from_value(template.clone()).ok()?;
    pod.metadata.name = Some(format!("{kind}/{}", metadata.get("name")?.as_str()?));
    pod.metadata.namespace = metadata.get("namespace").and_then(Value::as_str).map(str::to_owned);
    Some(convert::pod(&pod).0)
}

/// The note on a policy of another product.
fn unused(
    kind: Option<&str>,
    version: Option<&str>,
    document: &Value,
    line: usize,
) -> Option<Unused> {
    let (kind, (group, _)) = (kind?, version?.split_once('/')?);
    let product = foreign::product(group, kind)?;
    let text = |key| document.pointer(key).and_then(Value::as_str).unwrap_or_default();
    let (name, namespace) = (text("/metadata/name"), text("/metadata/namespace"));
    let id = if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") };
    let title = format!("{kind} {id} ({group})");
    Some(Unused { title, line, note: foreign::note(product) })
}

fn entry(
    kind: Option<&str>,
    version: Option<&str>,
    value: Value,
    line: usize,
    originals: Originals,
) -> Option<Entry> {
    let metadata = |key| value.pointer(key).and_then(Value::as_str).unwrap_or_default();
    let (name, namespace) = (metadata("/metadata/name"), metadata("/metadata/namespace"));
    let id = ObjectName::new(if namespace.is_empty() { "default" } else { namespace }, name);
    let (kind, version) = match (kind, version) {
        (Some(kind), Some(version)) => (kind, version),
        (kind, _) => {
            let missing = if kind.is_none() { "kind" } else { "apiVersion" };
            let title = format!("{} {name}", kind.unwrap_or("object"));
            let title = format!("{} at line {line}", title.trim_end());
            let message = format!("Required value: {missing} is missing");
            return Some(Entry::unknown(title, line, Problem::new(missing, message)));
        }
    };
    let (key, expected) = match kind {
        "Namespace" => (Some(Key::Namespace(name.into())), "v1"),
        "Pod" => (Some(Key::Pod(id.clone())), "v1"),
        "NetworkPolicy" => (Some(Key::Policy(id.clone())), "networking.k8s.io/v1"),
        "Service" => (Some(Key::Service(id.clone())), "v1"),
        "Node" => (Some(Key::Node(name.into())), "v1"),
        "EndpointSlice" => (Some(Key::Slice(id.clone())), "discovery.k8s.io/v1"),
        cluster_policy::KIND => {
            // Both versions mean the same.
            let known = version.split_once('/').is_some_and(|(group, version)| {
                group == cluster_policy::GROUP && cluster_policy::VERSIONS.contains(&version)
            });
            let expected = if known { version } else { NEWEST_CLUSTER_POLICY };
            (Some(Key::ClusterPolicy(name.into())), expected)
        }
        _ => return unused_kind(kind, version, &id, line),
    };
    let title = match kind {
        "Namespace" | "Node" | cluster_policy::KIND => format!("{kind} {name}"),
        _ => format!("{kind} {id}"),
    };
    // A name that is missing or no string says nothing about which object this is.
    let own = matches!(kind, "Namespace" | "Pod" | "NetworkPolicy" | cluster_policy::KIND);
    let key = key.filter(|_| !name.is_empty());
    if version != expected {
        let message =
            format!("no matches for kind \"{kind}\" in version \"{version}\" (use {expected})");
        let problem = Problem::new("apiVersion", message);
        // Kinds of other products that share a name (Knative's Service) concern nobody here.
        let concerns = own || version.starts_with("discovery.k8s.io/");
        return concerns.then(|| Entry { key, ..Entry::unknown(title, line, problem) });
    }
    let spec = value.get("spec").filter(|_| kind.ends_with("NetworkPolicy"));
    let left_empty = spec.map(schema::left_empty).unwrap_or_default();
    let left_empty = left_empty.iter().map(|path| format!("spec.{path}")).collect();
    let (object, problems) = match object(kind, value, originals) {
        Ok((object, problems)) => (Some(object), problems),
        Err(problems) => (None, problems),
    };
    Some(Entry { title, line, key, object, problems, left_empty })
}

/// The version that is told where an unknown one is given.
const NEWEST_CLUSTER_POLICY: &str = "policy.networking.k8s.io/v1beta1";

impl Entry {
    fn unknown(title: String, line: usize, problem: Problem) -> Self {
        let problems = vec![problem];
        Self { title, line, key: None, object: None, problems, left_empty: Vec::new() }
    }
}

const CORE_KINDS: [&str; 13] = [
    "Binding",
    "ConfigMap",
    "Endpoints",
    "Event",
    "LimitRange",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "PodTemplate",
    "ReplicationController",
    "ResourceQuota",
    "Secret",
    "ServiceAccount",
    "ComponentStatus",
];
const NETWORKING_KINDS: [&str; 4] = ["Ingress", "IngressClass", "IPAddress", "ServiceCIDR"];

/// A kind that policy does not depend on is left alone, unless it looks like a misspelt one:
/// a policy must not be lost to a typo.
fn unused_kind(kind: &str, version: &str, id: &ObjectName, line: usize) -> Option<Entry> {
    let meant = schema::closest(kind, ["NetworkPolicy", "Namespace", "Pod", cluster_policy::KIND]);
    let known = match version {
        "v1" => CORE_KINDS.contains(&kind),
        _ if version.starts_with("networking.k8s.io/") => NETWORKING_KINDS.contains(&kind),
        _ => meant.is_none(),
    };
    if known {
        tracing::debug!(kind, version, object = %id, "object of a kind that policy ignores");
        return None;
    }
    let hint = meant.map(|kind| format!(" (did you mean {kind}?)")).unwrap_or_default();
    let message = format!("no matches for kind \"{kind}\" in version \"{version}\"{hint}");
    Some(Entry::unknown(format!("{kind} {id}"), line, Problem::new("kind", message)))
}

type Accepted = Result<(Object, Vec<Problem>), Vec<Problem>>;

fn object(kind: &str, value: Value, originals: Originals) -> Accepted {
    match kind {
        "NetworkPolicy" => {
            read(schema::NETWORK_POLICY, Unknown::Refused, value, |policy: NetworkPolicy| {
                let model = convert::policy(&policy)?;
                Ok((Object::Policy(originals.of(policy), model), Vec::new()))
            })
        }
        cluster_policy::KIND => read(
            schema::CLUSTER_NETWORK_POLICY,
            Unknown::Refused,
            value,
            |policy: ClusterNetworkPolicy| {
                let (model, notes) = convert::checked_cluster_policy(&policy)?;
                Ok((Object::ClusterPolicy(originals.of(policy), model), notes))
            },
        ),
        "Pod" => read(schema::ANY_OBJECT, Unknown::Ignored, value, |pod: Pod| {
            refuse(convert::namespaced_problems(&pod.metadata))?;
            let (model, problems) = convert::pod(&pod);
            let condition = Condition::of(&pod);
            Ok((Object::Pod(originals.of(pod), model, condition), problems))
        }),
        "Namespace" => read(schema::ANY_OBJECT, Unknown::Ignored, value, |namespace: Namespace| {
            refuse(convert::namespace_problems(&namespace))?;
            let model = convert::namespace(&namespace);
            Ok((Object::Namespace(originals.of(namespace), model), Vec::new()))
        }),
        "Service" => read(schema::ANY_OBJECT, Unknown::Ignored, value, |service: Service| {
            refuse(convert::namespaced_problems(&service.metadata))?;
            let (model, problems) = convert::service(&service);
            let selecting = Selecting::of(&service).map(Arc::new);
            Ok((Object::Service(originals.of(service), model, selecting), problems))
        }),
        "Node" => read(schema::ANY_OBJECT, Unknown::Ignored, value, |node: Node| {
            refuse(convert::node_problems(&node))?;
            let (model, problems) = convert::node(&node);
            Ok((Object::Node(originals.of(node), model), problems))
        }),
        _ => read(schema::ANY_OBJECT, Unknown::Ignored, value, |slice: EndpointSlice| {
            refuse(convert::namespaced_problems(&slice.metadata))?;
            let (model, problems) = convert::endpoint_slice(&slice);
            Ok((Object::Slice(originals.of(slice), model), problems))
        }),
    }
}

/// An object from its fields. What is wrong with their names and their values is told at once.
fn read<T: serde::de::DeserializeOwned>(
    schema: &schema::Schema,
    unknown: Unknown,
    mut value: Value,
    make: impl FnOnce(T) -> Accepted,
) -> Accepted {
    let mut problems = schema::check(schema, unknown, &mut value);
    let made = match typed(value) {
        Ok(object) => make(object),
        // The schema has said it better.
        Err(_) if !problems.is_empty() => return Err(problems),
        Err(mistyped) => return Err(mistyped),
    };
    if problems.is_empty() {
        return made;
    }
    let follows = |other: &Problem| {
        problems.iter().any(|first| {
            let around = first.field.rsplit_once('.').map_or("", |(around, _)| around);
            other.field == around || other.field == first.field
        })
    };
    let others = made.err().into_iter().flatten();
    let others: Vec<Problem> = others.filter(|other| !follows(other)).collect();
    problems.extend(others);
    Err(problems)
}

fn refuse(problems: Vec<Problem>) -> Result<(), Vec<Problem>> {
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, Vec<Problem>> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { String::new() } else { path };
        vec![Problem::new(field, error.into_inner().to_string())]
    })
}

#[cfg(test)]
mod tests;
