//! Map layouts and packet-verdict rules, shared by the eBPF programs and userspace.
//!
//! Everything that decides a verdict from parsed headers and map contents is here and is plain
//! Rust, so that the same code runs in the kernel and in tests on the host. This crate must never
//! touch a map, a packet buffer or the kernel itself: it sees them through the traits
//! [`packet::Frame`], [`flow::Table`] and [`verdict::Maps`].

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_lossless,
    reason = "words of maps are taken apart, also where `From` cannot be called"
)]

pub mod flow;
pub mod layout;
pub mod neighbour;
pub mod packet;
pub mod ports;
pub mod service;
pub mod spread;
pub mod verdict;
