//! Services as `netpol services`, `trace` and `flows` tell them, with an agent and without. Needs
//! root and the eBPF object.

use std::net::{TcpStream, UdpSocket};

use serde_json::{Value, json};

use netpol_testkit::world::{World, eventually};

const NODE: &str = "10.0.0.1";
const CLIENT: &str = "podSelector: {matchLabels: {role: client}}, policyTypes: [Egress], egress: [\
    {to: [{podSelector: {matchLabels: {tier: new}}}], ports: [{port: 15432}]}]";
const DB: &str = "podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: \
    {matchLabels: {role: client}}}]}]";

fn service(name: &str, address: &str, ports: &str, slice_ports: &str, backends: &[&str]) -> String {
    let endpoints: Vec<String> = backends
        .iter()
        .map(|address| format!("{{addresses: [{address}], conditions: {{ready: true}}}}"))
        .collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{type: NodePort, clusterIP: {address}, clusterIPs: [{address}], ports: [{ports}]}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}-1, namespace: default, \
         labels: {{kubernetes.io/service-name: {name}}}}}\n\
         addressType: IPv4\nports: [{slice_ports}]\nendpoints: [{}]\n---\n",
        endpoints.join(", ")
    )
}

/// A client that may reach one of two databases and the one resolver; a database here and one on
/// another node; Services for both, for one, and for none.
fn world() -> World {
    let mut world = World::new();
    world.pod("client", "10.244.0.2", "{role: client}");
    world.pod("db", "10.244.0.3", "{app: db, tier: new}");
    let far = "apiVersion: v1\nkind: Pod\nmetadata: {name: far, namespace: default, labels: \
               {app: db}}\nspec: {nodeName: node-2, containers: [{name: c}]}\n\
               status: {podIPs: [{ip: 10.244.1.3}], phase: Running}\n---\n";
    let nodes = format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: node-1}}\n\
         status: {{addresses: [{{type: InternalIP, address: {NODE}}}]}}\n---\n\
         apiVersion: v1\nkind: Node\nmetadata: {{name: node-2}}\n\
         status: {{addresses: [{{type: InternalIP, address: 10.0.0.2}}]}}\n---\n"
    );
    let sql = "{name: sql, port: 5432, nodePort: 30432}";
    let to_sql = "{name: sql, port: 15432}";
    let both = service("db", "10.96.0.1", sql, to_sql, &["10.244.0.3", "10.244.1.3"]);
    let one = service(
        "new",
        "10.96.0.2",
        "{name: '', port: 80}",
        "{name: '', port: 15432}",
        &["10.244.0.3"],
    );
    let none = service("empty", "10.96.0.3", "{name: '', port: 80}", "{name: '', port: 80}", &[]);
    world.write("cluster", &[far, &nodes, &both, &one, &none].concat());
    world.policy("client", CLIENT);
    world.policy("db", DB);
    world.start();
    world
}

