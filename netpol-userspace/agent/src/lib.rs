//! The agent: wires sources, compiler, endpoint discovery and datapath together.
//!
//! One task owns all of the state and handles one event at a time; everything else only sends to
//! it. Nothing is removed from the kernel before every source has synced.

#![forbid(unsafe_code)]

pub mod annotations;
mod answers;
mod capacity;
mod core;
mod files;
pub mod journal;
mod links;
mod memory;
mod numbers;
pub mod options;
mod sandboxes;
mod serve;
mod turns;
mod view;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

pub use options::{Installer, Metrics, Options, SourceCheck};

use self::core::Core;
use netpol_api::installation::Report;
use netpol_datapath::{Datapath, LoadOptions, Pins, grace};
use netpol_endpoint as endpoint;
use netpol_source::{self as source, Handle};

/// Events a source may be ahead of the agent.
const SOURCE_QUEUE: usize = 1_024;
/// How often attachments are compared with the kernel's, failed writes are tried again, and
/// garbage is removed.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// How long what was read is taken in, and how long it is compiled and written, before anything else
/// is looked at. Together with one slice more than the second, and what is waited for in the kernel,
/// that is what one event waits for another.
const TAKING_IN: Duration = Duration::from_millis(20);
const WORKING: Duration = Duration::from_millis(20);
/// How long after SIGTERM the agent ends wherever it is. What it leaves then is what it would leave if
/// it were killed.
const LONGEST_END: Duration = Duration::from_millis(700);
/// Least pause between two writings of the state file, and how many times as long as the last one
/// took it is: with much to write and many changes it may not be most of what the agent does. Events
/// wait for it, so it is more if what people read does not get old by that.
const PUBLISH: Duration = Duration::from_millis(50);
const PUBLISH_SHARE: u32 = 20;
const RARE_SHARE: u32 = 100;
const RARE_LIMIT: Duration = Duration::from_millis(300);

/// Runs the agent until SIGTERM or SIGINT. What it put in force stays in force. `installer` is
/// called when new pods can be told of,
/// `metrics` whenever somebody asks for them.
pub fn run(options: Options, metrics: Metrics, installer: Option<Installer>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("netpol")
        .enable_all()
        .build()
        .context("start the tokio runtime")?;
    let result = runtime.block_on(run_async(options, metrics, installer));
    // A watcher may be in a blocking read; it holds nothing that needs an orderly end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn run_async(options: Options, metrics: Metrics, installer: Option<Installer>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let _lock = files::prepare_run_dir(&options.run_dir)?;
    end_in_time(&options.run_dir)?;
    // First, since it may be impossible, and nothing is left behind then.
    let (events_tx, mut events) = mpsc::channel(SOURCE_QUEUE);
    let (handle, kind) = start_source(&options, events_tx).await?;
    if options.expedite {
        grace::expedite();
    }
    let pins = Pins::new(&options.bpffs);
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
    let mut datapath = Datapath::open(&pins, &load, options.attach)?;
    if !options.trust.is_some() {
        // An earlier agent may have been told to believe annotations.
        datapath.set_source_prefixes(BTreeSet::new())?;
    }
    if options.datapath_log {
        forward_datapath_log(&mut datapath)?;
    }
    tracing::info!(
        node = options.node_name,
        bpffs = %options.bpffs.display(),
        attach = datapath.attach_mode(),
        "netpol agent started"
    );

    let sizes = capacity::pinned_sizes(&options.limits, &datapath.limits());
    let maps = datapath.maps(&pins)?;
    let watcher = endpoint::Watcher::spawn(endpoint::Options {
        netns_dir: options.netns_dir.clone(),
        ..endpoint::Options::default()
    })
    .context("start endpoint discovery")?;
    let mut snapshots = watcher.snapshots();
    let mut core = Core::new(&options, kind, datapath, watcher, handle);

    let (state_tx, state_rx) = watch::channel(Arc::new(core.published()));
    let (waits_tx, mut waits) = mpsc::channel(16);
    let (questions_tx, mut questions) = mpsc::channel(16);
    let (plugin_tx, mut plugin) = mpsc::channel(64);
    let requests = serve::Requests { waits: waits_tx, questions: questions_tx, plugin: plugin_tx };
    let (mut failed, note) = serve::start(&options, maps, state_rx, requests, metrics)?;
    core.add_note(note);
    core.add_note(sizes);
    core.write_state(&state_tx);
    let mut reports = match installer {
        Some(install) => Some(install().context("start installing the CNI plugin")?),
        None => None,
    };

    let mut housekeeping = interval(HOUSEKEEPING);
    housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next_publish = Instant::now();
    loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            changed = snapshots.changed() => {
                changed.context("endpoint discovery has ended unexpectedly")?;
                let snapshot = snapshots.borrow_and_update().clone();
                core.handle_snapshot(snapshot);
            }
            Some(request) = waits.recv() => core.handle_wait(request),
            Some(request) = plugin.recv() => core.handle_plugin(request),
            Some(request) = questions.recv() => core.handle_question(request),
            Some(error) = failed.recv() => return Err(error),
            report = next_report(&mut reports) => core.note_installation(report),
            _ = housekeeping.tick() => core.housekeeping(),
            // One takes a while, so everything else goes before.
            () = std::future::ready(()), if core.has_pending_guards() => core.settle_a_guard(),
            () = sleep_until(core.next_deadline()), if core.has_deadline() => core.deadline(),
            () = sleep_until(next_publish), if core.is_dirty() => {
                let begun = Instant::now();
                core.write_state(&state_tx);
                next_publish = Instant::now() + pause_after(begun.elapsed());
            }
            // There may always be something, and what there is is taken in below anyway.
            event = events.recv() => match event {
                Some(event) => core.handle_source(event),
                None => bail!("the source of objects has ended unexpectedly; enforcement stays as it is"),
            },
            // Last, so that everything else is looked at between two parts of it.
            () = std::future::ready(()), if core.has_work() => {}
        }
        // All that has been read, so that nobody's edit waits behind somebody else's many.
        let begun = Instant::now();
        while begun.elapsed() < TAKING_IN
            && let Ok(event) = events.try_recv()
        {
            core.handle_source(event);
        }
        if snapshots.has_changed().unwrap_or_default() {
            let snapshot = snapshots.borrow_and_update().clone();
            core.handle_snapshot(snapshot);
        }
        core.work(WORKING);
        core.settle_admissions();
        if core.has_answers() {
            core.write_state_for_answers(&state_tx);
            core.answer();
        }
    }
    tracing::info!("stopping; what is in force stays in force");
    core.stop(&state_tx);
    Ok(())
}

/// How long the state file is not written after that took so long.
fn pause_after(writing: Duration) -> Duration {
    let rare = (writing * RARE_SHARE).min(RARE_LIMIT);
    PUBLISH.max(rare).max(writing * PUBLISH_SHARE)
}

/// Ends the process some time after SIGTERM or SIGINT, should it still be there: something may take
/// long that cannot be left, such as the first compilation. No moment is a bad one: everything that
/// is written is whole at any time, and the next agent goes on from there.
fn end_in_time(run_dir: &std::path::Path) -> Result<()> {
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

/// The next thing that there is to say about the installation of the CNI plugin.
async fn next_report(reports: &mut Option<watch::Receiver<Report>>) -> Report {
    if let Some(receiver) = reports {
        if receiver.changed().await.is_ok() {
            return receiver.borrow_and_update().clone();
        }
        *reports = None;
    }
    std::future::pending().await
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
