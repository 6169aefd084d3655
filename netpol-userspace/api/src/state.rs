//! What the agent tells: the JSON of `<run-dir>/state.json` and of the socket
//! `<run-dir>/agent.sock`. Plain data; field names of [`Status`] and [`EndpointView`] are relied
//! on from outside.
//!
//! The socket speaks HTTP/1.1: `GET /status` and `GET /state` answer at once with [`Status`] and
//! [`State`]; `POST /wait?timeout_ms=N` answers with [`Status`] when everything written before
//! the request is in force, or with status 504 and [`Status`] when time is up; `POST /ask` answers
//! a [`super::questions::Question`], `POST /cni?timeout_ms=N` what the CNI plugin tells
//! ([`super::sandbox::CniRequest`]).

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

pub use self::classes::ClassWords;
use super::questions::NamedPort;
use netpol_compile::ids::Ids;

mod classes;

/// Version of [`State`]; a file of another version is not read.
pub const VERSION: u32 = 1;

/// How many policies and rules are written with each endpoint that has them.
const LONG: usize = 200;

/// Directory of the state file and the socket, unless another one is given.
pub const RUN_DIR: &str = "/run/netpol";

/// Path of the state file.
pub fn state_path(run_dir: &Path) -> PathBuf {
    run_dir.join("state.json")
}

/// Path of the agent's socket.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("agent.sock")
}

/// Everything about this node that is not in the maps. Rewritten, atomically, before endpoints are
/// enforced and after anything a person could see has changed; new numbers are in the
/// agent's journal before they are used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// [`VERSION`].
    pub version: u32,
    /// The node's name.
    pub node: String,
    /// The agent's process id.
    pub pid: u32,
    /// `--bpffs` of the agent.
    pub bpffs: PathBuf,
    /// Summary.
    pub status: Status,
    /// Local endpoints, sorted by namespace and name.
    pub endpoints: Vec<EndpointView>,
    /// What isolates them and is long.
    #[serde(default)]
    pub isolations: Vec<Arc<Isolation>>,
    /// Names of the classes in use, by number.
    pub classes: Arc<ClassWords>,
    /// Numbers in use and what they stand for, for the next agent: none in what the agent answers.
    pub ids: Ids,
    /// Whose the interfaces are, for the next agent, whatever becomes of the pods' objects.
    #[serde(default)]
    pub remembered: Vec<Remembered>,
    /// The uids of pods that have had an interface.
    #[serde(default)]
    pub placed: Vec<String>,
    /// When pods came to this node, by uid, in seconds since the epoch.
    #[serde(default)]
    pub arrived: BTreeMap<String, i64>,
    /// The boot and the network namespace in which interfaces have these numbers.
    #[serde(default)]
    pub place: String,
}

impl State {
    /// Reads what was written of one.
    ///
    /// # Errors
    /// It is not such a state.
    pub fn parse(text: &[u8]) -> serde_json::Result<Self> {
        let mut state: Self = serde_json::from_slice(text)?;
        for endpoint in &mut state.endpoints {
            for view in [&mut endpoint.ingress, &mut endpoint.egress] {
                let number = view.number.and_then(|number| usize::try_from(number).ok());
                let isolation = number.and_then(|number| state.isolations.get(number));
                if let Some(isolation) = isolation {
                    view.isolation = isolation.clone();
                }
            }
        }
        Ok(state)
    }

    /// The same with these endpoints, and with what isolates them.
    pub fn with_endpoints(mut self, mut endpoints: Vec<EndpointView>) -> Self {
        let mut numbers: HashMap<*const Isolation, u32> = HashMap::new();
        self.isolations.clear();
        for endpoint in &mut endpoints {
            for view in [&mut endpoint.ingress, &mut endpoint.egress] {
                view.number = view.isolation.is_long().then(|| {
                    let next = u32::try_from(self.isolations.len()).unwrap_or(u32::MAX);
                    let number = *numbers.entry(Arc::as_ptr(&view.isolation)).or_insert(next);
                    if number == next {
                        self.isolations.push(view.isolation.clone());
                    }
                    number
                });
            }
        }
        self.endpoints = endpoints;
        self
    }
}

/// Whose an interface is, and what is to be known of that pod to judge it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub interface: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid, empty if it could not be decided.
    pub uid: String,
    /// The addresses by which it is known.
    pub addresses: Vec<IpAddr>,
    /// Nothing but the addresses that it showed has told whose it is.
    pub is_by_address: bool,
    /// When the interface was first seen, in seconds since the epoch.
    #[serde(default)]
    pub appeared: i64,
    /// The pod should not have it any more.
    pub is_former: bool,
    /// The pod's labels.
    pub labels: BTreeMap<String, String>,
    /// The pod's named ports.
    pub ports: Vec<NamedPort>,
    /// When the pod was created, in seconds since the epoch.
    pub created: i64,
}

