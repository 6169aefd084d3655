//! `netpol check FILE...`: each policy in plain sentences, what an API server would refuse, and
//! what is probably not meant. Must never need a cluster or an agent.

use std::collections::BTreeSet;
use std::io::{Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use serde::Serialize;

use super::output::{self, AnswerFormat};
use netpol_model::{Change, Cluster};
use netpol_source::advice::{self, Scope, Subject};
use netpol_source::catalog::{Catalog, FileState, Files};
use netpol_source::directory::{self, Reader};
use netpol_source::parse::{Entry, Object, Originals, Unused};
use netpol_source::{Event, convert, explain};

/// What is said about one object, or about a file that cannot be read.
#[derive(Debug, Serialize)]
struct Report {
    file: String,
    object: String,
    explanation: Vec<String>,
    /// The same for people, if that is shorter.
    #[serde(skip)]
    in_short: Option<Vec<String>>,
    errors: Vec<Refusal>,
    warnings: Vec<String>,
    #[serde(skip)]
    line: usize,
    #[serde(skip)]
    is_policy: bool,
}

#[derive(Debug, Serialize)]
struct Refusal {
    field: String,
    message: String,
    /// The sentence for people.
    #[serde(skip)]
    text: String,
}

/// Checks files, directories and (`-`) standard input and writes what is found.
/// Returns whether anything counts as a finding: what an API server would refuse, and with
/// `strict` warnings, too.
pub fn run(
    files: &[PathBuf],
    strict: bool,
    format: AnswerFormat,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let mut read = Files::new();
    for path in files {
        read_into(path, &mut read)?;
    }
    let reports = reports(&read);
    if format == AnswerFormat::Text {
        write_text(&reports, out)?;
    } else {
        output::show(out, format.into(), &reports, |_| String::new())?;
    }
    let counts =
        |report: &Report| !report.errors.is_empty() || (strict && !report.warnings.is_empty());
    Ok(reports.iter().any(counts))
}

fn read_into(path: &Path, to: &mut Files) -> anyhow::Result<()> {
    let what = || format!("cannot read {}", path.display());
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes).with_context(what)?;
        // JSON piped from kubectl, else YAML.
        let json = bytes.trim_ascii_start().first() == Some(&b'{');
        let mut contents =
            directory::parse_bytes(if json { "-.json" } else { "-" }, &bytes, Originals::Kept);
        if contents.malformed.is_some() && json {
            // A flow mapping is YAML, too.
            let yaml = directory::parse_bytes("-", &bytes, Originals::Kept);
            contents = if yaml.malformed.is_none() { yaml } else { contents };
        }
        to.insert("-".into(), FileState::Read(Arc::new(contents)));
        return Ok(());
    }
    let label = path.display().to_string();
    if std::fs::metadata(path).with_context(what)?.is_dir() {
        let found = Reader::new(path, Originals::Kept).read(&BTreeSet::default(), |_| {}).files;
        let label = label.trim_end_matches('/');
        to.extend(found.into_iter().map(|(name, state)| match name.as_str() {
            "." => (label.to_owned(), state),
            name => (format!("{label}/{name}"), state),
        }));
    } else {
        let bytes = std::fs::read(path).with_context(what)?;
        let contents = Arc::new(directory::parse_bytes(&label, &bytes, Originals::Kept));
        to.insert(label, FileState::Read(contents));
    }
    Ok(())
}

/// What all files together define, with the pods that workloads will make.
fn cluster(files: &Files) -> Cluster {
    let mut cluster = Cluster::default();
    for event in Catalog::default().update(files) {
        if let Event::Changes(changes) = event {
            for change in changes {
                cluster.apply(change);
            }
        }
    }
    for state in files.values() {
        if let FileState::Read(contents) = state {
            for pod in &contents.templates {
                let namespace = &pod.id.namespace;
                if !cluster.namespaces.contains_key(namespace) {
                    let implied = convert::named_namespace(namespace, []);
                    cluster.apply(Change::Namespace(implied));
                }
                cluster.apply(Change::Pod(pod.clone()));
            }
        }
    }
    cluster
}

