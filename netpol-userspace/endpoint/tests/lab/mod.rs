//! Namespaces and links for the tests of endpoint discovery.
//!
//! Every namespace is made here, below a temporary directory, and is deleted when its [`Lab`] is
//! dropped, also by a panic. Must never touch the namespace the tests run in. Included by the tests
//! beside the code as well, hence `crate`.

#![allow(dead_code, reason = "each of the test programs that include it uses a part")]

use std::cell::RefCell;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use netpol_isolation::netns::{self, Netns};

use crate::{Interface, Options, Snapshot, Watcher};

/// A hang guard: nothing is expected to take so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// Namespaces that end with it.
pub struct Lab {
    dir: tempfile::TempDir,
    named: RefCell<Vec<(PathBuf, String)>>,
}

impl Lab {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), named: RefCell::default() }
    }

    /// A path that does not exist yet.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The directory of the pods' namespaces, which is made with the first of them.
    pub fn pods_dir(&self) -> PathBuf {
        self.path("run/pods")
    }

    /// A new namespace for a node.
    pub fn node(&self, name: &str) -> Netns {
        let dir = self.path("nodes");
        self.named.borrow_mut().push((dir.clone(), name.to_owned()));
        Netns::create(dir, name).unwrap()
    }

    /// A new namespace for a pod, and its file. Nothing but the file holds it.
    pub fn pod(&self, name: &str) -> String {
        self.named.borrow_mut().push((self.pods_dir(), name.to_owned()));
        Netns::create(self.pods_dir(), name).unwrap();
        self.pods_dir().join(name).to_str().unwrap().to_owned()
    }

    /// A file named `name` for a namespace that exists.
    pub fn pod_file(&self, netns: &Netns, name: &str) -> PathBuf {
        self.named.borrow_mut().push((self.pods_dir(), name.to_owned()));
        let file = self.pods_dir().join(name);
        std::fs::create_dir_all(self.pods_dir()).unwrap();
        std::fs::File::create(&file).unwrap();
        let mount = || rustix::mount::mount_bind("/proc/thread-self/ns/net", &file).unwrap();
        netns.run(mount).unwrap();
        file
    }

    pub fn delete_pod(&self, name: &str) {
        netns::delete(self.pods_dir(), name).unwrap();
    }

    /// Discovery for `node` as an agent would run it, except that only events and retries drive
    /// it: what a test sees is not due to the periodic look.
    pub fn watch(&self, node: &Netns) -> Watcher {
        watch(node, &self.pods_dir())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for (dir, name) in self.named.borrow().iter() {
            if let Err(error) = netns::delete(dir, name) {
                eprintln!("cannot clean up: {error}");
            }
        }
    }
}

/// A process, ended with it.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Discovery as in [`Lab::watch`], with this netns directory.
pub fn watch(node: &Netns, netns_dir: &Path) -> Watcher {
    let options = Options { netns_dir: netns_dir.to_owned(), period: Duration::from_secs(3600) };
    node.run(|| Watcher::spawn(options)).unwrap().unwrap()
}

/// Runs the lines of `script` as arguments of `ip` inside `netns`.
pub fn ip(netns: &Netns, script: &str) {
    let run = || {
        let mut ip =
            Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        ip.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        ip.wait().unwrap()
    };
    assert!(netns.run(run).unwrap().success(), "ip failed on:\n{script}");
}

/// The same inside the namespace of a pod.
pub fn ip_in(pod: &str, script: &str) {
    ip(&Netns::open(pod).unwrap(), script);
}

/// Makes the veth `name` in `node` with the peer eth0 in `pod`, with these addresses, all up.
pub fn connect(node: &Netns, name: &str, pod: &str, addresses: &[&str]) {
    ip(
        node,
        &format!("link add {name} type veth peer name eth0 netns {pod}\nlink set {name} up\n"),
    );
    let mut script = "link set eth0 up\n".to_owned();
    for address in addresses {
        let nodad = if address.contains(':') { "nodad" } else { "" };
        script.push_str(&format!("address add {address} dev eth0 {nodad}\n"));
    }
    ip_in(pod, &script);
}

/// Waits for a snapshot that satisfies `condition`.
pub fn wait_for(
    watcher: &Watcher,
    what: &str,
    mut condition: impl FnMut(&Snapshot) -> bool,
) -> Arc<Snapshot> {
    let mut snapshots = watcher.snapshots();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let found = runtime.block_on(async {
        let wait = snapshots.wait_for(|snapshot| condition(snapshot));
        tokio::time::timeout(PATIENCE, wait).await.ok().map(|found| Arc::clone(&found.unwrap()))
    });
    found.unwrap_or_else(|| panic!("never saw {what}, but {:#?}", watcher.snapshots().borrow()))
}

/// The interface with this name.
pub fn named<'a>(snapshot: &'a Snapshot, name: &str) -> Option<&'a Interface> {
    snapshot.interfaces.iter().find(|interface| interface.name == name)
}

/// Whether the interface `name` is there and complete: it has exactly these addresses beside its
/// link-local ones, and its namespace was found.
pub fn is_complete(snapshot: &Snapshot, name: &str, addresses: &[&str]) -> bool {
    named(snapshot, name).is_some_and(|interface| {
        interface.netns.is_some() && global_addresses(interface) == parse(addresses)
    })
}

/// Its addresses without the link-local ones.
pub fn global_addresses(interface: &Interface) -> Vec<IpAddr> {
    let is_global = |address: &&IpAddr| match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    };
    interface.addresses.iter().filter(is_global).copied().collect()
}

pub fn parse(addresses: &[&str]) -> Vec<IpAddr> {
    let mut parsed: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
    parsed.sort_unstable();
    parsed
}
