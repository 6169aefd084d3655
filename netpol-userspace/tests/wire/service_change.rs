//! Backends, labels and policies change while long-lived flows and new connections go through a
//! Service: allowed flows lose nothing, forbidden ones end with their next packet, whatever order
//! kube-proxy and netpol hear of it. Needs root and the eBPF object.

use std::net::SocketAddr;

use netpol_common::layout::Reason;
use netpol_model::Direction;

use netpol_testkit::service_lab::backend::Backend;
use netpol_testkit::service_lab::stream::Stream;
use netpol_testkit::service_lab::volley::{self, Shot};
use netpol_testkit::service_lab::{Client, Cluster, Protocol, Service};
use netpol_testkit::world::eventually;

netpol_testkit::on_networks! { super::established_flows,
    bridge: BRIDGE, V4;
    overlay: OVERLAY, Dual;
    routed: ROUTED, V6;
}

/// A client on node 1 that may reach pods of tier `good` only.
struct Shop<'a, 'lab> {
    cluster: &'a Cluster<'lab>,
    client: Client,
    good: [(Client, Backend); 2],
    bad: [(Client, Backend); 2],
}

const GOOD: &str = "{app: web, tier: good}";
const BAD: &str = "{app: web, tier: bad}";

impl<'a, 'lab> Shop<'a, 'lab> {
    fn open(cluster: &'a Cluster<'lab>) -> Self {
        let pod = |name, node, labels| cluster.backend_pod(name, node, labels, "[]", &[8080]);
        let shop = Self {
            cluster,
            client: cluster.client("client", 1, "{app: client}"),
            good: [pod("good-1", 1, GOOD), pod("good-2", 2, GOOD)],
            bad: [pod("bad-1", 1, BAD), pod("bad-2", 2, BAD)],
        };
        shop.may("{tier: good}");
        shop
    }

    fn may(&self, labels: &str) {
        self.cluster.scene.policy(
            "client",
            &format!(
                "podSelector: {{matchLabels: {{app: client}}}}, policyTypes: [Egress], \
                 egress: [{{to: [{{podSelector: {{matchLabels: {labels}}}}}]}}]"
            ),
        );
        self.cluster.settle();
    }

    /// A flow of each protocol to each of these backends.
    fn streams(&self, to: SocketAddr, backends: &[&Backend]) -> Vec<Stream> {
        let mut streams: Vec<Stream> = Vec::new();
        for protocol in Protocol::BOTH {
            for backend in backends {
                let mut found = None;
                for _ in 0..100 {
                    found = Stream::open(&self.client, &self.cluster.ports, to, protocol)
                        .filter(|stream| stream.backend == backend.name);
                    if found.is_some() {
                        break;
                    }
                }
                let missing = || panic!("no {protocol:?} flow to {}", backend.name);
                streams.push(found.unwrap_or_else(missing));
            }
        }
        streams
    }

    fn cut(&self) -> u64 {
        let count = |reason| self.cluster.lab.counted(&self.client.pod, Direction::Egress, reason);
        count(Reason::PolicyCut) + count(Reason::Policy) + count(Reason::ServiceMixed)
    }

    /// These flows get no answer any more: packets of theirs are dropped, and then some more.
    fn are_cut(&self, streams: &[&Stream]) {
        let more = |what| {
            let before = self.cut();
            let enough = 3 * streams.len() as u64;
            eventually(what, || self.cut() >= before + enough);
        };
        more("the flows are cut");
        let before: Vec<u64> = streams.iter().map(|stream| stream.answered()).collect();
        more("the flows stay cut");
        for (stream, before) in streams.iter().zip(before) {
            let (backend, protocol) = (&stream.backend, stream.protocol);
            assert_eq!(stream.answered(), before, "the {protocol:?} flow to {backend} goes on");
        }
    }

    fn web(&self, name: &str, backends: &[&Backend]) -> (Service, SocketAddr) {
        let mut service = self.cluster.service(name).port(80, 8080);
        for backend in backends {
            service.add(backend, &[8080], "ready: true");
        }
        self.cluster.put(&service);
        self.cluster.settle();
        let to = SocketAddr::new(*service.cluster_ips.last().unwrap(), 80);
        (service, to)
    }
}

