//! An agent on a real API server: what it says and what it enforces while it may not read
//! something, while the API server is away, and afterwards. Needs root, the eBPF object, and
//! Kubernetes' programs, which are built if need be.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::net::TcpStream;
use std::os::fd::{AsFd as _, AsRawFd as _};

use netpol_cluster::envtest::{ADDRESS, ApiServer};
use netpol_isolation::netns::Netns;
use netpol_testkit::world::traffic::{Server, assert_allowed, assert_denied};
use netpol_testkit::world::{NODE_NAME, World, eventually};
use serde_json::Value;

const AGENT: &str = "system:serviceaccount:netpol:netpol";
const SERVER: &str = "10.244.0.1:80";
const FRIENDS: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                       metadata: {name: friends, namespace: default}\n\
                       spec: {podSelector: {matchLabels: {app: server}}, ingress: [{from: \
                       [{podSelector: {matchLabels: {app: friend}}}]}]}\n";

/// A node whose agent reads an API server that listens in the same namespace.
struct Shop {
    api: ApiServer,
    world: World,
    _server: Server,
}

impl Shop {
    fn new() -> Self {
        let mut world = World::new();
        let fd = world.node.as_fd().as_raw_fd();
        let netns = Netns::open(format!("/proc/self/fd/{fd}")).unwrap();
        let api = ApiServer::start_in(netns, &world.dir.path().join("api"), &[AGENT]).unwrap();
        let kubeconfig = world.dir.path().join("kubeconfig");
        fs::write(&kubeconfig, api.kubeconfig(AGENT, ADDRESS)).unwrap();
        world.kubeconfig = Some(kubeconfig);
        for (number, name) in (1..).zip(["server", "friend", "stranger"]) {
            let address = format!("10.244.0.{number}");
            world.wire(name, &address);
            declare(&api, name, &address);
        }
        let server = Server::start(&world.of("server"), 80);
        Self { api, world, _server: server }
    }

    fn assert_enforced(&self) {
        assert_allowed(&self.world.of("friend"), SERVER);
        assert_denied(&self.world.of("stranger"), SERVER);
    }

    /// What a person sees.
    fn status(&self) -> String {
        let run_dir = self.world.run_dir();
        let arguments = ["status", "--run-dir", run_dir.to_str().unwrap()];
        let output = self.world.netpol(&arguments.map(ToOwned::to_owned));
        String::from_utf8(output.stdout).unwrap()
    }

    fn until_status(&self, parts: &[&str]) {
        eventually(&format!("status says {parts:?}; it says {}", self.status()), || {
            let status = self.status();
            parts.iter().all(|part| status.contains(part))
        });
    }

    /// Whether the watch of this resource is synced, as the JSON has it.
    fn is_synced(&self, resource: &str) -> bool {
        let status: Value = self.world.agent.as_ref().unwrap().status();
        let watches = status["source"]["watches"].as_array().unwrap();
        let watch = watches.iter().find(|watch| watch["resource"] == resource).unwrap();
        watch["synced"].as_bool().unwrap()
    }
}

fn declare(api: &ApiServer, name: &str, address: &str) {
    api.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\n\
         spec: {{nodeName: {NODE_NAME}, automountServiceAccountToken: false, \
         containers: [{{name: c, image: none}}]}}\n"
    ))
    .unwrap();
    let status = format!(
        "{{\"status\": {{\"phase\": \"Running\", \"podIP\": \"{address}\", \
         \"podIPs\": [{{\"ip\": \"{address}\"}}]}}}}"
    );
    api.kubectl(&["patch", "pod", name, "--subresource=status", "--type=merge", "-p", &status])
        .unwrap();
}

fn deployed() -> String {
    fs::read_to_string(netpol_cluster::manifests::file()).unwrap()
}

#[test]
fn an_agent_says_what_it_misses_and_enforces_what_it_knows() {
    let mut shop = Shop::new();
    shop.api.apply(&deployed()).unwrap();
    shop.api.apply(FRIENDS).unwrap();

    // It may not read policies: it says so and what to do, and nothing is in force.
    shop.api.kubectl(&["delete", "clusterrolebinding", "netpol"]).unwrap();
    shop.world.start_only();
    eventually("the agent listens", || shop.world.run_dir().join("agent.sock").exists());
    shop.until_status(&[
        "not ready: the source has not been read completely",
        "networkpolicies",
        "are missing",
        "watch networkpolicies: forbidden: ",
        "cannot list resource \"networkpolicies\" in API group \"networking.k8s.io\"",
        "the agent's ClusterRole needs {apiGroups: [\"networking.k8s.io\"], resources: \
         [networkpolicies], verbs: [list, watch]}",
        "watch nodes: forbidden: ",
    ]);
    assert!(!shop.is_synced("pods") && shop.is_synced("nodes"), "{}", shop.status());
    assert_eq!(shop.world.http("/readyz").0, 503);
    let metrics = shop.world.http("/metrics").1;
    assert!(metrics.contains("netpol_watch_synced{resource=\"networkpolicies\"} 0"), "{metrics}");
    assert_allowed(&shop.world.of("stranger"), SERVER);

    // It may: it notices by itself.
    shop.api.apply(&deployed()).unwrap();
    shop.until_status(&["source: kubernetes, read completely"]);
    shop.world.settle();
    shop.assert_enforced();
    eventually("no error is left", || !shop.status().contains("forbidden"));

    // The API server is away: what is in force stays, also with an agent that starts meanwhile.
    shop.api.kill_apiserver().unwrap();
    let gone = "watch networkpolicies: cannot reach the API server: ";
    shop.until_status(&[gone, "what is in force stays"]);
    shop.assert_enforced();
    shop.world.kill();
    shop.world.start_only();
    eventually("the agent listens", || {
        shop.world.node.run(|| TcpStream::connect("127.0.0.1:9642").is_ok()).unwrap()
    });
    shop.until_status(&[gone, "not read completely yet: namespaces, pods, networkpolicies"]);
    shop.assert_enforced();

    // It is back, and something has changed.
    shop.api.start_apiserver().unwrap();
    shop.api.kubectl(&["label", "pod", "stranger", "app=friend", "--overwrite"]).unwrap();
    shop.api.kubectl(&["label", "pod", "friend", "app=enemy", "--overwrite"]).unwrap();
    shop.until_status(&["source: kubernetes, read completely"]);
    shop.world.settle();
    assert_allowed(&shop.world.of("stranger"), SERVER);
    assert_denied(&shop.world.of("friend"), SERVER);
    let metrics = shop.world.http("/metrics").1;
    assert!(metrics.contains("netpol_watch_objects{resource=\"pods\"} 3"), "{metrics}");
}
