//! `cargo xtask manifests`: writes the file that is generated from deploy/base, with the kustomize
//! that is in kubectl. The work is netpol-cluster's, which knows where kubectl comes from.

use std::process::ExitCode;

use anyhow::Result;

use crate::build;
use crate::run;
use crate::workspace::Workspace;

pub(crate) fn command(workspace: &Workspace) -> Result<ExitCode> {
    // The crate depends on netpol-userspace, which embeds the object.
    let _object = build::object(workspace)?;
    let mut command = run::cargo();
    command.current_dir(workspace.root());
    command.args(["run", "--quiet", "--package", "netpol-cluster", "--bin", "netpol-manifests"]);
    run::visible(command, "fix the error above")?;
    Ok(ExitCode::SUCCESS)
}
