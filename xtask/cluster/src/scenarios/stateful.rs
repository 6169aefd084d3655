//! A StatefulSet: names that stay, addresses that change.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::lab::Lab;
use super::pods::{ALLOW_DNS, DENY_ALL, PORT, Pod, allow};
use super::tally::Outcome;

pub(super) fn run(lab: &mut Lab) -> Result<Outcome> {
    let space = lab.space("stateful")?;
    space.apply(&format!("{DENY_ALL}---{ALLOW_DNS}{}", allow("client", "db")))?;
    space.apply(&Pod::new("db").serve().argument("--drain=0").probed().stateful_set("db", 2))?;
    let before = space.ready("app=db", 2)?;
    let mut outcome = Outcome::default();
    for round in 0..3 {
        let (clients, count) = clients(lab, round);
        space.apply(&clients)?;
        let selector = format!("app in (client-{round},spy-{round})");
        let selector = selector.replace(&format!("-{round}"), "");
        space.ready(&selector, count)?;
        lab.settle()?;
        lab.forget_drops();
        space.start_all(&selector)?;
        sleep(Duration::from_secs(5));
        space.stop_all(&selector, &mut outcome)?;
        for pod in space.ready("app=db", 2)? {
            outcome.server(&space.stats(&pod.name)?, &["client"]);
        }
        lab.judge_drops(&mut outcome, "stateful", &[("client", "db")]);
        space.kubectl(&["delete", "pod", "-l", &selector, "--grace-period=1"])?;
        // Another pod of the same name, with another address.
        space.kubectl(&["delete", "pod", "-l", "app=db", "--grace-period=1"])?;
        space.ready("app=db", 2)?;
        // The resolver's view is at most five seconds old.
        sleep(Duration::from_secs(6));
    }
    let after = space.ready("app=db", 2)?;
    ensure!(
        before.iter().all(|pod| after.iter().all(|other| other.ip != pod.ip)),
        "the pods kept their addresses, so nothing was tried"
    );
    Ok(outcome)
}

fn clients(lab: &Lab, round: u32) -> (String, usize) {
    let mut text = String::new();
    for node in lab.cluster.nodes() {
        for (app, prefix) in [("client", "ok"), ("spy", "no")] {
            let mut pod = Pod::new(app).on(node.name()).argument("--hold").probed();
            for index in 0..2 {
                let to = format!("db-{index}.db.stateful.svc.cluster.local.:{PORT}");
                for kind in ["tcp-connect", "udp-connect"] {
                    pod = pod.flow(&format!("{prefix}-{index}-{kind}"), kind, &to, 10.0);
                }
            }
            text += &pod.pod(&format!("{app}-{}-{round}", node.name()));
        }
    }
    (text, 2 * lab.cluster.nodes().len())
}
