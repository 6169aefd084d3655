//! `netpol trace` against the wire: every pair of ends, both families, TCP, UDP and ICMP, each
//! answer held against real packets between network namespaces. Needs root and the eBPF object.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use netpol_api::decision::Decision;
use netpol_common::layout::Reason;
use netpol_isolation::netns::Netns;
use netpol_model::Direction;
use netpol_observe::node::Node;
use netpol_observe::trace::{Answer, Port, Protocol, Question, Tracer};

use netpol_testkit::world::traffic::Server;
use netpol_testkit::world::{NODE, PATIENCE, World};

const NODE6: &str = "fd00:1::1";
const PORTS: [u16; 2] = [8080, 8081];

/// Name, number, labels, named ports, node: pods of this node, one of another node, and two hosts
/// outside the cluster. The traffic of the last three comes through interfaces that are no pods'.
const HOSTS: [(&str, u8, &str, &str, &str); 7] = [
    ("web", 2, "{app: web}", "{name: http, containerPort: 8080}", "node-1"),
    ("db", 3, "{app: db}", "{name: http, containerPort: 8081}", "node-1"),
    ("client", 4, "{role: client}", "", "node-1"),
    ("closed", 5, "{app: closed}", "", "node-1"),
    ("far", 6, "{role: client, app: db}", "{name: http, containerPort: 8080}", "node-2"),
    ("outside", 7, "", "", ""),
    ("excepted", 8, "", "", ""),
];

fn addresses(number: u8) -> [IpAddr; 2] {
    [[10, 244, 0, number].into(), [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(number)].into()]
}

fn addresses_of(name: &str) -> [IpAddr; 2] {
    if name == "node" {
        return [NODE, NODE6].map(|address| address.parse().unwrap());
    }
    addresses(HOSTS.iter().find(|host| host.0 == name).unwrap().1)
}

/// As it is called on the command line.
fn called(name: &str) -> String {
    match name {
        "outside" | "excepted" => addresses_of(name)[0].to_string(),
        "node" => name.to_owned(),
        _ => format!("default/{name}"),
    }
}

fn policies(world: &World) {
    let dns = "{ports: [{protocol: UDP, port: 8081}]}";
    world.policy(
        "web",
        &format!(
            "podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Ingress, Egress], \
             ingress: [{{from: [{{podSelector: {{matchLabels: {{role: client}}}}}}], \
                         ports: [{{port: http}}]}}, {dns}], \
             egress: [{{to: [{{podSelector: {{matchLabels: {{app: db}}}}}}], \
                        ports: [{{port: http}}]}}]"
        ),
    );
    world.policy(
        "web-too",
        "podSelector: {matchLabels: {app: web}}, \
         ingress: [{from: [{podSelector: {matchLabels: {role: client}}}, \
                           {ipBlock: {cidr: 10.244.0.0/24, except: [10.244.0.8/32]}}], \
                    ports: [{port: 8080, endPort: 8081}]}]",
    );
    world.policy(
        "db",
        "podSelector: {matchLabels: {app: db}}, ingress: [{from: [\
         {podSelector: {matchLabels: {app: web}}}, {ipBlock: {cidr: 'fd00::/120', \
         except: ['fd00::8/128']}}]}]",
    );
    world.policy(
        "closed",
        "podSelector: {matchLabels: {app: closed}}, policyTypes: [Egress, Ingress]",
    );
}

