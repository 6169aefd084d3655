//! The shape of the objects that people write by hand: which fields exist and what type they
//! have, so that a typo is named with its path instead of being ignored. Must never judge values,
//! that is [`super::convert`]'s.

use serde_json::{Map, Value};

use super::convert::Problem;
use super::validate;

/// The type of a value.
#[derive(Debug)]
pub enum Schema {
    /// Not looked into.
    Any,
    /// A string.
    Text,
    /// A port: a whole number, of 32 bits.
    Int,
    /// A string or a port.
    IntOrText,
    /// A list of such values.
    List(&'static Schema),
    /// A map from any key to such values.
    Map(&'static Schema),
    /// An object with these fields.
    Object(&'static [(&'static str, &'static Schema)]),
}

use Schema::{Any, Int, IntOrText, List, Object, Text};

const METADATA: &Schema = &Object(&[
    ("annotations", &Schema::Map(&Text)),
    ("creationTimestamp", &Any),
    ("deletionGracePeriodSeconds", &Any),
    ("deletionTimestamp", &Any),
    ("finalizers", &List(&Text)),
    ("generateName", &Text),
    ("generation", &Any),
    ("labels", &Schema::Map(&Text)),
    ("managedFields", &Any),
    ("name", &Text),
    ("namespace", &Text),
    ("ownerReferences", &Any),
    ("resourceVersion", &Text),
    ("selfLink", &Text),
    ("uid", &Text),
]);

const SELECTOR: &Schema = &Object(&[
    ("matchLabels", &Schema::Map(&Text)),
    (
        "matchExpressions",
        &List(&Object(&[("key", &Text), ("operator", &Text), ("values", &List(&Text))])),
    ),
]);

const PEERS: &Schema = &List(&Object(&[
    ("ipBlock", &Object(&[("cidr", &Text), ("except", &List(&Text))])),
    ("namespaceSelector", SELECTOR),
    ("podSelector", SELECTOR),
]));

const PORTS: &Schema =
    &List(&Object(&[("endPort", &Int), ("port", &IntOrText), ("protocol", &Text)]));

/// networking.k8s.io/v1 NetworkPolicy. (`status` was a field until Kubernetes 1.28 and means
/// nothing; it is in files that were exported from older clusters.)
pub(crate) const NETWORK_POLICY: &Schema = &Object(&[
    ("apiVersion", &Text),
    ("kind", &Text),
    ("metadata", METADATA),
    (
        "spec",
        &Object(&[
            ("egress", &List(&Object(&[("ports", PORTS), ("to", PEERS)]))),
            ("ingress", &List(&Object(&[("from", PEERS), ("ports", PORTS)]))),
            ("podSelector", SELECTOR),
            ("policyTypes", &List(&Text)),
        ]),
    ),
    ("status", &Any),
]);

const NAMESPACED_POD: &Schema =
    &Object(&[("namespaceSelector", SELECTOR), ("podSelector", SELECTOR)]);

const PODS_PEER: &Schema = &Object(&[("namespaces", SELECTOR), ("pods", NAMESPACED_POD)]);

const DESTINATION: &Schema = &Object(&[(
    "destinationPort",
    &Object(&[("number", &Int), ("range", &Object(&[("end", &Int), ("start", &Int)]))]),
)]);

const PROTOCOLS: &Schema = &List(&Object(&[
    ("destinationNamedPort", &Text),
    ("sctp", DESTINATION),
    ("tcp", DESTINATION),
    ("udp", DESTINATION),
]));

const EGRESS_PEER: &Schema = &Object(&[
    ("domainNames", &List(&Text)),
    ("namespaces", SELECTOR),
    ("networks", &List(&Text)),
    ("nodes", SELECTOR),
    ("pods", NAMESPACED_POD),
]);

/// policy.networking.k8s.io ClusterNetworkPolicy, of v1beta1 and v1alpha2.
pub(crate) const CLUSTER_NETWORK_POLICY: &Schema = &Object(&[
    ("apiVersion", &Text),
    ("kind", &Text),
    ("metadata", METADATA),
    (
        "spec",
        &Object(&[
            (
                "egress",
                &List(&Object(&[
                    ("action", &Text),
                    ("name", &Text),
                    ("protocols", PROTOCOLS),
                    ("to", &List(EGRESS_PEER)),
                ])),
            ),
            (
                "ingress",
                &List(&Object(&[
                    ("action", &Text),
                    ("from", &List(PODS_PEER)),
                    ("name", &Text),
                    ("protocols", PROTOCOLS),
                ])),
            ),
            ("priority", &Int),
            ("subject", PODS_PEER),
            ("tier", &Text),
        ]),
    ),
    ("status", &Any),
]);

/// What is checked of every other object.
pub(crate) const ANY_OBJECT: &Schema = &Object(&[("metadata", METADATA)]);

/// Whether fields that a schema does not have are problems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// They are.
    Refused,
    /// They are not looked at.
    Ignored,
}

/// Checks `value` against `schema` and makes null what Go makes of it: an absent field, an empty
/// object in a list, an empty string in a map.
pub fn check(schema: &Schema, unknown: Unknown, value: &mut Value) -> Vec<Problem> {
    let mut checker = Checker { unknown, problems: Vec::new() };
    checker.value(schema, "", value);
    checker.problems
}

/// The fields below `value` that are written without a value (null or an empty list), each with
/// its path. What is made of an object does not show them any more.
pub fn left_empty(value: &Value) -> Vec<String> {
    let mut paths = Vec::new();
    walk_empty("", value, &mut paths);
    paths
}

fn walk_empty(path: &str, value: &Value, paths: &mut Vec<String>) {
    match value {
        Value::Null => paths.push(path.to_owned()),
        Value::Array(list) if list.is_empty() => paths.push(path.to_owned()),
        Value::Array(list) => {
            for (index, item) in list.iter().enumerate() {
                walk_empty(&format!("{path}[{index}]"), item, paths);
            }
        }
        Value::Object(map) => {
            for (key, item) in map {
                let separator = if path.is_empty() { "" } else { "." };
                walk_empty(&format!("{path}{separator}{key}"), item, paths);
            }
        }
        _ => {}
    }
}

struct Checker {
    unknown: Unknown,
    problems: Vec<Problem>,
}

impl Checker {
    fn value(&mut self, schema: &Schema, path: &str, value: &mut Value) {
        match (schema, value) {
            (Any, _) | (Text | IntOrText, Value::String(_)) => {}
            (Int | IntOrText, Value::Number(number))
                if number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => {}
            (List(element), Value::Array(list)) => {
                for (index, item) in list.iter_mut().enumerate() {
                    fill_null(element, item);
                    self.value(element, &format!("{path}[{index}]"), item);
                }
            }
            (Schema::Map(element), Value::Object(map)) => {
                for (key, item) in map {
                    fill_null(element, item);
                    self.value(element, &format!("{path}[{key}]"), item);
                }
            }
            (Object(fields), Value::Object(map)) => self.object(fields, path, map),
            (Int | IntOrText, Value::Number(number)) if number.as_f64().is_some_and(is_whole) => {
                let message = format!("Invalid value: {number}: {}", validate::NotAPort);
                self.problems.push(Problem::new(path, message));
            }
            (schema, other) => {
                let (got, expected) = (type_name(other), schema.type_name());
                let hint = match (schema, &*other) {
                    (Text | IntOrText, Value::Bool(_)) => {
                        " (unquoted y, n, yes, no, on, off, true and false are booleans in YAML: \
                         put it in quotes)"
                    }
                    (Text, Value::Number(_)) => " (put it in quotes)",
                    _ => "",
                };
                let value = match other {
                    Value::Bool(_) | Value::Number(_) => format!(" {other}"),
                    _ => String::new(),
                };
                let message =
                    format!("invalid type: got \"{got}\"{value}, expected \"{expected}\"{hint}");
                self.problems.push(Problem::new(path, message));
            }
        }
    }

    fn object(
        &mut self,
        fields: &'static [(&'static str, &'static Schema)],
        path: &str,
        map: &mut Map<String, Value>,
    ) {
        map.retain(|_, value| !value.is_null());
        for (key, item) in map {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match fields.iter().find(|(name, _)| name == key) {
                Some((_, schema)) => self.value(schema, &path, item),
                None if self.unknown == Unknown::Ignored => {}
                None => {
                    let names = fields.iter().map(|(name, _)| *name);
                    let hint = match closest(key, names) {
                        Some(name) => format!(" (did you mean \"{name}\"?)"),
                        None => String::new(),
                    };
                    let message = format!("unknown field \"{path}\"{hint}");
                    self.problems.push(Problem::new(path, message));
                }
            }
        }
    }
}

impl Schema {
    fn type_name(&self) -> &'static str {
        match self {
            Any => "any",
            Text => "string",
            Int => "integer",
            IntOrText => "integer or string",
            List(_) => "array",
            Schema::Map(_) | Object(_) => "map",
        }
    }
}

/// Makes null the zero value of its type.
fn fill_null(schema: &Schema, value: &mut Value) {
    if value.is_null() {
        *value = match schema {
            Any => return,
            Text => Value::String(String::new()),
            Int | IntOrText => Value::from(0),
            List(_) => Value::Array(Vec::new()),
            Schema::Map(_) | Object(_) => Value::Object(Map::new()),
        };
    }
}

fn is_whole(number: f64) -> bool {
    number.fract() == 0.0
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "map",
    }
}

