//! Map layouts and packet-verdict rules shared by the eBPF programs and userspace.
#![no_std]
