//! What an agent takes: memory and processor time, at rest and while pods come and go.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::lab::Lab;
use super::pods::{DENY_ALL, Pod, allow};
use super::tally::Outcome;

/// Processor time in seconds and resident memory in MiB of a process.
fn usage(pid: u32) -> Result<(f64, f64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat has no name")?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.and_then(|line| line.split_ascii_whitespace().next());
    let kibibytes: f64 = resident.context("/proc/PID/status has no VmRSS")?.parse()?;
    // The kernel tells ticks of a hundredth of a second to everybody.
    Ok((ticks as f64 / 100.0, kibibytes / 1024.0))
}

fn measure(
    lab: &Lab,
    outcome: &mut Outcome,
    what: &str,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let agents = lab.agents()?;
    let before: Vec<(f64, f64)> = agents.iter().map(|&pid| usage(pid)).collect::<Result<_>>()?;
    let started = Instant::now();
    work()?;
    let took = started.elapsed().as_secs_f64();
    for (index, (&pid, before)) in agents.iter().zip(before).enumerate() {
        let after = usage(pid)?;
        outcome.figure(format!(
            "agent of {} {what}: {:.1} MiB resident, {:.2} % of a processor over {took:.0} s",
            lab.cluster.node(index).name(),
            after.1,
            100.0 * (after.0 - before.0) / took
        ));
    }
    Ok(())
}

pub(super) fn run(lab: &mut Lab) -> Result<Outcome> {
    let space = lab.space("footprint")?;
    let mut outcome = Outcome::default();
    measure(lab, &mut outcome, "at rest", || {
        sleep(Duration::from_secs(30));
        Ok(())
    })?;
    space.apply(&format!("{DENY_ALL}{}", allow("client", "server")))?;
    let server = Pod::new("server").serve().argument("--drain=0").deployment("server", 0);
    space.apply(&server)?;
    measure(lab, &mut outcome, "while pods come and go", || {
        for _ in 0..4 {
            for replicas in ["--replicas=12", "--replicas=0"] {
                space.kubectl(&["scale", "deployment/server", replicas])?;
                sleep(Duration::from_secs(8));
            }
        }
        Ok(())
    })?;
    outcome.allowed = 1;
    Ok(outcome)
}
