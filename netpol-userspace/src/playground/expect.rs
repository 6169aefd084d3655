//! What the reference evaluator says about a connection. Must never look at the compiler.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};

use super::plan::Host;
use super::pods::Port;
use crate::model::Cluster;
use crate::source::catalog::{Catalog, FileState, Files};
use crate::source::{self, Event, parse};

/// The expectations for one state of the manifests.
#[derive(Debug)]
pub enum Expectations {
    /// No agents, no enforcement: everything passes.
    Everything,
    /// What the policies say.
    Policies(Cluster),
}

impl Expectations {
    /// From the manifests that the agents read.
    pub fn new(manifest: &str) -> Result<Self> {
        let contents = Arc::new(parse::file("manifests", manifest));
        let files = Files::from([("manifests".to_owned(), FileState::Read(contents))]);
        let mut catalog = Catalog::default();
        let mut cluster = Cluster::default();
        for event in catalog.update(&files) {
            if let Event::Changes(changes) = event {
                for change in changes {
                    cluster.apply(change);
                }
            }
        }
        refuse(catalog.problems())?;
        Ok(Self::Policies(cluster))
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

/// Refuses manifests in which anything cannot be used, with the agent's own words.
pub fn refuse_problems(dir: &Path) -> Result<()> {
    refuse(&source::load_dir(dir)?.problems.into_iter().collect())
}

fn refuse(problems: &BTreeMap<String, String>) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> =
        problems.iter().map(|(object, message)| format!("{object}: {message}")).collect();
    bail!("{}", lines.join("\n"))
}
