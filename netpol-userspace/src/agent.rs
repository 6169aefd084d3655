//! `netpol agent`: its flags, and their translation into [`agent::Options`].

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use super::cni::{BIN_DIR, entry};
use super::places::{BPFFS, RUN_DIR};
use netpol_agent::annotations::Trust;
use netpol_agent::{self as agent, Installer, Options, SourceCheck};
use netpol_cni::install::Places;
use netpol_cni::{OnUnreachable, upkeep};
use netpol_datapath::flow_size::{MAX_FLOWS, MIN_FLOWS, buckets_by_memory, buckets_for};
use netpol_datapath::{AttachMode, Limits};

/// Enforce NetworkPolicies on this node until told to stop
///
/// Reads Pods, Namespaces and NetworkPolicies from the Kubernetes API (by default the one that the
/// agent's own pod belongs to) or from a directory of manifests, finds the pods' interfaces in this
/// network namespace and enforces the policies there. Runs in the foreground. When it ends, what
/// is in force stays in force, and the next agent takes over without a gap; `netpol cleanup` ends
/// enforcement. The level of the log is set by RUST_LOG (default `info`). What a cluster sets for all
/// nodes may be given in the environment too; a flag wins.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  netpol agent                                        in a DaemonSet, with NODE_NAME set
  netpol agent --kubeconfig ~/.kube/config --node-name worker-1
  netpol agent --manifests /etc/netpol/manifests      without an API server")]
pub struct AgentArgs {
    /// Name of this node, as in spec.nodeName of its pods [default: the host's name]
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,

    /// Kubeconfig of the cluster [default: the service account of the agent's own pod]
    #[arg(long, value_name = "FILE", conflicts_with = "manifests")]
    pub kubeconfig: Option<PathBuf>,

    /// Read objects from the YAML and JSON files below this directory, and follow their changes
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,

    /// Directory for pinned maps, on a bpffs, which is mounted if it is not
    #[arg(long, value_name = "DIR", default_value = BPFFS)]
    pub bpffs: PathBuf,

    /// Whether to mount a bpffs there if there is none; not in a container, with which a mount of
    /// its own would end, and enforcement too
    #[arg(long, env = "NETPOL_MOUNT_BPFFS", value_enum, default_value = "on")]
    pub mount_bpffs: Switch,

    /// Directory for the state file and the socket
    #[arg(long, value_name = "DIR", default_value = RUN_DIR)]
    pub run_dir: PathBuf,

    /// Directory in which the container runtime names network namespaces
    #[arg(long, value_name = "DIR", default_value = "/run/netns")]
    pub netns_dir: PathBuf,

    /// Where to serve /metrics, /healthz and /readyz, or `off`
    #[arg(long, env = "NETPOL_METRICS_ADDRESS", value_name = "ADDRESS", default_value = "127.0.0.1:9642", value_parser = metrics)]
    pub metrics_address: MetricsAddress,

    /// What a policy change means for connections that were allowed before
    #[arg(long, env = "NETPOL_ESTABLISHED", value_enum, default_value = "cut")]
    pub established: Established,

    /// How to attach the programs to interfaces
    #[arg(long, env = "NETPOL_ATTACH", value_enum, default_value = "auto")]
    pub attach: Attach,

    /// Whether the kernel may be asked to hurry while programs are attached and removed: the switch
    /// /sys/kernel/rcu_expedited is on for these moments, if it may be written
    #[arg(long, env = "NETPOL_GRACE_PERIODS", value_enum, default_value = "expedited")]
    pub grace_periods: GracePeriods,

    /// Which pods may speak as themselves alone: what they send from addresses that are not
    /// declared to be theirs is dropped, and what they say of such in ARP and neighbour discovery
    #[arg(long, env = "NETPOL_SOURCE_CHECK", value_enum, default_value = "all")]
    pub source_check: Sources,

