//! What plans contain and leave out, what survives a restart, and what happens at the limits.

use netpol_testkit::tables::TakeStep as _;
use std::sync::Arc;

use netpol_compile::ids::{ClassKey, Ids};
use netpol_compile::{
    ClassId, Compiler, EndpointId, EndpointSets, Plan, Problem, RuleView, SetId, Step, Tables,
};
use netpol_model::{Change, Direction};
use netpol_testkit::objects::{judge, name, namespace, pod, policy};
use netpol_testkit::objects::{put_namespace, put_pod, put_policy};

const ONE: EndpointId = EndpointId(1);
const TWO: EndpointId = EndpointId(2);

const DENY: &str = r#"{"podSelector": {"matchLabels": {"app": "a"}}}"#;
const FROM_B: &str = r#"{"podSelector": {"matchLabels": {"app": "a"}},
    "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "b"}}}],
                 "ports": [{"port": 80}]}]}"#;
const FROM_B_MORE: &str = r#"{"podSelector": {"matchLabels": {"app": "a"}},
    "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "b"}}}],
                 "ports": [{"port": 80, "endPort": 90}]}]}"#;
const FROM_C: &str = r#"{"podSelector": {"matchLabels": {"app": "a"}},
    "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "c"}}}]}]}"#;
const FROM_ALL: &str = r#"{"podSelector": {"matchLabels": {"app": "a"}}, "ingress": [{}]}"#;

/// Two endpoints, x/a1 and x/a2, with equal labels, and two other pods; `spec` as policy x/p.
fn compiler(spec: &str) -> Compiler {
    let mut compiler = Compiler::new();
    compiler.apply_all([
        put_pod(&pod("x/a1", "app=a", "10.0.0.1", "")),
        put_pod(&pod("x/a2", "app=a", "10.0.0.2", "")),
        put_pod(&pod("x/b", "app=b", "10.0.0.3", "")),
        put_pod(&pod("x/c", "app=c", "10.0.0.4", "")),
        put_policy(&policy("x/p", spec)),
    ]);
    compiler.set_endpoints([(ONE, name("x/a1")), (TWO, name("x/a2"))]);
    compiler
}

fn rejudged(plan: &Plan) -> Vec<EndpointId> {
    let lists = plan.iter().filter_map(|step| match step {
        Step::Rejudge(endpoints) => Some(endpoints.clone()),
        _ => None,
    });
    lists.flatten().collect()
}

fn carry_out(plan: &Plan, tables: &mut Tables) {
    for step in plan {
        tables.take_step(step).expect("a step within the rules");
    }
}

#[test]
fn equal_endpoints_share_a_set_and_rows() {
    let tables = compiler(FROM_B).tables();
    assert_eq!(tables.endpoints[&ONE], tables.endpoints[&TWO]);
    assert_ne!(tables.endpoints[&ONE].ingress, SetId::NONE);
    assert_eq!(tables.endpoints[&ONE].egress, SetId::NONE);
    assert_eq!(tables.rows.len(), 1);
    assert_eq!(tables.classes.len(), 1, "only pod b can be told from the others");
}

#[test]
fn an_isolated_endpoint_without_rules_has_a_set_without_rows() {
    let tables = compiler(DENY).tables();
    assert_ne!(tables.endpoints[&ONE].ingress, SetId::NONE);
    assert!(tables.rows.is_empty() && tables.classes.is_empty());
    assert!(!judge(&compiler(DENY), 1, Direction::Ingress, "10.0.0.3", "tcp:80"));
}

#[test]
fn nobody_is_judged_again_when_nothing_is_taken_away() {
    for (from, to) in [(DENY, FROM_B), (FROM_B, FROM_B_MORE), (FROM_C, FROM_ALL), (DENY, FROM_ALL)]
    {
        let mut compiler = compiler(from);
        let plan = compiler.apply(put_policy(&policy("x/p", to)));
        assert_eq!(rejudged(&plan), [], "{from} -> {to}");
        let plan = compiler.apply(put_policy(&policy("x/p", from)));
        assert_eq!(rejudged(&plan), [ONE, TWO], "{to} -> {from}");
    }
}

