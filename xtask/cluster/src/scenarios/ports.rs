//! hostPort, node ports, and pods on their node's network, as clients and as servers.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use super::lab::Lab;
use super::pods::{DENY_ALL, PORT, Pod};
use super::tally::Outcome;
use crate::addresses::NodeAddresses;

const HOST_PORT: u16 = 31_880;
const NODE_PORT: u16 = 31_881;
const ON_HOST: u16 = 18_080;

/// The server on the first node may be reached from the second node's address and from pods
/// labelled `friend`; from the third party's address, which is the control plane's, it may not.
pub(super) fn run(lab: &mut Lab) -> Result<Outcome> {
    let space = lab.space("ports")?;
    let (first, second) = (NodeAddresses(0).node().0, NodeAddresses(1).node().0);
    let nodes: Vec<&str> =
        lab.cluster.nodes().iter().map(super::super::machine::Machine::name).collect();
    // Towards pods it speaks from its end of the VXLAN, where there is one.
    let vxlan = NodeAddresses(1).vxlan().0;
    space.apply(&policies(&second.to_string(), &vxlan.to_string()))?;
    space.apply(&node_port_service())?;
    let server = Pod::new("server")
        .serve()
        .on(nodes[0])
        .probed()
        .container(&format!("ports: [{{containerPort: {PORT}, hostPort: {HOST_PORT}}}]"));
    let on_host = Pod::new("onhost")
        .on(nodes[1])
        .field("hostNetwork: true")
        .argument(&format!("--serve={ON_HOST}"))
        .argument("--http=18081");
    space.apply(&format!("{}{}", server.pod("server"), on_host.pod("onhost")))?;
    let server_ip = space.ready("app=server", 1)?[0].ip.clone();
    space.ready("app=onhost", 1)?;
    let direct = format!("{server_ip}:{PORT}");
    let host_port = format!("{first}:{HOST_PORT}");
    let node_port = format!("{first}:{NODE_PORT}");
    // On the second node's network, with the label of a friend, which must not matter: what is
    // allowed to it, is allowed by its address.
    let from_node = Pod::new("hostclient")
        .on(nodes[1])
        .field("hostNetwork: true")
        .argument("--http=18082")
        .argument("--hold")
        .flow("ok-direct", "tcp-connect", &direct, 10.0)
        .flow("ok-host-port", "tcp-connect", &host_port, 10.0)
        .flow("ok-node-port", "tcp-connect", &node_port, 10.0);
    let to_host = format!("{second}:{ON_HOST}");
    let caller = Pod::new("caller").on(nodes[0]).argument("--hold").probed();
    // A caller may talk to the second node by its address, and to nobody else.
    let caller = caller
        .flow("ok-on-host", "tcp-connect", &to_host, 10.0)
        .flow("no-direct", "tcp-connect", &direct, 10.0)
        .flow("no-host-port", "tcp-connect", &host_port, 10.0);
    let spy = Pod::new("spy").on(nodes[1]).argument("--hold").probed();
    let spy = spy.flow("no-direct", "tcp-connect", &direct, 10.0);
    space.apply(&format!(
        "{}{}{}",
        from_node.pod("hostclient"),
        caller.pod("caller"),
        spy.pod("spy")
    ))?;
    space.ready("app in (hostclient,caller,spy)", 3)?;
    lab.settle()?;
    lab.forget_drops();
    for (pod, port) in [("hostclient", "18082"), ("caller", "8081"), ("spy", "8081")] {
        space.kubectl(&["exec", pod, "--", "/traffic", "start", "--http", port])?;
    }
    sleep(Duration::from_secs(10));
    let mut outcome = Outcome::default();
    for (pod, port) in [("hostclient", "18082"), ("caller", "8081"), ("spy", "8081")] {
        let text = space.kubectl(&["exec", pod, "--", "/traffic", "stop", "--http", port])?;
        outcome.sender(&serde_json::from_str(&text)?);
    }
    // From the control plane's machine, which no policy names.
    let program = lab.traffic().to_string_lossy().into_owned();
    for (name, to) in [("no-outside-host-port", &host_port), ("no-outside-direct", &direct)] {
        let script = format!(
            "exec {program} --once --drain 0 --name outside --http 18083 --last-words /nowhere \
             --flow name={name},kind=tcp-connect,to={to},rate=10,count=20,timeout=1500"
        );
        let output =
            crate::process::output(lab.cluster.control().command("sh").args(["-c", &script]))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        outcome.sender(&serde_json::from_str(text.trim())?);
    }
    outcome.server(&space.stats("server")?, &["node-2"]);
    lab.judge_drops(&mut outcome, "ports", &[("hostclient", "server"), ("caller", "onhost")]);
    Ok(outcome)
}

fn policies(second: &str, vxlan: &str) -> String {
    format!(
        "{DENY_ALL}\n---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: server-from-second-node}}
spec:
  podSelector: {{matchLabels: {{app: server}}}}
  policyTypes: [Ingress]
  ingress:
    - from:
        - ipBlock: {{cidr: {second}/32}}
        - ipBlock: {{cidr: {vxlan}/32}}
        - podSelector: {{matchLabels: {{app: nobody}}}}
      ports: [{{port: {PORT}}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: caller-to-second-node}}
spec:
  podSelector: {{matchLabels: {{app: caller}}}}
  policyTypes: [Egress]
  egress:
    - to: [{{ipBlock: {{cidr: {second}/32}}}}]
"
    )
}

/// With the client's own address kept, so that policies can tell clients apart.
fn node_port_service() -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: server}}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  selector: {{app: server}}
  ports: [{{port: {PORT}, nodePort: {NODE_PORT}}}]
"
    )
}
