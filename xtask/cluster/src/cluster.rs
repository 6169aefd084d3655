//! A whole cluster: brought up, opened, taken down. Its state is one directory, and everything of it
//! that runs is in its machines, so that taking it down is ending those and removing the directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use netpol_needs::Need;
use serde::{Deserialize, Serialize};

use crate::addresses::NodeAddresses;
use crate::binaries;
use crate::cgroup;
use crate::control_plane;
use crate::forward;
use crate::images;
use crate::machine::{Life, Machine};
use crate::network::{self, Network};
use crate::node::{self, ProxyMode, Settings};
use crate::pki::{self, Authority};
use crate::process::{output, run, wait_for};
use crate::turns::{self, Turn};

/// What cluster to bring up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Distinguishes it from others on this host.
    pub name: String,
    /// How many nodes.
    pub nodes: u8,
    /// How kube-proxy works.
    pub proxy_mode: ProxyMode,
    /// How pods reach pods on other nodes.
    pub network: Network,
    /// Leave what there is when it cannot be brought up.
    pub keep: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "netpol".to_owned(),
            nodes: 2,
            proxy_mode: ProxyMode::default(),
            network: Network::default(),
            keep: false,
        }
    }
}

/// A cluster. One that was brought up with [`Cluster::up`] is taken down when this is dropped, and
/// ends in any case when this process does.
#[derive(Debug)]
pub struct Cluster {
    directory: PathBuf,
    options: Options,
    pki: Authority,
    control: Machine,
    nodes: Vec<Machine>,
    life: Life,
}

impl Cluster {
    /// Brings up a cluster for this process.
    ///
    /// # Errors
    /// Something does not start: the error has the end of its log. Everything is taken down again.
    pub fn up(options: &Options) -> Result<Self> {
        Self::bring_up(options, Life::Attached)
    }

    /// Brings up a cluster that stays until it is taken down, or what is missing of it.
    ///
    /// # Errors
    /// As [`Cluster::up`].
    pub fn up_detached(options: &Options) -> Result<Self> {
        Self::bring_up(options, Life::Detached)
    }

