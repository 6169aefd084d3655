//! The Kubernetes source on a real API server: what it asks for, what it survives, and what it
//! says. Needs root (network namespaces), and Kubernetes' programs, which are built if need be.
#![expect(clippy::unwrap_used, reason = "tests")]

mod source_world;

use std::process::Command;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use netpol_cluster::envtest::{ADDRESS, ADMIN, ApiServer};
use netpol_model::{Change, Cluster, ObjectName};
use netpol_source::Event;
use netpol_source::kubernetes::connect_with;
use serde_json::{Value, json};
use source_world::gate::{Gate, Mode};
use source_world::{AGENT, Source, beside, client, config, create_all, deployed, requests};

const POLICY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                      metadata: {name: NAME, namespace: default}\nspec: {podSelector: {}}\n";

fn policy(server: &ApiServer, name: &str) {
    server.apply(&POLICY.replace("NAME", name)).unwrap();
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"nodeName": "n1", "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "none"}]}})
}

/// The role of deploy/netpol.yaml without one resource.
fn role_without(resource: &str) -> String {
    let rule = |group: &str, resources: &[&str]| {
        let resources: Vec<&str> =
            resources.iter().copied().filter(|name| *name != resource).collect();
        if resources.is_empty() {
            return String::new();
        }
        format!(
            "- {{apiGroups: [\"{group}\"], resources: [{}], verbs: [list, watch]}}\n",
            resources.join(", ")
        )
    };
    format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {{name: netpol}}\n\
         rules:\n{}{}{}{}",
        rule("", &["pods", "namespaces", "services", "nodes"]),
        rule("networking.k8s.io", &["networkpolicies"]),
        rule("discovery.k8s.io", &["endpointslices"]),
        rule("policy.networking.k8s.io", &["clusternetworkpolicies"])
    )
}

/// Grants everything, or everything but this resource, and waits until it is so: the API server
/// reads roles as everybody does.
fn may(server: &ApiServer, resource: &str, granted: bool) {
    server.apply(&role_without(if granted { "nothing" } else { resource })).unwrap();
    let group = match resource {
        "networkpolicies" => "networking.k8s.io",
        "endpointslices" => "discovery.k8s.io",
        "clusternetworkpolicies" => "policy.networking.k8s.io",
        _ => "",
    };
    let review = format!(
        "apiVersion: authorization.k8s.io/v1\nkind: SubjectAccessReview\nspec: {{user: {AGENT}, \
         resourceAttributes: {{verb: list, group: \"{group}\", resource: {resource}}}}}\n"
    );
    let create = ["create", "-f", "-", "-o", "jsonpath={.status.allowed}"];
    let end = Instant::now() + source_world::PATIENCE;
    while server.kubectl_with(&create, &review).unwrap() != granted.to_string() {
        assert!(Instant::now() < end, "{resource}: {granted}");
    }
}

/// Every kind in turn: named, with what to do; read once it is granted; kept when it is taken
/// away again.
#[test]
fn a_missing_permission_is_named_and_its_grant_noticed() {
    beside(async |server| {
        server.apply(&deployed()).unwrap();
        server.apply(&role_without("nothing")).unwrap();
        policy(&server, "web");
        for (resource, group, is_needed) in [
            ("pods", "", true),
            ("namespaces", "", true),
            ("networkpolicies", "networking.k8s.io", true),
            ("services", "", false),
            ("endpointslices", "discovery.k8s.io", false),
            ("nodes", "", false),
        ] {
            may(&server, resource, false);
            let mut source = Source::start(&server).await;
            let watch = format!("watch {resource}");
            let message = source.until_problem(&watch).await;
            for part in [
                format!("User \"{AGENT}\" cannot list resource \"{resource}\""),
                format!(
                    "the agent's ClusterRole needs {{apiGroups: [\"{group}\"], resources: \
                     [{resource}], verbs: [list, watch]}}"
                ),
                "retrying".to_owned(),
            ] {
                assert!(message.contains(&part), "{message}");
            }
            if is_needed {
                // Nothing is called complete.
                assert!(!source.log.contains(&Event::Synced), "{resource}");
            } else {
                if !source.log.contains(&Event::Synced) {
                    source.until(|event, _| *event == Event::Synced).await;
                }
                source.settle().await;
            }
            assert_eq!(source.problems().len(), 1, "{:?}", source.problems());
            may(&server, resource, true);
            source.until_resolved(&watch).await;
            if !source.log.contains(&Event::Synced) {
                source.until(|event, _| *event == Event::Synced).await;
            }
            source.settle().await;
            assert!(source.has_policy("default", "web") && source.problems().is_empty());
        }
        taken_away_while_running(&server).await;
    });
}

