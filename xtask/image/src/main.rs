//! The second half of `cargo xtask image`: puts a static binary `netpol` into an image archive.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use netpol_image::Program;

/// Put the binary `netpol` into an image archive
#[derive(Parser)]
struct Options {
    /// The binary
    #[arg(long, value_name = "FILE")]
    binary: PathBuf,
    /// The architecture that it has to be for
    #[arg(long, value_name = "ARCH")]
    arch: String,
    /// The image's name, with registry and tag; may be repeated
    #[arg(long = "tag", value_name = "NAME", required = true)]
    tags: Vec<String>,
    /// Take a binary that is not static, and the libraries that it needs from this machine
    #[arg(long)]
    with_libraries: bool,
    /// Where to write the archive
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let program = Program::read(&options.binary)?;
    ensure!(
        (program.is_static || options.with_libraries) && program.architecture == options.arch,
        "{} is for {} and {}; the image needs a static one for {}: build it with `cargo xtask image`",
        options.binary.display(),
        program.architecture,
        if program.is_static { "static" } else { "needs shared libraries" },
        options.arch
    );
    netpol_image::netpol(&options.binary, options.tags)?.write(&options.output)?;
    let size = std::fs::metadata(&options.output).context("cannot read the image's size")?.len();
    println!("{} ({:.1} MB)", options.output.display(), size as f64 / 1e6);
    Ok(())
}