    fn bring_up(options: &Options, life: Life) -> Result<Self> {
        check(options)?;
        // What is missing is named before anything is begun.
        for &program in binaries::of(Need::Nodes) {
            binaries::find(program)?;
        }
        let archive = images::archive()?;
        let _turn = lock(&options.name)?;
        remove_dead(&options.name)?;
        let directory = directory_of(&options.name)?;
        if let Some(running) = Self::open(&options.name)? {
            ensure!(
                running.options == *options,
                "the cluster {} runs with other options; take it down first",
                options.name
            );
        } else {
            remove(&options.name)?;
        }
        fs::create_dir_all(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
        write_options(&directory, options)?;
        if life == Life::Attached {
            fs::write(directory.join(ATTACHED), "")?;
        }
        let result = Self::start(options, &directory, life, &archive);
        if result.is_err() && !options.keep {
            let explained = result.map_err(|error| error.context(logs_of_ended(&directory)));
            remove(&options.name)?;
            return explained;
        }
        result
    }

    fn start(options: &Options, directory: &Path, life: Life, archive: &Path) -> Result<Self> {
        let mut step = Steps::new();
        let pki = Authority::ensure(&directory.join("pki"))?;
        let home = directory.join("machines/control");
        let control = match Machine::open("control", &home)? {
            Some(machine) => machine,
            None => {
                let machine = Machine::start("control", &home, life)?;
                network::connect_control(&machine)?;
                machine
            }
        };
        let mut cluster = Self {
            directory: directory.to_owned(),
            options: options.clone(),
            pki,
            control,
            nodes: Vec::new(),
            life,
        };
        let nodes = thread::scope(|scope| {
            let cluster = &cluster;
            let nodes: Vec<_> = (0..options.nodes)
                .map(|index| scope.spawn(move || cluster.start_machine(index, archive)))
                .collect();
            control_plane::start(&cluster.control, &cluster.pki)?;
            nodes
                .into_iter()
                .map(|thread| {
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect::<Result<Vec<_>>>()
        });
        cluster.nodes = nodes?;
        step.done("control plane, containerd");
        for index in 0..cluster.nodes.len() {
            cluster.start_kubernetes(index)?;
        }
        cluster.wait_until_ready()?;
        step.done("nodes ready");
        Ok(cluster)
    }

    /// A node's machine with containerd and images, if it does not run.
    fn start_machine(&self, index: u8, archive: &Path) -> Result<Machine> {
        let name = node_name(index);
        let home = self.directory.join("machines").join(&name);
        let addresses = NodeAddresses(index);
        if let Some(machine) = Machine::open(&name, &home)? {
            return Ok(machine);
        }
        let machine = Machine::start(&name, &home, self.life)?;
        let network = self.options.network;
        network::connect_node(&self.control, &machine, addresses, self.options.nodes, network)?;
        let cgroup = self.cgroup(&name);
        cgroup::create(&cgroup)?;
        let proxy_mode = self.options.proxy_mode;
        node::configure(&machine, &self.pki, Settings { addresses, proxy_mode, cgroup: &cgroup })?;
        network::install_plugins(&machine, addresses, network)?;
        node::start_daemon(&machine, "containerd", addresses)?;
        images::import(&machine, archive)?;
        Ok(machine)
    }

    fn start_kubernetes(&self, index: usize) -> Result<()> {
        let addresses = NodeAddresses(u8::try_from(index)?);
        for name in node::DAEMONS {
            node::start_daemon(&self.nodes[index], name, addresses)?;
        }
        Ok(())
    }

    /// The cluster of this name if its machines are running.
    ///
    /// # Errors
    /// Its state cannot be read.
    pub fn open(name: &str) -> Result<Option<Self>> {
        let directory = directory_of(name)?;
        let Some(options) = read_options(&directory)? else {
            return Ok(None);
        };
        let open = |name: &str| Machine::open(name, &directory.join("machines").join(name));
        let Some(control) = open("control")? else {
            return Ok(None);
        };
        let mut nodes = Vec::new();
        for index in 0..options.nodes {
            match open(&node_name(index))? {
                Some(machine) => nodes.push(machine),
                None => return Ok(None),
            }
        }
        let pki = Authority::ensure(&directory.join("pki"))?;
        Ok(Some(Self { directory, options, pki, control, nodes, life: Life::Detached }))
    }

    /// The machine of the control plane: outside the cluster's pods and nodes, but with routes to
    /// all of them.
    #[must_use]
    pub fn control(&self) -> &Machine {
        &self.control
    }

    /// A node; the first has index 0 and is called `node-1`.
    #[must_use]
    pub fn node(&self, index: usize) -> &Machine {
        &self.nodes[index]
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Machine] {
        &self.nodes
    }

    /// As what it was brought up.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The directory of its state and logs.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// kubectl as the administrator, to be given arguments. It runs on the control plane's machine,
    /// which sees the host's files.
    ///
    /// # Errors
    /// There is no kubectl.
    pub fn kubectl_command(&self) -> Result<Command> {
        let mut command = self.control.command(binaries::find(binaries::KUBECTL)?);
        control_plane::kubectl_options(&mut command, &self.pki);
        Ok(command)
    }

    /// A kubeconfig of the administrator that works on this host, outside the cluster's machines.
    /// Only for programs that have the subcommand `forward`: this crate's own.
    ///
    /// # Errors
    /// It cannot be written, or the way from the host does not open.
    pub fn kubeconfig(&self) -> Result<PathBuf> {
        let port = forward::ensure(self)?;
        let text = self.pki.kubeconfig_text("admin", &format!("https://127.0.0.1:{port}"))?;
        let path = self.directory.join("kubeconfig");
        pki::write_secret(&path, &text)?;
        Ok(path)
    }

    /// A kubeconfig of the administrator that works on the cluster's machines.
    #[must_use]
    pub fn inner_kubeconfig(&self) -> PathBuf {
        self.pki.file("admin.kubeconfig")
    }

    /// Runs kubectl and returns what it printed.
    ///
    /// # Errors
    /// It fails; the error has what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        run(self.kubectl_command()?.args(arguments))
    }

    /// Applies manifests.
    ///
    /// # Errors
    /// kubectl fails; the error has what it said.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        let file = self.directory.join(format!("apply-{:?}.yaml", thread::current().id()));
        fs::write(&file, manifests)?;
        let applied = self.kubectl(&["apply", "-f", &file.to_string_lossy()]);
        fs::remove_file(&file)?;
        applied
    }

    /// Gives every node the images of an archive.
    ///
    /// # Errors
    /// containerd refuses it.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        self.nodes.iter().try_for_each(|node| images::import(node, archive))
    }

    /// Restarts a node: everything in it ends at once, its disk stays, and it comes back as after
    /// a boot, which this waits for.
    ///
    /// # Errors
    /// It does not come back.
    pub fn restart_node(&mut self, index: usize) -> Result<()> {
        let number = u8::try_from(index)?;
        let name = node_name(number);
        self.nodes[index].kill()?;
        let before = self.report(&name)?;
        cgroup::remove(&self.cgroup(&name))?;
        let archive = images::archive()?;
        self.nodes[index] = self.start_machine(number, &archive)?;
        self.start_kubernetes(index)?;
        self.wait_for_node(&self.nodes[index], NodeAddresses(number), before.as_deref())
    }