fn run(world: &World, arguments: &str) -> (Option<i32>, String, String) {
    let run_dir = world.run_dir();
    let places = ["--run-dir", run_dir.to_str().unwrap()];
    let arguments: Vec<String> = arguments.split(' ').chain(places).map(str::to_owned).collect();
    let output = world.netpol(&arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn json(world: &World, arguments: &str) -> Value {
    let (code, said, errors) = run(world, &format!("{arguments} -o json"));
    assert!(code.is_some_and(|code| code < 2), "{errors}");
    serde_json::from_str(&said).unwrap()
}

#[test]
fn services_are_told_by_every_command() {
    let mut world = world();
    let (_, said, _) = run(&world, "services default/client");
    assert_eq!(
        said,
        "\
SERVICE                 ADDRESS         PROTOCOL  BACKENDS                                                   VERDICT
default/db              10.96.0.1:5432  TCP       default/db 10.244.0.3:15432, default/far 10.244.1.3:15432  mixed
default/db (node port)  10.0.0.1:30432  TCP       default/db 10.244.0.3:15432, default/far 10.244.1.3:15432  mixed
default/db (node port)  10.0.0.2:30432  TCP       default/db 10.244.0.3:15432, default/far 10.244.1.3:15432  deny
default/empty           10.96.0.3:80    TCP       none                                                       empty
default/new             10.96.0.2:80    TCP       default/db 10.244.0.3:15432                                allow
"
    );
    let list = json(&world, "services");
    let db = &list[0];
    assert_eq!(db["endpoints"], json!([{"endpoint": "default/client", "verdict": "mixed"}]));
    assert_eq!(
        db["backends"][1],
        json!({
            "ip": "10.244.1.3", "port": 15432, "pod": "default/far", "node": "node-2",
        })
    );
    assert_eq!(db["kinds"].as_array().unwrap().len(), 2, "{db}");
    let (_, said, notes) = run(&world, "services db");
    assert!(notes.contains("no policy isolates db for egress"), "{notes}");
    assert!(said.contains("open"), "{said}");

    traces(&mut world);
    flows(&world);

    world.policy("client", CLIENT);
    world.settle();
    world.kill();
    let (_, said, notes) = run(&world, "services client");
    assert!(notes.contains("the agent is not running"), "{notes}");
    assert!(notes.contains("without their names: the agent does not run"), "{notes}");
    let (code, _, notes) = run(&world, "flows client");
    assert_eq!(code, Some(0), "{notes}");
    assert!(notes.contains("without their names"), "{notes}");
    let line = |address: &str| said.lines().find(|line| line.contains(address)).unwrap();
    assert!(line("10.96.0.2:80").ends_with("allow"), "{said}");
    assert!(line("10.96.0.2:80").contains("tier=new in namespace default port 15432"), "{said}");
    assert!(line("10.96.0.1:5432").ends_with("mixed"), "{said}");
}

fn traces(world: &mut World) {
    let (code, said, errors) = run(world, "trace --from default/client --to service/default/new");
    assert_eq!(
        (code, &*said),
        (
            Some(0),
            "\
allow: TCP from default/client (10.244.0.2) to service default/new (10.96.0.2:80)
  default/client egress: allow  every backend is allowed
  allow: backend default/db (10.244.0.3:15432)
    default/client egress: allow  allowed by default/client
    default/db ingress:    allow  allowed by default/db
"
        ),
        "{errors}"
    );
    // By its address and by the name of its port, with a backend that another node judges, too.
    let mixed = json(world, "trace --from client --to svc/default/db --port sql");
    assert_eq!(mixed, json(world, "trace --from client --to 10.96.0.1 --port 5432"));
    assert_eq!(mixed["verdict"], "deny");
    let backends = mixed["backends"].as_array().unwrap();
    let of = |index: usize| (&backends[index]["name"], &backends[index]["verdict"]);
    assert_eq!(of(0), (&json!("default/db"), &json!("allow")));
    assert_eq!(of(1), (&json!("default/far"), &json!("deny")));
    assert_eq!(backends[1]["hops"][0]["reason"], "no rule of default/client allows it");
    assert_eq!(
        mixed["elsewhere"],
        json!([{"node": "node-2", "endpoint": "default/far", "direction": "ingress"}])
    );
    let (code, said, _) = run(world, "trace --from client --to svc/default/db --port sql");
    assert_eq!(code, Some(1));
    assert!(said.contains("as 1 of 2 backends can be reached"), "{said}");
    node_ports(world);

    let (code, said, _) = run(world, "trace --from client --to svc/default/empty");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("note: service default/empty has no ready backend"), "{said}");
    let (code, said, _) = run(world, "trace --from client --to 10.96.0.1 --port 1");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("note: service default/db has no TCP port 1 there"), "{said}");
    let (code, _, errors) = run(world, "trace --from client --to svc/default/db --port http");
    assert_eq!(code, Some(2));
    assert!(errors.contains("declares no TCP port named \"http\" (known here: sql)"), "{errors}");
}

