//! The finer points of NetworkPolicy, each with a small cluster. What is expected is written down
//! here, and both the compiler and the reference evaluator must say it.

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use netpol_compile::{Compiler, EndpointId};
use netpol_model::Direction;
use netpol_reference::Reference;
use netpol_testkit::objects::{judge, name, namespace, pod, policy, protocol_port};
use netpol_testkit::objects::{put_namespace, put_pod, put_policy};

/// A cluster; the first pod is the endpoint that is asked about.
#[derive(Default)]
struct Scene {
    namespaces: Vec<Namespace>,
    pods: Vec<Pod>,
    policies: Vec<NetworkPolicy>,
}

impl Scene {
    /// Policies on the first of some pods, `x/a`.
    fn new(pods: &[Pod], specs: &[&str]) -> Self {
        let policies =
            specs.iter().enumerate().map(|(n, spec)| policy(&format!("x/p{n}"), spec)).collect();
        Self { namespaces: Vec::new(), pods: pods.to_vec(), policies }
    }

    /// Checks `remote port yes|no` lines.
    #[track_caller]
    fn expect(&self, direction: Direction, answers: &str) {
        let mut compiler = Compiler::new();
        compiler.apply_all(
            (self.namespaces.iter().map(put_namespace))
                .chain(self.pods.iter().map(put_pod))
                .chain(self.policies.iter().map(put_policy)),
        );
        compiler.set_endpoint(EndpointId(1), name("x/a"));
        let reference =
            Reference::new(self.namespaces.clone(), self.pods.clone(), self.policies.clone());
        let mut n_lines = 0;
        for line in answers.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let [remote, port, answer] =
                line.split_whitespace().collect::<Vec<_>>().try_into().expect("three words");
            let (protocol, number) = protocol_port(port);
            let address = remote.parse().expect("an address");
            let said = [
                judge(&compiler, 1, direction, remote, port),
                reference.allows(direction, &self.pods[0], address, protocol, number),
            ];
            assert_eq!(said, [answer == "yes"; 2], "[compiler, reference] on {line}");
            n_lines += 1;
        }
        assert!(n_lines > 0);
    }
}

fn subject() -> Pod {
    pod("x/a", "app=a", "10.0.0.1,fd00::1", "web=TCP:8080")
}

#[test]
fn one_port_name_means_another_number_on_each_destination() {
    let pods = [
        subject(),
        pod("x/b", "", "10.0.0.2", "web=TCP:80"),
        pod("x/c", "", "10.0.0.3", "web=TCP:81,web=TCP:82"),
        pod("x/d", "", "10.0.0.4", "web=UDP:80"),
        pod("x/e", "", "10.0.0.5", ""),
    ];
    let answers = "
        10.0.0.2 tcp:80 yes
        10.0.0.2 tcp:81 no
        10.0.0.2 tcp:8080 no
        10.0.0.3 tcp:80 no
        10.0.0.3 tcp:81 yes
        10.0.0.3 tcp:82 yes
        10.0.0.4 tcp:80 no
        10.0.0.4 udp:80 no
        10.0.0.5 tcp:80 no
        10.0.9.9 tcp:80 no
    ";
    for to in [
        "",
        r#""to": [{"podSelector": {}}],"#,
        r#""to": [{"ipBlock": {"cidr": "10.0.0.0/16"}}],"#,
        r#""to": [{"namespaceSelector": {}}],"#,
    ] {
        let spec = format!(r#"{{"egress": [{{{to} "ports": [{{"port": "web"}}]}}]}}"#);
        Scene::new(&pods, &[&spec]).expect(Direction::Egress, answers);
    }
}

#[test]
fn a_named_port_to_a_block_skips_what_is_excepted() {
    let pods = [
        subject(),
        pod("x/b", "", "10.0.0.2", "web=TCP:80"),
        pod("x/c", "", "10.0.0.3", "web=TCP:80"),
    ];
    let spec = r#"{"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/24",
        "except": ["10.0.0.3/32"]}}], "ports": [{"port": "web"}]}]}"#;
    Scene::new(&pods, &[spec]).expect(
        Direction::Egress,
        "10.0.0.2 tcp:80 yes
         10.0.0.3 tcp:80 no",
    );
}

