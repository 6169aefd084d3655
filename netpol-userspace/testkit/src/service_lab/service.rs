//! A Service as a test describes it, and its manifests: the Service, and the EndpointSlices that
//! the EndpointSlice controller (or a person) would write. Must never say who may reach it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::backend::Backend;

/// One port.
#[derive(Debug, Clone)]
pub struct Port {
    pub name: &'static str,
    pub protocol: &'static str,
    pub port: u16,
    pub node_port: Option<u16>,
    /// A number or a name, as in the manifest.
    pub target: String,
}

/// One endpoint: its addresses, its node, and a target number for each port.
#[derive(Debug, Clone)]
struct Endpoint {
    addresses: Vec<IpAddr>,
    node: Option<usize>,
    targets: Vec<u16>,
    conditions: &'static str,
}

/// A Service of the test's namespace.
#[derive(Debug, Clone)]
pub struct Service {
    pub name: String,
    pub cluster_ips: Vec<IpAddr>,
    pub external_ips: Vec<IpAddr>,
    pub balancer_ips: Vec<IpAddr>,
    ports: Vec<Port>,
    selector: Option<String>,
    /// In YAML flow style, without braces.
    labels: &'static str,
    /// Further fields of the spec, in YAML flow style.
    policies: String,
    endpoints: Vec<Endpoint>,
}

impl Service {
    /// Without ports and endpoints; headless without cluster IPs.
    pub fn new(name: &str, cluster_ips: Vec<IpAddr>) -> Self {
        Self {
            name: name.to_owned(),
            cluster_ips,
            external_ips: Vec::new(),
            balancer_ips: Vec::new(),
            ports: Vec::new(),
            selector: None,
            labels: "",
            policies: String::new(),
            endpoints: Vec::new(),
        }
    }

    /// This port for TCP and for UDP, to a target of the same name or number.
    pub fn port(mut self, port: u16, target: impl ToString) -> Self {
        for (protocol, name) in [("TCP", "tcp"), ("UDP", "udp")] {
            let name = format!("{name}-{port}").leak();
            let target = target.to_string();
            self.ports.push(Port { name, protocol, port, node_port: None, target });
        }
        self
    }

    /// This port for TCP and for UDP, to targets of these names.
    pub fn port_named(mut self, port: u16, tcp: &str, udp: &str) -> Self {
        self = self.port(port, tcp);
        self.ports.last_mut().unwrap().target = udp.to_owned();
        self
    }

    /// Gives all ports a node port: this one and, for the next pairs, those that follow.
    pub fn node_ports(mut self, first: u16) -> Self {
        for (pair, ports) in self.ports.chunks_mut(2).enumerate() {
            let number = first + u16::try_from(pair).unwrap();
            ports.iter_mut().for_each(|port| port.node_port = Some(number));
        }
        self
    }

    pub fn external(mut self, addresses: Vec<IpAddr>) -> Self {
        self.external_ips = addresses;
        self
    }

    pub fn balancer(mut self, addresses: Vec<IpAddr>) -> Self {
        self.balancer_ips = addresses;
        self
    }

    /// A label of the Service, which the controller gives to its slices too.
    pub fn labelled(mut self, label: &'static str) -> Self {
        self.labels = label;
        self
    }

    /// netpol then derives the EndpointSlices from pods itself.
    pub fn selecting(mut self, labels: &str) -> Self {
        self.selector = Some(labels.to_owned());
        self
    }

    /// Further fields of the spec, in YAML flow style.
    pub fn with(mut self, fields: &str) -> Self {
        self.policies = fields.to_owned();
        self
    }

    /// An endpoint with a target number for each pair of ports.
    pub fn to(mut self, backend: &Backend, targets: &[u16]) -> Self {
        self.add(backend, targets, "ready: true");
        self
    }

    pub fn add(&mut self, backend: &Backend, targets: &[u16], conditions: &'static str) {
        let targets = targets.iter().flat_map(|&target| [target, target]).collect::<Vec<_>>();
        assert_eq!(targets.len(), self.ports.len(), "a target for each port");
        let (addresses, node) = (backend.addresses.clone(), backend.node);
        self.endpoints.push(Endpoint { addresses, node, targets, conditions });
    }