/// The proxy puts an address of its node in place of the sender's, and the database admits only the
/// client. What another node translates is all denied where one backend is.
fn node_ports(world: &mut World) {
    // As on most networks, the interface has no address of its own. (The kernel takes the routes
    // away with the last one.)
    world.ip("address del 169.254.1.1/32 dev v-db\nroute add 10.244.0.3/32 dev v-db src 10.0.0.1");
    let own = json(world, "trace --from client --to 10.0.0.1 --port 30432");
    assert_eq!(own["to"]["name"], "service default/db");
    let db = &own["backends"][0];
    assert_eq!((&db["verdict"], &db["seen_as"]), (&json!("deny"), &json!(["10.0.0.1"])), "{own:#}");
    assert_eq!(db["hops"][0]["verdict"], "allow");
    assert_eq!(db["hops"][1]["reason"], "no rule of default/db allows it");
    assert!(own["notes"][0].as_str().unwrap().starts_with("the proxy of node-1 puts"), "{own:#}");

    let (code, said, _) = run(world, "trace --from client --to 10.0.0.2 --port 30432");
    assert_eq!(code, Some(1));
    let policy = "it goes to a Service of which default/client allow some backends and not others";
    assert!(said.contains(&format!("default/client egress: deny   {policy}")), "{said}");
    assert!(said.contains("10.244.0.3:15432), which sees 10.0.0.2"), "{said}");
    assert!(said.contains("of node-2 only the addresses of its Node object"), "{said}");

    // Whoever admits the node admits all that comes through its proxy; the other node is another.
    world.policy(
        "db",
        "podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.1/32}}]}]",
    );
    world.settle();
    for (to, expected) in [("10.0.0.1", "allow"), ("10.0.0.2", "deny")] {
        let answer = json(world, &format!("trace --from client --to {to} --port 30432"));
        assert_eq!(answer["backends"][0]["verdict"], expected, "{answer:#}");
    }
    // From where the other node sends it is not known better than by its object.
    let from_far = json(world, "trace --from default/far --to 10.0.0.2 --port 30432");
    assert_eq!(from_far["backends"][0]["seen_as"], json!(["10.0.0.2"]), "{from_far:#}");
    let by_cluster_ip = json(world, "trace --from client --to svc/default/new");
    assert_eq!(by_cluster_ip["verdict"], "deny", "its source is kept: {by_cluster_ip:#}");
    // The node's own packets are its own whatever their source is.
    let from_node = json(world, "trace --from node --to 10.0.0.1 --port 30432");
    assert_eq!(from_node["backends"][0]["verdict"], "allow", "{from_node:#}");
    assert_eq!(from_node["backends"][0]["seen_as"], Value::Null);
    assert_eq!(from_node["notes"], Value::Null);
    // Who is outside comes by whichever node.
    let from_outside = json(world, "trace --from 198.51.100.9 --to svc/default/new");
    assert_eq!(from_outside["backends"][0]["seen_as"], json!(["10.0.0.1"]), "{from_outside:#}");
    let note = from_outside["notes"][1].as_str().unwrap();
    assert!(note.contains("by another node"), "{note}");
    several_addresses(world);
}

/// Which of its addresses the kernel takes, where the interface that leads to the pod has several or
/// none.
fn several_addresses(world: &mut World) {
    let seen = |world: &World| {
        let answer = json(world, "trace --from client --to 10.0.0.1 --port 30432");
        answer["backends"][0].clone()
    };
    world.ip("address add 10.244.0.1/24 dev v-db");
    assert_eq!(seen(world)["seen_as"], json!(["10.244.0.1"]), "its subnet holds the pod");
    world.ip("address add 169.254.1.1/32 dev v-db\naddress del 10.244.0.1/24 dev v-db");
    assert_eq!(seen(world)["seen_as"], json!(["169.254.1.1"]));
    assert_eq!(seen(world)["verdict"], "deny");
    // Without one there and on loopback, it is the first of some interface.
    world.ip("address del 169.254.1.1/32 dev v-db\nroute add 10.244.0.3/32 dev v-db\n\
         address del 10.0.0.1/32 dev lo\nlink add d1 type bridge\nlink set d1 up\n\
         address add 10.0.0.1/32 dev d1");
    assert_eq!(seen(world)["seen_as"], json!(["10.0.0.1", "169.254.1.1"]));
    let reason = "it depends on which of its addresses node-1 takes: allowed from 10.0.0.1, denied \
                  from 169.254.1.1";
    assert_eq!(seen(world)["hops"][1]["reason"], reason);
    assert_eq!(seen(world)["verdict"], "deny");
    world.ip("link del d1\naddress add 10.0.0.1/32 dev lo\n\
         route replace 10.244.0.2/32 dev v-client src 10.0.0.1");
    world.policy("db", DB);
    world.settle();
}

