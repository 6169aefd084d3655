//! Upstream's ClusterNetworkPolicy suite: its program, its options and its own report. Must never
//! write such a report of a run that left tests out, nor change one.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use super::go_tests::Tests;
use super::report::Report;
use super::{prepare, suite};
use crate::Cluster;
use crate::binaries::{self, Program, TIERS_VERSION};
use crate::process::run;

/// As upstream calls the profile that is all of it.
const PROFILE: &str = "ClusterNetworkPolicy";
/// What a report has in place of what nobody has said.
const TO_FILL: &str = "TO BE FILLED";

/// Options of `conformance --suite cluster-network-policy`.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "With --suite cluster-network-policy")]
pub(super) struct Options {
    /// Whose fields are tested: standard leaves named ports and nodes out
    #[arg(long, value_name = "CHANNEL", default_value = "experimental")]
    channel: Channel,
    /// Boot this kernel of Debian's (6.1, 6.12, 7, ...) in a virtual machine, with all of the cluster:
    /// for tests of SCTP, whose sockets not every kernel has
    #[arg(long, value_name = "V")]
    kernel: Option<String>,
    /// How many times as long as usual to wait for what is expected [default: 1; 8 with --kernel
    /// where the processor is emulated]
    #[arg(long, value_name = "N")]
    patience: Option<u32>,
    /// In the report: who makes the project
    #[arg(long, value_name = "TEXT", default_value = "netpol")]
    organization: String,
    /// In the report: its name
    #[arg(long, value_name = "TEXT", default_value = "netpol")]
    project: String,
    /// In the report: its place [default: the checkout's `origin`, if that is an address of the web]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// In the report: what is tested, with its commit [default: the checkout's]
    #[arg(long, value_name = "TEXT")]
    implementation_version: Option<String>,
    /// In the report: how to reach those who make it, with commas between [default: URL/issues]
    #[arg(long, value_name = "TEXT")]
    contact: Option<String>,
    /// In the report: the public run that makes it; without one upstream accepts no report
    #[arg(long, value_name = "URL")]
    run_url: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Channel {
    /// With fields that upstream may still change
    Experimental,
    /// Without them
    Standard,
}

impl Options {
    pub(super) fn kernel(&self) -> Option<&str> {
        self.kernel.as_deref()
    }

    pub(super) fn patience(&self) -> u32 {
        self.patience.unwrap_or(1)
    }

    pub(super) fn has_patience(&self) -> bool {
        self.patience.is_some()
    }

    /// The words that say of the checkout what cannot be seen where there is none: those that were
    /// not given.
    pub(super) fn of_checkout(&self) -> Vec<String> {
        let mut words = Vec::new();
        for (name, given, found) in [
            ("--url", &self.url, origin()),
            ("--implementation-version", &self.implementation_version, version()),
        ] {
            if let (None, Some(found)) = (given, found) {
                words.extend([name.to_owned(), found]);
            }
        }
        words
    }
}

impl Channel {
    fn definition(self) -> Program {
        match self {
            Self::Experimental => binaries::EXPERIMENTAL_TIERS,
            Self::Standard => binaries::STANDARD_TIERS,
        }
    }
}

/// What is to be run.
pub(super) struct Run<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) args: &'a Options,
    pub(super) focus: Option<&'a str>,
    pub(super) name: &'a str,
    pub(super) directory: &'a Path,
}