#[test]
fn isolation_begins_with_a_new_judgement_and_ends_without() {
    let mut compiler = compiler(DENY);
    let plan = compiler.apply(Change::PolicyGone(name("x/p")));
    let open = EndpointSets { ingress: SetId::NONE, egress: SetId::NONE };
    assert_eq!(plan, [Step::SetEndpoint(ONE, open), Step::SetEndpoint(TWO, open)]);
    let plan = compiler.apply(put_policy(&policy("x/p", DENY)));
    assert_eq!(rejudged(&plan), [ONE, TWO]);
    // A policy that isolates and allows everything takes nothing away.
    compiler.apply(Change::PolicyGone(name("x/p")));
    let plan = compiler.apply(put_policy(&policy("x/p", FROM_ALL)));
    assert_eq!(rejudged(&plan), []);
}

#[test]
fn a_pod_that_loses_its_label_or_goes_is_judged_again() {
    let changes = [
        put_pod(&pod("x/b", "app=d", "10.0.0.3", "")),
        put_pod(&pod("x/b", "app=b", "10.0.0.30", "")),
        Change::PodGone(name("x/b"), None),
    ];
    for change in changes {
        let mut compiler = compiler(FROM_B);
        let plan = compiler.apply(change.clone());
        assert_eq!(rejudged(&plan), [ONE, TWO], "{change:?}");
        assert!(!judge(&compiler, 1, Direction::Ingress, "10.0.0.3", "tcp:80"));
    }
}

#[test]
fn a_late_delete_of_a_former_pod_changes_nothing() {
    let mut compiler = compiler(FROM_B);
    assert_eq!(compiler.apply(Change::PodGone(name("x/b"), Some("former".into()))), []);
}