async fn taken_away_while_running(server: &ApiServer) {
    let mut source = Source::synced(server).await;
    may(server, "networkpolicies", false);
    // A watch that runs goes on until it ends; the next one is refused.
    source.gate.cut();
    let message = source.until_problem_with("watch networkpolicies", "forbidden").await;
    assert!(message.contains("cannot watch resource \"networkpolicies\""), "{message}");
    assert!(message.contains("what is in force stays"), "{message}");
    policy(server, "later");
    assert!(source.has_policy("default", "web"), "nothing is taken back");
    may(server, "networkpolicies", true);
    source.until(|_, cluster| cluster.all_policies().count() == 2).await;
    source.until_resolved("watch networkpolicies").await;
}

/// The definition of upstream, as the component has it.
const DEFINITION: &str = include_str!("../../../deploy/components/cluster-network-policy/crd.yaml");

fn cluster_policy(version: &str, name: &str) -> String {
    json!({"apiVersion": format!("policy.networking.k8s.io/{version}"),
        "kind": "ClusterNetworkPolicy", "metadata": {"name": name},
        "spec": {"tier": "Admin", "priority": 5, "subject": {"namespaces": {}},
            "egress": [{"action": "Deny", "to": [{"networks": ["192.0.2.0/24"]}]}]}})
    .to_string()
}

fn cluster_policies(cluster: &Cluster) -> Vec<&str> {
    cluster.cluster_policies.keys().map(|name| &**name).collect()
}

/// The definition's name.
const DEFINED: &str = "clusternetworkpolicies.policy.networking.k8s.io";

/// Has v1alpha2 and v1beta1 of the definition served or not.
fn serve(server: &ApiServer, versions: [bool; 2]) {
    let patch: Vec<Value> = ["v1alpha2", "v1beta1"]
        .into_iter()
        .zip(versions)
        .map(|(version, served)| {
            let (at, _) = defined(version);
            json!({"op": "replace", "path": format!("/spec/versions/{at}/served"),
                "value": served})
        })
        .collect();
    patch_definition(server, &patch);
}

/// A version of the definition, and its place.
fn defined(version: &str) -> (usize, Value) {
    let text = serde_saphyr::from_str::<Value>(DEFINITION).unwrap();
    let all = text["spec"]["versions"].as_array().unwrap();
    let at = all.iter().position(|one| one["name"] == version).unwrap();
    (at, all[at].clone())
}

fn patch_definition(server: &ApiServer, patch: &[Value]) {
    let patch = Value::from(patch).to_string();
    server.kubectl(&["patch", "crd", DEFINED, "--type=json", "-p", &patch]).unwrap();
}

