//! One node in namespaces of its own: its pods, and the agent as a process. Everything goes with
//! the [`Lab`], and with this process however it ends. Must never touch what others can see.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use netpol_api::client;
use netpol_api::state::Status;
use netpol_datapath::Pins;
use netpol_isolation::netns::{self, Netns};
use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};

use super::process::Process;
use super::synthetic::{LOCAL_NODE, node_address};

/// A hang guard: nothing is expected to take so long.
const PATIENCE: Duration = Duration::from_secs(300);
/// Pause between two looks at whether the agent is ready.
const LOOK: Duration = Duration::from_millis(5);
/// Where the agent serves metrics, in its own network namespace.
const METRICS: &str = "127.0.0.1:9642";
/// Where pins go: nobody else's are there while a subject is measured.
const BPFFS: &str = "/sys/fs/bpf";
/// Lines of the agent's log that an error ends with.
const LOG_LINES: usize = 15;

/// A node with pods, without an agent.
pub struct Lab {
    dir: tempfile::TempDir,
    node: Netns,
    program: PathBuf,
    names: Vec<String>,
    n_agents: usize,
}

impl Lab {
    /// The node with pods at these addresses, and with a host outside at the last one.
    pub fn set_up(program: PathBuf, pods: &[Ipv4Addr], outside: Ipv4Addr) -> Result<Self> {
        let prefix = format!("netpol-bench-{}-", std::process::id());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir();
        let dir = dir.context("make a temporary directory")?;
        let node = Netns::create_anonymous().context("make a network namespace")?;
        let mut lab = Self { dir, node, program, names: Vec::new(), n_agents: 0 };
        lab.wire(pods.iter().chain([&outside]))?;
        Ok(lab)
    }

    /// The node's network namespace.
    pub fn node(&self) -> &Netns {
        &self.node
    }

    fn netns_dir(&self) -> PathBuf {
        self.dir.path().join("netns")
    }

    /// The namespace of the pod at that address.
    pub fn pod(&self, address: Ipv4Addr) -> Result<Netns> {
        Ok(Netns::open(self.netns_dir().join(address.to_string()))?)
    }

