//! Tests of the plan: nodes, addresses, completed manifests. Must never touch the system.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;

use serde_json::Value;

use super::*;

fn document(value: Value) -> Document {
    let text = format!("# as written\n{value}");
    Document { path: PathBuf::from("f.yaml"), section: "s".to_owned(), value, text }
}

fn pod(name: &str) -> Document {
    document(json!({"kind": "Pod", "metadata": {"name": name}}))
}

fn plan(documents: &[Document]) -> Result<Layout> {
    Planner::new(2, Families::Dual).plan(documents)
}

fn host<'a>(layout: &'a Layout, name: &str) -> &'a Host {
    layout.hosts.iter().find(|host| &*host.id.name == name).unwrap()
}

fn ips(host: &Host) -> Vec<String> {
    host.addresses.iter().map(ToString::to_string).collect()
}

fn manifests(layout: &Layout) -> Vec<Value> {
    layout.manifest.split("\n---\n").map(|text| serde_saphyr::from_str(text).unwrap()).collect()
}

#[test]
fn pods_go_round_the_nodes_and_get_both_families() {
    let layout = plan(&[pod("a"), pod("b"), pod("c")]).unwrap();
    let places: Vec<Place> = layout.hosts.iter().map(|host| host.place).collect();
    assert_eq!(places, [Place::Pod(1), Place::Pod(2), Place::Pod(1)]);
    assert_eq!(ips(&layout.hosts[0]), ["10.244.1.2", "fd00:10:244:1::2"]);
    assert_eq!(ips(&layout.hosts[1]), ["10.244.2.2", "fd00:10:244:2::2"]);
    assert_eq!(ips(&layout.hosts[2]), ["10.244.1.3", "fd00:10:244:1::3"]);
}

#[test]
fn given_nodes_and_addresses_are_kept() {
    let mut given = pod("a");
    given.value["spec"] = json!({"nodeName": "node-2"});
    given.value["status"] = json!({"podIP": "10.244.2.2", "podIPs": [{"ip": "10.244.2.2"}]});
    let mut elsewhere = pod("b");
    elsewhere.value["spec"] = json!({"nodeName": "worker-7"});
    let mut second = pod("c");
    second.value["spec"] = json!({"nodeName": "node-2"});
    let layout = plan(&[given, elsewhere, second]).unwrap();
    assert_eq!(host(&layout, "a").place, Place::Pod(2));
    assert_eq!(ips(host(&layout, "a")), ["10.244.2.2"]);
    assert_eq!(host(&layout, "b").place, Place::Pod(1), "an unknown node is none of ours");
    assert_eq!(ips(host(&layout, "c"))[0], "10.244.2.3", "the given address is taken");
    assert_eq!(manifests(&layout)[1]["spec"]["nodeName"], "node-1");
}

#[test]
fn a_pod_that_stays_keeps_its_place() {
    let mut planner = Planner::new(2, Families::Dual);
    let before = planner.plan(&[pod("a"), pod("b"), pod("c")]).unwrap();
    let after = planner.plan(&[pod("new"), pod("c"), pod("b")]).unwrap();
    assert_eq!(host(&before, "b"), host(&after, "b"));
    assert_eq!(host(&before, "c"), host(&after, "c"));
    assert_eq!(host(&after, "new").place, Place::Pod(2));
    let failed = planner.plan(&[pod("b"), pod("b")]).unwrap_err();
    assert!(failed.to_string().contains("default/b is declared twice"));
    let again = planner.plan(&[pod("new"), pod("c"), pod("b")]).unwrap();
    assert_eq!(again.hosts, after.hosts, "a refused reading changed something");
}

#[test]
fn an_address_is_not_given_out_again_at_once() {
    let mut planner = Planner::new(1, Families::Dual);
    planner.plan(&[pod("a"), pod("b")]).unwrap();
    let layout = planner.plan(&[pod("a"), pod("c")]).unwrap();
    assert_eq!(ips(host(&layout, "c"))[0], "10.244.1.4");
    for round in 0..300 {
        let layout = planner.plan(&[pod("a"), pod(&format!("d{round}"))]).unwrap();
        assert_ne!(layout.hosts[0].addresses, layout.hosts[1].addresses);
    }
}

