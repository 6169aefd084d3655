//! The source behind `--manifests DIR`: one thread that looks at the directory whenever inotify
//! says so. Must never act on a file that is only half written, and never stop looking because
//! something in the directory is wrong.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use tokio::sync::mpsc;

use super::catalog::{Catalog, Files};
use super::directory::{Reader, is_manifest};
use super::kept::Kept;
use super::parse::Originals;
use super::{Event, Handle};

/// How long the directory must be quiet before it is read.
const QUIET: Duration = Duration::from_millis(5);
/// How long a file must stay empty to be believed: the kernel empties a file before it says so.
const EMPTY: Duration = Duration::from_millis(100);
/// How often a look is repeated because something changed meanwhile.
const ATTEMPTS: usize = 20;
/// How long a file may stay open for writing before it is read as it is.
const LONGEST_WRITE: Duration = Duration::from_secs(5);
/// The safety net for what inotify does not see (network file systems, linked files elsewhere).
const RESCAN: Duration = Duration::from_secs(10);
/// The same where inotify does not work.
const RESCAN_UNWATCHED: Duration = Duration::from_secs(1);

/// Reads the manifests in `dir` and follows their changes. Copies of those that were good are kept
/// below `run_dir`.
pub fn spawn_manifests(
    dir: &Path,
    run_dir: &Path,
    tx: mpsc::Sender<Event>,
) -> anyhow::Result<Handle> {
    let what = || format!("cannot read manifests in {}", dir.display());
    let metadata = std::fs::metadata(dir).with_context(what)?;
    ensure!(metadata.is_dir(), "{}: not a directory", what());
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let bell = Arc::new(rustix::event::eventfd(0, flags).with_context(what)?);
    let (asked, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let source = Manifests {
        reader: Reader::new(dir, Originals::Dropped),
        kept: Kept::open(run_dir, dir),
        catalog: Catalog::default(),
        watcher: Watcher::new(),
        tx,
        bell: bell.clone(),
        asked: asked.clone(),
        answered: 0,
        stop: stop.clone(),
    };
    std::thread::Builder::new()
        .name("manifests".into())
        .spawn(move || source.run())
        .with_context(what)?;
    let stop_bell = bell.clone();
    Ok(Handle::new(
        asked,
        move || ring(&bell),
        move || {
            stop.store(true, Ordering::SeqCst);
            ring(&stop_bell);
        },
    ))
}

fn ring(bell: &OwnedFd) {
    // Fails only when the counter is full, and then the bell is ringing already.
    let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
}

struct Manifests {
    reader: Reader,
    kept: Kept,
    catalog: Catalog,
    watcher: Watcher,
    tx: mpsc::Sender<Event>,
    bell: Arc<OwnedFd>,
    asked: Arc<AtomicU64>,
    answered: u64,
    stop: Arc<AtomicBool>,
}

impl Manifests {
    fn run(mut self) {
        let mut synced = false;
        while !self.stop.load(Ordering::SeqCst) {
            // Read before looking: what was written before the question is then seen.
            let asked = self.asked.load(Ordering::SeqCst);
            let files = self.look();
            if !synced && !self.watcher.busy.is_empty() {
                // What is being written just now may have been in force before.
                self.pause(self.watcher.patience());
                continue;
            }
            let mut events = Vec::new();
            if !synced && let Some(earlier) = self.kept.earlier(&files) {
                events = self.catalog.update(&earlier);
            }
            events.extend(self.catalog.update(&files));
            events.extend(self.watcher.news());
            if !synced {
                events.push(Event::Synced);
                synced = true;
            }
            if asked > self.answered && self.watcher.busy.is_empty() {
                events.push(Event::Barrier(asked));
                self.answered = asked;
            }
            for event in events {
                if self.tx.blocking_send(event).is_err() {
                    return;
                }
            }
            self.kept.keep(&files, self.reader.last());
            self.wait();
        }
    }

    /// A look at the directory during which nothing in it changed, or the last of many.
    fn look(&mut self) -> Files {
        let mut believed = BTreeSet::new();
        for attempt in 1.. {
            self.watcher.read_events();
            let busy = self.watcher.busy_files();
            let snapshot = self.reader.read(&busy, |dir| self.watcher.add(dir));
            let doubtful = !snapshot.emptied.is_subset(&believed);
            let changed = self.watcher.read_events();
            if (!changed && !doubtful) || attempt == ATTEMPTS {
                return self.reader.keep(snapshot);
            }
            if doubtful {
                std::thread::sleep(EMPTY);
                believed = snapshot.emptied;
            } else {
                self.pause(QUIET);
            }
        }
        unreachable!("the loop ends at the last attempt");
    }

    /// Waits until there is a reason to look again.
    fn wait(&mut self) {
        // The bell may have rung, and been silenced, during the look.
        let asked = self.asked.load(Ordering::SeqCst) > self.answered;
        if self.stop.load(Ordering::SeqCst) || (asked && self.watcher.busy.is_empty()) {
            return;
        }
        self.pause(self.watcher.patience());
        // Most editors do several things at once: let them finish.
        for _ in 0..ATTEMPTS {
            if !self.watcher.read_events() {
                break;
            }
            self.pause(QUIET);
        }
    }

    /// Waits for the bell, for inotify, or for the time to pass.
    fn pause(&self, time: Duration) {
        let time = Timespec::try_from(time).ok();
        let mut fds = vec![PollFd::new(&*self.bell, PollFlags::IN)];
        if let Some(inotify) = &self.watcher.inotify {
            fds.push(PollFd::from_borrowed_fd(inotify.as_fd(), PollFlags::IN));
        }
        // An interrupted wait is a reason to look.
        let _ = rustix::event::poll(&mut fds, time.as_ref());
        let _ = rustix::io::read(&*self.bell, &mut [0u8; 8]);
    }
}

/// What inotify tells: that something changed, and which files are being written.
struct Watcher {
    inotify: Option<Inotify>,
    directories: HashMap<WatchDescriptor, PathBuf>,
    /// Files that were written to and not closed yet, since when.
    busy: BTreeMap<PathBuf, Instant>,
    error: Option<String>,
    reported: Option<String>,
}

impl Watcher {
    fn new() -> Self {
        let (inotify, error) = match Inotify::init() {
            Ok(inotify) => (Some(inotify), None),
            Err(error) => (None, Some(error.to_string())),
        };
        Self { inotify, directories: HashMap::new(), busy: BTreeMap::new(), error, reported: None }
    }

    /// Watches a directory; again is harmless.
    fn add(&mut self, dir: &Path) {
        let Some(inotify) = &mut self.inotify else { return };
        let mask = WatchMask::CREATE
            | WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ATTRIB
            | WatchMask::ONLYDIR;
        match inotify.watches().add(dir, mask) {
            Ok(descriptor) => {
                self.directories.insert(descriptor, dir.to_owned());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.error = Some(format!("{}: {error}", dir.display())),
        }
    }

    /// Takes in what happened; returns whether anything did.
    fn read_events(&mut self) -> bool {
        let Some(inotify) = &mut self.inotify else { return false };
        let mut buffer = [0u8; 4096];
        let mut any = false;
        while let Ok(events) = inotify.read_events(&mut buffer) {
            for event in events {
                any = true;
                if event.mask.contains(EventMask::IGNORED) {
                    self.directories.remove(&event.wd);
                }
                let (Some(dir), Some(name)) = (self.directories.get(&event.wd), event.name) else {
                    continue;
                };
                if event.mask.contains(EventMask::MODIFY) {
                    if name.to_str().is_some_and(is_manifest) {
                        self.busy.entry(dir.join(name)).or_insert_with(Instant::now);
                    }
                } else if !event.mask.intersects(EventMask::CREATE | EventMask::ATTRIB) {
                    self.busy.remove(&dir.join(name));
                }
            }
        }
        any
    }

    /// The files that are being written, without those that have been for too long.
    fn busy_files(&mut self) -> BTreeSet<PathBuf> {
        self.busy.retain(|_, since| since.elapsed() < LONGEST_WRITE);
        self.busy.keys().cloned().collect()
    }

    /// How long to wait for events before looking again anyway.
    fn patience(&self) -> Duration {
        let blind = self.inotify.is_none() || self.reported.is_some();
        let rescan = if blind { RESCAN_UNWATCHED } else { RESCAN };
        let busy = self.busy.values().min();
        busy.map_or(rescan, |since| LONGEST_WRITE.saturating_sub(since.elapsed()))
    }

    /// A problem of the watching itself, or its end, if there is news of it.
    fn news(&mut self) -> Option<Event> {
        let object = "watch manifests".to_owned();
        // Failed watches are tried again, and fail again, with every look.
        let error = if self.inotify.is_some() { self.error.take() } else { self.error.clone() };
        let news = match (&error, self.reported != error) {
            (_, false) => None,
            (Some(error), true) => Some(Event::Problem {
                object,
                message: format!(
                    "{error}; changes are noticed within {} s only (if it is a limit: raise \
                     fs.inotify.max_user_instances and fs.inotify.max_user_watches)",
                    RESCAN_UNWATCHED.as_secs()
                ),
            }),
            (None, true) => Some(Event::Resolved { object }),
        };
        self.reported = error;
        news
    }
}