    /// Annotations of pods that say from where they may send, beside the addresses in their status.
    /// Whoever may write pods writes them [default: none]
    #[arg(
        long,
        env = "NETPOL_TRUST_ANNOTATIONS",
        value_enum,
        value_name = "WHICH",
        value_delimiter = ','
    )]
    pub trust_annotations: Vec<Annotation>,

    /// The proxy of this node, by the name that Services give to it in their label
    /// service.kubernetes.io/service-proxy-name; others are judged by the addresses that they have
    /// [default: kube-proxy, or one that handles the same Services: those without that label]
    #[arg(long, env = "NETPOL_SERVICE_PROXY_NAME", value_name = "NAME")]
    pub service_proxy_name: Option<String>,

    /// The bit of a packet's mark that netpol may use on this node, as a number with this bit set
    #[arg(long, env = "NETPOL_MARK_BIT", value_name = "BIT", default_value = "0x1000", value_parser = mark_bit)]
    pub mark_bit: u32,

    /// How many IPv4 connections of this node's isolated pods are remembered, rounded up to a power of
    /// two; each pod has an equal share of half of them for itself [default: by the node's memory, 131072 to 524288]
    #[arg(long, env = "NETPOL_FLOW_TABLE_SIZE", value_name = "FLOWS", value_parser = flows())]
    pub flow_table_size: Option<u32>,

    /// The same for IPv6 [default: by the node's memory, 65536 to 262144]
    #[arg(long, env = "NETPOL_FLOW_TABLE_SIZE_IPV6", value_name = "FLOWS", value_parser = flows())]
    pub flow_table_size_ipv6: Option<u32>,

    /// Install the CNI plugin into the network configuration in this directory, and keep it there
    #[arg(long, value_name = "DIR")]
    pub cni_conf_dir: Option<PathBuf>,

    /// Directory that the CNI plugin is copied to
    #[arg(long, value_name = "DIR", default_value = BIN_DIR, requires = "cni_conf_dir")]
    pub cni_bin_dir: PathBuf,

    /// What the CNI plugin does with a new pod if no agent confirms that its policies are in force
    #[arg(long, value_enum, default_value = "fail", requires = "cni_conf_dir")]
    pub cni_on_unreachable: OnUnreachable,

    /// Form of the log
    #[arg(long, env = "NETPOL_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,

    /// How much memory compiling the policies of one namespace may take on this node, about, with a
    /// unit such as Mi. Rules beyond it are left out, the last ones by the names of their policies
    #[arg(long, env = "NETPOL_MAX_NAMESPACE_MEMORY", value_name = "BYTES", default_value = "256Mi", value_parser = bytes)]
    pub max_namespace_memory: u64,

    /// How many entries a table may have: addresses, blocks, rows, intervals, services or fragments.
    /// Where they do not suffice, namespaces that want more than their share go without [default: by
    /// the node's memory, see `netpol status -o json`]
    #[arg(
        long = "limit",
        env = "NETPOL_LIMITS",
        value_name = "TABLE=N",
        value_delimiter = ',',
        value_parser = limit
    )]
    pub limits: Vec<(String, u32)>,

    /// Log what the eBPF programs drop; slow, for debugging netpol itself (with RUST_LOG=debug)
    #[arg(long)]
    pub datapath_log: bool,
}

/// An address, or nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricsAddress(pub Option<SocketAddr>);

/// What happens to connections that a new policy forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Established {
    /// Every packet is judged by the policies of now
    Cut,
    /// They go on until they end
    Keep,
}

/// How programs are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Attach {
    /// TCX where the kernel has it (6.6 and later), else clsact
    Auto,
    /// TCX links
    Tcx,
    /// Filters on the clsact qdisc
    Clsact,
}

/// How the kernel waits for what is under way, while programs are attached and removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GracePeriods {
    /// Less than a millisecond for each program; interrupts each busy processor for a moment
    Expedited,
    /// Some 18 ms for each
    Normal,
}

/// Whose sources are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sources {
    /// Those of all pods with declared addresses, once there is any policy
    #[value(alias = "on")]
    All,
    /// Those of pods that a policy selects
    Isolated,
    /// Nobody's
    Off,
}

/// An annotation of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Annotation {
    /// k8s.v1.cni.cncf.io/network-status, by Multus: further addresses of the pod
    NetworkStatus,
    /// netpol.dev/source-prefixes: blocks and addresses that the pod forwards for
    SourcePrefixes,
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Do it
    On,
    /// Do not
    Off,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object per line
    Json,
}

