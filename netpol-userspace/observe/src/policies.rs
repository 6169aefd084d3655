//! The policies in force on this node, which are those that isolate an endpoint of it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::node::name;
use netpol_api::state::State;
use netpol_model::Direction;

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Directions it isolates.
    pub directions: Vec<Direction>,
    /// Endpoints of this node that it isolates, as `namespace/pod`, sorted.
    pub endpoints: Vec<String>,
}

/// All of them, sorted.
pub fn list(state: &State) -> Vec<Policy> {
    let mut policies = BTreeMap::<&str, Policy>::new();
    for endpoint in &state.endpoints {
        for (direction, side) in
            [(Direction::Ingress, &endpoint.ingress), (Direction::Egress, &endpoint.egress)]
        {
            for full_name in side.policies() {
                let policy = policies.entry(full_name).or_insert_with(|| empty(full_name));
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

fn empty(full_name: &str) -> Policy {
    let (namespace, name) = full_name.split_once('/').unwrap_or(("", full_name));
    Policy {
        namespace: namespace.into(),
        name: name.into(),
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
