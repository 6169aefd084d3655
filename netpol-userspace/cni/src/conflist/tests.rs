//! Real networks' configurations, edited.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;

fn entry() -> Entry {
    Entry { run_dir: "/run/netpol".into(), on_unreachable: "fail".into() }
}

/// Keys in an order of their own, numbers of every kind, and what netpol knows nothing of.
const FLANNEL: &str = r#"{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "zzz": {"b": 1.5, "a": 18446744073709551615, "c": -7},
  "plugins": [
    {
      "type": "flannel",
      "delegate": {"isDefaultGateway": true, "hairpinMode": true}
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ],
  "disableCheck": true
}"#;

#[test]
fn netpol_is_added_at_the_end_and_nothing_else_changes() {
    let with = with_netpol(FLANNEL, &entry()).unwrap().unwrap();
    let before: Value = serde_json::from_str(FLANNEL).unwrap();
    let mut after: Value = serde_json::from_str(&with).unwrap();
    let netpol = after["plugins"].as_array_mut().unwrap().pop().unwrap();
    assert_eq!(netpol, entry().to_json());
    assert_eq!(before.to_string(), after.to_string(), "the order of keys, too");
    assert_eq!(with_netpol(&with, &entry()).unwrap(), None);
    assert!(has_netpol(&with) && !has_netpol(FLANNEL));
    let without = without_netpol(&with).unwrap().unwrap();
    let without: Value = serde_json::from_str(&without).unwrap();
    assert_eq!(without.to_string(), before.to_string());
    assert_eq!(without_netpol(FLANNEL).unwrap(), None);
}

#[test]
fn an_entry_that_is_there_keeps_its_place_and_its_own_settings() {
    let text = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"},
        {"type":"netpol","timeout":5,"run-dir":"/old"},{"type":"late"}]}"#;
    let with: Value = serde_json::from_str(&with_netpol(text, &entry()).unwrap().unwrap()).unwrap();
    let types: Vec<&str> =
        with["plugins"].as_array().unwrap().iter().map(|p| p["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["bridge", "netpol", "late"]);
    assert_eq!(with["plugins"][1]["timeout"], 5);
    assert_eq!(with["plugins"][1]["run-dir"], "/run/netpol");
}

#[test]
fn what_is_not_understood_is_refused() {
    for bad in [
        "",
        "{",
        "[]",
        "7",
        "{}",
        r#"{"cniVersion":"1.0.0","plugins":{}}"#,
        r#"{"cniVersion":"1.0.0","plugins":[]}"#,
        r#"{"cniVersion":"1.0.0","plugins":[7]}"#,
        r#"{"cniVersion":"1.0.0","plugins":[{"type":7}]}"#,
        r#"{"cniVersion":"9.0.0","plugins":[{"type":"bridge"}]}"#,
        r#"{"plugins":[{"type":"bridge"}]}"#,
    ] {
        assert!(with_netpol(bad, &entry()).is_err(), "{bad}");
        assert!(wrapped(bad).is_err(), "{bad}");
        assert!(!has_netpol(bad), "{bad}");
    }
}

#[test]
fn a_single_plugin_becomes_a_list_of_one() {
    let list = wrapped(r#"{"type":"multus","cniVersion":"0.4.0","name":"m","x":1}"#).unwrap();
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!((&list["cniVersion"], &list["name"]), (&json!("0.4.0"), &json!("m")));
    assert_eq!(list["plugins"][0]["x"], 1);
    // Runtimes cannot read this either.
    assert!(wrapped(r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#).is_err());
}
