//! Installing, again and again, into directories of other people.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::symlink;

use super::*;

const LIST: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#;
const SINGLE: &str = r#"{"cniVersion":"0.4.0","name":"n","type":"multus"}"#;

struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    fn new(files: &[(&str, &str)]) -> Self {
        let node = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(node.places().conf_dir).unwrap();
        for (name, text) in files {
            fs::write(node.file(name), text).unwrap();
        }
        node
    }

    fn places(&self) -> Places {
        Places { conf_dir: self.dir.path().join("conf"), bin_dir: self.dir.path().join("bin") }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.places().conf_dir.join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap()
    }

    fn install(&self) -> Result<Outcome> {
        let entry = Entry { run_dir: "/run/netpol".into(), on_unreachable: "fail".into() };
        install(&self.places(), &entry)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.places().conf_dir).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn the_first_list_gets_netpol_once_and_loses_it_again() {
    let node = Node::new(&[("20-other.conflist", LIST), ("10-net.conflist", LIST), ("00-x", "no")]);
    fs::set_permissions(node.file("10-net.conflist"), fs::Permissions::from_mode(0o600)).unwrap();
    let list = node.file("10-net.conflist");
    assert_eq!(node.install().unwrap(), Outcome::Written(list.clone()));
    assert!(conflist::has_netpol(&node.read("10-net.conflist")));
    assert_eq!(fs::metadata(&list).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(node.read("20-other.conflist"), LIST);
    let program = node.places().bin_dir.join("netpol");
    assert!(are_equal(Path::new(PROGRAM), &program));
    assert_eq!(fs::metadata(&program).unwrap().permissions().mode() & 0o777, 0o755);
    let written = fs::metadata(&program).unwrap().modified().unwrap();
    assert_eq!(node.install().unwrap(), Outcome::Unchanged(list.clone()));
    assert_eq!(fs::metadata(&program).unwrap().modified().unwrap(), written);
    // Another version of it.
    fs::write(&program, "old").unwrap();
    node.install().unwrap();
    assert!(are_equal(Path::new(PROGRAM), &program));
    assert_eq!(uninstall(&node.places()).unwrap(), [list, program.clone()]);
    assert!(!conflist::has_netpol(&node.read("10-net.conflist")));
    assert_eq!(node.names(), ["00-x", "10-net.conflist", "20-other.conflist"]);
    assert!(!program.exists());
    assert!(uninstall(&node.places()).unwrap().is_empty());
}

#[test]
fn a_single_plugin_is_wrapped_and_unwrapped() {
    for name in ["10-net.conf", "10-net.json"] {
        let node = Node::new(&[(name, SINGLE)]);
        let list = node.file("10-net.conflist");
        assert_eq!(node.install().unwrap(), Outcome::Written(list.clone()));
        assert_eq!(active(&node.places().conf_dir).unwrap(), Some(list.clone()));
        assert!(conflist::has_netpol(&node.read("10-net.conflist")));
        assert_eq!(node.install().unwrap(), Outcome::Unchanged(list));
        // Its owner writes it again, with a change.
        fs::write(node.file(name), SINGLE.replace("\"n\"", "\"m\"")).unwrap();
        node.install().unwrap();
        assert!(node.read("10-net.conflist").contains("\"m\""));
        uninstall(&node.places()).unwrap();
        assert_eq!(node.names(), [name]);
        assert!(node.read(name).contains("\"m\""));
    }
}

#[test]
fn what_is_not_understood_stays_as_it_is() {
    for (name, text) in [
        ("10-net.conflist", "{"),
        ("10-net.conflist", SINGLE),
        ("10-net.conf", LIST),
        ("10-net.json", "[]"),
    ] {
        let node = Node::new(&[(name, text), ("20-next.conflist", LIST)]);
        let error = format!("{:#}", node.install().unwrap_err());
        assert!(error.contains(name), "{error}");
        uninstall(&node.places()).unwrap();
        assert_eq!(
            (node.read(name).as_str(), node.read("20-next.conflist").as_str()),
            (text, LIST)
        );
    }
    let node = Node::new(&[("10-net.conf", SINGLE), ("10-net.conflist", LIST)]);
    assert!(node.install().is_err());
    assert_eq!(
        (node.read("10-net.conf").as_str(), node.read("10-net.conflist").as_str()),
        (SINGLE, LIST)
    );
}

#[test]
fn a_link_is_followed() {
    let node = Node::new(&[]);
    let real = node.dir.path().join("real.conflist");
    fs::write(&real, LIST).unwrap();
    symlink(&real, node.file("10-net.conflist")).unwrap();
    node.install().unwrap();
    assert!(fs::symlink_metadata(node.file("10-net.conflist")).unwrap().is_symlink());
    assert!(conflist::has_netpol(&fs::read_to_string(&real).unwrap()));
}

#[test]
fn no_network_yet() {
    let node = Node::new(&[("README", "x")]);
    assert_eq!(node.install().unwrap(), Outcome::NoNetwork);
    fs::remove_dir_all(node.places().conf_dir).unwrap();
    assert_eq!(node.install().unwrap(), Outcome::NoNetwork);
    // Nothing is left where nothing was installed.
    assert!(!node.places().conf_dir.exists() && !node.places().bin_dir.exists());
}
