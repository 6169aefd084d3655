//! netpol on a real cluster, as a user has it: two nodes, the DaemonSet of deploy/, pods and a
//! Service in both address families, real connections. What each rule of NetworkPolicy means is
//! tested elsewhere, in namespaces; this is about everything fitting together.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::thread;
use std::time::Duration;

use netpol_cluster::process::{output, wait_for};
use netpol_cluster::{Cluster, Options, agent, images};
use serde_json::{Value, json};

const SERVERS: [&str; 2] = ["server-1", "server-2"];
const PATIENCE: Duration = Duration::from_secs(180);

#[test]
fn policies_are_enforced_on_a_real_cluster() {
    let name = format!("smoke-{}", std::process::id());
    let mut cluster = Cluster::up(&Options { name, ..Options::default() }).unwrap();
    agent::install(&cluster, &agent::program().unwrap(), agent::Plugin::None).unwrap();
    cluster.apply(&pods()).unwrap();
    wait_until_ready(&cluster);
    let targets = targets(&cluster);

    for client in ["friend", "stranger"] {
        wait_for_answers(&cluster, client, &targets, Answer::Passed);
    }

    cluster.apply(&policy()).unwrap();
    wait_for_answers(&cluster, "stranger", &targets, Answer::Nothing);
    assert_enforced(&cluster, &targets);
    for server in SERVERS {
        assert!(drops(&cluster, server) > 0, "{server} has lost no packet");
    }
    // The kubelets' probes come from the nodes, which no policy keeps out.
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=0"]).unwrap();

    // Agents that are replaced leave what they enforce in force.
    cluster.kubectl(&["-n", "netpol", "delete", "pods", "--all", "--grace-period=1"]).unwrap();
    assert_enforced(&cluster, &targets);
    rolled_out(&cluster);
    assert_enforced(&cluster, &targets);

    // What a node enforces comes back with it.
    let before = restarts(&cluster, "server-2");
    cluster.restart_node(1).unwrap();
    wait_for("the pods of the restarted node", PATIENCE, || {
        Ok(restarts(&cluster, "server-2") > before)
    })
    .unwrap();
    wait_until_ready(&cluster);
    rolled_out(&cluster);
    let targets = self::targets(&cluster);
    wait_for_answers(&cluster, "stranger", &targets, Answer::Nothing);
    wait_for_answers(&cluster, "friend", &targets, Answer::Passed);
    assert_enforced(&cluster, &targets);
    for node in cluster.nodes() {
        let status = on_agent(&cluster, node.name(), &["netpol", "status", "-o", "json"]);
        assert_eq!(status["ready"], true, "{status}");
        // With its three capabilities and a read-only /sys it may have programs attached quickly.
        let can = on_agent(&cluster, node.name(), &["netpol", "capabilities", "-o", "json"]);
        let missing = can["features"].as_array().unwrap();
        let missing: Vec<_> = missing.iter().filter(|feature| feature["present"] != true).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    cluster.kubectl(&["delete", "networkpolicy", "servers"]).unwrap();
    wait_for_answers(&cluster, "stranger", &targets, Answer::Passed);
}

/// What became of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Passed,
    /// No answer came, as when packets are dropped.
    Nothing,
    /// A reset or an unreachable came. It is what kube-proxy says of a Service until it has heard
    /// of its endpoints, so it may be waited out; netpol never says it.
    Refused,
}

/// Opens a connection from a pod. Anything that is none of the three answers fails the test, such
/// as an exec that did not come about.
fn connect(cluster: &Cluster, client: &str, target: &str, seconds: u8) -> Answer {
    let mut command = cluster.kubectl_command().unwrap();
    command.args(["exec", client, "--", "/agnhost", "connect", target]);
    command.arg(format!("--timeout={seconds}s"));
    let answer = output(&mut command).unwrap();
    let said = String::from_utf8_lossy(&answer.stderr);
    match answer.status.success() {
        true => Answer::Passed,
        false if said.contains("TIMEOUT") => Answer::Nothing,
        false if said.contains("REFUSED") => Answer::Refused,
        false => panic!("{client} to {target}: {said}"),
    }
}

/// All at once, since what is denied takes its time.
fn wait_for_answers(cluster: &Cluster, client: &str, targets: &[String], wanted: Answer) {
    thread::scope(|scope| {
        for target in targets {
            scope.spawn(move || wait_for_answer(cluster, client, target, wanted));
        }
    });
}

fn wait_for_answer(cluster: &Cluster, client: &str, target: &str, wanted: Answer) {
    wait_for(&format!("{client} to {target}: {wanted:?}"), PATIENCE, || {
        Ok(connect(cluster, client, target, 2) == wanted)
    })
    .unwrap();
}

