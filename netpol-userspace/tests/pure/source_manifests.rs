//! The manifests source on a real directory: what is written takes effect, half-written files do
//! not, and a barrier means what it says.
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use netpol_model::{Change, Cluster, ObjectName};
use netpol_source::{Event, Handle, spawn_manifests};
use tokio::sync::mpsc;

/// A source on a directory, and the state that its events add up to.
struct World {
    dir: tempfile::TempDir,
    handle: Handle,
    rx: mpsc::Receiver<Event>,
    cluster: Cluster,
    runtime: tokio::runtime::Runtime,
    _run_dir: tempfile::TempDir,
    /// Every event so far.
    log: Vec<Event>,
}

impl World {
    fn new(prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path());
        let (tx, rx) = mpsc::channel(64);
        let run_dir = tempfile::tempdir().unwrap();
        let handle = spawn_manifests(dir.path(), run_dir.path(), tx).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        Self {
            dir,
            _run_dir: run_dir,
            handle,
            rx,
            cluster: Cluster::default(),
            runtime,
            log: Vec::new(),
        }
    }

    fn next(&mut self) -> Option<Event> {
        let next = async { tokio::time::timeout(Duration::from_secs(60), self.rx.recv()).await };
        let event = self.runtime.block_on(next).expect("the source says something")?;
        if let Event::Changes(changes) = &event {
            for change in changes {
                self.cluster.apply(change.clone());
            }
        }
        self.log.push(event.clone());
        Some(event)
    }

    fn until(&mut self, mut done: impl FnMut(&Event, &Cluster) -> bool) {
        loop {
            let event = self.next().expect("the source lives");
            if done(&event, &self.cluster) {
                return;
            }
        }
    }

    /// Waits until a policy of that name is in force.
    fn until_has(&mut self, name: &str) {
        self.until(|_, cluster| cluster.policy(&ObjectName::new("shop", name)).is_some());
    }

    /// Everything written before this call is in `cluster` after it.
    fn barrier(&mut self) {
        let number = self.handle.barrier();
        self.until(|event, _| matches!(event, Event::Barrier(n) if *n >= number));
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn has(&self, name: &str) -> bool {
        self.cluster.policy(&ObjectName::new("shop", name)).is_some()
    }
}

fn policy(name: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: {name}, namespace: shop}}\nspec: {{podSelector: {{}}}}\n"
    )
}

#[test]
fn everything_at_the_start_is_sent_before_synced() {
    let mut world = World::new(|dir| {
        fs::write(dir.join("a.yaml"), policy("a")).unwrap();
        fs::write(dir.join("bad.yaml"), "{").unwrap();
    });
    world.until(|event, _| *event == Event::Synced);
    assert!(world.has("a"));
    assert!(matches!(
        &world.log[..],
        [Event::Changes(_), Event::Problem { object, .. }, Event::Synced] if object == "bad.yaml"
    ));
}

#[test]
fn changes_arrive_by_themselves() {
    let mut world = World::new(|_| {});
    world.until(|event, _| *event == Event::Synced);
    world.write("a.yaml", &policy("a"));
    world.until_has("a");
    // As editors and kubelet do: write beside, then rename over.
    world.write("a.yaml.tmp", &policy("b"));
    fs::rename(world.dir.path().join("a.yaml.tmp"), world.dir.path().join("a.yaml")).unwrap();
    world.until_has("b");
    assert!(!world.has("a"));
    fs::create_dir_all(world.dir.path().join("x/y")).unwrap();
    world.write(
        "x/y/c.json",
        r#"{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy",
        "metadata":{"name":"c","namespace":"shop"}}"#,
    );
    world.until_has("c");
    world.write("x/y/c.json", "{");
    let named = |object: &String| object == "x/y/c.json";
    world.until(|event, _| matches!(event, Event::Problem { object, .. } if named(object)));
    fs::remove_dir_all(world.dir.path().join("x")).unwrap();
    world.until(|event, _| matches!(event, Event::Resolved { object } if named(object)));
    assert!(!world.has("c") && world.has("b"));
    assert_eq!(world.log.iter().filter(|event| **event == Event::Synced).count(), 1);
}

#[test]
fn a_barrier_covers_everything_written_before_it() {
    let mut world = World::new(|_| {});
    for round in 0..100 {
        let file = format!("{}.yaml", round % 3);
        world.write(&file, &policy(&format!("p{round}")));
        world.barrier();
        assert!(world.has(&format!("p{round}")), "round {round}: {:?}", world.log);
        if round % 5 == 0 {
            fs::remove_file(world.dir.path().join(&file)).unwrap();
            world.barrier();
            assert!(!world.has(&format!("p{round}")), "round {round}");
        }
    }
}

#[test]
fn one_answer_serves_several_barriers() {
    let mut world = World::new(|_| {});
    let numbers: Vec<u64> = (0..50).map(|_| world.handle.barrier()).collect();
    assert_eq!(numbers, (1..=50).collect::<Vec<_>>());
    world.until(|event, _| *event == Event::Barrier(50));
}

#[test]
fn a_half_written_file_opens_nothing() {
    let mut world = World::new(|dir| {
        fs::write(dir.join("a.yaml"), policy("a") + &policy("b")).unwrap();
    });
    world.barrier();
    assert!(world.has("a") && world.has("b"));
    // The file is empty, then holds only one of its policies, while it is being written.
    let mut file = File::create(world.dir.path().join("a.yaml")).unwrap();
    file.write_all(policy("b").as_bytes()).unwrap();
    world.write("other.yaml", &policy("other"));
    world.until_has("other");
    assert!(world.has("a") && world.has("b"), "{:?}", world.log);
    file.write_all(policy("c").as_bytes()).unwrap();
    drop(file);
    world.barrier();
    assert!(!world.has("a") && world.has("b") && world.has("c"));
    // At no time was b, which every version held, taken back.
    let gone = Change::PolicyGone(ObjectName::new("shop", "b"));
    let taken_back =
        |event: &Event| matches!(event, Event::Changes(changes) if changes.contains(&gone));
    assert!(!world.log.iter().any(taken_back), "{:?}", world.log);
}

#[test]
fn a_directory_that_vanishes_takes_nothing_with_it() {
    let mut world = World::new(|dir| {
        fs::create_dir(dir.join("sub")).unwrap();
        fs::write(dir.join("sub/a.yaml"), policy("a")).unwrap();
    });
    world.barrier();
    let (path, away) = (world.dir.path().to_owned(), world.dir.path().with_extension("away"));
    let root = |object: &String| object == ".";
    fs::rename(&path, &away).unwrap();
    world.until(|event, _| matches!(event, Event::Problem { object, .. } if root(object)));
    world.barrier();
    assert!(world.has("a"));
    fs::rename(&away, &path).unwrap();
    world.barrier();
    assert!(world.log.contains(&Event::Resolved { object: ".".into() }));
    world.write("sub/b.yaml", &policy("b"));
    world.until_has("b");
}

#[test]
fn dropping_the_handle_ends_the_source() {
    let World { handle, mut rx, .. } = World::new(|_| {});
    drop(handle);
    while rx.blocking_recv().is_some() {}
}

#[test]
fn a_missing_directory_is_refused_by_name() {
    let (tx, _rx) = mpsc::channel(1);
    let error = spawn_manifests(Path::new("/nonexistent/dir"), Path::new("/nonexistent/run"), tx)
        .unwrap_err();
    assert!(format!("{error:#}").contains("/nonexistent/dir"), "{error:#}");
}
