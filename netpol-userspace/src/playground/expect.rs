//! What the reference evaluator says about a connection. Must never look at the compiler.

use std::net::IpAddr;

use anyhow::Result;

use super::plan::Host;
use super::pods::Port;

/// The expectations for one state of the manifests.
#[derive(Debug)]
pub enum Expectations {
    /// No agents, no enforcement: everything passes.
    Everything,
}

impl Expectations {
    /// Reads what the agents read.
    pub fn new(_manifest: &str) -> Result<Self> {
        Ok(Self::Everything)
    }

    /// Whether this connection is allowed.
    pub fn allows(
        &self,
        _from: &Host,
        _source: IpAddr,
        _to: &Host,
        _destination: IpAddr,
        _port: &Port,
    ) -> bool {
        true
    }
}