/// What was just installed or changed is served a little later.
fn put_cluster_policy(server: &ApiServer, version: &str, name: &str) {
    let end = Instant::now() + source_world::PATIENCE;
    while let Err(error) = server.apply(&cluster_policy(version, name)) {
        assert!(Instant::now() < end, "{error:#}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Only versions that are served can be read, and the definition may come and go.
#[test]
fn cluster_network_policies_are_read_from_when_there_are_any() {
    beside(async |server| {
        server.apply(&deployed()).unwrap();
        // Without the definition: complete, and no word of it.
        let mut source = Source::synced(&server).await;
        source.settle().await;
        assert!(source.problems().is_empty(), "{:?}", source.problems());
        let watches = source.handle.watches().read();
        assert!(watches.iter().any(|w| w.resource == "clusternetworkpolicies" && w.is_synced));

        server.apply(DEFINITION).unwrap();
        put_cluster_policy(&server, "v1beta1", "one");
        source.until(|_, cluster| cluster_policies(cluster) == ["one"]).await;
        put_cluster_policy(&server, "v1alpha2", "two");
        source.settle().await;
        assert_eq!(cluster_policies(&source.cluster), ["one", "two"]);
        let priority = source.cluster.cluster_policies["one"].priority;
        assert_eq!(priority, 5);

        // Only the older version, then only the newer one: nothing is gone in between.
        for (versions, version, name) in
            [([true, false], "v1alpha2", "three"), ([false, true], "v1beta1", "four")]
        {
            serve(&server, versions);
            put_cluster_policy(&server, version, name);
            source.until(|_, cluster| cluster_policies(cluster).contains(&name)).await;
            source.settle().await;
            assert!(source.cluster.cluster_policies.len() > 2, "{version}");
        }
        let is_gone = |event: &Event| match event {
            Event::Changes(changes) => {
                changes.iter().any(|change| matches!(change, Change::ClusterPolicyGone(_)))
            }
            _ => false,
        };
        assert!(!source.log.iter().any(is_gone), "{:?}", source.log);

        // A new agent finds them at once, before it calls anything complete.
        let again = Source::synced(&server).await;
        assert_eq!(cluster_policies(&again.cluster), ["four", "one", "three", "two"]);

        server.kubectl(&["delete", "cnp", "one"]).unwrap();
        source.until(|_, cluster| cluster.cluster_policies.len() == 3).await;
        server.kubectl(&["delete", "crd", DEFINED]).unwrap();
        source.until(|_, cluster| cluster.cluster_policies.is_empty()).await;
        server.apply(DEFINITION).unwrap();
        put_cluster_policy(&server, "v1beta1", "again");
        source.until(|_, cluster| cluster_policies(cluster) == ["again"]).await;
        source.settle().await;
        assert!(source.problems().is_empty(), "{:?}", source.problems());
    });
}

/// What may not be read, or not in a version that is understood, is said. It holds nothing up, and
/// takes nothing away.
#[test]
fn cluster_network_policies_that_cannot_be_read_are_told_of() {
    let watch = "watch clusternetworkpolicies";
    beside(async |server| {
        server.apply(&deployed()).unwrap();
        server.apply(DEFINITION).unwrap();
        put_cluster_policy(&server, "v1beta1", "one");
        may(&server, "clusternetworkpolicies", false);
        let mut source = Source::start(&server).await;
        let message = source.until_problem(watch).await;
        for part in [
            "the agent's ClusterRole needs {apiGroups: [\"policy.networking.k8s.io\"], resources: \
             [clusternetworkpolicies], verbs: [list, watch]}",
            "no ClusterNetworkPolicy is enforced",
        ] {
            assert!(message.contains(part), "{message}");
        }
        source.until(|event, _| *event == Event::Synced).await;
        assert!(cluster_policies(&source.cluster).is_empty());
        may(&server, "clusternetworkpolicies", true);
        source.until(|_, cluster| cluster_policies(cluster) == ["one"]).await;
        source.until_resolved(watch).await;

        // A later version alone.
        let (_, mut later) = defined("v1beta1");
        (later["name"], later["storage"]) = (json!("v1"), json!(false));
        patch_definition(
            &server,
            &[json!({"op": "add", "path": "/spec/versions/-", "value": later})],
        );
        serve(&server, [false, false]);
        let message = source.until_problem_with(watch, "only in v1, ").await;
        assert!(message.contains("those known before stay"), "{message}");
        source.settle().await;
        assert_eq!(cluster_policies(&source.cluster), ["one"]);
        let mut another = Source::synced(&server).await;
        assert!(cluster_policies(&another.cluster).is_empty());
        assert_eq!(another.problems(), [(watch.to_owned(), message)]);
        serve(&server, [true, false]);
        another.until(|_, cluster| cluster_policies(cluster) == ["one"]).await;
        for mut source in [source, another] {
            source.until_resolved(watch).await;
            source.settle().await;
            assert!(source.problems().is_empty(), "{:?}", source.problems());
            assert_eq!(cluster_policies(&source.cluster), ["one"]);
        }
    });
}

/// Whatever happens to the connection or the API server: nothing is taken back meanwhile, and
/// afterwards everything is as it is there.
#[test]
fn what_changes_while_the_api_server_is_away_is_read_afterwards() {
    beside(async |mut server| {
        server.apply(&deployed()).unwrap();
        policy(&server, "stays");
        policy(&server, "goes");
        let mut source = Source::synced(&server).await;

        // Cut off, while the API server goes on: the watch goes on where it was.
        source.gate.set(Mode::Cut);
        server.kubectl(&["delete", "networkpolicy", "goes"]).unwrap();
        policy(&server, "one");
        source.until_problem_with("watch networkpolicies", "cannot reach the API server").await;
        assert!(source.has_policy("default", "goes"), "nothing is taken back meanwhile");
        source.gate.set(Mode::Open);
        let lists = lists(&server);
        source.until(|_, cluster| policies(cluster) == ["one", "stays"]).await;
        source.settle().await;
        assert_eq!(lists, self::lists(&server), "no list was needed");

        // Cut off, and the API server restarted: it does not know any more what happened before.
        source.gate.set(Mode::Cut);
        server.kubectl(&["delete", "networkpolicy", "one"]).unwrap();
        policy(&server, "two");
        server.kill_apiserver().unwrap();
        server.start_apiserver().unwrap();
        policy(&server, "three");
        assert!(source.has_policy("default", "one"));
        source.gate.set(Mode::Open);
        let begun = Instant::now();
        source.until(|_, cluster| policies(cluster) == ["stays", "three", "two"]).await;
        eprintln!("read {:?} after the API server was back", begun.elapsed());
        assert!(self::lists(&server) > lists, "it had to list anew");

        for event in &source.log {
            let Event::Changes(changes) = event else { continue };
            let gone = Change::PolicyGone(ObjectName::new("default", "stays"));
            assert!(!changes.contains(&gone), "taken back at some point");
        }
        let syncs = source.log.iter().filter(|event| **event == Event::Synced).count();
        assert_eq!(syncs, 1);
        vanished(&source.gate);
        hung(&server).await;
    });
}

/// An API server that accepts connections and answers nothing: noticed by its silence. (The agent
/// allows 100 s of it, since a bookmark comes every minute; this test 5 s.)
async fn hung(server: &ApiServer) {
    let gate = Gate::new(ADDRESS).await;
    let config = config(&server.kubeconfig(AGENT, &gate.address())).await;
    let client = connect_with(config, Duration::from_secs(5)).unwrap();
    let mut source = Source::start_as(gate, client);
    source.until(|event, _| *event == Event::Synced).await;
    let begun = Instant::now();
    server.pause().unwrap();
    source.until_problem_with("watch networkpolicies", "cannot reach the API server").await;
    eprintln!("a hung API server was noticed after {:?}", begun.elapsed());
    assert_eq!(source.cluster.all_policies().count(), 3, "nothing is taken back");
    server.resume().unwrap();
    policy(server, "four");
    source.until(|_, cluster| policies(cluster).len() == 4).await;
    source.until_resolved("watch networkpolicies").await;
}

/// A host that vanishes without a word is noticed by the kernel, which asks it.
fn vanished(gate: &Gate) {
    let address = gate.address();
    let port = address.rsplit(':').next().unwrap();
    let connections = || {
        let mut ss = Command::new("ss");
        ss.args(["-tnoH", "state", "established", "dport", "=", &format!(":{port}")]);
        String::from_utf8(ss.output().unwrap().stdout).unwrap()
    };
    let end = Instant::now() + source_world::PATIENCE;
    let is_asked = |line: &&str| line.contains("timer:(keepalive,");
    while connections().lines().filter(is_asked).count() < 6 {
        assert!(Instant::now() < end, "not one connection to a watch: {}", connections());
    }
}

/// Tokens of service accounts last an hour; the kubelet writes a new one to the same file.
#[test]
fn a_token_that_is_not_valid_any_more_is_told_and_the_next_one_taken() {
    beside(async |server| {
        server.apply(&deployed()).unwrap();
        policy(&server, "old");
        let token = |secret: &str| {
            server.kubectl(&["-n", "netpol", "create", "secret", "generic", secret]).unwrap();
            let bound = ["--bound-object-kind=Secret", "--bound-object-name", secret];
            let create = ["-n", "netpol", "create", "token", "netpol", "--duration=10m"];
            server.kubectl(&[&create[..], &bound].concat()).unwrap().trim().to_owned()
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), token("first")).unwrap();
        let gate = Gate::new(ADDRESS).await;
        let credentials = format!("tokenFile: {}", file.path().display());
        let kubeconfig = server.kubeconfig_with(&credentials, &gate.address());
        let mut source = Source::start_behind(gate, &kubeconfig).await;
        source.until(|event, _| *event == Event::Synced).await;

        server.kubectl(&["-n", "netpol", "delete", "secret", "first"]).unwrap();
        // Tokens that were good are remembered for some seconds.
        let end = Instant::now() + source_world::PATIENCE;
        while !source.problems().iter().any(|(_, message)| message.starts_with("unauthorized: ")) {
            assert!(Instant::now() < end, "{:?}", source.problems());
            source.gate.cut();
            source.listen(Duration::from_secs(2)).await;
        }
        assert!(source.has_policy("default", "old"));
        policy(&server, "new");
        std::fs::write(file.path(), token("second")).unwrap();
        let begun = Instant::now();
        source.until(|_, cluster| cluster.all_policies().count() == 2).await;
        eprintln!("a new token was used after {:?}", begun.elapsed());
    });
}

fn policies(cluster: &Cluster) -> Vec<&str> {
    cluster.all_policies().map(|policy| &*policy.id.name).collect()
}

/// How many whole lists (pages of 500) of policies the agent asked for so far.
fn lists(server: &ApiServer) -> usize {
    let is_list = |request: &&Value| {
        request["verb"] == "list"
            && request["objectRef"]["resource"] == "networkpolicies"
            && request["requestURI"].as_str().unwrap().contains("limit=500")
    };
    requests(server).iter().filter(is_list).count()
}

/// 2,000 pods in 200 namespaces: what is asked for, by whom, and how long it takes.
#[test]
fn a_big_cluster_is_read_in_pages_and_nothing_else_is() {
    beside(async |server| {
        server.apply(&deployed()).unwrap();
        let admin = client(&server.kubeconfig(ADMIN, ADDRESS)).await;
        let names: Vec<String> = (0..200).map(|number| format!("team-{number}")).collect();
        let namespaces: String = names
            .iter()
            .map(|name| {
                format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n---\n")
            })
            .collect();
        server.apply(&namespaces).unwrap();
        let pods =
            (0..2000).map(|number| (names[number % 200].clone(), pod(&format!("p{number}"))));
        create_all::<Pod>(&admin, pods.collect()).await;

        let begun = Instant::now();
        let mut source = Source::synced(&server).await;
        eprintln!("synced in {:?}, {} events", begun.elapsed(), source.log.len());
        assert_eq!(source.cluster.all_pods().count(), 2000);
        // Whether there are ClusterNetworkPolicies it asks what everybody may ask.
        let is_discovery =
            |request: &Value| request["requestURI"] == "/apis/policy.networking.k8s.io";
        let (discovery, asked): (Vec<Value>, Vec<Value>) =
            requests(&server).into_iter().partition(is_discovery);
        assert!(!discovery.is_empty());
        let asked: Vec<String> = asked.iter().map(told).collect();
        eprintln!("{}", asked.join("\n"));
        let pages = asked.iter().filter(|told| told.starts_with("list pods")).count();
        assert_eq!(pages, 4, "{asked:#?}");
        let kinds =
            ["namespaces", "pods", "networkpolicies", "services", "endpointslices", "nodes"];
        for told in &asked {
            let (verb, rest) = told.split_once(' ').unwrap();
            let resource = rest.split(' ').next().unwrap();
            assert!(matches!(verb, "list" | "watch") && kinds.contains(&resource), "{told}");
            assert!(told.ends_with(&format!("netpol/{}", env!("CARGO_PKG_VERSION"))), "{told}");
        }
        let watches = |asked: &[String]| asked.iter().filter(|t| t.starts_with("watch")).count();
        assert!(watches(&asked) <= 6, "one watch to a kind: {asked:#?}");
        source.settle().await;

        // An answer that ends in the middle of a page: the list begins anew, and nothing of the
        // half is taken for the whole.
        let gate = Gate::new(ADDRESS).await;
        gate.pass_only(600_000);
        let kubeconfig = server.kubeconfig(AGENT, &gate.address());
        let mut half = Source::start_behind(gate, &kubeconfig).await;
        half.until_problem("watch pods").await;
        assert!(!half.log.contains(&Event::Synced));
        half.gate.pass_only(u64::MAX);
        half.until(|event, _| *event == Event::Synced).await;
        assert_eq!(half.cluster.all_pods().count(), 2000);
        half.until_resolved("watch pods").await;
    });
}

fn told(request: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!(
        "{} {} {} {} {}",
        text(&request["verb"]),
        text(&request["objectRef"]["resource"]),
        text(&request["requestURI"]),
        request["responseStatus"]["code"],
        text(&request["userAgent"])
    )
}

/// A backup of etcd brought back, which resource versions go back with: a watch from where the
/// agent was would stay silent until they have caught up.
#[test]
fn a_restored_backup_is_read_anew() {
    beside(async |mut server| {
        server.apply(&deployed()).unwrap();
        policy(&server, "old");
        server.back_up("backup").unwrap();
        for number in 0..50 {
            policy(&server, &format!("lost-{number}"));
        }
        let mut source = Source::synced(&server).await;
        assert!(source.has_policy("default", "lost-49"));
        server.restore("backup").unwrap();
        policy(&server, "new");
        source
            .until(|_, cluster| {
                let names: Vec<&str> =
                    cluster.all_policies().map(|policy| &*policy.id.name).collect();
                names == ["new", "old"]
            })
            .await;
    });
}