fn established_flows(cluster: &Cluster<'_>) {
    let shop = Shop::open(cluster);
    allowed_flows_lose_nothing(&shop);
    relabelled_backends_are_cut(&shop);
    flows_to_a_backend_that_has_gone(&shop);
    a_denied_backend_that_has_gone(&shop);
    new_backends_in_either_order(&shop);
}

fn allowed_flows_lose_nothing(shop: &Shop<'_, '_>) {
    let (cluster, bad) = (shop.cluster, [&shop.bad[0].1, &shop.bad[1].1]);
    let good = [&shop.good[0].1, &shop.good[1].1];
    let (mut service, to) = shop.web("lossless", &[good[0], good[1], bad[0]]);
    let streams = shop.streams(to, &good);
    for round in 0..10 {
        // Others come and go, in both orders, and with them whether the Service is mixed.
        let (comes, goes) = if round % 2 == 0 { (bad[1], bad[0]) } else { (bad[0], bad[1]) };
        service.drop_endpoint(goes);
        cluster.put(&service);
        cluster.scene.policy(
            "more",
            &format!(
                "podSelector: {{matchLabels: {{app: client}}}}, policyTypes: [Egress], \
                 egress: [{{ports: [{{port: {round}0}}]}}]"
            )
            .replace("port: 00", "port: 7"),
        );
        cluster.settle();
        streams.iter().for_each(Stream::moves);
        service.add(comes, &[8080], "ready: true");
        cluster.put(&service);
        cluster.settle();
        streams.iter().for_each(Stream::moves);
    }
    cluster.scene.remove_policy("more");
    cluster.settle();
    streams.into_iter().for_each(Stream::finish);
}

fn relabelled_backends_are_cut(shop: &Shop<'_, '_>) {
    let (cluster, good) = (shop.cluster, [&shop.good[0].1, &shop.good[1].1]);
    let (_, to) = shop.web("relabelled", &[good[0], good[1], &shop.bad[0].1]);
    let streams = shop.streams(to, &good);
    let to_backend = |name: &'static str| -> Vec<&Stream> {
        streams.iter().filter(|stream| stream.backend == name).collect()
    };
    let second = &shop.good[1].0.pod;
    for _ in 0..2 {
        cluster.scene.declare(second, BAD);
        cluster.settle();
        shop.are_cut(&to_backend("good-2"));
        to_backend("good-1").iter().for_each(|stream| stream.moves());
        cluster.scene.declare(second, GOOD);
        cluster.settle();
        streams.iter().for_each(Stream::moves);
    }
    shop.may("{tier: bad}");
    shop.are_cut(&streams.iter().collect::<Vec<_>>());
    shop.may("{app: web}");
    streams.iter().for_each(Stream::moves);
    shop.may("{tier: good}");
    streams.iter().for_each(Stream::moves);
}

/// What kube-proxy still translates by its old choice goes on as long as the pod itself is allowed,
/// unless nobody is who is left in the Service: then the flow cannot be told from one to them.
fn flows_to_a_backend_that_has_gone(shop: &Shop<'_, '_>) {
    let (cluster, good) = (shop.cluster, [&shop.good[0].1, &shop.good[1].1]);
    let bad = &shop.bad[0].1;
    for (name, left, goes_on) in [
        ("gone-none-left", vec![], true),
        ("gone-good-left", vec![good[1]], true),
        ("gone-both-left", vec![good[1], bad], true),
        ("gone-bad-left", vec![bad], false),
    ] {
        eprintln!("--- {name}");
        let (mut service, to) = shop.web(name, &[&left[..], &[good[0]]].concat());
        let streams = shop.streams(to, &[good[0]]);
        service.drop_endpoint(good[0]);
        cluster.tell_netpol(&service);
        cluster.settle();
        if goes_on {
            streams.iter().for_each(Stream::moves);
            cluster.tell_kube_proxy(&service);
            streams.iter().for_each(Stream::moves);
            // And no longer.
            cluster.scene.declare(&shop.good[0].0.pod, BAD);
            cluster.settle();
        }
        shop.are_cut(&streams.iter().collect::<Vec<_>>());
        cluster.scene.declare(&shop.good[0].0.pod, GOOD);
        cluster.settle();
    }
}

