//! The arguments of `cargo xtask image`, whose second half netpol-image carries out.

use std::path::PathBuf;

use netpol_debian::Arch;

/// Options of `image`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Where to write the archive [default: netpol-ARCH.tar in the target directory]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The processor that it is for, amd64 or arm64 [default: this machine's]
    #[arg(long)]
    pub arch: Option<Arch>,
    /// The image's name, with registry and tag; may be repeated
    #[arg(long = "tag", value_name = "NAME", default_value = DEFAULT_NAME)]
    pub tags: Vec<String>,
}

/// The name that deploy/ uses.
const DEFAULT_NAME: &str = concat!("localhost/netpol:", env!("CARGO_PKG_VERSION"));