impl AgentArgs {
    /// What was typed, as what it means.
    pub fn options(self) -> Result<Options> {
        let node_name = match self.node_name {
            Some(name) => name,
            None => host_name()?,
        };
        if node_name.is_empty() {
            bail!("the node's name is empty: give --node-name or set NODE_NAME");
        }
        Ok(Options {
            node_name,
            kubeconfig: self.kubeconfig,
            manifests: self.manifests,
            bpffs: self.bpffs,
            mount_bpffs: self.mount_bpffs == Switch::On,
            run_dir: self.run_dir,
            netns_dir: self.netns_dir,
            metrics_address: self.metrics_address.0,
            keep_established: self.established == Established::Keep,
            expedite: self.grace_periods == GracePeriods::Expedited,
            source_check: match self.source_check {
                Sources::All => SourceCheck::All,
                Sources::Isolated => SourceCheck::Isolated,
                Sources::Off => SourceCheck::Off,
            },
            trust: Trust {
                network_status: self.trust_annotations.contains(&Annotation::NetworkStatus),
                source_prefixes: self.trust_annotations.contains(&Annotation::SourcePrefixes),
            },
            attach: match self.attach {
                Attach::Auto => AttachMode::Auto,
                Attach::Tcx => AttachMode::Tcx,
                Attach::Clsact => AttachMode::Clsact,
            },
            // Set and empty is as unset, in the environment of a DaemonSet.
            service_proxy: self.service_proxy_name.filter(|name| !name.is_empty()),
            mark_bit: self.mark_bit,
            limits: limits(&self.limits)?,
            max_namespace_memory: self.max_namespace_memory,
            flow_buckets: flow_buckets([self.flow_table_size, self.flow_table_size_ipv6]),
            datapath_log: self.datapath_log,
        })
    }
}

/// Runs the agent until it is told to stop.
pub fn run(args: AgentArgs) -> Result<bool> {
    start_log(args.log_format)?;
    let installer = installer(&args)?;
    let options = args.options()?;
    agent::run(options, netpol_observe::metrics::encode, installer)?;
    Ok(true)
}

/// What keeps the CNI plugin installed, if that is wanted.
fn installer(args: &AgentArgs) -> Result<Option<Installer>> {
    let Some(conf_dir) = args.cni_conf_dir.clone() else { return Ok(None) };
    let places = Places { conf_dir, bin_dir: args.cni_bin_dir.clone() };
    let entry = entry(&args.run_dir, args.cni_on_unreachable)?;
    Ok(Some(Box::new(move || upkeep::start(places, entry))))
}

/// What is logged if `RUST_LOG` does not say. The agent tells of every error of its watches in words;
/// the library's dumps of the same would be many lines for each.
const DEFAULT_LOG: &str = "info,kube_runtime::watcher=off,kube_client::client=off";

fn start_log(format: LogFormat) -> Result<()> {
    let filter = EnvFilter::try_from_default_env();
    let filter = match std::env::var_os("RUST_LOG") {
        Some(_) => filter.context("RUST_LOG is not a filter such as `info` or `netpol=debug`")?,
        None => EnvFilter::new(DEFAULT_LOG),
    };
    let has_color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => log.with_ansi(has_color).with_target(false).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot start the log: {error}"))
}

fn host_name() -> Result<String> {
    let uname = rustix::system::uname();
    let name =
        uname.nodename().to_str().context("the host's name is not text: give --node-name")?;
    // Kubernetes names nodes in lower case.
    Ok(name.to_lowercase())
}

fn mark_bit(text: &str) -> Result<u32> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let number = number.context("expected a number such as 0x1000")?;
    if !number.is_power_of_two() {
        bail!("{text} is not one bit: give a number with exactly one bit set, such as 0x1000");
    }
    Ok(number)
}

fn flows() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(i64::from(MIN_FLOWS)..=i64::from(MAX_FLOWS))
}