impl Run<'_> {
    /// Runs the tests to their end; that some fail is no error.
    pub(super) fn execute(&self) -> Result<Report> {
        if self.directory.exists() {
            fs::remove_dir_all(self.directory)?;
        }
        fs::create_dir_all(self.directory)
            .with_context(|| format!("create {}", self.directory.display()))?;
        let has_sctp = suite::has_sctp();
        prepare::tier_image(self.cluster, has_sctp)?;
        prepare::tier_definition(self.cluster, self.args.channel.definition())?;
        let why_no_report = why_no_report(has_sctp, self.focus);
        let document = self.directory.join(format!("{}.yaml", self.args.project));
        let details = Details::new(self.args);
        let mut options = options(self.args.channel, self.args.patience(), self.focus);
        options.extend(details.options());
        if why_no_report.is_none() {
            options.push(format!("--report-output={}", document.display()));
        }
        let started = Instant::now();
        let log = self.directory.join("log");
        let (tests, is_success) = self.follow(&options, &log, Tests::new(has_sctp))?;
        let mut report = Report::of_specs(self.name, started.elapsed().as_secs(), tests.specs());
        if let Some(why) = why_no_report {
            report.add_note(format!("this run makes no report for upstream: {why}"));
            return Ok(report);
        }
        if !is_success && report.is_success() {
            let log = log.display();
            report.add_problem(format!("the test program says that it failed; its log is {log}"));
        }
        match fs::read_to_string(&document) {
            Ok(text) => {
                for word in results(&text).iter().filter(|word| *word != "success") {
                    report.add_problem(format!("upstream's report has the result {word}"));
                }
                let place = document.display();
                report.add_note(format!(
                    "upstream's report, for conformance/reports/{TIERS_VERSION}: {place}"
                ));
                details.missing().for_each(|note| report.add_note(note));
            }
            Err(_) => report.add_problem("the test program wrote no report".to_owned()),
        }
        Ok(report)
    }

    fn follow(&self, options: &[String], path: &Path, mut tests: Tests) -> Result<(Tests, bool)> {
        eprintln!("==> {} tests, log in {}", self.name, path.display());
        let program =
            if self.args.patience() > 1 { binaries::PATIENT_TIERS } else { binaries::TIERS };
        // The control plane's machine reaches the API server, and sees this host's files.
        let mut command = self.cluster.control().command(binaries::find(program)?);
        let mut child = command
            .args(options)
            .env("KUBECONFIG", self.cluster.inner_kubeconfig())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("start the tests on the control plane's machine")?;
        let stdout = child.stdout.take().context("invariant: standard output is a pipe")?;
        let mut log = File::create(path).with_context(|| format!("create {}", path.display()))?;
        let started = Instant::now();
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.context("read what the tests print")?;
            log.write_all(&line)?;
            log.write_all(b"\n")?;
            if let Some(shown) = tests.read(&String::from_utf8_lossy(&line)) {
                eprintln!("{:>6.0} s  {shown}", started.elapsed().as_secs_f64());
            }
        }
        Ok((tests, child.wait().context("wait for the tests")?.success()))
    }
}

/// Why a run makes no report for upstream, if it makes none: tests that are left out count as passed
/// in it.
fn why_no_report(has_sctp: bool, focus: Option<&str>) -> Option<&'static str> {
    match (has_sctp, focus) {
        (false, _) => Some(
            "this kernel has no SCTP sockets, and a stand-in's SCTP servers idle (`--kernel 6.1` \
             runs all tests on a kernel that has them)",
        ),
        (true, Some(_)) => Some("--focus leaves tests out"),
        (true, None) => None,
    }
}

/// The test program's options, but for those that only the report needs.
fn options(channel: Channel, patience: u32, focus: Option<&str>) -> Vec<String> {
    let focus = focus.map(|focus| format!("/{focus}")).unwrap_or_default();
    let mut options = vec![
        // Each test's end is then told at once, and not after all of them.
        "-test.v=test2json".to_owned(),
        format!("-test.run=^TestConformanceProfiles${focus}"),
        // A guard against a run that hangs.
        format!("-test.timeout={}m", 60 * patience),
        format!("--conformance-profiles={PROFILE}"),
    ];
    if patience > 1 {
        options.push(format!("--patience={patience}"));
    }
    if channel == Channel::Experimental {
        options.push("--all-features".to_owned());
    }
    options
}

/// What a report says of the project.
struct Details {
    organization: String,
    project: String,
    url: String,
    version: String,
    contact: String,
    run: String,
}

impl Details {
    fn new(args: &Options) -> Self {
        let or_to_fill = |given: Option<String>| given.unwrap_or_else(|| TO_FILL.to_owned());
        let url = args.url.clone().or_else(origin);
        let contact = args.contact.clone().or_else(|| Some(format!("{}/issues", url.as_ref()?)));
        Self {
            organization: args.organization.clone(),
            project: args.project.clone(),
            url: or_to_fill(url),
            version: or_to_fill(args.implementation_version.clone().or_else(version)),
            contact: or_to_fill(contact),
            run: or_to_fill(args.run_url.clone()),
        }
    }

    fn options(&self) -> Vec<String> {
        let Self { organization, project, url, version, contact, run } = self;
        vec![
            format!("--organization={organization}"),
            format!("--project={project}"),
            format!("--url={url}"),
            format!("--version={version}"),
            format!("--contact={contact}"),
            format!("--additional-info={run}"),
        ]
    }

    /// What keeps upstream from accepting the report.
    fn missing(&self) -> impl Iterator<Item = String> {
        let fields = [
            ("url", &self.url, "--url"),
            ("version", &self.version, "--implementation-version"),
            ("contact", &self.contact, "--contact"),
            ("additionalInformation", &self.run, "--run-url, the public run that makes the report"),
        ];
        let empty = fields.into_iter().filter(|(_, value, _)| value.as_str() == TO_FILL);
        let notes = empty.map(|(field, _, option)| {
            format!("before it is sent, run again with {option}: {field} is not filled")
        });
        let is_changed = self.version.ends_with("-dirty");
        let changed = is_changed.then(|| {
            "before it is sent, commit: the version names a commit with changes on top".to_owned()
        });
        notes.chain(changed).collect::<Vec<_>>().into_iter()
    }
}

