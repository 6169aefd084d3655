//! A real Kubernetes cluster on one machine: upstream's own programs, nodes in network and mount
//! namespaces of their own. For tests and demonstrations; nothing of netpol depends on it.

pub mod binaries;
pub mod envtest;
