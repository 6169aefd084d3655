//! The way from the host into a cluster: listens on a port of the host's loopback and connects in
//! the control plane's network namespace, so that any kubectl on the host can be used. Must never
//! listen anywhere else.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use netpol_isolation::netns::Netns;

use crate::addresses::{API_PORT, CONTROL};
use crate::cluster::Cluster;
use crate::process::{self, wait_for};

/// The port of the cluster's forwarder on 127.0.0.1. Starts the forwarder if it does not run; it
/// ends with the cluster.
///
/// # Errors
/// It does not start; the error says where its log is.
pub fn ensure(cluster: &Cluster) -> Result<u16> {
    if let Some(port) = running(cluster) {
        return Ok(port);
    }
    let log_path = cluster.directory().join("forward.log");
    let log = fs::File::create(&log_path)?;
    // A session of its own: it outlives the terminal, as the cluster does.
    Command::new("setsid")
        .arg("--fork")
        .arg(std::env::current_exe()?)
        .args(["--name", &cluster.options().name, "forward"])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .context("start setsid (package util-linux)")?;
    let mut port = None;
    wait_for("the forwarder to listen", Duration::from_secs(30), || {
        port = running(cluster);
        Ok(port.is_some())
    })
    .with_context(|| format!("see {}", log_path.display()))?;
    port.context("the forwarder has no port")
}

/// Forwards until the cluster's control plane ends.
///
/// # Errors
/// It cannot listen, or the control plane is not there.
pub fn run(cluster: &Cluster) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on 127.0.0.1")?;
    let port = listener.local_addr()?.port();
    let control = cluster.control().pid();
    let started = process::start_time(control).context("the control plane has ended")?;
    let own = std::process::id();
    let own_start = process::start_time(own).context("read this process's start time")?;
    fs::write(file(cluster), format!("{own} {own_start} {port}\n"))?;
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            thread::spawn(move || {
                if let Err(error) = forward(&connection, control) {
                    eprintln!("a connection ends: {error}");
                }
            });
        }
    });
    // Nothing tells when somebody else's child ends but looking.
    while process::start_time(control) == Some(started) {
        thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// Ends the forwarder that wrote `directory`'s file, if it runs.
pub(crate) fn stop(directory: &std::path::Path) -> Result<()> {
    let Some((pid, start, _)) = read(&directory.join(FILE)) else {
        return Ok(());
    };
    process::kill(pid, start, "the forwarder")
}

const FILE: &str = "forward";

fn file(cluster: &Cluster) -> PathBuf {
    cluster.directory().join(FILE)
}

fn running(cluster: &Cluster) -> Option<u16> {
    let (pid, start, port) = read(&file(cluster))?;
    (process::start_time(pid) == Some(start)).then_some(port)
}

fn read(path: &std::path::Path) -> Option<(u32, u64, u16)> {
    let text = fs::read_to_string(path).ok()?;
    let mut words = text.split_ascii_whitespace();
    let pid = words.next()?.parse().ok()?;
    let start = words.next()?.parse().ok()?;
    Some((pid, start, words.next()?.parse().ok()?))
}

fn forward(client: &TcpStream, control: u32) -> io::Result<()> {
    let address = SocketAddr::from((CONTROL.0, API_PORT));
    let server = Netns::of_process(control)?.run(|| TcpStream::connect(address))??;
    thread::scope(|scope| {
        let up = scope.spawn(|| copy(client, &server));
        let down = copy(&server, client);
        up.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).and(down)
    })
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
    let copied = io::copy(&mut from, &mut to);
    // The other end learns that no more comes, also after an error.
    let _ = to.shutdown(Shutdown::Write);
    copied.map(drop)
}
