//! `netpol monitor`.

use std::io::Write;
use std::time::{Duration, SystemTime};

use anstyle::{AnsiColor, Style};
use anyhow::{Context as _, Result};
use netpol_common::layout::Reason;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use super::flows;
use super::output::{TextFormat, note};
use super::places::Places;
use crate::agent::state::state_path;
use crate::datapath::monitor::Monitor;
use crate::datapath::{Maps, observe};
use crate::model::Direction;
use crate::observe::events::{BootTime, End, Event, explain};
use crate::observe::names::Names;
use crate::observe::node::{self, Node};

/// The programs stop writing events unless the lease is renewed about that often.
const LEASE: Duration = Duration::from_secs(1);

/// Show packets as they are dropped, and why
///
/// One line for each dropped packet of this node's isolated pods: time, verdict, pod and direction,
/// the packet, and the reason; for a drop by policy, the policies that isolate the pod. With
/// `--flows` also each new connection that is allowed. Runs until Ctrl-C. Costs nothing while
/// nobody looks; one monitor at a time.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  netpol monitor
  netpol monitor --flows shop/web
  netpol monitor -o json | jq -r 'select(.reason == \"policy\") | .policies[]'")]
pub struct Args {
    /// Only packets of this pod: namespace/pod, its name if no other has it, or its address
    endpoint: Option<String>,

    /// Show new connections that are allowed, too
    #[arg(long)]
    flows: bool,

    #[command(flatten)]
    places: Places,

    /// Output format; json is one object per line
    #[arg(short, long, value_enum, default_value_t)]
    output: TextFormat,
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
        wanted,
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
                view.tell_lost(monitor.maps());
            }
            // The kernel wakes a reader only when the ring was empty.
            () = std::future::ready(()), if has_more => {}
            ready = arrivals.readable() => ready?.clear_ready(),
        }
        has_more = view.drain(&mut monitor)?;
    }
}

struct View<'a> {
    out: &'a mut dyn Write,
    format: TextFormat,
    /// `namespace/pod` of the only endpoint to show.
    wanted: Option<String>,
    names: FreshNames,
    lost: u64,
}

impl View<'_> {
    /// Shows what is in the ring now, but returns true after a while to let others have their
    /// turn.
    fn drain(&mut self, monitor: &mut Monitor) -> Result<bool> {
        const BATCH: usize = 8_192;
        self.names.refresh();
        let boot = BootTime::now();
        for _ in 0..BATCH {
            let Some(raw) = monitor.next_event() else {
                self.out.flush()?;
                return Ok(false);
            };
            let event = explain(&raw, &self.names.names, boot);
            if self.wanted.is_none() || self.wanted == event.endpoint {
                self.show(&event)?;
            }
        }
        self.out.flush()?;
        Ok(true)
    }

    fn show(&mut self, event: &Event) -> Result<()> {
        match self.format {
            TextFormat::Text => writeln!(self.out, "{}", line(event))?,
            TextFormat::Json => {
                serde_json::to_writer(&mut *self.out, event).map_err(std::io::Error::from)?;
                writeln!(self.out)?;
            }
        }
        Ok(())
    }

    fn tell_lost(&mut self, maps: &Maps) {
        let lost = lost_events(maps);
        // Counters of an endpoint that is gone go with it.
        let more = lost.saturating_sub(self.lost);
        if more > 0 {
            note(&format!("{more} events are not shown, there were too many (counters have all)"));
        }
        self.lost = lost;
    }
}

fn lost_events(maps: &Maps) -> u64 {
    let known = observe::endpoints(maps).into_iter().map(|entry| entry.id);
    // Number 0 stands for interfaces that belong to no known endpoint.
    known
        .chain([0])
        .flat_map(|id| [Direction::Ingress, Direction::Egress].map(|direction| (id, direction)))
        .filter_map(|(id, direction)| observe::counters(maps, id, direction).ok())
        .map(|counters| counters[Reason::EventLost as usize])
        .sum()
}

/// Names from the state file, read again whenever it has changed.
struct FreshNames {
    places: Places,
    written: Option<SystemTime>,
    names: Names,
}

impl FreshNames {
    fn new(places: Places) -> Self {
        let mut names = Self { places, written: None, names: Names::default() };
        names.refresh();
        names
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
        }
    }
}

/// `12:00:01.250 deny  shop/web ingress TCP 10.0.0.2:40000 -> 10.0.0.1:80 SYN: why`.
fn line(event: &Event) -> String {
    let is_deny = event.verdict == "deny";
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
    match &end.endpoint {
        Some(name) if name != pod => format!("{address} ({name})"),
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::events::tests::example;
    use crate::observe::protocol::{ICMP, TCP};

    fn plain(event: &Event) -> String {
        anstream::adapter::strip_str(&line(event)).to_string()
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
