//! Grace periods: the time until nothing that the kernel was doing at a moment is still being done.
//!
//! Each program that is put on an interface by a link, or taken off, costs one, and the kernel holds
//! its lock on all of the node's network configuration meanwhile (kernel/bpf/tcx.c calls
//! `synchronize_rcu` under RTNL): some 18 ms, six seconds for a node of 110 pods, during which no
//! other pod gets its network. Expedited ones take less than a millisecond; they interrupt each
//! processor that is at work for a moment, and are what the kernel itself uses wherever it waits
//! with that lock held (`synchronize_net`). So they are asked for while one of netpol's is under
//! way, by a switch that is the whole kernel's (/sys/kernel/rcu_expedited, see
//! rcupdate.rcu_expedited in Documentation/admin-guide/kernel-parameters.txt). Must never change the
//! switch where somebody else has set it, nor leave it set.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::OnceLock;

use super::error::{DatapathError, io_error};

/// Where the kernel has the switch.
const SWITCH: &str = "/sys/kernel/rcu_expedited";

/// What netpol sets it to. Any number but 0 means "expedited"; this one tells a netpol that follows
/// one that was killed meanwhile whose it is.
const OURS: i32 = 9642;

/// The switch, if it may be used.
static IN_USE: OnceLock<Option<Switch>> = OnceLock::new();

/// Asks for expedited grace periods from now on, whenever this process waits for one. Where the switch
/// cannot be written (a read-only /sys, as containers have it) everything works as before, slower.
pub fn expedite() {
    IN_USE.get_or_init(|| Switch::open(Path::new(SWITCH)));
}

/// Whether grace periods can be expedited here.
pub(crate) fn can_expedite() -> bool {
    Switch::open(Path::new(SWITCH)).is_some()
}

/// While it lives, grace periods are short.
pub(crate) fn short() -> Option<Short<'static>> {
    IN_USE.get().and_then(Option::as_ref).and_then(Switch::short)
}

/// Returns when no program that was running at the call is running any more. Programs run inside
/// RCU read-side critical sections; this membarrier command waits for all of those
/// (kernel/sched/membarrier.c: MEMBARRIER_CMD_GLOBAL is synchronize_rcu).
pub(crate) fn grace_period() -> Result<(), DatapathError> {
    let _short = short();
    // SAFETY: membarrier takes three integers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result == 0 {
        return Ok(());
    }
    Err(io_error("wait for packets in flight (membarrier)")(std::io::Error::last_os_error()))
}

#[derive(Debug)]
struct Switch(File);

/// The switch is on until this goes.
#[derive(Debug)]
#[must_use]
pub(crate) struct Short<'a>(&'a Switch);

impl Switch {
    /// Also puts back what a netpol left that was killed.
    fn open(path: &Path) -> Option<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path).ok()?;
        let switch = Self(file);
        if switch.read()? == OURS {
            switch.write(0)?;
        }
        Some(switch)
    }

    fn short(&self) -> Option<Short<'_>> {
        match self.read()? {
            0 => self.write(OURS)?,
            // Another netpol is at it: it may be done sooner.
            OURS => {}
            // All are short: somebody wants that.
            _ => return None,
        }
        Some(Short(self))
    }

    fn read(&self) -> Option<i32> {
        let mut text = [0; 16];
        let length = self.0.read_at(&mut text, 0).ok()?;
        std::str::from_utf8(text.get(..length)?).ok()?.lines().next()?.trim().parse().ok()
    }

    fn write(&self, value: i32) -> Option<()> {
        self.0.write_all_at(format!("{value}\n").as_bytes(), 0).ok()
    }
}

impl Drop for Short<'_> {
    fn drop(&mut self) {
        if self.0.read() == Some(OURS) {
            let _ = self.0.write(0);
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::fs;

    use super::*;

    /// A file in place of the kernel's, which always holds one number and a line's end.
    fn file(value: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, value).unwrap();
        file
    }

    fn value(file: &tempfile::NamedTempFile) -> String {
        // What a file keeps of a longer number, the kernel's does not.
        fs::read_to_string(file).unwrap().lines().next().unwrap().to_owned()
    }

    #[test]
    fn the_switch_is_on_while_somebody_waits_and_never_after() {
        let file = file("0\n");
        let switch = Switch::open(file.path()).unwrap();
        for _ in 0..2 {
            let short = switch.short().unwrap();
            assert_eq!(value(&file), "9642");
            {
                let _inner = switch.short().unwrap();
                assert_eq!(value(&file), "9642");
            }
            assert_eq!(value(&file), "0", "the shorter one ends it: the other is slower, no more");
            drop(short);
            assert_eq!(value(&file), "0");
        }
    }

    #[test]
    fn what_somebody_else_has_set_stays() {
        let file = file("1\n");
        let switch = Switch::open(file.path()).unwrap();
        assert!(switch.short().is_none());
        assert_eq!(value(&file), "1");
        // Also if it is set meanwhile.
        fs::write(&file, "0\n").unwrap();
        let short = switch.short().unwrap();
        fs::write(&file, "1\n").unwrap();
        drop(short);
        assert_eq!(value(&file), "1");
    }

    #[test]
    fn what_was_left_by_one_that_was_killed_is_put_back() {
        let file = file("9642\n");
        Switch::open(file.path()).unwrap();
        assert_eq!(value(&file), "0");
    }

    #[test]
    fn where_there_is_no_switch_nothing_is_done() {
        assert!(Switch::open(Path::new("/nowhere")).is_none());
        let file = file("what is this\n");
        assert!(Switch::open(file.path()).is_none());
        assert_eq!(value(&file), "what is this");
    }
}
