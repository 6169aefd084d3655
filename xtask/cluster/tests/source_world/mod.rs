//! The Kubernetes source on a real API server: what its events add up to, and a gate in between
//! that can be shut in several ways. Must never touch the namespace the tests run in.

#![expect(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod gate;

use std::path::Path;
use std::time::{Duration, Instant};

use gate::Gate;
use netpol_cluster::envtest::{ADDRESS, ApiServer};
use netpol_model::{Cluster, ObjectName};
use netpol_source::kubernetes::connect;
use netpol_source::{Event, Handle, spawn_kubernetes};
use serde_json::Value;
use tokio::sync::mpsc;

/// A hang guard: nothing is expected to take so long.
pub const PATIENCE: Duration = Duration::from_secs(240);
/// The agent's user: the service account of deploy/netpol.yaml.
pub const AGENT: &str = "system:serviceaccount:netpol:netpol";
/// The node that the agent is told to be on.
pub const NODE: &str = "n1";

/// The manifests that people apply.
pub fn deployed() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/netpol.yaml");
    std::fs::read_to_string(path).unwrap()
}

/// Runs a test beside an API server: in its namespace, in a tokio runtime.
pub fn beside<F: Future<Output = ()>>(work: impl FnOnce(ApiServer) -> F + Send) {
    let directory = tempfile::tempdir().unwrap();
    let server = ApiServer::start(directory.path(), &[AGENT]).unwrap();
    let netns = netpol_isolation::netns::Netns::open(server.netns_path()).unwrap();
    let run = || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(work(server));
    };
    netns.run(run).unwrap();
}

/// A client for a kubeconfig.
pub async fn client(kubeconfig: &str) -> kube::Client {
    connect(config(kubeconfig).await).unwrap()
}

pub async fn config(kubeconfig: &str) -> kube::Config {
    let file = kube::config::Kubeconfig::from_yaml(kubeconfig).unwrap();
    kube::Config::from_custom_kubeconfig(file, &Default::default()).await.unwrap()
}

/// A source, and the state that its events add up to.
pub struct Source {
    pub gate: Gate,
    pub handle: Handle,
    pub rx: mpsc::Receiver<Event>,
    pub cluster: Cluster,
    pub log: Vec<Event>,
}

impl Source {
    /// Behind a gate of its own, as the agent of [`NODE`].
    pub async fn start(server: &ApiServer) -> Self {
        let gate = Gate::new(ADDRESS).await;
        let kubeconfig = server.kubeconfig(AGENT, &gate.address());
        Self::start_behind(gate, &kubeconfig).await
    }

    pub async fn start_behind(gate: Gate, kubeconfig: &str) -> Self {
        Self::start_as(gate, client(kubeconfig).await)
    }

    pub fn start_as(gate: Gate, client: kube::Client) -> Self {
        let (tx, rx) = mpsc::channel(64);
        let handle = spawn_kubernetes(client, NODE, tx);
        Self { gate, handle, rx, cluster: Cluster::default(), log: Vec::new() }
    }

    pub async fn synced(server: &ApiServer) -> Self {
        let mut source = Self::start(server).await;
        source.until(|event, _| *event == Event::Synced).await;
        source
    }

    pub async fn until(&mut self, mut done: impl FnMut(&Event, &Cluster) -> bool) {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let next = tokio::time::timeout(left, self.rx.recv()).await;
            let Ok(event) = next else { panic!("{}", self.too_late()) };
            if self.take(event.expect("the source lives"), &mut done) {
                return;
            }
        }
    }

    fn too_late(&self) -> String {
        let last = self.log.iter().rev().take(5).collect::<Vec<_>>();
        format!("not in time; problems: {:#?}; the last events: {last:#?}", self.problems())
    }

    /// Takes what comes within this time.
    pub async fn listen(&mut self, time: Duration) {
        let end = tokio::time::Instant::now() + time;
        while let Ok(event) = tokio::time::timeout_at(end, self.rx.recv()).await {
            self.take(event.expect("the source lives"), &mut |_, _| false);
        }
    }

    fn take(&mut self, event: Event, done: &mut impl FnMut(&Event, &Cluster) -> bool) -> bool {
        if let Event::Changes(changes) = &event {
            for change in changes {
                self.cluster.apply(change.clone());
            }
        }
        let is_done = done(&event, &self.cluster);
        self.log.push(event);
        is_done
    }

    /// Waits until everything written before is here.
    pub async fn settle(&mut self) {
        let number = self.handle.barrier();
        self.until(|event, _| matches!(event, Event::Barrier(n) if *n >= number)).await;
    }

    /// The next problem of `object`, from now on.
    pub async fn until_problem(&mut self, object: &str) -> String {
        self.until_problem_with(object, "").await
    }

    /// The next one that says `part`.
    pub async fn until_problem_with(&mut self, object: &str, part: &str) -> String {
        let mut found = String::new();
        self.until(|event, _| match event {
            Event::Problem { object: of, message } if of == object && message.contains(part) => {
                found.clone_from(message);
                true
            }
            _ => false,
        })
        .await;
        found
    }

    /// Waits until `object`, which had a problem, has none any more.
    pub async fn until_resolved(&mut self, object: &str) {
        if self.problems().iter().any(|(of, _)| of == object) {
            let is_it =
                |event: &Event| matches!(event, Event::Resolved { object: of } if of == object);
            self.until(|event, _| is_it(event)).await;
        }
    }

    /// The problems that are not over, as `netpol status` lists them.
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut open: Vec<(String, String)> = Vec::new();
        for event in &self.log {
            match event {
                Event::Problem { object, message } => {
                    open.retain(|(of, _)| of != object);
                    open.push((object.clone(), message.clone()));
                }
                Event::Resolved { object } => open.retain(|(of, _)| of != object),
                _ => {}
            }
        }
        open
    }

    pub fn has_pod(&self, namespace: &str, name: &str) -> bool {
        self.cluster.pod(&ObjectName::new(namespace, name)).is_some()
    }

    pub fn has_policy(&self, namespace: &str, name: &str) -> bool {
        self.cluster.policy(&ObjectName::new(namespace, name)).is_some()
    }
}

/// The requests of the agent in the audit log, in order.
pub fn requests(server: &ApiServer) -> Vec<Value> {
    let log = server.audit_log().unwrap();
    // The last line may be half written.
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|request| request["user"]["username"] == AGENT).collect()
}

/// Many objects made at once, with `kubectl create`-like single requests in parallel.
pub async fn create_all<K>(client: &kube::Client, objects: Vec<(String, Value)>)
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + serde::Serialize,
{
    use futures::StreamExt as _;
    let made = futures::stream::iter(objects).map(|(namespace, object)| async move {
        let api = kube::Api::<K>::namespaced(client.clone(), &namespace);
        let object: K = serde_json::from_value(object).unwrap();
        api.create(&Default::default(), &object).await.unwrap();
    });
    made.buffer_unordered(32).collect::<Vec<()>>().await;
}
