//! `netpol monitor` against the fate of packets: one dropped for every reason, each told with
//! names, and as many told or counted as lost as were dropped. Needs root and the eBPF object.

use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, UdpSocket};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use netpol_common::layout::Reason;
use netpol_datapath::Maps;
use netpol_isolation::netns::Netns;
use netpol_model::Direction::{Egress, Ingress};
use netpol_observe::frames::{Transport, frame, frame_of_type, packet};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use netpol_testkit::world::traffic::{Server, asks, send_frames};
use netpol_testkit::world::{NODE, PATIENCE, World, eventually};

const SERVER: &str = "10.244.0.2";
const FRIEND: &str = "10.244.0.3";
const FAR: &str = "10.244.0.4";
const GATEWAY: &str = "10.244.0.1";
const SERVICE: &str = "10.96.0.7";
const POLICY: &str = "podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress, Egress], \
    ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}], \
               ports: [{protocol: UDP, port: 80}]}], \
    egress: [{to: [{podSelector: {matchLabels: {role: friend}}}], \
              ports: [{protocol: UDP, port: 9}]}]";

/// A server that is isolated both ways, its friend, a pod of another node, and a Service that
/// leads there.
fn world() -> (World, Server) {
    let mut world = World::new();
    world.pod("server", SERVER, "{app: server}");
    world.pod("friend", FRIEND, "{role: friend}");
    world.wire("far", FAR);
    world.write(
        "far",
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: far, namespace: default}}\n\
             spec: {{nodeName: node-2, containers: [{{name: c}}]}}\n\
             status: {{podIPs: [{{ip: {FAR}}}], phase: Running}}\n\
             ---\napiVersion: v1\nkind: Service\nmetadata: {{name: dns, namespace: default}}\n\
             spec: {{clusterIP: {SERVICE}, clusterIPs: [{SERVICE}], \
             ports: [{{port: 53, protocol: UDP}}]}}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: dns-1, namespace: default, \
             labels: {{kubernetes.io/service-name: dns}}}}\n\
             addressType: IPv4\nports: [{{port: 5353, protocol: UDP, name: ''}}]\n\
             endpoints: [{{addresses: [{FAR}], conditions: {{ready: true}}}}]\n\
             ---\napiVersion: v1\nkind: Node\nmetadata: {{name: node-1}}\n\
             status: {{addresses: [{{type: InternalIP, address: {NODE}}}]}}\n"
        ),
    );
    world.ip(&format!("address add {GATEWAY}/32 dev lo"));
    world.policy("server", POLICY);
    let server = Server::start(&world.of("server"), 80);
    world.start();
    (world, server)
}

/// A running monitor, killed when dropped.
struct Monitor {
    child: Child,
    lines: Receiver<String>,
    /// Kept open: a note that is written later must not fail.
    _errors: BufReader<ChildStderr>,
}

