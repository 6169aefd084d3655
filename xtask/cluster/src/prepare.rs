//! Makes Kubernetes' programs ready before anything waits for them: builds from upstream's Go
//! modules what is missing, and says every few seconds how far it is. Must never run what it builds,
//! nor fetch anything but Go modules.
//!
//! What was compiled is kept by Go itself, across checkouts and interruptions; a program counts
//! only when it is there in full (`binaries::sizes`).

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use netpol_needs::Need;

use crate::binaries::{self, Made, Module, Program};
use crate::go;
use crate::images;
use crate::progress::{Progress, watch};
use crate::turns;

/// Free space that a first build takes, in bytes, rounded up: Go's caches and what is built.
const ROOM: u64 = 4 << 30;
const ROOM_FOR_SUITES: u64 = 3 << 30;

/// Makes ready what these needs are made of.
///
/// # Errors
/// There is no Go, no network, no room, or something cannot be built: the error says what to do.
/// Nothing is lost: the next preparation goes on.
pub fn ensure(needs: &[Need]) -> Result<()> {
    if !missing(needs)?.is_empty() {
        // Two at once would each take the whole machine, and build the same.
        let turn = turns::wait(&binaries::cache()?.join("preparing"), "another preparation")?;
        // Who had the turn before may have built it.
        let missing = missing(needs)?;
        if !missing.is_empty() {
            Build::new(&missing, turn.progress())?.run(&missing)?;
        }
    }
    images::prepare(needs)
}

/// The programs that are not there.
fn missing(needs: &[Need]) -> Result<Vec<Program>> {
    let mut missing: Vec<Program> = Vec::new();
    for program in needs.iter().flat_map(|need| binaries::of(*need)) {
        if !missing.contains(program) && binaries::ready(*program)?.is_none() {
            missing.push(*program);
        }
    }
    Ok(missing)
}

struct Build {
    go: PathBuf,
    progress: Progress,
}

impl Build {
    fn new(missing: &[Program], progress: Progress) -> Result<Self> {
        let names: Vec<&str> = missing.iter().map(|program| program.name).collect();
        eprintln!(
            "==> Kubernetes' programs that are not built yet: {} (once; on two processors usually \
             7 min for a cluster, 3 min for an API server, 4 min for each suite)",
            names.join(", ")
        );
        let go = go::find()?;
        for directory in [binaries::cache()?, go::cache(&go)?] {
            check_room(&directory, missing)?;
        }
        Ok(Self { go, progress })
    }

