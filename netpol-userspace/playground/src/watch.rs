//! Notices changes of the manifests. Must never read them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use inotify::{EventMask, Inotify, WatchMask, Watches};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::manifests;

/// Editors write in several steps: a change is over after this much quiet.
const QUIET: Duration = Duration::from_millis(150);

/// Watches a directory and those below it.
pub struct Watch {
    dir: PathBuf,
    watches: Watches,
    events: mpsc::UnboundedReceiver<bool>,
}

impl Watch {
    /// Starts watching: what changes from now on is noticed.
    pub fn new(dir: &Path) -> Result<Self> {
        let inotify = Inotify::init().context("cannot watch for changes (inotify)")?;
        let (events_tx, events) = mpsc::unbounded_channel();
        let mut watch = Self { dir: dir.to_owned(), watches: inotify.watches(), events };
        // Blocks until the next event or the end of the process.
        std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || report(inotify, &events_tx))?;
        watch.add_directories()?;
        Ok(watch)
    }

    /// Returns when something has changed and is quiet again.
    pub async fn changed(&mut self) -> Result<()> {
        loop {
            let mut relevant = self.read().await?;
            while let Ok(more) = timeout(QUIET, self.read()).await {
                relevant |= more?;
            }
            if relevant {
                // New directories; those that are watched already stay as they are.
                self.add_directories()?;
                return Ok(());
            }
        }
    }

    fn add_directories(&mut self) -> Result<()> {
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::ONLYDIR;
        for dir in manifests::directories(&self.dir)? {
            let added = self.watches.add(&dir, mask);
            added.with_context(|| format!("cannot watch {}", dir.display()))?;
        }
        Ok(())
    }

    /// Waits for events. Whether any of them is about a manifest or a directory.
    async fn read(&mut self) -> Result<bool> {
        self.events.recv().await.context("the thread that watches for changes has ended")
    }
}

/// Reports, until nobody listens, whether what happened is about a manifest or a directory.
fn report(mut inotify: Inotify, events_tx: &mpsc::UnboundedSender<bool>) {
    let mut buffer = [0; 4096];
    while let Ok(events) = inotify.read_events_blocking(&mut buffer) {
        let relevant = events.into_iter().any(|event| {
            event.mask.contains(EventMask::ISDIR)
                || event.name.is_none_or(|name| manifests::is_manifest(name.as_ref()))
        });
        if events_tx.send(relevant).is_err() {
            break;
        }
    }
}
