//! Programs on interfaces by TCX links, which their pins keep. Must never leave a pin behind whose
//! interface is gone.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use aya::programs::links::{FdLink, LinkError, LinkOrder, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{MultiProgLink, ProgramError, SchedClassifier, TcAttachType};

use super::grace;

/// Attaches by a link pinned at `path`: at the head of the hook, or right behind another link.
pub(crate) fn attach_tcx(
    program: &mut SchedClassifier,
    interface: &str,
    hook: TcAttachType,
    behind: Option<&SchedClassifierLink>,
    path: &Path,
) -> Result<(), ProgramError> {
    if replace_pinned(program, path)? {
        return Ok(());
    }
    let _short = grace::short();
    let behind = behind.and_then(|link| LinkOrder::after_link(link).ok());
    let first = || TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = match behind {
        Some(order) => program
            .attach_with_options(interface, hook, TcAttachOptions::TcxOrder(order))
            // That link has just gone.
            .or_else(|_| program.attach_with_options(interface, hook, first()))?,
        None => program.attach_with_options(interface, hook, first())?,
    };
    let link = program.take_link(id)?;
    let link = FdLink::try_from(link).map_err(ProgramError::from_link_error)?;
    // From here on the pin, not this process, keeps the program attached.
    link.pin(path).map_err(ProgramError::from_pin_error)?;
    Ok(())
}

/// Replaces the program of a pinned link. False if there is no such link, or its interface is
/// gone, in which case the pin is removed.
pub(crate) fn replace_pinned(
    program: &mut SchedClassifier,
    path: &Path,
) -> Result<bool, ProgramError> {
    let Ok(pinned) = PinnedLink::from_pin(path) else {
        let _ = fs::remove_file(path);
        return Ok(false);
    };
    let link = SchedClassifierLink::try_from(FdLink::from(pinned))
        .map_err(ProgramError::from_link_error)?;
    match program.attach_to_link(link) {
        Ok(id) => {
            // The pin keeps it attached; dropping our descriptor changes nothing.
            drop(program.take_link(id)?);
            Ok(true)
        }
        Err(ProgramError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOLINK) =>
        {
            let _ = fs::remove_file(path);
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Takes a link's program off at once. Removing the pin alone does it some time later, when the
/// kernel gets to releasing the inode; until then packets would meet a program whose endpoint is
/// gone. A link whose interface is gone has nothing to take off, which is fine.
pub(crate) fn detach_now(link: FdLink) {
    const BPF_LINK_DETACH: i64 = 34;
    let Ok(link) = SchedClassifierLink::try_from(link) else { return };
    if let Ok(fd) = MultiProgLink::fd(&link) {
        // `union bpf_attr`'s `link_detach`: the descriptor alone.
        let attribute = fd.as_raw_fd().cast_unsigned();
        let _short = grace::short();
        // SAFETY: the kernel reads the four bytes given and writes nothing.
        unsafe {
            libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, &raw const attribute, size_of::<u32>());
        }
    }
}

/// Conversions that aya leaves to its callers.
trait FromParts {
    fn from_link_error(error: LinkError) -> Self;
    fn from_pin_error(error: aya::pin::PinError) -> Self;
}

impl FromParts for ProgramError {
    fn from_link_error(error: LinkError) -> Self {
        match error {
            LinkError::SyscallError(error) => Self::SyscallError(error),
            other => Self::IOError(std::io::Error::other(other.to_string())),
        }
    }

    fn from_pin_error(error: aya::pin::PinError) -> Self {
        match error {
            aya::pin::PinError::SyscallError(error) => Self::SyscallError(error),
            other => Self::IOError(std::io::Error::other(other.to_string())),
        }
    }
}
