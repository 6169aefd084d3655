//! Tables of manifest texts: what is recognised, and what is said about the rest.

use super::*;

const POLICY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n";

fn file(name: &str, text: &str) -> Contents {
    super::file(name, text, Originals::Kept)
}

fn only(name: &str, text: &str) -> Entry {
    let mut contents = file(name, text);
    assert_eq!(contents.malformed, None, "{text}");
    assert_eq!(contents.entries.len(), 1, "{text}: {:?}", contents.entries);
    contents.entries.remove(0)
}

#[test]
fn documents_are_told_apart_with_their_lines() {
    let text = "# comment\n---\n# only a comment\n--- # another\napiVersion: v1\nkind: Namespace\n\
        metadata: {name: a}\n...\n---\n\n---\nkind: Namespace\napiVersion: v1\n\
        metadata:\n  name: b\n  annotations:\n    text: |\n      --- not a marker\n---";
    let entries = file("a.yaml", text).entries;
    let found: Vec<_> = entries.iter().map(|e| (e.line, e.title.as_str())).collect();
    assert_eq!(found, [(4, "Namespace a"), (11, "Namespace b")]);
}

#[test]
fn windows_line_ends_and_byte_order_marks_are_fine() {
    let text = "\u{feff}---\r\napiVersion: v1\r\nkind: Namespace\r\nmetadata:\r\n  name: a\r\n\
        ---\r\napiVersion: v1\r\nkind: Namespace\r\nmetadata:\r\n  name: b\r\n";
    let titles: Vec<_> = file("a.yml", text).entries.into_iter().map(|e| e.title).collect();
    assert_eq!(titles, ["Namespace a", "Namespace b"]);
}

#[test]
fn empty_files_hold_nothing() {
    for (name, text) in [("a.yaml", ""), ("a.yaml", "# x\n---\n---\n"), ("a.json", " \n")] {
        let contents = file(name, text);
        assert!(contents.entries.is_empty() && contents.malformed.is_none(), "{text:?}");
        assert!(!contents.is_incomplete());
    }
}

#[test]
fn lists_of_both_kinds_are_opened() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: \
        {name: p}}\n- {apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Namespace, \
        metadata: {name: ns}}]}\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicyList\n\
        items:\n- metadata: {name: x, namespace: shop}\n  spec: {}\n---\nkind: PodList\n\
        apiVersion: v1\n";
    let entries = file("a.yaml", text).entries;
    let found: Vec<_> =
        entries.iter().map(|e| (e.title.as_str(), e.problems.len(), e.object.is_some())).collect();
    assert_eq!(
        found,
        [("Pod default/p", 0, true), ("Namespace ns", 0, true), ("NetworkPolicy shop/x", 0, true)]
    );
}

