//! An array map in our address space: reads and single-word atomic writes without system calls.

use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use netpol_common::flow;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::error::{DatapathError, io_error};

/// A `BPF_F_MMAPABLE` array map whose value is a number of 64-bit words.
#[derive(Debug)]
pub struct Mapped {
    base: NonNull<AtomicU64>,
    /// Words of one value.
    stride: usize,
    entries: usize,
}

// SAFETY: the memory is shared with the kernel anyway and is only accessed through atomics.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps `entries` values of `value_size` bytes (a multiple of 8) of the array map `fd`.
    pub fn new(
        name: &str,
        fd: impl AsFd,
        value_size: usize,
        entries: usize,
        is_writable: bool,
    ) -> Result<Self, DatapathError> {
        let protection =
            if is_writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing of ours.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                entries * value_size,
                protection,
                MapFlags::SHARED,
                fd.as_fd(),
                0,
            )
        }
        .map_err(|error| io_error(format!("mmap map {name}"))(error.into()))?;
        let base = NonNull::new(base.cast()).expect("invariant: mmap never returns null");
        Ok(Self { base, stride: value_size / 8, entries })
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// The words of one value.
    pub fn value(&self, index: usize) -> &[AtomicU64] {
        assert!(index < self.entries, "index {index} of a map of {} values", self.entries);
        // SAFETY: the mapping covers entries * stride words, lives as long as self, and is
        // page-aligned; other parties (kernel, processes) access it with word-sized operations.
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
        // SAFETY: exactly the mapping made in `new`; no reference outlives self.
        // A failure leaves address space behind and nothing else.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), length) };
    }
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