fn world() -> (World, Vec<Server>) {
    let mut world = World::new();
    world.ip(&format!("address add {NODE6}/128 dev lo nodad"));
    let set = |file: &str| {
        let path = format!("/proc/sys/net/{file}");
        world.node.run(|| std::fs::write(path, "1").unwrap()).unwrap();
    };
    set("ipv6/conf/all/forwarding");
    for (name, number, labels, ports, node) in HOSTS {
        let [v4, v6] = addresses(number);
        world.wire(name, &v4.to_string());
        world.ip(&format!(
            "address add fe80::1/64 dev v-{name} nodad\n\
             route add {v6}/128 dev v-{name} src {NODE6}"
        ));
        world.ip_in(
            name,
            &format!(
                "address add {v6}/128 dev eth0 nodad\n\
                 route add default via fe80::1 dev eth0 src {v6}"
            ),
        );
        if !node.is_empty() {
            world.write(
                &format!("pod-{name}"),
                &format!(
                    "apiVersion: v1\nkind: Pod\n\
                     metadata: {{name: {name}, namespace: default, labels: {labels}}}\n\
                     spec: {{nodeName: {node}, containers: [{{name: c, ports: [{ports}]}}]}}\n\
                     status: {{podIPs: [{{ip: {v4}}}, {{ip: '{v6}'}}], phase: Running}}\n"
                ),
            );
        }
    }
    world.write(
        "node",
        &format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: node-1}}\nstatus: {{addresses: [\
             {{type: InternalIP, address: {NODE}}}, {{type: InternalIP, address: '{NODE6}'}}]}}\n"
        ),
    );
    policies(&world);
    let mut servers = Vec::new();
    for name in HOSTS.iter().map(|host| host.0).chain(["node"]) {
        within(&world, name, |netns| {
            let allow_ping = || std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0");
            netns.run(allow_ping).unwrap().unwrap();
            for port in PORTS {
                servers.push(Server::start_at(netns, format!("[::]:{port}").parse().unwrap()));
            }
        });
    }
    world.start();
    (world, servers)
}

/// Does something with the namespace of a host.
fn within<T>(world: &World, name: &str, work: impl FnOnce(&Netns) -> T) -> T {
    if name == "node" { work(&world.node) } else { work(&world.of(name)) }
}

/// One connection to be tried, and what was said about it.
struct Case {
    from: &'static str,
    to: &'static str,
    protocol: Protocol,
    port: u16,
    is_v6: bool,
    answer: Answer,
}

impl Case {
    fn destination(&self) -> SocketAddr {
        SocketAddr::new(addresses_of(self.to)[usize::from(self.is_v6)], self.port)
    }

    fn is_allowed(&self) -> bool {
        self.answer.verdict.is_allow()
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { from, protocol, answer, .. } = self;
        write!(f, "{protocol} from {from} to {}: {answer:#?}", self.destination())
    }
}

fn question(from: &str, to: &str, protocol: Protocol, port: u16, is_v6: bool) -> Question {
    // Who has no name is asked about by an address of the family.
    let text = |name| match name {
        "outside" | "excepted" => addresses_of(name)[usize::from(is_v6)].to_string(),
        _ => called(name),
    };
    Question { from: text(from), to: text(to), protocol, port: Port::Number(port), is_v6 }
}

/// Runs `work` with a tracer on the node, as the command line would.
fn with_tracer<T: Send>(world: &World, work: impl FnOnce(&mut Tracer<'_>) -> T + Send) -> T {
    let run_dir = world.run_dir();
    let node = Node::read(&run_dir).unwrap().unwrap();
    world.node.run(|| work(&mut Tracer::new(&node, &run_dir, &world.pins()).unwrap())).unwrap()
}

fn all_cases(world: &World) -> Vec<Case> {
    let names: Vec<&'static str> = HOSTS.iter().map(|host| host.0).chain(["node"]).collect();
    let is_here = |name: &str| HOSTS.iter().any(|host| host.0 == name && host.4 == "node-1");
    let mut cases = Vec::new();
    with_tracer(world, |tracer| {
        for (&from, &to) in names.iter().flat_map(|from| names.iter().map(move |to| (from, to))) {
            if !is_here(from) && !is_here(to) {
                continue;
            }
            for is_v6 in [false, true] {
                for (protocol, port) in [
                    (Protocol::Tcp, PORTS[0]),
                    (Protocol::Tcp, PORTS[1]),
                    (Protocol::Udp, PORTS[1]),
                    (Protocol::Icmp, 0),
                ] {
                    let asked = question(from, to, protocol, port, is_v6);
                    let answer = tracer.ask(&asked).unwrap();
                    assert_eq!(
                        answer.to.ip,
                        Some(addresses_of(to)[usize::from(is_v6)]),
                        "{answer:?}"
                    );
                    cases.push(Case { from, to, protocol, port, is_v6, answer });
                }
            }
        }
    });
    cases
}

/// A question by a datagram, UDP or a ping, that may be asked again.
struct Datagram<'a> {
    case: &'a Case,
    socket: UdpSocket,
}

