//! clsact attachments: put back when somebody takes them off, and not doubled by a restart.

use std::net::IpAddr;
use std::process::Command;

use aya::programs::{SchedClassifier, TcAttachType};
use netpol_compile::{EndpointId, EndpointSets, SetId, Step, Tables};
use netpol_datapath::{AttachMode, Datapath, Link, LoadOptions, Part};
use netpol_testkit::rig::{ID, POD, Rig, in_node};

fn tc(arguments: &str) -> String {
    let output = Command::new("tc").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "tc {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Filters of netpol on the ingress and the egress hook of the pod's interface.
fn filters() -> [usize; 2] {
    ["ingress", "egress"]
        .map(|hook| tc(&format!("filter show dev pod0 {hook}")).matches("direct-action").count())
}

#[test]
fn filters_that_were_taken_off_are_put_back() {
    in_node(|| {
        let mut rig = Rig::with(&LoadOptions::default(), AttachMode::Clsact);
        rig.isolate(1, 2);
        assert_eq!(filters(), [1, 1]);
        let (repaired, failures) = rig.datapath.verify_attachments(Part::ALL, true);
        assert!(repaired.is_empty() && failures.is_empty(), "{repaired:?} {failures:?}");
        for harm in ["filter del dev pod0 egress", "qdisc del dev pod0 clsact"] {
            tc(harm);
            let (repaired, failures) = rig.datapath.verify_attachments(Part::ALL, true);
            assert!(failures.is_empty(), "{failures:?}");
            assert_eq!(repaired, [ID], "{harm}");
            assert_eq!(filters(), [1, 1], "{harm}");
        }
        // A part at a time, in turn, as the agent does it.
        tc("filter del dev pod0 egress");
        let mut part = Part::first_of(7);
        let repaired: Vec<EndpointId> = (0..7)
            .flat_map(|_| {
                part = part.next();
                rig.datapath.verify_attachments(part, false).0
            })
            .collect();
        assert_eq!((repaired, filters()), (vec![ID], [1, 1]), "by one of the parts");
    });
}

/// A guard comes with the first declared address, and stays when the interface has none any more; a
/// shield comes and goes with others on the link.
#[test]
fn guards_stay_without_addresses_and_shields_follow_the_link() {
    for mode in [AttachMode::Tcx, AttachMode::Clsact] {
        in_node(|| {
            let mut rig = Rig::with(&LoadOptions::default(), mode);
            let ifindex = rig.ifindex;
            let programs = || {
                let query = |hook| SchedClassifier::query_tcx("pod0", hook).unwrap().1.len();
                let tcx = [TcAttachType::Ingress, TcAttachType::Egress].map(query);
                if mode == AttachMode::Tcx { tcx } else { filters() }
            };
            rig.datapath.want_guards(true);
            let settle = |datapath: &mut Datapath| {
                while let Some((_, result)) = datapath.update_next_guard() {
                    result.unwrap();
                }
            };
            settle(&mut rig.datapath);
            assert_eq!(programs(), [1, 0]);
            rig.datapath.add_endpoint(ID, ifindex, []).unwrap();
            settle(&mut rig.datapath);
            assert_eq!(programs(), [1, 0], "it has lost its addresses");
            for (is_shared, expected) in [(true, [1, 1]), (false, [1, 0]), (true, [1, 1])] {
                rig.datapath.set_link(ID, Link { is_shared, ..Link::default() });
                settle(&mut rig.datapath);
                assert_eq!(programs(), expected, "shared: {is_shared}");
            }
            let (repaired, failures) = rig.datapath.verify_attachments(Part::ALL, true);
            assert!(repaired.is_empty() && failures.is_empty(), "{repaired:?} {failures:?}");
            rig.datapath.want_guards(false);
            settle(&mut rig.datapath);
            assert_eq!(programs(), [0, 0]);
        });
    }
}

#[test]
fn another_agent_replaces_the_filters_of_the_one_before() {
    in_node(|| {
        let mut rig = Rig::with(&LoadOptions::default(), AttachMode::Clsact);
        rig.isolate(1, 2);
        let before = tc("filter show dev pod0 egress");
        let Rig { datapath, ifindex, cleanup, .. } = rig;
        drop(datapath);
        assert_eq!(filters(), [1, 1], "they outlive the agent");
        let mut next =
            Datapath::open(&cleanup.0, &LoadOptions::default(), AttachMode::Clsact).unwrap();
        next.add_endpoint(ID, ifindex, [POD.parse::<IpAddr>().unwrap()]).unwrap();
        let sets = EndpointSets { ingress: SetId(1), egress: SetId(2) };
        let failures = next.apply(&[Step::SetEndpoint(ID, sets)]);
        assert!(failures.is_empty(), "{failures:?}");
        assert_eq!(filters(), [1, 1]);
        assert_ne!(tc("filter show dev pod0 egress"), before, "it is the new program");
    });
}

#[test]
fn a_change_of_the_attach_mode_leaves_nothing_of_the_other() {
    use aya::programs::{SchedClassifier, TcAttachType};
    let links = || {
        [TcAttachType::Ingress, TcAttachType::Egress]
            .map(|hook| SchedClassifier::query_tcx("pod0", hook).unwrap().1.len())
    };
    for (first, second) in
        [(AttachMode::Clsact, AttachMode::Tcx), (AttachMode::Tcx, AttachMode::Clsact)]
    {
        in_node(|| {
            let mut rig = Rig::with(&LoadOptions::default(), first);
            rig.isolate(1, 2);
            let Rig { datapath, ifindex, cleanup, .. } = rig;
            drop(datapath);
            let mut next = Datapath::open(&cleanup.0, &LoadOptions::default(), second).unwrap();
            next.add_endpoint(ID, ifindex, [POD.parse::<IpAddr>().unwrap()]).unwrap();
            let sets = EndpointSets { ingress: SetId(1), egress: SetId(2) };
            let failures = next.apply(&[Step::SetEndpoint(ID, sets)]);
            assert!(failures.is_empty(), "{failures:?}");
            let expected =
                if second == AttachMode::Tcx { ([0, 0], [1, 1]) } else { ([1, 1], [0, 0]) };
            assert_eq!((filters(), links()), expected, "{first:?} then {second:?}");
            let none = EndpointSets { ingress: SetId::NONE, egress: SetId::NONE };
            next.apply(&[Step::SetEndpoint(ID, none)]);
            assert_eq!((filters(), links()), ([0, 0], [0, 0]), "{first:?} then {second:?}");
        });
    }
}

/// Programs of an agent of another map layout stay until this one enforces, and no longer.
#[test]
fn what_another_version_attached_goes_once_this_one_enforces() {
    use aya::programs::{SchedClassifier, TcAttachType};
    let attached = || {
        let (_, programs) = SchedClassifier::query_tcx("pod0", TcAttachType::Egress).unwrap();
        programs.len()
    };
    in_node(|| {
        let mut rig = Rig::with(&LoadOptions::default(), AttachMode::Tcx);
        rig.isolate(1, 2);
        let Rig { datapath, ifindex, cleanup, .. } = rig;
        drop(datapath);
        let here = cleanup.0.links().parent().unwrap().to_owned();
        let other = here.with_file_name("v0");
        std::fs::rename(&here, &other).unwrap();
        let mut next =
            Datapath::open(&cleanup.0, &LoadOptions::default(), AttachMode::Tcx).unwrap();
        next.add_endpoint(ID, ifindex, [POD.parse::<IpAddr>().unwrap()]).unwrap();
        let sets = EndpointSets { ingress: SetId(1), egress: SetId(2) };
        let failures = next.apply(&[Step::SetEndpoint(ID, sets)]);
        assert!(failures.is_empty(), "{failures:?}");
        assert_eq!(attached(), 2, "both judge for as long as the other one may be needed");
        let tables = Tables { endpoints: [(ID, sets)].into(), ..Tables::default() };
        let failures = next.reconcile(&tables).unwrap();
        assert!(failures.is_empty(), "{failures:?}");
        assert_eq!(attached(), 1);
        assert!(!other.exists());
    });
}
