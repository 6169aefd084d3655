//! A thousand edits of the manifests of a running agent, while packets flow between pods: what is
//! allowed in every state loses not one packet, what is denied in every state never gets one
//! through, and what an edit turns is turned once it is in force. Needs root and the eBPF object.
//!
//! `NETPOL_CASES` sets how many edits are made, `NETPOL_SEED` repeats their order.

use std::time::Duration;

use netpol_testkit::generate::Rng;

use netpol_testkit::rig::from_environment;
use netpol_testkit::world::traffic::{Attempts, Server, Stream, asks, assert_allowed};
use netpol_testkit::world::{World, address};

const EDITS: u64 = 1_000;
/// How often what has been written is waited for and checked.
const CHECK: u64 = 25;
const SERVER: &str = "10.244.0.1:80";
const OPEN: &str = "10.244.0.4:80";
/// Time between two messages of a stream.
const PACE: Duration = Duration::from_millis(3);

/// All of these admit the friend to the server, and never the stranger.
const FORMS: [&str; 6] = [
    "{from: [{podSelector: {matchLabels: {role: friend}}}]}",
    "{from: [{podSelector: {matchLabels: {role: friend}}, namespaceSelector: {matchLabels: {team: \
     a}}}]}",
    "{from: [{ipBlock: {cidr: 10.244.0.0/22, except: [10.244.0.3/32]}}]}",
    "{from: [{ipBlock: {cidr: 10.244.0.2/31, except: [10.244.0.3/32]}}], ports: [{port: 80}, \
     {port: 80, protocol: UDP}]}",
    "{from: [{podSelector: {matchExpressions: [{key: role, operator: NotIn, values: [stranger, \
     toggled, none]}]}}], ports: [{port: 1, endPort: 90}, {port: 1, endPort: 90, protocol: UDP}]}",
    "{from: [{podSelector: {matchLabels: {role: friend}}}, {ipBlock: {cidr: 10.244.8.0/24}}], \
     ports: [{port: web}, {port: dns, protocol: UDP}]}",
];

struct Shop {
    world: World,
    rng: Rng,
    /// Whether the pod `toggled` is a friend, as it was written last.
    is_toggled_friend: bool,
    n_pods: u32,
}

impl Shop {
    fn new(seed: u64) -> Self {
        let mut world = World::new();
        for (name, number) in [("server", 1), ("friend", 2), ("stranger", 3), ("open", 4)] {
            world.wire(name, &address(number));
        }
        world.wire("toggled", &address(5));
        let mut shop = Self { world, rng: Rng::new(seed), is_toggled_friend: false, n_pods: 0 };
        shop.server("");
        shop.friend("");
        shop.world.declare("stranger", &address(3), "{role: stranger}");
        shop.world.declare("open", &address(4), "{app: open}");
        shop.toggled(false);
        shop.namespace("");
        shop.world.policy("friends", &friends(FORMS[0]));
        shop
    }

    /// The server with one label more.
    fn server(&self, label: &str) {
        let address = address(1);
        self.world.write(
            "pod-server",
            &format!(
                "apiVersion: v1\nkind: Pod\n\
                 metadata: {{name: server, namespace: default, uid: uid-server, \
                 labels: {{app: server{label}}}}}\n\
                 spec: {{nodeName: node-1, containers: [{{name: c, ports: [{{name: web, \
                 containerPort: 80}}, {{name: dns, containerPort: 80, protocol: UDP}}]}}]}}\n\
                 status: {{podIP: {address}, podIPs: [{{ip: {address}}}], phase: Running}}\n"
            ),
        );
    }

    fn friend(&self, label: &str) {
        self.world.declare("friend", &address(2), &format!("{{role: friend{label}}}"));
    }

    fn toggled(&mut self, is_friend: bool) {
        self.is_toggled_friend = is_friend;
        let role = if is_friend { "friend" } else { "toggled" };
        self.world.declare("toggled", &address(5), &format!("{{role: {role}}}"));
    }

    fn namespace(&self, label: &str) {
        self.world.write(
            "namespace",
            &format!(
                "apiVersion: v1\nkind: Namespace\n\
                 metadata: {{name: default, labels: {{team: a{label}}}}}\n"
            ),
        );
    }

