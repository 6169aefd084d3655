//! Everything that is made once when the agent starts: source, datapath, discovery, servers. Must never
//! leave anything behind of a start that is impossible, nor take what an earlier agent put in force
//! out of force.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::interval;

use super::core::Core;
use super::event_loop::{EventLoop, Inputs};
use super::options::{Installer, Metrics, Options, SourceCheck};
use super::{capacity, files, serve};
use netpol_datapath::{Datapath, LoadOptions, Pins, grace};
use netpol_endpoint::{self as endpoint, Watcher};
use netpol_source::{self as source, Handle};

/// Events a source may be ahead of the agent.
const SOURCE_QUEUE: usize = 1_024;
/// How long after SIGTERM the agent ends wherever it is. What it leaves then is what it would leave if
/// it were killed.
const LONGEST_END: Duration = Duration::from_millis(700);

/// Starts all of it.
pub(crate) async fn start(
    options: &Options,
    metrics: Metrics,
    installer: Option<Installer>,
) -> Result<EventLoop> {
    let terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let lock = files::prepare_run_dir(&options.run_dir)?;
    end_in_time(&options.run_dir)?;
    // First, since it may be impossible, and nothing is left behind then.
    let (events_tx, events) = mpsc::channel(SOURCE_QUEUE);
    let (handle, kind) = start_source(options, events_tx).await?;
    let pins = Pins::new(&options.bpffs);
    let datapath = open_datapath(options, &pins)?;
    tracing::info!(
        node = options.node_name,
        bpffs = %options.bpffs.display(),
        attach = datapath.attach_mode(),
        "netpol agent started"
    );

    let sizes = capacity::pinned_sizes(&options.limits, &datapath.limits());
    let maps = datapath.maps(&pins)?;
    let watcher = Watcher::spawn(endpoint::Options {
        netns_dir: options.netns_dir.clone(),
        ..endpoint::Options::default()
    })
    .context("start endpoint discovery")?;
    let snapshots = watcher.snapshots();
    let mut core = Core::new(options, kind, datapath, watcher, handle);

    let (published, state_rx) = watch::channel(Arc::new(core.published()));
    let (waits_tx, waits) = mpsc::channel(16);
    let (questions_tx, questions) = mpsc::channel(16);
    let (plugin_tx, plugin) = mpsc::channel(64);
    let requests = serve::Requests { waits: waits_tx, questions: questions_tx, plugin: plugin_tx };
    let (failed, note) = serve::start(options, maps, state_rx, requests, metrics)?;
    core.add_note(note);
    core.add_note(sizes);
    core.write_state(&published);
    let installations = match installer {
        Some(install) => Some(install().context("start installing the CNI plugin")?),
        None => None,
    };
    let inputs = Inputs {
        terminate,
        interrupt,
        snapshots,
        waits,
        questions,
        plugin,
        failed,
        installations,
        events,
    };
    Ok(EventLoop::new(core, inputs, published, lock))
}

/// Ends the process some time after SIGTERM or SIGINT, should it still be there: something may take
/// long that cannot be left, such as the first compilation. No moment is a bad one: everything that
/// is written is whole at any time, and the next agent goes on from there.
fn end_in_time(run_dir: &Path) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let socket = netpol_api::state::socket_path(run_dir);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tokio::time::sleep(LONGEST_END).await;
        tracing::info!("stopping in the middle of something; what is in force stays in force");
        let _ = std::fs::remove_file(socket);
        std::process::exit(0);
    });
    Ok(())
}

async fn start_source(
    options: &Options,
    events: mpsc::Sender<source::Event>,
) -> Result<(Handle, &'static str)> {
    if let Some(dir) = &options.manifests {
        let handle = source::spawn_manifests(dir, &options.run_dir, events)
            .with_context(|| format!("watch the manifests in {}", dir.display()))?;
        return Ok((handle, "manifests"));
    }
    let config = match &options.kubeconfig {
        Some(path) => {
            let file = kube::config::Kubeconfig::read_from(path)
                .with_context(|| format!("read kubeconfig {}", path.display()))?;
            let choice = kube::config::KubeConfigOptions::default();
            kube::Config::from_custom_kubeconfig(file, &choice)
                .await
                .with_context(|| format!("use kubeconfig {}", path.display()))?
        }
        None => kube::Config::incluster().context(
            "no --manifests and no --kubeconfig given, and this is not a pod with a service \
             account: say where the objects come from",
        )?,
    };
    let client = source::kubernetes::connect(config)?;
    Ok((source::spawn_kubernetes(client, &options.node_name, events), "kubernetes"))
}

fn open_datapath(options: &Options, pins: &Pins) -> Result<Datapath> {
    if options.expedite {
        grace::expedite();
    }
    if !options.mount_bpffs {
        pins.require_bpffs()?;
    }
    let load = LoadOptions {
        keep_established: options.keep_established,
        check_source: options.source_check != SourceCheck::Off,
        flow_buckets: Some(options.flow_buckets),
        stamp_mark: options.mark_bit,
        limits: options.limits,
        patience: 1,
        log: options.datapath_log,
    };
    let mut datapath = Datapath::open(pins, &load, options.attach)?;
    if !options.trust.is_some() {
        // An earlier agent may have been told to believe annotations.
        datapath.set_source_prefixes(BTreeSet::new())?;
    }
    if options.datapath_log {
        forward_datapath_log(&mut datapath)?;
    }
    Ok(datapath)
}

/// Lets the programs' debug lines appear in our log, a tenth of a second late: it is for people.
fn forward_datapath_log(datapath: &mut Datapath) -> Result<()> {
    let mut logger =
        aya_log::EbpfLogger::init(datapath.programs().ebpf()).context("read the datapath's log")?;
    tokio::spawn(async move {
        let mut pause = interval(Duration::from_millis(100));
        loop {
            pause.tick().await;
            logger.flush();
        }
    });
    Ok(())
}