    /// Ends one program of a machine (see `control_plane::DAEMONS` and `node::DAEMONS`), at once.
    ///
    /// # Errors
    /// It does not end.
    pub fn kill_daemon(&self, machine: &str, daemon: &str) -> Result<()> {
        self.machine(machine)?.kill_daemon(daemon)
    }

    /// Starts one program of a machine again.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_daemon(&self, machine: &str, daemon: &str) -> Result<()> {
        if machine == self.control.name() {
            return control_plane::start_daemon(&self.control, &self.pki, daemon);
        }
        let index = self.nodes.iter().position(|node| node.name() == machine);
        let index = index.with_context(|| format!("there is no machine {machine}"))?;
        node::start_daemon(&self.nodes[index], daemon, NodeAddresses(u8::try_from(index)?))
    }

    /// A machine by its name.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn machine(&self, name: &str) -> Result<&Machine> {
        let mut all = std::iter::once(&self.control).chain(&self.nodes);
        all.find(|machine| machine.name() == name).with_context(|| {
            format!("there is no machine {name}; there are control and node-1, node-2, ...")
        })
    }

    /// Waits until the API server and every node is ready, and pods can be made.
    ///
    /// # Errors
    /// Something has ended, or it takes minutes.
    pub fn wait_until_ready(&self) -> Result<()> {
        control_plane::wait_until_ready(&self.control, &self.pki)?;
        for (index, node) in self.nodes.iter().enumerate() {
            let addresses = NodeAddresses(u8::try_from(index)?);
            self.wait_for_node(node, addresses, None)?;
        }
        wait_for("the default service account", Duration::from_secs(60), || {
            let mut command = self.kubectl_command()?;
            Ok(output(command.args(["get", "serviceaccount", "default"]))?.status.success())
        })
    }

    /// Waits until a node has reported that it is ready, later than `before`.
    fn wait_for_node(
        &self,
        node: &Machine,
        addresses: NodeAddresses,
        before: Option<&str>,
    ) -> Result<()> {
        let mut is_known = false;
        let patience = Duration::from_secs(240);
        wait_for(&format!("{} to be ready", node.name()), patience, || {
            for name in node::DAEMONS {
                if node.daemon(name).is_none() {
                    let log = node.log(name);
                    bail!("{name} of {} has ended; its log is {}", node.name(), log.display());
                }
            }
            let Some(report) = self.report(node.name())? else {
                return Ok(false);
            };
            if !is_known {
                self.give_pod_addresses(node, addresses)?;
                is_known = true;
            }
            Ok(report.starts_with("True") && before != Some(&report))
        })
    }

    /// Whether a node says that it is ready, and when it said so. Nothing if it is not known yet.
    fn report(&self, node: &str) -> Result<Option<String>> {
        let mut command = self.kubectl_command()?;
        command.args(["get", "node", node, "-o"]);
        let condition = "{.status.conditions[?(@.type=='Ready')]['status','lastHeartbeatTime']}";
        command.arg(format!("jsonpath={condition}"));
        let answer = output(&mut command)?;
        let text = String::from_utf8_lossy(&answer.stdout).into_owned();
        Ok(answer.status.success().then_some(text))
    }

    fn give_pod_addresses(&self, node: &Machine, addresses: NodeAddresses) -> Result<()> {
        let (pods4, pods6) = addresses.pods();
        let spec = serde_json::json!({ "podCIDR": pods4, "podCIDRs": [pods4, pods6] });
        let patch = serde_json::json!({ "spec": spec }).to_string();
        self.kubectl(&["patch", "node", node.name(), "--patch", &patch]).map(drop)
    }

    fn cgroup(&self, node: &str) -> String {
        format!("{}/{node}", cgroup_of(&self.options.name))
    }

    /// Takes the cluster down, now.
    ///
    /// # Errors
    /// Something of it remains; the error says what.
    pub fn down(mut self) -> Result<()> {
        self.life = Life::Detached;
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        for machine in self.nodes.iter_mut().chain([&mut self.control]) {
            machine.kill()?;
        }
        take_down(&self.options.name)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.life == Life::Attached
            && let Err(error) = self.end()
        {
            eprintln!("the cluster {} is not quite gone: {error:#}", self.options.name);
        }
    }
}

