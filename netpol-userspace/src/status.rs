//! `netpol status`.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use anyhow::{Context as _, Result, bail};

use super::output::{self, Format, note};
use super::places::{self, Places};
use netpol_api::client::{self, Waited};
use netpol_api::state::{CompilingView, ObjectError, Status, socket_path, state_path};
use netpol_model::Direction;
use netpol_observe::node::Node;

/// Say whether everything is in force on this node, and what is not
///
/// Asks the agent; while it is down, shows what it last wrote. Lists objects that cannot be used
/// and why. With `--wait` it returns when every change made before the call is in force, so that
/// scripts can change a policy and then rely on it; what others write meanwhile does not count.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  netpol status
  cp policy.yaml manifests/ && netpol status --wait --timeout 10s

Exit codes: 0 ready, 1 not ready (or not in time), 2 nothing is known about this node.")]
pub struct Args {
    /// Wait until everything written before this call is in force
    #[arg(long)]
    wait: bool,

    /// How long to wait, such as 500ms, 30s or 2m
    #[arg(long, default_value = "30s", value_parser = duration)]
    timeout: Duration,

    #[command(flatten)]
    places: Places,

    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Shows it; true if ready.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<bool> {
    let (status, is_fine) = if args.wait { wait(args)? } else { ask(args)? };
    let left = left_in_force(args, &status);
    output::show(out, args.output, &status, |status| text(status) + &left_text(left))?;
    Ok(is_fine)
}

fn ask(args: &Args) -> Result<(Status, bool)> {
    match client::status(&args.places.run_dir)? {
        Some(status) => {
            let is_ready = status.ready;
            Ok((status, is_ready))
        }
        None => Ok((last_known(args)?, false)),
    }
}

fn wait(args: &Args) -> Result<(Status, bool)> {
    let limit = args.timeout.as_secs_f64();
    match client::wait(&args.places.run_dir, args.timeout)? {
        Waited::InForce(status) => {
            let is_ready = status.ready;
            Ok((status, is_ready))
        }
        Waited::TimeIsUp(Some(status)) => {
            note(&format!("not everything is in force after {limit} s"));
            Ok((status, false))
        }
        Waited::TimeIsUp(None) => {
            note(&format!(
                "no agent answered at {} within {limit} s",
                socket_path(&args.places.run_dir).display()
            ));
            Ok((last_known(args)?, false))
        }
    }
}

/// On how many interfaces an earlier agent's programs still enforce what was in force, while the
/// agent that runs does not know enough to take them over. None of it is open.
fn left_in_force(args: &Args, status: &Status) -> usize {
    if status.source.synced {
        return 0;
    }
    // The places that a state file names; what cannot be read names none.
    let node = Node::read(&args.places.run_dir).ok().flatten();
    let links = args.places.pins(node.as_ref().map(|node| &node.state)).links();
    n_interfaces(&links).saturating_sub(status.datapath.endpoints)
}

fn n_interfaces(links: &Path) -> usize {
    let names = fs::read_dir(links).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let of_endpoints = names.filter_map(|name| {
        let (interface, hook) = name.to_str()?.split_once('-')?;
        let interface: u32 = interface.parse().ok()?;
        Direction::BOTH.iter().any(|direction| direction.as_str() == hook).then_some(interface)
    });
    of_endpoints.collect::<BTreeSet<_>>().len()
}

fn left_text(left: usize) -> String {
    match left {
        0 => String::new(),
        1 => "what an earlier agent left stays in force on 1 more interface\n".to_owned(),
        n => format!("what an earlier agent left stays in force on {n} more interfaces\n"),
    }
}

/// What the agent wrote before it ended.
fn last_known(args: &Args) -> Result<Status> {
    let node = Node::read(&args.places.run_dir)?.with_context(|| {
        format!(
            "no agent runs with --run-dir {}, and none has left a {}: start `netpol agent`, or \
             give the --run-dir of the one that runs",
            args.places.run_dir.display(),
            state_path(&args.places.run_dir).display()
        )
    })?;
    note(&places::not_running(&node));
    Ok(Status { ready: false, ..node.state.status })
}

fn text(status: &Status) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    text_at(status, now.unwrap_or_default().as_secs().cast_signed())
}