#[test]
fn what_no_local_policy_mentions_makes_no_plan() {
    let mut compiler = compiler(FROM_B);
    let changes = [
        put_pod(&pod("x/d", "app=d", "10.0.0.9", "web=TCP:80")),
        put_pod(&pod("x/c", "app=c,more=labels", "10.0.0.4", "")),
        put_policy(&policy("x/other", r#"{"podSelector": {"matchLabels": {"app": "z"}}}"#)),
        put_policy(&policy("y/other", r#"{"ingress": [{"from": [{"namespaceSelector": {}}]}]}"#)),
        put_namespace(&namespace("x", "team=red")),
        // The same again, and what was never there.
        put_policy(&policy("x/p", FROM_B)),
        Change::PolicyGone(name("x/never")),
        Change::PodGone(name("x/never"), None),
    ];
    for change in changes {
        assert_eq!(compiler.apply(change.clone()), [], "{change:?}");
    }
}

#[test]
fn a_pod_deleted_by_force_is_enforced_until_its_endpoint_goes() {
    let mut compiler = compiler(FROM_B);
    assert_eq!(compiler.apply(Change::PodGone(name("x/a1"), None)), []);
    assert!(!judge(&compiler, 1, Direction::Ingress, "10.0.0.4", "tcp:80"));
    compiler.apply(put_policy(&policy("x/p", FROM_C)));
    assert!(judge(&compiler, 1, Direction::Ingress, "10.0.0.4", "tcp:80"));
    assert_eq!(compiler.endpoint_policies(ONE, Direction::Ingress), [name("x/p")]);
    compiler.remove_endpoint(ONE);
    assert!(!compiler.tables().endpoints.contains_key(&ONE));
}

#[test]
fn an_endpoint_of_a_pod_not_yet_known_is_isolated_once_it_is() {
    let mut compiler = compiler(DENY);
    compiler.set_endpoint(EndpointId(3), name("x/new"));
    assert!(judge(&compiler, 3, Direction::Ingress, "10.0.0.4", "tcp:80"));
    let plan = compiler.apply(put_pod(&pod("x/new", "app=a", "10.0.0.7", "")));
    assert_eq!(rejudged(&plan), [EndpointId(3)]);
    assert!(!judge(&compiler, 3, Direction::Ingress, "10.0.0.4", "tcp:80"));
}

#[test]
fn an_endpoint_can_become_another_pods() {
    let mut compiler = compiler(DENY);
    compiler.set_endpoint(ONE, name("x/b"));
    assert!(judge(&compiler, 1, Direction::Ingress, "10.0.0.4", "tcp:80"));
    compiler.set_endpoint(ONE, name("x/a1"));
    assert!(!judge(&compiler, 1, Direction::Ingress, "10.0.0.4", "tcp:80"));
}

/// After a restart with the same objects the datapath has nothing to do, in whatever order they
/// come.
#[test]
fn a_restart_finds_the_same_numbers() {
    let mut before = compiler(FROM_B);
    // Numbers that a fresh compiler would give differently.
    before.apply(put_policy(&policy("x/p", FROM_C)));
    before.apply(put_policy(&policy("x/q", FROM_B)));
    let text = serde_json::to_string(&before.export_ids()).expect("serializable");

    let mut after = Compiler::new();
    after.adopt(&serde_json::from_str(&text).expect("readable"));
    after.apply_all([
        put_policy(&policy("x/q", FROM_B)),
        put_policy(&policy("x/p", FROM_C)),
        put_pod(&pod("x/c", "app=c", "10.0.0.4", "")),
        put_pod(&pod("x/a2", "app=a", "10.0.0.2", "")),
        put_pod(&pod("x/b", "app=b", "10.0.0.3", "")),
        put_pod(&pod("x/a1", "app=a", "10.0.0.1", "")),
    ]);
    after.set_endpoint(TWO, name("x/a2"));
    after.set_endpoint(ONE, name("x/a1"));
    assert_eq!(after.tables(), before.tables());
    assert_eq!(after.forget_adopted(), []);
    assert_eq!(after.tables(), before.tables());
}

/// As releases have written numbers that wrote the whole text of each class.
const EARLIER_NUMBERS: &str = r#"{
    "sets": {
        "[[{\"Pods\":{\"Pods\":[[],[]]}},{\"Ports\":[[[],[[53,53]],[]],[[6,\"http\"]]]}]]": 30,
        "[[{\"Pods\":{\"PodsIn\":[\"x\",[{\"In\":[\"app\",[\"b\"]]}]]}},{\"Ports\":[[[[80,80]],[],[]],[]]}],[{\"Block\":[{\"Cidr\":\"10.0.0.0/8\"},[{\"Cidr\":\"10.1.0.0/16\"}]]},\"Everything\"],[{\"Block\":[{\"Cidr\":\"192.0.2.0/24\"},[]]},\"Everything\"]]": 20,
        "[]": 1
    },
    "classes": {
        "[{\"Cidr\":\"10.0.0.0/8\"},{\"Cidr\":\"10.1.0.0/16\"}]": 33,
        "[{\"Cidr\":\"10.0.0.0/8\"}]": 22,
        "[{\"Cidr\":\"192.0.2.0/24\"}]": 66,
        "[{\"Pods\":[[],[]]},{\"Cidr\":\"10.0.0.0/8\"}]": 44,
        "[{\"PodsIn\":[\"x\",[{\"In\":[\"app\",[\"b\"]]}]]},{\"Pods\":[[],[]]},{\"Cidr\":\"10.0.0.0/8\"},{\"Port\":[6,\"http\",8080]}]": 55
    },
    "next_set": 40,
    "next_class": 70
}"#;

/// An upgrade is no reason to write everything anew.
#[test]
fn numbers_that_an_earlier_release_has_written_are_kept() {
    let mut compiler = Compiler::new();
    compiler.adopt(&serde_json::from_str(EARLIER_NUMBERS).expect("readable"));
    compiler.apply_all([
        put_pod(&pod("x/a", "app=a", "10.0.0.1", "")),
        put_pod(&pod("x/b", "app=b", "10.0.0.3", "http=TCP:8080")),
        put_policy(&policy(
            "x/p",
            r#"{"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Ingress", "Egress"],
                "ingress": [
                    {"from": [{"podSelector": {"matchLabels": {"app": "b"}}}],
                     "ports": [{"port": 80}]},
                    {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
                              {"ipBlock": {"cidr": "192.0.2.0/24"}}]}],
                "egress": [{"to": [{"namespaceSelector": {}}],
                            "ports": [{"port": "http"}, {"port": 53, "protocol": "UDP"}]}]}"#,
        )),
    ]);
    compiler.set_endpoint(ONE, name("x/a"));
    let tables = compiler.tables();
    let sets = tables.endpoints[&ONE];
    assert_eq!((sets.ingress, sets.egress), (SetId(20), SetId(30)));
    let class = |block: &str| tables.classes[&block.parse().expect("a block")].0;
    assert_eq!(
        ["10.0.0.0/8", "10.1.0.0/16", "10.0.0.1/32", "10.0.0.3/32", "192.0.2.0/24"].map(class),
        [22, 33, 44, 55, 66]
    );
    // And so they are by this one, as it writes them.
    let ids = compiler.export_ids();
    let text = serde_json::to_string(&ids).expect("serializable");
    assert_eq!(serde_json::from_str::<Ids>(&text).expect("readable"), ids);
    assert_eq!(ids.classes[&ClassKey::from("192.0.2.0/24")], 66);
    assert_eq!(compiler.forget_adopted(), []);
}

/// What the source says before it has said everything is taken in object by object, in any order.
#[test]
fn a_restart_finds_the_same_numbers_whatever_is_read_first() {
    let mut before = compiler(FROM_B);
    before.apply(put_policy(&policy("x/p", FROM_C)));
    before.apply(put_policy(&policy("x/q", FROM_B)));
    let objects = [
        put_pod(&pod("x/c", "app=c", "10.0.0.4", "")),
        put_pod(&pod("x/a2", "app=a", "10.0.0.2", "")),
        put_policy(&policy("x/q", FROM_B)),
        // Not yet as it was when the agent ended.
        put_pod(&pod("x/b", "app=c", "10.0.0.4", "")),
        put_pod(&pod("x/b", "app=b", "10.0.0.3", "")),
        put_policy(&policy("x/p", FROM_C)),
        put_pod(&pod("x/a1", "app=a", "10.0.0.1", "")),
    ];
    for n_first in 0..=objects.len() {
        let mut after = Compiler::new();
        after.adopt(&before.export_ids());
        for object in &objects[..n_first] {
            after.enqueue([object.clone()]);
        }
        after.apply_all(objects[n_first..].to_vec());
        after.set_endpoint(TWO, name("x/a2"));
        after.set_endpoint(ONE, name("x/a1"));
        assert_eq!(after.tables(), before.tables(), "{n_first} taken in");
        assert_eq!(after.forget_adopted(), []);
    }
}

/// Each number is named once, before anybody could use it, and none is left out.
#[test]
fn new_numbers_are_those_that_were_not_there_before() {
    let mut compiler = compiler(FROM_B);
    let mut noted = compiler.new_ids();
    for rule in [FROM_C, FROM_B, FROM_C] {
        let before = compiler.export_ids();
        compiler.apply(put_policy(&policy("x/p", rule)));
        let (now, new) = (compiler.export_ids(), compiler.new_ids());
        assert_eq!((new.next_set, new.next_class), (now.next_set, now.next_class));
        let is_new = |(key, id): &(&Arc<str>, &u16)| before.sets.get(*key) != Some(*id);
        assert!(new.sets.iter().eq(now.sets.iter().filter(is_new)), "{new:?}");
        let is_new = |(key, id): &(&ClassKey, &u32)| before.classes.get(*key) != Some(*id);
        assert!(new.classes.iter().eq(now.classes.iter().filter(is_new)), "{new:?}");
        noted.sets.extend(new.sets);
        noted.classes.extend(new.classes);
        // The closed set has its number always.
        let in_use = now.sets.iter().filter(|(_, id)| **id != 1);
        assert!(in_use.clone().all(|(key, id)| noted.sets.get(key) == Some(id)), "{noted:?}");
        assert!(now.classes.iter().all(|(key, id)| noted.classes.get(key) == Some(id)));
        assert!(compiler.new_ids().sets.is_empty() && compiler.new_ids().classes.is_empty());
    }
}

/// Objects changed while the agent was away: what the endpoints still use keeps its meaning until
/// they are switched.
#[test]
fn a_restart_into_another_world_keeps_old_sets_whole() {
    let before = compiler(FROM_B);
    let old = before.tables();
    let mut after = Compiler::new();
    after.adopt(&before.export_ids());
    after.apply_all([
        put_pod(&pod("x/a1", "app=a", "10.0.0.1", "")),
        put_pod(&pod("x/a2", "app=a", "10.0.0.2", "")),
        // Pod b has another address, and the policy is about pod c now.
        put_pod(&pod("x/b", "app=b", "10.0.0.5", "")),
        put_pod(&pod("x/c", "app=c", "10.0.0.4", "")),
        put_policy(&policy("x/p", FROM_C)),
    ]);
    after.set_endpoints([(ONE, name("x/a1")), (TWO, name("x/a2"))]);
    let new = after.tables();
    let old_set = old.endpoints[&ONE].ingress;
    assert_ne!(new.endpoints[&ONE].ingress, old_set, "the old number means the old content");

    // What the datapath holds after it took over rows and addresses, but no endpoint yet.
    let between = Tables { endpoints: old.endpoints.clone(), ..new.clone() };
    let ask = |tables: &Tables, remote: &str| {
        tables.judge(ONE, Direction::Ingress, remote.parse().expect("an address"), 6, 80)
    };
    assert!(ask(&between, "10.0.0.5"), "the old policy on the new pods");
    assert!(!ask(&between, "10.0.0.4"));
    assert!(ask(&new, "10.0.0.4") && !ask(&new, "10.0.0.5"));

    let mut tables = new.clone();
    carry_out(&after.forget_adopted(), &mut tables);
    assert_eq!(tables, after.tables());
    assert!(tables.rows.keys().all(|(set, _)| *set != old_set));
    assert!(ask(&tables, "10.0.0.4") && !ask(&tables, "10.0.0.5"));
}

#[test]
fn numbers_of_a_former_run_that_cannot_be_read_are_left_alone() {
    let mut ids = compiler(FROM_B).export_ids();
    ids.sets = [("of another version".into(), 2)].into();
    ids.classes = [("of another version".into(), 2)].into();
    (ids.next_set, ids.next_class) = (2, 2);
    let mut after = Compiler::new();
    after.adopt(&ids);
    after.apply_all([
        put_pod(&pod("x/a1", "app=a", "10.0.0.1", "")),
        put_pod(&pod("x/b", "app=b", "10.0.0.3", "")),
        put_policy(&policy("x/p", FROM_B)),
    ]);
    after.set_endpoint(ONE, name("x/a1"));
    let tables = after.tables();
    assert!(tables.rows.keys().all(|(set, class)| *set != SetId(2) && *class != ClassId(2)));
    assert!(!tables.rows.is_empty());
    assert_eq!(after.forget_adopted(), []);
}

#[test]
fn a_freed_number_is_not_given_out_at_once() {
    let mut compiler = compiler(FROM_B);
    let mut seen = vec![compiler.tables().endpoints[&ONE].ingress];
    for spec in [FROM_C, FROM_ALL, FROM_B_MORE, FROM_B] {
        compiler.apply(put_policy(&policy("x/p", spec)));
        let set = compiler.tables().endpoints[&ONE].ingress;
        assert!(!seen.contains(&set), "{set:?} again after {seen:?}");
        seen.push(set);
    }
}

#[test]
fn without_set_numbers_endpoints_are_closed_and_reported() {
    let mut compiler = Compiler::with_limits(2, 100);
    compiler.apply_all([
        put_pod(&pod("x/a1", "app=a", "10.0.0.1", "")),
        put_pod(&pod("x/b", "app=b", "10.0.0.3", "")),
        put_policy(&policy("x/p", FROM_B)),
        put_policy(&policy(
            "x/q",
            r#"{"podSelector": {"matchLabels": {"app": "b"}},
            "ingress": [{}]}"#,
        )),
    ]);
    compiler.set_endpoint(ONE, name("x/a1"));
    assert_eq!(compiler.problems(), []);
    compiler.set_endpoint(TWO, name("x/b"));
    assert_eq!(compiler.problems(), [Problem::SetsExhausted(vec![name("x/b")])]);
    assert!(!judge(&compiler, 2, Direction::Ingress, "10.0.0.1", "tcp:80"));
    assert!(judge(&compiler, 1, Direction::Ingress, "10.0.0.3", "tcp:80"), "others keep theirs");
    // A number that becomes free is used, but not before the datapath has nothing under it.
    compiler.remove_endpoint(ONE);
    compiler.apply_all([]);
    assert_eq!(compiler.problems(), [Problem::SetsExhausted(vec![name("x/b")])]);
    assert!(!compiler.reuse_numbers().is_empty());
    assert_eq!(compiler.problems(), []);
    assert!(compiler.reuse_numbers().is_empty());
    assert!(judge(&compiler, 2, Direction::Ingress, "10.0.0.1", "tcp:80"));
}

