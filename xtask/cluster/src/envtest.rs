//! etcd and kube-apiserver alone, in a network namespace of their own: enough for tests of what
//! reads and watches the API, with all that can happen to an API server done to it for real
//! (killed, paused, restarted, restored from a backup). Must never listen outside its namespace.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use netpol_isolation::netns::Netns;
use rustix::process::{Pid, Signal, kill_process};

use crate::binaries::{self, Program};
use crate::pki::Authority;
use crate::process::run;

/// Where the API server listens, inside its namespace.
pub const ADDRESS: &str = "127.0.0.1:6443";
const ETCD: &str = "http://127.0.0.1:2379";
/// A hang guard.
const PATIENCE: Duration = Duration::from_secs(180);
/// The user that may do everything.
pub const ADMIN: &str = "admin";
/// Of every request: who, what, and the answer's code.
const AUDIT: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\n\
                     rules: [{level: Metadata}]\n";

/// A running etcd and kube-apiserver; both end when it is dropped.
#[derive(Debug)]
pub struct ApiServer {
    netns: Netns,
    directory: PathBuf,
    etcd: Option<Child>,
    apiserver: Option<Child>,
}

impl ApiServer {
    /// Starts both with their files in `directory`, and waits until they are ready. `users` are
    /// known by their names (their names are their tokens, too), besides [`ADMIN`].
    ///
    /// # Errors
    /// A program is missing and cannot be built, or does not get ready; its log is shown.
    pub fn start(directory: &Path, users: &[&str]) -> Result<Self> {
        let netns = Netns::create_anonymous().context("create a network namespace")?;
        Self::start_in(netns, directory, users)
    }