/// The name that `word` was probably meant to be, if one is near enough.
pub(crate) fn closest<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    names
        .into_iter()
        .map(|name| (distance(&lower, &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= 2 && *distance < name.len())
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein distance, in bytes, bounded by skipping words of very different length.
fn distance(a: &str, b: &str) -> usize {
    if a.len().abs_diff(b.len()) > 2 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unknown_fields_and_wrong_types_are_named_with_their_path() {
        let peer = |peer: Value| json!({"spec": {"ingress": [{}, {"from": [peer]}]}});
        let table = [
            (json!({"spec": {"ingres": []}}), "spec.ingres", "did you mean \"ingress\"?"),
            (json!({"sepc": {}}), "sepc", "unknown field \"sepc\" (did you mean \"spec\"?)"),
            (json!({"metadata": {"lables": {}}}), "metadata.lables", "\"labels\"?"),
            (
                peer(json!({"podselector": {}})),
                "spec.ingress[1].from[0].podselector",
                "did you mean \"podSelector\"?",
            ),
            (
                peer(json!({"somethingElse": {}})),
                "spec.ingress[1].from[0].somethingElse",
                "unknown field \"spec.ingress[1].from[0].somethingElse\"",
            ),
            (peer(json!([])), "spec.ingress[1].from[0]", "got \"array\", expected \"map\""),
            (json!({"spec": {"ingress": {}}}), "spec.ingress", "got \"map\", expected \"array\""),
            (json!({"spec": "x"}), "spec", "got \"string\", expected \"map\""),
            (
                json!({"spec": {"podSelector": {"matchLabels": {"v": 1.5}}}}),
                "spec.podSelector.matchLabels[v]",
                "got \"number\" 1.5, expected \"string\"",
            ),
            (
                json!({"spec": {"podSelector": {"matchLabels": {"v": true}}}}),
                "spec.podSelector.matchLabels[v]",
                "got \"boolean\" true, expected \"string\" (unquoted y, n, yes,",
            ),
            (
                json!({"spec": {"podSelector": {"matchLabels": {"v": 1}}}}),
                "spec.podSelector.matchLabels[v]",
                "got \"integer\" 1, expected \"string\" (put it in quotes)",
            ),
            (
                json!({"spec": {"egress": [{"ports": [{"port": 4_294_967_376_u64}]}]}}),
                "spec.egress[0].ports[0].port",
                "Invalid value: 4294967376: must be between 1 and 65535, inclusive",
            ),
            (
                json!({"spec": {"egress": [{"ports": [{"endPort": "81"}]}]}}),
                "spec.egress[0].ports[0].endPort",
                "got \"string\", expected \"integer\"",
            ),
            (json!({"spec": {"policyTypes": "Ingress"}}), "spec.policyTypes", "\"array\""),
        ];
        for (mut value, field, message) in table {
            let problems = check(NETWORK_POLICY, Unknown::Refused, &mut value);
            assert_eq!(problems.len(), 1, "{value}: {problems:?}");
            assert_eq!(problems[0].field, field, "{value}");
            assert!(problems[0].message.contains(message), "{value}: {problems:?}");
        }
    }

    #[test]
    fn null_becomes_what_go_makes_of_it() {
        let mut value = json!({"metadata": {"labels": {"a": null}, "name": null},
            "spec": {"ingress": [null, {"from": [null], "ports": null}], "egress": null}});
        assert_eq!(check(NETWORK_POLICY, Unknown::Refused, &mut value), []);
        assert_eq!(
            value,
            json!({"metadata": {"labels": {"a": ""}},
                "spec": {"ingress": [{}, {"from": [{}]}]}})
        );
    }

    #[test]
    fn unknown_fields_can_be_ignored() {
        let mut value = json!({"metadata": {"name": "p", "x": 1}, "spec": {"y": 1}});
        assert_eq!(check(ANY_OBJECT, Unknown::Ignored, &mut value), []);
    }

    #[test]
    fn words_near_a_name_are_recognised() {
        let names = ["ingress", "egress", "to"];
        for (word, name) in [
            ("ingres", Some("ingress")),
            ("Egress", Some("egress")),
            ("eggress", Some("egress")),
            ("x", None),
            ("policy", None),
        ] {
            assert_eq!(closest(word, names), name, "{word}");
        }
    }
}
