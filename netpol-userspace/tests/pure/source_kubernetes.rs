//! The Kubernetes source against a server of this test's own that lists and watches as an API
//! server does, and fails as one does.

use netpol_testkit::api_server;
use std::time::Duration;

use netpol_model::{Change, Cluster, ObjectName};
use netpol_source::kubernetes::spawn_with_limit;
use netpol_source::{Event, Handle, spawn_kubernetes};
use netpol_testkit::api_server::Server;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// A source on a server, and the state that its events add up to.
struct World {
    server: Server,
    handle: Handle,
    rx: mpsc::Receiver<Event>,
    cluster: Cluster,
    log: Vec<Event>,
}

impl World {
    fn start(server: Server) -> Self {
        let (tx, rx) = mpsc::channel(64);
        let handle = spawn_kubernetes(server.client(), "n1", tx);
        Self { server, handle, rx, cluster: Cluster::default(), log: Vec::new() }
    }

    async fn synced(server: Server) -> Self {
        let mut world = Self::start(server);
        world.until(|event, _| *event == Event::Synced).await;
        world
    }

    async fn until(&mut self, mut done: impl FnMut(&Event, &Cluster) -> bool) {
        loop {
            let next = tokio::time::timeout(Duration::from_secs(60), self.rx.recv()).await;
            let Ok(event) = next else { panic!("nothing more happens after {:?}", self.log) };
            let event = event.expect("the source lives");
            if let Event::Changes(changes) = &event {
                for change in changes {
                    self.cluster.apply(change.clone());
                }
            }
            self.log.push(event.clone());
            if done(&event, &self.cluster) {
                return;
            }
        }
    }

    async fn until_problem(&mut self, object: &str) -> String {
        let mut found = String::new();
        self.until(|event, _| match event {
            Event::Problem { object: of, message } if of == object => {
                found.clone_from(message);
                true
            }
            _ => false,
        })
        .await;
        found
    }

    async fn until_resolved(&mut self, object: &str) {
        self.until(|event, _| matches!(event, Event::Resolved { object: of } if of == object))
            .await;
    }

    async fn until_barrier(&mut self, number: u64) {
        self.until(|event, _| matches!(event, Event::Barrier(n) if *n >= number)).await;
    }

    fn has_pod(&self, name: &str) -> bool {
        self.cluster.pod(&ObjectName::new("shop", name)).is_some()
    }

    fn has_policy(&self, name: &str) -> bool {
        self.cluster.policy(&ObjectName::new("shop", name)).is_some()
    }
}

fn pod(name: &str, node: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"),
            "labels": {"app": "web"}, "managedFields": [{"fieldsV1": {"f:x": {}}}]},
        "spec": {"nodeName": node, "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]}})
}

fn policy(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}")},
        "spec": spec})
}

fn namespace(name: &str) -> Value {
    json!({"metadata": {"name": name, "uid": name, "labels": {"team": "a"}}})
}

const POLICIES: &str = "networkpolicies";

