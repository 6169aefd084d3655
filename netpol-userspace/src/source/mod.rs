//! Where objects come from: files or an API server, turned into [`crate::model::Change`]s. Must
//! never decide a verdict and never drop an object silently.

pub mod convert;
pub mod validate;