fn assert_enforced(cluster: &Cluster, targets: &[String]) {
    thread::scope(|scope| {
        for target in targets {
            scope.spawn(move || {
                assert_eq!(connect(cluster, "friend", target, 60), Answer::Passed, "{target}");
            });
            scope.spawn(move || {
                assert_eq!(connect(cluster, "stranger", target, 2), Answer::Nothing, "{target}");
            });
        }
    });
}

/// Both servers and their Service, in both families.
fn targets(cluster: &Cluster) -> Vec<String> {
    let service = get(cluster, &["service", "servers"]);
    let service = strings(&service["spec"]["clusterIPs"]);
    let servers = SERVERS.iter().flat_map(|server| addresses(cluster, server));
    let targets = servers.map(|address| (address, 8080));
    let targets = targets.chain(service.into_iter().map(|address| (address, 80)));
    let targets: Vec<String> = targets
        .map(|(address, port)| match address.contains(':') {
            true => format!("[{address}]:{port}"),
            false => format!("{address}:{port}"),
        })
        .collect();
    assert_eq!(targets.len(), 6, "{targets:?}");
    targets
}

fn addresses(cluster: &Cluster, pod: &str) -> Vec<String> {
    let pod = get(cluster, &["pod", pod]);
    let addresses = pod["status"]["podIPs"].as_array().unwrap();
    addresses.iter().map(|address| address["ip"].as_str().unwrap().to_owned()).collect()
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|one| one.as_str().unwrap().to_owned()).collect()
}

fn restarts(cluster: &Cluster, pod: &str) -> u64 {
    let pod = get(cluster, &["pod", pod]);
    pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap()
}

/// How many packets to the server its node's agent has counted as denied by a policy.
fn drops(cluster: &Cluster, server: &str) -> u64 {
    let node = get(cluster, &["pod", server]);
    let node = node["spec"]["nodeName"].as_str().unwrap();
    let endpoints = on_agent(cluster, node, &["netpol", "endpoints", "-o", "json"]);
    let mut endpoints = endpoints.as_array().unwrap().iter();
    let endpoint = endpoints.find(|endpoint| endpoint["pod"] == server).unwrap();
    endpoint["ingress"]["drops"]["policy"].as_u64().unwrap_or(0)
}

/// Runs the CLI in a node's agent's pod, as a person would.
fn on_agent(cluster: &Cluster, node: &str, command: &[&str]) -> Value {
    let pods = get(cluster, &["-n", "netpol", "pods", "--field-selector", &on_node(node)]);
    let pod = pods["items"][0]["metadata"]["name"].as_str().unwrap();
    let mut arguments = vec!["-n", "netpol", "exec", pod, "--"];
    arguments.extend(command);
    serde_json::from_str(&cluster.kubectl(&arguments).unwrap()).unwrap()
}

fn on_node(node: &str) -> String {
    format!("spec.nodeName={node}")
}

fn get(cluster: &Cluster, what: &[&str]) -> Value {
    let arguments = [&["get", "-o", "json"], what].concat();
    serde_json::from_str(&cluster.kubectl(&arguments).unwrap()).unwrap()
}

fn wait_until_ready(cluster: &Cluster) {
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=180s"]).unwrap();
}

fn rolled_out(cluster: &Cluster) {
    let arguments = ["-n", "netpol", "rollout", "status", "daemonset/netpol", "--timeout=180s"];
    cluster.kubectl(&arguments).unwrap();
}

fn pods() -> String {
    let pod = |name: &str, role: &str, node: &str, arguments: Value, probe: Value| {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name, "labels": { "role": role } },
            "spec": {
                "nodeName": node,
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "agnhost",
                    "image": images::AGNHOST,
                    "args": arguments,
                    "readinessProbe": probe,
                }],
            },
        })
    };
    let probe = json!({ "httpGet": { "path": "/healthz", "port": 8080 }, "periodSeconds": 1 });
    let serve = json!(["netexec", "--http-port=8080"]);
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "servers" },
        "spec": {
            "ipFamilyPolicy": "RequireDualStack",
            "selector": { "role": "server" },
            "ports": [{ "port": 80, "targetPort": 8080 }],
        },
    });
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        pod("server-1", "server", "node-1", serve.clone(), probe.clone()),
        pod("server-2", "server", "node-2", serve, probe),
        pod("friend", "friend", "node-1", json!(["pause"]), Value::Null),
        pod("stranger", "stranger", "node-1", json!(["pause"]), Value::Null),
        service,
    ]})
    .to_string()
}

fn policy() -> String {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "name": "servers" },
        "spec": {
            "podSelector": { "matchLabels": { "role": "server" } },
            "policyTypes": ["Ingress"],
            "ingress": [{
                "from": [{ "podSelector": { "matchLabels": { "role": "friend" } } }],
                "ports": [{ "port": 8080 }],
            }],
        },
    })
    .to_string()
}
