//! Services as `netpol services`, `trace` and `flows` tell them, with an agent and without. Needs
//! root and the eBPF object.
#![expect(clippy::unwrap_used, reason = "tests")]

mod world;

use std::net::{TcpStream, UdpSocket};

use serde_json::{Value, json};

use world::{World, eventually};

const NODE: &str = "10.0.0.1";
const CLIENT: &str = "podSelector: {matchLabels: {role: client}}, policyTypes: [Egress], egress: [\
    {to: [{podSelector: {matchLabels: {tier: new}}}], ports: [{port: 15432}]}]";

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
    world.policy(
        "db",
        "podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: \
         {role: client}}}]}]",
    );
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
SERVICE                 ADDRESS                    PROTOCOL  BACKENDS                                                   VERDICT
default/db              10.96.0.1:5432             TCP       default/db 10.244.0.3:15432, default/far 10.244.1.3:15432  mixed
default/db (node port)  10.0.0.1:30432 and 1 more  TCP       default/db 10.244.0.3:15432, default/far 10.244.1.3:15432  mixed
default/empty           10.96.0.3:80               TCP       none                                                       empty
default/new             10.96.0.2:80               TCP       default/db 10.244.0.3:15432                                allow
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

    traces(&world);
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

fn traces(world: &World) {
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
    let by_node_port = json(world, "trace --from client --to 10.0.0.2 --port 30432");
    assert_eq!(by_node_port["backends"], mixed["backends"]);
    assert_eq!(by_node_port["to"]["name"], "service default/db");

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
