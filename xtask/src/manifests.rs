//! `cargo xtask manifests`: writes the file that is generated from deploy/base, with the kustomize
//! that is in kubectl. The work is netpol-cluster's, which knows where kubectl comes from.

use std::process::ExitCode;

use anyhow::Result;
use netpol_needs::Need;
use netpol_run::{self as run, Workspace};
use netpol_setup::Wanted;

use crate::build;

pub(crate) fn command(workspace: &Workspace) -> Result<ExitCode> {
    // The crate depends on netpol-datapath, which embeds the object.
    let _object = build::object_for(workspace, &Wanted::with([Need::Kubectl]))?;
    let mut kubectl = build::package(workspace, "netpol-cluster");
    kubectl.args(["--", "build", Need::Kubectl.name()]);
    run::visible(kubectl, "see above")?;
    let mut command = build::package(workspace, "netpol-cluster");
    command.args(["--bin", "netpol-manifests"]);
    run::visible(command, "fix the error above")?;
    Ok(ExitCode::SUCCESS)
}