#[test]
fn without_class_numbers_addresses_are_closed_and_reported() {
    let mut compiler = Compiler::with_limits(100, 3);
    compiler.apply_all([
        put_pod(&pod("x/a1", "app=a", "10.0.0.1", "")),
        put_policy(&policy(
            "x/p",
            r#"{"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8",
                "except": ["10.1.0.0/16", "10.2.0.0/16"]}}]}]}"#,
        )),
    ]);
    compiler.set_endpoint(ONE, name("x/a1"));
    assert_eq!(compiler.problems(), [Problem::ClassesExhausted(1)]);
    for (remote, expected) in [("10.3.0.1", true), ("10.1.0.1", false), ("10.2.0.1", false)] {
        assert_eq!(judge(&compiler, 1, Direction::Ingress, remote, "tcp:80"), expected, "{remote}");
    }
}

#[test]
fn a_class_number_that_becomes_free_is_used_at_the_next_occasion() {
    let block = |except: &str| {
        let spec = format!(
            r#"{{"ingress": [{{"from": [{{"ipBlock": {{"cidr": "10.0.0.0/8",
                "except": [{except}]}}}}, {{"ipBlock": {{"cidr": "10.2.0.1/32"}}}}]}}]}}"#
        );
        put_policy(&policy("x/p", &spec))
    };
    let mut compiler = Compiler::with_limits(100, 4);
    compiler.apply_all([
        put_pod(&pod("x/a1", "app=a", "10.0.0.1", "")),
        block(r#""10.1.0.0/16", "10.2.0.0/16""#),
    ]);
    compiler.set_endpoint(ONE, name("x/a1"));
    assert_eq!(compiler.problems(), [Problem::ClassesExhausted(1)]);
    assert!(!judge(&compiler, 1, Direction::Ingress, "10.2.0.1", "tcp:80"), "closed, not open");
    compiler.apply(block(r#""10.2.0.0/16""#));
    compiler.reuse_numbers();
    assert_eq!(compiler.problems(), []);
    assert!(judge(&compiler, 1, Direction::Ingress, "10.2.0.1", "tcp:80"));
}

/// Two classes that became one needed a third number, which there was not.
#[test]
fn what_is_lost_for_want_of_a_class_number_is_judged_again() {
    let mut compiler = Compiler::with_limits(100, 2);
    compiler.apply_all([
        put_pod(&pod("x/a1", "app=a", "10.0.0.1", "")),
        put_pod(&pod("x/b", "app=b,team=red", "10.0.0.3", "")),
        put_pod(&pod("x/c", "app=c", "10.0.0.4", "")),
        put_policy(&policy("x/p", FROM_B)),
        put_policy(&policy(
            "x/q",
            r#"{"podSelector": {"matchLabels": {"app": "c"}},
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"team": "red"}}}]}]}"#,
        )),
    ]);
    compiler.set_endpoints([(ONE, name("x/a1")), (TWO, name("x/c"))]);
    assert!(judge(&compiler, 1, Direction::Ingress, "10.0.0.3", "tcp:80"));
    let plan = compiler.apply(Change::PolicyGone(name("x/q")));
    assert!(!judge(&compiler, 1, Direction::Ingress, "10.0.0.3", "tcp:80"));
    assert_eq!(rejudged(&plan), [ONE]);
    compiler.reuse_numbers();
    assert!(judge(&compiler, 1, Direction::Ingress, "10.0.0.3", "tcp:80"));
}

