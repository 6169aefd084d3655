//! Debian's packages, for this machine's processor or another: fetched and unpacked below a directory
//! of netpol's own. Must never install one, nor read or change the host's sources of packages, its
//! list of what is installed, or its list of processors.

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

mod apt;
mod arch;
mod kept;

pub use apt::{Apt, Run, Source, kernels, release, suite};
pub use arch::Arch;
pub use kept::{Draft, is_kept};

/// Where what was fetched and built is kept: `NETPOL_CACHE`, else `netpol` in the user's cache.
///
/// # Errors
/// Neither `NETPOL_CACHE` nor `XDG_CACHE_HOME` nor `HOME` is set.
pub fn cache() -> Result<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(directory) = set("NETPOL_CACHE") {
        return Ok(directory);
    }
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let cache = cache.context("no place to keep built programs: set NETPOL_CACHE or HOME")?;
    Ok(cache.join("netpol"))
}