impl Monitor {
    fn start(world: &World, arguments: &[&str]) -> Self {
        let spawn = || {
            Command::new(env!("CARGO_BIN_EXE_netpol"))
                .args(["monitor", "--run-dir"])
                .arg(world.run_dir())
                .args(arguments)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let mut child = world.node.run(spawn).unwrap();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("waiting for dropped packets") {
            assert_ne!(errors.read_line(&mut said).unwrap(), 0, "the monitor has ended: {said}");
        }
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line).ok())
        });
        Self { child, lines, _errors: errors }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("the monitor says nothing")
    }

    fn event(&self) -> Value {
        serde_json::from_str(&self.line()).unwrap()
    }

    /// Ctrl-C.
    fn interrupt(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn send(from: &Netns, to: &str) {
    from.run(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"?", to).unwrap()).unwrap();
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn udp(source: &str, destination: &str, port: u16) -> Vec<u8> {
    packet(ip(source), ip(destination), &Transport::Udp { source: 1000, destination: port })
}

/// The second fragment of a datagram whose first one nobody saw.
fn fragment() -> Vec<u8> {
    let mut bytes = udp(SERVER, FRIEND, 9);
    bytes[6..8].copy_from_slice(&100u16.to_be_bytes());
    bytes
}

/// More extension headers than anyone follows.
fn extended() -> Vec<u8> {
    let mut payload = Vec::new();
    for _ in 0..9 {
        payload.extend([60, 0, 1, 4, 0, 0, 0, 0]);
    }
    packet(ip("fd00::2"), ip("fd00::3"), &Transport::Raw { protocol: 60, payload })
}

fn router_advertisement() -> Vec<u8> {
    let advertisement = Transport::Icmp { kind: 134, code: 0, body: vec![0; 12] };
    let mut bytes = packet(ip("fe80::2"), ip("ff02::1"), &advertisement);
    bytes[7] = 255;
    bytes
}

/// Frames that leave the server, with the reason to drop each and what else must be told.
fn odd_frames() -> Vec<(Vec<u8>, Reason, Value)> {
    let end = |ip: &str, pod: Value| json!({"ip": ip, "port": 1000, "endpoint": pod});
    vec![
        (
            frame(&udp("10.244.0.99", FRIEND, 9)),
            Reason::SourceAddress,
            json!({"source": end("10.244.0.99", Value::Null), "policies": []}),
        ),
        (
            frame(&udp(FRIEND, FAR, 9)),
            Reason::SourceAddress,
            json!({"source": end(FRIEND, json!("default/friend")), "policies": []}),
        ),
        (
            frame(&fragment()),
            Reason::Fragment,
            json!({"protocol": "UDP", "policies": ["default/server"]}),
        ),
        (
            frame_of_type(0x0800, &[0x45, 0, 0, 60]),
            Reason::Truncated,
            json!({"source": null, "destination": null, "length": 18}),
        ),
        (
            frame_of_type(0x88b5, &[0; 50]),
            Reason::Ethertype,
            json!({"source": null, "protocol": null, "length": 64}),
        ),
        (
            frame_of_type(0x8100, &[0, 7, 0x08, 0, 0x45, 0]),
            Reason::Ethertype,
            json!({"source": null}),
        ),
        (
            frame(&extended()),
            Reason::ExtensionHeaders,
            json!({"destination": {"ip": "fd00::3", "port": null, "endpoint": null}}),
        ),
        (
            frame(&router_advertisement()),
            Reason::RouterMessage,
            json!({"protocol": "ICMPv6", "detail": "router advertisement"}),
        ),
        (frame_of_type(0x0806, &[7; 200]), Reason::Neighbour, json!({"source": null})),
    ]
}

/// Everything that `expected` says is so.
fn assert_has(event: &Value, expected: &Value) {
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(event[field], *value, "{field} of {event:#}");
    }
}

