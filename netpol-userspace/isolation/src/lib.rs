//! Namespaces of networks and of mounts. Beside the datapath the only code that needs `unsafe`, for
//! unshare(2). Must never change what another thread or process sees.

pub mod mounts;
pub mod netns;
