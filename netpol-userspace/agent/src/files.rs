//! The run directory: made, locked and written to. Must never hold anything that enforcement
//! depends on while the agent runs.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::journal;
use netpol_api::state::{State, VERSION, socket_path, state_path};
use netpol_datapath::lock::Lock;

/// An unfinished state file.
const DRAFT: &str = "state.json.new";
const WRITTEN_AT_ONCE: usize = 1 << 16;

/// Makes the directory and takes it for this process.
pub(crate) fn prepare_run_dir(run_dir: &Path) -> Result<Lock> {
    // What policies say of whom, and who is connected to whom, is nobody else's business. (A
    // directory that others use as well stays as it is.)
    let draft = run_dir.join(DRAFT);
    let is_ours = [state_path(run_dir), draft].iter().any(|path| path.exists());
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(run_dir)
        .with_context(|| format!("create directory {}", run_dir.display()))?;
    let path = run_dir.join("lock");
    let lock = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let lock = Lock::take(lock).with_context(|| format!("lock {}", path.display()))?;
    let Some(lock) = lock else {
        let owner =
            read_state(run_dir).map_or_else(String::new, |s| format!(" (process {})", s.pid));
        bail!(
            "another netpol agent{owner} uses {}: stop it first, or give this one its own \
             --bpffs and --run-dir",
            run_dir.display()
        );
    };
    if is_ours {
        let private = fs::set_permissions(run_dir, fs::Permissions::from_mode(0o700));
        private.with_context(|| format!("change the mode of {}", run_dir.display()))?;
    }
    // A socket that an agent left behind when it was killed.
    let _ = fs::remove_file(socket_path(run_dir));
    Ok(lock)
}

/// The boot and the network namespace in which interfaces have the numbers that they have; empty
/// if the kernel does not tell.
pub(crate) fn place() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    let netns = fs::read_link("/proc/thread-self/ns/net").ok();
    let place = boot.zip(netns).map(|(boot, netns)| format!("{} {}", boot.trim(), netns.display()));
    place.unwrap_or_default()
}

/// The state an earlier agent left, with the numbers in its journal, if it can be understood.
pub(crate) fn read_state(run_dir: &Path) -> Option<State> {
    let text = fs::read(state_path(run_dir)).ok()?;
    match State::parse(&text) {
        Ok(mut state) if state.version == VERSION => {
            journal::read(run_dir, &mut state.ids);
            Some(state)
        }
        Ok(state) => {
            tracing::warn!(version = state.version, "ignoring a state file of another version");
            None
        }
        Err(error) => {
            tracing::warn!(%error, "ignoring a state file that cannot be read");
            None
        }
    }
}

/// Replaces the state file in one step; the journal is void then.
pub(crate) fn write_state(run_dir: &Path, state: &State) -> Result<()> {
    let path = state_path(run_dir);
    let draft = run_dir.join(DRAFT);
    // An earlier release has left a draft that everybody could read.
    let _ = fs::remove_file(&draft);
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .with_context(|| format!("create {}", draft.display()))?;
    // Its text may be long, and is not needed at once.
    let mut file = BufWriter::with_capacity(WRITTEN_AT_ONCE, file);
    serde_json::to_writer(&mut file, state)
        .map_err(std::io::Error::from)
        .and_then(|()| file.flush())
        .with_context(|| format!("write {}", draft.display()))?;
    fs::rename(&draft, &path).with_context(|| format!("replace {}", path.display()))?;
    journal::clear(run_dir)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use netpol_api::testing::state;

    #[test]
    fn what_is_in_the_run_directory_is_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        fs::create_dir(&run_dir).unwrap();
        fs::write(run_dir.join("state.json.new"), "of an earlier release").unwrap();
        let _lock = prepare_run_dir(&run_dir).unwrap();
        write_state(&run_dir, &state(vec![])).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&run_dir), 0o700);
        assert_eq!(mode(&state_path(&run_dir)), 0o600);
        let shared = dir.path().join("shared");
        fs::create_dir(&shared).unwrap();
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o755)).unwrap();
        let _other_lock = prepare_run_dir(&shared).unwrap();
        assert_eq!(mode(&shared), 0o755, "it may be others' too");
    }
}
