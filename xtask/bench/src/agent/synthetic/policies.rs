//! NetworkPolicies in the mix that clusters have: default deny, then what is allowed. Must never
//! make one that an API server would refuse.

use fastrand::Rng;
use serde_json::{Value, json};

use super::{Size, TEAMS, TIERS, Workload, namespace_name};

/// A NetworkPolicy.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Index of its namespace.
    pub namespace: u32,
    /// Its name.
    pub name: String,
    /// What it is like.
    pub shape: Shape,
    /// Its `spec`.
    pub spec: Value,
}

/// What a policy is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shape {
    /// Nothing may come in.
    DenyIngress,
    /// Nothing may come in or go out.
    DenyAll,
    /// From all pods of its namespace.
    SameNamespace,
    /// From pods of its namespace with a label, to a port.
    Labels,
    /// The same, to a port by its name.
    NamedPort,
    /// From all pods of namespaces with a label.
    Namespaces,
    /// From some pods of namespaces with a label.
    PodsOfNamespaces,
    /// From pods that `matchExpressions` select.
    Expressions,
    /// From a block of addresses outside.
    Block,
    /// To all addresses but those inside.
    BlockExcept,
    /// To the cluster's name servers.
    Dns,
    /// To a range of ports.
    PortRange,
    /// From anybody, to some ports.
    AnyPeer,
}

impl Shape {
    /// All of them, with the share in hundredths that each has among policies that allow
    /// something. (The first two make the isolation; they have none here.)
    pub const ALL: [(Self, u32); 13] = [
        (Self::DenyIngress, 0),
        (Self::DenyAll, 0),
        (Self::SameNamespace, 16),
        (Self::Labels, 18),
        (Self::NamedPort, 10),
        (Self::Namespaces, 8),
        (Self::PodsOfNamespaces, 12),
        (Self::Expressions, 5),
        (Self::Block, 7),
        (Self::BlockExcept, 8),
        (Self::Dns, 9),
        (Self::PortRange, 4),
        (Self::AnyPeer, 3),
    ];

    fn name(self) -> &'static str {
        match self {
            Self::DenyIngress => "default-deny-ingress",
            Self::DenyAll => "default-deny",
            Self::SameNamespace => "same-namespace",
            Self::Labels => "from-app",
            Self::NamedPort => "from-app-http",
            Self::Namespaces => "from-team",
            Self::PodsOfNamespaces => "from-gateway",
            Self::Expressions => "from-tiers",
            Self::Block => "from-office",
            Self::BlockExcept => "to-internet",
            Self::Dns => "to-dns",
            Self::PortRange => "port-range",
            Self::AnyPeer => "from-anybody",
        }
    }
}

/// Of a hundred namespaces, so many have policies.
const COVERED: u32 = 80;

/// The policies by namespace: in each that has some, first one that isolates.
pub(super) fn generate(rng: &mut Rng, size: &Size, workloads: &[Workload]) -> Vec<Policy> {
    let covered: Vec<u32> = (0..size.namespaces).filter(|_| rng.u32(..100) < COVERED).collect();
    if covered.is_empty() {
        return Vec::new();
    }
    let mut namespaces: Vec<u32> = covered.iter().copied().take(size.policies as usize).collect();
    while namespaces.len() < size.policies as usize {
        namespaces.push(covered[rng.usize(..covered.len())]);
    }
    namespaces.sort_unstable();
    let mut before = None;
    let make = |(index, &namespace): (usize, &u32)| {
        let is_first = before != Some(namespace);
        before = Some(namespace);
        let shape = match (is_first, rng.u32(..10)) {
            (true, 0..7) => Shape::DenyIngress,
            (true, _) => Shape::DenyAll,
            (false, _) => drawn(rng),
        };
        let name = format!("{}-{index:05}", shape.name());
        let here = of_namespace(workloads, namespace);
        let spec = spec(rng, size, shape, here);
        Policy { namespace, name, shape, spec }
    };
    namespaces.iter().enumerate().map(make).collect()
}

fn drawn(rng: &mut Rng) -> Shape {
    let mut number = rng.u32(..Shape::ALL.iter().map(|(_, share)| *share).sum::<u32>());
    for (shape, share) in Shape::ALL {
        if number < share {
            return shape;
        }
        number -= share;
    }
    Shape::SameNamespace
}

