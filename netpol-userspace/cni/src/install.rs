//! Installs the plugin on a node: the program into the directory of the plugins, and its name into
//! the network configuration that the container runtime uses; and takes both away again. Every file
//! is replaced in one step. Must never write to a file that it does not understand.

use std::fs::{self, File, Metadata};
use std::io::{ErrorKind, Read, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::TYPE;
use super::conflist::{self, Entry};

/// What is appended to the name of a .conf or .json that a list has taken the place of.
const WRAPPED: &str = "netpol-wrapped";
const PROGRAM: &str = "/proc/self/exe";

/// Where, and what.
#[derive(Debug, Clone)]
pub struct Places {
    /// Where the runtime looks for network configurations.
    pub conf_dir: PathBuf,
    /// Where it looks for plugins.
    pub bin_dir: PathBuf,
}

/// What was found or done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// There is no network configuration (yet).
    NoNetwork,
    /// It was as it should be.
    Unchanged(PathBuf),
    /// This file was written.
    Written(PathBuf),
}

/// Brings both in place. Safe at any time and as often as one likes.
pub fn install(places: &Places, entry: &Entry) -> Result<Outcome> {
    // Where there is no network there is no runtime to run the program, and maybe no node.
    let Some(active) = active(&places.conf_dir)? else { return Ok(Outcome::NoNetwork) };
    // First the program, then its name: a runtime that reads in between finds it.
    install_program(&places.bin_dir)?;
    let is_list = active.extension().is_some_and(|extension| extension == "conflist");
    let (file, chained) = match rewritten(&active).filter(|_| is_list) {
        Some(single) => (single.clone(), wrap(&single, entry)),
        None if is_list => (active.clone(), chain(&active, entry)),
        None => (active.clone(), wrap(&active, entry)),
    };
    chained.with_context(|| format!("left {} as it is", file.display()))
}

/// Takes both away; what was written.
pub fn uninstall(places: &Places) -> Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    // First the names, then what they stand for: a runtime that reads in between finds it.
    for file in configurations(&places.conf_dir)? {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let Ok(Some(rest)) = conflist::without_netpol(&text) else { continue };
        match wrapped_by(&file) {
            Some(original) => {
                fs::rename(&original, original.with_extension(""))
                    .with_context(|| format!("cannot give {} its name back", original.display()))?;
                remove(&file)?;
            }
            None => replace(&file, rest.as_bytes())?,
        }
        written.push(file);
    }
    let program = places.bin_dir.join(TYPE);
    if program.exists() {
        remove(&program)?;
        written.push(program);
    }
    Ok(written)
}

/// The configuration that a runtime uses: the first by name. `None` if there is none.
pub(crate) fn active(conf_dir: &Path) -> Result<Option<PathBuf>> {
    Ok(configurations(conf_dir)?.into_iter().next())
}

fn configurations(conf_dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(conf_dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("cannot read {}", conf_dir.display()))?,
    };
    let is_one = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("conf" | "conflist" | "json")) && !path.is_dir()
    };
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(is_one).collect();
    files.sort_unstable();
    Ok(files)
}

fn chain(file: &Path, entry: &Entry) -> Result<Outcome> {
    let text = fs::read_to_string(file)?;
    let Some(chained) = conflist::with_netpol(&text, entry)? else {
        return Ok(Outcome::Unchanged(file.to_owned()));
    };
    replace(file, chained.as_bytes())?;
    Ok(Outcome::Written(file.to_owned()))
}

/// A single plugin's configuration has no place for a second one: a list takes its place.
fn wrap(file: &Path, entry: &Entry) -> Result<Outcome> {
    let list = conflist::wrapped(&fs::read_to_string(file)?)?;
    let list = conflist::with_netpol(&list, entry)?.context("it has netpol alone")?;
    let target = file.with_extension("conflist");
    let is_ours = |text: String| conflist::has_netpol(&text);
    if target.exists() && !fs::read_to_string(&target).is_ok_and(is_ours) {
        bail!("there is a {} too, so it is not clear which of them is meant", target.display());
    }
    write(&target, list.as_bytes(), &fs::metadata(file)?)?;
    let mut kept = file.as_os_str().to_owned();
    kept.push(".");
    kept.push(WRAPPED);
    fs::rename(file, &kept)?;
    Ok(Outcome::Written(target))
}

/// The file that this list has taken the place of.
fn wrapped_by(list: &Path) -> Option<PathBuf> {
    let originals = ["conf", "json"].map(|old| list.with_extension(format!("{old}.{WRAPPED}")));
    originals.into_iter().find(|original| original.exists())
}

/// The file that this list has taken the place of, if its owner has written it again.
fn rewritten(list: &Path) -> Option<PathBuf> {
    let single = wrapped_by(list)?.with_extension("");
    single.exists().then_some(single)
}

/// Copies the program that runs, unless it is there already.
fn install_program(bin_dir: &Path) -> Result<()> {
    let target = bin_dir.join(TYPE);
    let install = || -> Result<()> {
        if are_equal(Path::new(PROGRAM), &target) {
            return Ok(());
        }
        fs::create_dir_all(bin_dir)?;
        let draft = draft(&target)?;
        fs::copy(PROGRAM, &draft)?;
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o755))?;
        File::open(&draft)?.sync_all()?;
        fs::rename(&draft, &target)?;
        Ok(())
    };
    install().with_context(|| format!("cannot install the plugin as {}", target.display()))
}

/// Whether both can be read and are the same.
fn are_equal(one: &Path, other: &Path) -> bool {
    let (Ok(mut one), Ok(mut other)) = (File::open(one), File::open(other)) else { return false };
    let length = |file: &File| file.metadata().map(|metadata| metadata.len()).ok();
    if length(&one) != length(&other) {
        return false;
    }
    let (mut left, mut right) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        match (fill(&mut one, &mut left), fill(&mut other, &mut right)) {
            (Some(0), Some(0)) => return true,
            (Some(n), Some(m)) if n == m && left[..n] == right[..m] => {}
            _ => return false,
        }
    }
}

/// Reads as much as there is and fits.
fn fill(file: &mut File, buffer: &mut [u8]) -> Option<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]).ok()? {
            0 => break,
            n => filled += n,
        }
    }
    Some(filled)
}

/// Replaces a file, or what it links to, by a new one with the same owner and permissions.
fn replace(file: &Path, text: &[u8]) -> Result<()> {
    let file = fs::canonicalize(file)?;
    write(&file, text, &fs::metadata(&file)?)
}

fn write(file: &Path, text: &[u8], like: &Metadata) -> Result<()> {
    let draft = draft(file)?;
    let attempt = || -> std::io::Result<()> {
        let mut new = File::create(&draft)?;
        new.write_all(text)?;
        new.set_permissions(like.permissions())?;
        chown(&draft, Some(like.uid()), Some(like.gid()))?;
        new.sync_all()?;
        fs::rename(&draft, file)
    };
    attempt().map_err(|error| {
        // The error that is returned matters more than one about the draft.
        let _ = fs::remove_file(&draft);
        anyhow::Error::from(error).context(format!("cannot write {}", file.display()))
    })
}

/// A name beside the file that no runtime takes for a configuration or a plugin.
fn draft(file: &Path) -> Result<PathBuf> {
    let name = file.file_name().with_context(|| format!("{} is no file", file.display()))?;
    Ok(file.with_file_name(format!(".{}.netpol-{}", name.display(), std::process::id())))
}

fn remove(file: &Path) -> Result<()> {
    fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display()))
}

#[cfg(test)]
mod tests;