#[test]
fn a_pod_that_a_block_allows_anyway_loses_nothing_with_its_label() {
    let mut compiler = compiler(
        r#"{"podSelector": {"matchLabels": {"app": "a"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "b"}}},
                                  {"ipBlock": {"cidr": "10.0.0.0/8"}}]}]}"#,
    );
    let plan = compiler.apply(put_pod(&pod("x/b", "app=d", "10.0.0.3", "")));
    assert!(plan.iter().any(|step| matches!(step, Step::ClearClass(_))), "{plan:?}");
    assert_eq!(rejudged(&plan), []);
}

#[test]
fn an_address_claimed_twice_is_reported_and_goes_on_to_the_other() {
    let mut compiler = compiler(FROM_B);
    let mut twin = pod("x/twin", "app=c", "10.0.0.3", "");
    twin.metadata.creation_timestamp =
        serde_json::from_str("\"2026-01-01T00:00:00Z\"").expect("a time");
    compiler.apply(put_pod(&twin));
    assert!(!judge(&compiler, 1, Direction::Ingress, "10.0.0.3", "tcp:80"));
    let problems = compiler.problems();
    assert_eq!(
        problems,
        [Problem::SharedAddress {
            address: "10.0.0.3".parse().expect("an address"),
            owner: name("x/twin"),
            others: vec![name("x/b")],
        }]
    );
    assert_eq!(
        problems[0].to_string(),
        "address 10.0.0.3 is claimed by pod x/twin and also by x/b; selectors see it as \
         x/twin's, the youngest; check the status of the others"
    );
    // The other pod is made again and is the younger one now.
    let mut again = pod("x/b", "app=b", "10.0.0.3", "");
    again.metadata.creation_timestamp =
        serde_json::from_str("\"2026-01-02T00:00:00Z\"").expect("a time");
    compiler.apply(put_pod(&again));
    assert!(judge(&compiler, 1, Direction::Ingress, "10.0.0.3", "tcp:80"));
    compiler.apply(Change::PodGone(name("x/twin"), None));
    assert!(judge(&compiler, 1, Direction::Ingress, "10.0.0.3", "tcp:80"));
    assert_eq!(compiler.problems(), []);
}

