//! What is known about the node: the state file, and whether an agent keeps it up to date.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use netpol_api::state::{EndpointView, State, VERSION, socket_path, state_path};

/// The state file's content and its age.
#[derive(Debug, Clone)]
pub struct Node {
    /// What the last agent wrote.
    pub state: State,
    /// An agent listens on the socket.
    pub is_running: bool,
    /// When the file was written.
    pub written: SystemTime,
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

impl Node {
    /// Reads the state file, `None` if no agent ever wrote one.
    pub fn read(run_dir: &Path) -> Result<Option<Self>> {
        let path = state_path(run_dir);
        let what = || format!("cannot read {}", path.display());
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(what),
        };
        let written = fs::metadata(&path).and_then(|meta| meta.modified()).with_context(what)?;
        let state = parse(&text).with_context(what)?;
        // A socket file that an ended agent left refuses connections.
        let is_running = UnixStream::connect(socket_path(run_dir)).is_ok();
        Ok(Some(Self { state, is_running, written }))
    }

    /// The local endpoint that a person means by `namespace/pod`, a pod's name or an address.
    pub fn endpoint(&self, wanted: &str) -> Result<&EndpointView> {
        find(&self.state.endpoints, wanted)
    }
}

fn parse(text: &str) -> Result<State> {
    let Versioned { version } = serde_json::from_str(text).context("it is not a state file")?;
    if version != VERSION {
        bail!(
            "it is of version {version}, this netpol reads version {VERSION}: use the netpol of \
             the agent that wrote it"
        );
    }
    State::parse(text.as_bytes()).context("it is not a state file of this netpol")
}

fn find<'a>(endpoints: &'a [EndpointView], wanted: &str) -> Result<&'a EndpointView> {
    let address = wanted.parse().ok();
    let matching: Vec<&EndpointView> = endpoints
        .iter()
        .filter(|endpoint| match (wanted.split_once('/'), address) {
            (Some((namespace, pod)), _) => endpoint.namespace == namespace && endpoint.pod == pod,
            (None, Some(address)) => endpoint.ips.contains(&address),
            (None, None) => endpoint.pod == wanted || endpoint.interface == wanted,
        })
        .collect();
    match *matching {
        [endpoint] => Ok(endpoint),
        [] => bail!(
            "no endpoint {wanted} on this node: `netpol endpoints` lists those there are \
             (give namespace/pod, or the name of a pod or an interface, or an address)"
        ),
        [..] => bail!(
            "{wanted} is the name of several endpoints: say which of {}",
            matching
                .iter()
                .map(|endpoint| told_apart(endpoint, &matching))
                .collect::<Vec<_>>()
                .join(", ")
        ),
    }
}

/// What to call an endpoint to mean none of the others.
fn told_apart(endpoint: &EndpointView, others: &[&EndpointView]) -> String {
    // A pod may have several interfaces, or be gone and have left one behind.
    let is_unique = others.iter().filter(|other| name(other) == name(endpoint)).count() == 1;
    if is_unique { name(endpoint) } else { endpoint.interface.clone() }
}

/// `namespace/pod`.
pub fn name(endpoint: &EndpointView) -> String {
    format!("{}/{}", endpoint.namespace, endpoint.pod)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use netpol_api::testing::{endpoint, state};

    #[test]
    fn finds_by_full_name_name_and_address() {
        let endpoints = [endpoint("shop", "web", 1, "10.0.0.1"), endpoint("a", "b", 2, "fd00::2")];
        for (wanted, pod) in
            [("shop/web", "web"), ("web", "web"), ("10.0.0.1", "web"), ("fd00:0::2", "b")]
        {
            assert_eq!(find(&endpoints, wanted).unwrap().pod, pod, "{wanted}");
        }
        for wanted in ["shop/b", "we", "10.0.0.3", ""] {
            let error = find(&endpoints, wanted).unwrap_err().to_string();
            assert!(error.contains("no endpoint") && error.contains("netpol endpoints"), "{error}");
        }
    }

    #[test]
    fn an_ambiguous_name_lists_the_choices() {
        let endpoints = [endpoint("a", "web", 1, "10.0.0.1"), endpoint("b", "web", 2, "10.0.0.2")];
        let error = find(&endpoints, "web").unwrap_err().to_string();
        assert!(error.ends_with("say which of a/web, b/web"), "{error}");
        assert_eq!(find(&endpoints, "b/web").unwrap().id, 2);
        // One pod, twice: the interface that it has and one that it has left behind.
        let endpoints = [endpoint("a", "web", 1, "10.0.0.1"), endpoint("a", "web", 2, "10.0.0.2")];
        let error = find(&endpoints, "a/web").unwrap_err().to_string();
        assert!(error.ends_with("say which of veth1, veth2"), "{error}");
        assert_eq!(find(&endpoints, "veth2").unwrap().id, 2);
    }

    #[test]
    fn reads_what_an_agent_wrote_and_says_that_it_is_down() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Node::read(dir.path()).unwrap().is_none());
        let state = state(vec![endpoint("shop", "web", 1, "10.0.0.1")]);
        fs::write(state_path(dir.path()), serde_json::to_vec(&state).unwrap()).unwrap();
        let node = Node::read(dir.path()).unwrap().unwrap();
        assert_eq!(node.state, state);
        assert!(!node.is_running);
        let listener = std::os::unix::net::UnixListener::bind(socket_path(dir.path())).unwrap();
        assert!(Node::read(dir.path()).unwrap().unwrap().is_running);
        drop(listener);
        assert!(!Node::read(dir.path()).unwrap().unwrap().is_running, "the socket file is stale");
    }

    #[test]
    fn another_version_and_another_file_are_refused_with_a_reason() {
        let error = format!("{:#}", parse("{\"version\":99,\"node\":1}").unwrap_err());
        assert!(error.contains("version 99") && error.contains("use the netpol"), "{error}");
        for text in ["", "[]", "{}", "{\"version\":1}"] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.starts_with("it is not a state file"), "{text}: {error}");
        }
    }
}