#[tokio::test(flavor = "multi_thread")]
async fn the_first_list_comes_in_pages_and_then_synced() {
    let server = Server::start().await;
    for number in 0..1200 {
        server.put("pods", pod(&format!("p{number}"), "n1"));
    }
    server.put("namespaces", namespace("shop"));
    server.put(POLICIES, policy("web", json!({"podSelector": {}})));
    let world = World::synced(server).await;
    assert_eq!(world.cluster.all_pods().count(), 1200);
    assert_eq!(world.cluster.namespaces["shop"].labels.len(), 2);
    assert!(world.has_policy("web"));
    let lists = world.server.seen("pods");
    assert_eq!(lists.iter().filter(|seen| !seen.watch && seen.continued).count(), 2);
    assert!(world.log.len() < 100, "changes are sent in batches: {}", world.log.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_page_begins_the_list_anew() {
    let server = Server::start().await;
    for number in 0..600 {
        server.put("pods", pod(&format!("p{number}"), "n1"));
    }
    server.expire_page();
    let world = World::synced(server).await;
    assert_eq!(world.cluster.all_pods().count(), 600);
    assert!(!world.log.iter().any(|event| matches!(event, Event::Problem { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn live_events_are_followed() {
    let mut world = World::synced(Server::start().await).await;
    world.server.put("namespaces", namespace("shop"));
    world.server.put("pods", pod("a", "n1"));
    world.until(|_, cluster| cluster.all_pods().count() == 1).await;
    let mut moved = pod("a", "n1");
    moved["status"]["podIPs"][0]["ip"] = "10.0.0.2".into();
    world.server.put("pods", moved);
    let new = "10.0.0.2".parse::<std::net::IpAddr>().unwrap();
    world.until(|_, c| c.all_pods().any(|pod| pod.addresses.contains(&new))).await;
    world.server.put(POLICIES, policy("web", json!({"podSelector": {}})));
    world.until(|_, cluster| cluster.all_policies().count() == 1).await;
    world.server.delete(POLICIES, "shop/web");
    world.until(|_, cluster| cluster.all_policies().count() == 0).await;
    world.server.delete("pods", "shop/a");
    world.until(|_, cluster| cluster.all_pods().count() == 0).await;
    world.server.delete("namespaces", "/shop");
    world.until(|_, cluster| cluster.namespaces.is_empty()).await;
    let id = ObjectName::new("shop", "a");
    let gone = Change::PodGone(id, Some("uid-a".into()));
    assert!(world.log.iter().any(|e| matches!(e, Event::Changes(c) if c.contains(&gone))));
    assert_eq!(world.log.iter().filter(|event| **event == Event::Synced).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_watch_goes_on_from_its_bookmark() {
    let mut world = World::synced(Server::start().await).await;
    world.server.until("pods", |seen| seen.iter().any(|s| s.watch)).await;
    let version = world.server.bookmark("pods");
    // Something after the bookmark makes sure that it was read before the watch is closed.
    world.server.put("pods", pod("a", "n1"));
    world.until(|_, cluster| cluster.all_pods().count() == 1).await;
    let bookmark = world.server.bookmark("pods");
    assert_ne!(version, bookmark);
    let before = world.server.seen("pods").len();
    world.server.disconnect();
    world.server.until("pods", |seen| seen[before..].iter().any(|s| s.watch)).await;
    let again = world.server.seen("pods").split_off(before);
    // It asks whether the server has gone back, and for nothing else.
    assert!(again.iter().all(|s| s.watch || s.one), "no new list: {again:?}");
    let again = again.into_iter().rfind(|s| s.watch).unwrap();
    assert!(again.version.parse::<u64>().unwrap() > version.parse().unwrap(), "{again:?}");
    world.server.put("pods", pod("b", "n1"));
    world.until(|_, cluster| cluster.all_pods().count() == 2).await;
    assert!(!world.log.iter().any(|event| matches!(event, Event::Problem { .. })));
}

async fn what_vanishes_meanwhile_is_gone(as_status: bool) {
    let server = Server::start().await;
    server.put("namespaces", namespace("shop"));
    server.put("namespaces", namespace("old"));
    for name in ["a", "b"] {
        server.put("pods", pod(name, "n1"));
        server.put(POLICIES, policy(name, json!({"podSelector": {}})));
    }
    let mut world = World::synced(server).await;
    for resource in ["namespaces", "pods", POLICIES] {
        world.server.until(resource, |seen| seen.iter().any(|seen| seen.watch)).await;
        world.server.hold(resource);
    }
    world.server.delete("pods", "shop/b");
    world.server.delete(POLICIES, "shop/b");
    world.server.delete("namespaces", "/old");
    world.server.put("pods", pod("c", "n1"));
    world.server.compact(as_status);
    world.server.disconnect();
    world.server.release();
    world
        .until(|_, c| {
            let pods: Vec<&str> = c.all_pods().map(|pod| &*pod.id.name).collect();
            pods == ["a", "c"] && c.all_policies().count() == 1 && c.namespaces.len() == 1
        })
        .await;
    assert!(world.has_policy("a"));
    // What stayed was never taken back.
    for (gone, what) in [
        (Change::PodGone(ObjectName::new("shop", "a"), Some("uid-a".into())), "pod a"),
        (Change::PolicyGone(ObjectName::new("shop", "a")), "policy a"),
        (Change::NamespaceGone("shop".into()), "namespace shop"),
    ] {
        let taken = |e: &Event| matches!(e, Event::Changes(c) if c.contains(&gone));
        assert!(!world.log.iter().any(taken), "{what}");
    }
    world.server.put("pods", pod("d", "n1"));
    world.until(|_, cluster| cluster.all_pods().count() == 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_410_gone_as_an_event_what_vanished_meanwhile_is_gone() {
    what_vanishes_meanwhile_is_gone(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_410_gone_as_an_answer_what_vanished_meanwhile_is_gone() {
    what_vanishes_meanwhile_is_gone(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_object_is_named_and_stops_nothing_else() {
    let server = Server::start().await;
    let mut bad_pod = pod("bad", "n1");
    bad_pod["status"]["podIPs"] = "?".into();
    bad_pod["status"]["podIP"] = 5.into();
    server.put("pods", bad_pod);
    server.put("pods", pod("good", "n1"));
    let mut bad_namespace = namespace("odd");
    bad_namespace["metadata"]["labels"] = json!([1]);
    server.put("namespaces", bad_namespace);
    server.put(POLICIES, policy("bad", json!("?")));
    server.put(POLICIES, policy("good", json!({"podSelector": {}})));
    let mut world = World::synced(server).await;
    assert!(world.has_pod("good") && world.has_policy("good") && !world.has_policy("bad"));
    let pod_kept = world.cluster.pod(&ObjectName::new("shop", "bad")).unwrap();
    assert!(pod_kept.addresses.is_empty(), "the pod is kept without its addresses");
    let problem = |object: &str| {
        let find = |event: &Event| match event {
            Event::Problem { object: of, message } if of == object => Some(message.clone()),
            _ => None,
        };
        world.log.iter().find_map(find).unwrap_or_else(|| panic!("{object}: {:?}", world.log))
    };
    assert!(problem("Pod shop/bad").contains("status.podIPs"));
    assert!(problem("Namespace odd").contains("metadata.labels"));
    assert!(problem("NetworkPolicy shop/bad").ends_with("nothing of it is in force"));

    // The same in a watch event, for a policy that was good before.
    world.server.put(POLICIES, policy("good", json!({"podSelector": 5})));
    let message = world.until_problem("NetworkPolicy shop/good").await;
    assert!(message.ends_with("its last good version stays in force"), "{message}");
    assert!(world.has_policy("good"));
    world.server.put(POLICIES, policy("good", json!({"policyTypes": ["Egress"]})));
    world.until_resolved("NetworkPolicy shop/good").await;
    let good = world.cluster.policy(&ObjectName::new("shop", "good")).unwrap();
    assert!(good.egress.is_some() && good.ingress.is_none());
    world.server.delete(POLICIES, "shop/bad");
    world.until_resolved("NetworkPolicy shop/bad").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_cannot_be_read_is_made_up_for_by_a_new_list() {
    let mut world = World::synced(Server::start().await).await;
    // Something by the watch makes sure that it is known to work.
    world.server.put("pods", pod("z", "n1"));
    world.until(|_, cluster| cluster.all_pods().count() == 1).await;
    world.server.garble("pods");
    world.server.put("pods", pod("a", "n1"));
    let message = world.until_problem("watch pods").await;
    assert!(message.starts_with("an event cannot be read: "), "{message}");
    world.until(|_, cluster| cluster.all_pods().count() == 2).await;
    world.until_resolved("watch pods").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forbidden_list_is_named_and_tried_again() {
    let server = Server::start().await;
    server.put("namespaces", namespace("shop"));
    server.refuse("namespaces", "list", 403);
    let mut world = World::start(server);
    let message = world.until_problem("watch namespaces").await;
    assert!(message.starts_with("forbidden: namespaces is forbidden: User \"x\""), "{message}");
    assert!(!world.log.contains(&Event::Synced));
    world.server.refuse("namespaces", "list", 200);
    world.until_resolved("watch namespaces").await;
    if !world.log.contains(&Event::Synced) {
        world.until(|event, _| *event == Event::Synced).await;
    }
    assert!(world.cluster.namespaces.contains_key("shop"));
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_watches_and_broken_answers_take_nothing_back() {
    let server = Server::start().await;
    server.put("pods", pod("a", "n1"));
    let mut world = World::synced(server).await;
    world.server.until("pods", |seen| seen.iter().any(|seen| seen.watch)).await;
    world.server.refuse("pods", "watch", 403);
    world.server.refuse("pods", "list", 0);
    world.server.disconnect();
    let message = world.until_problem("watch pods").await;
    assert!(message.starts_with("forbidden: "), "{message}");
    // Now it must list anew, and gets half an answer.
    world.server.refuse("pods", "watch", 200);
    world.server.compact(true);
    world.server.disconnect();
    let message = world.until_problem("watch pods").await;
    assert!(message.starts_with("an answer cannot be read"), "{message}");
    assert!(world.has_pod("a"));
    world.server.refuse("pods", "list", 200);
    world.until_resolved("watch pods").await;
    assert!(world.has_pod("a"));
    let changes = world.log.iter().filter(|event| matches!(event, Event::Changes(_)));
    let gone = |change: &Change| matches!(change, Change::PodGone(..));
    assert!(!changes.into_iter().any(|e| matches!(e, Event::Changes(c) if c.iter().any(gone))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_named() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = kube::Config::new(url.parse().unwrap()).try_into().unwrap();
    let (tx, rx) = mpsc::channel(64);
    let handle = spawn_kubernetes(client, "n1", tx);
    let server = Server::start().await;
    let mut world = World { server, handle, rx, cluster: Cluster::default(), log: Vec::new() };
    let message = world.until_problem("watch pods").await;
    assert!(message.starts_with("cannot reach the API server: "), "{message}");
    assert!(message.contains("refused"), "the cause is named: {message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_barrier_covers_everything_written_before_it() {
    let mut world = World::synced(Server::start().await).await;
    for round in 0..30 {
        let name = format!("x{round}");
        world.server.put(POLICIES, policy(&name, json!({})));
        world.server.put("pods", pod(&name, "n1"));
        let number = world.handle.barrier();
        world.until_barrier(number).await;
        assert!(world.has_policy(&name) && world.has_pod(&name), "round {round}");
        world.server.delete(POLICIES, &format!("shop/{name}"));
        let number = world.handle.barrier();
        world.until_barrier(number).await;
        assert!(!world.has_policy(&name), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_barrier_waits_for_a_watch_that_is_behind() {
    let server = Server::start().await;
    server.put(POLICIES, policy("old", json!({})));
    let mut world = World::synced(server).await;
    world.server.hold(POLICIES);
    world.server.put(POLICIES, policy("new", json!({})));
    world.server.delete(POLICIES, "shop/old");
    let number = world.handle.barrier();
    world.server.until(POLICIES, |seen| seen.iter().any(|seen| seen.whole)).await;
    // It has read the API server; only what is released from here on can end it.
    world.server.put("pods", pod("a", "n1"));
    world.until(|_, cluster| cluster.all_pods().count() == 1).await;
    assert!(!world.log.iter().any(|event| matches!(event, Event::Barrier(_))));
    world.server.release();
    world.until_barrier(number).await;
    assert!(world.has_policy("new") && !world.has_policy("old"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_barrier_does_not_wait_for_pods_of_other_nodes() {
    let mut world = World::synced(Server::start().await).await;
    world.server.hold("pods");
    world.server.put("pods", pod("far", "n2"));
    let number = world.handle.barrier();
    world.until_barrier(number).await;
    assert!(!world.has_pod("far"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_barrier_survives_an_object_that_came_and_went_unseen() {
    let mut world = World::synced(Server::start().await).await;
    world.server.until(POLICIES, |seen| seen.iter().any(|seen| seen.watch)).await;
    world.server.hold(POLICIES);
    world.server.put(POLICIES, policy("short", json!({})));
    let number = world.handle.barrier();
    world.server.until(POLICIES, |seen| seen.iter().any(|seen| seen.whole)).await;
    // The read may have found it; no watch will ever show it.
    world.server.delete(POLICIES, "shop/short");
    world.server.compact(false);
    world.server.disconnect();
    world.server.release();
    world.until_barrier(number).await;
    assert!(!world.has_policy("short"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_barrier_that_fails_is_a_problem_and_never_an_answer() {
    let server = Server::start().await;
    server.refuse(POLICIES, "whole", 403);
    let (tx, rx) = mpsc::channel(64);
    let limit = Duration::from_secs(2);
    let handle = spawn_with_limit(server.client(), "n1", tx, limit);
    let mut world = World { server, handle, rx, cluster: Cluster::default(), log: Vec::new() };
    let first = world.handle.barrier();
    let message = world.until_problem("read the API server").await;
    assert!(message.contains("cannot confirm within 2 s"), "{message}");
    assert!(message.contains("forbidden"), "{message}");
    assert!(!world.log.iter().any(|event| matches!(event, Event::Barrier(_))));
    world.server.refuse(POLICIES, "whole", 200);
    let number = world.handle.barrier();
    assert!(number > first);
    world.until_barrier(number).await;
    assert!(world.log.contains(&Event::Resolved { object: "read the API server".into() }));
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_handle_ends_the_source() {
    let World { handle, mut rx, .. } = World::synced(Server::start().await).await;
    drop(handle);
    while rx.recv().await.is_some() {}
}

fn service(name: &str, port: u16) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}")},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": port}]}})
}

fn slice(name: &str, service: &str, addresses: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"),
            "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": [{"addresses": addresses}]})
}

fn node(name: &str, address: &str) -> Value {
    json!({"metadata": {"name": name, "uid": name},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]}})
}

#[tokio::test(flavor = "multi_thread")]
async fn services_slices_and_nodes_are_followed() {
    let server = Server::start().await;
    server.put("services", service("web", 80));
    server.put("endpointslices", slice("web-1", "web", json!(["10.0.0.1"])));
    server.put("nodes", node("n1", "172.16.0.1"));
    let mut world = World::synced(server).await;
    let id = ObjectName::new("shop", "web");
    assert_eq!(world.cluster.service(&id).unwrap().ports[0].port, 80);
    assert_eq!(world.cluster.nodes["n1"].addresses.len(), 1);
    world.server.put("services", service("web", 81));
    world.server.put("nodes", node("n2", "172.16.0.2"));
    world.server.delete("endpointslices", "shop/web-1");
    let number = world.handle.barrier();
    world.until_barrier(number).await;
    assert_eq!(world.cluster.service(&id).unwrap().ports[0].port, 81);
    assert_eq!(world.cluster.nodes.len(), 2);
    assert!(world.cluster.slices.is_empty());
    world.server.delete("services", "shop/web");
    world.server.delete("nodes", "/n2");
    let number = world.handle.barrier();
    world.until_barrier(number).await;
    assert!(world.cluster.services.is_empty());
    assert_eq!(world.cluster.nodes.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn forbidden_services_keep_nobody_from_enforcing_policies() {
    let server = Server::start().await;
    server.put(POLICIES, policy("web", json!({"podSelector": {}})));
    server.put("services", service("web", 80));
    for resource in ["services", "endpointslices", "nodes"] {
        server.refuse(resource, "list", 403);
        server.refuse(resource, "whole", 403);
        server.refuse(resource, "watch", 403);
    }
    let mut world = World::synced(server).await;
    assert!(world.has_policy("web"));
    assert!(world.cluster.services.is_empty());
    for resource in ["services", "endpointslices", "nodes"] {
        let object = format!("watch {resource}");
        let told = world.log.iter().find_map(|event| match event {
            Event::Problem { object: of, message } if *of == object => Some(message),
            _ => None,
        });
        let message = told.expect("told before Synced");
        let role = format!("resources: [{resource}], verbs: [list, watch]}}");
        assert!(message.contains(&role), "{message}");
        assert!(message.contains("policies are enforced without them"), "{message}");
    }
    let number = world.handle.barrier();
    world.until_barrier(number).await;
    for what in ["list", "whole", "watch"] {
        world.server.refuse("services", what, 200);
    }
    world.until_resolved("watch services").await;
    assert_eq!(world.cluster.services.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn forbidden_pods_are_waited_for() {
    let server = Server::start().await;
    server.refuse("pods", "list", 403);
    let mut world = World::start(server);
    let message = world.until_problem("watch pods").await;
    assert!(message.ends_with("nothing new is put in force; retrying"), "{message}");
    // Everything else has been listed, and the refusal was answered more than once.
    let refused = |seen: &[api_server::Seen]| seen.iter().filter(|seen| !seen.watch).count() > 1;
    world.server.until("pods", refused).await;
    assert!(!world.log.contains(&Event::Synced));
    world.server.refuse("pods", "list", 200);
    world.until(|event, _| *event == Event::Synced).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_slice_keeps_its_last_good_version() {
    let server = Server::start().await;
    server.put("endpointslices", slice("web-1", "web", json!(["10.0.0.1"])));
    let mut world = World::synced(server).await;
    world.server.put("endpointslices", slice("web-1", "web", json!("?")));
    let message = world.until_problem("EndpointSlice shop/web-1").await;
    assert!(message.ends_with("its last good version stays in force"), "{message}");
    assert_eq!(world.cluster.slices["shop"]["web-1"].endpoints.len(), 1);
    world.server.put("endpointslices", slice("web-1", "web", json!(["10.0.0.2"])));
    world.until_resolved("EndpointSlice shop/web-1").await;
}
