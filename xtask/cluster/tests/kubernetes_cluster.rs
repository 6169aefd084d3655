//! The cluster itself: `up`, `status`, `kubeconfig`, `restart`, `down`, and that nothing of it is
//! left, however it ends.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use netpol_cluster::process::{output, run, wait_for};
use netpol_cluster::{Cluster, binaries, cluster, images};

const PATIENCE: Duration = Duration::from_secs(120);

/// Takes the cluster down also when the test fails.
struct Named(String);

impl Named {
    fn new(purpose: &str) -> Self {
        Self(format!("{purpose}-{}", std::process::id()))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netpol-cluster"));
        command.args(["--name", &self.0, "--no-prepare"]).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> String {
        run(&mut self.command(arguments)).unwrap()
    }

    fn directory(&self) -> PathBuf {
        binaries::cache().unwrap().join("clusters").join(&self.0)
    }

    /// Of a whole host with many clusters, what belongs to this one.
    fn remains(&self) -> Vec<String> {
        let mut remains = Vec::new();
        if self.directory().exists() {
            remains.push(self.directory().display().to_string());
        }
        for entry in fs::read_dir("/proc").unwrap() {
            let path = entry.unwrap().path();
            // Processes end while they are looked at.
            let line = fs::read(path.join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&self.0) {
                remains.push(format!("{}: {line}", path.display()));
            }
        }
        for entry in fs::read_dir("/sys/fs/cgroup").unwrap() {
            let group = entry.unwrap().path().join(format!("netpol-cluster-{}", self.0));
            if group.exists() {
                remains.push(group.display().to_string());
            }
        }
        let group = Path::new("/sys/fs/cgroup").join(format!("netpol-cluster-{}", self.0));
        if group.exists() {
            remains.push(group.display().to_string());
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        remains.extend(mounts.lines().filter(|line| line.contains(&self.0)).map(str::to_owned));
        remains
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        if let Err(error) = cluster::take_down(&self.0) {
            eprintln!("{error:#}");
        }
    }
}

#[test]
fn a_cluster_is_brought_up_used_from_the_host_repaired_and_taken_down() {
    let named = Named::new("whole");
    let up = ["up", "--proxy-mode", "nftables", "--network", "bridge-routes"];
    named.run(&up);
    let kubeconfig = named.run(&["kubeconfig"]);
    let kubectl = binaries::find(binaries::KUBECTL).unwrap();
    let from_host = |arguments: &[&str]| {
        run(Command::new(&kubectl).args(["--kubeconfig", kubeconfig.trim()]).args(arguments))
    };
    let manifest = named.directory().join("pods.yaml");
    fs::write(&manifest, manifests()).unwrap();
    from_host(&["apply", "-f", &manifest.to_string_lossy()]).unwrap();
    from_host(&["rollout", "status", "deployment/web", "--timeout=180s"]).unwrap();
    from_host(&["wait", "--for=condition=Ready", "pod/client", "--timeout=180s"]).unwrap();

    let words = |path: &str, what: &[&str]| -> Vec<String> {
        let output = format!("jsonpath={path}");
        let text = from_host(&[&["get", "-o", &output], what].concat()).unwrap();
        text.split_whitespace().map(str::to_owned).collect()
    };
    let nodes = words("{.items[*].spec.nodeName}", &["pods", "-l", "app=web"]);
    assert!(nodes.contains(&"node-1".to_owned()) && nodes.contains(&"node-2".to_owned()));
    let mut targets = words("{.items[*].status.podIPs[*].ip}", &["pods", "-l", "app=web"]);
    targets.iter_mut().for_each(|address| *address = socket(address, 8080));
    let service = words("{.spec.clusterIPs[*]}", &["service", "web"]);
    targets.extend(service.iter().map(|address| socket(address, 80)));
    // The API server as pods know it, and a kubelet.
    targets.push("10.96.0.1:443".to_owned());
    targets.push("172.30.0.12:10250".to_owned());
    assert_eq!(targets.len(), 8, "{targets:?}");
    for target in &targets {
        from_host(&["exec", "client", "--", "/agnhost", "connect", "--timeout=30s", target])
            .unwrap();
    }
    // As from a person's shell on a node.
    named.run(&["node", "node-1", "--", "bash", "-c", &get(&service[0])]);
    assert!(from_host(&["logs", "client"]).unwrap().contains("Paused"));

    // What has ended is named, and `up` starts it again.
    named.run(&["status"]);
    let cluster = Cluster::open(&named.0).unwrap().unwrap();
    cluster.kill_daemon("node-2", "kubelet").unwrap();
    let status = output(&mut named.command(&["status"])).unwrap();
    let said = String::from_utf8_lossy(&status.stdout).into_owned();
    assert_eq!(status.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("HAS ENDED").count(), 1, "{said}");
    named.run(&up);
    named.run(&["status"]);
    let other = output(&mut named.command(&["up", "--nodes", "3"])).unwrap();
    assert!(!other.status.success(), "other options were accepted");

    drop(cluster);
    named.run(&["down"]);
    assert_eq!(named.remains(), [""; 0]);
}

#[test]
fn a_cluster_in_the_foreground_ends_with_its_process_and_leaves_only_what_down_removes() {
    let named = Named::new("killed");
    let command =
        named.command(&["up", "--foreground", "--nodes", "1"]).stdin(Stdio::null()).spawn();
    let mut process = Killed(command.unwrap());
    let pid_file = named.directory().join("machines/node-1/logs/containerd.log");
    wait_for("containerd of node-1", PATIENCE, || {
        let status = process.0.try_wait()?;
        assert_eq!(status, None, "`up` ended");
        Ok(pid_file.exists())
    })
    .unwrap();
    process.0.kill().unwrap();
    assert_eq!(process.0.wait().unwrap().signal(), Some(9));
    wait_for("all processes to end", PATIENCE, || {
        Ok(!named.remains().iter().any(|line| line.starts_with("/proc/")))
    })
    .unwrap();
    assert!(Cluster::open(&named.0).unwrap().is_none());
    named.run(&["down"]);
    assert_eq!(named.remains(), [""; 0]);
}

/// Is killed also when the test fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn socket(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// A script that fails unless a web server answers.
fn get(address: &str) -> String {
    format!(
        "exec 3<>/dev/tcp/{address}/80 && printf 'GET /hostname HTTP/1.0\\r\\n\\r\\n' >&3 && \
         grep -q ^web- <&3"
    )
}

fn manifests() -> String {
    let image = images::AGNHOST;
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: DoNotSchedule
        labelSelector: {{matchLabels: {{app: web}}}}
      containers:
      - name: web
        image: {image}
        args: [netexec, --http-port=8080]
        readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: 8080}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: client}}
spec:
  nodeName: node-1
  containers: [{{name: client, image: "{image}", args: [pause]}}]
"#
    )
}