impl<'a> Datagram<'a> {
    fn open(case: &'a Case) -> Self {
        use rustix::net::{AddressFamily, SocketType, ipproto, socket};
        let socket: UdpSocket = match (case.protocol, case.is_v6) {
            (Protocol::Icmp, false) => {
                socket(AddressFamily::INET, SocketType::DGRAM, Some(ipproto::ICMP)).unwrap().into()
            }
            (Protocol::Icmp, true) => {
                socket(AddressFamily::INET6, SocketType::DGRAM, Some(ipproto::ICMPV6))
                    .unwrap()
                    .into()
            }
            (_, false) => UdpSocket::bind("0.0.0.0:0").unwrap(),
            (_, true) => UdpSocket::bind("[::]:0").unwrap(),
        };
        socket.set_nonblocking(true).unwrap();
        let datagram = Self { case, socket };
        datagram.send();
        datagram
    }

    fn send(&self) {
        let Case { protocol, is_v6, .. } = self.case;
        let request = if *is_v6 { 128 } else { 8 };
        let message: &[u8] = match protocol {
            Protocol::Icmp => &[request, 0, 0, 0, 0, 0, 0, 1],
            _ => b"?",
        };
        // A firewall of the sender's own kernel is none of ours; nor is a full queue.
        let _ = self.socket.send_to(message, self.case.destination());
    }

    fn is_answered(&self) -> bool {
        self.socket.recv(&mut [0; 64]).is_ok()
    }
}

/// Denied ones are asked first and looked at last: whatever was asked after them was answered.
fn datagrams(cases: &[&Case]) -> Vec<String> {
    let is = |protocol| move |case: &&&Case| (case.protocol == Protocol::Tcp) == protocol;
    let cases: Vec<&&Case> = cases.iter().filter(is(false)).collect();
    let denied: Vec<Datagram<'_>> =
        cases.iter().filter(|case| !case.is_allowed()).map(|case| Datagram::open(case)).collect();
    let mut waiting: Vec<Datagram<'_>> =
        cases.iter().filter(|case| case.is_allowed()).map(|case| Datagram::open(case)).collect();
    let end = Instant::now() + PATIENCE;
    while !waiting.is_empty() && Instant::now() < end {
        thread::sleep(Duration::from_millis(50));
        waiting.retain(|datagram| !datagram.is_answered());
        waiting.iter().for_each(Datagram::send);
    }
    let unanswered = waiting.iter().map(|datagram| format!("no answer: {}", datagram.case));
    let leaked = denied.iter().filter(|datagram| datagram.is_answered());
    unanswered.chain(leaked.map(|datagram| format!("answered: {}", datagram.case))).collect()
}

fn connections(cases: &[&Case]) -> Vec<String> {
    let tcp = cases.iter().filter(|case| case.protocol == Protocol::Tcp);
    thread::scope(|scope| {
        let tries: Vec<_> = tcp.map(|case| scope.spawn(move || connection(case))).collect();
        tries.into_iter().filter_map(|tried| tried.join().unwrap()).collect()
    })
}