fn reports(files: &Files) -> Vec<Report> {
    let cluster = cluster(files);
    let mut first_of = std::collections::BTreeMap::new();
    let mut reports = Vec::new();
    for (file, state) in files {
        let contents = match state {
            FileState::Unreadable(reason) => {
                reports.push(unreadable(file, reason));
                continue;
            }
            FileState::Read(contents) => contents,
        };
        reports.extend(contents.malformed.iter().map(|reason| unreadable(file, reason)));
        reports.extend(contents.unused.iter().map(|unused| not_used(file, unused)));
        for entry in &contents.entries {
            let mut report = report(file, entry, &cluster);
            if let Some(key) = &entry.key {
                let place = format!("{file}, line {}", entry.line);
                let first = first_of.entry(key.clone()).or_insert_with(|| place.clone());
                if *first != place {
                    report.warnings.push(format!("defined before already: {first}"));
                }
            }
            let silent = report.errors.is_empty() && report.warnings.is_empty();
            if report.is_policy || !silent {
                reports.push(report);
            }
        }
    }
    reports
}

fn unreadable(file: &str, reason: &str) -> Report {
    let text = reason.to_owned();
    Report {
        file: file.to_owned(),
        object: String::new(),
        explanation: Vec::new(),
        in_short: None,
        errors: vec![Refusal { field: String::new(), message: text.clone(), text }],
        warnings: Vec::new(),
        line: 0,
        is_policy: false,
    }
}

/// A policy of another product: a warning, since it is in order for whom it was written for.
fn not_used(file: &str, unused: &Unused) -> Report {
    Report {
        object: unused.title.clone(),
        errors: Vec::new(),
        warnings: vec![unused.note.clone()],
        line: unused.line,
        ..unreadable(file, "")
    }
}

fn report(file: &str, entry: &Entry, cluster: &Cluster) -> Report {
    let (explanation, in_short, warnings) = match &entry.object {
        Some(Object::Policy(Some(object), policy)) => {
            let subject = Subject { object, left_empty: &entry.left_empty, policy };
            let warnings = advice::warnings(subject, cluster, Scope::SomeFiles);
            let warnings = warnings.iter().map(ToString::to_string).collect();
            let explanation = explain::sentences(policy);
            let in_short = explain::short_sentences(policy);
            let in_short = (in_short != explanation).then_some(in_short);
            (explanation, in_short, warnings)
        }
        Some(Object::ClusterPolicy(_, policy)) => {
            let warnings = advice::cluster_warnings(policy, &entry.left_empty, cluster);
            // It is valid, and this of it is not enforced.
            let notes = entry.problems.iter().map(ToString::to_string);
            let warnings = warnings.iter().map(ToString::to_string).chain(notes).collect();
            (explain::cluster_sentences(policy), None, warnings)
        }
        _ => (Vec::new(), None, Vec::new()),
    };
    let is_valid = matches!(entry.object, Some(Object::ClusterPolicy(..)));
    let errors = entry.problems.iter().filter(|_| !is_valid).map(|problem| Refusal {
        field: problem.field.clone(),
        message: problem.message.clone(),
        text: problem.to_string(),
    });
    Report {
        file: file.to_owned(),
        object: entry.title.clone(),
        explanation,
        in_short,
        errors: errors.collect(),
        warnings,
        line: entry.line,
        is_policy: entry.title.starts_with("NetworkPolicy ")
            || entry.title.starts_with("ClusterNetworkPolicy "),
    }
}