    fn run(&self, missing: &[Program]) -> Result<()> {
        let started = Instant::now();
        let mut rest = missing;
        while let Some(first) = rest.first() {
            let module = first.module;
            let count = rest.iter().take_while(|program| program.module == module).count();
            let (programs, others) = rest.split_at(count);
            self.module(module, programs)?;
            rest = others;
        }
        eprintln!("==> Kubernetes' programs: {:.0} s", started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Builds programs of one module: first all that they are made of, by all processors, then each.
    fn module(&self, module: &Module, programs: &[Program]) -> Result<()> {
        let directory = module.cache()?;
        let unfinished = directory.join("unfinished");
        if unfinished.exists() {
            eprintln!("    an earlier preparation was interrupted: going on with what it has left");
            fs::remove_dir_all(&unfinished)
                .with_context(|| format!("remove {}", unfinished.display()))?;
        }
        fs::create_dir_all(&unfinished)
            .with_context(|| format!("create {}", unfinished.display()))?;
        let built: Vec<&Program> =
            programs.iter().filter(|program| !matches!(program.made, Made::Copy(_))).collect();
        if !built.is_empty() {
            let parts = self.parts(module, &built)?;
            self.compile(module, &parts)?;
        }
        for (index, program) in programs.iter().enumerate() {
            let path = unfinished.join(program.name);
            if let Made::Copy(upstream) = program.made {
                self.copy(program, upstream, &path)?;
            } else {
                let count = programs.len();
                let what = format!("linking {} ({} of {count})", program.name, index + 1);
                self.link(program, &path, &what)?;
            }
            finish(&directory, program, &path)?;
        }
        fs::remove_dir(&unfinished).with_context(|| format!("remove {}", unfinished.display()))
    }

    /// The import paths of all packages that the programs are made of; fetches their modules.
    fn parts(&self, module: &Module, programs: &[&Program]) -> Result<Parts> {
        let mut command = self.command(module, &["list", "-deps"]);
        if programs.iter().any(|program| program.made == Made::Tests) {
            command.arg("-test");
        }
        // Packages changed for a test are compiled when it is linked; one that is nothing but tests is
        // an error to compile.
        command.args([
            "-f",
            "{{if and .GoFiles (not .ForTest)}}{{.Standard}} {{.Name}} {{.ImportPath}}{{end}}",
        ]);
        command.args(programs.iter().map(|program| program.package));
        let mut fetched = 0;
        let said = watch(command, &self.progress, |line, _| {
            fetched += usize::from(line.starts_with("go: downloading "));
            format!("fetching Go modules for {} {}: {fetched}", module.name(), module.version)
        });
        let mut parts = Parts { all: 0, named: Vec::new() };
        for line in said.map_err(explain)?.lines() {
            let mut words = line.split(' ');
            let (Some(standard), Some(name), Some(path)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            parts.all += 1;
            // Those of Go itself are compiled with who uses them; main packages are linked later.
            if standard == "false" && name != "main" {
                parts.named.push(path.to_owned());
            }
        }
        Ok(parts)
    }

    fn compile(&self, module: &Module, parts: &Parts) -> Result<()> {
        let mut command = self.command(module, &["build", "-v", "-trimpath"]);
        command.args(&parts.named);
        let mut compiled = 0;
        let all = parts.all;
        let (name, version) = (module.name(), module.version);
        let said = watch(command, &self.progress, |line, _| {
            compiled += usize::from(!line.starts_with("go: "));
            // Go does not say which it has kept from earlier.
            format!("compiling {name} {version}: {compiled} of at most {all} packages")
        });
        said.map(drop).map_err(explain)
    }

    fn link(&self, program: &Program, path: &Path, what: &str) -> Result<()> {
        let release = program.module.version;
        let version = "k8s.io/component-base/version";
        let numbers: Vec<&str> = release.trim_start_matches('v').split('.').collect();
        let flags = format!(
            "-s -w -X {version}.gitVersion={release} -X {version}.gitMajor={} \
             -X {version}.gitMinor={} -X {version}.gitTreeState=clean",
            numbers[0], numbers[1]
        );
        let verb: &[&str] = if program.made == Made::Tests { &["test", "-c"] } else { &["build"] };
        let mut command = self.command(program.module, verb);
        command.args(["-trimpath", "-ldflags", &flags, "-o"]).arg(path).arg(program.package);
        watch(command, &self.progress, |_, _| what.to_owned()).map(drop).map_err(explain)
    }

    /// Copies a file of an upstream module, at the version that our module pins.
    fn copy(&self, program: &Program, upstream: &str, path: &Path) -> Result<()> {
        let mut command = self.command(program.module, &["list", "-m", "-f", "{{.Dir}}"]);
        command.arg(upstream);
        let what = format!("looking for {}", program.name);
        let said = watch(command, &self.progress, |_, _| what.clone()).map_err(explain)?;
        let from = Path::new(said.trim()).join(program.package);
        let text = fs::read(&from).with_context(|| format!("read {}", from.display()))?;
        fs::write(path, text).map_err(|error| full(path, error))
    }

    /// `go VERB` in the directory of a module of ours.
    fn command(&self, module: &Module, verb: &[&str]) -> Command {
        // What is killed takes its compilers with it, or they would go on beside the next try.
        // The program is of util-linux, which not every distribution has in full.
        let mut command = match netpol_run::on_path("setpriv").next() {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL", "--"]).arg(&self.go);
                command
            }
            None => Command::new(&self.go),
        };
        command.current_dir(module.directory()).args(verb).args(["-mod=readonly"]);
        if verb[0] != "list" {
            command.arg("-buildvcs=false");
        }
        command.env("CGO_ENABLED", "0").env("GOTOOLCHAIN", "local");
        command
    }
}

/// What programs are made of.
struct Parts {
    /// How many packages, Go's own among them.
    all: usize,
    /// Those that can be named to be compiled.
    named: Vec<String>,
}

/// Moves a program to where it is kept and notes that it is whole, in this order, each on the disk
/// before the next.
fn finish(directory: &Path, program: &Program, unfinished: &Path) -> Result<()> {
    let path = directory.join(program.name);
    let file = File::open(unfinished).with_context(|| format!("open {}", unfinished.display()))?;
    file.sync_all().map_err(|error| full(unfinished, error))?;
    let size = file.metadata().context("a program's size")?.len();
    fs::rename(unfinished, &path).with_context(|| format!("move to {}", path.display()))?;
    let mut sizes = binaries::sizes(directory);
    sizes.insert(program.name.to_owned(), size);
    let mut text = String::new();
    for (name, size) in sizes {
        let _ = writeln!(text, "{size} {name}");
    }
    let note = directory.join(binaries::FINISHED);
    let new = directory.join("finished.new");
    let mut file = File::create(&new).with_context(|| format!("create {}", new.display()))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(|error| full(&new, error))?;
    fs::rename(&new, &note).with_context(|| format!("move to {}", note.display()))
}

fn full(path: &Path, error: std::io::Error) -> anyhow::Error {
    explain(anyhow::Error::from(error).context(format!("write {}", path.display())))
}

/// What a person can do about the usual reasons for which Go fails.
fn explain(error: anyhow::Error) -> anyhow::Error {
    let text = format!("{error:#}");
    let has = |signs: &[&str]| signs.iter().any(|sign| text.contains(sign));
    let go_on = "What was compiled so far is kept: run the same command again, and it goes on";
    if has(&["no space left on device", "No space left on device", "disk quota exceeded"]) {
        let advice = "the disk is full. Make room (NETPOL_CACHE, GOCACHE and GOMODCACHE name other \
                      places).";
        return error.context(format!("{advice} {go_on}"));
    }
    if has(&["dial tcp", "no such host", "TLS handshake timeout", "i/o timeout", "proxyconnect"]) {
        let advice = "Go's modules cannot be fetched: is there a network, and does GOPROXY name a \
                      module proxy that is reached? Without one, give a directory of Kubernetes' \
                      programs in KUBEBUILDER_ASSETS.";
        return error.context(format!("{advice} {go_on}"));
    }
    error.context(format!("Kubernetes' programs cannot be built. {go_on}"))
}

/// Says before minutes of work that there is no room for what they make.
fn check_room(directory: &Path, missing: &[Program]) -> Result<()> {
    let is_suite = |program: &Program| program.made == Made::Tests;
    let wanted = if missing.iter().any(is_suite) { ROOM + ROOM_FOR_SUITES } else { ROOM };
    let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(directory);
    let filesystem = rustix::fs::statvfs(existing)
        .with_context(|| format!("look at the filesystem of {}", existing.display()))?;
    let free = filesystem.f_bavail.saturating_mul(filesystem.f_frsize);
    // What is there already is most of it, if there is something.
    let is_first = !directory.exists();
    ensure!(
        free >= if is_first { wanted } else { wanted / 8 },
        "{} has {} MiB free, and building Kubernetes' programs takes up to {} MiB there: make room, \
         or name another place in NETPOL_CACHE, GOCACHE and GOMODCACHE. Nothing was begun",
        existing.display(),
        free >> 20,
        wanted >> 20
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_program_counts_only_in_full() {
        let directory = tempfile::tempdir().unwrap();
        let (directory, program) = (directory.path(), binaries::KUBECTL);
        let unfinished = directory.join("half");
        fs::write(&unfinished, "whole").unwrap();
        finish(directory, &program, &unfinished).unwrap();
        fs::write(&unfinished, "another").unwrap();
        finish(directory, &binaries::ETCD, &unfinished).unwrap();
        let sizes = binaries::sizes(directory);
        assert_eq!(sizes.get("kubectl"), Some(&5));
        assert_eq!(sizes.get("etcd"), Some(&7));
        fs::write(directory.join(binaries::FINISHED), "5 kub\nx etcd\n").unwrap();
        assert_eq!(binaries::sizes(directory).get("kubectl"), None);
    }

    #[test]
    fn usual_reasons_come_with_what_to_do() {
        let advice = |text: &'static str| format!("{:#}", explain(anyhow::anyhow!(text)));
        let full = advice("compile: write /x: no space left on device");
        assert!(full.contains("the disk is full") && full.contains("goes on"), "{full}");
        let offline = advice("Get \"https://x\": dial tcp: lookup x: no such host");
        assert!(offline.contains("GOPROXY") && offline.contains("KUBEBUILDER_ASSETS"), "{offline}");
        assert!(advice("syntax error").contains("syntax error"));
    }

    #[test]
    fn a_filesystem_without_room_is_named_before_anything_is_begun() {
        // No filesystem of this kind ever has room.
        let error = check_room(Path::new("/proc"), &[binaries::KUBECTL]).unwrap_err().to_string();
        assert!(error.contains("/proc has 0 MiB free") && error.contains("Nothing was"), "{error}");
    }
}