#[test]
fn an_ingress_name_is_the_pods_own_whoever_asks() {
    let pods = [subject(), pod("x/b", "", "10.0.0.2", "web=TCP:80")];
    let spec = r#"{"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/24"}}],
        "ports": [{"port": "web"}]}]}"#;
    Scene::new(&pods, &[spec]).expect(
        Direction::Ingress,
        "10.0.0.2 tcp:8080 yes
         10.0.0.2 tcp:80 no
         10.0.0.9 tcp:8080 yes",
    );
}

#[test]
fn an_ingress_name_that_the_pod_does_not_declare_isolates_all_the_same() {
    let spec = r#"{"ingress": [{"ports": [{"port": "nothing"}]}]}"#;
    Scene::new(&[subject()], &[spec]).expect(Direction::Ingress, "10.0.0.2 tcp:8080 no");
}

#[test]
fn a_block_holds_pods_and_excepts_take_only_from_their_own() {
    let pods =
        [subject(), pod("x/b", "app=b", "10.0.0.2", ""), pod("x/c", "app=c", "10.0.0.3", "")];
    let spec = r#"{"ingress": [
        {"from": [{"ipBlock": {"cidr": "10.0.0.0/24", "except": ["10.0.0.2/31"]}}],
         "ports": [{"port": 80}]},
        {"from": [{"podSelector": {"matchLabels": {"app": "b"}}}], "ports": [{"port": 81}]},
        {"from": [{"ipBlock": {"cidr": "10.0.0.3/32"}}], "ports": [{"port": 82}]}]}"#;
    Scene::new(&pods, &[spec]).expect(
        Direction::Ingress,
        "10.0.0.4 tcp:80 yes
         10.0.0.4 tcp:81 no
         10.0.0.2 tcp:80 no
         10.0.0.2 tcp:81 yes
         10.0.0.3 tcp:80 no
         10.0.0.3 tcp:82 yes
         10.0.1.0 tcp:80 no",
    );
}

#[test]
fn an_except_inside_an_except_stays_excepted() {
    let spec = r#"{"egress": [{"to": [
        {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "10.1.1.0/24"]}},
        {"ipBlock": {"cidr": "10.1.1.128/25", "except": ["10.1.1.255/32"]}}]}]}"#;
    Scene::new(&[subject()], &[spec]).expect(
        Direction::Egress,
        "10.2.0.0 icmp:0 yes
         10.1.0.0 icmp:0 no
         10.1.1.1 icmp:0 no
         10.1.1.128 icmp:0 yes
         10.1.1.255 icmp:0 no
         11.0.0.0 icmp:0 no
         fd00::2 icmp:0 no",
    );
}

#[test]
fn the_whole_internet_is_one_family() {
    let spec = r#"{"egress": [{"to": [{"ipBlock": {"cidr": "::/0"}}]}]}"#;
    Scene::new(&[subject()], &[spec]).expect(
        Direction::Egress,
        "fd00::2 tcp:1 yes
         2001:db8::1 icmp:0 yes
         10.0.0.2 tcp:1 no",
    );
}

#[test]
fn ports_without_anything_are_all_of_tcp() {
    let spec = r#"{"ingress": [{"ports": [{}]}]}"#;
    Scene::new(&[subject()], &[spec]).expect(
        Direction::Ingress,
        "10.0.0.2 tcp:0 yes
         10.0.0.2 tcp:65535 yes
         10.0.0.2 udp:80 no
         10.0.0.2 sctp:80 no
         10.0.0.2 icmp:0 no",
    );
}

#[test]
fn a_policy_about_sctp_isolates_from_all_else() {
    let spec = r#"{"ingress": [{"ports": [{"protocol": "SCTP", "port": 80}]}]}"#;
    Scene::new(&[subject()], &[spec]).expect(
        Direction::Ingress,
        "10.0.0.2 sctp:80 yes
         10.0.0.2 tcp:80 no",
    );
}

