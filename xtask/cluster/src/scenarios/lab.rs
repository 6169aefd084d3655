//! The cluster that scenarios run on: netpol, DNS and the traffic image in it, namespaces for
//! scenarios, and what pods and netpol say. Must never leave a scenario's namespace behind.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use netpol_image::Image;
use serde_json::Value;

use super::drops::{Drop as Dropped, End, Monitor};
use super::pods::TRAFFIC_IMAGE;
use super::tally::{Outcome, Stats};
use crate::agent;
use crate::cluster::Cluster;
use crate::dns;
use crate::process::{output, run, wait_for};

/// How long anything may take on a machine that has other things to do.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// What the scenarios are run with.
#[derive(Debug, Clone)]
pub struct Programs {
    /// netpol, for the agents and to look with.
    pub netpol: PathBuf,
    /// The traffic program, static.
    pub traffic: PathBuf,
}

/// A cluster with netpol.
#[derive(Debug)]
pub struct Lab {
    /// The cluster.
    pub cluster: Cluster,
    programs: Programs,
    monitors: Vec<Monitor>,
    /// Names of pods' addresses, for drops of which netpol knows no name.
    names: Mutex<BTreeMap<String, String>>,
}

/// A pod as the API server shows it.
#[derive(Debug, Clone)]
pub struct PodView {
    /// Its name.
    pub name: String,
    /// Where it runs.
    pub node: String,
    /// Its first address.
    pub ip: String,
    /// Everything.
    pub object: Value,
}

impl Lab {
    /// Installs netpol, DNS and the images.
    ///
    /// # Errors
    /// Something is not there or does not become ready.
    pub fn new(cluster: Cluster, programs: Programs) -> Result<Self> {
        let mut lab = Self { cluster, programs, monitors: Vec::new(), names: Mutex::default() };
        lab.cluster.load_image(&lab.traffic_image()?)?;
        dns::install(&lab.cluster)?;
        agent::install(&lab.cluster, &lab.programs.netpol, agent::Plugin::None)?;
        lab.set_plugin(true)?;
        lab.watch()?;
        Ok(lab)
    }

    fn traffic_image(&self) -> Result<PathBuf> {
        let path = self.cluster.directory().join("images/traffic.tar");
        Image::of_program(TRAFFIC_IMAGE, "traffic", &self.programs.traffic).write(&path)?;
        Ok(path)
    }

    /// Puts the CNI plugin on every node, or takes it off.
    ///
    /// # Errors
    /// A node has no network configuration that it understands.
    pub fn set_plugin(&self, is_there: bool) -> Result<()> {
        let verb = if is_there { "install" } else { "uninstall" };
        for index in 0..self.cluster.nodes().len() {
            self.netpol(index, &["cni", verb])?;
        }
        // containerd reads the directory when it changes, and does not say when it has.
        sleep(Duration::from_secs(3));
        Ok(())
    }

    /// Waits until every node's agent is ready.
    ///
    /// # Errors
    /// They do not become ready; the error has what they say.
    pub fn agents_ready(&self) -> Result<()> {
        let status = ["rollout", "status", "ds/netpol", "-n", "netpol", "--timeout=300s"];
        if let Err(error) = self.cluster.kubectl(&status) {
            let pods = self.cluster.kubectl(&["describe", "pods", "-n", "netpol"]);
            bail!("{error:#}\n{}", pods.unwrap_or_default());
        }
        Ok(())
    }

    /// Sees to it that every node's drops are looked at.
    ///
    /// # Errors
    /// A monitor cannot be started.
    pub fn watch(&mut self) -> Result<()> {
        let nodes = self.cluster.nodes();
        for (index, node) in nodes.iter().enumerate() {
            match self.monitors.get(index) {
                Some(monitor) if monitor.is_running() => {}
                Some(_) => self.monitors[index] = Monitor::start(node, &self.programs.netpol)?,
                None => self.monitors.push(Monitor::start(node, &self.programs.netpol)?),
            }
        }
        // It says nothing about when it has begun.
        sleep(Duration::from_secs(2));
        ensure!(self.monitors.iter().all(Monitor::is_running), "netpol monitor ends at once");
        Ok(())
    }

    /// Returns when everything that was changed before is in force on every node.
    ///
    /// # Errors
    /// Not within minutes.
    pub fn settle(&self) -> Result<()> {
        for index in 0..self.cluster.nodes().len() {
            self.wait_for_node(index)?;
        }
        Ok(())
    }

    /// Likewise, on one node.
    ///
    /// # Errors
    /// Not within minutes.
    pub fn wait_for_node(&self, index: usize) -> Result<()> {
        let arguments = ["status", "--wait", "--timeout", "120s", "-o", "json"];
        self.netpol(index, &arguments).map(drop)
    }

    /// The program `netpol` on a node.
    ///
    /// # Errors
    /// It fails.
    pub fn netpol(&self, index: usize, arguments: &[&str]) -> Result<String> {
        run(self.cluster.node(index).command(&self.programs.netpol).args(arguments))
    }

