//! A small node as its agent tells of it, for tests of whatever reads that. Must never be part of a
//! release.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use crate::state::{
    DatapathStatus, DirectionView, EndpointView, Isolation, Rule, SourceStatus, State, Status,
    TableView, VERSION,
};

/// An endpoint that one policy isolates for ingress.
pub fn endpoint(namespace: &str, pod: &str, id: u16, ip: &str) -> EndpointView {
    EndpointView {
        namespace: namespace.into(),
        pod: pod.into(),
        uid: format!("uid-{id}"),
        interface: format!("veth{id}"),
        ifindex: 10 + u32::from(id),
        ips: vec![ip.parse().unwrap()],
        id,
        ingress: DirectionView::new(
            true,
            Arc::new(Isolation {
                policies: vec![format!("{namespace}/deny")],
                rules: vec![Rule {
                    peer: "pods app=client in namespace shop".into(),
                    ports: "TCP 80".into(),
                    policies: vec![format!("{namespace}/deny")],
                }],
                ..Isolation::default()
            }),
            2,
        ),
        egress: DirectionView::default(),
    }
}

/// A node that is ready, with these endpoints.
pub fn state(endpoints: Vec<EndpointView>) -> State {
    State {
        version: VERSION,
        node: "node-1".into(),
        pid: 42,
        bpffs: "/sys/fs/bpf/netpol".into(),
        status: Status {
            ready: true,
            source: SourceStatus {
                kind: "manifests".into(),
                synced: true,
                revision: 7,
                errors: vec![],
                watches: vec![],
            },
            datapath: DatapathStatus {
                endpoints: endpoints.len(),
                guarded: 0,
                applied_revision: 7,
                attach: "tcx".into(),
                errors: vec![],
                tables: vec![TableView { table: "rows".into(), used: 9, limit: 100, left_out: 2 }],
                notes: vec![],
                left_out_rules: [].into(),
                compiling: vec![],
            },
        },
        endpoints,
        isolations: vec![],
        classes: Arc::new([(3, vec!["10.0.0.0/8"])].into_iter().collect()),
        ids: netpol_compile::Ids::default(),
        remembered: vec![],
        placed: vec![],
        arrived: std::collections::BTreeMap::new(),
        place: String::new(),
    }
}
