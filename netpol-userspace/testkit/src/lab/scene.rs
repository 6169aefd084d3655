//! A Kubernetes namespace in a lab with pods, policies and servers, all gone when it is dropped.
//! Must never change what belongs to another scene.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use netpol_isolation::netns::{self, Netns};

use super::wire::Wire;
use super::wiring::Link;
use super::{Lab, unique, wire, wiring};
use crate::world::traffic::Server;
use crate::world::{eventually, ip};

/// A port that no one listens on (RFC 863).
const DISCARD: u16 = 9;
const A_MOMENT: Duration = Duration::from_millis(300);

/// A pod with its own network.
pub struct Pod {
    pub name: String,
    pub namespace: String,
    /// 1 or 2.
    pub node: usize,
    /// Of each of the lab's families one.
    pub addresses: Vec<IpAddr>,
    pub netns: Netns,
    /// The node's end of its veth.
    pub interface: String,
    pub ifindex: u32,
    /// Its namespace's name in the node's directory.
    pub(super) file: String,
    wire: Wire,
}

impl Pod {
    /// Its address of the other's family.
    pub fn address(&self, family_of: IpAddr) -> IpAddr {
        let is_same = |address: &&IpAddr| address.is_ipv4() == family_of.is_ipv4();
        *self.addresses.iter().find(is_same).expect("the pod has this family")
    }

    /// Its `eth0`, frame by frame; everything since it was wired is recorded.
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// The link-layer address that the pod sends to what is not on its link; the pod has talked to
    /// its node already.
    pub fn gateway(&self) -> [u8; 6] {
        let run = || Command::new("ip").args(["-j", "neigh", "show", "dev", "eth0"]).output();
        let output = self.netns.run(run).unwrap().unwrap();
        let known: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
        let gateways = wiring::gateways(self.node);
        let is_gateway = |entry: &&serde_json::Value| {
            gateways.iter().any(|gateway| entry["dst"] == gateway.as_str())
        };
        let entry = known.iter().find(is_gateway).expect("the pod knows its gateway");
        wire::link_address(entry["lladdr"].as_str().unwrap())
    }

    /// What the pod's kernel has learnt about the way to `address`.
    pub fn learnt_mtu(&self, address: IpAddr) -> Option<u32> {
        let address = address.to_string();
        let run = || Command::new("ip").args(["route", "get", &address]).output().unwrap();
        let output = String::from_utf8(self.netns.run(run).unwrap().stdout).unwrap();
        let (_, rest) = output.split_once(" mtu ")?;
        Some(rest.split_whitespace().next().unwrap().parse().unwrap())
    }

    /// Runs lines of `ip` in the pod.
    pub fn ip(&self, script: &str) {
        ip(&self.netns, script);
    }
}

/// A Kubernetes namespace of a lab.
pub struct Scene<'a> {
    pub lab: &'a Lab,
    pub namespace: String,
    /// Names of files among the manifests.
    written: RefCell<Vec<String>>,
    wired: RefCell<Vec<(usize, String, String)>>,
    servers: RefCell<Vec<Server>>,
    /// How many probes were made, and since when; for the record.
    probes: Cell<u64>,
    since: Instant,
}

impl<'a> Scene<'a> {
    pub(super) fn new(lab: &'a Lab, name: &str) -> Self {
        let scene = Self {
            lab,
            namespace: name.replace('_', "-"),
            written: RefCell::default(),
            wired: RefCell::default(),
            servers: RefCell::default(),
            probes: Cell::new(0),
            since: Instant::now(),
        };
        scene.label(&format!("{{name: {}}}", scene.namespace));
        scene
    }

    /// Gives the namespace these labels.
    pub fn label(&self, labels: &str) {
        self.write(
            "namespace",
            &format!(
                "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {}, labels: {labels}}}\n",
                self.namespace
            ),
        );
    }

    // === Pods ===

    /// A pod on node 1 or 2 with these labels: its interface and its manifest.
    pub fn pod(&self, name: &str, node: usize, labels: &str) -> Pod {
        let pod = self.wire(name, node);
        self.declare(&pod, labels);
        pod
    }