fn text_at(status: &Status, now: i64) -> String {
    let Status { ready, source, datapath } = status;
    let (word, color) =
        if *ready { ("ready", AnsiColor::Green) } else { ("not ready", AnsiColor::Yellow) };
    let style: Style = color.on_default();
    let mut text = format!("{style}{word}{style:#}: {}\n", progress(status));
    let missing: Vec<&str> = source
        .watches
        .iter()
        .filter(|watch| !watch.synced)
        .map(|watch| watch.resource.as_str())
        .collect();
    let synced = match (source.synced, missing.as_slice()) {
        (true, _) => "read completely".to_owned(),
        (false, []) => "not read completely yet".to_owned(),
        (false, missing) => format!("not read completely yet: {} are missing", missing.join(", ")),
    };
    text += &format!("source: {}, {synced}, revision {}\n", source.kind, source.revision);
    let n = datapath.endpoints;
    let attach = match datapath.attach.as_str() {
        "" => String::new(),
        attach => format!(", attached by {attach}"),
    };
    text += &format!(
        "datapath: {n} {}{attach}, revision {}\n",
        if n == 1 { "endpoint" } else { "endpoints" },
        datapath.applied_revision
    );
    for compiling in &datapath.compiling {
        text += &format!("compiling: {}\n", under_way(compiling, now));
    }
    text += &errors("objects that cannot be used", &source.errors);
    text += &errors("not enforced, or not as written", &datapath.errors);
    for note in &datapath.notes {
        text += &format!("note: {note}\n");
    }
    text
}

fn progress(status: &Status) -> &'static str {
    let Status { ready, source, datapath } = status;
    match (ready, source.synced) {
        (true, _) if !datapath.compiling.is_empty() => {
            "what was written before this call is in force; what came later is being compiled"
        }
        (true, _) if !datapath.errors.is_empty() => {
            "everything read so far is in force; what follows deserves a look"
        }
        (true, _) => "everything read so far is in force",
        (false, false) => "the source has not been read completely",
        (false, true)
            if source.revision > datapath.applied_revision || !datapath.compiling.is_empty() =>
        {
            "changes have been read that are not in force yet"
        }
        (false, true) if !source.errors.is_empty() => {
            "what could be used is in force; what follows could not"
        }
        (false, true) if !datapath.errors.is_empty() => {
            "not everything could be put in force, see below"
        }
        (false, true) => "no agent keeps it up to date",
    }
}

/// What is being compiled, whose, how far and since when.
fn under_way(compiling: &CompilingView, now: i64) -> String {
    let CompilingView { namespace, waiting, done, all, since } = compiling;
    let mut text = match namespace.as_str() {
        "" => "pods and Services of the cluster".to_owned(),
        name => format!("policies and pods of namespace {name}"),
    };
    if *all > 0 {
        text += &format!(", {done} of {all} steps done");
    }
    if *waiting > 0 {
        text += &format!(", {waiting} more policies wait for that");
    }
    text + &format!(", for {} s", (now - since).max(0))
}

/// How many objects are named of those that something is wrong with.
const MOST_ERRORS: usize = 50;

fn errors(title: &str, errors: &[ObjectError]) -> String {
    if errors.is_empty() {
        return String::new();
    }
    let style: Style = AnsiColor::Red.on_default();
    let mut text = format!("{style}{title}{style:#}:\n");
    for error in errors.iter().take(MOST_ERRORS) {
        text += &format!("  {}: {}\n", error.object, error.message);
    }
    let n_cut = errors.len().saturating_sub(MOST_ERRORS);
    if n_cut > 0 {
        text += &format!("  and {n_cut} more: -o json has all\n");
    }
    text
}

