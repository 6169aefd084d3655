//! The manifests in deploy/ fit together and fit the program: generated file, flags, environment,
//! and the privileges that they ask for. What needs a running cluster is in `kubernetes_smoke`.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use clap::Parser;
use netpol_cluster::manifests;
use netpol_userspace::AgentArgs;
use serde_json::{Value, json};

#[derive(Parser)]
struct Agent {
    #[command(flatten)]
    args: AgentArgs,
}

/// The documents of a manifest.
fn documents(yaml: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).unwrap()
}

fn base() -> Vec<Value> {
    documents(&manifests::generated().unwrap())
}

/// The base with components, as a user's own kustomization has them.
fn with(components: &[&str]) -> Vec<Value> {
    let directory = tempfile::tempdir().unwrap();
    // kustomize wants relative paths.
    let deploy = fs::canonicalize(manifests::deploy()).unwrap();
    let depth = fs::canonicalize(directory.path()).unwrap().components().count() - 1;
    let relative =
        format!("{}{}", "../".repeat(depth), deploy.strip_prefix("/").unwrap().display());
    let components: Vec<_> =
        components.iter().map(|name| format!("{relative}/components/{name}")).collect();
    let kustomization =
        json!({"resources": [format!("{relative}/base")], "components": components});
    fs::write(directory.path().join("kustomization.yaml"), kustomization.to_string()).unwrap();
    documents(&manifests::render(directory.path()).unwrap())
}

/// The one object of a kind whose name begins so.
fn object<'a>(documents: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let mut found = documents.iter().filter(|one| {
        one["kind"] == kind && one["metadata"]["name"].as_str().unwrap().starts_with(name)
    });
    let object = found.next().unwrap_or_else(|| panic!("no {kind} {name}"));
    assert!(found.next().is_none(), "two {kind} {name}");
    object
}

fn container(documents: &[Value]) -> &Value {
    &object(documents, "DaemonSet", "netpol")["spec"]["template"]["spec"]["containers"][0]
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect()
}

#[test]
fn the_generated_file_is_what_the_sources_give() {
    let is = fs::read_to_string(manifests::file()).unwrap();
    assert!(
        is == manifests::generated().unwrap(),
        "deploy/netpol.yaml is not what deploy/base gives: run `cargo xtask manifests`"
    );
}

/// A value that the agent would refuse, or a name that it would overlook, is found here and not on
/// every node at once.
#[test]
fn the_agent_takes_the_flags_and_the_environment_of_all_variants() {
    use clap::CommandFactory as _;
    for documents in [base(), with(&["monitoring"]), with(&["cni"]), with(&["cni", "monitoring"])] {
        let container = container(&documents);
        let arguments = strings(&container["args"]);
        assert_eq!(arguments[0], "agent");
        let map = container["envFrom"][0]["configMapRef"]["name"].as_str().unwrap();
        let environment = &object(&documents, "ConfigMap", map)["data"];
        let command = Agent::command();
        let mut line: Vec<String> = arguments.iter().map(|one| (*one).to_owned()).collect();
        line.push("--node-name=n".into());
        for (name, value) in environment.as_object().unwrap() {
            if name == "RUST_LOG" {
                continue;
            }
            let flag = command
                .get_arguments()
                .find(|one| one.get_env().is_some_and(|env| env.to_str() == Some(name)))
                .unwrap_or_else(|| panic!("the agent does not read {name}"));
            line.push(format!("--{}={}", flag.get_long().unwrap(), value.as_str().unwrap()));
        }
        let agent = Agent::try_parse_from(line).unwrap_or_else(|error| panic!("{error}"));
        let options = agent.args.options().unwrap();
        assert!(!options.mount_bpffs);
        let port = options.metrics_address.unwrap().port();
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            assert_eq!(container[probe]["httpGet"]["port"], json!(port), "{probe}");
        }
        // What is pinned and written outlives the pod; where it is read, mounts of later appear.
        for directory in [&options.bpffs, &options.run_dir, &options.netns_dir] {
            let mounts = container["volumeMounts"].as_array().unwrap();
            let path = |one: &Value| directory.starts_with(one["mountPath"].as_str().unwrap());
            assert!(mounts.iter().any(path), "{} is not the host's", directory.display());
        }
    }
}

#[test]
fn the_agent_has_three_capabilities_and_may_only_list_and_watch() {
    let documents = base();
    let context = &container(&documents)["securityContext"];
    assert_eq!(
        context["capabilities"],
        json!({"drop": ["ALL"], "add": ["NET_ADMIN", "NET_BROADCAST", "SYS_ADMIN"]})
    );
    assert_eq!(context["privileged"], false);
    assert_eq!(context["allowPrivilegeEscalation"], false);
    assert_eq!(context["readOnlyRootFilesystem"], true);
    let pod = &object(&documents, "DaemonSet", "netpol")["spec"]["template"]["spec"];
    assert_eq!((&pod["hostPID"], &pod["hostIPC"]), (&Value::Null, &Value::Null));
    let mut readable = BTreeSet::new();
    for rule in object(&documents, "ClusterRole", "netpol")["rules"].as_array().unwrap() {
        assert_eq!(rule["verbs"], json!(["list", "watch"]));
        readable.extend(strings(&rule["resources"]));
    }
    let kinds = [
        "clusternetworkpolicies",
        "endpointslices",
        "namespaces",
        "networkpolicies",
        "nodes",
        "pods",
        "services",
    ];
    assert_eq!(readable, BTreeSet::from(kinds));
}

#[test]
fn the_definition_of_cluster_network_policies_is_a_component() {
    let documents = with(&["cluster-network-policy"]);
    let name = "clusternetworkpolicies.policy.networking.k8s.io";
    let definition = object(&documents, "CustomResourceDefinition", name);
    let annotations = &definition["metadata"]["annotations"];
    assert_eq!(annotations["policy.networking.k8s.io/bundle-version"], "v0.3.0");
}

#[test]
fn the_monitoring_finds_the_agents() {
    let documents = with(&["monitoring"]);
    let service = object(&documents, "Service", "netpol-metrics");
    let pod = &object(&documents, "DaemonSet", "netpol")["spec"]["template"];
    let has = |labels: &Value, wanted: &Value| {
        wanted.as_object().unwrap().iter().all(|(name, value)| &labels[name] == value)
    };
    assert!(has(&pod["metadata"]["labels"], &service["spec"]["selector"]));
    let monitor = &object(&documents, "ServiceMonitor", "netpol")["spec"];
    assert!(has(&service["metadata"]["labels"], &monitor["selector"]["matchLabels"]));
    assert_eq!(monitor["endpoints"][0]["port"], service["spec"]["ports"][0]["name"]);
    let dashboard =
        object(&documents, "ConfigMap", "netpol-dashboard")["data"]["netpol.json"].as_str();
    let dashboard: Value = serde_json::from_str(dashboard.unwrap()).unwrap();
    assert!(!dashboard["panels"].as_array().unwrap().is_empty());
}

#[test]
fn what_kustomize_refuses_is_said() {
    let error = manifests::render(Path::new("/nonexistent")).unwrap_err().to_string();
    assert!(error.contains("/nonexistent"), "{error}");
}
