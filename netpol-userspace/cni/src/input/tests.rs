//! What runtimes say, rightly and wrongly.

#![expect(clippy::unwrap_used, reason = "tests")]

use serde_json::json;

use super::*;

fn config(more: &Value) -> Result<Config, Failure> {
    let mut value = json!({"cniVersion": "1.0.0", "name": "lab", "type": "netpol"});
    for (key, more) in more.as_object().unwrap() {
        value[key] = more.clone();
    }
    Config::parse(value.to_string().as_bytes())
}

#[test]
fn defaults_and_settings() {
    let plain = config(&json!({"unknown": [1]})).unwrap();
    assert_eq!(plain.run_dir.to_str(), Some("/run/netpol"));
    assert_eq!(plain.timeout(), Duration::from_secs(20));
    assert_eq!(plain.on_unreachable, OnUnreachable::Fail);
    let set = json!({"run-dir": "/r", "timeout": 3, "on-unreachable": "allow"});
    let set = config(&set).unwrap();
    assert_eq!(set.run_dir.to_str(), Some("/r"));
    assert_eq!(set.timeout(), Duration::from_secs(3));
    assert_eq!(set.on_unreachable, OnUnreachable::Allow);
}

#[test]
fn every_chained_version_and_no_other() {
    for version in VERSIONS {
        config(&json!({"cniVersion": version})).unwrap();
    }
    for version in ["", "0.1.0", "0.2.0", "2.0.0", "1"] {
        let failure = config(&json!({"cniVersion": version})).unwrap_err();
        assert_eq!(failure.code, Code::Version, "{version}");
    }
}

#[test]
fn what_cannot_be_used_is_refused_with_its_place() {
    for (more, place) in [
        (json!({"on-unreachable": "maybe"}), "on-unreachable"),
        (json!({"timeout": "20s"}), "timeout"),
        (json!({"timeout": -1}), "timeout"),
        (json!({"run-dir": 7}), "run-dir"),
        (json!({"cni.dev/valid-attachments": [{}]}), "valid-attachments"),
    ] {
        let failure = config(&more).unwrap_err();
        assert_eq!(failure.code, Code::Config);
        assert!(failure.message.contains(place), "{}", failure.message);
        assert_eq!(failure.version.as_deref(), Some("1.0.0"));
    }
    for text in ["", "{", "{\"cniVersion\":", "\u{0}"] {
        assert_eq!(Config::parse(text.as_bytes()).unwrap_err().code, Code::Decode, "{text:?}");
    }
    for text in ["[]", "7", "null", "\"text\""] {
        assert!(Config::parse(text.as_bytes()).is_err(), "{text:?}");
    }
}

#[test]
fn addresses_are_those_of_the_interface() {
    let result = json!({
        "interfaces": [{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/x"}],
        "ips": [
            {"address": "10.0.0.5/16", "interface": 2, "gateway": "10.0.0.1"},
            {"address": "fd00::5/64", "interface": 2, "version": "6"},
            {"address": "10.0.0.1/16", "interface": 0},
            {"address": "10.0.0.5/16"},
            {"address": "10.0.0.6/32"}
        ]
    });
    let found = addresses(&result, "eth0").unwrap();
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found, ["10.0.0.5", "fd00::5", "10.0.0.6"]);
    assert!(addresses(&json!({}), "eth0").unwrap().is_empty());
    for bad in [
        json!({"ips": {}}),
        json!({"ips": [{}]}),
        json!({"ips": [{"address": "10.0.0.300/16"}]}),
        json!({"ips": [{"address": "10.0.0.5"}]}),
        json!({"ips": [{"address": "10.0.0.5/16", "interface": 1}]}),
        json!({"ips": [{"address": "10.0.0.5/16", "interface": -1}], "interfaces": []}),
    ] {
        assert_eq!(addresses(&bad, "eth0").unwrap_err().code, Code::Config, "{bad}");
    }
}

fn environment<T>(pairs: &[(&str, &str)], ask: impl Fn(&Environment<'_>) -> T) -> T {
    let variable = |name: &str| {
        let found = pairs.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    ask(&Environment::new(&variable))
}

#[test]
fn names_that_become_file_names_are_checked() {
    let attach = |container, interface| {
        let pairs = [("CNI_CONTAINERID", container), ("CNI_IFNAME", interface)];
        environment(&pairs, |environment| environment.attachment())
    };
    attach("0a_b.c-d", "eth0").unwrap();
    attach("a", "interface-of-15").unwrap();
    for (container, interface) in [
        ("", "eth0"),
        ("../a", "eth0"),
        (".a", "eth0"),
        ("a/b", "eth0"),
        ("a b", "eth0"),
        ("a", ""),
        ("a", "."),
        ("a", ".."),
        ("a", "a/b"),
        ("a", "a:b"),
        ("a", "a b"),
        ("a", "interface-of--16"),
    ] {
        let failure = attach(container, interface).unwrap_err();
        assert_eq!(failure.code, Code::Environment, "{container:?} {interface:?}");
    }
}

#[test]
fn the_pod_is_named_by_arguments() {
    let pod = |text| environment(&[("CNI_ARGS", text)], |environment| environment.pod());
    let full = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;\
                K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u";
    let web = PodName { namespace: "shop".into(), name: "web".into(), uid: "u".into() };
    assert_eq!(pod(full).unwrap(), Some(web));
    assert_eq!(pod("K8S_POD_NAMESPACE=a;K8S_POD_NAME=b").unwrap().unwrap().uid, "");
    for none in ["", ";", "IgnoreUnknown=1", "K8S_POD_NAME=a", "K8S_POD_NAMESPACE=;K8S_POD_NAME=a"]
    {
        assert_eq!(pod(none).unwrap(), None, "{none:?}");
    }
    assert_eq!(pod("K8S_POD_NAME").unwrap_err().code, Code::Environment);
}

#[test]
fn collection_needs_its_list() {
    let list = json!([{"containerID": "a", "ifname": "eth0"}]);
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let config = config(&json!({key: list})).unwrap();
        assert_eq!(config.valid_attachments().unwrap()[0].container, "a");
    }
    assert!(config(&json!({})).unwrap().valid_attachments().is_err());
}