#[test]
fn every_drop_is_told_with_its_reason_and_names() {
    let (mut world, _server) = world();
    let monitor = Monitor::start(&world, &["-o", "json"]);
    let mut told = Vec::new();
    let mut next = |direction: &str, reason: Reason, expected: Value| {
        let event = monitor.event();
        assert_has(&event, &expected);
        let (endpoint, verdict) = ("default/server", "deny");
        let reason = reason.as_str();
        assert_has(
            &event,
            &json!({"endpoint": endpoint, "verdict": verdict, "direction": direction, "reason": reason}),
        );
        told.push((direction.to_owned(), reason));
    };

    send(&world.of("far"), &format!("{SERVER}:80"));
    let far = json!("default/far");
    next(
        "ingress",
        Reason::Policy,
        json!({
            "protocol": "UDP", "policies": ["default/server"],
            "destination": {"ip": SERVER, "port": 80, "endpoint": "default/server"},
            "message": "no rule of default/server allows it",
        }),
    );
    send(&world.of("server"), &format!("{FAR}:9"));
    next(
        "egress",
        Reason::Policy,
        json!({
            "policies": ["default/server"],
            "destination": {"ip": FAR, "port": 9, "endpoint": far, "node": "node-2"},
        }),
    );
    send(&world.of("server"), &format!("{SERVICE}:53"));
    next(
        "egress",
        Reason::Policy,
        json!({
            "policies": ["default/server"],
            "destination": {"ip": SERVICE, "port": 53, "endpoint": null, "service": "default/dns"},
        }),
    );
    send(&world.of("server"), &format!("{NODE}:10250"));
    next(
        "egress",
        Reason::Policy,
        json!({
            "destination": {"ip": NODE, "port": 10250, "endpoint": null, "node": "node-1"},
        }),
    );
    // An address that its Node object does not have, as a bridge's.
    send(&world.of("server"), &format!("{GATEWAY}:53"));
    next(
        "egress",
        Reason::Policy,
        json!({
            "destination": {"ip": GATEWAY, "port": 53, "endpoint": null, "node": "node-1"},
        }),
    );
    for (frame, reason, expected) in odd_frames() {
        send_frames(&world.of("server"), &frame, 1);
        next("egress", reason, expected);
    }

    let friend = world.of("friend");
    let socket = friend.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    socket.connect(format!("{SERVER}:80")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send(b"?").unwrap();
    socket.recv(&mut [0; 8]).unwrap();
    world.policy("server", &POLICY.replace("port: 80", "port: 81"));
    world.settle();
    socket.send(b"?").unwrap();
    next(
        "ingress",
        Reason::PolicyCut,
        json!({
            "policies": ["default/server"],
            "source": {"ip": FRIEND, "port": socket.local_addr().unwrap().port(),
                       "endpoint": "default/friend"},
            "message": "it was allowed before, but no rule of default/server allows it now",
        }),
    );

    // As many as were dropped, by each reason.
    for direction in [Ingress, Egress] {
        for reason in Reason::ALL.into_iter().filter(|reason| reason.is_drop()) {
            let is_it =
                |one: &&(String, &str)| one.0 == direction.as_str() && one.1 == reason.as_str();
            let n_told = told.iter().filter(is_it).count() as u64;
            assert_eq!(
                world.counted("server", direction, reason),
                n_told,
                "{direction} {reason:?}"
            );
        }
    }
    unknown_endpoint(&mut world, &monitor);
    monitor.interrupt();
}

/// An interface that is forgotten while its program stays: the agent is down, so that nothing has
/// a name that is not on this node.
fn unknown_endpoint(world: &mut World, monitor: &Monitor) {
    world.kill();
    let ifindex = world.ifindex("v-server");
    let maps = Maps::open(&world.pins(), true).unwrap();
    let of_server = |slot: &usize| maps.endpoints.load(*slot, 0) >> 32 == u64::from(ifindex);
    let slot = (0..maps.endpoints.len()).find(of_server).unwrap();
    maps.endpoints.store(slot, 0, 0);
    send(&world.of("friend"), &format!("{SERVER}:81"));
    assert_has(
        &monitor.event(),
        &json!({
            "endpoint": null, "endpoint_id": 0, "ifindex": ifindex, "direction": "ingress",
            "reason": "unknown-endpoint", "verdict": "deny", "protocol": "UDP",
            "destination": {"ip": SERVER, "port": 81, "endpoint": "default/server"},
        }),
    );
}

#[test]
fn a_flood_is_shown_in_part_and_the_rest_counted() {
    let (world, _server) = world();
    let monitor = Monitor::start(&world, &["-o", "json"]);
    const SENT: u64 = 30_000;
    send_frames(&world.of("server"), &frame_of_type(0x88b5, &[0; 50]), SENT as usize);
    let dropped = || world.counted("server", Egress, Reason::Ethertype);
    eventually("all are dropped", || dropped() == SENT);
    let (mut shown, mut lost) = (0, 0);
    while shown + lost < SENT {
        let line = monitor.event();
        match line["lost"].as_u64() {
            Some(more) => lost += more,
            None => shown += 1,
        }
    }
    println!("{shown} shown, {lost} lost");
    assert_eq!(shown + lost, SENT);
    assert!(shown > 0 && lost > 0, "{shown} shown, {lost} lost");
    monitor.interrupt();
}

#[test]
fn filters_show_one_direction_and_reason_as_text() {
    let (world, _server) = world();
    let filters = ["default/server", "--direction", "egress", "--reason", "policy"];
    let monitor = Monitor::start(&world, &filters);
    send_frames(&world.of("server"), &frame_of_type(0x88b5, &[0; 50]), 1);
    send(&world.of("far"), &format!("{SERVER}:80"));
    assert!(!asks(&world.of("server"), &format!("{FAR}:99")));
    let line = monitor.line();
    let (time, rest) = line.split_once(' ').unwrap();
    assert_eq!(time.len(), "12:34:56.789".len(), "{line}");
    assert!(rest.starts_with("deny  default/server egress UDP 10.244.0.2:"), "{line}");
    assert!(
        rest.ends_with(
            " -> 10.244.0.4:99 (default/far on node-2): no rule of default/server allows it"
        ),
        "{line}"
    );
    monitor.interrupt();
}