/// Packets that the kernel translates by an old choice do not reach a denied backend because the
/// Service has only allowed ones by now.
fn a_denied_backend_that_has_gone(shop: &Shop<'_, '_>) {
    let (cluster, good, bad) = (shop.cluster, &shop.good[0].1, &shop.bad[1].1);
    let (mut service, to) = shop.web("stale", &[good, bad]);
    let heard = bad.heard();
    // Without the last packets of earlier flows, which were cut.
    let dropped = || cluster.drops(std::slice::from_ref(&shop.client.pod));
    let before = dropped();
    let netns = &shop.client.pod.netns;
    let mut shots = volley::fire(netns, &cluster.ports, to, Protocol::Udp, 16);
    let unanswered = |shots: &mut [Shot]| {
        shots.iter_mut().for_each(Shot::poll);
        shots.iter().filter(|shot| shot.outcome.is_none()).count() as u64
    };
    eventually("some are answered and the others dropped", || {
        unanswered(&mut shots) == dropped() - before
    });
    let denied = unanswered(&mut shots);
    assert!(denied > 0 && denied < 16, "chosen by chance: {denied} of 16");
    service.drop_endpoint(bad);
    cluster.put(&service);
    cluster.settle();
    let before = dropped();
    shots.iter().filter(|shot| shot.outcome.is_none()).for_each(Shot::repeat);
    eventually("what is translated as before is dropped", || {
        assert_eq!(bad.heard(), heard, "a denied backend has received something");
        dropped() >= before + denied
    });
    // kube-proxy's care: now they are translated to whom it may reach.
    cluster.forget_udp(&service, bad);
    shots.iter().filter(|shot| shot.outcome.is_none()).for_each(Shot::repeat);
    eventually("what is translated anew is answered", || unanswered(&mut shots) == 0);
    assert_eq!(bad.heard(), heard, "a denied backend has received something");
}

/// Backends come and go while connections are opened all the time; sometimes kube-proxy hears of
/// it first and sometimes netpol.
fn new_backends_in_either_order(shop: &Shop<'_, '_>) {
    let (cluster, good) = (shop.cluster, &shop.good[1].1);
    let bad = [&shop.bad[0].1, &shop.bad[1].1];
    let (mut service, to) = shop.web("changing", &[good]);
    let heard = bad.map(Backend::heard);
    let netns = &shop.client.pod.netns;
    let mut shots = Vec::new();
    let mut fire = |n| {
        for protocol in Protocol::BOTH {
            shots.extend(volley::fire(netns, &cluster.ports, to, protocol, n));
        }
    };
    for round in 0..8 {
        if round % 4 < 2 {
            service.add(bad[round % 2], &[8080], "ready: true");
        } else {
            service.drop_endpoint(bad[round % 2]);
        }
        let proxy_first = round / 2 % 2 == round % 2;
        for step in [proxy_first, !proxy_first] {
            if step {
                cluster.tell_kube_proxy(&service);
            } else {
                cluster.tell_netpol(&service);
                cluster.settle();
            }
            fire(8);
        }
    }
    for (backend, heard) in bad.iter().zip(heard) {
        assert_eq!(backend.heard(), heard, "{} has received something", backend.name);
    }
    // Only the allowed one is left, and what it was chosen for was answered.
    let mut outcomes: Vec<_> = shots
        .iter_mut()
        .map(|shot| {
            shot.poll();
            shot.outcome.clone()
        })
        .collect();
    outcomes.retain(Option::is_some);
    assert!(outcomes.len() >= 16, "hardly anything was answered");
    assert!(outcomes.iter().all(|outcome| *outcome == Some(Ok(good.name.clone()))), "{outcomes:?}");
    drop(shots);
    cluster.expect(&shop.client, to, Protocol::Tcp, &[good], &[]);
}
