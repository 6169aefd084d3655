//! Endpoints whose pod is not simply the object of its name: pods that have ended, successors of
//! the same name, and interfaces that may be one of several pods'.

use netpol_compile::{Compiler, EndpointId, EndpointSets, SetId, Step};
use netpol_model::{Change, Direction, Pod};
use netpol_testkit::objects::{judge, name, pod, policy, put_pod, put_policy};

const ONE: EndpointId = EndpointId(1);
const FROM_B: &str = r#"{"podSelector": {"matchLabels": {"app": "a"}},
    "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "b"}}}],
                 "ports": [{"port": "web"}]}]}"#;
const FROM_ALL: &str = r#"{"podSelector": {"matchLabels": {"app": "a"}}, "ingress": [{}]}"#;
const OF_C: &str = r#"{"podSelector": {"matchLabels": {"app": "c"}}, "policyTypes": ["Egress"]}"#;

fn of(labels: &str, address: &str) -> Pod {
    model(&pod("x/a", labels, address, "web=TCP:80"))
}

fn model(object: &k8s_openapi::api::core::v1::Pod) -> Pod {
    match put_pod(object) {
        Change::Pod(pod) => pod,
        other => panic!("{other:?}"),
    }
}

/// A pod x/b, and `spec` as policy x/p.
fn compiler(spec: &str) -> Compiler {
    let mut compiler = Compiler::new();
    compiler.apply_all([
        put_pod(&pod("x/b", "app=b", "10.0.0.3", "")),
        put_policy(&policy("x/p", spec)),
    ]);
    compiler
}

fn admits_b(compiler: &Compiler) -> bool {
    judge(compiler, 1, Direction::Ingress, "10.0.0.3", "tcp:80")
}

fn admits_others(compiler: &Compiler) -> bool {
    judge(compiler, 1, Direction::Ingress, "10.0.0.9", "tcp:80")
}

#[test]
fn a_pod_is_judged_as_it_was_last_seen_by_the_policies_of_now() {
    let endings = [
        vec![Change::PodGone(name("x/a"), None)],
        vec![Change::Pod(Pod { finished: true, ..of("app=other", "10.0.0.1") })],
        // A successor of its name.
        vec![Change::Pod(Pod { uid: "u-2".into(), ..of("app=other", "10.0.0.7") })],
        vec![
            Change::PodGone(name("x/a"), None),
            Change::Pod(Pod { uid: "u-2".into(), ..of("app=other", "10.0.0.7") }),
        ],
    ];
    for ending in endings {
        let mut compiler = compiler(FROM_B);
        compiler.apply(Change::Pod(of("app=z", "10.0.0.1")));
        compiler.set_holders(ONE, name("x/a"), vec![of("app=z", "10.0.0.1")]);
        assert!(admits_others(&compiler), "no policy selects it");
        // Its labels are followed while it runs.
        compiler.apply(Change::Pod(of("app=a", "10.0.0.1")));
        assert!(admits_b(&compiler) && !admits_others(&compiler));
        for change in ending.clone() {
            let plan = compiler.apply(change);
            assert!(!plan.iter().any(|step| matches!(step, Step::SetEndpoint(..))), "{plan:?}");
        }
        assert!(admits_b(&compiler) && !admits_others(&compiler), "{ending:?}");
        compiler.apply(put_policy(&policy("x/p", FROM_ALL)));
        assert!(admits_others(&compiler));
        compiler.apply(put_policy(&policy("x/p", FROM_B)));
        assert!(admits_b(&compiler) && !admits_others(&compiler));
        assert_eq!(compiler.endpoint_policies(ONE, Direction::Ingress), [name("x/p")]);
        compiler.apply(Change::PolicyGone(name("x/p")));
        assert!(admits_others(&compiler));
    }
}

/// As after a restart: all that is known of a pod is what was written down.
#[test]
fn a_pod_without_an_object_is_judged_by_what_is_remembered_of_it() {
    let mut compiler = compiler(FROM_B);
    compiler.set_holders(ONE, name("x/a"), vec![of("app=a", "10.0.0.1")]);
    assert!(admits_b(&compiler) && !admits_others(&compiler));
    // Its address says nothing of it any more: another pod has it, which may be a peer.
    compiler.apply(put_pod(&pod("x/next", "app=b", "10.0.0.1", "")));
    assert!(judge(&compiler, 1, Direction::Ingress, "10.0.0.1", "tcp:80"));
    compiler.remove_endpoint(ONE);
    assert_eq!(compiler.tables().rows.len(), 0);
}

#[test]
fn one_of_several_pods_may_do_what_all_of_them_may() {
    let (a, c) = (of("app=a", "10.0.0.1"), model(&pod("y/c", "app=c", "10.0.0.4", "")));
    let same = model(&pod("x/a2", "app=a", "10.0.0.2", "web=TCP:80"));
    let open = model(&pod("x/open", "app=open", "10.0.0.5", ""));
    let sets = |compiler: &Compiler| compiler.endpoint_sets(ONE).expect("the endpoint");
    let mut compiler = compiler(FROM_B);
    compiler.apply(put_policy(&policy("y/q", OF_C)));
    // Replicas may the same.
    compiler.set_holders(ONE, name("?/v1"), vec![a.clone(), same.clone(), open.clone()]);
    assert!(admits_b(&compiler) && !admits_others(&compiler));
    assert_eq!(sets(&compiler).egress, SetId::NONE);
    // Each direction by the pods that are isolated in it.
    compiler.set_holders(ONE, name("?/v1"), vec![a.clone(), c.clone()]);
    assert!(admits_b(&compiler));
    assert!(!judge(&compiler, 1, Direction::Egress, "10.0.0.9", "tcp:80"));
    // Where two differ, nothing.
    compiler.apply(put_policy(&policy("y/all", r#"{"podSelector": {}, "ingress": [{}]}"#)));
    assert!(!admits_b(&compiler) && !admits_others(&compiler));
    // Changes of any of them are followed, in whichever namespace.
    compiler.apply(Change::PolicyGone(name("y/all")));
    assert!(admits_b(&compiler));
    compiler.apply(Change::Pod(Pod { labels: open.labels.clone(), ..c.clone() }));
    assert_eq!(sets(&compiler).egress, SetId::NONE);
    compiler.apply(Change::Pod(Pod { labels: open.labels.clone(), ..a }));
    compiler.set_holders(ONE, name("?/v1"), vec![c, open]);
    assert_eq!(sets(&compiler), EndpointSets { ingress: SetId::NONE, egress: SetId::NONE });
}

#[test]
fn nobody_may_do_nothing() {
    let mut compiler = compiler(FROM_ALL);
    compiler.set_holders(ONE, name("?/v1"), vec![]);
    for direction in [Direction::Ingress, Direction::Egress] {
        assert!(!judge(&compiler, 1, direction, "10.0.0.3", "tcp:80"));
    }
    assert!(compiler.is_restricted(ONE));
    // It turns out to be a pod that no policy selects.
    let open = model(&pod("x/open", "app=open", "10.0.0.5", ""));
    compiler.apply(Change::Pod(open.clone()));
    compiler.set_holders(ONE, name("x/open"), vec![open]);
    assert!(!compiler.is_restricted(ONE));
    assert!(admits_others(&compiler));
}
