//! Reads what netpol drops on every node, as `netpol monitor` shows it, for as long as a scenario
//! runs. Must never lose sight of drops silently: events that are missing are counted.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::machine::Machine;

/// A packet that was dropped.
#[derive(Debug, Clone, Deserialize)]
pub struct Drop {
    /// `namespace/pod` of the endpoint that it was dropped at.
    pub endpoint: Option<String>,
    /// From that pod's view.
    pub direction: String,
    /// Such as `TCP`.
    pub protocol: Option<String>,
    /// Where it came from.
    pub source: Option<End>,
    /// Where it was going.
    pub destination: Option<End>,
    /// Such as `SYN`.
    #[serde(default)]
    pub detail: String,
    /// Stable word.
    pub reason: String,
}

/// One end of a packet's way.
#[derive(Debug, Clone, Deserialize)]
pub struct End {
    /// Its address.
    pub ip: String,
    /// Its port.
    pub port: Option<u16>,
    /// `namespace/pod`.
    pub endpoint: Option<String>,
    /// `namespace/name`.
    #[serde(default)]
    pub service: Option<String>,
}

impl End {
    /// Namespace and name of the pod or Service, or the address.
    #[must_use]
    pub fn name(&self) -> &str {
        self.endpoint.as_deref().or(self.service.as_deref()).unwrap_or(&self.ip)
    }
}

impl Drop {
    /// Whether a server sent it: clients' ports are above all that servers here have.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        let port = |end: &Option<End>| end.as_ref().and_then(|end| end.port).unwrap_or_default();
        port(&self.source) < port(&self.destination)
    }

    /// What it has in common with others, for people.
    #[must_use]
    pub fn kind(&self) -> String {
        let end = |end: &Option<End>| match end {
            Some(end) => {
                format!("{}:{}", end.name(), end.port.filter(|port| *port < 32_768).unwrap_or(0))
            }
            None => "?".to_owned(),
        };
        let (protocol, direction) = (self.protocol.as_deref().unwrap_or("?"), &self.direction);
        format!(
            "{} {direction} {protocol} {} -> {}",
            self.reason,
            end(&self.source),
            end(&self.destination)
        )
    }

    /// For people.
    #[must_use]
    pub fn line(&self) -> String {
        let end = |end: &Option<End>| match end {
            Some(end) => format!("{} {}:{}", end.name(), end.ip, end.port.unwrap_or_default()),
            None => "?".to_owned(),
        };
        format!(
            "{} {} at {} {}: {} -> {} [{}]",
            self.reason,
            self.protocol.as_deref().unwrap_or("?"),
            self.endpoint.as_deref().unwrap_or("?"),
            self.direction,
            end(&self.source),
            end(&self.destination),
            self.detail,
        )
    }
}

/// What one line of the monitor is.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Lost { lost: u64 },
    Drop(Box<Drop>),
}

/// One node's monitor.
#[derive(Debug)]
pub struct Monitor {
    child: Child,
    seen: Arc<Mutex<Seen>>,
    reader: Option<thread::JoinHandle<()>>,
}

/// What monitors saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Drops, in order.
    pub drops: Vec<Drop>,
    /// Events that did not fit.
    pub lost: u64,
}

impl Monitor {
    /// Starts to look at a node's drops, with the program `netpol`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(machine: &Machine, netpol: &Path) -> Result<Self> {
        let mut child = machine
            .command("sh")
            // It ends with its input: a signal would only reach nsenter.
            .args(["-c", "\"$@\" & pid=$!; cat; kill $pid; wait", "sh"])
            .arg(netpol)
            .args(["monitor", "-o", "json"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("start netpol monitor on {}", machine.name()))?;
        let seen = Arc::<Mutex<Seen>>::default();
        let lines = BufReader::new(child.stdout.take().context("the monitor has no output")?);
        let writer = Arc::clone(&seen);
        let reader = thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let parsed = serde_json::from_str(&line);
                let mut seen = writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                match parsed {
                    Ok(Line::Drop(drop)) => seen.drops.push(*drop),
                    Ok(Line::Lost { lost }) => seen.lost += lost,
                    Err(error) => {
                        eprintln!("cannot understand the monitor: {error}: {line}");
                        seen.lost += 1;
                    }
                }
            }
        });
        Ok(Self { child, seen, reader: Some(reader) })
    }

    /// Whether it still looks.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.reader.as_ref().is_some_and(|reader| !reader.is_finished())
    }

    /// Takes what was seen since the last call.
    #[must_use]
    pub fn take(&self) -> Seen {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl std::ops::Drop for Monitor {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_monitor() {
        let drop = r#"{"time":"1970-01-01T00:00:01Z","verdict":"deny","endpoint":"shop/web",
            "endpoint_id":2,"ifindex":11,"direction":"ingress","protocol":"TCP",
            "source":{"ip":"10.0.0.2","port":4000,"endpoint":null},
            "destination":{"ip":"10.0.0.1","port":80,"endpoint":"shop/web"},"detail":"SYN",
            "reason":"policy","message":"m","policies":[],"peer_matches":[],"length":60}"#;
        let Line::Drop(drop) = serde_json::from_str(drop).unwrap() else { panic!("no drop") };
        let ends = [&drop.source, &drop.destination].map(|end| end.as_ref().unwrap().name());
        assert_eq!(ends, ["10.0.0.2", "shop/web"]);
        assert!(!drop.is_answer());
        let Line::Lost { lost: 7 } = serde_json::from_str(r#"{"lost":7}"#).unwrap() else {
            panic!("not lost")
        };
    }
}