#[test]
fn rules_in_words() {
    let mut compiler = Compiler::new();
    compiler.apply_all([
        put_pod(&pod("x/a1", "app=a", "10.0.0.1", "web=TCP:8080")),
        put_pod(&pod("x/b", "app=b", "10.0.0.3", "")),
        put_policy(&policy("x/p", FROM_B)),
        put_policy(&policy("x/q", FROM_B)),
        put_policy(&policy(
            "x/r",
            r#"{"ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "red"}}},
                {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}],
                "ports": [{"port": "web"}, {"protocol": "UDP", "port": 53, "endPort": 54}]}]}"#,
        )),
    ]);
    compiler.set_endpoint(ONE, name("x/a1"));
    let view = |peer: &str, ports: &str, policies: &[&str]| RuleView {
        peer: peer.to_owned(),
        ports: ports.to_owned(),
        policies: policies.iter().map(|policy| name(policy)).collect(),
    };
    let ports = r#"TCP "web" (8080), UDP 53-54"#;
    assert_eq!(
        compiler.rules(ONE, Direction::Ingress),
        [
            view("10.0.0.0/8 except 10.1.0.0/16", ports, &["x/r"]),
            view("all pods in namespaces team=red", ports, &["x/r"]),
            view("pods app=b in namespace x", "TCP 80", &["x/p", "x/q"]),
        ]
    );
    assert_eq!(compiler.rules(ONE, Direction::Egress), []);
    // Of a rule that has too many peers to be told in full, those that are within the limit are.
    assert_eq!(
        compiler.first_rules(ONE, Direction::Ingress, 2),
        (
            vec![
                view("all pods in namespaces team=red", ports, &["x/r"]),
                view("pods app=b in namespace x", "TCP 80", &["x/p", "x/q"]),
            ],
            1
        )
    );
    let class = compiler.tables().class_of("10.0.0.3".parse().expect("an address"));
    assert_eq!(compiler.class_names(class), ["10.0.0.0/8", "pods app=b in namespace x"]);
    assert!(compiler.class_names(ClassId::NONE).is_empty());
}