fn write_text(reports: &[Report], out: &mut dyn Write) -> std::io::Result<()> {
    for report in reports {
        match report.object.as_str() {
            "" => writeln!(out, "{}", report.file)?,
            object => writeln!(out, "{object} ({}:{})", report.file, report.line)?,
        }
        if !report.explanation.is_empty() {
            let told = report.in_short.as_ref().unwrap_or(&report.explanation);
            let all = if report.in_short.is_some() { " (All of it: -o json.)" } else { "" };
            writeln!(out, "  {}{all}", told.join(" "))?;
        }
        for error in &report.errors {
            writeln!(out, "  error: {}", error.text)?;
        }
        for warning in &report.warnings {
            writeln!(out, "  warning: {warning}")?;
        }
        writeln!(out)?;
    }
    let policies = reports.iter().filter(|report| report.is_policy).count();
    let errors = reports.iter().map(|report| report.errors.len()).sum();
    let warnings = reports.iter().map(|report| report.warnings.len()).sum();
    let count = |number: usize, one: &str, many: &str| match number {
        1 => format!("1 {one}"),
        _ => format!("{number} {many}"),
    };
    writeln!(
        out,
        "{}: {}, {}",
        count(policies, "policy", "policies"),
        count(errors, "error", "errors"),
        count(warnings, "warning", "warnings")
    )
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::fs;

    use serde_json::{Value, json};

    use super::*;

    const GOOD: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
        metadata: {name: web, namespace: shop}\nspec:\n  podSelector: {matchLabels: {app: web}}\n  \
        ingress:\n  - ports: [{port: 80}]\n";
    const BAD: &str = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
        metadata: {name: bad, namespace: shop}\nspec:\n  podSelector: {}\n  ingress:\n  \
        - from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]\n    \
        ports: [{port: http, endPort: 90}]\n";

    fn check(files: &[(&str, &str)], json: bool) -> (bool, String) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let mut out = Vec::new();
        let format = if json { AnswerFormat::Json } else { AnswerFormat::Text };
        let found = run(&[dir.path().to_owned()], false, format, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        (found, text.replace(&dir.path().display().to_string(), "DIR"))
    }

    #[test]
    fn a_good_policy_is_explained() {
        let (found, text) = check(&[("web.yaml", GOOD)], false);
        assert!(!found);
        assert_eq!(
            text,
            "NetworkPolicy shop/web (DIR/web.yaml:1)\n  Selects pods app=web in namespace shop. \
             Ingress: only from anywhere on TCP 80; everything else is denied. Egress: not \
             restricted.\n\n1 policy: 0 errors, 0 warnings\n"
        );
    }

    const CLUSTER: &str = "apiVersion: policy.networking.k8s.io/v1beta1\n\
        kind: ClusterNetworkPolicy\nmetadata: {name: NAME}\nspec:\n  tier: Admin\n  \
        priority: 5\n  subject: {namespaces: {matchLabels: {team: a}}}\n  egress:\n";

    fn cluster_policy(name: &str, rules: &str) -> String {
        format!("---\n{}{rules}", CLUSTER.replace("NAME", name))
    }

    #[test]
    fn a_cluster_policy_is_explained_and_what_is_never_reached_is_told() {
        let rules = "  - action: Pass\n    to: [{networks: [10.0.0.0/8]}]\n  \
            - action: Deny\n    to: [{networks: [10.1.0.0/16]}]\n    \
            protocols: [{tcp: {destinationPort: {number: 80}}}]\n  \
            - action: Accept\n    to: [{domainNames: [example.com]}]\n";
        let later = "  - action: Deny\n    to: [{networks: [10.2.0.0/16, 192.0.2.0/24]}]\n";
        let all = cluster_policy("one", rules) + &cluster_policy("two", later);
        let (found, text) = check(&[("a.yaml", &all)], false);
        assert!(!found, "{text}");
        for part in [
            "ClusterNetworkPolicy one (DIR/a.yaml:1)\n  Admin tier, priority 5: about all pods in \
             namespaces team=a. Ingress: nothing is said. Egress: left to the next tier to \
             addresses 10.0.0.0/8 on any port; then denied to addresses 10.1.0.0/16 on TCP 80; \
             then a rule that accepts nothing",
            "  warning: spec.egress[1]: never matches anything: egress[0], which is asked before",
            "  warning: spec.priority: 5 is also that of two, which may be about the same pods",
            "  warning: spec.egress[2].to[0].domainNames: ",
            "2 policies: 0 errors, 4 warnings\n",
        ] {
            assert!(text.contains(part), "{part}\nnot in\n{text}");
        }
        // The other policy's one is wider than what is asked before.
        assert!(!text.contains("egress[0] of ClusterNetworkPolicy one"), "{text}");
    }

    /// The warnings of two policies, of which `two` comes after `one` in the same tier.
    fn between(subjects: [&str; 2], rules: [&str; 2], priority: u16) -> String {
        let policy = |name: &str, at: usize| {
            let text = cluster_policy(name, rules[at]);
            text.replace("{namespaces: {matchLabels: {team: a}}}", subjects[at])
        };
        let two = policy("two", 1).replace("priority: 5", &format!("priority: {priority}"));
        check(&[("a.yaml", &(policy("one", 0) + &two))], false).1
    }

    #[test]
    fn what_a_wider_policy_has_decided_before_is_told() {
        let namespaces = |selector: &str| format!("{{namespaces: {selector}}}");
        let with =
            |requirement: &str| namespaces(&format!("{{matchExpressions: [{requirement}]}}"));
        let exists = with("{key: team, operator: Exists}");
        let either = with("{key: team, operator: In, values: [a, b]}");
        let other = with("{key: team, operator: NotIn, values: [c, d]}");
        let less = with("{key: team, operator: NotIn, values: [c]}");
        let none = with("{key: team, operator: DoesNotExist}");
        let is_a = namespaces("{matchLabels: {team: a}}");
        let deny = "  - {action: Deny, to: [{networks: [10.0.0.0/8]}]}\n";
        let never = "never matches anything: egress[0] of ClusterNetworkPolicy one";
        for (wide, narrow, is_covered) in [
            (&exists, &is_a, true),
            (&exists, &either, true),
            (&either, &is_a, true),
            (&is_a, &either, false),
            (&either, &exists, false),
            (&other, &is_a, true),
            (&less, &other, true),
            (&other, &less, false),
            (&other, &none, true),
            (&exists, &other, false),
            (&none, &is_a, false),
            (&is_a, &is_a, true),
        ] {
            let text = between([wide, narrow], [deny, deny], 6);
            assert_eq!(text.contains(never), is_covered, "{wide} {narrow}\n{text}");
        }
        // Neither of what comes later, nor of what is narrower in peers or ports.
        for (first, second) in [
            ("  - {action: Deny, to: [{networks: [10.0.0.0/9]}]}\n", deny),
            ("  - {action: Deny, to: [{nodes: {}}]}\n", deny),
            (
                "  - {action: Pass, to: [{networks: [10.0.0.0/8]}], protocols: [{tcp: \
                 {destinationPort: {number: 80}}}]}\n",
                deny,
            ),
        ] {
            let text = between([&is_a, &is_a], [first, second], 6);
            assert!(text.ends_with("2 policies: 0 errors, 0 warnings\n"), "{text}");
        }
        let same = "is also that of ";
        for (one, two, is_told) in [
            (&exists, &is_a, true),
            (&none, &is_a, false),
            (&exists, &none, false),
            (&none, &other, true),
            (&either, &less, true),
        ] {
            let text = between([one, two], [deny, deny], 5);
            assert_eq!(text.contains(same), is_told, "{one} {two}\n{text}");
        }
    }

    #[test]
    fn fields_of_a_cluster_policy_that_are_left_empty_are_told() {
        let rules = "  - action: Accept\n    to: [{pods: {namespaceSelector: , podSelector: {}}}]\n    \
            protocols:\n";
        let (found, text) = check(&[("a.yaml", &cluster_policy("one", rules))], false);
        assert!(!found, "{text}");
        for part in [
            "  warning: spec.egress[0].protocols: is left empty, which means every protocol",
            "  warning: spec.egress[0].to[0].pods.namespaceSelector: is left empty, which means all",
            "1 policy: 0 errors, 2 warnings\n",
        ] {
            assert!(text.contains(part), "{part}\nnot in\n{text}");
        }
    }

    #[test]
    fn a_cluster_policy_is_refused_as_its_definition_does() {
        let rules = "  - action: Deny\n    to: [{networks: [10.0.0.1/8]}, {nodes: {}, pods: {}}]\n    \
            protocols: [{destinationNamedPort: http}, {tcp: {destinationPort: {range: {start: 9, \
            end: 9}}}}]\n  - action: Drop\n    to: [{namespace: {}}]\n";
        let (found, text) = check(&[("a.yaml", &cluster_policy("one", rules))], false);
        assert!(found);
        for part in [
            "spec.egress[0].to[0].networks[0]",
            "spec.egress[0].to[1]",
            "spec.egress[0].protocols[1].tcp.destinationPort.range",
            "unknown field \"spec.egress[1].to[0].namespace\" (did you mean \"namespaces\"?)",
            "spec.egress[1].action: Unsupported value: \"Drop\"",
        ] {
            assert!(text.contains(&format!("  error: {part}")), "{part}\nnot in\n{text}");
        }
        let rules = "  - {action: Deny, to: [{nodes: {}}]}\n";
        let old = cluster_policy("one", rules).replace("v1beta1", "v1alpha9");
        let (found, text) = check(&[("a.yaml", &old)], false);
        assert!(found && text.contains("use policy.networking.k8s.io/v1beta1"), "{text}");
    }

    #[test]
    fn policies_of_other_products_are_named_as_not_used() {
        let all = [
            ("cilium.io/v2", "CiliumNetworkPolicy", "Cilium"),
            ("crd.projectcalico.org/v1", "NetworkPolicy", "Calico"),
            ("projectcalico.org/v3", "GlobalNetworkPolicy", "Calico"),
            ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy", "an earlier version"),
            ("networking.k8s.aws/v1alpha1", "ClusterNetworkPolicy", "AWS"),
        ];
        for (version, kind, product) in all {
            let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}\n");
            let (found, told) = check(&[("a.yaml", &text)], false);
            assert!(!found, "{told}");
            let expected = format!("  warning: is not used: it is a policy of {product}");
            assert!(told.contains(&expected), "{told}");
        }
    }

    #[test]
    fn the_examples_are_in_order() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
        let mut out = Vec::new();
        let found = run(&[examples], true, AnswerFormat::Text, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(!found && text.ends_with("3 policies: 0 errors, 0 warnings\n"), "{text}");
    }

    #[test]
    fn hundreds_of_ports_do_not_fill_the_screen() {
        let ports: String = (1..=300).map(|port| format!("{{port: {port}}},")).collect();
        let many = GOOD.replace("{port: 80}", &ports);
        let (_, text) = check(&[("a.yaml", &many)], false);
        assert!(text.contains("TCP 10 and 290 more; everything else"), "{text}");
        assert!(text.contains("(All of it: -o json.)\n"), "{text}");
        assert!(check(&[("a.yaml", &many)], true).1.contains("TCP 299 and TCP 300"));
    }

    #[test]
    fn what_an_api_server_refuses_is_listed_with_its_field() {
        let (found, text) = check(&[("a.yaml", &format!("{GOOD}{BAD}"))], false);
        assert!(found);
        for line in [
            "NetworkPolicy shop/bad (DIR/a.yaml:8)",
            "  error: spec.ingress[0].ports[0].endPort: Invalid value: 90: may not be specified \
             when `port` is non-numeric",
            "  error: spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \
             \"11.0.0.0/16\": must be a strict subset of `cidr`",
            "2 policies: 2 errors, 0 warnings",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nnot in\n{text}");
        }
    }

    #[test]
    fn json_holds_the_same() {
        let misspelt = GOOD.replace("ingress:", "ingres:");
        let kind = GOOD.replace("NetworkPolicy", "NetworkPolice");
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop}\n";
        let files = [
            ("a.yaml", GOOD),
            ("b.yaml", &misspelt),
            ("c.yaml", &kind),
            ("d.yaml", pod),
            ("e.yaml", "a: [\n"),
        ];
        let (found, text) = check(&files, true);
        assert!(found);
        let list: Vec<Value> = serde_json::from_str(&text).unwrap();
        let objects: Vec<&str> = list.iter().map(|r| r["object"].as_str().unwrap()).collect();
        assert_eq!(
            objects,
            ["NetworkPolicy shop/web", "NetworkPolicy shop/web", "NetworkPolice shop/web", ""]
        );
        assert_eq!(list[0]["explanation"].as_array().unwrap().len(), 3);
        assert_eq!(
            list[0]["warnings"],
            json!(["spec.podSelector: selects no pod in these files (pods app=web in namespace \
                    shop), so the policy has no effect (fine if they are defined elsewhere). \
                    Compare it with the labels of the pods (in a workload: \
                    spec.template.metadata.labels)"])
        );
        assert_eq!(
            list[1]["errors"],
            json!([{"field": "spec.ingres",
                "message": "unknown field \"spec.ingres\" (did you mean \"ingress\"?)"}])
        );
        assert_eq!(list[1]["warnings"], json!(["defined before already: DIR/a.yaml, line 1"]));
        assert_eq!(list[2]["errors"][0]["field"], "kind");
        assert_eq!(list[3]["file"], "DIR/e.yaml");
        assert!(list[3]["errors"][0]["message"].as_str().unwrap().contains("malformed YAML"));
    }

    #[test]
    fn pods_of_workloads_are_selected_like_others() {
        let workload = |kind: &str, template: &str| {
            format!(
                "---\napiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: w, namespace: shop}}\n\
                 spec: {template}\n"
            )
        };
        let template = "{template: {metadata: {labels: {app: web}}, spec: {containers: []}}}";
        let other = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: other, namespace: shop}\n";
        for workload in [
            workload("Deployment", template),
            workload("CronJob", &format!("{{jobTemplate: {{spec: {template}}}}}")),
        ] {
            let (_, text) = check(&[("a.yaml", &format!("{GOOD}{workload}{other}"))], false);
            assert!(text.ends_with("1 policy: 0 errors, 0 warnings\n"), "{text}");
            let unmatched = workload.replace("app: web", "app: api");
            let (_, text) = check(&[("a.yaml", &format!("{GOOD}{unmatched}"))], false);
            assert!(text.contains("spec.podSelector: selects no pod in these files"), "{text}");
        }
    }

    #[test]
    fn a_missing_file_is_an_error_that_names_it() {
        let error = run(&["/nonexistent.yaml".into()], false, AnswerFormat::Text, &mut Vec::new())
            .unwrap_err();
        assert!(format!("{error:#}").contains("/nonexistent.yaml"));
    }

    #[test]
    fn single_files_of_any_name_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.txt");
        fs::write(&path, GOOD).unwrap();
        let mut out = Vec::new();
        assert!(!run(&[path], false, AnswerFormat::Text, &mut out).unwrap());
        assert!(String::from_utf8(out).unwrap().contains("1 policy: 0 errors"));
    }
}
