//! What a test program's output says: which tests passed, which failed, and which failed because the
//! kernel lacks something that they name. Pure.

/// What tests say when the kernel lacks what they are about; what follows is its name.
pub const MISSING: &str = "missing feature: ";

/// A program's tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// How many passed.
    pub passed: u64,
    /// Names of those that failed.
    pub failed: Vec<String>,
    /// Names of those that failed for a feature, and its name.
    pub missing: Vec<(String, String)>,
    /// The program said how many there were.
    pub is_complete: bool,
}

/// Reads what the program printed.
#[must_use]
pub fn read(output: &str) -> Counts {
    let mut counts = Counts::default();
    let mut section: Option<&str> = None;
    let mut features: Vec<(String, String)> = Vec::new();
    let mut said_failed = 0;
    for line in output.lines() {
        if let Some(rest) = line.strip_prefix("test result: ") {
            let count = |what: &str| {
                let before = rest.split(';').find_map(|part| part.trim().strip_suffix(what))?;
                before.split_whitespace().last()?.parse::<u64>().ok()
            };
            counts.passed += count(" passed").unwrap_or(0);
            said_failed += count(" failed").unwrap_or(0);
            counts.is_complete = true;
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            counts.failed.push(name.to_owned());
        } else if let Some(name) =
            line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            section = Some(name);
        } else if let (Some(test), Some((_, feature))) = (section, line.split_once(MISSING)) {
            let end = feature.find([':', ';', ',']).unwrap_or(feature.len());
            features.push((test.to_owned(), feature[..end].trim().to_owned()));
        }
    }
    // What only one of the two places says is not left out.
    if counts.failed.len() as u64 != said_failed {
        counts.is_complete = false;
    }
    for name in std::mem::take(&mut counts.failed) {
        match features.iter().find(|(test, _)| *test == name) {
            Some(found) => counts.missing.push(found.clone()),
            None => counts.failed.push(name),
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_that_is_missing_is_told_from_a_failure() {
        let output = "running 3 tests\ntest a ... ok\ntest b ... FAILED\ntest c ... FAILED\n\
                      \nfailures:\n\n---- b stdout ----\nthread 'b' panicked at x.rs:1:\n\
                      missing feature: tcx: Linux 6.6\n\n---- c stdout ----\nassertion failed\n\n\
                      failures:\n    b\n    c\n\n\
                      test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out;\n";
        let counts = read(output);
        assert_eq!((counts.passed, counts.is_complete), (1, true));
        assert_eq!(counts.failed, ["c"]);
        assert_eq!(counts.missing, [("b".to_owned(), "tcx".to_owned())]);
    }

    #[test]
    fn a_program_that_ended_early_is_not_complete() {
        assert!(!read("running 3 tests\ntest a ... ok\n").is_complete);
        let cut = read("test result: FAILED. 1 passed; 2 failed; 0 ignored;\n");
        assert!(!cut.is_complete, "names of failed tests are missing");
    }
}
