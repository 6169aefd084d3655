//! The policies in force on this node, which are those that isolate an endpoint of it, or have rules
//! for one.

use std::collections::BTreeMap;

use serde::Serialize;

use super::node::name;
use netpol_api::state::{ClusterRule, State};
use netpol_model::{Direction, Tier};

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// Its namespace; empty for a ClusterNetworkPolicy.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `Admin` or `Baseline`; absent for a NetworkPolicy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// Its priority in its tier; absent for a NetworkPolicy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u16>,
    /// Directions it isolates, or has rules for.
    pub directions: Vec<Direction>,
    /// Endpoints of this node that it isolates, or has rules for, as `namespace/pod`, sorted.
    pub endpoints: Vec<String>,
}

/// What decides the place of a policy: when its tier is asked, its priority and its name.
type Place<'a> = (u8, u16, &'a str);

/// All of them, in the order in which they are asked.
pub fn list(state: &State) -> Vec<Policy> {
    let mut policies = BTreeMap::<Place<'_>, Policy>::new();
    for endpoint in &state.endpoints {
        for (direction, side) in
            [(Direction::Ingress, &endpoint.ingress), (Direction::Egress, &endpoint.egress)]
        {
            for full_name in side.policies() {
                let policy = policies.entry((1, 0, full_name)).or_insert_with(|| empty(full_name));
                add(&mut policy.directions, direction);
                add(&mut policy.endpoints, name(endpoint));
            }
            for rule in side.cluster_policies() {
                let tier = if rule.tier == Tier::Admin.as_str() { 0 } else { 2 };
                let place = (tier, rule.priority, &*rule.policy);
                let policy = policies.entry(place).or_insert_with(|| of_cluster(rule));
                add(&mut policy.directions, direction);
                add(&mut policy.endpoints, name(endpoint));
            }
        }
    }
    let mut list: Vec<Policy> = policies.into_values().collect();
    for policy in &mut list {
        policy.endpoints.sort();
        policy.directions.sort();
    }
    list
}

fn of_cluster(rule: &ClusterRule) -> Policy {
    Policy {
        name: rule.policy.clone(),
        tier: Some(rule.tier.clone()),
        priority: Some(rule.priority),
        ..empty("/")
    }
}

fn empty(full_name: &str) -> Policy {
    let (namespace, name) = full_name.split_once('/').unwrap_or(("", full_name));
    Policy {
        namespace: namespace.into(),
        name: name.into(),
        tier: None,
        priority: None,
        directions: Vec::new(),
        endpoints: Vec::new(),
    }
}

fn add<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

/// How many policies are named in a sentence.
const MOST_NAMED: usize = 10;

/// Some policies' names for a sentence, and how many more there are.
pub fn named(names: &[String]) -> String {
    match names.len().saturating_sub(MOST_NAMED) {
        0 | 1 => names.join(", "),
        n => format!("{} and {n} more", names[..MOST_NAMED].join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netpol_api::state::Isolation;
    use netpol_api::testing;

    #[test]
    fn lists_each_policy_once_with_all_it_isolates() {
        let mut web = testing::endpoint("shop", "web", 1, "10.0.0.1");
        let policies = vec!["shop/deny".into(), "shop/more".into()];
        web.egress.isolation = Isolation { policies, ..Isolation::default() }.into();
        let api = testing::endpoint("shop", "api", 2, "10.0.0.2");
        let policies = list(&testing::state(vec![web, api]));
        let policy = |name: &str, directions: &[Direction], endpoints: &[&str]| Policy {
            namespace: "shop".into(),
            name: name.into(),
            tier: None,
            priority: None,
            directions: directions.into(),
            endpoints: endpoints.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(
            policies,
            [
                policy("deny", &Direction::BOTH, &["shop/api", "shop/web"]),
                policy("more", &[Direction::Egress], &["shop/web"]),
            ]
        );
    }
}
