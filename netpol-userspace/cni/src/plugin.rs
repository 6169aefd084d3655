//! The plugin's commands. Must never wait for the agent longer than the configuration says.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::input::{Config, Environment, OnUnreachable, PodName, VERSIONS, addresses};
use super::{Code, Failure};
use netpol_api::client;
use netpol_api::sandbox::{self, CniRequest, Pair, Sandbox};
use netpol_endpoint::pair_in;
use netpol_isolation::netns::Netns;

/// How long an end may take to be told: an agent that does not hear of it finds out by itself.
const END_LIMIT: Duration = Duration::from_secs(2);
/// How long STATUS waits for an agent: one that is being replaced is no reason to call the node
/// unready.
const STATUS_LIMIT: Duration = Duration::from_secs(8);

/// Carries out the command of the environment; the answer for standard output.
pub(super) fn run(
    variable: &dyn Fn(&str) -> Option<String>,
    text: &[u8],
) -> Result<String, Failure> {
    let environment = Environment::new(variable);
    let command = environment.need("CNI_COMMAND")?;
    if command == "VERSION" {
        return Ok(version(text));
    }
    let config = Config::parse(text)?;
    let outcome = match command.as_str() {
        "ADD" => add(&environment, &config),
        "CHECK" => check(&environment, &config),
        "DEL" => delete(&environment, &config),
        "GC" => collect(&config),
        "STATUS" => status(&config),
        other => {
            Err(Failure::new(Code::Environment, format!("CNI_COMMAND {other:?} is not known")))
        }
    };
    outcome.map_err(|failure| Failure { version: Some(config.version.clone()), ..failure })
}

fn version(text: &[u8]) -> String {
    let config: Value = serde_json::from_slice(text).unwrap_or_default();
    let newest = VERSIONS[VERSIONS.len() - 1];
    let version = config["cniVersion"].as_str().unwrap_or(newest);
    json!({ "cniVersion": version, "supportedVersions": VERSIONS }).to_string()
}

/// Hands the result of the plugins before on, once the pod's policies are in force.
fn add(environment: &Environment<'_>, config: &Config) -> Result<String, Failure> {
    let previous = config.previous()?;
    // A container that is no pod is nothing to Kubernetes' policies.
    if let Some(pod) = environment.pod()? {
        let sandbox = describe(environment, config, previous, &pod)?;
        confirm(config, sandbox, &pod)?;
    }
    let mut result = previous.clone();
    if result["cniVersion"].is_null() {
        result["cniVersion"] = config.version.as_str().into();
    }
    Ok(result.to_string())
}

fn describe(
    environment: &Environment<'_>,
    config: &Config,
    previous: &Value,
    pod: &PodName,
) -> Result<Sandbox, Failure> {
    let attachment = environment.attachment()?;
    let path = environment.need("CNI_NETNS")?;
    let unusable = |error: std::io::Error| {
        let message = format!("cannot use the network namespace {path} (CNI_NETNS): {error}");
        Failure::new(Code::Io, message)
    };
    let netns = Netns::open(&path).map_err(unusable)?;
    let pair = pair_in(&netns, &attachment.interface).map_err(unusable)?;
    Ok(Sandbox {
        addresses: addresses(previous, &attachment.interface)?,
        container: attachment.container,
        interface: attachment.interface,
        network: config.name.clone(),
        namespace: pod.namespace.clone(),
        pod: pod.name.clone(),
        uid: pod.uid.clone(),
        netns: (netns.id().dev, netns.id().ino),
        pair: pair.map(|(peer_ifindex, ifindex)| Pair { ifindex, peer_ifindex }),
        is_unconfirmed: false,
        is_over: false,
    })
}

/// Writes the sandbox down and waits until the agent confirms that it is enforced.
fn confirm(config: &Config, mut sandbox: Sandbox, pod: &PodName) -> Result<(), Failure> {
    let why = match write(config, &sandbox) {
        Err(why) => why,
        Ok(()) => {
            let request = CniRequest::Add { sandbox: Box::new(sandbox.clone()) };
            match ask(&config.run_dir, &request, config.timeout(), true) {
                Ok(()) => return Ok(()),
                Err(why) => why,
            }
        }
    };
    if config.on_unreachable == OnUnreachable::Allow {
        sandbox.is_unconfirmed = true;
        // The pod starts all the same; there is nobody left to tell if this fails.
        let _ = write(config, &sandbox);
        return Ok(());
    }
    Err(Failure::new(
        Code::TryAgain,
        format!(
            "pod {}/{} does not start before its network policies are in force: {why}",
            pod.namespace, pod.name
        ),
    ))
}

fn write(config: &Config, sandbox: &Sandbox) -> Result<(), String> {
    sandbox::write(&config.run_dir, sandbox).map_err(|error| {
        let directory = sandbox::directory(&config.run_dir);
        format!("cannot write to {}: {error}", directory.display())
    })
}

/// The agent's "yes", or why not.
fn ask(
    run_dir: &Path,
    request: &CniRequest,
    limit: Duration,
    is_patient: bool,
) -> Result<(), String> {
    match client::request_cni(run_dir, request, limit, is_patient) {
        Ok(answer) if answer.is_done => Ok(()),
        Ok(answer) => Err(answer.message),
        Err(error) => Err(format!("{error:#}")),
    }
}

fn check(environment: &Environment<'_>, config: &Config) -> Result<String, Failure> {
    config.previous()?;
    if environment.pod()?.is_none() {
        return Ok(String::new());
    }
    let request = CniRequest::Check { attachment: environment.attachment()? };
    match ask(&config.run_dir, &request, config.timeout(), true) {
        Err(why) if config.on_unreachable == OnUnreachable::Fail => {
            Err(Failure::new(Code::TryAgain, why))
        }
        _ => Ok(String::new()),
    }
}

/// Never fails for want of an agent: who cannot delete a pod's network cannot delete the pod.
fn delete(environment: &Environment<'_>, config: &Config) -> Result<String, Failure> {
    let attachment = environment.attachment()?;
    if let Some(sandbox) = sandbox::read(&config.run_dir, &attachment) {
        // An agent that cannot be told now reads it later, or sees that the interface is gone.
        let _ = sandbox::write(&config.run_dir, &Sandbox { is_over: true, ..sandbox });
    }
    let _ = ask(&config.run_dir, &CniRequest::Delete { attachment }, END_LIMIT, false);
    Ok(String::new())
}

fn collect(config: &Config) -> Result<String, Failure> {
    let valid = config.valid_attachments()?;
    for sandbox in sandbox::read_all(&config.run_dir) {
        let is_here = !sandbox.is_over && sandbox.network == config.name;
        if is_here && !valid.contains(&sandbox.attachment()) {
            let over = Sandbox { is_over: true, ..sandbox };
            write(config, &over).map_err(|why| Failure::new(Code::Io, why))?;
        }
    }
    let request = CniRequest::Collect { network: config.name.clone(), attachments: valid.to_vec() };
    let _ = ask(&config.run_dir, &request, END_LIMIT, false);
    Ok(String::new())
}

fn status(config: &Config) -> Result<String, Failure> {
    if config.on_unreachable == OnUnreachable::Allow {
        return Ok(String::new());
    }
    let limit = STATUS_LIMIT.min(config.timeout());
    match ask(&config.run_dir, &CniRequest::Status, limit, true) {
        Ok(()) => Ok(String::new()),
        Err(why) => Err(Failure::new(Code::NotAvailable, format!("no pod can start: {why}"))),
    }
}