fn duration(text: &str) -> Result<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => bail!("unknown unit {unit:?}, use ms, s, m or h"),
    };
    let number: f64 = number.parse().context("expected a number and a unit, such as 30s")?;
    Duration::try_from_secs_f64(number * factor).context("too long")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use netpol_api::state::WatchView;
    use netpol_api::testing::state;

    fn plain(status: &Status) -> String {
        anstream::adapter::strip_str(&text(status)).to_string()
    }

    #[test]
    fn a_ready_node_in_three_lines() {
        assert_eq!(
            plain(&state(vec![]).status),
            "\
ready: everything read so far is in force
source: manifests, read completely, revision 7
datapath: 0 endpoints, attached by tcx, revision 7
"
        );
    }

    #[test]
    fn what_is_not_read_yet_is_named() {
        let mut status = state(vec![]).status;
        status.source.synced = false;
        let watch =
            |resource: &str, synced| WatchView { resource: resource.into(), synced, objects: 0 };
        status.source.watches =
            vec![watch("pods", false), watch("namespaces", true), watch("networkpolicies", false)];
        let line = "not read completely yet: pods, networkpolicies are missing, revision 7";
        assert!(plain(&status).contains(line), "{}", plain(&status));
    }

    #[test]
    fn what_is_being_compiled_is_told_with_whose_it_is_how_far_and_since_when() {
        let mut status = state(vec![]).status;
        status.ready = false;
        let view = |namespace: &str, waiting, done, all| CompilingView {
            namespace: namespace.into(),
            waiting,
            done,
            all,
            since: 100,
        };
        status.datapath.compiling = vec![view("", 0, 3, 10), view("bulk", 12, 0, 0)];
        let text = text_at(&status, 107);
        let text = anstream::adapter::strip_str(&text).to_string();
        assert_eq!(
            text,
            "\
not ready: changes have been read that are not in force yet
source: manifests, read completely, revision 7
datapath: 0 endpoints, attached by tcx, revision 7
compiling: pods and Services of the cluster, 3 of 10 steps done, for 7 s
compiling: policies and pods of namespace bulk, 12 more policies wait for that, for 7 s
"
        );
        // For who has waited for what was written before it.
        status.ready = true;
        let line = "ready: what was written before this call is in force; what came later is being \
                    compiled\n";
        assert!(plain(&status).starts_with(line), "{}", plain(&status));
    }

    #[test]
    fn what_is_wrong_is_listed() {
        let mut status = state(vec![]).status;
        status.ready = false;
        status.source.revision = 8;
        status.datapath.endpoints = 1;
        status.datapath.notes = vec!["veth9 belongs to no pod".into()];
        status.source.errors = vec![ObjectError {
            object: "NetworkPolicy shop/web (web.yaml)".into(),
            message: "spec.ingress: not a list".into(),
        }];
        assert_eq!(
            plain(&status),
            "\
not ready: changes have been read that are not in force yet
source: manifests, read completely, revision 8
datapath: 1 endpoint, attached by tcx, revision 7
objects that cannot be used:
  NetworkPolicy shop/web (web.yaml): spec.ingress: not a list
note: veth9 belongs to no pod
"
        );
    }

    #[test]
    fn of_thousands_of_errors_some_are_listed_and_the_others_counted() {
        let mut status = state(vec![]).status;
        let error =
            |n| ObjectError { object: format!("Pod shop/p{n}"), message: "no address".into() };
        status.source.errors = (0..3000).map(error).collect();
        let text = plain(&status);
        assert!(text.ends_with("Pod shop/p49: no address\n  and 2950 more: -o json has all\n"));
    }

    #[test]
    fn what_an_earlier_agent_left_is_counted_by_its_links() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(n_interfaces(&dir.path().join("none")), 0);
        for name in ["7-ingress", "7-egress", "12-ingress", "3-warden", "x-ingress", "readme"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(n_interfaces(dir.path()), 2);
        assert_eq!(left_text(0), "");
        assert!(left_text(2).contains("stays in force on 2 more interfaces"));
    }

    #[test]
    fn durations() {
        let seconds = |text| duration(text).unwrap().as_secs_f64();
        assert_eq!([seconds("30s"), seconds("500ms"), seconds("2m")], [30.0, 0.5, 120.0]);
        assert_eq!([seconds("1.5"), seconds("1h"), seconds("0s")], [1.5, 3600.0, 0.0]);
        for bad in ["", "s", "5x", "-1s", "1s 2s", "1e3s", "999999999999999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
