//! What commands are told that programs of their own carry out: declared once, for `cargo xtask`,
//! which explains and checks it at once and passes the words on as they are, and for the program that
//! takes them. Must never do what they say, nor depend on what that takes.

pub mod bench;
pub mod image;
pub mod test;