/// Summary of the node's state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Everything read so far is in force.
    pub ready: bool,
    /// Where objects come from.
    pub source: SourceStatus,
    /// What is enforced.
    pub datapath: DatapathStatus,
}

/// The source's side.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// `manifests` or `kubernetes`.
    pub kind: String,
    /// Everything that existed at the start has been read.
    pub synced: bool,
    /// Counts changes read. Goes on from where the last agent ended, so it never goes back.
    pub revision: u64,
    /// Objects that cannot be used, sorted, and errors of the source itself.
    pub errors: Vec<ObjectError>,
    /// What is watched; nothing if objects come from files.
    #[serde(default)]
    pub watches: Vec<WatchView>,
}

/// What is watched of an API server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchView {
    /// As in roles: `pods`.
    pub resource: String,
    /// It has been read completely once, or may not be read and can be done without.
    pub synced: bool,
    /// Objects known.
    pub objects: usize,
}

/// One thing that is wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectError {
    /// Such as `NetworkPolicy shop/web (web.yaml)`.
    pub object: String,
    /// What is wrong and what it means.
    pub message: String,
}

/// The kernel's side.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatapathStatus {
    /// Local endpoints found, isolated or not.
    pub endpoints: usize,
    /// Those that no policy selects and that have a guard, which checks who speaks.
    #[serde(default)]
    pub guarded: usize,
    /// The source revision that is in force.
    pub applied_revision: u64,
    /// `tcx` or `clsact`.
    #[serde(default)]
    pub attach: String,
    /// What could not be put in force, and what discovery found odd.
    #[serde(default)]
    pub errors: Vec<ObjectError>,
    /// How full the tables are.
    #[serde(default)]
    pub tables: Vec<TableView>,
    /// How many rules are left out since their namespace wants more than its share, by namespace.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub left_out_rules: BTreeMap<String, usize>,
    /// Observations that need no action, such as interfaces that belong to no pod.
    #[serde(default)]
    pub notes: Vec<String>,
    /// What has been read and is not in force yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compiling: Vec<CompilingView>,
}

/// Work that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompilingView {
    /// The namespace whose policies or pods they are; empty: it is no one's alone.
    pub namespace: String,
    /// Policies of it that were read and wait for what was read before.
    pub waiting: usize,
    /// Steps done of what is being compiled.
    pub done: usize,
    /// Of how many, as far as is known.
    pub all: usize,
    /// Since when, in seconds since the epoch.
    pub since: i64,
}

/// How full one table is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableView {
    /// Its name, as in metrics.
    pub table: String,
    /// Entries in use.
    pub used: u64,
    /// Entries there is room for.
    pub limit: u64,
    /// Entries that did not fit.
    pub left_out: u64,
}

/// One local endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointView {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub uid: String,
    /// Name of the host-side interface.
    pub interface: String,
    /// Its index in the node's namespace.
    pub ifindex: u32,
    /// The pod's addresses.
    pub ips: Vec<IpAddr>,
    /// Its number in the maps.
    pub id: u16,
    /// Ingress.
    pub ingress: DirectionView,
    /// Egress.
    pub egress: DirectionView,
}

/// One direction of an endpoint. What isolates it is written with it, as `policies` and `rules`; what
/// is long, once for all endpoints that have it: `number` is its place in [`State::isolations`] then.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "WrittenView<'_>")]
pub struct DirectionView {
    /// Whether any NetworkPolicy isolates it, or it is closed since nobody knows what applies.
    pub isolated: bool,
    /// What does, and what ClusterNetworkPolicies say.
    pub isolation: Arc<Isolation>,
    /// Where that stands, if not here.
    number: Option<u32>,
    /// Its policy set in the maps, 0 if not isolated.
    pub set: u16,
}

/// [`DirectionView`] as it is written.
#[derive(Serialize, Deserialize)]
struct WrittenView<'a> {
    isolated: bool,
    #[serde(default)]
    policies: Cow<'a, [String]>,
    #[serde(default)]
    rules: Cow<'a, [Rule]>,
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    cluster_rules: Cow<'a, [ClusterRule]>,
    #[serde(default, skip_serializing_if = "is_zero")]
    untold: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    number: Option<u32>,
    #[serde(default)]
    set: u16,
}

impl DirectionView {
    /// Of an endpoint that this isolates, if anything does.
    pub fn new(isolated: bool, isolation: Arc<Isolation>, set: u16) -> Self {
        Self { isolated, isolation, number: None, set }
    }

    /// The policies that isolate it, as `namespace/name`, sorted.
    pub fn policies(&self) -> &[String] {
        &self.isolation.policies
    }

    /// What they allow, if there are not too many of them.
    pub fn rules(&self) -> &[Rule] {
        &self.isolation.rules
    }