fn git(words: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    command.arg("-C").arg(env!("CARGO_MANIFEST_DIR")).args(words);
    Some(run(&mut command).ok()?.trim().to_owned())
}

fn origin() -> Option<String> {
    web_address(&git(&["config", "--get", "remote.origin.url"])?)
}

/// The address without what only git needs; none if it is not one for a browser.
fn web_address(url: &str) -> Option<String> {
    let is_web = url.starts_with("https://") && !url.contains('@');
    is_web.then(|| url.trim_end_matches('/').trim_end_matches(".git").to_owned())
}

/// The version with the commit, and whether that is all.
fn version() -> Option<String> {
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let is_changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    let changed = if is_changed { "-dirty" } else { "" };
    Some(format!("v{}-g{commit}{changed}", env!("CARGO_PKG_VERSION")))
}

/// The words of a report's `result` fields; `none` if it has not one.
fn results(report: &str) -> Vec<String> {
    let fields = report.lines().filter_map(|line| line.trim().strip_prefix("result:"));
    let words: Vec<String> = fields.map(|word| word.trim().to_owned()).collect();
    if words.is_empty() { vec!["none".to_owned()] } else { words }
}

/// Fails for options that mean nothing with the other suites.
pub(super) fn check(args: &Options) -> Result<()> {
    ensure!(args.patience != Some(0), "--patience is at least 1");
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    ensure!(
        !args.project.is_empty() && args.project.bytes().all(is_word),
        "--project is the report's file name: of letters, digits, dashes and dots"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Options,
    }

    fn args(line: &str) -> Options {
        let words = ["x"].into_iter().chain(line.split_whitespace());
        Cli::try_parse_from(words).unwrap().args
    }

    #[test]
    fn the_test_program_is_told_what_to_test() {
        let line = |channel, patience, focus| options(channel, patience, focus).join(" ");
        assert_eq!(
            line(Channel::Experimental, 1, None),
            "-test.v=test2json -test.run=^TestConformanceProfiles$ -test.timeout=60m \
             --conformance-profiles=ClusterNetworkPolicy --all-features"
        );
        let standard = line(Channel::Standard, 6, Some("CNPAdminTierEgressTCP"));
        assert!(!standard.contains("--all-features"), "{standard}");
        assert!(standard.contains("-test.run=^TestConformanceProfiles$/CNPAdminTierEgressTCP "));
        assert!(standard.contains("--patience=6") && standard.contains("-test.timeout=360m"));
    }

    #[test]
    fn no_report_is_written_of_less_than_all_tests() {
        assert!(why_no_report(true, None).is_none());
        assert!(why_no_report(true, Some("x")).is_some());
        assert!(why_no_report(false, None).is_some());
    }

    #[test]
    fn what_keeps_a_report_from_being_sent_is_said() {
        let given = args(
            "--url https://example.org/netpol --implementation-version v1-gabc --run-url \
             https://example.org/runs/1",
        );
        let details = Details::new(&given);
        assert_eq!(details.missing().count(), 0);
        assert_eq!(details.contact, "https://example.org/netpol/issues");
        let changed = Details::new(&args(
            "--url u --contact c --run-url r --implementation-version v1-gabc-dirty",
        ));
        assert_eq!(changed.missing().count(), 1);
        let without_run = Details::new(&args("--url u --implementation-version v1-gabc"));
        let notes: Vec<_> = without_run.missing().collect();
        assert!(notes.len() == 1 && notes[0].contains("additionalInformation"), "{notes:?}");
        assert!(without_run.options().contains(&format!("--additional-info={TO_FILL}")));
    }

    #[test]
    fn addresses_are_for_browsers() {
        let is = |url: &str| web_address(url);
        assert_eq!(is("https://example.org/a/b.git").as_deref(), Some("https://example.org/a/b"));
        assert_eq!(is("git@example.org:a/b.git"), None);
        assert_eq!(is("https://word@example.org/a/b"), None);
        assert_eq!(is("/srv/a"), None);
    }

    #[test]
    fn a_report_is_a_success_only_if_each_result_is() {
        let text =
            "profiles:\n- experimental:\n    result: success\n  standard:\n    result: failure\n";
        assert_eq!(results(text), ["success", "failure"]);
        assert_eq!(results("kind: ConformanceReport\n"), ["none"]);
    }

    #[test]
    fn the_reports_name_is_no_path() {
        check(&args("")).unwrap();
        assert!(check(&args("--project ../x")).is_err());
        assert!(check(&args("--patience 0")).is_err());
    }
}
