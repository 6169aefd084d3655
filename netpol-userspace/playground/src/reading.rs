//! One reading of the manifests: planned, understood, and what of it is to be tried. Must never
//! let the planner remember a reading with an error.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};

use super::expect::Expectations;
use super::plan::{Layout, Place, Planner};
use super::{manifests, ports, round};
use netpol_model::Cluster;
use netpol_source::Event;
use netpol_source::advice::{self, Scope, Subject, Warning};
use netpol_source::catalog::{Catalog, FileState, Files};
use netpol_source::parse::{self, Contents, Object, Originals};

/// What the manifests mean.
#[derive(Debug)]
pub struct Reading {
    /// Hosts with the ports that are tried, and what the agents read.
    pub layout: Layout,
    /// What is expected of each connection.
    pub expectations: Expectations,
    /// What in policies probably is not meant, each with the policy: `NetworkPolicy shop/web`.
    pub warnings: Vec<(String, Warning)>,
    /// What is not tried, in words.
    pub notes: Vec<String>,
}

impl Reading {
    /// Reads and plans the manifests in `dir`. Without `enforced`, everything is expected to
    /// pass.
    pub fn new(dir: &Path, planner: &mut Planner, enforced: bool) -> Result<Self> {
        refuse(&netpol_source::load_dir(dir)?.problems.into_iter().collect())?;
        let documents = manifests::read(dir)?;
        // The planner must not remember what turns out to have an error after all.
        let mut next = planner.clone();
        let reading = Self::of(next.plan(&documents)?, enforced)?;
        *planner = next;
        Ok(reading)
    }

    fn of(mut layout: Layout, enforced: bool) -> Result<Self> {
        let (contents, cluster) = understand(&layout.manifest)?;
        let notes = ports::add(&mut layout.hosts, &cluster);
        let expectations = match enforced {
            true => Expectations::new(&contents),
            false => Expectations::Everything,
        };
        Ok(Self { layout, expectations, warnings: warnings(&contents, &cluster), notes })
    }

    /// Refuses, with what to do about it, a reading of which nothing can be tried: nobody should
    /// take an empty answer for a good one.
    pub(crate) fn refuse_nothing(&self, dir: &Path) -> Result<()> {
        let hosts = &self.layout.hosts;
        if round::n_probes(hosts) > 0 {
            return Ok(());
        }
        let dir = dir.display();
        if hosts.iter().all(|host| host.place == Place::Outside) {
            bail!(
                "nothing to try: {dir} declares no pods that run. Add the Pods, Deployments or \
                 other workloads that the policies are about, as for `kubectl apply`"
            );
        }
        bail!(
            "nothing to try: no pod in {dir} listens on a port that another host could connect \
             to. Declare a containerPort in one of them"
        );
    }
}

/// The manifests as the agents will understand them.
fn understand(manifest: &str) -> Result<(Arc<Contents>, Cluster)> {
    let contents = Arc::new(parse::file("manifests", manifest, Originals::Kept));
    let files = Files::from([("manifests".to_owned(), FileState::Read(contents.clone()))]);
    let (mut catalog, mut cluster) = (Catalog::default(), Cluster::default());
    for event in catalog.update(&files) {
        if let Event::Changes(changes) = event {
            for change in changes {
                cluster.apply(change);
            }
        }
    }
    refuse(catalog.problems())?;
    Ok((contents, cluster))
}

fn warnings(contents: &Contents, cluster: &Cluster) -> Vec<(String, Warning)> {
    let mut all = Vec::new();
    for entry in &contents.entries {
        if let Some(Object::Policy(Some(object), policy)) = &entry.object {
            let subject = Subject { object, left_empty: &entry.left_empty, policy };
            let found = advice::warnings(subject, cluster, Scope::Cluster);
            all.extend(found.into_iter().map(|warning| (entry.title.clone(), warning)));
        }
    }
    all
}

/// Refuses manifests in which anything cannot be used, with the agent's own words.
fn refuse(problems: &BTreeMap<String, String>) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> =
        problems.iter().map(|(object, message)| format!("{object}: {message}")).collect();
    bail!("{}", lines.join("\n"))
}
