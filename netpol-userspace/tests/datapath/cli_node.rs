//! The commands that read maps, and `cleanup`, on a datapath with one isolated pod and no agent.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use netpol_api::state::{
    ClassWords, DirectionView, EndpointView, Isolation, State, Status, VERSION, state_path,
};
use netpol_compile::Ids;
use netpol_datapath::{AttachMode, LoadOptions};
use netpol_testkit::rig::{ID, POD, Rig, in_node, syn};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

const PEER: &str = "10.2.0.2";
const STRANGER: &str = "10.3.0.3";

/// A datapath that allows the pod TCP 80 from one peer, with the state file that names things.
struct Node {
    rig: Rig,
    run_dir: TempDir,
}

impl Node {
    fn new(mode: AttachMode) -> Self {
        let mut rig = Rig::with(&LoadOptions::default(), mode);
        rig.class(PEER, 3);
        rig.allow_ports(1, 3, [vec![(80, 80)], vec![], vec![]]);
        rig.isolate(1, 0);
        let run_dir = tempfile::tempdir().unwrap();
        write_state(&rig, run_dir.path());
        Self { rig, run_dir }
    }

    /// Runs a command; where the pins are is known from the state file.
    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netpol"));
        command.args(arguments).arg("--run-dir").arg(self.run_dir.path());
        command
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn write_state(rig: &Rig, run_dir: &Path) {
    let ingress = DirectionView::new(
        true,
        Isolation { policies: vec!["shop/web".into()], ..Isolation::default() }.into(),
        1,
    );
    let state = State {
        version: VERSION,
        node: "node-1".into(),
        pid: 1,
        bpffs: rig.cleanup.0.bpffs.clone(),
        status: Status { ready: true, ..Status::default() },
        endpoints: vec![EndpointView {
            namespace: "shop".into(),
            pod: "web".into(),
            uid: "u".into(),
            interface: "pod0".into(),
            ifindex: rig.ifindex,
            ips: vec![POD.parse().unwrap()],
            id: ID.0,
            ingress,
            egress: DirectionView::default(),
        }],
        isolations: vec![],
        classes: [(3, vec![PEER])].into_iter().collect::<ClassWords>().into(),
        ids: Ids::default(),
        remembered: vec![],
        placed: vec![],
        arrived: std::collections::BTreeMap::new(),
        place: String::new(),
    };
    std::fs::write(state_path(run_dir), serde_json::to_vec(&state).unwrap()).unwrap();
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn counters_and_flows_are_told_while_the_agent_is_down() {
    in_node(|| {
        let mut node = Node::new(AttachMode::Auto);
        assert!(node.rig.comes_in(PEER, &syn(1000, 80)));
        assert!(!node.rig.comes_in(STRANGER, &syn(1000, 80)));
        assert!(!node.rig.comes_in(PEER, &syn(1000, 81)));

        let endpoints = node.json(&["endpoints", "-o", "json"]);
        assert_eq!(endpoints[0]["ingress"]["drops"]["policy"], 2);
        assert_eq!(endpoints[0]["enforced"], true);
        let rules = node.json(&["rules", "web", "-o", "json"]);
        assert_eq!(rules["ingress"]["drops"]["policy"], 2);

        let flows = node.json(&["flows", POD, "-o", "json"]);
        assert_eq!(flows.as_array().unwrap().len(), 1, "{flows}");
        let flow = &flows[0];
        assert_eq!(flow["endpoint"], "shop/web");
        assert_eq!(flow["remote"], PEER);
        assert_eq!([&flow["local_port"], &flow["remote_port"]], [80, 1000]);
        assert_eq!([&flow["opened"], &flow["state"]], ["ingress", "new"]);

        let output = node.run(&["endpoints"]);
        assert!(stderr(&output).contains("the agent is not running"), "{}", stderr(&output));
        let output = node.run(&["status"]);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        let output = node.run(&["rules", "nobody"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("no endpoint nobody"), "{}", stderr(&output));
    });
}

#[test]
fn the_monitor_tells_what_is_dropped_and_allowed_until_interrupted() {
    in_node(|| {
        let mut node = Node::new(AttachMode::Auto);
        let mut child =
            Guard::spawn(node.command(&["monitor", "--flows", "-o", "json", "shop/web"]));
        child.wait_until("waiting for dropped packets");

        let second = node.run(&["monitor"]);
        assert_eq!(second.status.code(), Some(2));
        assert!(stderr(&second).contains("another `netpol monitor`"), "{}", stderr(&second));

        assert!(!node.rig.comes_in(STRANGER, &syn(1000, 80)));
        assert!(node.rig.comes_in(PEER, &syn(1001, 80)));
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        let mut event =
            || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
        let denied = event();
        assert_eq!(denied["verdict"], "deny");
        assert_eq!(denied["endpoint"], "shop/web");
        assert_eq!(denied["source"]["ip"], STRANGER);
        assert_eq!(denied["destination"]["port"], 80);
        assert_eq!(denied["policies"][0], "shop/web");
        assert_eq!([&denied["detail"], &denied["reason"]], ["SYN", "policy"]);
        let allowed = event();
        assert_eq!([&allowed["verdict"], &allowed["peer_matches"][0]], ["allow", PEER]);

        kill_process(Pid::from_child(&child.0), Signal::INT).unwrap();
        assert_eq!(child.0.wait().unwrap().code(), Some(0));
    });
}

#[test]
fn cleanup_refuses_while_the_directory_is_held_and_then_takes_everything_off() {
    for mode in [AttachMode::Tcx, AttachMode::Clsact] {
        in_node(|| {
            let Node { rig, run_dir } = Node::new(mode);
            let Rig { datapath, maps, ifindex, cleanup, .. } = rig;
            drop(maps);
            let refused = clean_up_once(run_dir.path());
            assert_eq!(refused.status.code(), Some(2));
            let said = stderr(&refused);
            assert!(said.contains("an agent (pid 1)") && said.contains("stop it first"), "{said}");
            assert!(is_attached(mode), "a refusal changes nothing");

            drop(datapath);
            assert!(is_attached(mode), "enforcement outlives the agent");
            let done = clean_up(run_dir.path());
            assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
            let said = String::from_utf8_lossy(&done.stdout).into_owned();
            assert!(said.contains(&format!("off interface {ifindex}\n")), "{said}");
            assert!(!is_attached(mode), "{mode:?}: {said}");
            assert!(!cleanup.0.bpffs.exists() && !run_dir.path().exists());
        });
    }
}

/// In a container it is the first process, which SIGTERM does not end by itself.
#[test]
fn cleanup_that_stays_ends_when_it_is_told_to() {
    in_node(|| {
        let node = Node::new(AttachMode::Tcx);
        let command = node.command(&["cleanup", "--stay"]);
        drop(node.rig.datapath);
        let mut child = Guard::spawn(command);
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("staying until")));
        assert!(!is_attached(AttachMode::Tcx));
        assert_eq!(child.0.try_wait().unwrap(), None, "it stays");
        kill_process(Pid::from_child(&child.0), Signal::TERM).unwrap();
        assert_eq!(child.0.wait().unwrap().code(), Some(0));
    });
}

#[test]
fn cleanup_in_another_namespace_is_refused_and_never_touches_another_netpols_filters() {
    in_node(|| {
        let ours = Node::new(AttachMode::Clsact);
        // Made in another namespace, where its interface has the same number as ours here.
        let other = std::thread::scope(|scope| {
            let made = scope.spawn(|| {
                let mut other = None;
                in_node(|| other = Some(Node::new(AttachMode::Clsact)));
                other.unwrap()
            });
            made.join().unwrap()
        });
        let Node { rig, run_dir } = other;
        let Rig { datapath, ifindex, cleanup, .. } = rig;
        assert_eq!(ifindex, ours.rig.ifindex, "or this test shows nothing");
        drop(datapath);
        let netpol = |force: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_netpol"));
            command.arg("cleanup").arg("--run-dir").arg(run_dir.path()).args(force);
            command.output().unwrap()
        };
        // In the wrong namespace nothing can be taken off, and the pins tell what to take off.
        let refused = netpol(&[]);
        assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
        let said = stderr(&refused);
        assert!(said.contains(&format!("isolates interfaces {ifindex}")), "{said}");
        assert!(said.contains("nsenter") && said.contains("--force"), "{said}");
        assert!(cleanup.0.exist() && run_dir.path().join("state.json").exists());
        let output = netpol(&["--force"]);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("found no program of netpol"), "{said}");
        assert!(!cleanup.0.bpffs.exists());
        assert!(is_attached(AttachMode::Clsact), "ours stays");
    });
}

