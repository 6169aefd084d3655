//! What the agent tells about tables that are too small. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use netpol_common::layout;

use netpol_api::state::{ObjectError, TableView};
use netpol_compile::{Demand, EndpointId, LeftOut, Room, Scarce, Size};
use netpol_datapath::{FlowUse, Limits, Overflow, TableUse};
use netpol_model::{ObjectName, Str};

/// How many pods a message names.
const N_PODS: usize = 10;

/// Adds a line for each table that something did not fit into.
pub(crate) fn add_overflows(
    tables: &[TableUse],
    name: impl Fn(EndpointId) -> String,
    errors: &mut Vec<ObjectError>,
    notes: &mut Vec<String>,
) {
    for table in tables {
        let Some(overflow) = &table.overflow else { continue };
        let message = text(table, overflow, &name);
        let object = format!("table {}", table.table);
        if overflow.is_error {
            errors.push(ObjectError { object, message });
        } else {
            notes.push(format!("{object} {message}"));
        }
    }
}

fn text(table: &TableUse, overflow: &Overflow, name: impl Fn(EndpointId) -> String) -> String {
    let Overflow { n_left_out, examples, endpoints, consequence, remedy, .. } = overflow;
    let (used, limit) = (table.used, table.limit);
    let entries = if *n_left_out == 1 { "entry" } else { "entries" };
    let mut text = format!("has no room for {n_left_out} more {entries} ({used} of {limit} used)");
    if !examples.is_empty() {
        let more = if examples.len() as u64 == *n_left_out { "" } else { ", ..." };
        let _ = write!(text, ", {}{more}", examples.join(", "));
    }
    if !endpoints.is_empty() {
        let names: Vec<String> = endpoints.iter().take(N_PODS).map(|&id| name(id)).collect();
        let more = endpoints.len() - names.len();
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        let _ = write!(text, ", pods {}{more}", names.join(", "));
    }
    let _ = write!(text, ": {consequence}; {remedy}");
    text
}

/// What a pod has of the flow tables.
#[derive(Debug, Clone)]
pub(crate) struct PodFlows {
    /// Its name.
    pub(crate) name: String,
    /// What is counted.
    pub(crate) uses: FlowUse,
    /// Live flows that made room for its.
    pub(crate) caused: u64,
}

/// What is told when flows had to make room: who had more than there was room for, and whether
/// that was others' loss.
pub(crate) fn evictions(n_evicted: u64, pods: &[PodFlows]) -> String {
    let mut causes: Vec<&PodFlows> = pods.iter().filter(|pod| pod.caused > 0).collect();
    causes.sort_by_key(|pod| std::cmp::Reverse(pod.caused));
    let causes: Vec<String> = causes
        .iter()
        .take(N_CAUSES)
        .map(|PodFlows { name, uses, caused }| {
            format!(
                "{name} ({caused} made room for its; it holds {} of a share of {})",
                uses.held, uses.share
            )
        })
        .collect();
    let given: u64 = pods.iter().map(|pod| pod.uses.given).sum();
    let refused: u64 = pods.iter().map(|pod| pod.uses.refused).sum();
    let mut text = format!(
        "the flow tables are full: {n_evicted} live connections made room for others, {given} of \
         them for another pod's, none of which was within its pod's share"
    );
    if !causes.is_empty() {
        let _ = write!(text, "; most for {}", causes.join(", "));
    }
    if refused > 0 {
        let _ = write!(text, "; {refused} packets had a connection that found no room");
    }
    text.push_str(
        "; the next packet of a forgotten one is judged as if it opened the connection, so an \
         answer to what only its pod may open is dropped until the pod sends again; --flow-table-size makes them larger",
    );
    text
}

/// How many pods that message names.
const N_CAUSES: usize = 3;

/// What namespaces may share out among themselves in tables of this size. A part of each stays for
/// what is on its way from one to another, and for what is no namespace's alone: addresses of pods,
/// and rows for what others' policies tell apart.
pub(crate) fn room(limits: &Limits, namespace_memory: u64) -> Room {
    let part = |limit: u32, quarters: u64| u64::from(limit).saturating_mul(quarters).div_ceil(4);
    let nearly = |limit: u32| u64::from(limit - limit / 128);
    let tables = Demand {
        addresses: part(limits.addresses, 2),
        blocks: nearly(limits.blocks),
        rows: part(limits.rows, 3),
        intervals: nearly(limits.intervals),
        memory: u64::MAX,
    };
    Room { tables, namespace_memory }
}