    /// A pod whose container has these ports, in YAML flow style.
    pub fn pod_with_ports(&self, name: &str, node: usize, labels: &str, ports: &str) -> Pod {
        let pod = self.wire(name, node);
        let spec = format!("containers: [{{name: c, ports: {ports}}}]");
        self.declare_as(&pod, labels, &spec, "Running", "");
        pod
    }

    /// Two pods that are isolated both ways, of which the first may open connections to the second.
    pub fn closed_pair(&self) -> [Pod; 2] {
        let asks = self.pod("asks", 1, "{app: asks}");
        let asked = self.pod("asked", 2, "{app: asked}");
        for (own, key, rule, peer) in
            [("asks", "egress", "to", "asked"), ("asked", "ingress", "from", "asks")]
        {
            self.policy(
                own,
                &format!(
                    "podSelector: {{matchLabels: {{app: {own}}}}}, policyTypes: [Ingress, Egress], \
                     {key}: [{{{rule}: [{{podSelector: {{matchLabels: {{app: {peer}}}}}}}]}}]"
                ),
            );
        }
        self.settle();
        [asks, asked]
    }

    /// The interface alone, with addresses that no one had before.
    pub fn wire(&self, name: &str, node: usize) -> Pod {
        let number = self.lab.node(node).last_pod.fetch_add(1, Ordering::Relaxed) + 1;
        assert!(number < 255, "the node's pod subnet is used up");
        let [v4, v6] = wiring::pod_addresses(node, number);
        self.wire_at(name, node, self.lab.of_families([&v4, &v6]))
    }

    /// The interface alone, with these addresses.
    pub fn wire_at(&self, name: &str, node: usize, addresses: Vec<IpAddr>) -> Pod {
        let id = unique();
        let file = format!("{}_{name}_{id}", self.namespace);
        let interface = format!("veth{id:x}");
        let netns = Netns::create(&self.lab.node(node).netns_dir, &file).unwrap();
        self.wired.borrow_mut().push((node, interface.clone(), file.clone()));
        let link = Link {
            node,
            addresses: &addresses,
            netns: &netns,
            interface: &interface,
            id,
            file: &file,
        };
        let ifindex = wiring::connect_pod(self.lab, &link);
        self.warm_up(node, &netns);
        let wire = Wire::open(&netns);
        let (name, namespace) = (name.to_owned(), self.namespace.clone());
        Pod { name, namespace, node, addresses, netns, interface, ifindex, file, wire }
    }

    /// The pod has taken its interface away by itself.
    pub fn is_unwired(&self, pod: &Pod) {
        self.wired.borrow_mut().retain(|(_, _, file)| *file != pod.file);
        netns::delete(&self.lab.node(pod.node).netns_dir, &pod.file).unwrap();
    }

    /// Waits until the new interface carries packets both ways: the kernel drops the first ones
    /// while it still brings the ends up.
    fn warm_up(&self, node: usize, netns: &Netns) {
        for node in self.lab.node_addresses(node) {
            let reached = || TcpStream::connect_timeout(&(node, DISCARD).into(), A_MOMENT);
            eventually("the node refuses a connection", || {
                let error = netns.run(reached).unwrap().expect_err("nobody listens");
                error.kind() == ErrorKind::ConnectionRefused
            });
        }
    }

    /// The manifest of a pod, which may replace an earlier one.
    pub fn declare(&self, pod: &Pod, labels: &str) {
        self.declare_as(pod, labels, "containers: [{name: c}]", "Running", "");
    }

    /// The same with this spec (but for the node), phase, and further metadata.
    pub fn declare_as(&self, pod: &Pod, labels: &str, spec: &str, phase: &str, metadata: &str) {
        let comma = if metadata.is_empty() { "" } else { ", " };
        let metadata = format!("uid: uid-{}{comma}{metadata}", pod.file.replace('_', "-"));
        self.declare_at(&pod.name, pod.node, &pod.addresses, labels, spec, phase, &metadata);
    }