fn connection(case: &Case) -> Option<String> {
    let limit = if case.is_allowed() { PATIENCE } else { Duration::from_millis(400) };
    let exchange = || -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&case.destination(), limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])
    };
    let result = exchange();
    (result.is_ok() != case.is_allowed()).then(|| format!("{result:?}: {case}"))
}

fn differences(world: &World, cases: &[Case]) -> Vec<String> {
    let mut by_sender: BTreeMap<&str, Vec<&Case>> = BTreeMap::new();
    for case in cases {
        by_sender.entry(case.from).or_default().push(case);
    }
    thread::scope(|scope| {
        let tries: Vec<_> = by_sender
            .iter()
            .map(|(from, cases)| {
                scope.spawn(move || {
                    let both = || [datagrams(cases), connections(cases)].concat();
                    within(world, from, |netns| netns.run(both).unwrap())
                })
            })
            .collect();
        tries.into_iter().flat_map(|tried| tried.join().unwrap()).collect()
    })
}

#[test]
fn traces_agree_with_the_wire_and_name_the_policies() {
    let (world, _servers) = world();
    let cases = all_cases(&world);
    let n_allowed = cases.iter().filter(|case| case.is_allowed()).count();
    println!("{} connections, {n_allowed} allowed", cases.len());
    assert!(n_allowed > 100 && cases.len() - n_allowed > 100, "{n_allowed} of {}", cases.len());
    let differences = differences(&world, &cases);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    for case in &cases {
        for hop in &case.answer.hops {
            assert_eq!(hop.code.is_some(), !hop.verdict.is_allow(), "{case}");
            let named = hop.policies.iter().all(|policy| hop.isolated_by.contains(policy));
            assert!(named, "{case}");
            if hop.code == Some(Reason::Policy) {
                assert_eq!(hop.policies, hop.isolated_by, "{case}");
            }
        }
        assert!(case.answer.notes.iter().all(|note| note.contains("--ipv6")), "{case}");
    }
    details(&world);
    commands(&world);
}

/// What is said beside the verdict.
fn details(world: &World) {
    with_tracer(world, |tracer| {
        let mut ask = |from: &str, to: &str, port: Port| {
            let (from, to) = (from.to_owned(), to.to_owned());
            tracer.ask(&Question { from, to, protocol: Protocol::Tcp, port, is_v6: false })
        };
        let mut hops = |from: &str, to: &str, port: u16| {
            let answer = ask(from, to, Port::Number(port)).unwrap();
            let hops = answer.hops.iter().map(|hop| {
                format!("{} {} {}: {}", hop.endpoint, hop.direction, hop.verdict, hop.reason)
            });
            hops.collect::<Vec<_>>()
        };
        assert_eq!(
            hops("default/client", "default/web", 8080),
            [
                "default/client egress allow: no policy isolates it",
                "default/web ingress allow: allowed by default/web, default/web-too",
            ]
        );
        assert_eq!(
            hops("default/web", "default/db", 8081),
            [
                "default/web egress allow: allowed by default/web",
                "default/db ingress allow: allowed by default/db",
            ]
        );
        // The name stands for another number there.
        assert_eq!(
            hops("default/web", "default/db", 8080)[0],
            "default/web egress deny: no rule of default/web allows it"
        );
        assert_eq!(
            hops("10.244.0.8", "default/web", 8080),
            ["default/web ingress deny: no rule of default/web, default/web-too allows it"]
        );
        assert_eq!(
            hops("node", "default/closed", 1),
            ["default/closed ingress allow: its own node always reaches a pod"]
        );
        assert_eq!(
            hops("default/closed", "default/closed", 1)[0],
            "default/closed egress allow: a pod always reaches itself"
        );

        let far = ask("default/far", "default/web", Port::Name("http".into())).unwrap();
        assert_eq!((far.verdict, far.to.port), (Decision::Allow, Some(8080)));
        assert_eq!(far.from.name.as_deref(), Some("default/far"));
        assert_eq!(
            (&*far.elsewhere[0].node, far.elsewhere[0].direction),
            ("node-2", Direction::Egress)
        );
        let by_address = ask("10.244.0.6", "10.244.0.2", Port::Number(8080)).unwrap();
        assert_eq!(by_address.hops, far.hops);
        assert_eq!(by_address.from, far.from);
        // Likewise resolved by the pod of another node.
        let to_far = ask("default/web", "default/far", Port::Name("http".into())).unwrap();
        assert_eq!((to_far.verdict, to_far.to.port), (Decision::Allow, Some(8080)));
        for (from, to, port, expected) in [
            ("default/web", "default/db", Port::Name("https".into()), "known here: http"),
            ("default/web", "default/db", Port::None, "which port?"),
            ("default/web", "default/nobody", Port::Number(1), "no pod default/nobody"),
            ("default/far", "10.244.0.7", Port::Number(1), "is a pod of this node"),
            ("default/web", "service/default/nothing", Port::Number(1), "no service"),
        ] {
            let error = ask(from, to, port).unwrap_err().to_string();
            assert!(error.contains(expected), "{from} {to}: {error}");
        }
    });
}