    /// Takes the agent's programs off the interface of the first pod, as somebody else might: its
    /// links, or the qdisc with its filters.
    pub fn take_off(&self, agent: &Agent) -> Result<()> {
        if agent.attach == "clsact" {
            let output = self.node.run(|| {
                Command::new("tc").args(["qdisc", "del", "dev", "v0", "clsact"]).output()
            })?;
            let output = output.context("run `tc`: install the package iproute2")?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "`tc` failed: {}", said.trim());
            return Ok(());
        }
        let index = self.node.run(|| {
            let any = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
            name_to_index(&any, "v0")
        })??;
        let prefix = format!("{index}-");
        let mut n_links = 0;
        for entry in
            fs::read_dir(Pins::new(&agent.bpffs).links()).context("list the agent's links")?
        {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                fs::remove_file(entry.path())?;
                n_links += 1;
            }
        }
        ensure!(n_links > 0, "no program is linked to v0");
        Ok(())
    }

    /// A route and a veth for each address, as CNI plugins that route do it.
    fn wire<'a>(&mut self, addresses: impl Iterator<Item = &'a Ipv4Addr>) -> Result<()> {
        let gateway = node_address(0);
        let mut lines =
            vec!["link set lo up".to_owned(), format!("address add {gateway}/32 dev lo")];
        for (index, address) in addresses.enumerate() {
            let name = address.to_string();
            let pod = Netns::create(self.netns_dir(), &name)?;
            self.names.push(name.clone());
            let file = self.netns_dir().join(&name);
            let file = file.display();
            ip(
                &self.node,
                &[
                    format!("link add v{index} type veth peer name eth0 netns {file}"),
                    format!("link set v{index} up"),
                    format!("address add 169.254.1.1/32 dev v{index}"),
                ],
            )?;
            lines.push(format!("route add {address}/32 dev v{index} src {gateway}"));
            ip(
                &pod,
                &[
                    "link set lo up".to_owned(),
                    "link set eth0 up".to_owned(),
                    format!("address add {address}/32 dev eth0"),
                    "route add 169.254.1.1 dev eth0".to_owned(),
                    format!("route add default via 169.254.1.1 src {address}"),
                ],
            )?;
        }
        ip(&self.node, &lines)?;
        self.node.run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1"))??;
        Ok(())
    }

    /// Starts an agent that reads from the API server of this kubeconfig.
    pub fn start(&mut self, kubeconfig: &str) -> Result<Agent> {
        let config = self.dir.path().join("kubeconfig");
        fs::write(&config, kubeconfig)?;
        self.start_with("--kubeconfig", &config)
    }

    /// Starts an agent that reads its objects from what this flag names. It begins with nothing of
    /// a former one.
    pub fn start_with(&mut self, flag: &str, objects: &Path) -> Result<Agent> {
        self.start_attached("auto", flag, objects)
    }

    /// The same, with programs attached that way.
    pub fn start_attached(&mut self, attach: &str, flag: &str, objects: &Path) -> Result<Agent> {
        self.n_agents += 1;
        let name = format!("agent-{}", self.n_agents);
        let run_dir = self.dir.path().join(&name);
        fs::create_dir_all(&run_dir)?;
        let bpffs = format!("netpol-bench-{}-{name}", std::process::id());
        let bpffs = Path::new(BPFFS).join(bpffs);
        let mut arguments = vec!["agent".to_owned(), "--node-name".into(), LOCAL_NODE.into()];
        // What a namespace costs is measured, not how much of it is left out.
        arguments.extend(["--max-namespace-memory".to_owned(), "64Gi".to_owned()]);
        for (flag, path) in [
            (flag, objects),
            ("--bpffs", &bpffs),
            ("--run-dir", &run_dir),
            ("--netns-dir", &self.netns_dir()),
        ] {
            arguments.extend([flag.to_owned(), path.to_string_lossy().into_owned()]);
        }
        for (flag, value) in [("--metrics-address", METRICS), ("--attach", attach)] {
            arguments.extend([flag.to_owned(), value.to_owned()]);
        }
        let log = run_dir.join("log");
        let node = self.node.run(Netns::current)??;
        let mut agent = Agent::start(node, &self.program, arguments, run_dir, bpffs, log)?;
        agent.attach = attach.to_owned();
        Ok(agent)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = netns::delete(self.netns_dir(), name);
        }
    }
}

/// Runs lines of `ip` in a namespace.
fn ip(netns: &Netns, lines: &[String]) -> Result<()> {
    let run = || -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("run `ip`: install the package iproute2")?;
        let mut input = child.stdin.take().context("invariant: standard input is a pipe")?;
        input.write_all((lines.join("\n") + "\n").as_bytes())?;
        drop(input);
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`ip` failed: {}", said.trim());
        Ok(())
    };
    netns.run(run)?
}

