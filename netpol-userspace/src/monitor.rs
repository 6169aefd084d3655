//! `netpol monitor`.

use std::io::Write;
use std::time::{Duration, SystemTime};

use anstyle::{AnsiColor, Style};
use anyhow::{Context as _, Result};
use clap::ValueEnum;
use clap::builder::PossibleValuesParser;
use netpol_common::layout::{Event as Raw, Reason};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::flows;
use super::output::{self, TextFormat, note};
use super::places::Places;
use netpol_api::client;
use netpol_api::questions as question;
use netpol_api::state::state_path;
use netpol_datapath::monitor::Monitor;
use netpol_datapath::{Maps, observe};
use netpol_model::Direction;
use netpol_observe::events::{self, BootTime, End, Event, explain};
use netpol_observe::names::Names;
use netpol_observe::node::{self, Node};

/// The programs stop writing events unless the lease is renewed about that often.
const LEASE: Duration = Duration::from_secs(1);
/// How long an agent's names hold, and how long its answer may take.
const NAMES_VALID: Duration = Duration::from_secs(1);

/// About how many packets of a flood the agent is asked by which rules they were decided.
const MOST_OPENINGS: usize = 256;

/// Show packets as they are dropped, and why
///
/// One line for each dropped packet of this node's isolated pods: time (UTC), verdict, pod and
/// direction, the packet with the names of its ends, and the reason; for a drop by policy, the
/// policies that isolate the pod, or the rule of a ClusterNetworkPolicy that denies it. With `--flows` also each new connection that is allowed. Runs
/// until Ctrl-C. Costs nothing while nobody looks; one monitor at a time. Of a flood only a part is
/// shown; then it says how many are missing, in JSON as an object with the one field `lost`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  netpol monitor
  netpol monitor shop/web --direction ingress --reason policy
  netpol monitor --flows shop/web
  netpol monitor -o json | jq -r 'select(.reason == \"policy\") | .policies[]'")]
pub struct Args {
    /// Only packets of this pod: namespace/pod, its name if no other has it, or its address
    #[arg(add = clap_complete::ArgValueCompleter::new(super::completions::pods))]
    endpoint: Option<String>,

    /// Show new connections that are allowed, too
    #[arg(long)]
    flows: bool,

    /// Only packets towards the pod (ingress) or from it (egress)
    #[arg(long, value_enum)]
    direction: Option<Side>,

    /// Only packets dropped for this reason; may be given several times
    #[arg(long, value_parser = PossibleValuesParser::new(reasons()))]
    reason: Vec<String>,

    #[command(flatten)]
    places: Places,

    /// Output format; json is one object per line
    #[arg(short, long, value_enum, default_value_t)]
    output: TextFormat,
}

/// A direction, from the pod's view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Side {
    /// Towards the pod
    Ingress,
    /// From the pod
    Egress,
}

/// The words for why packets are dropped.
fn reasons() -> impl Iterator<Item = &'static str> {
    Reason::ALL.into_iter().filter(|reason| reason.is_drop()).map(Reason::as_str)
}

/// What to show.
#[derive(Debug, Default)]
struct Filter {
    /// `namespace/pod`.
    endpoint: Option<String>,
    direction: Option<Side>,
    /// Any, if empty.
    reasons: Vec<String>,
}

impl Filter {
    fn passes(&self, event: &Event) -> bool {
        let direction = self.direction.map(|side| match side {
            Side::Ingress => Direction::Ingress,
            Side::Egress => Direction::Egress,
        });
        (self.endpoint.is_none() || self.endpoint == event.endpoint)
            && direction.is_none_or(|direction| direction == event.direction)
            && (self.reasons.is_empty()
                || self.reasons.iter().any(|reason| reason == event.reason.as_str())
                // Asked for with --flows, beside drops of some reason.
                || event.verdict.is_allow())
    }
}

