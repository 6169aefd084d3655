//! Turns what the compiler knows of an endpoint into what people read. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use netpol_api::state::{
    ClassWords, ClusterRule, DirectionView, EndpointView, Isolation, Rule, WatchView,
};
use netpol_compile::{ClassId, ClusterRuleView, Compiler, EndpointId, RuleView};
use netpol_endpoint::{Endpoint, Holder};
use netpol_model::{Direction, NamedPort, ObjectName, Str};
use netpol_source::Watch;

/// How many rules are told of an endpoint and direction: nobody reads more, and a hundred thousand
/// take more room as text than in the compiler.
const MOST_RULES: usize = 1_000;

/// The views of all endpoints, sorted by namespace and name; with what policies say, or without.
pub(crate) fn endpoints<'a>(
    compiler: &Compiler,
    endpoints: impl Iterator<Item = (EndpointId, &'a Endpoint)>,
    has_rules: bool,
) -> Vec<EndpointView> {
    let mut endpoints: Vec<(EndpointId, &Endpoint)> = endpoints.collect();
    // Who asks for a pod by its name means the one that runs by its object.
    endpoints.sort_by_key(|(_, e)| (&e.pod, e.holder != Holder::Current, e.ifindex));
    let mut isolations = Isolations { compiler, has_rules, known: HashMap::new() };
    endpoints
        .into_iter()
        .map(|(id, endpoint)| EndpointView {
            namespace: endpoint.pod.namespace.to_string(),
            pod: endpoint.pod.name.to_string(),
            uid: endpoint.uid.to_string(),
            interface: endpoint.interface.clone(),
            ifindex: endpoint.ifindex,
            ips: endpoint.addresses.clone(),
            id: id.0,
            ingress: isolations.view(id, Direction::Ingress),
            egress: isolations.view(id, Direction::Egress),
        })
        .collect()
}

/// The views of a source's watches.
pub(crate) fn watches(watches: &[Watch]) -> Vec<WatchView> {
    let view = |watch: &Watch| WatchView {
        resource: watch.resource.to_owned(),
        synced: watch.is_synced,
        objects: watch.objects,
    };
    watches.iter().map(view).collect()
}

/// A direction, the policies that isolate in it, those of the cluster that are asked, and what the
/// pod's own named ports are.
type Isolated<'a> = (Direction, Vec<ObjectName>, Vec<Str>, &'a [NamedPort]);

/// What isolates endpoints, each once: replicas have the same policies.
struct Isolations<'a> {
    compiler: &'a Compiler,
    has_rules: bool,
    known: HashMap<Isolated<'a>, Arc<Isolation>>,
}

impl Isolations<'_> {
    fn view(&mut self, id: EndpointId, direction: Direction) -> DirectionView {
        let Self { compiler, has_rules, known } = self;
        let policies = compiler.endpoint_policies(id, direction);
        let set = compiler.endpoint_sets(id).map_or(0, |sets| match direction {
            Direction::Ingress => sets.ingress.0,
            Direction::Egress => sets.egress.0,
        });
        let of_cluster = compiler.endpoint_cluster_policies(id, direction);
        let isolated = !policies.is_empty() || set != 0 && of_cluster.is_empty();
        if policies.is_empty() && of_cluster.is_empty() {
            return DirectionView::new(isolated, Arc::default(), set);
        }
        let text = |names: &[ObjectName]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let of = |policies: &[ObjectName]| {
            let (rules, untold) = match has_rules {
                true => compiler.first_rules(id, direction, MOST_RULES),
                false => (Vec::new(), 0),
            };
            let rule = |rule: RuleView| Rule {
                peer: rule.peer,
                ports: rule.ports,
                policies: text(&rule.policies),
            };
            let rules = rules.into_iter().map(rule).collect();
            let of_cluster = match has_rules {
                true => compiler.cluster_rules(id, direction),
                false => Vec::new(),
            };
            let n_cut = of_cluster.len().saturating_sub(MOST_RULES);
            let of_cluster = of_cluster.into_iter().take(MOST_RULES);
            Isolation {
                policies: text(policies),
                rules,
                cluster_rules: of_cluster.map(|rule| cluster_rule(rule, direction)).collect(),
                untold: untold + n_cut,
            }
        };
        let key = (direction, policies, of_cluster, compiler.endpoint_ports(id));
        let isolation = match known.get(&key) {
            Some(isolation) => isolation.clone(),
            None => {
                let isolation = Arc::new(of(&key.1));
                known.insert(key, isolation.clone());
                isolation
            }
        };
        DirectionView::new(isolated, isolation, set)
    }
}

fn cluster_rule(rule: ClusterRuleView, direction: Direction) -> ClusterRule {
    ClusterRule {
        tier: rule.tier.to_string(),
        priority: rule.priority,
        policy: rule.policy.to_string(),
        rule: rule_path(direction, rule.rule),
        name: rule.name.map(|name| name.to_string()),
        action: rule.action.to_string(),
        peers: rule.peers,
        ports: rule.ports,
    }
}

/// A rule by its place, such as `egress[0]`.
pub(crate) fn rule_path(direction: Direction, place: usize) -> String {
    format!("{direction}[{place}]")
}

/// Names of the classes in use. Any block may get the closed class, when the tables are full.
pub(crate) fn classes(compiler: &Compiler) -> ClassWords {
    let mut classes: Vec<ClassId> = compiler.classes_in_use().chain([ClassId::CLOSED]).collect();
    classes.sort_unstable();
    classes.into_iter().map(|class| (class.0, compiler.class_names(class))).collect()
}
