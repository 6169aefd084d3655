//! Container images without Docker: a writer of image archives ([`archive`]), for netpol's own
//! image and for those that tests load into a cluster. It must not need a registry, a daemon or
//! root, and the same input gives the same bytes.

pub mod archive;
mod layer;

pub use archive::{Image, host_architecture};
pub use layer::{Content, Entry};