/// Shows events until interrupted.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<bool> {
    let node = args.places.node_if_any()?;
    let wanted = match &args.endpoint {
        Some(wanted) => {
            let node = node.as_ref().with_context(|| {
                format!(
                    "cannot find {wanted} without names: there is no {}, give the agent's --run-dir",
                    state_path(&args.places.run_dir).display()
                )
            })?;
            Some(node::name(node.endpoint(wanted)?))
        }
        None => None,
    };
    let pins = args.places.pins(node.as_ref().map(|node| &node.state));
    let monitor = Monitor::open(&pins, args.flows)?;
    let mut view = View {
        out,
        format: args.output,
        filter: Filter {
            endpoint: wanted,
            direction: args.direction,
            reasons: args.reason.clone(),
        },
        names: FreshNames::new(args.places.clone()),
        lost: lost_events(monitor.maps()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(follow(monitor, &mut view))?;
    Ok(true)
}

async fn follow(mut monitor: Monitor, view: &mut View<'_>) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut tick = interval(LEASE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let arrivals = monitor.arrivals()?;
    note("waiting for dropped packets; Ctrl-C ends");
    let mut has_more = true;
    loop {
        tokio::select! {
            // The lease must be renewed also under a flood of events.
            biased;
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = tick.tick() => {
                monitor.renew();
                view.report_lost(monitor.maps())?;
            }
            // The kernel wakes a reader only when the ring was empty.
            () = std::future::ready(()), if has_more => {}
            ready = arrivals.readable() => ready?.clear_ready(),
        }
        has_more = view.drain(&mut monitor).await?;
    }
}

struct View<'a> {
    out: &'a mut dyn Write,
    format: TextFormat,
    filter: Filter,
    names: FreshNames,
    lost: u64,
}

impl View<'_> {
    /// Shows what is in the ring now, but returns true after a while to let others have their
    /// turn.
    async fn drain(&mut self, monitor: &mut Monitor) -> Result<bool> {
        const BATCH: usize = 8_192;
        let events: Vec<Raw> = std::iter::from_fn(|| monitor.next_event()).take(BATCH).collect();
        if events.is_empty() {
            return Ok(false);
        }
        self.names.refresh();
        self.names.learn(events.iter().flat_map(events::ends).flatten()).await;
        self.names.learn_rules(&events).await;
        let boot = BootTime::now();
        for raw in &events {
            let event = explain(raw, &self.names.names, boot);
            if self.filter.passes(&event) {
                self.show(&event)?;
            }
        }
        self.out.flush()?;
        Ok(events.len() == BATCH)
    }

    fn show(&mut self, event: &Event) -> Result<()> {
        match self.format {
            TextFormat::Text => writeln!(self.out, "{}", line(event))?,
            TextFormat::Json => self.show_json(event)?,
        }
        Ok(())
    }

    fn show_json(&mut self, value: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut *self.out, value).map_err(std::io::Error::from)?;
        writeln!(self.out)?;
        Ok(())
    }

    fn report_lost(&mut self, maps: &Maps) -> Result<()> {
        let lost = lost_events(maps);
        // Counters of an endpoint that is gone go with it.
        let more = lost.saturating_sub(self.lost);
        self.lost = lost;
        if more == 0 {
            return Ok(());
        }
        match self.format {
            TextFormat::Text => {
                note(&format!(
                    "{more} events are not shown, there were too many (counters have all)"
                ));
            }
            TextFormat::Json => {
                self.show_json(&serde_json::json!({ "lost": more }))?;
                self.out.flush()?;
            }
        }
        Ok(())
    }
}

fn lost_events(maps: &Maps) -> u64 {
    let known = observe::speakers(maps).into_iter().map(|(_, id)| id);
    // Number 0 stands for interfaces that belong to no known endpoint.
    known
        .chain([0])
        .flat_map(|id| [Direction::Ingress, Direction::Egress].map(|direction| (id, direction)))
        .filter_map(|(id, direction)| observe::counters(maps, id, direction).ok())
        .map(|counters| counters[Reason::EventLost as usize])
        .sum()
}

/// Names from the state file, read again whenever it has changed, and from the agent.
struct FreshNames {
    places: Places,
    written: Option<SystemTime>,
    names: Names,
    /// When the agent's answers are to be forgotten, or the agent asked again.
    expires: Instant,
    /// No agent answers.
    is_silent: bool,
}

impl FreshNames {
    fn new(places: Places) -> Self {
        let (names, expires) = (Names::default(), Instant::now());
        let mut fresh = Self { places, written: None, names, expires, is_silent: false };
        fresh.refresh();
        fresh
    }

    /// Asks the agent about ends of which nothing is known. Events must not wait for names: without
    /// an answer in time they have none.
    async fn learn(&mut self, ends: impl Iterator<Item = question::End>) {
        if Instant::now() >= self.expires {
            // An address may be another pod's soon.
            self.names.forget();
            self.is_silent = false;
            self.expires = Instant::now() + NAMES_VALID;
        }
        let unknown = self.names.unknown(ends);
        if unknown.is_empty() || self.is_silent {
            return;
        }
        let answer =
            timeout(NAMES_VALID, client::owners_async(&self.places.run_dir, &unknown)).await;
        match answer {
            Ok(Ok(Some(owners))) => self.names.learn(unknown.into_iter().zip(owners)),
            Ok(Ok(None) | Err(_)) | Err(_) => self.is_silent = true,
        }
    }

