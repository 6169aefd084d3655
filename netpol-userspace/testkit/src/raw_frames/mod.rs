//! The parts of the raw frame fuzzer: a cluster whose pods are isolated in all manners, damaged
//! frames, and what another parser and the slow evaluator make of them.

pub mod headers;
pub mod mutate;
pub mod oracle;

use crate::generate::world::{Event, Size, World};

/// The pods on the node, each with policies of its own.
pub const LOCAL: [&str; 8] =
    ["closed", "ports", "peers", "open", "named", "inward", "outward", "ranges"];

/// The cluster of `cluster.yaml`.
pub fn world() -> World {
    let mut world = World::empty(Size::default());
    for text in include_str!("cluster.yaml").split("\n---\n") {
        let kind = text.lines().find_map(|line| line.strip_prefix("kind: ")).unwrap();
        let event = match kind {
            "Namespace" => Event::Namespace(serde_saphyr::from_str(text).unwrap()),
            "Pod" => Event::Pod(serde_saphyr::from_str(text).unwrap()),
            "NetworkPolicy" => Event::Policy(serde_saphyr::from_str(text).unwrap()),
            other => panic!("a {other} in the cluster"),
        };
        world.apply(&event);
    }
    world
}