/// Marks the state of a cluster that lives as long as the process that brought it up.
const ATTACHED: &str = "attached";

/// Ends what there is of a cluster, also of one that was only half brought up.
///
/// # Errors
/// Something of it remains; the error says what.
pub fn take_down(name: &str) -> Result<()> {
    let _turn = lock(name)?;
    remove(name)
}

fn locks(name: &str) -> Result<PathBuf> {
    Ok(binaries::cache()?.join("cluster-locks").join(name))
}

fn lock(name: &str) -> Result<Turn> {
    turns::wait(&locks(name)?, &format!("another process that brings {name} up or takes it down"))
}

/// Removes what is left of clusters whose processes were killed with who had brought them up.
fn remove_dead(except: &str) -> Result<()> {
    for name in names()? {
        let directory = directory_of(&name)?;
        if name == except || !directory.join(ATTACHED).exists() {
            continue;
        }
        let Some(_turn) = turns::take(&locks(&name)?)? else {
            continue;
        };
        let runs = machine_homes(&directory)?.iter().any(|home| {
            let machine = home.file_name().unwrap_or_default().to_string_lossy();
            !matches!(Machine::open(&machine, home), Ok(None))
        });
        if !runs {
            remove(&name)?;
            let _ = fs::remove_dir(locks(&name)?);
        }
    }
    Ok(())
}

fn remove(name: &str) -> Result<()> {
    let directory = directory_of(name)?;
    if !directory.exists() {
        return Ok(());
    }
    forward::stop(&directory)?;
    for home in machine_homes(&directory)? {
        let name = home.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(mut machine) = Machine::open(&name, &home)? {
            machine.kill()?;
        }
    }
    cgroup::remove(&cgroup_of(name))?;
    fs::remove_dir_all(&directory).with_context(|| format!("remove {}", directory.display()))
}

/// The names of all clusters that have state on this host.
///
/// # Errors
/// The directory of states cannot be read.
pub fn names() -> Result<Vec<String>> {
    let directory = binaries::cache()?.join("clusters");
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn machine_homes(directory: &Path) -> Result<Vec<PathBuf>> {
    let machines = directory.join("machines");
    if !machines.exists() {
        return Ok(Vec::new());
    }
    fs::read_dir(machines)?.map(|entry| Ok(entry?.path())).collect()
}

fn check(options: &Options) -> Result<()> {
    let is_good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    ensure!(
        !options.name.is_empty() && options.name.bytes().all(is_good),
        "a cluster's name is of lower-case letters, digits and dashes; {:?} is not",
        options.name
    );
    ensure!((1..=32).contains(&options.nodes), "a cluster here has 1 to 32 nodes");
    Ok(())
}

fn directory_of(name: &str) -> Result<PathBuf> {
    Ok(binaries::cache()?.join("clusters").join(name))
}

fn cgroup_of(name: &str) -> String {
    format!("/netpol-cluster-{name}")
}

fn node_name(index: u8) -> String {
    format!("node-{}", u16::from(index) + 1)
}

fn write_options(directory: &Path, options: &Options) -> Result<()> {
    let path = directory.join("options.json");
    fs::write(&path, serde_json::to_string_pretty(options)?)
        .with_context(|| format!("write {}", path.display()))
}

fn read_options(directory: &Path) -> Result<Option<Options>> {
    let path = directory.join("options.json");
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("read {}", path.display()))?,
    };
    serde_json::from_str(&text).with_context(|| format!("understand {}", path.display())).map(Some)
}

/// The last lines that programs wrote which should run and do not.
fn logs_of_ended(directory: &Path) -> String {
    let mut text = String::from("the cluster does not come up");
    for home in machine_homes(directory).unwrap_or_default() {
        let name = home.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Ok(Some(machine)) = Machine::open(&name, &home) else {
            continue;
        };
        for daemon in control_plane::DAEMONS.iter().chain(&node::DAEMONS) {
            let log = fs::read_to_string(machine.log(daemon)).unwrap_or_default();
            if machine.daemon(daemon).is_none() && !log.is_empty() {
                let lines: Vec<&str> = log.lines().collect();
                let last = &lines[lines.len().saturating_sub(15)..];
                text += &format!("\n{daemon} of {name} has ended:\n  {}", last.join("\n  "));
            }
        }
    }
    text
}

/// Tells a person how far it is.
struct Steps {
    started: Instant,
}

impl Steps {
    fn new() -> Self {
        Self { started: Instant::now() }
    }

    fn done(&mut self, what: &str) {
        eprintln!("==> {what}: after {:.0} s", self.started.elapsed().as_secs_f64());
    }
}