    /// Asks the agent about the rules by which events were decided, of as many as it may be asked.
    async fn learn_rules(&mut self, events: &[Raw]) {
        let openings = events.iter().filter_map(|raw| events::opening(raw, &self.names));
        let mut openings = self.names.undecided(openings);
        openings.truncate(MOST_OPENINGS);
        if openings.is_empty() || self.is_silent {
            return;
        }
        let answer =
            timeout(NAMES_VALID, client::deciding_async(&self.places.run_dir, openings.clone()));
        match answer.await {
            Ok(Ok(Some(rules))) => self.names.learn_rules(openings.into_iter().zip(rules)),
            Ok(Ok(None) | Err(_)) | Err(_) => self.is_silent = true,
        }
    }

    fn refresh(&mut self) {
        let path = state_path(&self.places.run_dir);
        let written = std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
        if written.is_none() || written == self.written {
            return;
        }
        // A file that cannot be read leaves the names of before, which are better than none.
        if let Ok(Some(node)) = Node::read(&self.places.run_dir) {
            self.names = Names::of(&node.state);
            self.written = written;
            self.expires = Instant::now();
        }
    }
}

/// `12:00:01.250 deny  shop/web ingress TCP 10.0.0.2:40000 -> 10.0.0.1:80 SYN: why`.
fn line(event: &Event) -> String {
    let is_deny = !event.verdict.is_allow();
    let style: Style = if is_deny { AnsiColor::Red } else { AnsiColor::Green }.on_default();
    let time = event.time.strftime("%H:%M:%S%.3f");
    let pod = match (&event.endpoint, event.endpoint_id) {
        (Some(name), _) => name.clone(),
        (None, 0) => format!("interface {}", event.ifindex),
        (None, id) => format!("endpoint #{id}"),
    };
    let mut line = format!("{time} {style}{:5}{style:#} {pod} {}", event.verdict, event.direction);
    if let (Some(protocol), Some(source), Some(destination)) =
        (&event.protocol, &event.source, &event.destination)
    {
        let [source, destination] = [source, destination].map(|end| end_text(end, &pod));
        line += &format!(" {protocol} {source} -> {destination}");
    }
    if !event.detail.is_empty() {
        line += &format!(" [{}]", event.detail);
    }
    format!("{line}: {}", event.message)
}

fn end_text(end: &End, pod: &str) -> String {
    let address = flows::end(end.ip, end.port);
    match output::owner(end.endpoint.as_deref(), end.service.as_deref(), end.node.as_deref()) {
        Some(name) if name != pod => format!("{address} ({name})"),
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netpol_observe::protocol::{ICMP, TCP};
    use netpol_observe::testing::event as example;

    fn plain(event: &Event) -> String {
        anstream::adapter::strip_str(&line(event)).to_string()
    }

    #[test]
    fn filters_leave_out_the_rest() {
        let drop = example(Reason::Policy, TCP, 2);
        let passes = |filter: Filter| filter.passes(&drop);
        assert!(passes(Filter::default()));
        for (name, expected) in [("shop/web", true), ("shop/other", false)] {
            let filter = Filter { endpoint: Some(name.into()), ..Filter::default() };
            assert_eq!(passes(filter), expected, "{name}");
        }
        for (side, expected) in [(Side::Ingress, true), (Side::Egress, false)] {
            let filter = Filter { direction: Some(side), ..Filter::default() };
            assert_eq!(passes(filter), expected, "{side:?}");
        }
        let reasons = |words: &[&str]| Filter {
            reasons: words.iter().map(ToString::to_string).collect(),
            ..Filter::default()
        };
        assert!(passes(reasons(&["fragment", "policy"])) && !passes(reasons(&["fragment"])));
        let allowed = example(Reason::NewFlow, TCP, 2);
        assert!(reasons(&["fragment"]).passes(&allowed), "as --flows asks");
    }

    #[test]
    fn lines() {
        assert_eq!(
            plain(&example(Reason::Policy, TCP, 2)),
            "00:00:01.500 deny  shop/web ingress TCP 10.0.0.2:40000 (shop/client) -> 10.0.0.1:80 \
             [SYN]: no rule of shop/deny allows it"
        );
        assert_eq!(
            plain(&example(Reason::NewFlow, ICMP, 8)),
            "00:00:01.500 allow shop/web ingress ICMP 10.0.0.2 (shop/client) -> 10.0.0.1 \
             [echo request]: new connection"
        );
        let unknown = Event {
            endpoint: None,
            endpoint_id: 0,
            source: None,
            destination: None,
            protocol: None,
            ..example(Reason::UnknownEndpoint, 0, 0)
        };
        let text = plain(&unknown);
        assert!(
            text.starts_with("00:00:01.500 deny  interface 11 ingress: the interface"),
            "{text}"
        );
    }
}