/// Buckets of the flow tables with room for so many flows, or for as many as the node's memory is
/// for.
fn flow_buckets(sizes: [Option<u32>; 2]) -> [u32; 2] {
    let [flows4, flows6] = buckets_by_memory(memory());
    let [size4, size6] = sizes.map(|size| size.map(buckets_for));
    [size4.unwrap_or(flows4), size6.unwrap_or(flows6)]
}

/// Bytes of memory that this machine has.
fn memory() -> u64 {
    let info = rustix::system::sysinfo();
    u64::from(info.mem_unit).saturating_mul(info.totalram as u64)
}

/// A number of bytes, as Kubernetes writes it.
fn bytes(text: &str) -> Result<u64> {
    let units = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("", 0)];
    let (number, shift) = units
        .iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)))
        .context("invariant: no unit is one too")?;
    let number: u64 = number.parse().context("expected a number of bytes, such as 256Mi or 1Gi")?;
    let bytes = number.checked_mul(1 << shift).context("that is too much")?;
    if bytes < 1 << 20 {
        bail!("{text} is less than 1Mi, which is too little for any policies");
    }
    Ok(bytes)
}

fn limit(text: &str) -> Result<(String, u32)> {
    let (table, number) = text.split_once('=').context("expected TABLE=N")?;
    Ok((table.to_owned(), number.parse().context("expected a number after `=`")?))
}

fn limits(changed: &[(String, u32)]) -> Result<Limits> {
    let mut limits = Limits::by_memory(memory());
    for (table, number) in changed {
        let most = Limits::default().most(table).with_context(|| format!("no table {table:?}"))?;
        if !(1..=most).contains(number) {
            bail!("--limit {table}={number}: must be from 1 to {most}");
        }
        let limit = limits.by_name(table).context("invariant: it has a limit")?;
        *limit = *number;
    }
    Ok(limits)
}

