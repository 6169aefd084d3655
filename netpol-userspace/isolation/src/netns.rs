//! Network namespaces: open, create, delete, identify, and run code inside them.
//!
//! The one place that calls setns and unshare. It must never change the network namespace of the
//! calling thread: whatever enters a namespace does so on a thread of its own, which then ends.
//! An open [`Netns`] keeps the namespace and its interfaces alive, so hold one only briefly.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use rustix::fs::OFlags;
use rustix::mount::UnmountFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

/// `NSFS_MAGIC` of linux/magic.h: the file system of namespace files.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Which namespace it is, as long as it exists: the kernel may give the number to a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetnsId {
    /// `st_dev` of the namespace file.
    pub dev: u64,
    /// `st_ino` of the namespace file.
    pub ino: u64,
}

/// As `ip netns` and /proc show it: the inode number alone, `net:[4026531840]`.
impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.ino)
    }
}

impl NetnsId {
    /// The identity of the namespace file at `path`, without opening (and so holding) it. Does
    /// not tell whether the file is a namespace at all: [`Netns::open`] does.
    pub fn of_path(path: impl AsRef<Path>) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self { dev: metadata.dev(), ino: metadata.ino() })
    }
}

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    file: File,
    id: NetnsId,
}

impl Netns {
    /// Opens the namespace whose file is at `path` (a bind mount of one, or a link in /proc).
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        // Not blocking: the path may turn out to be a fifo that nobody writes to.
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path)
            .map_err(|error| explain("open", path, &error))?;
        if rustix::fs::fstatfs(&file)?.f_type.cast_unsigned() != NSFS_MAGIC {
            let message = format!("{} is not a namespace file", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let metadata = file.metadata()?;
        let id = NetnsId { dev: metadata.dev(), ino: metadata.ino() };
        Ok(Self { file, id })
    }

    /// Opens the namespace of the process `pid`.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        Self::open(format!("/proc/{pid}/ns/net"))
    }

    /// Opens the namespace of the calling thread.
    pub fn current() -> io::Result<Self> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// Creates a namespace that lives as long as something holds it: this value, a process or
    /// thread in it, a socket opened in it.
    pub fn create_anonymous() -> io::Result<Self> {
        on_new_thread(|| {
            unshare_network()?;
            Self::current()
        })?
    }

    /// Creates a namespace named `name` in `dir`, as `ip netns add` does in /run/netns: it lives
    /// until [`delete`] even if nobody holds it. Creates `dir` if need be; an existing name is an
    /// error of kind `AlreadyExists`.
    pub fn create(dir: impl AsRef<Path>, name: &str) -> io::Result<Self> {
        let path = dir.as_ref().join(name);
        fs::create_dir_all(&dir).map_err(|error| explain("create", dir.as_ref(), &error))?;
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(&path)
            .map_err(|error| explain("create", &path, &error))?;
        let mounted = on_new_thread(|| {
            unshare_network()?;
            rustix::mount::mount_bind("/proc/thread-self/ns/net", &path)?;
            Self::current()
        });
        match mounted {
            Ok(Ok(netns)) => Ok(netns),
            Ok(Err(error)) | Err(error) => {
                // The error that is returned matters more than one about the empty file.
                let _ = delete(dir, name);
                Err(explain("create the network namespace", &path, &error))
            }
        }
    }

    /// Which namespace it is.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Runs `work` inside the namespace, on a thread of its own, and waits for it. What `work`
    /// opens or spawns (sockets, threads, processes, runtimes) belongs to the namespace and may
    /// be returned. A panic of `work` goes on in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_new_thread(|| {
            self.enter()?;
            Ok(work())
        })?
    }

    /// Starts a thread called `thread_name` inside the namespace. That it entered is checked
    /// before this returns; the thread is then on its own.
    pub fn spawn<T: Send + 'static>(
        &self,
        thread_name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<thread::JoinHandle<T>> {
        // A thread is born in the namespace of its parent, so the entered thread starts it.
        self.run(|| thread::Builder::new().name(thread_name.to_owned()).spawn(work))?
    }

    /// Moves the calling thread. Private: only ever for threads made here.
    fn enter(&self) -> io::Result<()> {
        let kind = Some(LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(self.as_fd(), kind)?;
        Ok(())
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Deletes the name `name` in `dir`; the namespace goes when nothing else holds it. A name that
/// does not exist is fine.
pub fn delete(dir: impl AsRef<Path>, name: &str) -> io::Result<()> {
    let path = dir.as_ref().join(name);
    match rustix::mount::unmount(&path, UnmountFlags::DETACH) {
        // Not a mount point: what a crash between creating the file and mounting leaves.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(errno) => return Err(explain("unmount", &path, &errno.into())),
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(explain("remove", &path, &error))
        }
        _ => Ok(()),
    }
}

/// Runs `work` on a thread that ends with it, and hands on its panic.
fn on_new_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("netns".to_owned());
        let thread = builder.spawn_scoped(scope, work)?;
        Ok(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

/// Gives the calling thread a new network namespace. Private: only ever for threads made here.
fn unshare_network() -> io::Result<()> {
    // SAFETY: unshare is unsafe because of `FILES` alone, which separates file descriptor tables;
    // a new network namespace leaves every file descriptor as it is.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
    Ok(())
}

/// Says what failed on which path and keeps the kind.
fn explain(action: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {action} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn current_id() -> NetnsId {
        Netns::current().unwrap().id()
    }

    #[test]
    fn a_named_namespace_exists_until_it_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let netns = Netns::create(dir.path(), "one").unwrap();
        let path = dir.path().join("one");
        assert_eq!(Netns::open(&path).unwrap().id(), netns.id());
        assert_eq!(NetnsId::of_path(&path).unwrap(), netns.id());
        assert_ne!(netns.id(), current_id());
        let again = Netns::create(dir.path(), "one").unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(Netns::open(&path).unwrap().id(), netns.id(), "the refused create changed it");
        delete(dir.path(), "one").unwrap();
        assert!(!path.exists());
        delete(dir.path(), "one").unwrap();
    }

    #[test]
    fn running_inside_leaves_the_caller_where_it_was() {
        let before = current_id();
        let netns = Netns::create_anonymous().unwrap();
        let mut inside = None;
        netns.run(|| inside = Some(current_id())).unwrap();
        assert_eq!(inside, Some(netns.id()));
        let child = netns.spawn("child", current_id).unwrap().join().unwrap();
        assert_eq!(child, netns.id());
        let panicked = std::panic::catch_unwind(|| netns.run(|| panic!("expected by the test")));
        assert!(panicked.is_err());
        assert_eq!(current_id(), before);
    }

    #[test]
    fn what_is_no_network_namespace_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("leftover");
        File::create(&file).unwrap();
        assert_eq!(Netns::open(&file).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        assert_eq!(Netns::open(&fifo).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let missing = Netns::open(dir.path().join("missing")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        // A namespace of another kind opens, but cannot be entered as a network namespace.
        Netns::open("/proc/self/ns/mnt").unwrap().run(|| ()).unwrap_err();
        delete(dir.path(), "leftover").unwrap();
        assert!(!file.exists());
    }
}
