//! Three tiers under default deny, with DNS allowed, that find each other by name.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use super::lab::Lab;
use super::pods::{ALLOW_DNS, DENY_ALL, PORT, Pod, allow, service};
use super::tally::Outcome;

const TIERS: [&str; 3] = ["web", "api", "db"];
/// Who may talk to whom.
const ALLOWED: [(&str, &str); 3] = [("client", "web"), ("web", "api"), ("api", "db")];
const KINDS: [&str; 4] = ["tcp-connect", "udp-connect", "tcp-stream", "udp-stream"];

pub(super) fn run(lab: &mut Lab) -> Result<Outcome> {
    let space = lab.space("tiers")?;
    let mut manifests = format!("{DENY_ALL}---{ALLOW_DNS}");
    for (from, to) in ALLOWED {
        manifests += &allow(from, to);
    }
    for tier in TIERS {
        manifests += &service(tier, tier, "ipFamilyPolicy: PreferDualStack");
        manifests += &service(&format!("{tier}-six"), tier, "ipFamilies: [IPv6]");
    }
    let nodes: Vec<&str> =
        lab.cluster.nodes().iter().map(super::super::machine::Machine::name).collect();
    let mut count = 0;
    for tier in ["client", "web", "api", "db"] {
        for (index, node) in nodes.iter().enumerate() {
            manifests += &pod(tier, index).on(node).pod(&format!("{tier}-{index}"));
            count += 1;
        }
    }
    space.apply(&manifests)?;
    space.ready("app", count)?;
    lab.settle()?;
    lab.forget_drops();
    space.start_all("app")?;
    sleep(Duration::from_secs(15));
    let mut outcome = Outcome::default();
    for stats in space.stop_all("app", &mut outcome)? {
        let senders: Vec<&str> = ALLOWED
            .iter()
            .filter(|(_, to)| stats.name.starts_with(to))
            .map(|(from, _)| *from)
            .collect();
        outcome.server(&stats, &senders);
    }
    lab.judge_drops(&mut outcome, "tiers", &ALLOWED);
    Ok(outcome)
}

/// Every second pod of a tier asks its resolver over TCP.
fn pod(tier: &str, index: usize) -> Pod {
    let mut pod = Pod::new(tier).serve().argument("--hold").probed();
    if index % 2 == 1 {
        pod = pod.field("dnsConfig: {options: [{name: use-vc}]}");
    }
    for to in TIERS.iter().filter(|to| **to != tier) {
        let is_allowed = ALLOWED.contains(&(tier, to));
        let prefix = if is_allowed { "ok" } else { "no" };
        for family in ["", "-six"] {
            let name = format!("{to}{family}.tiers.svc.cluster.local.:{PORT}");
            // What is denied is tried in fewer ways, but no less.
            for kind in KINDS.iter().take(if is_allowed { 4 } else { 2 }) {
                // Each connection asks the DNS, whose processor time is not what is tried here.
                let rate = if kind.ends_with("stream") { 10.0 } else { 1.0 };
                let timeout = if is_allowed { 20_000 } else { 3_000 };
                let flow = format!("{prefix}-{to}{family}-{kind}");
                pod = pod.argument(&format!(
                    "--flow=name={flow},kind={kind},to={name},rate={rate},timeout={timeout}"
                ));
            }
        }
    }
    pod.argument(&format!("--flow=name=ok-dns,kind=resolve,to=web:{PORT},rate=2,timeout=20000"))
}
