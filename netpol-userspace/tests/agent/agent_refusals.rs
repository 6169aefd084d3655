//! What an agent refuses to start on, and that it says what to do and touches nothing; and the
//! addresses where a running one tells how it is. Needs root and the eBPF object.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use aya::maps::{MapData, MapInfo};

use netpol_testkit::world::traffic::{Attempts, Server, assert_allowed, assert_denied};
use netpol_testkit::world::{World, eventually};

const SERVER: &str = "10.244.0.1:80";

fn enforced() -> (World, Server) {
    let mut world = World::new();
    world.pod("server", "10.244.0.1", "{app: server}");
    world.pod("client", "10.244.0.2", "{}");
    world.policy("none", "podSelector: {matchLabels: {app: server}}");
    let server = Server::start(&world.of("server"), 80);
    world.start();
    (world, server)
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The agent's command line with another value for a flag.
fn with(world: &World, flag: &str, value: &str) -> Vec<String> {
    let mut line = world.command_line();
    let at = line.iter().position(|argument| argument == flag).unwrap();
    line[at + 1] = value.to_owned();
    line.extend(["--metrics-address".into(), "off".into()]);
    line
}

/// Fails, says all of this, and the agent that runs goes on.
fn is_refused(world: &mut World, line: &[String], says: &[&str]) {
    let attempts = Attempts::start(&world.of("client"), SERVER);
    let output = world.netpol(line);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    for word in says {
        assert!(text(&output).contains(word), "no {word} in {}", text(&output));
    }
    attempts.finish();
    // The first still follows changes.
    world.policy("none", "podSelector: {matchLabels: {app: server}}, ingress: [{}]");
    world.settle();
    assert_allowed(&world.of("client"), SERVER);
}

#[test]
fn a_second_agent_on_the_same_pins_is_refused() {
    let (mut world, _server) = enforced();
    let other = world.dir.path().join("other-run").to_str().unwrap().to_owned();
    let line = with(&world, "--run-dir", &other);
    let bpffs = world.bpffs.to_str().unwrap().to_owned();
    is_refused(&mut world, &line, &["another netpol agent", &bpffs, "stop it", "--bpffs"]);
}

#[test]
fn a_second_agent_on_the_same_run_directory_is_refused() {
    let (mut world, _server) = enforced();
    let line = with(&world, "--bpffs", &format!("{}-other", world.bpffs.display()));
    let pid = world.agent.as_ref().unwrap().pid().to_string();
    let run_dir = world.run_dir().to_str().unwrap().to_owned();
    is_refused(
        &mut world,
        &line,
        &["another netpol agent", &pid, &run_dir, "stop it", "--run-dir"],
    );
    assert!(!PathBuf::from(format!("{}-other", world.bpffs.display())).exists());
}

#[test]
fn a_pinned_map_of_another_shape_is_named_and_nothing_is_touched() {
    let (mut world, _server) = enforced();
    world.kill();
    let path = world.pins().map("ROWS");
    let kept = world.pins().map("ROWS-kept");
    let ids = |world: &World| {
        let mut ids: Vec<(PathBuf, u32)> = fs::read_dir(world.pins().map(""))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.clone(), MapInfo::from_pin(path).unwrap().id()))
            .collect();
        ids.sort();
        ids
    };
    // A pin cannot be renamed, but pinned twice.
    MapData::from_pin(&path).unwrap().pin(&kept).unwrap();
    fs::remove_file(&path).unwrap();
    // Another build's map: CONTROL will do, it has another everything.
    MapData::from_pin(world.pins().map("CONTROL")).unwrap().pin(&path).unwrap();
    let before = (ids(&world), world.links(), world.tcx("v-server"));
    let output = world.netpol(&with(&world, "--node-name", "node-1"));
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    for word in ["ROWS", "type is Array, should be Hash", "value size is", "netpol cleanup"] {
        assert!(text(&output).contains(word), "no {word} in {}", text(&output));
    }
    assert_eq!((ids(&world), world.links(), world.tcx("v-server")), before);
    assert_denied(&world.of("client"), SERVER);
    // With the right map back, the agent takes over where it was.
    fs::remove_file(&path).unwrap();
    MapData::from_pin(&kept).unwrap().pin(&path).unwrap();
    fs::remove_file(&kept).unwrap();
    world.start();
    assert_denied(&world.of("client"), SERVER);
}

/// Runs a shell line on the node in a mount namespace of its own.
fn in_own_mounts(world: &World, script: &str, line: &[String]) -> Output {
    let run = || {
        Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c"])
            .arg(format!("{script}\nexec \"$0\" \"$@\""))
            .arg(env!("CARGO_BIN_EXE_netpol"))
            .args(line)
            .output()
            .unwrap()
    };
    world.node.run(run).unwrap()
}

