//! Where programs are. Must never start one.

use std::env;
use std::path::PathBuf;

/// Directories of the administrator's programs, which a user's PATH may lack.
const ADMINISTRATORS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The files of this name in the directories of PATH, in their order.
pub fn on_path(name: &str) -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let files: Vec<PathBuf> =
        env::split_paths(&path).map(|directory| directory.join(name)).collect();
    files.into_iter().filter(|file| file.is_file())
}

/// The first one, in PATH and then in the administrator's directories.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let others = ADMINISTRATORS.iter().map(|directory| PathBuf::from(directory).join(name));
    on_path(name).chain(others.filter(|file| file.is_file())).next()
}

/// Where Go installs itself, which PATH may lack.
const USUAL_OF_GO: [&str; 2] = ["/usr/local/go/bin/go", "/usr/lib/go/bin/go"];

/// Every `go` there is, those of PATH first.
pub fn gos() -> impl Iterator<Item = PathBuf> {
    on_path("go").chain(USUAL_OF_GO.map(PathBuf::from).into_iter().filter(|file| file.is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found() {
        assert!(find_program("sh").is_some() && on_path("sh").next().is_some());
        assert!(find_program("no-such-program-anywhere").is_none());
    }
}