    /// Takes an endpoint away.
    pub fn drop_endpoint(&mut self, backend: &Backend) {
        let before = self.endpoints.len();
        self.endpoints.retain(|endpoint| endpoint.addresses != backend.addresses);
        assert!(self.endpoints.len() < before, "{} is no endpoint", backend.name);
    }

    pub fn has_selector(&self) -> bool {
        self.selector.is_some()
    }

    /// Manifest of the Service.
    pub fn manifest(&self, namespace: &str) -> String {
        let list = |addresses: &[IpAddr]| quoted(addresses).join(", ");
        let mut spec = match self.cluster_ips.first() {
            None => "clusterIP: None, clusterIPs: [None]".to_owned(),
            Some(first) => {
                format!("clusterIP: \"{first}\", clusterIPs: [{}]", list(&self.cluster_ips))
            }
        };
        if let Some(selector) = &self.selector {
            spec += &format!(", selector: {selector}");
        }
        if !self.external_ips.is_empty() {
            spec += &format!(", externalIPs: [{}]", list(&self.external_ips));
        }
        if !self.policies.is_empty() {
            spec += &format!(", {}", self.policies);
        }
        if !self.balancer_ips.is_empty() {
            spec += ", type: LoadBalancer";
        } else if self.ports.iter().any(|port| port.node_port.is_some()) {
            spec += ", type: NodePort";
        }
        let ports: Vec<String> = self.ports.iter().map(Port::text).collect();
        let ingress: Vec<String> =
            quoted(&self.balancer_ips).iter().map(|ip| format!("{{ip: {ip}}}")).collect();
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {}, namespace: {namespace}, \
             labels: {{{}}}}}\nspec: {{{spec}, ports: [{}]}}\nstatus: {{loadBalancer: {{ingress: [{}]}}}}\n",
            self.name,
            self.labels,
            ports.join(", "),
            ingress.join(", ")
        )
    }

    /// Its EndpointSlices: one for each family and list of target numbers. A YAML stream; every
    /// document of it keeps its name while the Service lives.
    pub fn slices(&self, namespace: &str) -> String {
        let mut kinds: BTreeMap<(bool, &[u16]), Vec<String>> = BTreeMap::new();
        for endpoint in &self.endpoints {
            for address in &endpoint.addresses {
                let node = endpoint.node.map_or(String::new(), |n| format!(", nodeName: node-{n}"));
                let text = format!(
                    "{{addresses: [\"{address}\"], conditions: {{{}}}{node}}}",
                    endpoint.conditions
                );
                let kind = (address.is_ipv4(), endpoint.targets.as_slice());
                kinds.entry(kind).or_default().push(text);
            }
        }
        let documents: Vec<String> = kinds
            .iter()
            .enumerate()
            .map(|(index, ((v4, targets), endpoints))| {
                self.slice(namespace, index, *v4, targets, &endpoints.join(", "))
            })
            .collect();
        documents.join("---\n")
    }

    fn slice(&self, ns: &str, index: usize, v4: bool, targets: &[u16], endpoints: &str) -> String {
        let name = &self.name;
        let family = if v4 { "IPv4" } else { "IPv6" };
        let ports: Vec<String> = self
            .ports
            .iter()
            .zip(targets)
            .map(|(port, target)| {
                format!("{{name: {}, protocol: {}, port: {target}}}", port.name, port.protocol)
            })
            .collect();
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}-{index}, namespace: {ns}, \
             labels: {{kubernetes.io/service-name: {name}, {}}}}}\n\
             addressType: {family}\nports: [{}]\nendpoints: [{endpoints}]\n",
            self.labels,
            ports.join(", ")
        )
    }
}

impl Port {
    fn text(&self) -> String {
        let Self { name, protocol, port, node_port, target } = self;
        let node_port = node_port.map_or(String::new(), |number| format!(", nodePort: {number}"));
        format!(
            "{{name: {name}, protocol: {protocol}, port: {port}, targetPort: {target}{node_port}}}"
        )
    }
}

fn quoted(addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(|address| format!("\"{address}\"")).collect()
}