/// The client talks to the Service and to a pod of the other node; nobody answers.
fn flows(world: &World) {
    world.policy(
        "client",
        "podSelector: {matchLabels: {role: client}}, policyTypes: [Egress], egress: [{}]",
    );
    eventually("the policy is in force", || {
        let socket = world.of("client").run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
        let to = ["10.244.1.3:9", "10.0.0.1:9", "192.0.2.1:9"];
        to.iter().for_each(|to| drop(socket.send_to(b"?", to)));
        // Its SYN is all that is wanted.
        let limit = std::time::Duration::from_millis(20);
        let connect = || TcpStream::connect_timeout(&"10.96.0.1:5432".parse().unwrap(), limit);
        drop(world.of("client").run(connect).unwrap());
        json(world, "flows default/client").as_array().unwrap().len() >= 4
    });
    let flows = json(world, "flows default/client");
    let flow = |remote: &str| {
        let flows = flows.as_array().unwrap();
        flows.iter().find(|flow| flow["remote"] == remote).unwrap().clone()
    };
    assert_eq!(flow("10.244.1.3")["remote_endpoint"], "default/far");
    assert_eq!(flow("10.244.1.3")["remote_node"], "node-2");
    assert_eq!(flow("10.96.0.1")["remote_service"], "default/db");
    assert_eq!(flow("10.0.0.1")["remote_node"], "node-1");
    assert_eq!(flow("192.0.2.1")["remote_endpoint"], Value::Null);
    assert_eq!([&flow("192.0.2.1")["opened"], &flow("192.0.2.1")["state"]], ["egress", "new"]);
    let (_, said, _) = run(world, "flows default/client");
    assert!(said.contains("default/far on node-2"), "{said}");
    assert!(said.contains("node node-1"), "{said}");
}

/// A pod that is isolated from its own kind calls its own Services.
#[test]
fn a_pod_reaches_itself_through_its_service_and_traffic_policies_count() {
    let mut world = World::new();
    world.pod("web", "10.244.0.2", "{app: web}");
    let far = "apiVersion: v1\nkind: Pod\nmetadata: {name: far, namespace: default, labels: \
               {app: web}}\nspec: {nodeName: node-2, containers: [{name: c}]}\n\
               status: {podIPs: [{ip: 10.244.1.3}], phase: Running}\n---\n";
    let nodes: String = [1, 2]
        .map(|n| {
            format!(
                "apiVersion: v1\nkind: Node\nmetadata: {{name: node-{n}}}\n\
                 status: {{addresses: [{{type: InternalIP, address: 10.0.0.{n}}}]}}\n---\n"
            )
        })
        .concat();
    let of = |name, address, node_port: u16, backends: &[&str]| {
        let ports = format!("{{name: '', port: 80, nodePort: {node_port}}}");
        service(name, address, &ports, "{name: '', port: 8080}", backends)
    };
    let me = of("me", "10.96.0.1", 30001, &["10.244.0.2"]);
    let both = of("both", "10.96.0.2", 30002, &["10.244.0.2", "10.244.1.3"]);
    let local = of("local", "10.96.0.3", 30003, &["10.244.0.2", "10.244.1.3"])
        .replace("spec: {", "spec: {internalTrafficPolicy: Local, ");
    let nobody = of("nobody", "10.96.0.4", 30004, &["10.244.1.3"])
        .replace("spec: {", "spec: {internalTrafficPolicy: Local, ");
    world.write("cluster", &[far, &nodes, &me, &both, &local, &nobody].concat());
    world.policy(
        "web",
        "podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress], \
         egress: [{to: [{ipBlock: {cidr: 192.0.2.0/24}}]}]",
    );
    world.start();
    let listed = json(&world, "services default/web");
    let said = |name: &str, address: &str| {
        let is_it = |it: &&Value| it["name"] == name && it["address"] == address;
        let found = listed.as_array().unwrap().iter().find(is_it).unwrap();
        found["endpoints"][0]["verdict"].as_str().unwrap().to_owned()
    };
    for (name, address, port, expected) in [
        ("me", "10.96.0.1", 80, "allow"),
        ("me", "10.0.0.1", 30001, "allow"),
        // There it is another that comes back.
        ("me", "10.0.0.2", 30001, "deny"),
        ("both", "10.96.0.2", 80, "mixed"),
        ("both", "10.0.0.1", 30002, "mixed"),
        ("both", "10.0.0.2", 30002, "deny"),
        ("local", "10.96.0.3", 80, "allow"),
        ("local", "10.0.0.1", 30003, "mixed"),
    ] {
        assert_eq!(said(name, address), expected, "{name} {address}: {listed:#}");
        let traced = json(&world, &format!("trace --from web --to {address} --port {port}"));
        let expected = if expected == "allow" { "allow" } else { "deny" };
        assert_eq!(traced["verdict"], expected, "{traced:#}");
    }
    let nobody = json(&world, "trace --from web --to 10.96.0.4 --port 80");
    assert_eq!(nobody["verdict"], "deny");
    let local = json(&world, "trace --from web --to 10.96.0.3 --port 80");
    let note = "only backends on node-1 are used, since the traffic policy is Local: 1 elsewhere \
                are left out";
    assert_eq!(local["notes"], json!([note]));
}
