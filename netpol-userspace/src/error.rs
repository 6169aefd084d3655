//! Errors as a person reads them: what happened, to what, and what to do next.

use std::io::ErrorKind;

use anyhow::Error;

/// The whole cause chain on one line, without repetitions, and what to do about it.
pub fn text(error: &Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Many errors already show their cause themselves.
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    if lacks_permission(error, &text) && !rustix::process::geteuid().is_root() {
        text.push_str("\nThis needs root: try again with sudo.");
    }
    text
}

fn lacks_permission(error: &Error, text: &str) -> bool {
    // Some errors of aya only exist as text.
    let in_text = ["Permission denied", "Operation not permitted", "no netpol maps"];
    io_kinds(error).any(|kind| kind == ErrorKind::PermissionDenied)
        || in_text.iter().any(|part| text.contains(part))
}

/// Whether the reader of our output is gone.
pub fn is_broken_pipe(error: &Error) -> bool {
    io_kinds(error).any(|kind| kind == ErrorKind::BrokenPipe)
}

fn io_kinds(error: &Error) -> impl Iterator<Item = ErrorKind> {
    error.chain().filter_map(|cause| match cause.downcast_ref::<serde_json::Error>() {
        // It does not tell the I/O error it has as its cause.
        Some(json) => json.io_error_kind(),
        None => Some(cause.downcast_ref::<std::io::Error>()?.kind()),
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_cause_that_is_already_told_is_not_told_again() {
        let error = anyhow::anyhow!("no such file").context("open x: no such file").context("a");
        assert_eq!(text(&error), "a: open x: no such file");
    }

    #[test]
    fn a_broken_pipe_is_found_below_contexts() {
        let pipe: Result<(), _> = Err(io::Error::from(ErrorKind::BrokenPipe));
        assert!(is_broken_pipe(&pipe.context("cannot write").expect_err("it is an error")));
        assert!(!is_broken_pipe(&anyhow::anyhow!("broken pipe")));
    }
}