/// One pod's set is to be edited to another content, and another pod wants what it was.
#[test]
fn a_set_that_somebody_else_wants_as_it_was_is_not_edited() {
    let block = |number: usize| format!(r#"{{"ipBlock": {{"cidr": "20.0.{number}.0/24"}}}}"#);
    let put = |id: &str, role: &str, n_blocks: usize| {
        let list: Vec<String> = (0..n_blocks).map(block).collect();
        let list = list.join(",");
        let spec = format!(
            r#"{{"podSelector": {{"matchLabels": {{"role": "{role}"}}}},
                "ingress": [{{"from": [{list}]}}]}}"#
        );
        put_policy(&policy(id, &spec))
    };
    let (a, b) = (EndpointId(1), EndpointId(2));
    let mut compiler = Compiler::new().with_sets_edited_from(0);
    compiler.apply_all([
        put_pod(&pod("x/a", "role=a", "10.0.0.1", "")),
        put_pod(&pod("x/b", "role=b", "10.0.0.2", "")),
        put("x/p", "a", 3),
        put("x/q", "b", 2),
    ]);
    compiler.set_endpoints([(a, name("x/a")), (b, name("x/b"))]);
    compiler.apply_all([put("x/p", "a", 4), put("x/q", "b", 3)]);
    for (endpoint, n_allowed) in [(a, 4), (b, 3)] {
        for number in 0..5 {
            let remote = format!("20.0.{number}.1");
            let is_allowed = judge(&compiler, endpoint.0, Direction::Ingress, &remote, "tcp:80");
            assert_eq!(is_allowed, number < n_allowed, "{endpoint:?} from {remote}");
        }
    }
}
