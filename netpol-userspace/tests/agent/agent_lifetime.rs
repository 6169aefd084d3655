//! Enforcement ends with the interface, not with the object: what was enforced stays, as last
//! known, also when the pod's object says something else or is gone. Without the CNI plugin. Needs
//! root and the eBPF object.

use netpol_common::layout::Reason;
use netpol_model::Direction;

use netpol_testkit::world::traffic::{Server, Stream, assert_allowed, assert_denied};
use netpol_testkit::world::{NODE_NAME, World, eventually};

const SERVER: &str = "10.244.0.1:80";
const STRANGER: &str = "10.244.0.3:80";
const FRIENDS: &str = "podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress, Egress], \
                       ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}]";

/// The links of pods that a policy selects; others have guards.
fn enforced(world: &World) -> Vec<String> {
    world.links().into_iter().filter(|link| link.ends_with("-ingress")).collect()
}

struct Shop {
    world: World,
    _servers: [Server; 2],
}

/// An isolated server, its friend and a stranger, and an agent.
fn shop() -> Shop {
    let mut world = World::new();
    world.pod("server", "10.244.0.1", "{app: server}");
    world.pod("friend", "10.244.0.2", "{role: friend}");
    world.pod("stranger", "10.244.0.3", "{role: stranger}");
    world.policy("friends", FRIENDS);
    let servers = ["server", "stranger"].map(|pod| Server::start(&world.of(pod), 80));
    world.start();
    Shop { world, _servers: servers }
}

impl Shop {
    fn assert_enforced(&self) {
        assert_allowed(&self.world.of("friend"), SERVER);
        assert_denied(&self.world.of("stranger"), SERVER);
        assert_denied(&self.world.of("server"), STRANGER);
    }

    /// Everything that may happen afterwards, too.
    fn assert_stays_enforced(mut self, note: &str) {
        self.assert_enforced();
        let status = self.world.settle();
        let notes = status["datapath"]["notes"].to_string();
        assert!(notes.contains("default/server") && notes.contains(note), "{status}");
        assert_eq!(status["datapath"]["errors"].to_string(), "[]", "a note is enough");
        // Policies are those of now, its labels the last that were known.
        let stranger = FRIENDS.replace("friend", "stranger");
        self.world.policy("friends", &stranger);
        self.world.settle();
        assert_allowed(&self.world.of("stranger"), SERVER);
        assert_denied(&self.world.of("friend"), SERVER);
        self.world.policy("friends", FRIENDS);
        self.world.settle();
        self.assert_enforced();
        // With what it wrote down, and with nothing but what is pinned.
        for forget in [false, true] {
            self.world.kill();
            if forget {
                std::fs::remove_dir_all(self.world.run_dir()).unwrap();
            }
            self.world.start_only();
            eventually("the agent is synced", || {
                self.world.log().matches("synced: all policies").count() == 2 + usize::from(forget)
            });
            assert_denied(&self.world.of("stranger"), SERVER);
            assert_denied(&self.world.of("server"), STRANGER);
            assert_eq!(self.world.tcx("v-server").map(|ids| ids.len()), [1, 1]);
            if !forget {
                self.assert_enforced();
            }
        }
        // Until the interface is gone.
        self.world.unwire("server");
        eventually("the endpoint is gone", || enforced(&self.world).is_empty());
        let status = self.world.settle();
        assert!(!status["datapath"]["notes"].to_string().contains("default/server"), "{status}");
    }

    fn declare_server(&self, status: &str) {
        self.world.write(
            "pod-server",
            &format!(
                "apiVersion: v1\nkind: Pod\n\
                 metadata: {{name: server, namespace: default, uid: uid-server, \
                 labels: {{app: server}}}}\n\
                 spec: {{nodeName: {NODE_NAME}, containers: [{{name: c}}]}}\nstatus: {{{status}}}\n"
            ),
        );
    }
}

