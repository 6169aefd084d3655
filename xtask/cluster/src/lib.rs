//! A real Kubernetes cluster on one machine: upstream's own programs, nodes in network and mount
//! namespaces of their own. For tests and demonstrations; nothing of netpol depends on it.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "numbers of a test cluster, and figures"
)]

pub mod addresses;
pub mod agent;
pub mod binaries;
mod cgroup;
pub mod cluster;
pub mod conformance;
pub mod control_plane;
pub mod dns;
pub mod envtest;
pub mod forward;
mod go;
pub mod images;
pub mod machine;
pub mod manifests;
pub mod network;
pub mod node;
pub mod pki;
pub mod prepare;
pub mod process;
pub mod progress;
pub mod scenarios;
pub mod turns;

pub use cluster::{Cluster, Options};
