//! Namespaces that share what they are about: nested blocks with exceptions, pods inside them, and
//! now and then all that another namespace says. Policies are long and change a few rules at a time.

use crate::generate::Rng;
use crate::generate::world::{Event, Probe};
use netpol_model::Protocol;

use super::{pod, policy};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The ports that rules have; one more is nobody's.
const PORTS: [u16; 4] = [22, 80, 443, 53];
pub const N_PODS: usize = 8;
const N_POLICIES: usize = 2;

/// The namespaces' policies, rule by rule.
pub struct Neighbours {
    n_namespaces: usize,
    /// How many rules a policy has at first, and about how many later on.
    n_rules: usize,
    rules: BTreeMap<(usize, usize), Vec<String>>,
    pods: BTreeMap<usize, (String, String)>,
}

impl Neighbours {
    pub fn new(rng: &mut Rng) -> Self {
        Self {
            n_namespaces: 2 + rng.below(2),
            n_rules: [3, 10, 40][rng.below(3)],
            rules: BTreeMap::new(),
            pods: BTreeMap::new(),
        }
    }

    /// What there is at first.
    pub fn begin(&mut self, rng: &mut Rng) -> Vec<Event> {
        let mut events: Vec<Event> =
            (0..N_PODS - 1).map(|number| self.put_pod(rng, number)).collect();
        for namespace in 0..self.n_namespaces {
            let rules = (0..1 + rng.below(self.n_rules)).map(|_| rule(rng)).collect();
            self.rules.insert((namespace, 0), rules);
            events.push(self.policy((namespace, 0)));
        }
        events
    }

    pub fn n_namespaces(&self) -> usize {
        self.n_namespaces
    }

    fn put_pod(&mut self, rng: &mut Rng, number: usize) -> Event {
        let role = *rng.pick(&["role=a", "role=b", ""]);
        let address = || format!("30.{}.{}.{}", number % 2, number / 2 % 2, 1 + number);
        let known = self.pods.entry(number).or_insert_with(|| (address(), String::new()));
        known.1 = role.to_owned();
        let name = format!("ns{}/pod{number}", number % self.n_namespaces);
        Event::Pod(pod(&name, role, &known.0, ""))
    }

    /// A pod gets other labels, comes or goes.
    pub fn pod_event(&mut self, rng: &mut Rng) -> Event {
        let number = rng.below(N_PODS);
        if rng.chance(40)
            && let Some((address, role)) = self.pods.remove(&number)
        {
            let name = format!("ns{}/pod{number}", number % self.n_namespaces);
            return Event::PodGone(pod(&name, &role, &address, ""));
        }
        self.put_pod(rng, number)
    }

    fn policy(&self, key: (usize, usize)) -> Event {
        let name = format!("ns{}/policy{}-{}", key.0, key.0, key.1);
        let rules = self.rules.get(&key).map(|rules| rules.join(","));
        let spec = format!(
            r#"{{"podSelector": {{}}, "policyTypes": ["Ingress"], "ingress": [{}]}}"#,
            rules.as_deref().unwrap_or_default()
        );
        let object = policy(&name, &spec);
        if rules.is_some() { Event::Policy(object) } else { Event::PolicyGone(object) }
    }

    /// Some rules of a policy change, or all of it.
    pub fn edit(&mut self, rng: &mut Rng, namespace: usize) -> Vec<Event> {
        let key = (namespace, rng.below(N_POLICIES));
        if key.1 > 0 && rng.chance(10) && self.rules.remove(&key).is_some() {
            return vec![self.policy(key)];
        }
        let n_rules = self.n_rules;
        let rules = self.rules.entry(key).or_default();
        for _ in 0..1 + rng.below(3) {
            let at = rng.below(rules.len() + 1);
            match rng.below(if rules.len() > n_rules { 4 } else { 3 }) {
                0 => rules.push(rule(rng)),
                1 if at < rules.len() => rules[at] = rule(rng),
                _ if at < rules.len() => drop(rules.remove(at)),
                _ => rules.push(rule(rng)),
            }
        }
        vec![self.policy(key)]
    }

    /// A namespace says what another one says.
    pub fn imitate(&mut self, of: usize, by: usize) -> Vec<Event> {
        let mut events = Vec::new();
        for number in 0..N_POLICIES {
            let was = match self.rules.get(&(of, number)).cloned() {
                Some(rules) => self.rules.insert((by, number), rules),
                None => self.rules.remove(&(by, number)),
            };
            if was.is_some() || self.rules.contains_key(&(by, number)) {
                events.push(self.policy((by, number)));
            }
        }
        events
    }
}

/// Blocks inside each other, around pods and beside them.
fn block(rng: &mut Rng) -> (String, String) {
    let [a, b] = [rng.below(3), rng.below(3)];
    let c = rng.below(9);
    let (a, b, c) = (a.to_string(), b.to_string(), c.to_string());
    match rng.below(9) {
        0 => ("0.0.0.0/0".into(), format!("30.{a}.0.0/16")),
        1 | 2 => ("30.0.0.0/8".into(), format!("30.{a}.{b}.0/24")),
        3 | 4 => (format!("30.{a}.0.0/16"), format!("30.{a}.{b}.0/24")),
        5 | 6 => (format!("30.{a}.{b}.0/24"), format!("30.{a}.{b}.{c}/32")),
        7 => (format!("30.{a}.{b}.0/28"), format!("30.{a}.{b}.4/30")),
        _ => (format!("30.{a}.{b}.{c}/32"), String::new()),
    }
}

fn peer(rng: &mut Rng) -> String {
    if rng.chance(25) {
        let role = *rng.pick(&["a", "b"]);
        return format!(
            r#"{{"namespaceSelector": {{}}, "podSelector": {{"matchLabels": {{"role": "{role}"}}}}}}"#
        );
    }
    let (cidr, except) = block(rng);
    match !except.is_empty() && rng.chance(35) {
        true => format!(r#"{{"ipBlock": {{"cidr": "{cidr}", "except": ["{except}"]}}}}"#),
        false => format!(r#"{{"ipBlock": {{"cidr": "{cidr}"}}}}"#),
    }
}

fn rule(rng: &mut Rng) -> String {
    let peers: Vec<String> = (0..1 + rng.below(3)).map(|_| peer(rng)).collect();
    let ports = match rng.chance(15) {
        true => String::new(),
        false => {
            let port = rng.pick(&PORTS[..3]);
            format!(r#", "ports": [{{"protocol": "TCP", "port": {port}}}]"#)
        }
    };
    format!(r#"{{"from": [{}]{ports}}}"#, peers.join(","))
}

/// Questions that these policies can tell apart.
pub fn probes(rng: &mut Rng, remotes: &[IpAddr]) -> Vec<Probe> {
    let probe = |rng: &mut Rng| Probe {
        remote: *rng.pick(remotes),
        protocol: Protocol::Tcp.number(),
        port: *rng.pick(&PORTS),
    };
    (0..60).map(|_| probe(rng)).collect()
}
