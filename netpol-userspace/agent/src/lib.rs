//! The agent: wires sources, compiler, endpoint discovery and datapath together.
//!
//! One task owns all of the state and handles one event at a time; everything else only sends to
//! it. Nothing is removed from the kernel before every source has synced.
//!
//! `start` makes everything once, `event_loop` hands events to `core`, and `core` to its parts: what was
//! read (`source_state`), what of it is on its way (`compilation`), what is in force (`enforcement`) and
//! for whom (`endpoints`, `sandboxes`, `speakers`), who waits for it (`waits`, `admissions`), what is
//! written (`state_file`) and what is said of it (`overview`).

#![forbid(unsafe_code)]

mod admissions;
pub mod annotations;
mod answers;
mod capacity;
mod compilation;
mod core;
mod endpoints;
mod enforcement;
mod event_loop;
mod files;
pub mod journal;
mod links;
mod memory;
mod numbers;
pub mod options;
mod overview;
mod sandboxes;
mod serve;
mod source_state;
mod speakers;
mod start;
mod state_file;
mod turns;
mod view;
mod waits;

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};

pub use options::{Installer, Metrics, Options, SourceCheck};

/// Runs the agent until SIGTERM or SIGINT. What it put in force stays in force. `installer` is
/// called when new pods can be told of, `metrics` whenever somebody asks for them.
pub fn run(options: Options, metrics: Metrics, installer: Option<Installer>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("netpol")
        .enable_all()
        .build()
        .context("start the tokio runtime")?;
    let result = runtime.block_on(async {
        let started = start::start(&options, metrics, installer).await?;
        started.run().await
    });
    // A watcher may be in a blocking read; it holds nothing that needs an orderly end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Seconds since the epoch; 0 if the clock says that it is before.
fn unix_time() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_secs().cast_signed()
}