    /// Forgets what was dropped so far.
    pub fn forget_drops(&self) {
        for monitor in &self.monitors {
            drop(monitor.take());
        }
    }

    /// Takes what was dropped since the last call, each with the index of its node.
    pub fn take_drops(&self, outcome: &mut Outcome) -> Vec<(usize, Dropped)> {
        // What the monitors have yet to write.
        sleep(Duration::from_millis(1500));
        let mut drops = Vec::new();
        for (index, monitor) in self.monitors.iter().enumerate() {
            let seen = monitor.take();
            if seen.lost > 0 {
                outcome.problem(format!("{} drops were not shown", seen.lost));
            }
            drops.extend(seen.drops.into_iter().map(|dropped| (index, dropped)));
        }
        outcome.figure(format!("{} drops shown by netpol", drops.len()));
        drops
    }

    /// Judges what was dropped since the last call: a packet between pods or Services of a pair in
    /// `allowed` (prefixes of names within `space`), or its answer, is dropped wrongly.
    pub fn judge_drops(&self, outcome: &mut Outcome, space: &str, allowed: &[(&str, &str)]) {
        let mut others = BTreeMap::<String, u64>::new();
        for (_, dropped) in self.take_drops(outcome) {
            let is_wrong = allowed.iter().any(|&(from, to)| match dropped.is_answer() {
                true => self.is_between(&dropped, space, to, from),
                false => self.is_between(&dropped, space, from, to),
            });
            if is_wrong {
                outcome.wrong_drop(&dropped);
            } else {
                *others.entry(dropped.kind()).or_default() += 1;
            }
        }
        let mut others: Vec<(String, u64)> = others.into_iter().collect();
        others.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        for (kind, count) in others.into_iter().take(6) {
            outcome.figure(format!("{count} times {kind}"));
        }
    }

    /// Whether a packet went from a pod or Service of `space` whose name starts with `from` to one
    /// that starts with `to`; an empty prefix stands for what is no pod of any namespace.
    #[must_use]
    pub fn is_between(&self, dropped: &Dropped, space: &str, from: &str, to: &str) -> bool {
        let names = self.names.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is = |end: &Option<End>, wanted: &str| {
            let Some(end) = end else { return false };
            let name = match end.name() {
                name if name == end.ip => names.get(name).map_or(name, String::as_str),
                name => name,
            };
            match name.split_once('/') {
                Some((namespace, name)) => {
                    !wanted.is_empty() && namespace == space && name.starts_with(wanted)
                }
                None => wanted.is_empty(),
            }
        };
        is(&dropped.source, from) && is(&dropped.destination, to)
    }

    /// The program of the traffic pods, on the host.
    #[must_use]
    pub fn traffic(&self) -> &Path {
        &self.programs.traffic
    }

    /// kubectl with manifests on standard input.
    ///
    /// # Errors
    /// It fails; the error has what it said.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = self.cluster.kubectl_command()?;
        with_input(command.args(arguments), input)
    }

    /// A namespace for a scenario.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn space(&self, name: &str) -> Result<Space<'_>> {
        self.cluster.kubectl(&["create", "namespace", name])?;
        Ok(Space { lab: self, name: name.to_owned() })
    }

    /// A namespace that is there already.
    #[must_use]
    pub fn existing(&self, name: &str) -> Space<'_> {
        Space { lab: self, name: name.to_owned() }
    }

    /// The agents' processes: of each node, the number on this host.
    ///
    /// # Errors
    /// A node has none.
    pub fn agents(&self) -> Result<Vec<u32>> {
        self.cluster.nodes().iter().map(|node| agent_of(node.pid())).collect()
    }
}

/// The agent in the network namespace of the process `machine`.
fn agent_of(machine: u32) -> Result<u32> {
    let network = std::fs::read_link(format!("/proc/{machine}/ns/net"))?;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let is_here =
            std::fs::read_link(format!("/proc/{pid}/ns/net")).ok() == Some(network.clone());
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        let is_netpol = words.next().is_some_and(|program| program.ends_with(b"netpol"));
        if is_here && is_netpol && words.next() == Some(b"agent".as_slice()) {
            return Ok(pid);
        }
    }
    bail!("no agent runs beside process {machine}")
}

