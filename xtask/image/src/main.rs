//! The second half of `cargo xtask image`: puts a static binary `netpol` into an image archive.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use netpol_arguments::image::Args;
use netpol_debian::Arch;
use netpol_image::Program;

/// Put the binary `netpol` into an image archive
#[derive(Parser)]
#[command(name = "netpol-image")]
struct Cli {
    #[command(flatten)]
    args: Args,
    /// The binary
    #[arg(long, value_name = "FILE")]
    binary: PathBuf,
    /// Take a binary that is not static, and the libraries that it needs from this machine
    #[arg(long)]
    with_libraries: bool,
}

fn main() -> Result<()> {
    let Cli { args: Args { output, arch, tags }, binary, with_libraries } = Cli::parse();
    let arch = arch.or_else(Arch::host).context("say by --arch which processor it is for")?;
    let output = output.context("say by --output where to write it")?;
    let output = env::current_dir().context("the working directory is gone")?.join(output);
    let program = Program::read(&binary)?;
    ensure!(
        (program.is_static || with_libraries) && program.architecture == arch.name(),
        "{} is for {} and {}; the image needs a static one for {arch}: build it with `cargo xtask image`",
        binary.display(),
        program.architecture,
        if program.is_static { "static" } else { "needs shared libraries" },
    );
    netpol_image::netpol(&binary, tags)?.write(&output)?;
    let size = std::fs::metadata(&output).context("cannot read the image's size")?.len();
    println!("{} ({:.1} MB)", output.display(), size as f64 / 1e6);
    Ok(())
}
