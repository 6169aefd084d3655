//! What a runtime gives a plugin: environment and network configuration, checked. Must never
//! accept a name that could lead out of the directory it becomes a file's name in.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::{Code, Failure};
use netpol_api::sandbox::Attachment;
use netpol_api::state::RUN_DIR;

/// The versions of the specification that are understood. Older ones have no chains.
pub(crate) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The longest name of an interface.
const MAX_INTERFACE_LEN: usize = 15;

/// The network configuration, as far as it concerns us.
#[derive(Debug, Deserialize)]
pub struct Config {
    /// The version of the specification that it is written in.
    #[serde(rename = "cniVersion", default)]
    pub version: String,
    /// The network's name.
    #[serde(default)]
    pub name: String,
    /// `--run-dir` of the agent.
    #[serde(rename = "run-dir", default = "default_run_dir")]
    pub run_dir: PathBuf,
    /// Seconds to wait for the agent's confirmation.
    #[serde(default = "default_timeout")]
    timeout: u32,
    /// What to do without it.
    #[serde(rename = "on-unreachable", default)]
    pub on_unreachable: OnUnreachable,
    /// The result of the plugins before.
    #[serde(rename = "prevResult")]
    pub previous: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<Attachment>>,
    /// The name that the first runtimes with GC used.
    #[serde(rename = "cni.dev/attachments")]
    valid_formerly: Option<Vec<Attachment>>,
}

/// What happens to a pod whose policies no agent confirms to be in force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum OnUnreachable {
    /// It does not start; the kubelet tries again
    #[default]
    Fail,
    /// It starts; the agent enforces its policies as soon as it can
    Allow,
}

impl OnUnreachable {
    /// As in a configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Allow => "allow",
        }
    }
}

fn default_run_dir() -> PathBuf {
    RUN_DIR.into()
}

fn default_timeout() -> u32 {
    20
}

impl Config {
    /// Reads it.
    pub fn parse(text: &[u8]) -> Result<Self, Failure> {
        let value: Value = serde_json::from_slice(text).map_err(|error| {
            Failure::new(Code::Decode, format!("the network configuration is not JSON: {error}"))
        })?;
        let version = value["cniVersion"].as_str().map(str::to_owned);
        let config: Self = serde_path_to_error::deserialize(value).map_err(|error| {
            let message = format!("the network configuration cannot be used: {error}");
            Failure { version: version.clone(), ..Failure::new(Code::Config, message) }
        })?;
        if !VERSIONS.contains(&config.version.as_str()) {
            return Err(Failure::new(
                Code::Version,
                format!(
                    "the network configuration has cniVersion {:?}; understood are {}",
                    config.version,
                    VERSIONS.join(", ")
                ),
            ));
        }
        Ok(config)
    }

    /// How long to wait for the agent's confirmation.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout.into())
    }

    /// The attachments that GC leaves.
    pub(crate) fn valid_attachments(&self) -> Result<&[Attachment], Failure> {
        let list = self.valid.as_ref().or(self.valid_formerly.as_ref());
        list.map(Vec::as_slice)
            .ok_or_else(|| Failure::new(Code::Config, "GC without cni.dev/valid-attachments"))
    }

    /// The result of the plugins before, to be handed on.
    pub fn previous(&self) -> Result<&Value, Failure> {
        let previous = self.previous.as_ref().filter(|previous| previous.is_object());
        previous.ok_or_else(|| {
            Failure::new(
                Code::Config,
                "there is no prevResult: netpol makes no network itself, so its place is after \
                 the plugins that do, in the `plugins` of a conflist",
            )
        })
    }
}

/// The addresses that an interface got, by the result of the plugins before.
pub fn addresses(result: &Value, interface: &str) -> Result<Vec<IpAddr>, Failure> {
    let bad = |what: String| Failure::new(Code::Config, format!("prevResult: {what}"));
    let mut addresses = Vec::new();
    let ips = match &result["ips"] {
        Value::Null => return Ok(addresses),
        ips => ips.as_array().ok_or_else(|| bad(format!("ips is not a list: {ips}")))?,
    };
    for ip in ips {
        let text = ip["address"].as_str().ok_or_else(|| bad(format!("no address in {ip}")))?;
        let address: IpNet =
            text.parse().map_err(|_| bad(format!("{text:?} is not an address with a prefix")))?;
        let name = match &ip["interface"] {
            Value::Null => None,
            index => {
                let index = index.as_u64().and_then(|index| usize::try_from(index).ok());
                let named = index.and_then(|index| result["interfaces"][index]["name"].as_str());
                Some(named.ok_or_else(|| bad(format!("no such interface: {ip}")))?)
            }
        };
        // An address of no interface in particular is one of the interface that was asked for.
        if name.is_none_or(|name| name == interface) && !addresses.contains(&address.addr()) {
            addresses.push(address.addr());
        }
    }
    Ok(addresses)
}

/// The environment.
pub struct Environment<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
}

/// The pod that a sandbox is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid, empty if the runtime does not say.
    pub uid: String,
}

impl<'a> Environment<'a> {
    /// Reads variables by this function.
    pub fn new(variable: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { variable }
    }

    /// A variable that must be there.
    pub fn need(&self, name: &str) -> Result<String, Failure> {
        (self.variable)(name)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| Failure::new(Code::Environment, format!("{name} is not set")))
    }

    /// Which interface of which sandbox is meant.
    pub fn attachment(&self) -> Result<Attachment, Failure> {
        let container = self.need("CNI_CONTAINERID")?;
        let interface = self.need("CNI_IFNAME")?;
        let bad = |name: &str, value: &str| {
            Failure::new(Code::Environment, format!("{name} is no valid name: {value:?}"))
        };
        let is_good = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        if !container.starts_with(|c: char| c.is_ascii_alphanumeric())
            || !container.chars().all(is_good)
        {
            return Err(bad("CNI_CONTAINERID", &container));
        }
        let is_bad = |c: char| c == '/' || c == ':' || c.is_whitespace();
        if interface.len() > MAX_INTERFACE_LEN
            || interface == "."
            || interface == ".."
            || interface.contains(is_bad)
        {
            return Err(bad("CNI_IFNAME", &interface));
        }
        Ok(Attachment { container, interface })
    }

    /// The pod, if the sandbox is one of Kubernetes.
    pub fn pod(&self) -> Result<Option<PodName>, Failure> {
        let mut found = [const { None }; 3];
        let names = ["K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID"];
        let text = (self.variable)("CNI_ARGS").unwrap_or_default();
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                let message = format!("CNI_ARGS is no list of KEY=VALUE: {text:?}");
                return Err(Failure::new(Code::Environment, message));
            };
            if let Some(index) = names.iter().position(|name| *name == key) {
                found[index] = Some(value.to_owned()).filter(|value| !value.is_empty());
            }
        }
        let [namespace, name, uid] = found;
        Ok(namespace.zip(name).map(|(namespace, name)| PodName {
            namespace,
            name,
            uid: uid.unwrap_or_default(),
        }))
    }
}

#[cfg(test)]
mod tests;