    /// The same in this namespace.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_in(netns: Netns, directory: &Path, users: &[&str]) -> Result<Self> {
        netns.run(|| run(Command::new("ip").args(["link", "set", "lo", "up"])))??;
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let mut server =
            Self { netns, directory: directory.to_owned(), etcd: None, apiserver: None };
        server.write_identity(users)?;
        server.start_etcd()?;
        server.start_apiserver()?;
        Ok(server)
    }

    /// The namespace it listens in.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The file of that namespace, as long as the server lives.
    pub fn netns_path(&self) -> PathBuf {
        let number = self.netns.as_fd().as_raw_fd();
        PathBuf::from(format!("/proc/{}/fd/{number}", std::process::id()))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.file(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    fn write_identity(&self, users: &[&str]) -> Result<()> {
        let authority = Authority::ensure(&self.directory)?;
        authority.server("server", &["localhost"], &[Ipv4Addr::LOCALHOST.into()])?;
        authority.key_pair("accounts")?;
        let mut tokens = format!("{ADMIN},{ADMIN},{ADMIN},system:masters\n");
        for user in users {
            tokens += &format!("{user},{user},{user}\n");
        }
        self.write("tokens.csv", &tokens)?;
        self.write("audit.yaml", AUDIT)?;
        self.write(&format!("{ADMIN}.kubeconfig"), &self.kubeconfig(ADMIN, ADDRESS))
    }

    /// A kubeconfig of `user` for an API server at `address`.
    pub fn kubeconfig(&self, user: &str, address: &str) -> String {
        self.kubeconfig_with(&format!("token: {user}"), address)
    }

    /// A kubeconfig whose user has `credentials` (YAML, such as `tokenFile: PATH`).
    pub fn kubeconfig_with(&self, credentials: &str, address: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: \"https://{address}\", \
             certificate-authority: {}}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n\
             users: [{{name: test, user: {{{credentials}}}}}]\n",
            self.file("ca.crt").display()
        )
    }

    /// Starts etcd on the data it has.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_etcd(&mut self) -> Result<()> {
        let data = self.file("etcd");
        let mut command = self.program(binaries::ETCD)?;
        command
            .arg("--data-dir")
            .arg(&data)
            .args(["--listen-client-urls", ETCD, "--advertise-client-urls", ETCD])
            .args(["--listen-peer-urls", "http://127.0.0.1:2380"])
            .args(["--initial-advertise-peer-urls", "http://127.0.0.1:2380"])
            .args(["--initial-cluster", "default=http://127.0.0.1:2380"])
            // The data of a test need not outlive a power failure.
            .arg("--unsafe-no-fsync");
        self.etcd = Some(self.spawn(&mut command)?);
        self.until_listening("etcd", "127.0.0.1:2379")
    }

    /// Starts kube-apiserver.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_apiserver(&mut self) -> Result<()> {
        let mut command = self.program(binaries::APISERVER)?;
        let mut file = |flag: &str, name: &str| {
            command.arg(format!("--{flag}={}", self.file(name).display()));
        };
        file("tls-cert-file", "server.crt");
        file("tls-private-key-file", "server.key");
        file("cert-dir", "certificates");
        file("token-auth-file", "tokens.csv");
        file("service-account-key-file", "accounts.pub");
        file("service-account-signing-key-file", "accounts.key");
        file("audit-policy-file", "audit.yaml");
        file("audit-log-path", "audit.log");
        command.args([
            "--etcd-servers=http://127.0.0.1:2379",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--secure-port=6443",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",
            "--endpoint-reconciler-type=none",
            "--authentication-token-webhook-cache-ttl=0s",
        ]);
        self.apiserver = Some(self.spawn(&mut command)?);
        self.until_ready()
    }

    fn program(&self, program: Program) -> Result<Command> {
        Ok(Command::new(binaries::find(program)?))
    }

    fn spawn(&self, command: &mut Command) -> Result<Child> {
        let program = PathBuf::from(command.get_program());
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.file(&format!("{name}.log")))
            .with_context(|| format!("open the log of {name}"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // A child belongs to the namespace of the thread that starts it.
        self.netns.run(|| command.spawn())?.with_context(|| format!("start {name}"))
    }

    fn until_listening(&mut self, name: &str, address: &str) -> Result<()> {
        let address: SocketAddr = address.parse().context("an address")?;
        self.until(name, |server| Ok(server.netns.run(|| TcpStream::connect(address))?.is_ok()))
    }

    fn until_ready(&mut self) -> Result<()> {
        let asked = |server: &Self| {
            let output = server.kubectl_output(&["get", "--raw", "/readyz"], None)?;
            Ok(output.status.success())
        };
        self.until("kube-apiserver", asked)
    }

    fn until(&mut self, name: &str, done: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while !done(self)? {
            let child = if name == "etcd" { &mut self.etcd } else { &mut self.apiserver };
            let ended = match child {
                Some(child) => child.try_wait().context("look after a child")?,
                None => None,
            };
            let log = || tail(&self.file(&format!("{name}.log")));
            if let Some(status) = ended {
                bail!("{name} has ended ({status}):\n{}", log());
            }
            ensure!(Instant::now() < end, "{name} is not ready:\n{}", log());
            sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    // === What happens to API servers ===

    /// SIGKILL to kube-apiserver.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_apiserver(&mut self) -> Result<()> {
        end(self.apiserver.take().context("kube-apiserver does not run")?)
    }

    /// SIGKILL to etcd.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_etcd(&mut self) -> Result<()> {
        end(self.etcd.take().context("etcd does not run")?)
    }

    /// Stops kube-apiserver in its tracks: its connections stay, and nothing is answered.
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.apiserver.as_ref().context("kube-apiserver does not run")?;
        kill_process(Pid::from_child(child), signal).context("signal kube-apiserver")
    }

    /// Copies etcd's data to `name`, between two runs of everything.
    ///
    /// # Errors
    /// A program does not come back.
    pub fn back_up(&mut self, name: &str) -> Result<()> {
        self.at_rest(|server| copy(&server.file("etcd"), &server.file(name)))
    }

    /// Puts etcd's data back to what they were, as after a disaster.
    ///
    /// # Errors
    /// There is no such backup, or a program does not come back.
    pub fn restore(&mut self, name: &str) -> Result<()> {
        self.at_rest(|server| {
            let data = server.file("etcd");
            fs::remove_dir_all(&data).with_context(|| format!("remove {}", data.display()))?;
            copy(&server.file(name), &data)
        })
    }

    fn at_rest(&mut self, work: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        self.kill_apiserver()?;
        self.kill_etcd()?;
        work(self)?;
        self.start_etcd()?;
        self.start_apiserver()
    }

    // === Asking ===

    /// Runs kubectl as [`ADMIN`]; its output.
    ///
    /// # Errors
    /// kubectl fails; what it says is told.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.checked(arguments, None)
    }

    /// `kubectl apply` of these manifests.
    ///
    /// # Errors
    /// As [`Self::kubectl`].
    pub fn apply(&self, manifests: &str) -> Result<String> {
        self.kubectl_with(&["apply", "-f", "-"], manifests)
    }

    /// Runs kubectl with this input.
    ///
    /// # Errors
    /// As [`Self::kubectl`].
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        self.checked(arguments, Some(input))
    }

    fn checked(&self, arguments: &[&str], input: Option<&str>) -> Result<String> {
        let output = self.kubectl_output(arguments, input)?;
        ensure!(
            output.status.success(),
            "kubectl {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn kubectl_output(&self, arguments: &[&str], input: Option<&str>) -> Result<Output> {
        let mut command = self.program(binaries::KUBECTL)?;
        command
            .arg(format!("--kubeconfig={}", self.file("admin.kubeconfig").display()))
            .arg(format!("--cache-dir={}", self.file("kubectl").display()))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.netns.run(|| command.spawn())?.context("start kubectl")?;
        let mut stdin = child.stdin.take().context("kubectl's input")?;
        stdin.write_all(input.unwrap_or_default().as_bytes()).context("write to kubectl")?;
        drop(stdin);
        child.wait_with_output().context("wait for kubectl")
    }

    /// The audit log so far: one JSON object to a line.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn audit_log(&self) -> Result<String> {
        fs::read_to_string(self.file("audit.log")).context("read the audit log")
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        for child in [self.apiserver.take(), self.etcd.take()].into_iter().flatten() {
            // It may have ended by itself.
            let _ = end(child);
        }
    }
}

fn end(mut child: Child) -> Result<()> {
    child.kill().context("kill a child")?;
    child.wait().context("wait for a child")?;
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").arg("-a").arg(from).arg(to)).map(drop)
}

/// The last lines of a log.
fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
