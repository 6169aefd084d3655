//! What the container runtime has said of one pod sandbox, through `netpol cni`: plain data, and
//! the file in `<run-dir>/sandboxes` that holds it. The plugin writes the file before it asks the
//! agent, so that an agent that was not there knows it all the same. Knows no policy, and must
//! never be believed about anything but whose a network namespace is and which addresses it got.

use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use netpol_model::{ObjectName, Pod};

/// The name that every container runtime gives a pod's main interface. The addresses of others
/// (further networks) are not the pod's addresses.
const MAIN_INTERFACE: &str = "eth0";

/// One interface of a pod sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// The runtime's id of the sandbox.
    pub container: String,
    /// The interface's name inside.
    pub interface: String,
    /// The name of the network that the runtime added it to.
    pub network: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid, empty if the runtime did not say.
    pub uid: String,
    /// Which network namespace it is: device and inode of its file.
    pub netns: (u64, u64),
    /// The two ends of the pair, unless the interface is no veth or netkit device.
    pub pair: Option<Pair>,
    /// The addresses the interface got.
    pub addresses: Vec<IpAddr>,
    /// The pod was let start although no agent had confirmed that its policies are in force.
    #[serde(default)]
    pub is_unconfirmed: bool,
    /// The runtime has ended it: its addresses may be another pod's by now.
    #[serde(default)]
    pub is_over: bool,
}

/// Both ends of a veth or netkit pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// Index of the host's end, in the host's namespace.
    pub ifindex: u32,
    /// Index of the pod's end, in the pod's.
    pub peer_ifindex: u32,
}

/// What identifies an attachment in the CNI specification.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attachment {
    /// The runtime's id of the sandbox.
    #[serde(rename = "containerID")]
    pub container: String,
    /// The interface's name inside.
    #[serde(rename = "ifname")]
    pub interface: String,
}

impl Sandbox {
    /// What identifies it.
    pub fn attachment(&self) -> Attachment {
        Attachment { container: self.container.clone(), interface: self.interface.clone() }
    }

    /// The pod's name.
    pub fn name(&self) -> ObjectName {
        ObjectName::new(self.namespace.as_str(), self.pod.as_str())
    }

    /// Whether its addresses are the pod's addresses.
    pub fn is_main(&self) -> bool {
        self.interface == MAIN_INTERFACE
    }

    /// Whether this object is the pod that it was made for. A static pod's object is a mirror with
    /// a uid of its own, and objects from files may have none: these go by their names.
    pub fn is_of(&self, pod: &Pod) -> bool {
        let has_same_name = *self.namespace == *pod.id.namespace && *self.pod == *pod.id.name;
        has_same_name
            && (pod.uid == *self.uid
                || self.uid.is_empty()
                || is_static(&self.uid)
                || pod.uid == *pod.id.to_string())
    }
}

/// Whether a uid is one that the kubelet itself gave a pod, from a file: a hash, while the API
/// server's have dashes.
fn is_static(uid: &str) -> bool {
    uid.len() == 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The directory of the files.
pub fn directory(run_dir: &Path) -> PathBuf {
    run_dir.join("sandboxes")
}

fn path(run_dir: &Path, attachment: &Attachment) -> PathBuf {
    // Neither contains a slash: the plugin has checked them.
    directory(run_dir).join(format!("{}-{}.json", attachment.container, attachment.interface))
}

/// Writes the file, in one step.
pub fn write(run_dir: &Path, sandbox: &Sandbox) -> io::Result<()> {
    let path = path(run_dir, &sandbox.attachment());
    let draft = path.with_extension("new");
    fs::create_dir_all(directory(run_dir))?;
    let mut file = fs::File::create(&draft)?;
    file.write_all(&serde_json::to_vec(sandbox)?)?;
    fs::rename(&draft, &path)
}

/// The sandbox of an attachment, if there is a file that can be understood.
pub fn read(run_dir: &Path, attachment: &Attachment) -> Option<Sandbox> {
    serde_json::from_slice(&fs::read(path(run_dir, attachment)).ok()?).ok()
}

/// Removes the file. One that does not exist is fine.
pub fn remove(run_dir: &Path, attachment: &Attachment) -> io::Result<()> {
    match fs::remove_file(path(run_dir, attachment)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// All of them, the oldest first, so that of two with one address the later wins.
pub fn read_all(run_dir: &Path) -> Vec<Sandbox> {
    let Ok(entries) = fs::read_dir(directory(run_dir)) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let written = entry.metadata().and_then(|metadata| metadata.modified());
        match fs::read(&path).map(|text| serde_json::from_slice::<Sandbox>(&text)) {
            Ok(Ok(sandbox)) => found.push((written.ok(), sandbox)),
            Ok(Err(error)) => {
                tracing::warn!(path = %path.display(), %error, "ignoring a sandbox's file");
            }
            // It was removed meanwhile.
            Err(_) => {}
        }
    }
    found.sort_by_key(|(written, _)| *written);
    found.into_iter().map(|(_, sandbox)| sandbox).collect()
}

/// What `netpol cni` sends to `POST /cni` of the agent's socket, by the verb of the CNI specification
/// that it follows from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub enum CniRequest {
    /// There is a new sandbox. Answered when its pod's policies are in force.
    #[serde(rename = "added")]
    Add {
        /// It.
        sandbox: Box<Sandbox>,
    },
    /// Are its policies in force? Answered like [`CniRequest::Add`].
    Check {
        /// Which one.
        attachment: Attachment,
    },
    /// The runtime ends it, or failed to make it.
    #[serde(rename = "over")]
    Delete {
        /// Which one.
        attachment: Attachment,
    },
    /// All others of this network are over.
    #[serde(rename = "valid")]
    Collect {
        /// The network's name.
        network: String,
        /// Those that are not.
        attachments: Vec<Attachment>,
    },
    /// Can the agent confirm new pods?
    #[serde(rename = "ready")]
    Status,
}

/// The agent's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Yes, or done.
    pub is_done: bool,
    /// Why not.
    pub message: String,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// Plugin and agent may be of different releases.
    #[test]
    fn requests_look_as_earlier_releases_write_them() {
        let attachment = Attachment { container: "c".to_owned(), interface: "eth0".to_owned() };
        let identity = r#""attachment":{"containerID":"c","ifname":"eth0"}"#;
        let (network, attachments) = ("n".to_owned(), Vec::new());
        for (request, text) in [
            (
                CniRequest::Check { attachment: attachment.clone() },
                format!(r#"{{"verb":"check",{identity}}}"#),
            ),
            (CniRequest::Delete { attachment }, format!(r#"{{"verb":"over",{identity}}}"#)),
            (
                CniRequest::Collect { network, attachments },
                r#"{"verb":"valid","network":"n","attachments":[]}"#.to_owned(),
            ),
            (CniRequest::Status, r#"{"verb":"ready"}"#.to_owned()),
        ] {
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
        }
        let sandbox = r#"{"container":"c","interface":"eth0","network":"n","namespace":"shop",
            "pod":"web","uid":"u","netns":[1,2],"pair":null,"addresses":[]}"#;
        let added = format!(r#"{{"verb":"added","sandbox":{sandbox}}}"#);
        let request = serde_json::from_str(&added).unwrap();
        assert!(matches!(request, CniRequest::Add { sandbox } if sandbox.pod == "web"));
    }
}
