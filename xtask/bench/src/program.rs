//! The program `netpol` of this checkout. Must never be one that is older than the sources.

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

/// Says where the `netpol` of this checkout is; `cargo xtask` builds it and sets this.
const PROGRAM: &str = "NETPOL_PROGRAM";

/// The one that `NETPOL_PROGRAM` names. Nothing is built here, where it would be measured or waited
/// for.
///
/// # Errors
/// It is not set, or names nothing.
pub fn netpol() -> Result<PathBuf> {
    let path = env::var_os(PROGRAM).map(PathBuf::from).with_context(|| {
        format!("{PROGRAM} is not set: start this by `cargo xtask`, which builds what it names")
    })?;
    ensure!(path.exists(), "{PROGRAM} is {}, which does not exist", path.display());
    Ok(path)
}