/// How many objects of a namespace are named of which something is left out.
const N_OBJECTS: usize = 5;

/// Adds what is left out of policies, a line for each of the first ones of a namespace.
pub(crate) fn add_left_out(left_out: impl Iterator<Item = LeftOut>, errors: &mut Vec<ObjectError>) {
    let mut by_namespace: BTreeMap<Str, Vec<LeftOut>> = BTreeMap::new();
    for left_out in left_out {
        by_namespace.entry(left_out.policy.namespace.clone()).or_default().push(left_out);
    }
    for (namespace, policies) in by_namespace {
        errors.extend(policies.iter().take(N_OBJECTS).map(|left_out| ObjectError {
            object: format!("NetworkPolicy {}", left_out.policy),
            message: left_out_text(left_out),
        }));
        if let Some(others) = policies.get(N_OBJECTS..).filter(|others| !others.is_empty()) {
            let n_rules: usize = others.iter().map(|left_out| left_out.n_left_out).sum();
            errors.push(ObjectError {
                object: format!("namespace {namespace}"),
                message: format!(
                    "{n_rules} rules of {} more policies are left out likewise",
                    others.len()
                ),
            });
        }
    }
}

/// How many addresses and ports of Services, and how many backends of theirs, namespaces share out
/// among themselves.
pub(crate) fn service_room(limits: &Limits) -> [u64; 2] {
    // Lists of backends need their words side by side.
    let backends = u64::from(layout::MAX_BACKENDS - layout::MAX_BACKENDS / 16);
    [limits.services.into(), backends]
}

/// Adds which Services go without a place, likewise.
pub(crate) fn add_left_out_services(
    left_out: &BTreeMap<&ObjectName, usize>,
    errors: &mut Vec<ObjectError>,
) {
    let mut n_named: BTreeMap<&Str, usize> = BTreeMap::new();
    for (service, n_keys) in left_out {
        let n_named = n_named.entry(&service.namespace).or_default();
        *n_named += 1;
        if *n_named <= N_OBJECTS {
            errors.push(ObjectError {
                object: format!("Service {service}"),
                message: format!(
                    "{n_keys} of its addresses and ports have no place, since its namespace's \
                     Services would take more than their share of tables services and backends: \
                     what isolated pods send there passes only if their policies allow both the \
                     address and, after translation, the backend; have fewer ports and Services \
                     there (--limit services=N makes the table larger)"
                ),
            });
        }
    }
    for (namespace, n_named) in n_named.into_iter().filter(|(_, n_named)| *n_named > N_OBJECTS) {
        errors.push(ObjectError {
            object: format!("namespace {namespace}"),
            message: format!("{} more Services have no place likewise", n_named - N_OBJECTS),
        });
    }
}

/// How many rules are left out, by namespace.
pub(crate) fn left_out_rules(left_out: impl Iterator<Item = LeftOut>) -> BTreeMap<String, usize> {
    let mut by_namespace = BTreeMap::new();
    for LeftOut { policy, n_left_out, .. } in left_out {
        *by_namespace.entry(policy.namespace.to_string()).or_default() += n_left_out;
    }
    by_namespace
}

/// What there is to say of tables that have another size than they were told to have.
pub(crate) fn pinned_sizes(wanted: &Limits, limits: &Limits) -> Option<String> {
    let tables = wanted.beyond(limits);
    (!tables.is_empty()).then(|| {
        format!(
            "tables {} are smaller than --limit says: those that are there keep their size until \
             `netpol cleanup`, which ends enforcement until the agent has started again",
            tables.join(", ")
        )
    })
}

fn left_out_text(LeftOut { n_rules, n_left_out, scarce, .. }: &LeftOut) -> String {
    let why = match scarce {
        Scarce::NamespaceMemory => "compiling its namespace's policies would take more memory \
                                    than --max-namespace-memory allows"
            .to_owned(),
        Scarce::Table(table) => format!(
            "its namespace's policies would take more than their share of table {table} \
             (--limit {table}=N makes it larger)"
        ),
    };
    format!(
        "{n_left_out} of its {n_rules} rules are left out, so what they allow is denied: {why}; \
         name fewer blocks, peers and ports there"
    )
}

/// Whether all fit.
pub(crate) fn is_enough(tables: &[TableUse], size: &Size) -> bool {
    let is_short = |table: &TableUse| table.overflow.as_ref().is_some_and(|o| o.is_error);
    !tables.iter().any(is_short) && size.closed_endpoints == 0 && size.closed_blocks == 0
}

