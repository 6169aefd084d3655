//! Jobs of several namespaces that are about the same blocks, pods and sets: each case as small as it
//! gets.

use netpol_compile::{Compiler, EndpointId};
use netpol_model::{Change, Direction};
use netpol_testkit::objects::{judge, name, pod, policy, put_pod, put_policy};
use netpol_testkit::tables::TakeStep as _;

const X: EndpointId = EndpointId(1);
const Y: EndpointId = EndpointId(2);

fn peers(peers: &[String]) -> String {
    format!(r#"{{"podSelector": {{}}, "ingress": [{{"from": [{}]}}]}}"#, peers.join(","))
}

fn block(cidr: &str) -> String {
    format!(r#"{{"ipBlock": {{"cidr": "{cidr}"}}}}"#)
}

fn except(cidr: &str, except: &str) -> String {
    format!(r#"{{"ipBlock": {{"cidr": "{cidr}", "except": ["{except}"]}}}}"#)
}

fn blocks(net: u8, n: usize) -> Vec<String> {
    (0..n).map(|i| block(&format!("{net}.{}.{}.0/30", i / 250, i % 250))).collect()
}

/// Addresses below those of pods: they go first.
fn hosts(net: u8, n: usize) -> Vec<String> {
    (0..n).map(|i| block(&format!("{net}.{}.{}.0/32", i / 250, i % 250))).collect()
}

fn put(id: &str, list: &[String]) -> Change {
    put_policy(&policy(id, &peers(list)))
}

fn in_from(compiler: &Compiler, endpoint: EndpointId, remote: &str) -> bool {
    judge(compiler, endpoint.0, Direction::Ingress, remote, "tcp:80")
}

fn two() -> Compiler {
    let mut compiler = Compiler::new();
    compiler.apply_all([
        put_pod(&pod("x/a", "", "10.0.0.1", "")),
        put_pod(&pod("y/b", "", "10.0.0.2", "")),
        put_pod(&pod("y/c", "role=friend", "10.0.0.3", "")),
    ]);
    compiler.set_endpoints([(X, name("x/a")), (Y, name("y/b"))]);
    compiler
}

fn finish(compiler: &mut Compiler) {
    while compiler.has_work() {
        compiler.slice(100);
    }
}

/// The endpoint goes while its new set gets its rows.
#[test]
fn rows_of_a_set_that_died() {
    for at in 0..80 {
        let mut compiler = two();
        compiler.enqueue([put("x/p", &blocks(20, 2_000))]);
        for _ in 0..at {
            compiler.slice(100);
        }
        compiler.enqueue_endpoint_removal(X);
        finish(&mut compiler);
    }
}

/// Very much that is read together is looked at a part at a time: so many peers in each slice.
#[test]
fn what_is_much_is_looked_at_a_part_at_a_time() {
    let mut compiler = two();
    compiler.enqueue([put("x/p", &blocks(20, 6_000)), put("x/q", &blocks(21, 6_000))]);
    let mut n_seen = 0;
    for n_slices in 1.. {
        compiler.slice(100);
        let n_atoms = compiler.size().atoms;
        assert!(n_atoms <= 100 * n_slices, "{n_atoms} blocks after {n_slices} slices");
        n_seen = n_seen.max(n_atoms);
        if !compiler.has_work() {
            break;
        }
        let under_way = compiler.under_way();
        assert!(under_way.iter().all(|job| job.done <= 100 * n_slices), "{under_way:?}");
    }
    assert_eq!(n_seen, 12_000);
    assert!(in_from(&compiler, X, "20.23.249.1") && in_from(&compiler, X, "21.23.249.1"));
}

/// The same where the endpoint goes meanwhile: nothing is left.
#[test]
fn what_is_gathered_for_an_endpoint_that_goes() {
    for at in 0..40 {
        let mut compiler = two().with_sets_gathered_from(0);
        compiler.enqueue([
            put("x/p", &blocks(20, 300)),
            put("x/q", &[except("20.0.0.0/8", "20.0.1.0/24")]),
        ]);
        for _ in 0..at {
            compiler.slice(30);
        }
        compiler.enqueue_endpoint_removal(X);
        finish(&mut compiler);
        assert_eq!((compiler.size().atoms, compiler.tables().classes.len()), (0, 0), "after {at}");
    }
}

/// What is edited while it is gathered is in force together with what was read with it.
#[test]
fn what_is_edited_while_it_is_gathered() {
    for at in 0..40 {
        let mut compiler = two().with_sets_gathered_from(0).with_sets_edited_from(0);
        compiler.apply_all([put("x/p", &blocks(30, 5)), put("x/q", &blocks(31, 5))]);
        compiler.enqueue([put("x/p", &blocks(20, 200)), put("x/q", &blocks(21, 200))]);
        for _ in 0..at {
            compiler.slice(30);
        }
        compiler.enqueue([put("x/p", &blocks(22, 200)), put("x/q", &blocks(23, 200))]);
        let allowed = |compiler: &Compiler| {
            [30, 31, 20, 21, 22, 23].map(|net| in_from(compiler, X, &format!("{net}.0.3.1")))
        };
        let together = |first: usize| [0, 1, 2, 3, 4, 5].map(|i| i / 2 == first);
        while compiler.has_work() {
            compiler.slice(30);
            let now = allowed(&compiler);
            assert!((0..3).any(|first| together(first) == now), "after {at}: {now:?}");
        }
        assert_eq!(allowed(&compiler), together(2));
    }
}

/// A pod gets what another one has, of which one part is long: it is gathered and is the same set.
#[test]
fn what_is_gathered_is_the_set_that_is_there() {
    let mut compiler = two();
    compiler.apply_all([put("x/p", &blocks(20, 6_000))]);
    let n_sets = compiler.size().sets;
    compiler.enqueue([put("y/p", &blocks(20, 6_000))]);
    finish(&mut compiler);
    assert_eq!(compiler.endpoint_sets(X), compiler.endpoint_sets(Y));
    assert_eq!((compiler.size().sets, compiler.size().atoms), (n_sets, 6_000));
    compiler.enqueue([Change::PolicyGone(name("x/p")), Change::PolicyGone(name("y/p"))]);
    finish(&mut compiler);
    assert_eq!((compiler.size().sets, compiler.size().atoms), (1, 0));
}

/// Another job gives the surrounding block its class before the excepted one has an entry.
#[test]
fn an_except_that_is_pending() {
    let mut compiler = two().with_sets_edited_from(0);
    compiler.apply_all([put("x/p", &blocks(20, 100)), put("y/p", &[block("30.0.0.0/8")])]);
    // Y's job has 30.0.0.0/8 before it.
    let mut list = blocks(30, 1_000);
    list.push(block("30.0.0.0/7"));
    list.push(block("30.0.0.0/8"));
    compiler.enqueue([put("y/p", &list)]);
    compiler.slice(100);
    // X's set is edited in place.
    let mut list = blocks(21, 10);
    list.push(except("30.0.0.0/8", "30.200.0.0/16"));
    compiler.enqueue([put("x/q", &list)]);
    while compiler.has_work() {
        compiler.slice(10);
        assert!(!in_from(&compiler, X, "30.200.1.1"), "neither before nor after");
    }
    assert!(in_from(&compiler, X, "30.100.1.1"));
}

/// Somebody gets a set that is being edited, with what it has given up.
#[test]
fn a_set_under_way_that_another_wants() {
    let mut compiler = two().with_sets_edited_from(0);
    compiler.apply_all([put("x/p", &blocks(20, 300)), put("x/q", &blocks(21, 3_000))]);
    compiler.enqueue([Change::PolicyGone(name("x/q"))]);
    compiler.slice(10);
    compiler.enqueue([put("y/p", &blocks(20, 300))]);
    compiler.slice(10);
    let mut was_closed = false;
    while compiler.has_work() {
        compiler.slice(10);
        let sets = compiler.endpoint_sets(Y);
        was_closed |= sets.is_some_and(|sets| sets.ingress.0 != 0);
        if was_closed {
            assert!(!in_from(&compiler, Y, "21.11.249.1"), "Y's policies never allowed it");
        }
    }
    assert!(was_closed);
}

fn friends(id: &str) -> Change {
    put(id, &[r#"{"podSelector": {"matchLabels": {"role": "friend"}}}"#.to_owned()])
}

/// A pod that is nobody's peer any more waits for somebody's edit that has its address.
#[test]
fn a_pod_that_loses_its_labels() {
    let mut compiler = two().with_sets_edited_from(64);
    compiler.apply_all([put("x/p", &blocks(20, 5_000)), friends("y/p")]);
    assert!(in_from(&compiler, Y, "10.0.0.3"));
    // Holds 10.0.0.3, and what else is there.
    let mut list = hosts(1, 4_000);
    list.push(block("10.0.0.0/8"));
    compiler.enqueue([put("x/q", &list)]);
    compiler.slice(100);
    compiler.enqueue([put_pod(&pod("y/c", "role=none", "10.0.0.3", ""))]);
    let mut n = 0;
    while in_from(&compiler, Y, "10.0.0.3") {
        compiler.slice(100);
        n += 1;
    }
    assert!(n < 5, "in force after {n} slices");
}

/// A block that a policy allows no more waits for somebody else's edit, and nobody says so.
#[test]
fn a_block_that_is_revoked() {
    let mut compiler = two().with_sets_edited_from(0);
    compiler.apply_all([put("x/p", &blocks(20, 5_000)), put("y/p", &blocks(30, 3))]);
    let mut list = blocks(22, 4_000);
    list.push(block("30.0.0.0/8"));
    compiler.enqueue([put("x/q", &list)]);
    compiler.slice(100);
    compiler.enqueue([put("y/p", &blocks(30, 2))]);
    let mut n = 0;
    while in_from(&compiler, Y, "30.0.2.1") {
        compiler.slice(100);
        n += 1;
        assert!(
            n < 5 || !compiler.is_settled("y") || !in_from(&compiler, Y, "30.0.2.1"),
            "said to be settled after {n} slices, and is not"
        );
    }
    assert!(n < 5, "in force after {n} slices");
}

/// Two namespaces that write again and again leave it to each other to take a class away.
fn slices_of_two_who_always_write(late: usize, at: usize) -> usize {
    let mut compiler = Compiler::new().with_sets_edited_from(64);
    compiler.apply_all([
        put_pod(&pod("w/a", "", "10.0.0.1", "")),
        put_pod(&pod("x/a", "", "10.0.0.4", "")),
        put_pod(&pod("y/b", "", "10.0.0.2", "")),
        put_pod(&pod("y/c", "role=friend", "10.0.0.3", "")),
        put("w/p", &blocks(20, 300)),
        put("x/p", &blocks(21, 300)),
        friends("y/p"),
    ]);
    let w = EndpointId(3);
    compiler.set_endpoints([(X, name("x/a")), (Y, name("y/b")), (w, name("w/a"))]);
    let mut n = 0;
    let mut n_jobs: usize = 0;
    let mut is_gone = false;
    while n < 400 && (!is_gone || in_from(&compiler, Y, "10.0.0.3")) {
        for who in ["w", "x"] {
            // They begin at different moments.
            if !compiler.is_busy(who) && (who == "w" || n > late) {
                n_jobs += 1;
                let net = if who == "w" { 1 } else { 3 };
                let mut list = hosts((net + n_jobs % 4 / 2) as u8, 40);
                list.push(except("10.0.0.0/8", &format!("10.200.{}.0/24", n_jobs % 200)));
                compiler.enqueue([put(&format!("{who}/q"), &list)]);
            }
        }
        if n == at {
            compiler.enqueue([put_pod(&pod("y/c", "role=none", "10.0.0.3", ""))]);
            is_gone = true;
        }
        compiler.slice(10);
        n += 1;
    }
    n - at
}

#[test]
fn two_who_always_write() {
    for (late, at) in (4..16).flat_map(|late| (100..124).step_by(3).map(move |at| (late, at))) {
        let n = slices_of_two_who_always_write(late, at);
        assert!(n < 200, "in force after {n} slices: {late}, {at}");
    }
}

fn role(name: &str, address: &str, n: usize) -> Change {
    let role = if n.is_multiple_of(2) { "role=friend" } else { "role=none" };
    put_pod(&pod(name, role, address, ""))
}

/// Somebody who never stops keeps nobody from knowing that what they wrote is in force.
#[test]
fn what_there_was_at_a_mark_is_done_while_others_go_on() {
    let mut compiler = two();
    compiler.apply_all([friends("y/p")]);
    compiler.enqueue([put("x/p", &blocks(20, 2_000))]);
    compiler.slice(100);
    compiler.enqueue([put("y/q", &blocks(30, 3)), role("y/c", "10.0.0.3", 1)]);
    let mark = compiler.mark();
    let mut n = 0;
    while !compiler.has_done(&mark) {
        n += 1;
        compiler.enqueue([put("x/p", &blocks(20, 2_000 + n)), role("y/d", "10.0.0.4", n)]);
        compiler.slice(100);
        assert!(n < 200, "never done");
    }
    assert!(compiler.is_behind(), "there is always something");
    assert!(in_from(&compiler, X, "20.7.249.1") && in_from(&compiler, Y, "30.0.2.1"));
    assert!(!in_from(&compiler, Y, "10.0.0.3"));
}

#[test]
fn pods_that_always_change_keep_no_policy_waiting() {
    let mut compiler = two();
    compiler.apply_all([friends("y/p")]);
    compiler.enqueue([put("x/p", &blocks(20, 500))]);
    for n in 0.. {
        compiler.enqueue([role("y/c", "10.0.0.3", n)]);
        compiler.slice(100);
        if in_from(&compiler, X, "20.1.249.1") {
            break;
        }
        assert!(n < 60, "they do");
    }
}

/// A pod waits for its own namespace and its own addresses.
#[test]
fn a_new_pod_is_settled_while_others_change() {
    let mut compiler = two();
    compiler.apply_all([friends("y/p")]);
    compiler.enqueue([put("x/p", &blocks(20, 2_000))]);
    compiler.enqueue([role("y/new", "10.0.0.9", 0)]);
    let is_settled = |compiler: &Compiler| {
        compiler.is_pod_settled(compiler.cluster().pod(&name("y/new")).expect("it is known"))
    };
    assert!(!is_settled(&compiler));
    let mut n = 0;
    while !is_settled(&compiler) {
        n += 1;
        compiler.enqueue([role("z/other", "10.0.0.4", n)]);
        compiler.slice(10);
        assert!(n < 10, "it waits for others");
    }
    assert!(in_from(&compiler, Y, "10.0.0.9"));
    assert!(compiler.is_busy("x"));
}

/// A compiler whose last turn was everybody's, since a pod has changed.
fn after_everybodys_turn(pod: Change) -> Compiler {
    let mut compiler = two();
    compiler.apply_all([friends("y/p")]);
    compiler.enqueue([pod]);
    while compiler.is_behind() {
        compiler.slice(100);
    }
    compiler
}

/// A change of a Service that somebody else's job takes along is done.
#[test]
fn a_mark_passes_whoever_has_done_what_there_was() {
    let mut compiler = after_everybodys_turn(role("y/c", "10.0.0.3", 1));
    compiler.enqueue_node_addresses(["10.9.9.9".parse().expect("an address")].into());
    compiler.enqueue([put("x/p", &blocks(20, 3))]);
    let mark = compiler.mark();
    finish(&mut compiler);
    assert!(compiler.has_done(&mark), "there is nothing left to do");
}

const FROM_ROLES: &str = r#"{"namespaceSelector": {}, "podSelector": {"matchLabels": {"role": "#;

/// A pod that has changed is everybody's, also where somebody's new policy is about it.
#[test]
fn a_pod_that_changes_just_before_somebody_writes_about_it() {
    let mut compiler = after_everybodys_turn(role("y/d", "10.0.0.4", 1));
    assert!(in_from(&compiler, Y, "10.0.0.3"));
    compiler.enqueue([put_pod(&pod("y/c", "role=none", "10.0.0.3", ""))]);
    let mark = compiler.mark();
    let mut list = hosts(1, 4_000);
    list.push(format!(r#"{FROM_ROLES}"none"}}}}}}"#));
    compiler.enqueue([put("x/q", &list)]);
    let mut n = 0;
    while in_from(&compiler, Y, "10.0.0.3") {
        compiler.slice(100);
        n += 1;
        assert!(!compiler.has_done(&mark) || !in_from(&compiler, Y, "10.0.0.3"), "said to be done");
    }
    assert!(n < 5, "in force after {n} slices");
}

/// The same where what they wrote is gathered: a pod that changes meanwhile is everybody's still.
#[test]
fn a_pod_that_changes_while_something_about_it_is_gathered() {
    for at in 0..12 {
        let mut compiler = two().with_sets_gathered_from(0);
        compiler.apply_all([friends("y/p")]);
        assert!(in_from(&compiler, Y, "10.0.0.3"));
        let mut list = hosts(1, 400);
        list.push(format!(r#"{FROM_ROLES}"none"}}}}}}"#));
        compiler.enqueue([put("x/q", &list)]);
        for _ in 0..at {
            compiler.slice(100);
        }
        compiler.enqueue([put_pod(&pod("y/c", "role=none", "10.0.0.3", ""))]);
        let mark = compiler.mark();
        let is_settled = |compiler: &Compiler| {
            compiler.is_pod_settled(compiler.cluster().pod(&name("y/c")).expect("it is known"))
        };
        let mut n = 0;
        while in_from(&compiler, Y, "10.0.0.3") {
            assert!(!compiler.has_done(&mark), "said to be done, after {at}");
            assert!(!is_settled(&compiler), "said to be settled, after {at} and {n}");
            compiler.slice(100);
            n += 1;
        }
        assert!(n < 4, "in force after {n} slices, after {at}");
        finish(&mut compiler);
        assert!(in_from(&compiler, X, "10.0.0.3"));
    }
}

/// The last policy with a port's name goes, and another comes while it is tidied up.
#[test]
fn a_port_name_that_is_forgotten_and_wanted_again() {
    let to_web = r#"{"podSelector": {}, "policyTypes": ["Egress"],
        "egress": [{"ports": [{"protocol": "TCP", "port": "web"}]}]}"#;
    for at in 0..40 {
        let mut compiler = two();
        let servers = (0..20)
            .map(|i| put_pod(&pod(&format!("z/s{i}"), "", &format!("10.1.0.{i}"), "web=TCP:8080")));
        compiler.apply_all(servers);
        compiler.apply_all([put_policy(&policy("x/p", to_web))]);
        let allows = |compiler: &Compiler, endpoint: EndpointId, i: usize| {
            judge(compiler, endpoint.0, Direction::Egress, &format!("10.1.0.{i}"), "tcp:8080")
        };
        assert!((0..20).all(|i| allows(&compiler, X, i)));
        compiler.enqueue([Change::PolicyGone(name("x/p"))]);
        for _ in 0..at {
            compiler.slice(3);
        }
        compiler.enqueue([put_policy(&policy("y/p", to_web))]);
        finish(&mut compiler);
        assert!((0..20).all(|i| allows(&compiler, Y, i)), "after {at} slices");
        compiler.enqueue([Change::PolicyGone(name("y/p"))]);
        finish(&mut compiler);
        assert_eq!(compiler.classes_in_use().count(), 0, "after {at} slices");
    }
}

/// An endpoint that is told anew before its first sets are in force.
#[test]
fn an_endpoint_that_is_put_twice_is_told_once() {
    let mut compiler = two();
    let mut tables = compiler.tables();
    let new = EndpointId(7);
    let its = || match put_pod(&pod("y/c", "role=friend", "10.0.0.3", "")) {
        Change::Pod(pod) => vec![pod],
        _ => Vec::new(),
    };
    compiler.enqueue_holders(new, name("y/c"), its());
    compiler.enqueue_holders(new, name("y/c"), its());
    while compiler.has_work() {
        for step in compiler.slice(100) {
            tables.take_step(&step).expect("it fits");
        }
    }
    assert_eq!(tables, compiler.tables());
}

/// What many write and delete without end is tidied up as fast as they do.
#[test]
fn what_nobody_uses_does_not_grow_without_end() {
    const N: usize = 8;
    let mut compiler = Compiler::new();
    for i in 0..N {
        compiler.apply(put_pod(&pod(&format!("n{i}/a"), "", &format!("10.0.0.{i}"), "")));
        let id = EndpointId(u16::try_from(1 + i).expect("small"));
        compiler.set_endpoints([(id, name(&format!("n{i}/a")))]);
    }
    let mut tables = compiler.tables();
    let mut sizes = Vec::new();
    let mut n_written = 0;
    let mut is_there = [false; N];
    while n_written < 1_000 {
        for (i, is_there) in is_there.iter_mut().enumerate() {
            if !compiler.is_busy(&format!("n{i}")) {
                n_written += 1;
                *is_there = !*is_there;
                let id = format!("n{i}/p");
                let net = u8::try_from(20 + i).expect("small");
                compiler.enqueue([match *is_there {
                    true => put(&id, &blocks(net, 200)),
                    false => Change::PolicyGone(name(&id)),
                }]);
            }
        }
        for step in compiler.slice(100) {
            tables.take_step(&step).expect("it fits");
        }
        sizes.push(tables.rows.len());
    }
    let most = sizes.iter().max().expect("some");
    assert!(*most < 4 * N * 200, "{most} rows, the live ones are {} at most", N * 200);
}

/// Somebody new wants a set that somebody else makes ready, together with a lot more.
#[test]
fn a_set_that_another_makes_ready_among_many() {
    let mut compiler = two();
    compiler.apply_all([put_pod(&pod("x/big", "role=big", "10.0.0.9", ""))]);
    compiler.set_endpoints([(EndpointId(9), name("x/big"))]);
    let few = r#"{"podSelector": {"matchExpressions": [{"key": "role", "operator": "DoesNotExist"}]},
        "ingress": [{"from": [{"ipBlock": {"cidr": "30.0.0.0/30"}}]}]}"#;
    let many = blocks(20, 5_000).join(",");
    let many = format!(
        r#"{{"podSelector": {{"matchLabels": {{"role": "big"}}}}, "ingress": [{{"from": [{many}]}}]}}"#
    );
    compiler.enqueue([put_policy(&policy("x/few", few)), put_policy(&policy("x/many", &many))]);
    compiler.slice(100);
    compiler.enqueue([put_policy(&policy("y/few", few))]);
    let mut n = 0;
    while compiler.is_busy("y") {
        compiler.slice(100);
        n += 1;
    }
    assert!(in_from(&compiler, Y, "30.0.0.1") && !in_from(&compiler, Y, "20.0.0.1"));
    assert!(n < 8, "in force after {n} slices");
}

/// One step of a job is short, also where its block has many others inside.
#[test]
fn rows_of_a_wide_block_come_in_slices() {
    let mut compiler = two();
    compiler.apply_all([put("x/p", &blocks(20, 5_000)), put("x/q", &[block("20.0.0.0/7")])]);
    let ports = r#"{"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "20.0.0.0/7"}}],
        "ports": [{"protocol": "TCP", "port": 80}]}]}"#;
    compiler.enqueue([put_policy(&policy("y/p", ports))]);
    while compiler.has_work() {
        let n = compiler.slice(100).len();
        assert!(n < 1_000, "{n} steps in a slice of 100");
    }
    assert!(in_from(&compiler, Y, "20.7.249.1"));
}

/// Who is closed because numbers have run out does not get what was edited since without the rest.
#[test]
fn an_edit_while_numbers_have_run_out() {
    let mut compiler = Compiler::with_limits(2, 1_000);
    compiler.apply_all([
        put_pod(&pod("x/a", "", "10.0.0.1", "")),
        put_pod(&pod("y/b", "", "10.0.0.2", "")),
    ]);
    compiler.set_endpoints([(X, name("x/a")), (Y, name("y/b"))]);
    compiler.apply_all([put("y/p", &blocks(30, 3))]);
    compiler.enqueue([put("x/p", &blocks(20, 3))]);
    finish(&mut compiler);
    let closed = compiler.endpoint_sets(X);
    assert!(!in_from(&compiler, X, "20.0.0.1") && compiler.is_restricted(X));
    compiler.enqueue([put("x/q", &blocks(30, 3))]);
    finish(&mut compiler);
    assert_eq!(compiler.endpoint_sets(X), closed, "a part of what its policies allow");
}
