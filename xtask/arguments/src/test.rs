//! The arguments of `cargo xtask test`, of which netpol-kernels carries out the scope `kernels`.

use netpol_debian::Arch;

/// Options of `test`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Which tests
    #[arg(value_enum, default_value_t = Scope::All)]
    pub scope: Scope,
    /// Only tests whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub filter: Option<String>,
    /// Only tests of this package
    #[arg(long, short, value_name = "NAME")]
    pub package: Option<String>,
    /// With `fuzz` and `hostile`: how many random cases; elsewhere: how often agents are replaced under
    /// traffic (agent_restart)
    #[arg(long, value_name = "N")]
    pub cases: Option<u64>,
    /// With `fuzz` and `hostile`: the first case, to repeat one that failed; else one that nobody has tried
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Show what tests print
    #[arg(long)]
    pub show_output: bool,
    /// With `kernels`: the start of a kernel's release, such as 6.1; several can be given. With `--arch arm64`
    /// 7-16k is one with pages of 16 KiB
    #[arg(long, value_name = "V")]
    pub kernel: Vec<String>,
    /// With `kernels`: a few tests of each kind, and only the oldest and the newest kernel if none is named
    #[arg(long)]
    pub quick: bool,
    /// With `kernels`: those of this processor, amd64 or arm64 [default: this machine's]
    #[arg(long)]
    pub arch: Option<Arch>,
    /// Make ready what these tests need, and stop before the first one
    #[arg(long)]
    pub prepare: bool,
}

/// A part of the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Scope {
    /// Everything
    All,
    /// Tests beside the code
    Unit,
    /// Whole-system tests: network namespaces, datapath, the binary
    #[value(alias = "system")]
    Root,
    /// Examples in the documentation
    Doc,
    /// The loaded programs against the reference evaluator, against another parser, and against
    /// their own code, on random clusters and frames; see --cases and --seed. A case is a cluster
    /// of some thousand frames (--filter verdict), a hundred thousand damaged frames (--filter
    /// damaged), a sequence of sixty (--filter judge) or an edit under a flood (--filter edits)
    Fuzz,
    /// Attacks by pods with raw sockets, by tenants and by strangers, on the wire. What is promised
    /// against whom is in SECURITY.md. A case, see --cases and --seed, is five thousand random frames
    /// on each of three networks, and a second of each flood
    Hostile,
    /// Whole-system tests inside other kernels, in virtual machines; see --kernel. --filter selects
    /// test programs by their names, and tunnels (`/gre`)
    Kernels,
}
