//! The node's metrics in the OpenMetrics text format, which Prometheus reads. Read from the maps
//! when asked; nothing is counted twice. Must never write to the maps.

use std::fmt;

use netpol_common::layout::{self, Reason};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use netpol_api::counters::AgentCounters;
use netpol_api::state::{EndpointView, State, Status};
use netpol_datapath::{FlowUse, Maps, observe};
use netpol_model::Direction;
use netpol_source::Watch;

/// Value of the `Content-Type` header to serve them with.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PodLabels {
    namespace: String,
    pod: String,
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabels {
    namespace: String,
    pod: String,
    direction: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NamespaceLabel {
    namespace: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PodLabel {
    namespace: String,
    pod: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabel {
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TableLabel {
    table: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabel {
    resource: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
    attach: String,
    source: String,
}

/// One endpoint's counters of one direction.
struct Counted<'a> {
    namespace: &'a str,
    pod: &'a str,
    direction: Direction,
    counters: [u64; layout::N_COUNTERS],
}

/// Flow table: entries in use, and room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FlowTable {
    used: [u64; 2],
    room: [u64; 2],
}

/// All metrics as text; the status may be newer than the state.
pub fn encode(
    maps: &Maps,
    status: &Status,
    state: &State,
    extra: &AgentCounters,
    watches: &[Watch],
) -> String {
    let known = state
        .endpoints
        .iter()
        // Endpoints for which there is no room in the tables are counted under number 0.
        .filter(|endpoint| u32::from(endpoint.id) < layout::MAX_ENDPOINTS)
        .map(|endpoint| (endpoint.id, endpoint.namespace.as_str(), endpoint.pod.as_str()))
        // Number 0 counts packets on interfaces that belong to no known endpoint.
        .chain([(0, "", "")]);
    let counted: Vec<Counted<'_>> = known
        .flat_map(|(id, namespace, pod)| {
            [Direction::Ingress, Direction::Egress].map(|direction| {
                // An absent series is better than no metrics at all, or a wrong number.
                let counters = observe::counters(maps, id, direction)
                    .inspect_err(|error| tracing::warn!(%error, endpoint = id, "no counters"))
                    .ok()?;
                Some(Counted { namespace, pod, direction, counters })
            })
        })
        .flatten()
        .collect();
    let flows = observe::flows(maps);
    let used4 = flows.iter().filter(|flow| flow.local.is_ipv4()).count() as u64;
    let slots = |buckets: usize| (buckets * netpol_common::flow::SLOTS) as u64;
    let known = state.endpoints.iter().filter(|view| u32::from(view.id) < layout::MAX_ENDPOINTS);
    let uses: Vec<_> = known.map(|view| (view, maps.flow_use(view.id))).collect();
    let flow_table = FlowTable {
        used: [used4, flows.len() as u64 - used4],
        room: [slots(maps.flows4.len()), slots(maps.flows6.len())],
    };
    text_of((status, state), extra, watches, &counted, flow_table, &uses)
}

fn text_of(
    (status, state): (&Status, &State),
    extra: &AgentCounters,
    watches: &[Watch],
    counted: &[Counted<'_>],
    flow_table: FlowTable,
    uses: &[(&EndpointView, FlowUse)],
) -> String {
    let mut registry = Registry::with_prefix("netpol");
    add_node(&mut registry, status, state);
    add_agent(&mut registry, extra);
    add_watches(&mut registry, watches);
    add_packets(&mut registry, counted);
    add_tables(&mut registry, status, flow_table);
    add_flow_uses(&mut registry, uses);
    let mut text = String::new();
    let result: fmt::Result = text::encode(&mut text, &registry);
    result.expect("invariant: writing to a string does not fail");
    text
}

fn add_node(registry: &mut Registry, status: &Status, state: &State) {
    let mut gauge = |name, help, value: u64| {
        registry.register(name, help, ConstGauge::new(as_gauge(value)));
    };
    gauge("ready", "1 if everything that was read is used and in force", status.ready.into());
    gauge("endpoints", "Local endpoints", state.endpoints.len() as u64);
    gauge(
        "guarded_endpoints",
        "Endpoints that no policy selects and whose sources are checked",
        status.datapath.guarded as u64,
    );
    gauge(
        "compiling",
        "Namespaces of which something was read that is not in force yet",
        status.datapath.compiling.len() as u64,
    );
    gauge("source_synced", "1 if the source has been read once", status.source.synced.into());
    gauge("source_revision", "Changes read, also by earlier agents", status.source.revision);
    gauge(
        "applied_revision",
        "The source revision that is in force",
        status.datapath.applied_revision,
    );
    gauge("source_errors", "Objects that cannot be used now", status.source.errors.len() as u64);
    gauge(
        "datapath_errors",
        "What cannot be put in force now",
        status.datapath.errors.len() as u64,
    );

    let isolated = Family::<DirectionLabel, Gauge>::default();
    for (direction, is_isolated) in [
        (Direction::Ingress, (|view| view.ingress.isolated) as fn(&EndpointView) -> bool),
        (Direction::Egress, |view| view.egress.isolated),
    ] {
        let number = state.endpoints.iter().filter(|view| is_isolated(view)).count();
        isolated
            .get_or_create(&DirectionLabel { direction: direction.as_str() })
            .set(as_gauge(number));
    }
    registry.register("isolated_endpoints", "Endpoints that a policy isolates", isolated);

    let build = Family::<BuildLabels, Gauge>::default();
    let labels = BuildLabels {
        version: env!("CARGO_PKG_VERSION"),
        attach: status.datapath.attach.clone(),
        source: status.source.kind.clone(),
    };
    build.get_or_create(&labels).set(1);
    registry.register("build_info", "Always 1; the labels say what runs", build);
}

fn add_agent(registry: &mut Registry, extra: &AgentCounters) {
    let mut counter = |name, help, value| registry.register(name, help, ConstCounter::new(value));
    counter("applies", "Batches of changes put in force", extra.applies);
    counter("map_writes", "Steps done in the maps", extra.map_writes);
    counter("apply_failures", "What could not be put in force", extra.failures);
    counter(
        "repaired_attachments",
        "Attachments found missing and put back",
        extra.repaired_attachments,
    );
    registry.register(
        "apply_duration_seconds",
        "Seconds spent on putting changes in force",
        ConstCounter::new(extra.apply_time.as_secs_f64()),
    );
    registry.register(
        "last_apply_duration_seconds",
        "Seconds that the last batch of changes took",
        ConstGauge::new(extra.last_apply.as_secs_f64()),
    );
}

fn add_watches(registry: &mut Registry, watches: &[Watch]) {
    if watches.is_empty() {
        return;
    }
    let [synced, objects, silent] = [(); 3].map(|()| Family::<ResourceLabel, Gauge>::default());
    let [lists, events, errors] = [(); 3].map(|()| Family::<ResourceLabel, Counter>::default());
    for watch in watches {
        let label = ResourceLabel { resource: watch.resource };
        synced.get_or_create(&label).set(watch.is_synced.into());
        objects.get_or_create(&label).set(as_gauge(watch.objects));
        if let Some(heard) = watch.heard {
            silent.get_or_create(&label).set(as_gauge(heard.elapsed().as_secs()));
        }
        add(&lists, &label, watch.lists);
        add(&events, &label, watch.events);
        add(&errors, &label, watch.errors);
    }
    registry.register("watch_synced", "1 if all objects of this kind have been read once", synced);
    registry.register("watch_objects", "Objects known", objects);
    registry.register(
        "watch_silent_seconds",
        "Seconds since the API server last sent an object or accepted the watch, which it does \
         at least every 300 s",
        silent,
    );
    registry.register(
        "watch_lists",
        "Lists begun: more than one means that a watch was lost",
        lists,
    );
    registry.register("watch_events", "Objects received, in lists and as changes", events);
    registry.register("watch_errors", "Failures other than the end of a connection", errors);
}

fn add_packets(registry: &mut Registry, counted: &[Counted<'_>]) {
    let dropped = Family::<DropLabels, Counter>::default();
    let new_flows = Family::<PodLabels, Counter>::default();
    let evicted = Family::<PodLabels, Counter>::default();
    let mut lost = 0;
    for one in counted {
        let labels = PodLabels {
            namespace: one.namespace.into(),
            pod: one.pod.into(),
            direction: one.direction.as_str(),
        };
        for reason in Reason::ALL {
            let packets = one.counters[reason as usize];
            match reason {
                Reason::EventLost => lost += packets,
                Reason::NewFlow if packets > 0 => add(&new_flows, &labels, packets),
                Reason::FlowEvicted if packets > 0 => add(&evicted, &labels, packets),
                _ if reason.is_drop() && packets > 0 => {
                    let PodLabels { namespace, pod, direction } = labels.clone();
                    let reason = reason.as_str();
                    add(&dropped, &DropLabels { namespace, pod, direction, reason }, packets);
                }
                _ => {}
            }
        }
    }
    registry.register("dropped_packets", "Packets dropped", dropped);
    registry.register("new_flows", "Connections judged and admitted", new_flows);
    registry.register(
        "evicted_flows",
        "Live connections forgotten because this pod's needed room in a full flow table",
        evicted,
    );
    registry.register(
        "lost_events",
        "Events not written because there were too many",
        ConstCounter::new(lost),
    );
}

fn add<L>(family: &Family<L, Counter>, labels: &L, packets: u64)
where
    L: Clone + Eq + std::hash::Hash,
{
    family.get_or_create(labels).inc_by(packets);
}

fn add_tables(registry: &mut Registry, status: &Status, flows: FlowTable) {
    let [entries, limits, overflow] = [(); 3].map(|()| Family::<TableLabel, Gauge>::default());
    let tables = status.datapath.tables.iter();
    let tables = tables.map(|t| (t.table.as_str(), t.used, t.limit, Some(t.left_out)));
    // Flows that do not fit are not left out: others make room.
    let flows = [
        ("flows4", flows.used[0], flows.room[0], None),
        ("flows6", flows.used[1], flows.room[1], None),
    ];
    for (table, used, limit, left_out) in tables.chain(flows) {
        let label = TableLabel { table: table.to_owned() };
        entries.get_or_create(&label).set(as_gauge(used));
        limits.get_or_create(&label).set(as_gauge(limit));
        if let Some(left_out) = left_out {
            overflow.get_or_create(&label).set(as_gauge(left_out));
        }
    }
    registry.register("table_entries", "Entries in use", entries);
    registry.register("table_limit", "Entries there is room for", limits);
    registry.register(
        "table_overflow",
        "Entries that did not fit, so that less is allowed than policies say",
        overflow,
    );
    let left_out = Family::<NamespaceLabel, Gauge>::default();
    for (namespace, n_rules) in &status.datapath.left_out_rules {
        let label = NamespaceLabel { namespace: namespace.clone() };
        left_out.get_or_create(&label).set(as_gauge(*n_rules));
    }
    registry.register(
        "left_out_rules",
        "Rules that are not in force, since their namespace wants more than its share",
        left_out,
    );
    let classes = status.datapath.tables.iter().find(|table| table.table == "classes");
    registry.register(
        "classes",
        "Classes of addresses",
        ConstGauge::new(classes.map_or(0, |table| as_gauge(table.used))),
    );
}

fn add_flow_uses(registry: &mut Registry, uses: &[(&EndpointView, FlowUse)]) {
    let [slots, share] = [(); 2].map(|()| Family::<PodLabel, Gauge>::default());
    let [displaced, given, refused] = [(); 3].map(|()| Family::<PodLabel, Counter>::default());
    // Who is not isolated has no share, and nothing in the tables.
    for (view, uses) in uses.iter().filter(|(_, uses)| uses.share > 0) {
        let label = PodLabel { namespace: view.namespace.clone(), pod: view.pod.clone() };
        slots.get_or_create(&label).set(as_gauge(uses.held));
        share.get_or_create(&label).set(as_gauge(uses.share));
        add(&displaced, &label, uses.displaced);
        add(&given, &label, uses.given);
        add(&refused, &label, uses.refused);
    }
    registry.register(
        "flow_slots",
        "Slots of the flow tables that hold a connection of this pod, ended ones whose slot nobody \
         needed included",
        slots,
    );
    registry.register("flow_share", "Connections that never make room for other pods'", share);
    registry.register(
        "displaced_flows",
        "Live connections of this pod that made room for its own",
        displaced,
    );
    registry.register(
        "given_flows",
        "Live connections of this pod, which had more than its share, that made room for others'",
        given,
    );
    registry.register(
        "refused_flows",
        "Packets of this pod whose connection found no room in the flow table",
        refused,
    );
}

/// As gauges are: none of these numbers comes near what does not fit.
fn as_gauge(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netpol_api::testing;

    fn example() -> String {
        let state = testing::state(vec![testing::endpoint("shop", "web", 1, "10.0.0.1")]);
        let mut counters = [0; layout::N_COUNTERS];
        counters[Reason::Policy as usize] = 12;
        counters[Reason::NewFlow as usize] = 5;
        counters[Reason::EventLost as usize] = 2;
        counters[Reason::FlowEvicted as usize] = 1;
        let counted =
            [Counted { namespace: "shop", pod: "web", direction: Direction::Ingress, counters }];
        let mut extra = AgentCounters::default();
        for milliseconds in [50, 200] {
            extra.record_apply(std::time::Duration::from_millis(milliseconds));
        }
        let watch = Watch {
            resource: "pods",
            is_synced: true,
            objects: 3,
            lists: 2,
            events: 9,
            errors: 1,
            heard: None,
        };
        let flows = FlowTable { used: [1, 0], room: [64, 32] };
        let uses = FlowUse { held: 90, share: 64, given: 3, ..FlowUse::default() };
        text_of(
            (&state.status, &state),
            &extra,
            &[watch],
            &counted,
            flows,
            &[(&state.endpoints[0], uses)],
        )
    }

    #[test]
    fn says_what_the_maps_the_state_and_the_agent_say() {
        let text = example();
        for line in [
            "netpol_ready 1",
            "netpol_endpoints 1",
            "netpol_isolated_endpoints{direction=\"ingress\"} 1",
            "netpol_isolated_endpoints{direction=\"egress\"} 0",
            "netpol_applied_revision 7",
            "netpol_applies_total 2",
            "netpol_apply_duration_seconds_total 0.25",
            "netpol_last_apply_duration_seconds 0.2",
            "netpol_lost_events_total 2",
            "netpol_watch_synced{resource=\"pods\"} 1",
            "netpol_watch_objects{resource=\"pods\"} 3",
            "netpol_watch_lists_total{resource=\"pods\"} 2",
            "netpol_watch_events_total{resource=\"pods\"} 9",
            "netpol_watch_errors_total{resource=\"pods\"} 1",
            "netpol_new_flows_total{namespace=\"shop\",pod=\"web\",direction=\"ingress\"} 5",
            "netpol_dropped_packets_total{namespace=\"shop\",pod=\"web\",direction=\"ingress\",reason=\"policy\"} 12",
            "netpol_table_entries{table=\"rows\"} 9",
            "netpol_table_limit{table=\"rows\"} 100",
            "netpol_table_overflow{table=\"rows\"} 2",
            "netpol_table_entries{table=\"flows4\"} 1",
            "netpol_table_limit{table=\"flows4\"} 64",
            "netpol_flow_slots{namespace=\"shop\",pod=\"web\"} 90",
            "netpol_flow_share{namespace=\"shop\",pod=\"web\"} 64",
            "netpol_given_flows_total{namespace=\"shop\",pod=\"web\"} 3",
            "netpol_build_info{version=\"0.1.0\",attach=\"tcx\",source=\"manifests\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn every_metric_has_help_and_a_type() {
        let text = example();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            assert!(name.starts_with("netpol_"), "{line}");
            let name = name.strip_suffix("_total").unwrap_or(name);
            assert!(text.contains(&format!("# HELP {name} ")), "{name}");
            assert!(text.contains(&format!("# TYPE {name} ")), "{name}");
        }
    }

    /// The alerts and the dashboard would be silent about a metric that is called otherwise.
    #[test]
    fn alerts_and_dashboard_ask_for_metrics_that_exist() {
        let text = example();
        let mut exist: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
            .collect();
        let counters = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let counters: Vec<String> = counters
            .filter_map(|line| line.strip_suffix(" counter"))
            .map(|name| format!("{name}_total"))
            .collect();
        exist.retain(|name| !counters.contains(&format!("{name}_total")));
        exist.extend(counters.iter().map(String::as_str));
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/components/monitoring");
        for file in ["alerts.yaml", "dashboard.json"] {
            let text = std::fs::read_to_string(format!("{directory}/{file}")).expect("a file");
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let asked: Vec<&str> =
                text.split(|c| !is_name(c)).filter(|word| word.starts_with("netpol_")).collect();
            assert!(asked.len() > 5, "{file} asks for {asked:?}");
            for name in asked {
                assert!(exist.contains(&name), "{file} asks for {name}, there is {exist:?}");
            }
        }
    }
}