/// In a container, what the agent mounts ends with it, and so would enforcement at every restart.
#[test]
fn an_agent_that_must_not_mount_a_bpffs_says_how_to_and_makes_nothing() {
    let world = World::new();
    let place = world.dir.path().join("no-bpffs");
    let mut line = with(&world, "--bpffs", place.to_str().unwrap());
    line.extend(["--mount-bpffs".into(), "off".into()]);
    let output = world.netpol(&line);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    let mount = format!("mount -t bpf bpf {}", place.display());
    for word in [place.to_str().unwrap(), &mount, "there is no bpffs"] {
        assert!(text(&output).contains(word), "no {word} in {}", text(&output));
    }
    assert!(!place.exists());
}

#[test]
fn an_agent_that_must_not_mount_a_bpffs_uses_the_one_that_is_there() {
    let (mut world, _server) = enforced();
    world.kill();
    world.arguments.extend(["--mount-bpffs".into(), "off".into()]);
    world.start();
    assert_denied(&world.of("client"), SERVER);
}

#[test]
fn a_bpffs_that_cannot_be_mounted_is_said_with_what_to_do() {
    let world = World::new();
    let sealed = world.dir.path().join("sealed");
    fs::create_dir(&sealed).unwrap();
    let line = with(&world, "--bpffs", sealed.join("pins").to_str().unwrap());
    let script = format!("mount -t tmpfs -o ro none {}", sealed.display());
    let output = in_own_mounts(&world, &script, &line);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    for word in [sealed.to_str().unwrap(), "Read-only file system"] {
        assert!(text(&output).contains(word), "no {word} in {}", text(&output));
    }
    // A file where the directory should be mounted upon.
    let file = world.dir.path().join("file");
    fs::write(&file, "").unwrap();
    let output = world.netpol(&with(&world, "--bpffs", file.to_str().unwrap()));
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains(file.to_str().unwrap()), "{}", text(&output));
}

#[test]
fn a_directory_that_is_no_bpffs_is_mounted() {
    let mut world = World::new();
    world.pod("server", "10.244.0.1", "{app: server}");
    world.pod("client", "10.244.0.2", "{}");
    world.policy("none", "podSelector: {matchLabels: {app: server}}");
    let _server = Server::start(&world.of("server"), 80);
    world.bpffs = world.dir.path().join("mounted-here");
    world.start();
    assert_denied(&world.of("client"), SERVER);
    assert!(world.pins().map("ROWS").exists());
    // The next agent finds it mounted.
    world.kill();
    world.start();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let n_mounts = mounts.matches(world.bpffs.to_str().unwrap()).count();
    assert_eq!(n_mounts, 1, "{mounts}");
}

#[test]
fn missing_capabilities_are_named() {
    let world = World::new();
    // CAP_SYS_ADMIN includes CAP_BPF, which the kernels before 5.8 do not know.
    for capability in ["net_admin", "sys_admin"] {
        let run = || {
            // An agent that starts after all must not keep the test waiting.
            Command::new("timeout")
                .args(["60", "setpriv"])
                .arg(format!("--bounding-set=-{capability}"))
                .arg(format!("--inh-caps=-{capability}"))
                .arg(env!("CARGO_BIN_EXE_netpol"))
                .args(world.command_line())
                .output()
                .unwrap()
        };
        let output = world.node.run(run).unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        let name = format!("CAP_{}", capability.to_uppercase());
        assert!(text(&output).contains(&name), "no {name} in {}", text(&output));
        assert!(text(&output).contains("securityContext"), "{}", text(&output));
    }
    assert!(!world.bpffs.exists(), "something was made without the means to go on");
}

#[test]
fn metrics_and_health_answer() {
    let (mut world, _server) = enforced();
    assert_denied(&world.of("client"), SERVER);
    assert_eq!(world.http("/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(world.http("/readyz").0, 200);
    let (code, metrics) = world.http("/metrics");
    assert_eq!(code, 200);
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    let drops = metrics
        .lines()
        .filter(|line| line.contains("drop") && !line.starts_with('#'))
        .any(|line| line.rsplit(' ').next().unwrap().parse::<f64>().is_ok_and(|n| n > 0.0));
    assert!(drops, "no dropped packet counted in {metrics}");
    // What cannot be put in force is not ready.
    world.declare("ghost", "10.244.0.99", "{app: server}");
    let status = world.agent.as_ref().unwrap().wait();
    let errors = status["datapath"]["errors"].to_string();
    assert!(errors.contains("default/ghost"), "{status}");
    world.remove("pod-ghost");
    world.settle();
    eventually("ready again", || world.http("/readyz").0 == 200);
}
