//! netpol's userspace: sources -> model -> compile -> datapath; observers read.
//!
//! Dependencies between modules point one way, in the order they are declared here.

pub mod model;

pub mod lock;

pub mod netns;

pub mod frames;

pub mod compile;

pub mod reference;

pub mod source;

pub mod endpoint;

pub mod datapath;

pub mod agent;

pub mod observe;

pub mod cni;

pub mod playground;

pub mod cli;
