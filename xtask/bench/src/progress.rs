//! What is said on standard error while a benchmark runs. Must never write to standard output,
//! which is for the report.

use std::fmt::Display;
use std::io::Write as _;

/// Says what happens next, as `progress::say(format_args!("round {n} of {rounds}"))`.
/// A reader that went away is no reason to stop.
pub fn say(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "  {text}");
}