fn metrics(text: &str) -> Result<MetricsAddress> {
    if text == "off" {
        return Ok(MetricsAddress(None));
    }
    // `:9642` is what people write for "on every address".
    let text = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
    let address =
        text.parse().context("expected an address with a port, such as 127.0.0.1:9642, or off")?;
    Ok(MetricsAddress(Some(address)))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: AgentArgs,
    }

    fn parse(text: &str) -> Options {
        let line = Line::try_parse_from(["agent"].into_iter().chain(text.split_whitespace()));
        line.unwrap_or_else(|error| panic!("{error}")).args.options().unwrap()
    }

    #[test]
    fn defaults() {
        let options = parse("--node-name n");
        assert_eq!(options.node_name, "n");
        assert_eq!((options.kubeconfig, options.manifests), (None, None));
        assert_eq!(options.bpffs.to_str(), Some("/sys/fs/bpf/netpol"));
        assert_eq!(options.run_dir.to_str(), Some("/run/netpol"));
        assert_eq!(options.netns_dir.to_str(), Some("/run/netns"));
        assert_eq!(options.metrics_address, Some("127.0.0.1:9642".parse().unwrap()));
        assert_eq!(options.attach, AttachMode::Auto);
        assert_eq!(options.source_check, SourceCheck::All);
        assert!(options.expedite);
        assert_eq!(options.trust, Trust::default());
        assert!(!options.keep_established && !options.datapath_log);
        assert!(options.mount_bpffs);
        assert_eq!(options.mark_bit, 0x1000);
        assert_eq!(options.service_proxy, None);
        assert_eq!(options.max_namespace_memory, 256 << 20);
        assert_eq!(options.limits, Limits::by_memory(memory()));
        let [flows4, flows6] = options.flow_buckets;
        assert!((32_768..=131_072).contains(&flows4) && flows6 == flows4 / 2);
        assert!(!host_name().unwrap().is_empty());
    }

    #[test]
    fn every_flag_arrives() {
        let options = parse(
            "--node-name n --manifests m --bpffs b --run-dir r --netns-dir d \
             --metrics-address off --mount-bpffs off --established keep --attach clsact --source-check off \
             --grace-periods normal \
             --trust-annotations network-status,source-prefixes \
             --mark-bit 0x80000000 --service-proxy-name mine --flow-table-size 512000 --flow-table-size-ipv6 4096 --datapath-log --log-format json --limit blocks=3 --limit rows=4,intervals=5 --max-namespace-memory 7Mi",
        );
        assert_eq!(options.manifests.unwrap().to_str(), Some("m"));
        assert_eq!(options.bpffs.to_str(), Some("b"));
        assert_eq!(options.run_dir.to_str(), Some("r"));
        assert_eq!(options.netns_dir.to_str(), Some("d"));
        assert_eq!(options.metrics_address, None);
        assert_eq!(options.mark_bit, 1 << 31);
        assert_eq!(options.service_proxy.as_deref(), Some("mine"));
        assert_eq!(options.flow_buckets, [131_072, 1_024]);
        assert_eq!(options.attach, AttachMode::Clsact);
        assert_eq!(options.source_check, SourceCheck::Off);
        assert!(!options.expedite);
        assert_eq!(options.trust, Trust { network_status: true, source_prefixes: true });
        assert!(options.keep_established && options.datapath_log);
        assert!(!options.mount_bpffs);
        let limits = Limits { blocks: 3, rows: 4, intervals: 5, ..Limits::by_memory(memory()) };
        assert_eq!(options.limits, limits);
        assert_eq!(options.max_namespace_memory, 7 << 20);
        for (value, meant) in [
            ("on", SourceCheck::All),
            ("all", SourceCheck::All),
            ("isolated", SourceCheck::Isolated),
        ] {
            let options = parse(&format!("--node-name n --source-check {value}"));
            assert_eq!(options.source_check, meant);
        }
        let options = parse("--node-name n --kubeconfig k --attach tcx");
        assert_eq!(options.kubeconfig.unwrap().to_str(), Some("k"));
        assert_eq!(options.attach, AttachMode::Tcx);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for arguments in [
            &["agent", "--kubeconfig", "k", "--manifests", "m"][..],
            &["agent", "--metrics-address", "9642"],
            &["agent", "--established", "maybe"],
            &["agent", "--mark-bit", "0x3000"],
            &["agent", "--mark-bit", "0"],
            &["agent", "--mark-bit", "many"],
            &["agent", "--limit", "blocks"],
            &["agent", "--flow-table-size", "4095"],
            &["agent", "--flow-table-size-ipv6", "1048577"],
            &["agent", "--limit", "blocks=-1"],
            &["agent", "--max-namespace-memory", "1Ki"],
            &["agent", "--max-namespace-memory", "much"],
            &["agent", "--max-namespace-memory", "99999999999Gi"],
        ] {
            assert!(Line::try_parse_from(arguments).is_err(), "{arguments:?}");
        }
        let most = parse("--node-name n --limit blocks=4194304").limits;
        assert_eq!(most.blocks, 4_194_304);
        for bad in ["blocks=0", "blocks=4194305", "endpoints=1024", "socks=1"] {
            let line = Line::try_parse_from(["agent", "--node-name", "n", "--limit", bad]).unwrap();
            assert!(line.args.options().is_err(), "{bad}");
        }
        let line = Line::try_parse_from(["agent", "--node-name", ""]).unwrap();
        let error = line.args.options().unwrap_err().to_string();
        assert!(error.contains("--node-name"), "{error}");
        assert_eq!(metrics(":1").unwrap().0, Some("[::]:1".parse().unwrap()));
    }

    #[test]
    fn the_library_of_the_watches_does_not_repeat_what_the_agent_says() {
        let subscriber =
            tracing_subscriber::fmt().with_env_filter(EnvFilter::new(DEFAULT_LOG)).finish();
        tracing::subscriber::with_default(subscriber, || {
            assert!(tracing::enabled!(target: "netpol_agent::core", tracing::Level::INFO));
            assert!(tracing::enabled!(target: "kube_client::config", tracing::Level::WARN));
            assert!(!tracing::enabled!(target: "kube_runtime::watcher", tracing::Level::ERROR));
            let failures = tracing::enabled!(
                target: "kube_client::client::builder",
                tracing::Level::ERROR
            );
            assert!(!failures);
        });
    }
}