#[test]
fn completed_pods_say_where_they_run_and_the_rest_is_untouched() {
    let policy = document(json!({"kind": "NetworkPolicy", "spec": {"podSelector": {}}}));
    let service = document(json!({"kind": "Service"}));
    let layout = plan(&[policy.clone(), service, pod("a")]).unwrap();
    assert!(layout.manifest.starts_with(&policy.text));
    let written = &manifests(&layout)[1];
    assert_eq!(written["metadata"]["namespace"], "default");
    assert_eq!(written["status"]["phase"], "Running");
    assert_eq!(written["status"]["podIPs"][1]["ip"], "fd00:10:244:1::2");
    assert_eq!(layout.ignored, BTreeMap::from([("Service".to_owned(), 1)]));
}

#[test]
fn host_network_finished_and_outside_are_special() {
    let mut on_host = pod("h");
    on_host.value["spec"] = json!({"hostNetwork": true});
    let mut finished = pod("f");
    finished.value["status"] = json!({"phase": "Succeeded", "podIP": "10.244.1.2"});
    let mut outside = pod("o");
    outside.value["metadata"]["annotations"] =
        json!({pods::OUTSIDE: "true", pods::ADDRESS: "8.8.8.8"});
    let layout = plan(&[on_host, finished, outside]).unwrap();
    assert_eq!(host(&layout, "h").place, Place::HostNetwork(1));
    assert_eq!(ips(host(&layout, "h")), ["10.250.0.1", "fd00:10:250::1"]);
    assert_eq!(host(&layout, "o").place, Place::Outside);
    assert_eq!(layout.hosts.len(), 2, "a finished pod has no network");
    let names: Vec<Value> =
        manifests(&layout).iter().map(|object| object["metadata"]["name"].clone()).collect();
    assert_eq!(names, ["h", "f"], "a host outside is no pod");
}

#[test]
fn one_family_only() {
    let mut planner = Planner::new(1, Families::Ipv6);
    let layout = planner.plan(&[pod("a")]).unwrap();
    assert_eq!(ips(&layout.hosts[0]), ["fd00:10:244:1::2"]);
    let mut outside = pod("o");
    outside.value["metadata"]["annotations"] =
        json!({pods::OUTSIDE: "true", pods::ADDRESS: "8.8.8.8"});
    let layout = planner.plan(&[outside]).unwrap();
    assert!(layout.hosts.is_empty());
    assert!(layout.ignored.keys().next().unwrap().contains("family"));
}

#[test]
fn addresses_have_one_owner() {
    let with_ip = |name: &str, ip: &str| {
        let mut pod = pod(name);
        pod.value["status"] = json!({"podIP": ip});
        pod
    };
    let error = plan(&[with_ip("a", "10.1.1.1"), with_ip("b", "10.1.1.1")]).unwrap_err();
    assert!(error.to_string().contains("default/a and default/b"), "{error}");
    let mut two = pod("c");
    two.value["status"] = json!({"podIPs": [{"ip": "10.1.1.1"}, {"ip": "10.1.1.2"}]});
    assert!(plan(&[two]).unwrap_err().to_string().contains("more than one"));
}

#[test]
fn a_full_node_says_so() {
    let names: Vec<Document> = (0..254).map(|index| pod(&format!("p{index}"))).collect();
    let mut planner = Planner::new(1, Families::Dual);
    planner.plan(&names[..253]).unwrap();
    assert!(planner.plan(&names).unwrap_err().to_string().contains("node-1"));
}

#[test]
fn pod_subnets_are_told_apart() {
    assert!(in_pod_subnet(3, "10.244.3.200".parse().unwrap()));
    assert!(!in_pod_subnet(3, "10.244.4.1".parse().unwrap()));
    assert!(in_pod_subnet(3, "fd00:10:244:3::9".parse().unwrap()));
    assert!(!in_pod_subnet(3, "fd00:10:244:4::9".parse().unwrap()));
}
