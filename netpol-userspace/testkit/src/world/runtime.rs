//! A container runtime's part of a pod's start: runs the chain of CNI plugins on the node, the
//! distribution's real ones and netpol's, as the specification says.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;

use netpol_isolation::netns::{self, Netns};
use serde_json::{Value, json};

use super::World;

/// Where the distribution puts the plugins.
const PLUGINS: &str = "/usr/lib/cni";
/// Name of the bridge on the node.
pub const BRIDGE: &str = "cni0";
/// The network's addresses begin with this.
pub const SUBNET: &str = "10.244.1";

/// Runs chains of plugins for one [`World`].
pub struct Runtime {
    node: Netns,
    netns_dir: PathBuf,
    pub conflist: Value,
    /// Results by sandbox: the runtime's memory, given back at CHECK and DEL.
    results: Mutex<BTreeMap<String, Value>>,
}

/// A sandbox: what the runtime knows of a pod.
#[derive(Debug, Clone)]
pub struct Sandbox {
    pub id: String,
    pub pod: String,
    pub uid: String,
}

impl Sandbox {
    /// The first sandbox of a pod that [`World::declare`] declares.
    pub fn new(pod: &str) -> Self {
        Self { id: format!("sandbox-{pod}"), pod: pod.to_owned(), uid: format!("uid-{pod}") }
    }

    /// A further sandbox of the same pod.
    pub fn again(&self, number: u32) -> Self {
        Self { id: format!("{}-{number}", self.id), ..self.clone() }
    }

    pub fn uid(self, uid: &str) -> Self {
        Self { uid: uid.to_owned(), ..self }
    }
}

impl Runtime {
    /// With a bridge, port mappings and netpol.
    pub fn new(world: &World) -> Self {
        let bridge = json!({
            "type": "bridge", "bridge": BRIDGE, "isGateway": true,
            "ipam": {
                "type": "host-local", "dataDir": world.dir.path().join("ipam"),
                "ranges": [[{"subnet": format!("{SUBNET}.0/24")}]],
                "routes": [{"dst": "0.0.0.0/0"}]
            }
        });
        let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
        let netpol = json!({"type": "netpol", "run-dir": world.run_dir(), "timeout": 60});
        let conflist = json!({
            "cniVersion": "1.0.0", "name": "lab", "plugins": [bridge, portmap, netpol]
        });
        Self {
            node: world.node.run(Netns::current).unwrap().unwrap(),
            netns_dir: world.netns_dir(),
            conflist,
            results: Mutex::default(),
        }
    }

    /// The configuration of netpol in the chain.
    pub fn netpol(&mut self) -> &mut Value {
        self.plugins_mut().last_mut().unwrap()
    }

    /// The chain ends before netpol.
    pub fn without_netpol(mut self) -> Self {
        self.plugins_mut().pop();
        self
    }

    fn plugins_mut(&mut self) -> &mut Vec<Value> {
        self.conflist["plugins"].as_array_mut().unwrap()
    }

    pub fn netns_path(&self, sandbox: &Sandbox) -> PathBuf {
        self.netns_dir.join(&sandbox.id)
    }

    pub fn netns(&self, sandbox: &Sandbox) -> Netns {
        Netns::open(self.netns_path(sandbox)).unwrap()
    }

    /// Makes the sandbox's namespace and runs the chain. The address of the pod, or the error of
    /// the plugin that failed.
    pub fn start(&self, sandbox: &Sandbox) -> Result<String, Value> {
        Netns::create(&self.netns_dir, &sandbox.id).unwrap();
        self.add(sandbox)
    }

    /// Runs the chain in a namespace that exists.
    pub fn add(&self, sandbox: &Sandbox) -> Result<String, Value> {
        let mut result = None;
        for plugin in self.conflist["plugins"].as_array().unwrap() {
            result = Some(self.execute("ADD", sandbox, plugin, result.as_ref())?);
        }
        let result = result.unwrap();
        self.results.lock().unwrap().insert(sandbox.id.clone(), result.clone());
        let address = result["ips"][0]["address"].as_str().unwrap();
        Ok(address.split_once('/').unwrap().0.to_owned())
    }

    /// The chain backwards, without the namespace.
    pub fn del(&self, sandbox: &Sandbox) -> Result<(), Value> {
        let result = self.results.lock().unwrap().remove(&sandbox.id);
        for plugin in self.conflist["plugins"].as_array().unwrap().iter().rev() {
            self.execute("DEL", sandbox, plugin, result.as_ref())?;
        }
        Ok(())
    }

    /// The chain backwards, and the namespace.
    pub fn stop(&self, sandbox: &Sandbox) {
        self.del(sandbox).unwrap();
        netns::delete(&self.netns_dir, &sandbox.id).unwrap();
    }

    /// CHECK of netpol alone.
    pub fn check(&self, sandbox: &Sandbox) -> Result<(), Value> {
        let result = self.results.lock().unwrap().get(&sandbox.id).cloned();
        let plugin = self.conflist["plugins"].as_array().unwrap().last().unwrap();
        self.execute("CHECK", sandbox, plugin, result.as_ref()).map(drop)
    }

    /// What netpol answers to a command with this addition to its configuration.
    pub fn ask_netpol(&self, command: &str, more: &Value) -> Result<Value, Value> {
        let mut plugin = self.conflist["plugins"].as_array().unwrap().last().unwrap().clone();
        for (key, value) in more.as_object().unwrap() {
            plugin[key] = value.clone();
        }
        self.execute(command, &Sandbox::new("none"), &plugin, None)
    }

    fn execute(
        &self,
        command: &str,
        sandbox: &Sandbox,
        plugin: &Value,
        previous: Option<&Value>,
    ) -> Result<Value, Value> {
        let mut config = plugin.clone();
        config["cniVersion"] = self.conflist["cniVersion"].clone();
        config["name"] = self.conflist["name"].clone();
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        let netns = self.netns_path(sandbox);
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={};\
             K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            sandbox.pod, sandbox.id, sandbox.uid
        );
        let environment = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", &sandbox.id),
            ("CNI_NETNS", netns.to_str().unwrap()),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", &arguments),
            ("CNI_PATH", PLUGINS),
        ];
        let program = program(plugin["type"].as_str().unwrap());
        let output = call(&self.node, &program, &environment, config.to_string().as_bytes());
        answer(&program, &output)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // Sandboxes of tests that failed.
        let Ok(entries) = std::fs::read_dir(&self.netns_dir) else { return };
        for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
            if name.starts_with("sandbox-") {
                let _ = netns::delete(&self.netns_dir, &name);
            }
        }
    }
}

fn program(kind: &str) -> PathBuf {
    match kind {
        "netpol" => crate::program(),
        other => PathBuf::from(PLUGINS).join(other),
    }
}

/// Runs a plugin on the node with nothing but this environment and input.
pub fn call(node: &Netns, program: &Path, environment: &[(&str, &str)], input: &[u8]) -> Output {
    let run = || {
        let mut child = Command::new(program)
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap())
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        // One that fails early does not read it.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    };
    node.run(run).unwrap()
}

/// Its answer, or its error.
pub fn answer(program: &Path, output: &Output) -> Result<Value, Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    let value = match text.trim() {
        "" => Value::Null,
        text => serde_json::from_str(text)
            .unwrap_or_else(|error| panic!("{}: {error}: {text}", program.display())),
    };
    match output.status.success() {
        true => Ok(value),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(value["code"].is_u64(), "{}: {value} {said}", program.display());
            Err(value)
        }
    }
}