/// What says itself what it is, and what its list says it is, in the order in which they are listed.
#[test]
fn elements_are_what_they_say_or_what_their_list_says_wherever_it_does() {
    let own = r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "own"}}"#;
    let untold = r#"{"metadata": {"name": "a"}}"#;
    let half = r#"{"kind": "Pod", "metadata": {"name": "half"}}"#;
    let items = format!(r#""items": [{untold}, {own}, {half}, {untold}]"#);
    let of = |text: &str| -> Vec<String> {
        // As JSON in a file of that name, in one of YAML, and as a flow that is no JSON.
        let all = [("a.json", text), ("a.yaml", text), ("b.yaml", &format!("# x\n{text} # x\n"))];
        let [first, second, third] = all.map(|(name, text)| {
            let contents = file(name, text);
            assert_eq!(contents.malformed, None, "{text}");
            contents.entries.iter().map(|entry| entry.title.clone()).collect()
        });
        assert_eq!((&first, &first), (&second, &third), "{text}");
        first
    };
    let expected = ["Pod default/a", "Namespace own", "Pod default/half", "Pod default/a"];
    assert_eq!(of(&format!(r#"{{"apiVersion": "v1", {items}, "kind": "PodList"}}"#)), expected);
    assert_eq!(of(&format!(r#"{{"kind": "PodList", "apiVersion": "v1", {items}}}"#)), expected);
    assert_eq!(
        of(&format!(r#"{{"kind": "List", "apiVersion": "v1", {items}}}"#)),
        ["object a at line 1", "Namespace own", "Pod half at line 1", "object a at line 1"]
    );
    let policy =
        format!(r#"{{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", {items}}}"#);
    let entry = only("a.yaml", &policy);
    assert_eq!(entry.title, "NetworkPolicy default/");
    assert!(convert::join(&entry.problems).contains("unknown field \"items\""), "{entry:?}");
    assert_eq!(of(r#"{"kind": "PodList", "apiVersion": "v1", "items": null}"#), [""; 0]);
    assert_eq!(of(r#"{"kind": "PodList", "apiVersion": "v1", "items": 5}"#).len(), 1);
}

#[test]
fn what_is_read_as_json_is_what_yaml_would_take() {
    let pod = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}"#;
    for (text, n_entries, message) in [
        (format!("--- {pod}\n--- {pod}\n"), 2, None),
        (pod.replace("\"a\"", "a"), 1, None),
        (pod.replace("\"v1\"", "\"v1\", \"kind\": \"Pod\""), 0, Some("stands twice in one map")),
        (pod.replace("\"a\"", "\"a\", \"name\": \"b\""), 0, Some("stands twice in one map")),
        (format!("{pod}{pod}"), 0, Some("malformed YAML")),
        // What comes before the place is not in force either.
        (format!(r#"{{"kind": "List", "items": [{pod}, {{]}}"#), 0, Some("malformed YAML")),
        (format!("{{\"port\": 010, \"pod\": {pod}}}"), 1, None),
    ] {
        let contents = file("a.yaml", &text);
        assert_eq!(contents.entries.len(), n_entries, "{text}");
        let malformed = contents.malformed.unwrap_or_default();
        assert_eq!(malformed.is_empty(), message.is_none(), "{text}: {malformed}");
        assert!(malformed.contains(message.unwrap_or_default()), "{text}: {malformed}");
    }
}

#[test]
fn several_json_documents_in_one_file() {
    let text = r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a"}}
        {"apiVersion":"v1","kind":"Namespace","metadata":{"name":"b"}}"#;
    assert_eq!(file("a.json", text).entries.len(), 2);
}

#[test]
fn malformed_text_is_named_with_its_line() {
    let table = [
        ("a.yaml", "kind: Pod\n---\nkind: Pod\nmetadata: [\n", "malformed YAML"),
        ("a.yaml", "a: b\n---\nx: 1\ny: 2\n z: 3\n", "line 5: malformed YAML"),
        ("a.yaml", "a: 1\nb: 2\na: 3\n", "line 3: malformed YAML"),
        ("a.yaml", "a: \"unclosed\n", "malformed YAML"),
        ("a.yaml", "a: {{ .Values.x }}\n", "line 1: malformed YAML"),
        ("a.json", "{\n\"kind\": }", "line 2: malformed JSON: expected value"),
        ("a.json", "{\"kind\":", "line 1: malformed JSON: EOF"),
    ];
    for (name, text, message) in table {
        let contents = file(name, text);
        let malformed = contents.malformed.clone().unwrap_or_default();
        assert!(malformed.contains(message), "{text:?}: {malformed:?}");
        assert!(contents.entries.len() < 2 && contents.is_incomplete());
    }
}

#[test]
fn everything_that_is_wrong_with_a_file_is_told_at_once() {
    let text = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: x}
spec:
  ingres: []
  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/99}}, {podselector: {}}]}]
---
metadata: [
---
apiVersion: v1
kind: Pod
metadata: {name: p}
spec: {containers: [{name: c, ports: [{containerPort: \"80\"}]}]}
---
a: {
";
    let contents = file("a.yaml", text);
    let malformed = contents.malformed.unwrap_or_default();
    assert!(malformed.contains("line 8: malformed YAML"), "{malformed}");
    assert!(malformed.contains("line 15: malformed YAML"), "{malformed}");
    let [policy, pod] = contents.entries.as_slice() else { panic!("{:?}", contents.entries) };
    let fields: Vec<&str> = policy.problems.iter().map(|problem| problem.field.as_str()).collect();
    // Not that the second peer is empty: that follows from its misspelt field.
    assert_eq!(
        fields,
        [
            "spec.ingres",
            "spec.ingress[0].from[1].podselector",
            "spec.ingress[0].from[0].ipBlock.cidr"
        ]
    );
    assert_eq!(pod.problems[0].field, "spec.containers[0].ports[0].containerPort");
    assert!(pod.problems[0].message.contains("invalid type: string \"80\""), "{pod:?}");
    assert!(policy.object.is_none() && pod.object.is_none());
}

#[test]
fn scalars_have_the_types_that_kubectl_gives_them() {
    // Each label or port as written, and whether an API server takes it.
    for (value, fine) in [
        ("\"1\"", true),
        ("'yes'", true),
        ("v1", true),
        ("1", false),
        ("yes", false),
        ("1.5", false),
    ] {
        let text = format!(
            "{POLICY}metadata: {{name: x}}\nspec: {{podSelector: {{matchLabels: {{a: {value}}}}}}}"
        );
        assert_eq!(only("a.yaml", &text).object.is_some(), fine, "{text}");
    }
    for (port, fine) in [("80", true), ("http", true), ("'80'", false), ("80.5", false)] {
        let text = format!(
            "{POLICY}metadata: {{name: x}}\nspec: {{ingress: [{{ports: [{{port: {port}}}]}}]}}"
        );
        assert_eq!(only("a.yaml", &text).object.is_some(), fine, "{text}");
    }
}

/// What kubectl prints without quotes because it is no number that Go has.
#[test]
fn a_list_as_kubectl_prints_it_is_read_also_with_a_short_commit_as_a_label() {
    let text = "\
apiVersion: v1
items:
- apiVersion: v1
  kind: Pod
  metadata:
    annotations:
      note: |
        several lines: 1e400
    creationTimestamp: \"2026-11-30T22:07:01Z\"
    labels:
      commit: 4e92276658
      huge: 1e400
      quoted: \"12e4\"
      zip: \"010\"
    name: web
    namespace: shop
  status:
    podIP: 10.0.0.1
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata:
    name: web
    namespace: shop
  spec:
    podSelector:
      matchLabels:
        commit: 4e92276658
kind: List
metadata:
  resourceVersion: \"\"
";
    let contents = file("a.yaml", text);
    assert_eq!(contents.malformed, None);
    let [pod, policy] = contents.entries.as_slice() else { panic!("{:?}", contents.entries) };
    let (Some(Object::Pod(_, pod, _)), Some(Object::Policy(_, policy))) =
        (&pod.object, &policy.object)
    else {
        panic!("{pod:?} {policy:?}")
    };
    assert!(policy.pods.matches(&pod.labels));
    for (key, value) in
        [("commit", "4e92276658"), ("huge", "1e400"), ("quoted", "12e4"), ("zip", "010")]
    {
        assert_eq!(pod.labels.get(key).map(AsRef::as_ref), Some(value), "{key}");
    }
}

#[test]
fn a_label_that_is_no_text_costs_only_its_object_and_is_named_with_its_value() {
    for (value, message) in [
        ("4e2", "got \"integer\" 400, expected \"string\" (put it in quotes)"),
        ("1.10", "got \"number\" 1.1, expected \"string\" (put it in quotes)"),
        ("on", "got \"boolean\" true, expected \"string\" (unquoted y, n,"),
    ] {
        let text = format!(
            "apiVersion: v1\nkind: List\nitems:\n- {{apiVersion: v1, kind: Pod, metadata: {{name: a, \
             labels: {{v: {value}}}}}}}\n- {{apiVersion: v1, kind: Pod, metadata: {{name: b}}}}\n"
        );
        let contents = file("a.yaml", &text);
        let [refused, fine] = contents.entries.as_slice() else { panic!("{contents:?}") };
        assert!(refused.object.is_none() && fine.object.is_some() && !contents.is_incomplete());
        assert_eq!(refused.title, "Pod default/a");
        assert_eq!(refused.problems[0].field, "metadata.labels[v]");
        assert!(refused.problems[0].message.contains(message), "{refused:?}");
    }
}

#[test]
fn numbers_that_are_no_ports_are_named_as_such() {
    for (port, message) in [
        ("99999999999", "Invalid value: 99999999999: must be between 1 and 65535, inclusive"),
        ("1e30", "Invalid value: 1e+30: must be between 1 and 65535, inclusive"),
        ("80.5", "got \"number\" 80.5, expected \"integer or string\""),
    ] {
        let text = format!(
            "{POLICY}metadata: {{name: x}}\nspec: {{ingress: [{{ports: [{{port: {port}}}]}}]}}"
        );
        let entry = only("a.yaml", &text);
        let problems = convert::join(&entry.problems);
        assert!(entry.object.is_none() && problems.contains(message), "{problems}");
        assert!(problems.contains("spec.ingress[0].ports[0].port"), "{problems}");
    }
}

#[test]
fn documents_that_are_null_hold_nothing() {
    for (name, text) in [("a.yaml", "null\n"), ("a.yaml", "---\n~\n---\n{}\n"), ("a.json", "null")]
    {
        let contents = file(name, text);
        assert_eq!(contents.malformed, None, "{text}");
        assert_eq!(contents.entries.len(), usize::from(text.contains('{')), "{text}");
    }
}

#[test]
fn two_documents_in_one_are_told_so() {
    let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\napiVersion: v1\n\
                kind: Namespace\nmetadata: {name: b}\n";
    assert_eq!(
        file("a.yaml", text).malformed.unwrap_or_default(),
        "line 4: malformed YAML: \"apiVersion\" stands twice in one map (two documents without a \
         line --- between them?)"
    );
    let malformed = file("a.yaml", "a: {b: 1, b: 2}\n").malformed.unwrap_or_default();
    assert_eq!(malformed, "line 1: malformed YAML: \"b\" stands twice in one map");
    let malformed = file("a.yaml", "a: 1\n...\nb: 1\n").malformed.unwrap_or_default();
    assert!(malformed.starts_with("line 3: malformed YAML: another document"), "{malformed}");
}

#[test]
fn what_is_within_itself_or_too_deep_is_refused() {
    let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    let mut chain = "a0: &a0 x\n".to_owned();
    for level in 1..5 {
        let (open, close) = ("[".repeat(80), "]".repeat(80));
        chain.push_str(&format!("a{level}: &a{level} {open}*a{}{close}\n", level - 1));
    }
    for (text, message) in [
        (
            "a: &a {b: *a}\n".to_owned(),
            "line 1: malformed YAML: an alias inside what it stands for",
        ),
        (chain, "line 5: malformed YAML: more than 256 levels"),
        (format!("a: {}\n", deep(300)), "malformed YAML: recursion limit"),
    ] {
        let malformed = file("a.yaml", &text).malformed.unwrap_or_default();
        assert!(malformed.contains(message), "{malformed}");
    }
    assert_eq!(file("a.yaml", &format!("a: {}\n", deep(200))).malformed, None);
}

#[test]
fn long_documents_are_read_and_short_ones_that_grow_are_not() {
    let pod =
        "- {apiVersion: v1, kind: Pod, metadata: {name: pNUMBER, labels: {a: b, c: d, e: f}}}\n";
    let items: String = (0..30_000).map(|n| pod.replace("NUMBER", &n.to_string())).collect();
    let contents = file("a.yaml", &format!("apiVersion: v1\nkind: List\nitems:\n{items}"));
    assert_eq!(contents.malformed, None);
    assert_eq!(contents.entries.len(), 30_000);
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..10 {
        let before = format!("*a{}, ", level - 1).repeat(10);
        bomb.push_str(&format!("a{level}: &a{level} [{before}]\n"));
    }
    let contents = file("a.yaml", &bomb);
    assert!(contents.malformed.is_some(), "{} entries", contents.entries.len());
}

#[test]
fn null_rules_and_anchors_are_understood() {
    let text = format!(
        "{POLICY}metadata: {{name: x}}\nspec:\n  podSelector: &s {{matchLabels: {{a: b}}}}\n  \
         ingress:\n  - null\n  - from: [{{podSelector: *s}}]\n"
    );
    let Some(Object::Policy(_, policy)) = only("a.yaml", &text).object else { panic!("{text}") };
    let rules = policy.ingress.expect("isolates for ingress");
    assert_eq!(rules[0], model::Rule { peers: model::Peers::Any, ports: model::Ports::Any });
    assert!(matches!(rules[1].peers, model::Peers::Only(ref peers) if peers.len() == 1));
}

#[test]
fn what_is_no_known_object_is_named() {
    // Text, title, words of the problem, and whether it is known which object it is.
    let table = [
        ("[1, 2]", "document at line 1", "is not a Kubernetes object", false),
        ("just text", "document at line 1", "is not a Kubernetes object", false),
        ("apiVersion: v1\nmetadata: {name: a}", "object a at line 1", "kind is missing", false),
        ("kind: Pod\nmetadata: {name: a}", "Pod a at line 1", "apiVersion is missing", false),
        (
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolcy\nmetadata: {name: a}",
            "NetworkPolcy default/a",
            "no matches for kind \"NetworkPolcy\" in version \"networking.k8s.io/v1\" (did you \
             mean NetworkPolicy?)",
            false,
        ),
        (
            "apiVersion: v1\nkind: Gizmo\nmetadata: {name: a}",
            "Gizmo default/a",
            "no matches for kind \"Gizmo\"",
            false,
        ),
        (
            "apiVersion: extensions/v1beta1\nkind: NetworkPolicy\nmetadata: {name: a}",
            "NetworkPolicy default/a",
            "in version \"extensions/v1beta1\" (use networking.k8s.io/v1)",
            true,
        ),
        (
            "apiVersion: v2\nkind: Pod\nmetadata: {name: a, namespace: ns}",
            "Pod ns/a",
            "(use v1)",
            true,
        ),
        ("apiVersion: v1\nkind: Pod", "Pod default/", "metadata.name: Required value", false),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: 5}",
            "Pod default/a",
            "expected a sequence",
            true,
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a.b}",
            "Namespace a.b",
            "metadata.name: Invalid value: \"a.b\": must not contain dots",
            true,
        ),
    ];
    for (text, title, message, known) in table {
        let entry = only("a.yaml", text);
        assert_eq!(entry.title, title);
        let problems = convert::join(&entry.problems);
        assert!(problems.contains(message), "{text}: {problems}");
        assert!(entry.object.is_none(), "{text}");
        assert_eq!(entry.key.is_some(), known, "{text}");
    }
}

#[test]
fn kinds_that_policy_does_not_depend_on_are_left_alone() {
    for (version, kind) in [
        ("apps/v1", "Deployment"),
        ("v1", "ConfigMap"),
        ("v1", "Secret"),
        ("networking.k8s.io/v1", "Ingress"),
        ("serving.knative.dev/v1", "Service"),
        ("example.com/v1", "Widget"),
        ("rbac.authorization.k8s.io/v1", "Role"),
    ] {
        let text = format!(
            "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\naddressType: IPv4\n\
             endpoints: []\n"
        );
        assert!(file("a.yaml", &text).entries.is_empty(), "{text}");
    }
}

#[test]
fn unknown_fields_of_a_policy_are_refused_as_kubectl_does() {
    let text = format!("{POLICY}metadata: {{name: web, namespace: shop}}\nspec: {{ingres: []}}\n");
    let entry = only("a.yaml", &text);
    assert_eq!(entry.key, Some(Key::Policy(ObjectName::new("shop", "web"))));
    assert_eq!(
        convert::join(&entry.problems),
        "unknown field \"spec.ingres\" (did you mean \"ingress\"?)"
    );
}

#[test]
fn services_slices_and_nodes_are_read_with_what_is_wrong_in_them() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n\
        spec: {ports: [{port: 80}, {port: 0}], unknown: 1}\n";
    let entry = only("a.yaml", service);
    assert_eq!(entry.key, Some(Key::Service(ObjectName::new("default", "web"))));
    assert_eq!(entry.problems[0].field, "spec.ports[1].port");
    let Some(Object::Service(_, model, _)) = entry.object else { panic!("no Service") };
    assert_eq!(model.ports.len(), 1);
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n";
    assert_eq!(only("a.yaml", node).key, Some(Key::Node("n1".into())));
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\n\
        addressType: IPv4\nendpoints: 5\n";
    let entry = only("a.yaml", slice);
    assert_eq!(entry.key, Some(Key::Slice(ObjectName::new("default", "s"))));
    assert!(entry.object.is_none() && !entry.problems.is_empty());
    let old = slice.replace("/v1\n", "/v1beta1\n");
    let problems = convert::join(&only("a.yaml", &old).problems);
    assert!(problems.contains("use discovery.k8s.io/v1"), "{problems}");
}