/// The same as people see it, and what is left of it while the agent is down.
fn commands(world: &World) {
    let run = |arguments: &str| {
        let run_dir = world.run_dir();
        let places = ["--run-dir", run_dir.to_str().unwrap()];
        let arguments = arguments.split(' ').chain(places).map(str::to_owned).collect::<Vec<_>>();
        let output = world.netpol(&arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, said, _) = run("trace --from default/far --to default/web --port http");
    assert_eq!(
        (code, &*said),
        (
            Some(0),
            "\
allow here: TCP from default/far (10.244.0.6) to default/web (10.244.0.2:8080)
  default/web ingress: allow  allowed by default/web, default/web-too
  default/far egress: judged on node-2, ask there, too
"
        )
    );
    let (code, said, _) = run("trace --from default/web --to default/closed --protocol icmp -6");
    assert_eq!(
        (code, &*said),
        (
            Some(1),
            "\
deny: ICMP from default/web (fd00::2) to default/closed (fd00::5)
  default/web egress:     deny   no rule of default/web allows it
  default/closed ingress: deny   no rule of default/closed allows it
"
        )
    );
    // Allowed by a block of one family only.
    let (code, said, _) = run("trace --from default/client --to default/db --port 1");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("note: by IPv6 it is allowed: ask with --ipv6"), "{said}");
}

#[test]
fn without_an_agent_the_verdict_is_the_same_and_missing_names_are_said() {
    let mut world = World::new();
    world.pod("web", "10.244.0.2", "{app: web}");
    world.pod("client", "10.244.0.3", "{role: client}");
    policies(&world);
    world.start();
    world.kill();
    with_tracer(&world, |tracer| {
        let mut ask = |from: &str, to: &str, port: Port| {
            let (from, to) = (from.to_owned(), to.to_owned());
            tracer.ask(&Question { from, to, protocol: Protocol::Tcp, port, is_v6: false })
        };
        let allowed = ask("default/client", "default/web", Port::Number(8080)).unwrap();
        assert_eq!(allowed.verdict, Decision::Allow);
        assert_eq!(
            allowed.hops[1].reason,
            "allowed by one of default/web, default/web-too (which one a running agent knows)"
        );
        let denied = ask("10.244.0.8", "web", Port::Number(8080)).unwrap();
        assert_eq!((denied.verdict, denied.hops[0].policies.len()), (Decision::Deny, 2));
        for (to, port, expected) in [
            ("default/far", Port::Number(1), "does not run"),
            ("svc/default/web", Port::Number(1), "does not run"),
            ("default/web", Port::Name("http".into()), "does not run"),
        ] {
            let error = ask("default/client", to, port).unwrap_err().to_string();
            assert!(error.contains(expected), "{to}: {error}");
        }
    });
}
