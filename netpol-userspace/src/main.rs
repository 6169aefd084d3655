//! The `netpol` binary: runs the command line. Everything else is in the library, so that it can
//! be tested; no runtime and no thread may be started here, because `playground` must be the only
//! thread of its process.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    netpol_userspace::main()
}
