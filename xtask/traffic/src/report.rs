//! The counters, and how they are told. Must never count a message twice.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::spec::CallBack;

/// An answer that takes longer than this had to be asked for again: the kernel repeats a SYN
/// after a second, and a resolver a question after five.
const SLOW: Duration = Duration::from_millis(900);

/// Everything that one process counts.
#[derive(Debug)]
pub struct Report {
    pub name: String,
    /// How long to wait for what is under way at the end.
    pub drain: Duration,
    /// What to send to those that send a first message.
    pub call_backs: Vec<CallBack>,
    born: Instant,
    is_begun: Cell<bool>,
    beginning: Notify,
    is_stopped: Cell<bool>,
    stopping: Notify,
    under_way: Cell<usize>,
    ended: Notify,
    flows: RefCell<BTreeMap<String, Flow>>,
    received: RefCell<BTreeMap<String, Received>>,
    silent: RefCell<BTreeMap<IpAddr, u64>>,
}

/// What a flow sent and got.
#[derive(Debug, Default)]
struct Flow {
    messages: Vec<Sent>,
    errors: BTreeMap<String, u64>,
    first_answer: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    /// Microseconds since 1970, for comparison between processes of one machine.
    at: u64,
    started: Instant,
    took: Option<Duration>,
}

/// What a server got from one sender.
#[derive(Debug, Default, Serialize)]
struct Received {
    connections: u64,
    messages: u64,
}

impl Report {
    pub fn new(name: String, drain: Duration) -> Self {
        Self {
            name,
            drain,
            call_backs: Vec::new(),
            born: Instant::now(),
            is_begun: Cell::new(false),
            beginning: Notify::new(),
            is_stopped: Cell::new(false),
            stopping: Notify::new(),
            under_way: Cell::new(0),
            ended: Notify::new(),
            flows: RefCell::default(),
            received: RefCell::default(),
            silent: RefCell::default(),
        }
    }

    /// Flows may send.
    pub fn start(&self) {
        self.is_begun.set(true);
        self.beginning.notify_waiters();
    }

    /// Returns when flows may send.
    pub async fn begun(&self) {
        let notified = self.beginning.notified();
        if !self.is_begun.get() {
            notified.await;
        }
    }

    /// No flow sends another message.
    pub fn stop(&self) {
        self.is_stopped.set(true);
        self.stopping.notify_waiters();
    }

    /// Returns when no more messages are to be sent.
    pub async fn stopped(&self) {
        let notified = self.stopping.notified();
        if !self.is_stopped.get() {
            notified.await;
        }
    }

    /// A flow is under way.
    pub fn flow_begins(&self) {
        self.under_way.set(self.under_way.get() + 1);
    }

    /// A flow waits for no more answers.
    pub fn flow_ends(&self) {
        self.under_way.set(self.under_way.get() - 1);
        self.ended.notify_waiters();
    }

    /// Returns when no flow waits for answers any more.
    pub async fn all_ended(&self) {
        loop {
            let ended = self.ended.notified();
            if self.under_way.get() == 0 {
                return;
            }
            ended.await;
        }
    }

    pub fn is_stopped(&self) -> bool {
        self.is_stopped.get()
    }

    /// The flow is there, even if it never sends anything.
    pub fn add_flow(&self, flow: &str) {
        self.flows.borrow_mut().entry(flow.to_owned()).or_default();
    }

    /// A message is about to be sent; its number.
    pub fn sent(&self, flow: &str) -> u64 {
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let sent = Sent { at: at.as_micros() as u64, started: Instant::now(), took: None };
        let mut flows = self.flows.borrow_mut();
        let messages = &mut flows.entry(flow.to_owned()).or_default().messages;
        messages.push(sent);
        messages.len() as u64 - 1
    }

    /// The answer has come. A second one to the same message changes nothing.
    pub fn answered(&self, flow: &str, number: u64) {
        let mut flows = self.flows.borrow_mut();
        let flow = flows.entry(flow.to_owned()).or_default();
        flow.first_answer.get_or_insert_with(|| self.born.elapsed());
        if let Some(sent) = flow.messages.get_mut(number as usize) {
            sent.took.get_or_insert_with(|| sent.started.elapsed());
        }
    }

