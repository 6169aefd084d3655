//! `netpol` as a chained CNI plugin: a pod starts when its policies are in force, not before.
//!
//! The same program is the plugin when a container runtime runs it, which is told by CNI_COMMAND
//! in its environment. It tells the agent what the runtime does, waits for the agent's
//! confirmation and hands the result of the plugins before it on, unchanged. Must never touch an
//! interface, an address or a route, and never let DEL fail because of an agent that is down: the
//! pod could not be deleted then.

#![forbid(unsafe_code)]

pub mod conflist;
mod input;
pub mod install;
mod plugin;
pub mod upkeep;

use std::env;
use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

pub use input::OnUnreachable;
use serde_json::json;

/// The plugin's type in a network configuration: the name of its file.
pub const TYPE: &str = "netpol";
/// No configuration is that long.
const MAX_INPUT_BYTES: u64 = 16 << 20;

/// Whether a container runtime runs this program.
pub fn is_call() -> bool {
    env::var_os("CNI_COMMAND").is_some() && env::args_os().len() == 1
}

/// The plugin: reads the environment and standard input, and answers on standard output.
pub fn main() -> ExitCode {
    let mut text = Vec::new();
    let read = io::stdin().take(MAX_INPUT_BYTES).read_to_end(&mut text);
    let variable = |name: &str| env::var(name).ok();
    let outcome = match read {
        Ok(_) => plugin::run(&variable, &text),
        Err(error) => {
            Err(Failure::new(Code::Io, format!("cannot read the network configuration: {error}")))
        }
    };
    let (answer, code) = match outcome {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(failure) => (failure.to_json(), ExitCode::from(1)),
    };
    match io::stdout().write_all(answer.as_bytes()) {
        Ok(()) => code,
        Err(_) => ExitCode::from(1),
    }
}

/// Error codes of the CNI specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    Version = 1,
    Environment = 4,
    Io = 5,
    Decode = 6,
    Config = 7,
    TryAgain = 11,
    NotAvailable = 50,
}

/// An error as the runtime gets it.
#[derive(Debug, PartialEq, Eq)]
struct Failure {
    code: Code,
    message: String,
    /// The version that the configuration is in, if it could be read.
    version: Option<String>,
}

impl Failure {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), version: None }
    }

    fn to_json(&self) -> String {
        let newest = input::VERSIONS[input::VERSIONS.len() - 1];
        json!({
            "cniVersion": self.version.as_deref().unwrap_or(newest),
            "code": self.code as u32,
            "msg": format!("netpol: {}", self.message),
        })
        .to_string()
    }
}