fn clean_up_once(run_dir: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netpol"));
    command.arg("cleanup").arg("--run-dir").arg(run_dir).output().unwrap()
}

/// Until it is not refused: a process that another test has forked holds the lock, too, until it
/// executes.
fn clean_up(run_dir: &Path) -> Output {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let output = clean_up_once(run_dir);
        if output.status.code() != Some(2) || Instant::now() > end {
            return output;
        }
    }
}

/// Whether `pod0` has a program of netpol, as aya or tc see it.
fn is_attached(mode: AttachMode) -> bool {
    if mode == AttachMode::Clsact {
        let output = Command::new("tc").args(["filter", "show", "dev", "pod0", "egress"]).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        return String::from_utf8_lossy(&output.stdout).contains("netpol_ingress");
    }
    let hook = aya::programs::TcAttachType::Egress;
    let (_, programs) = aya::programs::SchedClassifier::query_tcx("pod0", hook).unwrap();
    !programs.is_empty()
}

/// A child that ends with the test, also one that fails.
struct Guard(Child);

impl Guard {
    fn spawn(mut command: Command) -> Self {
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Reads standard error up to a line that contains `text`.
    fn wait_until(&mut self, text: &str) {
        let mut errors = BufReader::new(self.0.stderr.take().unwrap());
        let mut all = String::new();
        while !all.contains(text) {
            assert_ne!(errors.read_line(&mut all).unwrap(), 0, "it ended: {all}");
        }
        // Kept open: a note written later must not fail.
        self.0.stderr = Some(errors.into_inner());
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
