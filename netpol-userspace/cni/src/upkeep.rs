//! Keeps the plugin installed while the agent runs: other programs rewrite their network
//! configuration when they start. Lives on a thread that ends with the process. Must never give up
//! because of one error, and never write faster than somebody else in a loop.

use std::fs;
use std::thread;
use std::time::Duration;

use inotify::{Inotify, WatchMask};
use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::sync::watch;

use super::conflist::Entry;
use super::install::{Outcome, Places, install};
use netpol_api::installation::Report;

/// How often to look without a reason.
const PERIOD: Duration = Duration::from_secs(30);
/// How often to look if changes cannot be watched.
const PERIOD_UNWATCHED: Duration = Duration::from_secs(2);
/// Whoever writes a configuration may write several files.
const QUIET: Duration = Duration::from_millis(100);

/// Installs the plugin and keeps it installed.
pub fn start(places: Places, entry: Entry) -> std::io::Result<watch::Receiver<Report>> {
    let (sender, receiver) = watch::channel(Report::default());
    let upkeep = move || {
        let mut inotify = Inotify::init().ok();
        loop {
            // Before looking, so that nothing falls between.
            let is_watched = watch_directory(&mut inotify, &places);
            let report = look(&places, &entry);
            sender.send_if_modified(|last| std::mem::replace(last, report.clone()) != report);
            pause(inotify.as_mut(), if is_watched { PERIOD } else { PERIOD_UNWATCHED });
            thread::sleep(QUIET);
        }
    };
    thread::Builder::new().name("cni-upkeep".to_owned()).spawn(upkeep)?;
    Ok(receiver)
}

fn look(places: &Places, entry: &Entry) -> Report {
    match install(places, entry) {
        Ok(Outcome::Unchanged(_)) => Report::default(),
        Ok(Outcome::Written(file)) => {
            tracing::info!(file = %file.display(), "netpol added to the network configuration");
            Report::default()
        }
        Ok(Outcome::NoNetwork) => Report {
            note: Some(format!(
                "{} has no network configuration yet; netpol adds itself to it when there is one",
                places.conf_dir.display()
            )),
            ..Report::default()
        },
        Err(error) => {
            let problem = format!(
                "the CNI plugin is not installed, so new pods start before their policies are in \
                 force: {error:#}"
            );
            tracing::error!("{problem}");
            Report { problem: Some(problem), ..Report::default() }
        }
    }
}

/// Whether changes in the directory wake us.
fn watch_directory(inotify: &mut Option<Inotify>, places: &Places) -> bool {
    // A runtime waits for the directory just as we do.
    let _ = fs::create_dir_all(&places.conf_dir);
    let mask = WatchMask::CLOSE_WRITE
        | WatchMask::MOVE
        | WatchMask::DELETE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR;
    // Adding the same directory again changes nothing.
    inotify.as_mut().is_some_and(|inotify| inotify.watches().add(&places.conf_dir, mask).is_ok())
}

fn pause(inotify: Option<&mut Inotify>, time: Duration) {
    let Some(inotify) = inotify else { return thread::sleep(time) };
    let limit = Timespec::try_from(time).ok();
    let _ = rustix::event::poll(&mut [PollFd::new(&*inotify, PollFlags::IN)], limit.as_ref());
    let mut buffer = [0; 4096];
    while inotify.read_events(&mut buffer).is_ok_and(|mut events| events.next().is_some()) {}
}