/// They are sorted by namespace.
fn of_namespace(workloads: &[Workload], namespace: u32) -> &[Workload] {
    let begin = workloads.partition_point(|workload| workload.namespace < namespace);
    let end = workloads.partition_point(|workload| workload.namespace <= namespace);
    &workloads[begin..end]
}

fn deny(types: &[&str]) -> Value {
    json!({"podSelector": {}, "policyTypes": types})
}

fn from(to: &Value, rule: Value) -> Value {
    json!({"podSelector": to, "policyTypes": ["Ingress"], "ingress": [rule]})
}

fn towards(of: &Value, rule: Value) -> Value {
    json!({"podSelector": of, "policyTypes": ["Egress"], "egress": [rule]})
}

fn spec(rng: &mut Rng, size: &Size, shape: Shape, here: &[Workload]) -> Value {
    // Policies outlive what they are about.
    let gone = ("gone", 80);
    let mut drawn = || {
        let workload = here.get(rng.usize(..here.len().max(1)));
        workload.map_or(gone, |workload| (workload.app.as_str(), workload.port))
    };
    let ((app, port), (other, _)) = (drawn(), drawn());
    let [one, other] = [app, other].map(|app| json!({"matchLabels": {"app": app}}));
    let tcp = json!([{"protocol": "TCP", "port": port}]);
    let team = format!("team-{:02}", rng.u32(..TEAMS));
    match shape {
        Shape::DenyIngress => deny(&["Ingress"]),
        Shape::DenyAll => deny(&["Ingress", "Egress"]),
        Shape::SameNamespace => from(&json!({}), json!({"from": [{"podSelector": {}}]})),
        Shape::Labels => from(&one, json!({"from": [{"podSelector": other}], "ports": tcp})),
        Shape::NamedPort => {
            from(&one, json!({"from": [{"podSelector": other}], "ports": [{"port": "http"}]}))
        }
        Shape::Namespaces => from(
            &json!({}),
            json!({"from": [{"namespaceSelector": {"matchLabels": {"team": team}}}]}),
        ),
        Shape::PodsOfNamespaces => {
            let gateway = namespace_name(rng.u32(..size.namespaces.min(3)));
            let gateway = json!({"matchLabels": {"kubernetes.io/metadata.name": gateway}});
            let web = json!({"matchLabels": {"tier": "web"}});
            let peer = json!({"namespaceSelector": gateway, "podSelector": web});
            from(&one, json!({"from": [peer], "ports": tcp}))
        }
        Shape::Expressions => from(&one, json!({"from": [expressions(rng)], "ports": tcp})),
        Shape::Block => {
            let office = format!("203.0.{}.0/24", rng.u32(..200));
            from(&one, json!({"from": [{"ipBlock": {"cidr": office}}], "ports": tcp}))
        }
        Shape::BlockExcept => {
            let inside = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.169.254/32"];
            let outside = json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": inside}});
            towards(&one, json!({"to": [outside], "ports": [{"port": 443}]}))
        }
        Shape::Dns => {
            let system = json!({"matchLabels": {"kubernetes.io/metadata.name": namespace_name(0)}});
            let peer = json!({"namespaceSelector": system, "podSelector": other});
            let ports = json!([{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]);
            towards(&json!({}), json!({"to": [peer], "ports": ports}))
        }
        Shape::PortRange => {
            let begin = 20_000 + rng.u32(..100) * 100;
            let range = json!([{"protocol": "TCP", "port": begin, "endPort": begin + 99}]);
            from(&one, json!({"from": [{"podSelector": other}], "ports": range}))
        }
        Shape::AnyPeer => from(&one, json!({"ports": [{"port": 80}, {"port": 443}]})),
    }
}

/// Some tiers of the production namespaces, but for what is being taken down.
fn expressions(rng: &mut Rng) -> Value {
    let tiers = [TIERS[rng.usize(..TIERS.len())], TIERS[rng.usize(..TIERS.len())]];
    json!({
        "namespaceSelector": {
            "matchExpressions": [{"key": "stage", "operator": "NotIn", "values": ["dev"]}],
        },
        "podSelector": {"matchExpressions": [
            {"key": "tier", "operator": "In", "values": tiers},
            {"key": "legacy", "operator": "DoesNotExist"},
            {"key": "app", "operator": "Exists"},
        ]},
    })
}
