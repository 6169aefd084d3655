//! How long it takes from a policy file's write (its rename into place) to the first packet that
//! is judged by it: one node with many pods and policies, a real agent, and a pod that sends to
//! another one about every 100 microseconds while the policy that decides it is rewritten. Run it
//! by `cargo xtask bench latency`; it must never be a test, since its figures are the machine's.

#![expect(clippy::unwrap_used, reason = "measurements")]

#[path = "../tests/world/mod.rs"]
mod world;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use serde_json::json;

use world::{World, address};

/// Local pods besides the two that talk.
const PODS: u32 = 50;
/// Policies besides the one that is edited.
const POLICIES: u32 = 100;
/// Edits measured in each mode.
const EDITS: usize = 200;
const SERVER: &str = "10.244.0.1:80";
/// Time between two packets, about.
const PACE: Duration = Duration::from_micros(100);
/// What a packet is given to arrive.
const FLIGHT: Duration = Duration::from_millis(2);
/// Edits follow each other with this pause, and without any but that for the verdict.
const PAUSE: Duration = Duration::from_millis(150);
const PATIENCE: Duration = Duration::from_secs(30);

fn main() {
    let is_json = std::env::var_os("NETPOL_JSON").is_some();
    let mut world = World::new();
    world.pod("server", &address(1), "{app: server}");
    world.pod("client", &address(2), "{app: client}");
    for number in 0..PODS {
        world.pod(&format!("other-{number}"), &address(100 + number), &format!("{{n: n{number}}}"));
    }
    for number in 0..POLICIES {
        world.policy(
            &format!("other-{number}"),
            &format!(
                "podSelector: {{matchLabels: {{n: n{}}}}}, ingress: [{{from: [{{podSelector: \
                 {{matchLabels: {{n: n{}}}}}}}], ports: [{{port: {}}}]}}]",
                number % PODS,
                (number + 1) % PODS,
                8000 + number
            ),
        );
    }
    edit(&world, true);
    world.start();
    let mut probe = Probe::new(&world);
    let mut rows = Vec::new();
    for (name, pause) in [("edits apart", PAUSE), ("edits at once", Duration::ZERO)] {
        let mut by_turn = [Vec::new(), Vec::new()];
        for index in 0..EDITS {
            probe.send_for(pause);
            let is_allowed = index % 2 == 1;
            by_turn[usize::from(is_allowed)].push(probe.measure(&world, is_allowed));
        }
        for (turn, mut times) in ["to denied", "to allowed"].into_iter().zip(by_turn) {
            times.sort();
            let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64();
            let [p50, p99, max] = [at(0.5), at(0.99), at(1.0)].map(|seconds| seconds * 1e3);
            rows.push((name, turn, times.len(), p50, p99, max));
        }
    }
    report(&rows, is_json, probe.n_sent);
}

fn edit(world: &World, is_allowed: bool) {
    let who = if is_allowed { "client" } else { "nobody" };
    world.policy(
        "server",
        &format!(
            "podSelector: {{matchLabels: {{app: server}}}}, ingress: [{{from: [{{podSelector: \
             {{matchLabels: {{app: {who}}}}}}}]}}]"
        ),
    );
}

/// Both ends of a stream of numbered packets.
struct Probe {
    client: UdpSocket,
    server: UdpSocket,
    n_sent: u64,
}

impl Probe {
    fn new(world: &World) -> Self {
        let server = world.of("server").run(|| UdpSocket::bind(SERVER).unwrap()).unwrap();
        let client = world.of("client").run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
        client.connect(SERVER).unwrap();
        server.set_nonblocking(true).unwrap();
        Self { client, server, n_sent: 0 }
    }

    /// Sends one packet; when it was sent, and whether it arrived.
    fn send(&mut self, expected: bool) -> (Instant, bool) {
        self.n_sent += 1;
        let sent = Instant::now();
        let _ = self.client.send(&self.n_sent.to_be_bytes());
        let mut buffer = [0; 8];
        loop {
            match self.server.recv(&mut buffer) {
                Ok(_) if u64::from_be_bytes(buffer) == self.n_sent => return (sent, true),
                Ok(_) => {}
                // It is delivered by the sending processor, before the call returns, unless that
                // is busy: only what would be news is waited for.
                Err(_) if !expected || sent.elapsed() > FLIGHT => return (sent, false),
                Err(_) => {}
            }
        }
    }

    /// Goes on for so long.
    fn send_for(&mut self, time: Duration) {
        let begin = Instant::now();
        while begin.elapsed() < time {
            self.send(false);
            std::thread::sleep(PACE);
        }
    }

    /// Rewrites the policy and sends until a packet is judged by it.
    fn measure(&mut self, world: &World, is_allowed: bool) -> Duration {
        let written = written_by(world, is_allowed);
        loop {
            let (sent, has_arrived) = self.send(!is_allowed);
            if has_arrived == is_allowed {
                return sent.duration_since(written);
            }
            assert!(written.elapsed() < PATIENCE, "the edit never came into force");
            std::thread::sleep(PACE);
        }
    }
}

/// When the policy was renamed into its place.
fn written_by(world: &World, is_allowed: bool) -> Instant {
    let before = Instant::now();
    edit(world, is_allowed);
    before
}

type Row = (&'static str, &'static str, usize, f64, f64, f64);

fn report(rows: &[Row], is_json: bool, n_sent: u64) {
    if is_json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(mode, turn, edits, p50, p99, max)| {
                json!({"mode": mode, "turn": turn, "edits": edits, "p50_ms": p50, "p99_ms": p99,
                       "max_ms": max})
            })
            .collect();
        println!("{}", json!({"pods": PODS + 2, "policies": POLICIES + 1, "latency": rows}));
        return;
    }
    println!(
        "from a policy file's write to the first packet judged by it: {} pods, {} policies, \
         {n_sent} packets\n\n{:<14} {:<11} {:>6} {:>9} {:>9} {:>9}",
        PODS + 2,
        POLICIES + 1,
        "",
        "verdict",
        "edits",
        "p50 ms",
        "p99 ms",
        "max ms"
    );
    for (mode, turn, edits, p50, p99, max) in rows {
        println!("{mode:<14} {turn:<11} {edits:>6} {p50:>9.2} {p99:>9.2} {max:>9.2}");
    }
}
