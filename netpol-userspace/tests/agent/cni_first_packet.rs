//! The first packets of new pods, with the distribution's CNI plugins and netpol's: nothing that
//! is denied passes and nothing that is allowed is dropped, from the first one on, while policies
//! change. And the same without netpol's plugin, to measure what it is for. Needs root and the eBPF
//! object.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use netpol_isolation::netns::Netns;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use netpol_testkit::world::runtime::{Runtime, SUBNET, Sandbox};
use netpol_testkit::world::{PATIENCE, World};

const N_PODS: u32 = 200;
/// Where every pod listens.
const PORT: u16 = 7000;
/// How many datagrams a new pod sends to each peer at once.
const N_FIRST: u64 = 5;

/// New pods exchange packets with friends only, and friends accept nobody but them.
const NEW: &str = "podSelector: {matchLabels: {app: new}}, policyTypes: [Ingress, Egress], \
                   ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}], \
                   egress: [{to: [{podSelector: {matchLabels: {role: friend}}}]}]";
const FRIEND: &str = "podSelector: {matchLabels: {role: friend}}, \
                      ingress: [{from: [{podSelector: {matchLabels: {app: new}}}]}]";

/// Two pods that are there all the time: one that new pods may talk with, and one that they may
/// not. Dropped in this order: the threads before the world they are in.
struct Scene {
    friend: Peer,
    stranger: Peer,
    runtime: Runtime,
    world: World,
}

/// A pod that counts and answers what it gets, and sends to one address after the other.
struct Peer {
    address: String,
    socket: Arc<UdpSocket>,
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    answering: Option<JoinHandle<()>>,
}

impl Peer {
    fn start(world: &World, runtime: &Runtime, name: &str) -> Self {
        world.declare(name, "", &format!("{{role: {name}}}"));
        let sandbox = Sandbox::new(name);
        let address = runtime.start(&sandbox).unwrap();
        let socket = Arc::new(listen(&runtime.netns(&sandbox)));
        let (received, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (server, counter, end) = (socket.clone(), received.clone(), stop.clone());
        let answering = thread::spawn(move || {
            let mut buffer = [0; 16];
            while !end.load(Ordering::Relaxed) {
                let Ok((length, from)) = server.recv_from(&mut buffer) else { continue };
                // What it sent itself is answered by nobody.
                if length == 8 {
                    counter.fetch_add(1, Ordering::Relaxed);
                    let _ = server.send_to(&buffer[..length], from);
                }
            }
        });
        Self { address, socket, received, stop, answering: Some(answering) }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.answering.take().unwrap().join();
    }
}

/// A socket on [`PORT`] of a namespace.
fn listen(netns: &Netns) -> UdpSocket {
    let socket = netns.run(|| UdpSocket::bind(("0.0.0.0", PORT))).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    socket
}

impl Scene {
    fn new(with_plugin: bool) -> Self {
        let mut world = World::new();
        world.policy("new", NEW);
        world.policy("friend", FRIEND);
        world.start();
        let mut runtime = Runtime::new(&world);
        let [friend, stranger] =
            ["friend", "stranger"].map(|name| Peer::start(&world, &runtime, name));
        if !with_plugin {
            runtime = runtime.without_netpol();
        }
        Self { friend, stranger, runtime, world }
    }

