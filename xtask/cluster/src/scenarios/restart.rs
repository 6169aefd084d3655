//! A node that loses power and boots: its pods come back with other addresses, and isolated.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::lab::Lab;
use super::pods::{DENY_ALL, PORT, Pod, allow, service};
use super::tally::Outcome;

/// The pods on the node that restarts send from their first moment on to a server on the other node
/// that they may not talk to; and pods there send to them all the time.
pub(super) fn run(lab: &mut Lab) -> Result<Outcome> {
    let space = lab.space("restart")?;
    let nodes: Vec<String> =
        lab.cluster.nodes().iter().map(|node| node.name().to_owned()).collect();
    space.apply(&format!(
        "{DENY_ALL}{}{}",
        allow("client", "server"),
        service("server", "server", "publishNotReadyAddresses: true")
    ))?;
    // Not isolated, so that what arrives there says that it left where it should not.
    let open = "\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: open}\n\
                spec: {podSelector: {matchLabels: {app: forbidden}}, ingress: [{}], egress: [{}]}\n";
    space.apply(open)?;
    space.apply(&Pod::new("forbidden").on(&nodes[0]).serve().probed().pod("forbidden"))?;
    let forbidden = format!("{}:{PORT}", space.ready("app=forbidden", 1)?[0].ip);
    let to = format!("{}:{PORT}", space.cluster_ip("server")?);
    lab.settle()?;
    let server = Pod::new("server").on(&nodes[1]).serve().probed();
    let server = server.flow("no-out-tcp", "tcp-connect", &forbidden, 50.0).flow(
        "no-out-udp",
        "udp-connect",
        &forbidden,
        50.0,
    );
    let client = Pod::new("client").on(&nodes[0]).argument("--hold").probed();
    let client = client.flow("ok-tcp", "tcp-connect", &to, 20.0);
    let spy = Pod::new("spy").on(&nodes[0]).argument("--hold").probed();
    let spy = spy.flow("no-tcp", "tcp-connect", &to, 50.0).flow("no-udp", "udp-connect", &to, 50.0);
    let servers: String = (0..3).map(|index| server.pod(&format!("server-{index}"))).collect();
    space.apply(&format!("{servers}{}{}", client.pod("client"), spy.pod("spy")))?;
    let before = space.ready("app=server", 3)?;
    space.ready("app in (client,spy)", 2)?;
    lab.settle()?;
    lab.forget_drops();
    space.start_all("app=spy")?;
    space.keep();
    let started = Instant::now();
    lab.cluster.restart_node(1)?;
    let booted = started.elapsed();
    let space = lab.existing("restart");
    let mut outcome = Outcome::default();
    // The node's controller may believe for a while that they still run as before.
    sleep(Duration::from_secs(10));
    lab.agents_ready()?;
    space.ready("app=server", 3)?;
    let took = started.elapsed();
    outcome.figure(format!(
        "node ready after {:.0} s, its pods after {:.0} s",
        booted.as_secs_f64(),
        took.as_secs_f64()
    ));
    lab.settle()?;
    space.start_all("app=client")?;
    sleep(Duration::from_secs(5));
    let after = space.pods("app=server")?;
    if after.iter().all(|pod| before.iter().any(|old| old.ip == pod.ip)) {
        outcome.figure("the pods came back with the addresses of before");
    }
    space.stop_all("app in (client,spy)", &mut outcome)?;
    for pod in &after {
        let stats = space.stop(&pod.name)?;
        outcome.sender(&stats);
        outcome.server(&stats, &["client"]);
    }
    outcome.server(&space.stats("forbidden")?, &[]);
    drop(space);
    lab.watch()?;
    Ok(outcome)
}
