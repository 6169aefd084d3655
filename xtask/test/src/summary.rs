//! Adds up the `test result:` lines of many test binaries. Reads text, runs nothing.

use std::fmt;

/// How many tests did what, over all test binaries so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Tests that passed.
    pub(crate) passed: u64,
    /// Tests that failed.
    pub(crate) failed: u64,
    /// Tests marked to be ignored.
    pub(crate) ignored: u64,
}

impl Summary {
    /// Takes a line of a test run into account, if it is a test binary's result.
    pub(crate) fn read(&mut self, line: &str) {
        // Colour codes may surround the word after the colon, and stand before the line.
        let Some((_, counts)) = line.split_once("test result: ") else { return };
        let count = |what: &str| {
            let before = counts.split(';').find_map(|part| part.trim_end().strip_suffix(what))?;
            before.split_whitespace().last()?.parse::<u64>().ok()
        };
        self.passed += count(" passed").unwrap_or(0);
        self.failed += count(" failed").unwrap_or(0);
        self.ignored += count(" ignored").unwrap_or(0);
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.ignored > 0 { write!(f, ", {} skipped", self.ignored) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_add_up_over_binaries() {
        let mut summary = Summary::default();
        for line in [
            "running 3 tests",
            "test a::b ... ok",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.00s",
            "test result: FAILED. 10 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s",
            "error: 1 target failed:",
        ] {
            summary.read(line);
        }
        assert_eq!(summary, Summary { passed: 13, failed: 2, ignored: 1 });
        assert_eq!(summary.to_string(), "13 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn coloured_results_count_too() {
        let mut summary = Summary::default();
        summary.read("test result: \x1b[32mok\x1b[m. 7 passed; 0 failed; 0 ignored; 0 measured;");
        assert_eq!(summary.to_string(), "7 passed, 0 failed");
    }
}