    /// Sends to `target` without a pause, always first from the stranger and then from the friend:
    /// where the friend's datagram has arrived, the stranger's would have too.
    fn pour(&self, target: &str) -> Pouring {
        let (stranger, friend) = (self.stranger.socket.clone(), self.friend.socket.clone());
        let target: SocketAddr = format!("{target}:{PORT}").parse().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let end = stop.clone();
        let thread = thread::spawn(move || {
            let mut number = 0_u64;
            while !end.load(Ordering::Relaxed) {
                for (socket, mark) in [(&stranger, b'!'), (&friend, b'.')] {
                    let mut datagram = [mark; 9];
                    datagram[..8].copy_from_slice(&number.to_be_bytes());
                    // Nobody may be there yet.
                    let _ = socket.send_to(&datagram, target);
                }
                number += 1;
                thread::sleep(Duration::from_millis(2));
            }
        });
        Pouring { stop, thread: Some(thread) }
    }
}

struct Pouring {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Pouring {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

/// What a new pod saw.
#[derive(Debug, Default)]
struct Seen {
    /// Datagrams of the stranger.
    leaked: u64,
    /// Answers of the friend to the first datagrams.
    answers: u64,
}

/// Whether a datagram of the friend is missing between the first and the last. (Those that waited
/// for the pod's link-layer address may come a little later than the next ones.)
fn has_gap(poured: &[u64]) -> bool {
    let span = poured.iter().max().zip(poured.iter().min()).map(|(max, min)| max - min + 1);
    span.is_some_and(|span| span != poured.len() as u64)
}

/// The process of a new pod: sends at once to both, and receives until it has seen enough.
fn live(netns: &Netns, friend: &str, stranger: &str) -> Seen {
    let socket = netns
        .run(|| {
            let socket = UdpSocket::bind(("0.0.0.0", PORT)).unwrap();
            // What a busy machine lets lie here is not lost to a policy.
            set_socket_recv_buffer_size_force(&socket, 16 << 20).unwrap();
            for number in 0..N_FIRST {
                for peer in [stranger, friend] {
                    socket.send_to(&number.to_be_bytes(), (peer, PORT)).unwrap();
                }
            }
            socket
        })
        .unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut seen = Seen::default();
    let mut poured: Vec<u64> = Vec::new();
    let mut buffer = [0; 16];
    let end = Instant::now() + PATIENCE;
    while poured.len() < 20 || seen.answers < N_FIRST || has_gap(&poured) {
        assert!(Instant::now() < end, "allowed datagrams are missing: {seen:?}, {poured:?}");
        match socket.recv_from(&mut buffer) {
            Ok((8, _)) => seen.answers += 1,
            Ok((9, _)) if buffer[8] == b'.' => {
                poured.push(u64::from_be_bytes(buffer[..8].try_into().unwrap()));
            }
            Ok((9, _)) => seen.leaked += 1,
            other => panic!("{other:?} after {seen:?}, {poured:?}"),
        }
    }
    seen
}

/// Policies that come and go and change nothing between new pods, friend and stranger.
fn churn(world: &World, stop: &AtomicBool) -> u64 {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        let number = round % 7;
        let port = 1 + round % 500;
        match round % 3 {
            0 => world.policy(
                &format!("churn-{number}"),
                &format!(
                    "podSelector: {{matchExpressions: [{{key: role, operator: NotIn, \
                     values: [stranger]}}]}}, policyTypes: [Ingress], \
                     ingress: [{{ports: [{{port: {port}}}]}}, \
                     {{from: [{{podSelector: {{matchLabels: {{x: x{number}}}}}}}]}}]"
                ),
            ),
            1 => world.policy(
                &format!("churn-{number}"),
                &format!(
                    "podSelector: {{matchLabels: {{app: new}}}}, policyTypes: [Egress], \
                     egress: [{{to: [{{ipBlock: {{cidr: 192.0.2.{number}/32}}}}], \
                     ports: [{{port: {port}}}]}}]"
                ),
            ),
            _ => {
                let file = format!("policy-churn-{number}.yaml");
                let _ = std::fs::remove_file(world.manifests().join(file));
            }
        }
        world.declare(&format!("far-{number}"), "", &format!("{{x: x{}}}", round % 5));
        round += 1;
        thread::sleep(Duration::from_millis(10));
    }
    round
}

/// No policy isolates the stranger, so that whatever leaks to it arrives.
#[test]
fn two_hundred_pods_start_without_a_leak_or_a_loss() {
    let scene = Scene::new(true);
    let stop = AtomicBool::new(false);
    let mut total = Seen::default();
    let begun = Instant::now();
    let mut longest = Duration::ZERO;
    let rounds = thread::scope(|scope| {
        let churning = scope.spawn(|| churn(&scene.world, &stop));
        let stopping = StopOnDrop(&stop);
        for number in 0..N_PODS {
            let name = format!("new-{number}");
            let sandbox = Sandbox::new(&name);
            let target = format!("{SUBNET}.{}", 4 + number);
            let pouring = scene.pour(&target);
            scene.world.declare(&name, "", "{app: new}");
            let started = Instant::now();
            assert_eq!(scene.runtime.start(&sandbox).unwrap(), target);
            longest = longest.max(started.elapsed());
            let netns = scene.runtime.netns(&sandbox);
            let seen = live(&netns, &scene.friend.address, &scene.stranger.address);
            assert_eq!(seen.leaked, 0, "{name} got datagrams of a stranger");
            total.answers += seen.answers;
            if number % 2 == 0 {
                // The status comes at last, and changes nothing.
                scene.world.declare(&name, &target, "{app: new}");
            }
            drop((pouring, netns));
            scene.runtime.stop(&sandbox);
            scene.world.remove(&format!("pod-{name}"));
        }
        drop(stopping);
        churning.join().unwrap()
    });
    assert_eq!(total.answers, u64::from(N_PODS) * N_FIRST);
    assert_eq!(scene.stranger.received.load(Ordering::Relaxed), 0, "the stranger got something");
    assert!(rounds > 200, "hardly anything changed");
    assert_eq!(scene.world.drops("friend"), 0, "the friend's policies did not know a new pod");
    eprintln!(
        "{N_PODS} pods in {:.1} s (longest ADD {longest:?}), {rounds} changes of policies: 0 \
         leaked, 0 lost",
        begun.elapsed().as_secs_f32()
    );
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Without the plugin a pod is open from its start until its status is known and its interface is
/// found. How long is printed, for the documentation; that it ends is insisted on.
#[test]
fn without_the_plugin_there_is_a_window_that_closes() {
    let scene = Scene::new(false);
    let mut windows = Vec::new();
    let mut n_leaked = 0;
    for number in 0..20 {
        let name = format!("new-{number}");
        let sandbox = Sandbox::new(&name);
        scene.world.declare(&name, "", "{app: new}");
        let address = scene.runtime.start(&sandbox).unwrap();
        let netns = scene.runtime.netns(&sandbox);
        let socket = listen(&netns);
        let pouring = scene.pour(&address);
        scene.world.declare(&name, &address, "{app: new}");
        let (leaked, window) = watch_closing(&socket);
        n_leaked += leaked;
        windows.push(window);
        drop((pouring, netns));
        scene.runtime.stop(&sandbox);
        scene.world.remove(&format!("pod-{name}"));
    }
    windows.sort_unstable();
    eprintln!(
        "without the plugin, from the moment the status was written: open for {:?} (median), \
         {:?} (longest of {}), {n_leaked} datagrams leaked",
        windows[windows.len() / 2],
        windows.last().unwrap(),
        windows.len()
    );
}

/// Receives until nothing of the stranger has come for many datagrams of the friend; how much of
/// it came, and until when.
fn watch_closing(socket: &UdpSocket) -> (u64, Duration) {
    let begun = Instant::now();
    let (mut leaked, mut last, mut n_since) = (0, Duration::ZERO, 0);
    let mut buffer = [0; 16];
    while n_since < 50 {
        assert!(begun.elapsed() < PATIENCE, "it never closed: {leaked} datagrams leaked");
        match socket.recv_from(&mut buffer) {
            Ok((9, _)) if buffer[8] == b'!' => {
                (leaked, last, n_since) = (leaked + 1, begun.elapsed(), 0);
            }
            Ok(_) => n_since += 1,
            // The next ones come.
            Err(_) => {}
        }
    }
    (leaked, last)
}