/// A running agent. Killed, and what it put in force taken away, when dropped.
pub struct Agent {
    node: Netns,
    program: PathBuf,
    process: Process,
    run_dir: PathBuf,
    bpffs: PathBuf,
    attach: String,
    log: PathBuf,
    begun: Instant,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// How an agent came to be ready.
#[derive(Debug, Clone, Copy)]
pub struct FirstSync {
    /// From its start.
    pub elapsed: Duration,
    /// Processor time until then.
    pub processor: Duration,
    /// Most memory that it had until then, in bytes.
    pub peak: u64,
    /// From the last object read to everything in force, as it says itself.
    pub in_force: Duration,
}

impl Agent {
    fn start(
        node: Netns,
        program: &Path,
        arguments: Vec<String>,
        run_dir: PathBuf,
        bpffs: PathBuf,
        log: PathBuf,
    ) -> Result<Self> {
        let output = File::create(&log)?;
        let (started, pid) = mpsc::channel();
        let (stop, stopped) = mpsc::channel();
        let begun = Instant::now();
        let command = {
            // The program asks the kernel to be killed with the thread that starts it.
            let mut command = Command::new(program);
            command.args(["playground", "--child-of", &std::process::id().to_string(), "--"]);
            command.args(arguments).env("RUST_LOG", "info").env("NO_COLOR", "1");
            // As the DaemonSet does, see deploy/base/daemonset.yaml.
            command.env("MALLOC_TRIM_THRESHOLD_", "131072");
            command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
            command
        };
        let thread = node.spawn("agent", move || keep(command, &started, &stopped))?;
        let pid = pid.recv().context("invariant: the thread says how it went")?;
        let pid = pid.with_context(|| format!("start {}", program.display()))?;
        Ok(Self {
            node,
            program: program.to_owned(),
            process: Process::new(pid),
            run_dir,
            bpffs,
            attach: String::new(),
            log,
            begun,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Waits until everything is in force, for so many endpoints.
    pub fn wait_ready(&self, n_endpoints: usize) -> Result<FirstSync> {
        loop {
            let processor = self.process.processor_time();
            let peak = self.process.memory().map(|memory| memory.peak);
            let (Ok(processor), Ok(peak)) = (processor, peak) else {
                bail!("the agent has ended:\n{}", self.log_tail());
            };
            if let Some(status) = client::status(&self.run_dir).ok().flatten() {
                let has_all = status.datapath.endpoints == n_endpoints;
                if status.ready && has_all {
                    return self.first_sync(&status, processor, peak);
                }
            }
            let waited = self.begun.elapsed();
            ensure!(waited < PATIENCE, "the agent is not ready:\n{}", self.log_tail());
            std::thread::sleep(LOOK);
        }
    }

    fn first_sync(&self, status: &Status, processor: Duration, peak: u64) -> Result<FirstSync> {
        let elapsed = self.begun.elapsed();
        check(status)?;
        let in_force = self.logged_milliseconds()?;
        Ok(FirstSync { elapsed, processor, peak, in_force })
    }

    /// What it says that putting everything in force took.
    fn logged_milliseconds(&self) -> Result<Duration> {
        let log = fs::read_to_string(&self.log)?;
        let line = log.lines().find(|line| line.contains("synced: all policies"));
        let number = line.and_then(|line| {
            let (_, rest) = line.split_once("milliseconds=")?;
            rest.split_whitespace().next()?.parse().ok()
        });
        let number = number.with_context(|| format!("the agent's log does not say:\n{log}"))?;
        Ok(Duration::from_millis(number))
    }

    /// What of the source it says that it cannot use, and of the datapath that it cannot do.
    pub fn check(&self) -> Result<()> {
        let status = client::status(&self.run_dir)?;
        let status =
            status.with_context(|| format!("the agent has ended:\n{}", self.log_tail()))?;
        check(&status)
    }

    /// The value of a metric, with its labels as it is written.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let get = || -> std::io::Result<String> {
            let mut socket = TcpStream::connect(METRICS)?;
            socket.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
            let mut answer = String::new();
            socket.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = self.node.run(get)?.context("read the agent's metrics")?;
        let value = answer.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.with_context(|| format!("the agent has no metric {name}"))
    }

    fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

fn check(status: &Status) -> Result<()> {
    match status.source.errors.iter().chain(&status.datapath.errors).next() {
        Some(error) => bail!("the agent complains of {}: {}", error.object, error.message),
        None => Ok(()),
    }
}

/// Runs the agent until it is to stop.
fn keep(
    mut command: Command,
    started: &mpsc::Sender<std::io::Result<u32>>,
    stop: &mpsc::Receiver<()>,
) {
    match command.spawn() {
        Ok(mut child) => {
            // Who started us waits for the answer, and stops us by going away.
            let _ = started.send(Ok(child.id()));
            let _ = stop.recv();
            let _ = child.kill();
            let _ = child.wait();
        }
        Err(error) => drop(started.send(Err(error))),
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let clean_up = || {
            let mut command = Command::new(&self.program);
            command.arg("cleanup").arg("--bpffs").arg(&self.bpffs);
            command.stdout(Stdio::null()).stderr(Stdio::null()).status()
        };
        // What it leaves goes with the namespaces at the latest.
        let _ = self.node.run(clean_up);
    }
}
