//! Container images without Docker: a writer of image archives ([`archive`]), for netpol's own
//! image ([`agent`]) and for those that tests load into a cluster. It must not need a registry, a
//! daemon or root, and the same input gives the same bytes.

pub mod agent;
pub mod archive;
mod layer;
mod program;

pub use agent::netpol;
pub use archive::{Image, host_architecture};
pub use layer::{Content, Entry};
pub use program::Program;