    /// The rules of ClusterNetworkPolicies that are asked, in their order.
    pub fn cluster_rules(&self) -> &[ClusterRule] {
        &self.isolation.cluster_rules
    }

    /// The ClusterNetworkPolicies that these are of, in their order, each once.
    pub fn cluster_policies(&self) -> impl Iterator<Item = &ClusterRule> {
        let rules = self.cluster_rules();
        let is_first = |at: &usize| *at == 0 || rules[at - 1].policy != rules[*at].policy;
        (0..rules.len()).filter(is_first).map(|at| &rules[at])
    }

    /// Whether packets are judged by policies, of whatever kind.
    pub fn is_judged(&self) -> bool {
        self.isolated || self.set != 0
    }
}

impl Serialize for DirectionView {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { isolated, isolation, number, set } = self;
        let here = number.is_none().then_some(&**isolation);
        let view = WrittenView {
            isolated: *isolated,
            policies: here.map_or_else(Cow::default, |this| Cow::Borrowed(&this.policies[..])),
            rules: here.map_or_else(Cow::default, |this| Cow::Borrowed(&this.rules[..])),
            cluster_rules: here
                .map_or_else(Cow::default, |this| Cow::Borrowed(&this.cluster_rules[..])),
            untold: here.map_or(0, |this| this.untold),
            number: *number,
            set: *set,
        };
        view.serialize(serializer)
    }
}

impl From<WrittenView<'_>> for DirectionView {
    fn from(written: WrittenView<'_>) -> Self {
        let WrittenView { isolated, policies, rules, cluster_rules, untold, number, set } = written;
        let isolation = Isolation {
            policies: policies.into_owned(),
            rules: rules.into_owned(),
            cluster_rules: cluster_rules.into_owned(),
            untold,
        };
        Self { isolated, isolation: Arc::new(isolation), number, set }
    }
}

/// What isolates an endpoint in a direction.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    /// The policies, as `namespace/name`, sorted.
    pub policies: Vec<String>,
    /// What they allow.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// What ClusterNetworkPolicies say, in the order in which they are asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cluster_rules: Vec<ClusterRule>,
    /// How many peers of rules are not told, since there are very many.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub untold: usize,
}

/// For what is written only where there is something.
/// For fields that are written only where there is something to say.
pub fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl Isolation {
    /// Whether it is too long to be written with each endpoint that has it.
    fn is_long(&self) -> bool {
        self.policies.len() + self.rules.len() + self.cluster_rules.len() > LONG
    }
}

/// A rule of a ClusterNetworkPolicy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRule {
    /// `Admin` or `Baseline`.
    pub tier: String,
    /// The policy's priority there.
    pub priority: u16,
    /// The policy.
    pub policy: String,
    /// The rule by its place, such as `egress[0]`.
    pub rule: String,
    /// What its author calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `Accept`, `Deny` or `Pass`.
    pub action: String,
    /// The other end, in words; none: it matches nothing.
    pub peers: Vec<String>,
    /// Protocols and ports, in words.
    pub ports: String,
}

/// Something that is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The other end, in words.
    pub peer: String,
    /// Protocols and ports, in words.
    pub ports: String,
    /// The policies that say so.
    pub policies: Vec<String>,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::testing::{endpoint, state};

    #[test]
    fn what_is_long_is_written_once_and_all_is_read_again() {
        let rule = |number: usize| Rule {
            peer: format!("10.0.{number}.0/24"),
            ports: "TCP 80".into(),
            policies: vec!["shop/deny".into()],
        };
        let policies = vec!["shop/deny".to_owned()];
        let long = Arc::new(Isolation {
            policies,
            rules: (0..LONG).map(rule).collect(),
            untold: 5,
            ..Isolation::default()
        });
        let mut endpoints: Vec<EndpointView> =
            (1..=3).map(|id| endpoint("shop", "web", id, "10.0.0.1")).collect();
        for endpoint in &mut endpoints[1..] {
            endpoint.egress = DirectionView::new(true, long.clone(), 7);
        }
        let written = state(vec![]).with_endpoints(endpoints.clone());
        let text = serde_json::to_string(&written).unwrap();
        assert_eq!(text.matches("10.0.7.0/24").count(), 1);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        // As it is relied on from outside.
        let ingress = &json["endpoints"][1]["ingress"];
        assert_eq!(ingress["policies"], serde_json::json!(["shop/deny"]));
        assert_eq!(ingress["rules"][0]["ports"], "TCP 80");
        let read = State::parse(text.as_bytes()).unwrap();
        assert_eq!(read, written);
        assert_eq!(read.endpoints[2].egress.rules().len(), LONG);
        assert_eq!(read.endpoints[2].egress.isolation.untold, 5);
        assert!(read.endpoints[0].egress.rules().is_empty());
    }
}