    /// One edit.
    fn edit(&mut self, number: u64) {
        let label = format!(", n: '{}'", self.rng.below(3));
        match self.rng.below(12) {
            0..3 => {
                // The friend stays allowed, by another rule.
                let form = FORMS[self.rng.below(FORMS.len())];
                self.world.policy("friends", &friends(form));
            }
            3 => {
                // By a second policy, and then by that alone for a while.
                let form = FORMS[self.rng.below(FORMS.len())];
                self.world.policy("also", &friends(form));
            }
            4 => {
                // What concerns nobody here, or selects them and admits others.
                let who = *self.rng.pick(&["app: none", "app: server", "role: stranger"]);
                self.world.policy(
                    "others",
                    &format!(
                        "podSelector: {{matchLabels: {{{who}}}}}, ingress: [{{from: \
                         [{{podSelector: {{matchLabels: {{n: 'never', x: '{number}'}}}}}}]}}]"
                    ),
                );
            }
            5 => self.server(&label),
            6 => self.friend(&label),
            7 => self.namespace(&label),
            8 => {
                let is_friend = self.rng.chance(50);
                self.toggled(is_friend);
            }
            9 => {
                // Isolated and not: never a packet less for the friend.
                let is_isolated = self.rng.chance(50);
                let app = if is_isolated { "open" } else { "nobody" };
                let spec = friends(FORMS[0]).replace("app: server", &format!("app: {app}"));
                self.world.policy("open", &spec);
            }
            10 => self.churn(),
            _ => self.service(number),
        }
    }

    /// A pod of another node, with the address of the one before and another role.
    fn churn(&mut self) {
        let role = *self.rng.pick(&["friend", "stranger", "none"]);
        if self.n_pods > 0 {
            self.world.remove(&format!("pod-elsewhere-{}", self.n_pods));
        }
        self.n_pods += 1;
        let (name, address) = (format!("elsewhere-{}", self.n_pods), address(2_048));
        self.world.write(
            &format!("pod-{name}"),
            &format!(
                "apiVersion: v1\nkind: Pod\n\
                 metadata: {{name: {name}, namespace: default, uid: uid-{name}, labels: \
                 {{role: {role}}}}}\n\
                 spec: {{nodeName: node-2, containers: [{{name: c}}]}}\n\
                 status: {{podIP: {address}, podIPs: [{{ip: {address}}}], phase: Running}}\n"
            ),
        );
    }

    fn service(&self, number: u64) {
        self.world.write(
            "service",
            &format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: default}}\n\
                 spec: {{clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], selector: {{app: server}}, \
                 ports: [{{port: {}, targetPort: 80}}]}}\n",
                80 + number % 3
            ),
        );
    }

    /// Everything written is in force, also what was turned.
    fn check(&mut self) {
        self.world.policy("friends", &friends(FORMS[0]));
        let also = self.world.manifests().join("policy-also.yaml");
        if also.exists() {
            self.world.remove("policy-also");
        }
        self.world.settle();
        let toggled = self.world.of("toggled");
        if self.is_toggled_friend {
            assert_allowed(&toggled, SERVER);
        } else {
            assert!(!asks(&toggled, SERVER), "a pod that is no friend any more is answered");
        }
    }
}

fn friends(form: &str) -> String {
    format!("podSelector: {{matchLabels: {{app: server}}}}, ingress: [{form}]")
}

#[test]
fn a_thousand_edits_cost_allowed_flows_nothing_and_give_denied_ones_nothing() {
    let seed = from_environment("NETPOL_SEED").unwrap_or(1);
    let edits = from_environment("NETPOL_CASES").unwrap_or(EDITS);
    let mut shop = Shop::new(seed);
    let _servers = ["server", "open"].map(|pod| Server::start(&shop.world.of(pod), 80));
    shop.world.start();
    let friend = shop.world.of("friend");
    let streams = [
        Stream::udp_every(&friend, SERVER, PACE),
        Stream::tcp_every(&friend, SERVER, PACE),
        Stream::udp_every(&friend, OPEN, PACE),
        Stream::tcp_every(&friend, OPEN, PACE),
    ];
    let attempts = Attempts::start(&shop.world.of("stranger"), SERVER);
    for number in 1..=edits {
        shop.edit(number);
        // Now and then several at once, most often each in a look of its own.
        if shop.rng.chance(80) {
            std::thread::sleep(Duration::from_millis(8));
        }
        if number.is_multiple_of(CHECK) {
            shop.check();
        }
    }
    shop.check();
    streams.iter().for_each(Stream::moves);
    let answered: u64 = streams.into_iter().map(Stream::finish).sum();
    let tried = attempts.finish();
    let state = shop.world.state();
    let revision = &state["status"]["datapath"]["applied_revision"];
    println!(
        "{edits} edits ({revision} changes): {answered} messages answered, 0 lost; {tried} rounds \
         of denied attempts, 0 got through"
    );
    assert!(answered > 4 * edits, "too few messages to prove anything: {answered}");
    assert!(revision.as_u64().unwrap() > edits / 2, "too few edits were seen one by one");
}