    /// The manifest of a pod without an interface of its own.
    #[expect(clippy::too_many_arguments, reason = "a pod's manifest has as many parts")]
    pub fn declare_at(
        &self,
        name: &str,
        node: usize,
        addresses: &[IpAddr],
        labels: &str,
        spec: &str,
        phase: &str,
        metadata: &str,
    ) {
        let list: Vec<String> = addresses.iter().map(|ip| format!("{{ip: \"{ip}\"}}")).collect();
        let (first, namespace) = (addresses[0], &self.namespace);
        let node_name = &self.lab.node(node).name;
        self.write(
            &format!("pod-{name}"),
            &format!(
                "apiVersion: v1\nkind: Pod\n\
                 metadata: {{name: {name}, namespace: {namespace}, labels: {labels}, {metadata}}}\n\
                 spec: {{nodeName: {node_name}, {spec}}}\n\
                 status: {{phase: {phase}, podIP: \"{first}\", podIPs: [{}]}}\n",
                list.join(", ")
            ),
        );
    }

    /// Answers TCP and UDP on this port of the pod until the scene ends.
    pub fn serve(&self, pod: &Pod, port: u16) {
        self.servers.borrow_mut().push(Server::start(&pod.netns, port));
    }

    /// The same on one address of any namespace.
    pub fn serve_at(&self, netns: &Netns, address: SocketAddr) {
        self.servers.borrow_mut().push(Server::start_at(netns, address));
    }

    // === Manifests ===

    /// Writes an object of this scene; the name is for [`Self::remove`].
    pub fn write(&self, name: &str, text: &str) {
        let file = self.file(name);
        self.lab.write(&file, text);
        let mut written = self.written.borrow_mut();
        if !written.contains(&file) {
            written.push(file);
        }
    }

    pub fn remove(&self, name: &str) {
        let file = self.file(name);
        self.lab.remove(&file);
        self.written.borrow_mut().retain(|written| *written != file);
    }

    fn file(&self, name: &str) -> String {
        format!("{}.{name}", self.namespace)
    }

    /// A policy with this spec, in YAML flow style.
    pub fn policy(&self, name: &str, spec: &str) {
        self.write(
            &format!("policy-{name}"),
            &format!(
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                 metadata: {{name: {name}, namespace: {}}}\nspec: {{{spec}}}\n",
                self.namespace
            ),
        );
    }

    /// A ClusterNetworkPolicy about these pods of the scene, in YAML flow style, with these rules.
    pub fn cluster_policy(&self, name: &str, tier: &str, pods: &str, rules: &str) {
        let subject = self.peer(pods);
        self.write(
            &format!("cluster-policy-{name}"),
            &format!(
                "apiVersion: policy.networking.k8s.io/v1beta1\nkind: ClusterNetworkPolicy\n\
                 metadata: {{name: {}-{name}}}\n\
                 spec: {{tier: {tier}, priority: 10, subject: {subject}, {rules}}}\n",
                self.namespace
            ),
        );
    }

    /// Some pods of the scene as subject or peer of a ClusterNetworkPolicy.
    pub fn peer(&self, pods: &str) -> String {
        format!(
            "{{pods: {{namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {}}}}}, \
             podSelector: {pods}}}}}",
            self.namespace
        )
    }

    pub fn remove_cluster_policy(&self, name: &str) {
        self.remove(&format!("cluster-policy-{name}"));
    }

    pub fn remove_policy(&self, name: &str) {
        self.remove(&format!("policy-{name}"));
    }

    pub(super) fn probed(&self) {
        self.probes.set(self.probes.get() + 1);
    }

    /// Waits until everything written is in force on both nodes.
    pub fn settle(&self) {
        self.lab.settle();
    }
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        let (cni, between) = (self.lab.topology.cni, self.lab.topology.between);
        println!(
            "{} on {cni:?} {between:?} {:?}: {} probes in {:.1} s",
            self.namespace,
            self.lab.families,
            self.probes.get(),
            self.since.elapsed().as_secs_f64()
        );
        self.servers.borrow_mut().clear();
        for file in self.written.borrow().iter() {
            let _ = fs::remove_file(self.lab.manifests().join(format!("{file}.yaml")));
        }
        for (node, interface, file) in self.wired.borrow().iter() {
            let node = self.lab.node(*node);
            ip(&node.netns, &format!("link del {interface}"));
            let _ = netns::delete(&node.netns_dir, file);
        }
    }
}
