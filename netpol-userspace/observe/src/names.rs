//! Names for the numbers and addresses that the maps hold.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

use super::node::name;
use netpol_api::client;
use netpol_api::questions::{DecidingRule, End, Opening, Owner};
use netpol_api::state::{EndpointView, State};
use netpol_model::Direction;

/// Finds endpoints by number and by address, and who else has an address as far as an agent told.
#[derive(Debug, Default)]
pub struct Names {
    node: String,
    by_id: HashMap<u16, EndpointView>,
    ids: HashMap<IpAddr, u16>,
    classes: HashMap<u32, Vec<String>>,
    owners: HashMap<End, Owner>,
    deciding: HashMap<Opening, Vec<DecidingRule>>,
}

impl Names {
    /// Those that a state tells.
    pub fn of(state: &State) -> Self {
        let endpoints = &state.endpoints;
        Self {
            node: state.node.clone(),
            by_id: endpoints.iter().map(|endpoint| (endpoint.id, endpoint.clone())).collect(),
            ids: endpoints
                .iter()
                .flat_map(|endpoint| endpoint.ips.iter().map(|&ip| (ip, endpoint.id)))
                .collect(),
            classes: state
                .classes
                .iter()
                .map(|(class, names)| (class, names.into_iter().map(String::from).collect()))
                .collect(),
            owners: HashMap::new(),
            deciding: HashMap::new(),
        }
    }

    /// This node's; empty without a state.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Those of `ends` that only an agent may know, each once.
    pub fn unknown(&self, ends: impl IntoIterator<Item = End>) -> Vec<End> {
        let is_unknown =
            |end: &End| !self.ids.contains_key(&end.ip) && !self.owners.contains_key(end);
        let mut unknown: Vec<End> = ends.into_iter().filter(is_unknown).collect();
        unknown.sort_unstable();
        unknown.dedup();
        unknown
    }

    /// Asks the agent who is at those of `ends` that are unknown. Returns why they stay unknown, if
    /// they do: a listing goes on without names.
    pub fn ask(&mut self, run_dir: &Path, ends: impl IntoIterator<Item = End>) -> Option<String> {
        let ends = self.unknown(ends);
        if ends.is_empty() {
            return None;
        }
        let owners = client::answered(client::owners(run_dir, &ends));
        let learnt = owners.map(|owners| self.learn(ends.into_iter().zip(owners)));
        learnt.err().map(|why| why.to_string())
    }

    /// Takes an agent's answer into account.
    pub fn learn(&mut self, ends: impl IntoIterator<Item = (End, Owner)>) {
        self.owners.extend(ends);
    }

    /// Forgets what an agent told: it may be another's by now.
    pub fn forget(&mut self) {
        self.owners.clear();
        self.deciding.clear();
    }

    /// Those of which it is not known which rules decide on them, each once.
    pub fn undecided(&self, openings: impl IntoIterator<Item = Opening>) -> Vec<Opening> {
        let is_unknown = |opening: &Opening| !self.deciding.contains_key(opening);
        let mut unknown: Vec<Opening> = openings.into_iter().filter(is_unknown).collect();
        unknown.sort_unstable();
        unknown.dedup();
        unknown
    }

    /// Takes an agent's answer about rules into account.
    pub fn learn_rules(&mut self, rules: impl IntoIterator<Item = (Opening, Vec<DecidingRule>)>) {
        self.deciding.extend(rules);
    }

    /// The rules that decide on something, as far as an agent told.
    pub fn deciding(&self, opening: &Opening) -> &[DecidingRule] {
        self.deciding.get(opening).map(Vec::as_slice).unwrap_or_default()
    }

    /// Who is there, as far as is known.
    pub fn owner(&self, end: End) -> Owner {
        match self.at(end.ip) {
            Some(pod) => Owner { pod: Some(pod), ..Owner::default() },
            None => self.owners.get(&end).cloned().unwrap_or_default(),
        }
    }

    /// The endpoint with this number.
    pub fn endpoint(&self, id: u16) -> Option<&EndpointView> {
        self.by_id.get(&id)
    }

    /// `namespace/pod` of the endpoint with this number.
    pub fn name(&self, id: u16) -> Option<String> {
        self.endpoint(id).map(name)
    }

    /// `namespace/pod` of the local endpoint with this address.
    pub fn at(&self, address: IpAddr) -> Option<String> {
        self.ids.get(&address).and_then(|&id| self.name(id))
    }

    /// The selectors and blocks that the addresses of a class match.
    pub fn class(&self, class: u32) -> &[String] {
        self.classes.get(&class).map(Vec::as_slice).unwrap_or_default()
    }

    /// The policies that isolate an endpoint in a direction.
    pub fn policies(&self, id: u16, direction: Direction) -> &[String] {
        self.endpoint(id).map_or(&[], |endpoint| match direction {
            Direction::Ingress => endpoint.ingress.policies(),
            Direction::Egress => endpoint.egress.policies(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use netpol_api::testing::{endpoint, state};

    #[test]
    fn names_numbers_and_addresses() {
        let names = Names::of(&state(vec![endpoint("shop", "web", 1, "10.0.0.1")]));
        assert_eq!(names.name(1).unwrap(), "shop/web");
        assert_eq!(names.at("10.0.0.1".parse().unwrap()).unwrap(), "shop/web");
        assert_eq!(names.class(3), ["10.0.0.0/8"]);
        assert_eq!(names.policies(1, Direction::Ingress), ["shop/deny"]);
        assert!(names.policies(1, Direction::Egress).is_empty());
        assert!(names.name(2).is_none() && names.class(4).is_empty());
    }

    #[test]
    fn an_agent_is_asked_for_what_is_not_on_this_node_and_only_once() {
        let mut names = Names::of(&state(vec![endpoint("shop", "web", 1, "10.0.0.1")]));
        let end = |ip: &str, port| End { ip: ip.parse().unwrap(), protocol: 6, port };
        let ends = [end("10.0.0.1", 80), end("10.1.0.1", 80), end("10.1.0.1", 80)];
        assert_eq!(names.unknown(ends), [end("10.1.0.1", 80)]);
        assert_eq!(names.owner(end("10.1.0.1", 80)), Owner::default());
        let owner = Owner { pod: Some("a/far".into()), service: None, node: Some("n2".into()) };
        names.learn([(end("10.1.0.1", 80), owner.clone())]);
        assert!(names.unknown(ends).is_empty());
        assert_eq!(names.owner(end("10.1.0.1", 80)), owner);
        assert_eq!(names.owner(end("10.1.0.1", 81)), Owner::default(), "of another port");
        assert_eq!(names.owner(end("10.0.0.1", 0)).pod.unwrap(), "shop/web");
        names.forget();
        assert_eq!(names.unknown(ends), [end("10.1.0.1", 80)]);
    }
}
