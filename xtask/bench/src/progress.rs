//! What is said on standard error while a benchmark runs. Must never write to standard output,
//! which is for the report.

/// Says what happens next, as `progress::say(format_args!("round {n} of {rounds}"))`.
pub fn say(text: impl std::fmt::Display) {
    eprintln!("  {text}");
}