#[test]
fn overlapping_ranges_of_several_policies_add_up() {
    let one = r#"{"ingress": [{"ports": [{"port": 80, "endPort": 90}]}]}"#;
    let two = r#"{"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/24"}}],
        "ports": [{"port": 85, "endPort": 65535}, {"port": 79}]}]}"#;
    Scene::new(&[subject()], &[one, two]).expect(
        Direction::Ingress,
        "10.0.0.2 tcp:78 no
         10.0.0.2 tcp:79 yes
         10.0.0.2 tcp:91 yes
         10.0.0.2 tcp:65535 yes
         10.0.1.0 tcp:90 yes
         10.0.1.0 tcp:79 no
         10.0.1.0 tcp:91 no",
    );
}

#[test]
fn a_rule_for_everybody_reaches_through_every_block_and_selector() {
    let spec = r#"{"ingress": [{"ports": [{"port": 80}]},
        {"from": [{"podSelector": {}}], "ports": [{"port": 81}]},
        {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/24"]}}]}]}"#;
    Scene::new(&[subject(), pod("x/b", "", "10.0.0.2", "")], &[spec]).expect(
        Direction::Ingress,
        "10.0.0.2 tcp:80 yes
         10.0.0.2 tcp:81 yes
         10.0.0.2 tcp:82 no
         10.0.0.9 tcp:80 yes
         10.0.0.9 tcp:81 no
         10.0.1.0 tcp:82 yes
         192.0.2.1 tcp:80 yes
         192.0.2.1 tcp:81 no",
    );
}

#[test]
fn a_namespace_without_an_object_has_its_name_as_label() {
    let pods = [subject(), pod("y/b", "", "10.0.0.2", ""), pod("z/b", "", "10.0.0.3", "")];
    let spec = r#"{"ingress": [{"from": [{"namespaceSelector": {"matchExpressions":
        [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["z"]},
         {"key": "team", "operator": "DoesNotExist"}]}}]}]}"#;
    let mut scene = Scene::new(&pods, &[spec]);
    scene.expect(Direction::Ingress, "10.0.0.2 tcp:1 yes\n 10.0.0.3 tcp:1 no");
    scene.namespaces.push(namespace("y", "team=red"));
    scene.expect(Direction::Ingress, "10.0.0.2 tcp:1 no\n 10.0.0.3 tcp:1 no");
}

#[test]
fn host_network_and_finished_pods_are_plain_addresses() {
    let mut host = pod("x/h", "app=b", "10.0.0.2", "web=TCP:80");
    host.spec.as_mut().expect("a spec").host_network = Some(true);
    let mut done = pod("x/d", "app=b", "10.0.0.3", "web=TCP:80");
    done.status.as_mut().expect("a status").phase = Some("Succeeded".to_owned());
    let spec = r#"{"egress": [
        {"to": [{"podSelector": {}}]},
        {"ports": [{"port": "web"}]},
        {"to": [{"ipBlock": {"cidr": "10.0.0.0/24"}}], "ports": [{"port": 81}]}]}"#;
    Scene::new(&[subject(), host, done, pod("x/b", "", "10.0.0.4", "")], &[spec]).expect(
        Direction::Egress,
        "10.0.0.2 tcp:80 no
         10.0.0.3 tcp:80 no
         10.0.0.2 tcp:81 yes
         10.0.0.3 tcp:81 yes
         10.0.0.4 tcp:80 yes",
    );
}

#[test]
fn egress_rules_say_nothing_about_ingress() {
    let spec = r#"{"policyTypes": ["Egress"], "ingress": [{}]}"#;
    let scene = Scene::new(&[subject()], &[spec]);
    scene.expect(Direction::Ingress, "10.0.0.2 tcp:1 yes");
    scene.expect(Direction::Egress, "10.0.0.2 tcp:1 no");
}
