//! An array map in our address space: reads and single-word atomic writes without system calls. Must
//! never unmap what somebody may still look at.

use std::ffi::c_void;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use netpol_common::flow;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::error::{DatapathError, io_error};

/// The index of the word of a value in which a field stands, by the field's offset in bytes.
pub(crate) const fn word_at(offset: usize) -> usize {
    assert!(offset.is_multiple_of(8), "the field begins in the middle of a word");
    offset / 8
}

/// A `BPF_F_MMAPABLE` array map whose value is a number of 64-bit words.
#[derive(Debug)]
pub struct Mapped {
    base: NonNull<AtomicU64>,
    /// Words of one value.
    stride: usize,
    entries: usize,
    /// `None`: all of it is mapped.
    windows: Option<Windows>,
}

/// Parts of a map that are mapped once somebody looks at them.
#[derive(Debug)]
struct Windows {
    fd: OwnedFd,
    protection: ProtFlags,
    /// Bytes of each.
    size: usize,
    is_mapped: Vec<AtomicBool>,
    /// Taken by who maps one.
    mapping: Mutex<()>,
}

/// Bytes of a window, or a page where those are larger: whole pages, and whole values.
const WINDOW: usize = 1 << 14;

// SAFETY: the memory is shared with the kernel anyway and is only accessed through atomics.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps `entries` values of `value_size` bytes (a multiple of 8) of the array map `fd`.
    pub fn new(
        name: &str,
        fd: BorrowedFd<'_>,
        value_size: usize,
        entries: usize,
        is_writable: bool,
    ) -> Result<Self, DatapathError> {
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing of ours.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                entries * value_size,
                protection(is_writable),
                MapFlags::SHARED,
                fd,
                0,
            )
        }
        .map_err(|error| io_error(format!("mmap map {name}"))(error.into()))?;
        Ok(Self::at(base, value_size, entries, None))
    }

    /// The same of a map that is large and of which little is looked at, mostly: what is mapped of a
    /// map is resident in full, though it takes no more memory. Values are of a size that divides a
    /// window's.
    pub(crate) fn in_windows(
        name: &str,
        fd: BorrowedFd<'_>,
        value_size: usize,
        entries: usize,
        is_writable: bool,
    ) -> Result<Self, DatapathError> {
        assert!(WINDOW.is_multiple_of(value_size), "values of {value_size} bytes in windows");
        let what = || format!("mmap map {name}");
        let length = entries * value_size;
        let fd = fd.try_clone_to_owned().map_err(io_error(what()))?;
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing of ours.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                length,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }
        .map_err(|error| io_error(what())(error.into()))?;
        let size = WINDOW.max(rustix::param::page_size());
        let windows = Windows {
            fd,
            size,
            protection: protection(is_writable),
            is_mapped: (0..length.div_ceil(size)).map(|_| AtomicBool::new(false)).collect(),
            mapping: Mutex::new(()),
        };
        Ok(Self::at(base, value_size, entries, Some(windows)))
    }

    fn at(base: *mut c_void, value_size: usize, entries: usize, windows: Option<Windows>) -> Self {
        let base = NonNull::new(base.cast()).expect("invariant: mmap never returns null");
        Self { base, stride: value_size / 8, entries, windows }
    }

    /// Maps the window around a byte, if it is not.
    fn map_around(&self, offset: usize) {
        let Some(windows) = &self.windows else { return };
        let number = offset / windows.size;
        let is_mapped = &windows.is_mapped[number];
        if is_mapped.load(Ordering::Acquire) {
            return;
        }
        let _mapping = windows.mapping.lock().unwrap_or_else(PoisonError::into_inner);
        if is_mapped.load(Ordering::Acquire) {
            return;
        }
        let begin = number * windows.size;
        let length = windows.size.min(self.entries * self.stride * 8 - begin);
        // SAFETY: the window is part of what `in_windows` has mapped for this, and nobody has a
        // reference into it yet: `value` gives none before.
        let mapped = unsafe {
            mmap(
                self.base.as_ptr().cast::<u8>().add(begin).cast(),
                length,
                windows.protection,
                MapFlags::SHARED | MapFlags::FIXED,
                &windows.fd,
                begin as u64,
            )
        };
        // As where memory cannot be had.
        mapped.expect("map a part of a map");
        is_mapped.store(true, Ordering::Release);
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// The words of one value.
    pub fn value(&self, index: usize) -> &[AtomicU64] {
        assert!(index < self.entries, "index {index} of a map of {} values", self.entries);
        self.map_around(index * self.stride * 8);
        // SAFETY: the mapping covers entries * stride words, of which these are mapped now and as
        // long as self lives, and is page-aligned; other parties (kernel, processes) access it with
        // word-sized operations.
        unsafe {
            std::slice::from_raw_parts(self.base.as_ptr().add(index * self.stride), self.stride)
        }
    }

    /// One word.
    pub fn load(&self, index: usize, word: usize) -> u64 {
        self.value(index)[word].load(Ordering::Acquire)
    }

    /// Stores one word; what was stored before is visible before it.
    pub fn store(&self, index: usize, word: usize, value: u64) {
        self.value(index)[word].store(value, Ordering::Release);
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let length = self.entries * self.stride * 8;
        // SAFETY: exactly the mapping made in `new` or `in_windows`; no reference outlives self.
        // A failure leaves address space behind and nothing else.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), length) };
    }
}

fn protection(is_writable: bool) -> ProtFlags {
    if is_writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ }
}

/// A flow bucket in a mapped table.
#[derive(Clone, Copy)]
pub struct Bucket<'a>(pub &'a [AtomicU64]);

impl flow::Bucket for Bucket<'_> {
    fn load(self, word: usize) -> u64 {
        self.0[word].load(Ordering::Acquire)
    }

    fn store(self, word: usize, value: u64) {
        self.0[word].store(value, Ordering::Release);
    }

    fn compare_and_swap(self, word: usize, old: u64, new: u64) -> bool {
        self.0[word].compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn store_zero(self, byte: usize) {
        let mut mask = [0xff; 8];
        mask[byte % 8] = 0;
        self.0[byte / 8].fetch_and(u64::from_ne_bytes(mask), Ordering::Relaxed);
    }
}