    /// Something went wrong, in a word.
    pub fn failed(&self, flow: &str, what: &str) {
        let mut flows = self.flows.borrow_mut();
        let errors = &mut flows.entry(flow.to_owned()).or_default().errors;
        *errors.entry(what.to_owned()).or_default() += 1;
    }

    /// A server got a message, on a connection's first one with `is_new`. True for the sender's
    /// very first.
    pub fn received(&self, sender: &str, is_new: bool) -> bool {
        let mut received = self.received.borrow_mut();
        let from = received.entry(sender.to_owned()).or_default();
        from.messages += 1;
        from.connections += u64::from(is_new);
        from.messages == 1
    }

    /// A server got a connection that ended before it said anything.
    pub fn silent(&self, from: IpAddr) {
        *self.silent.borrow_mut().entry(from.to_canonical()).or_default() += 1;
    }

    /// Everything but the single messages' fate.
    pub fn summary(&self) -> Value {
        let flows = self.flows.borrow();
        let flows: BTreeMap<&str, Value> =
            flows.iter().map(|(name, flow)| (name.as_str(), flow.summary())).collect();
        json!({
            "name": self.name,
            "flows": flows,
            "received": &*self.received.borrow(),
            "silent": &*self.silent.borrow(),
            "retransmitted": retransmitted(),
        })
    }

    /// With all changes between "answered" and "not answered".
    pub fn full(&self) -> Value {
        let mut value = self.summary();
        for (name, flow) in &*self.flows.borrow() {
            value["flows"][name]["runs"] = json!(flow.runs());
        }
        value
    }
}

impl Flow {
    fn summary(&self) -> Value {
        let took = || self.messages.iter().filter_map(|message| message.took);
        let first = self.messages.first().map(|message| message.at);
        let last = self.messages.iter().rev().find(|message| message.took.is_some());
        let last = last.map(|message| message.at);
        json!({
            "sent": self.messages.len(),
            "answered": took().count(),
            "slow": took().filter(|&took| took >= SLOW).count(),
            "longest_us": took().max().map(|took| took.as_micros() as u64),
            "first_sent_us": first,
            "last_answered_us": last,
            "first_answer_ms": self.first_answer.map(|time| time.as_millis() as u64),
            "errors": self.errors,
        })
    }

    /// Of each run of messages with the same fate: when the first was sent, which fate, how many.
    fn runs(&self) -> Vec<(u64, bool, u64)> {
        let mut runs: Vec<(u64, bool, u64)> = Vec::new();
        for message in &self.messages {
            let is_answered = message.took.is_some();
            match runs.last_mut() {
                Some((_, fate, count)) if *fate == is_answered => *count += 1,
                _ => runs.push((message.at, is_answered, 1)),
            }
        }
        runs
    }
}

/// How many TCP segments this network namespace had to send again; `None` if /proc does not say.
fn retransmitted() -> Option<u64> {
    let text = fs::read_to_string("/proc/net/snmp").ok()?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    pairs.find(|(name, _)| *name == "RetransSegs")?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_counts_once() {
        let report = Report::new("me".into(), Duration::ZERO);
        for _ in 0..4 {
            report.sent("a");
        }
        for number in [0, 0, 3, 9] {
            report.answered("a", number);
        }
        report.failed("a", "timeout");
        let flow = &report.full()["flows"]["a"];
        assert_eq!((&flow["sent"], &flow["answered"]), (&json!(4), &json!(2)));
        assert_eq!(flow["errors"]["timeout"], json!(1));
        let runs = flow["runs"].as_array().expect("runs");
        let fates: Vec<_> = runs.iter().map(|run| (run[1].clone(), run[2].clone())).collect();
        let expected = [(true, 1), (false, 2), (true, 1)].map(|(a, b)| (json!(a), json!(b)));
        assert_eq!(fates, expected);
    }
}