/// Runs a program that reads `input`.
fn with_input(command: &mut Command, input: &str) -> Result<String> {
    use std::io::Write as _;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("start kubectl")?;
    child.stdin.take().context("kubectl has no input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("kubectl: {}\n{input}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A scenario's namespace, deleted when it is dropped.
#[derive(Debug)]
pub struct Space<'lab> {
    /// The cluster.
    pub lab: &'lab Lab,
    /// Its name.
    pub name: String,
}

impl Space<'_> {
    /// Applies manifests here.
    ///
    /// # Errors
    /// The API server refuses them.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        self.lab.kubectl_with(&["apply", "-n", &self.name, "-f", "-"], manifests).map(drop)
    }

    /// kubectl here.
    ///
    /// # Errors
    /// It fails.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.lab.cluster.kubectl(&[&["-n", &self.name], arguments].concat())
    }

    /// Waits until `count` pods with these labels are ready, and returns them.
    ///
    /// # Errors
    /// Not within minutes; the error describes them.
    pub fn ready(&self, selector: &str, count: usize) -> Result<Vec<PodView>> {
        let mut found = Vec::new();
        let waited = wait_for(&format!("{count} ready pods {selector}"), PATIENCE, || {
            found = self.pods(selector)?;
            found.retain(is_ready);
            Ok(found.len() == count)
        });
        if let Err(error) = waited {
            let pods = self.kubectl(&["describe", "pods", "-l", selector]).unwrap_or_default();
            bail!("{error:#}\n{pods}");
        }
        Ok(found)
    }

    /// The pods with these labels.
    ///
    /// # Errors
    /// kubectl fails.
    pub fn pods(&self, selector: &str) -> Result<Vec<PodView>> {
        let text = self.kubectl(&["get", "pods", "-l", selector, "-o", "json"])?;
        let list: Value = serde_json::from_str(&text)?;
        let pods: Vec<PodView> = list["items"].as_array().into_iter().flatten().map(view).collect();
        let mut names = self.lab.names.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for pod in pods.iter().filter(|pod| !pod.ip.is_empty()) {
            for ip in pod.object["status"]["podIPs"].as_array().into_iter().flatten() {
                let ip = ip["ip"].as_str().unwrap_or_default().to_owned();
                names.insert(ip, format!("{}/{}", self.name, pod.name));
            }
        }
        Ok(pods)
    }

    /// What a pod has counted so far.
    ///
    /// # Errors
    /// It does not answer.
    pub fn stats(&self, pod: &str) -> Result<Stats> {
        self.ask(pod, "stats")
    }

    /// Lets the flows of all held pods with these labels begin.
    ///
    /// # Errors
    /// One does not answer.
    pub fn start_all(&self, selector: &str) -> Result<()> {
        for pod in self.pods(selector)? {
            self.ask(&pod.name, "start")?;
        }
        Ok(())
    }

    /// Leaves the namespace to whoever opens it with [`Lab::existing`].
    pub fn keep(self) {
        std::mem::forget(self);
    }

    /// Ends a pod's flows, and returns what it has counted.
    ///
    /// # Errors
    /// It does not answer.
    pub fn stop(&self, pod: &str) -> Result<Stats> {
        self.ask(pod, "stop")
    }

    fn ask(&self, pod: &str, what: &str) -> Result<Stats> {
        let text = self.kubectl(&["exec", pod, "--", "/traffic", what])?;
        serde_json::from_str(&text).with_context(|| format!("understand what {pod} says: {text}"))
    }

    /// Ends the flows of all pods with these labels, adds their counters, and returns them.
    ///
    /// # Errors
    /// One does not answer.
    pub fn stop_all(&self, selector: &str, outcome: &mut Outcome) -> Result<Vec<Stats>> {
        let pods = self.pods(selector)?;
        let stats: Result<Vec<Stats>> = std::thread::scope(|scope| {
            let asked: Vec<_> =
                pods.iter().map(|pod| scope.spawn(|| self.stop(&pod.name))).collect();
            asked
                .into_iter()
                .map(|thread| {
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        });
        let stats = stats?;
        ensure!(!stats.is_empty(), "there is no pod {selector}");
        stats.iter().for_each(|stats| outcome.sender(stats));
        Ok(stats)
    }

    /// The virtual address of a Service.
    ///
    /// # Errors
    /// There is no such Service.
    pub fn cluster_ip(&self, service: &str) -> Result<String> {
        self.kubectl(&["get", "service", service, "-o", "jsonpath={.spec.clusterIP}"])
    }
}

impl Drop for Space<'_> {
    fn drop(&mut self) {
        let arguments = ["delete", "namespace", &self.name, "--wait=false"];
        let command = self.lab.cluster.kubectl_command();
        // The cluster goes soon, and with it what remains.
        let _ = command.and_then(|mut command| output(command.args(arguments)));
        let everything = ["delete", "pods", "--all", "-n", &self.name, "--grace-period=1"];
        let command = self.lab.cluster.kubectl_command();
        let _ = command.and_then(|mut command| output(command.args(everything)));
    }
}

fn view(object: &Value) -> PodView {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    PodView {
        name: text(&object["metadata"]["name"]),
        node: text(&object["spec"]["nodeName"]),
        ip: text(&object["status"]["podIP"]),
        object: object.clone(),
    }
}

/// Whether it is ready and to stay.
#[must_use]
pub fn is_ready(pod: &PodView) -> bool {
    let conditions = pod.object["status"]["conditions"].as_array();
    let is_ready =
        |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
    pod.object["metadata"]["deletionTimestamp"].is_null()
        && conditions.into_iter().flatten().any(is_ready)
}