#[test]
fn a_pod_that_is_deleted_by_force_while_it_runs() {
    let mut shop = shop();
    shop.assert_enforced();
    let stream = Stream::tcp(&shop.world.of("friend"), SERVER);
    shop.world.remove("pod-server");
    shop.world.settle();
    stream.moves();
    stream.finish();
    assert!(shop.world.counted("server", Direction::Ingress, Reason::Policy) > 0);
    shop.assert_stays_enforced("is gone");
}

#[test]
fn a_pod_whose_phase_is_failed_while_it_runs() {
    for phase in ["Failed", "Succeeded"] {
        let mut shop = shop();
        shop.declare_server(&format!(
            "podIP: 10.244.0.1, podIPs: [{{ip: 10.244.0.1}}], phase: {phase}"
        ));
        shop.world.settle();
        shop.assert_stays_enforced("has ended");
    }
}

#[test]
fn a_pod_whose_addresses_are_gone_from_its_status() {
    let mut shop = shop();
    shop.declare_server("phase: Running");
    shop.world.settle();
    shop.assert_enforced();
    shop.world.policy("friends", &FRIENDS.replace("friend", "stranger"));
    shop.world.settle();
    assert_allowed(&shop.world.of("stranger"), SERVER);
    assert_denied(&shop.world.of("friend"), SERVER);
    shop.world.policy("friends", FRIENDS);
    shop.world.settle();
    for _ in 0..2 {
        shop.assert_enforced();
        shop.world.kill();
        shop.world.start();
    }
    // Its address is not lost either.
    shop.declare_server("podIP: 10.244.0.1, podIPs: [{ip: 10.244.0.1}], phase: Running");
    shop.world.settle();
    shop.assert_enforced();
}

/// A pod of the same name starts before the one that was deleted by force has ended.
#[test]
fn a_successor_of_the_same_name_changes_nothing_for_the_one_before() {
    let mut shop = shop();
    shop.world.wire("successor", "10.244.0.9");
    let _server = Server::start(&shop.world.of("successor"), 80);
    shop.world.declare_as("server", "10.244.0.9", "{app: other}", "uid-2");
    shop.world.settle();
    shop.assert_enforced();
    assert_allowed(&shop.world.of("stranger"), "10.244.0.9:80");
    // Each of them by its own labels.
    shop.world.policy("other", "podSelector: {matchLabels: {app: other}}");
    shop.world.settle();
    shop.assert_enforced();
    assert_denied(&shop.world.of("stranger"), "10.244.0.9:80");
    shop.world.unwire("server");
    shop.world.unwire("successor");
    shop.world.remove("pod-server");
    eventually("both are gone", || enforced(&shop.world).is_empty());
}

/// Its address is another pod's from then on, for everybody's policies and for who may send as it.
#[test]
fn the_address_of_a_pod_that_has_ended_may_be_used_again() {
    let mut shop = shop();
    shop.declare_server("podIP: 10.244.0.1, podIPs: [{ip: 10.244.0.1}], phase: Succeeded");
    shop.world.settle();
    shop.world.wire("next", "10.244.0.1");
    shop.world.declare("next", "10.244.0.1", "{role: stranger}");
    shop.world.settle();
    let _server = Server::start(&shop.world.of("next"), 80);
    assert_allowed(&shop.world.of("stranger"), SERVER);
    assert_allowed(&shop.world.of("next"), STRANGER);
    // What still runs there may not send in its successor's name.
    assert_eq!(shop.world.tcx("v-server").map(|ids| ids.len()), [1, 1]);
    assert_eq!(shop.world.tcx("v-next")[1], [0; 0], "no policy selects it");
    shop.world.policy("friends", &FRIENDS.replace("ingress:", "egress: [{}], ingress:"));
    shop.world.settle();
    let forged = || shop.world.counted("server", Direction::Egress, Reason::SourceAddress);
    let before = forged();
    assert_denied(&shop.world.of("server"), STRANGER);
    assert!(forged() > before);
}