/// Every table for the state file, those of numbers included.
pub(crate) fn views(tables: &[TableUse], flow_tables: &[TableUse], size: &Size) -> Vec<TableView> {
    let of_numbers = [
        ("policy_sets", size.sets, size.last_set, size.closed_endpoints),
        // Class 1 is the closed one.
        ("classes", size.classes, size.last_class - 1, size.closed_blocks),
    ];
    let of_numbers = of_numbers.map(|(table, used, limit, left_out)| TableView {
        table: table.to_owned(),
        used: used as u64,
        limit: limit.into(),
        left_out: left_out as u64,
    });
    let in_kernel = tables.iter().chain(flow_tables).map(|table| TableView {
        table: table.table.to_owned(),
        used: table.used,
        limit: table.limit,
        left_out: table.overflow.as_ref().map_or(0, |overflow| overflow.n_left_out),
    });
    in_kernel.chain(of_numbers).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overflow(examples: &[&str], endpoints: &[u16]) -> TableUse {
        TableUse {
            table: "rows",
            used: 9,
            limit: 10,
            overflow: Some(Overflow {
                is_error: true,
                n_left_out: 3,
                examples: examples.iter().map(ToString::to_string).collect(),
                endpoints: endpoints.iter().map(|&id| EndpointId(id)).collect(),
                consequence: "it is denied",
                remedy: "have less",
            }),
        }
    }

    fn messages(table: TableUse) -> (Vec<ObjectError>, Vec<String>) {
        let (mut errors, mut notes) = (Vec::new(), Vec::new());
        add_overflows(&[table], |id| format!("shop/web-{}", id.0), &mut errors, &mut notes);
        (errors, notes)
    }

    #[test]
    fn says_which_table_what_it_means_and_what_to_do() {
        let (errors, notes) = messages(overflow(&["10.0.0.0/8"], &[1, 2]));
        assert_eq!(
            (errors[0].object.as_str(), errors[0].message.as_str(), notes.len()),
            (
                "table rows",
                "has no room for 3 more entries (9 of 10 used), 10.0.0.0/8, ..., pods shop/web-1, \
                 shop/web-2: it is denied; have less",
                0
            )
        );
        let many: Vec<u16> = (1..=12).collect();
        let (errors, _) = messages(overflow(&[], &many));
        assert!(errors[0].message.contains("shop/web-10 and 2 more: "), "{}", errors[0].message);
    }

    #[test]
    fn what_is_left_out_is_told_on_the_objects_and_no_line_for_each_of_many() {
        let left_out = (0..7).map(|number| LeftOut {
            policy: ObjectName::new("bulk", format!("p{number}")),
            n_rules: 9,
            n_left_out: 2,
            scarce: Scarce::Table("blocks"),
        });
        let mut errors = Vec::new();
        add_left_out(left_out, &mut errors);
        let objects: Vec<&str> = errors.iter().map(|error| error.object.as_str()).collect();
        assert_eq!((objects.len(), objects[0]), (6, "NetworkPolicy bulk/p0"));
        assert!(errors[0].message.starts_with("2 of its 9 rules are left out"), "{errors:?}");
        assert!(errors[0].message.contains("(--limit blocks=N makes it larger)"), "{errors:?}");
        assert_eq!(objects[5], "namespace bulk");
        assert_eq!(errors[5].message, "4 rules of 2 more policies are left out likewise");
    }

    #[test]
    fn evictions_come_with_who_caused_them() {
        let pod = |name: &str, caused, given| PodFlows {
            name: name.to_owned(),
            uses: FlowUse { held: 900, share: 100, given, ..FlowUse::default() },
            caused,
        };
        let pods = [pod("a/quiet", 0, 0), pod("a/busy", 7, 2), pod("a/flood", 5_000, 1)];
        let text = evictions(5_007, &pods);
        for part in [
            "5007 live connections made room for others, 3 of them for another pod's",
            "most for a/flood (5000 made room for its; it holds 900 of a share of 100), a/busy (7",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("quiet") && !text.contains("found no room"), "{text}");
    }

    #[test]
    fn what_is_no_fault_of_the_node_is_a_note() {
        let mut table = overflow(&[], &[]);
        table.overflow.iter_mut().for_each(|overflow| overflow.is_error = false);
        let (errors, notes) = messages(table);
        assert!(errors.is_empty());
        assert!(notes[0].starts_with("table rows has no room for 3 more"), "{notes:?}");
    }
}
