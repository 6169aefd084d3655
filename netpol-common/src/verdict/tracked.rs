//! Packets that have a flow, known or new: the flow table says which policies matter. Must never
//! change the table before all is known that the verdict needs.

use super::apart::{is_own_source, refuses_source};
use super::established::{
    barred_epoch, is_midway, is_nodes, is_older, may_be_pods, note, opener_bits, stamp_bit,
    starts_over,
};
use super::{Answers, Arrival, Endpoint, FirstLook, Judge, Maps, PolicyVerdict, Then, Verdict};
use crate::flow::{
    self, Clock, Entry, Inserted, OPENED_BY_NODE, OPENED_BY_REMOTE, OPENED_UNSEEN, OPENER, STAMPED,
};
use crate::layout::{Direction, Reason};
use crate::packet::Packet;

/// Judges a packet that has a flow. The flow table says which policies matter, and they are asked
/// from here and not from there, because in the kernel either has little stack left. For the same
/// reason what is left to do in the table is the caller's: [`apply_verdict`].
#[inline(always)]
pub fn judge_tracked<J: Judge>(
    maps: &J,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &Packet,
) -> Verdict {
    let mut answers = Answers::default();
    // What opens a connection is nearly always new: that saves one look.
    if packet.is_opening && !arrival.is_from_node {
        let Arrival { direction, is_translated, .. } = arrival;
        answers.set(direction, maps.judge_flow(endpoint, direction, is_translated, packet));
    }
    let mut looks = 0;
    // Once both directions are answered nothing is left to ask.
    while looks < 3 {
        match maps.judge_in(endpoint, arrival, packet, answers) {
            Ok(verdict) => return verdict,
            Err(direction) => {
                let judged = maps.judge_flow(endpoint, direction, arrival.is_translated, packet);
                answers.set(direction, judged);
            }
        }
        looks += 1;
    }
    Verdict::drop(Reason::Inconsistent, 0)
}

/// Does what is left to do once a packet was judged: enters its flow, or notes what became of it.
#[inline(always)]
pub fn apply_verdict<J: Judge>(
    maps: &J,
    endpoint: &Endpoint,
    packet: &Packet,
    verdict: Verdict,
) -> Verdict {
    let inserted = if let Some(bits) = verdict.then.entering() {
        maps.enter(endpoint, packet, bits)
    } else if verdict.then.is_settling() {
        maps.settle(endpoint, packet)
    } else {
        if let Some(is_barred) = verdict.then.barring() {
            maps.bar(endpoint, packet, is_barred);
        }
        Inserted::Free
    };
    Verdict { has_evicted: inserted as u32 == Inserted::Evicted as u32, ..verdict }
}

/// Notes that the flow with this key, which nobody translated, gets nowhere (`is_barred`), or gets
/// there again: what is for it is judged again, or not at all.
#[inline(always)]
pub fn bar<T: flow::Table, const KEY: usize>(
    table: &T,
    key: &flow::Key<KEY>,
    hash: u64,
    endpoint: &Endpoint,
    is_barred: bool,
) {
    if let Some(entry) = flow::find(table, key, hash) {
        let epoch = if is_barred { barred_epoch(endpoint) } else { endpoint.epoch };
        entry.renew(epoch, entry.state & (OPENER | STAMPED));
    }
}

/// Judges a packet of a flow with this key in `table`, by what the policies answered so far.
/// Changes nothing before it has all answers that it needs; what it says is left to do, it leaves
/// to its caller, because in the kernel it has no stack left for that.
#[inline(always)]
pub fn judge_in<M: Maps + ?Sized, T: flow::Table, const KEY: usize>(
    maps: &M,
    table: &T,
    key: &flow::Key<KEY>,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &Packet,
    answers: Answers,
) -> FirstLook {
    let opener = opener_bits(arrival.direction, arrival.is_from_node);
    let clock = maps.clock();
    let hash = flow::hash(key, maps.secret());
    let found = flow::find(table, key, hash);
    // The entry is that of the first look: nobody has translated the packet. It must neither pass
    // by that entry nor replace it.
    let is_untranslated =
        found.is_some_and(|entry| arrival.is_translated && entry.state & STAMPED != 0);
    // A connection that goes on after it was idle for its time is still that of who opened it, as
    // long as its entry has not been given away. Else the answer of a server would make it the
    // server's own, and who opened it could not be cut off any more.
    if let Some(entry) = found
        && !is_untranslated
        && (is_midway(packet) || !entry.is_expired(&clock))
        && !is_older(entry.epoch(), endpoint.born)
        && !(packet.is_opening && entry.state & OPENER != opener)
        && !poses_as_node(entry.state, arrival)
    {
        return judge_known(maps, &entry, endpoint, arrival, packet, &clock, answers);
    }
    let was_barred = found.is_some_and(|entry| entry.epoch() == barred_epoch(endpoint));
    // What the pod goes on to send in a flow that nobody translates opens it no more than that did.
    let is_barred = was_barred
        && !arrival.is_towards_pod()
        && !packet.is_opening
        && found.is_some_and(|entry| !entry.is_expired(&clock));
    let is_remembered = !is_untranslated && !is_barred;
    let verdict = judge_new(maps, endpoint, arrival, packet, is_remembered, answers)?;
    // (By who carries that out: an entry that is there or not, kept until here, makes code that
    // verifiers refuse.)
    if is_untranslated && verdict.is_allowed == was_barred {
        // Where it does not get to nobody can answer it from.
        let then = if verdict.is_allowed { Then::LIFT } else { Then::BAR };
        return Ok(Verdict { then, ..verdict });
    }
    if !verdict.is_allowed || packet.is_answer || !is_remembered {
        return Ok(verdict);
    }
    let bits = new_bits(maps, endpoint, arrival, packet, verdict.is_stamped, answers)?;
    Ok(Verdict { then: Then::enter(bits), ..verdict })
}

/// Bits for opener and stamp of a flow that is entered because of this packet, which passes.
///
/// A connection that is met midway was forgotten (or never seen), and either end may have opened
/// it. Where the policies of the other direction would not have let it, this one was; else nobody
/// knows, and it has to stay allowed in both: whoever it was, a change that forbids it cuts it.
/// What a packet's own direction does not allow never passes on the ground that it could be an
/// answer: anybody could send such answers.
#[inline(always)]
fn new_bits<M: Maps + ?Sized>(
    maps: &M,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &Packet,
    is_stamped: bool,
    answers: Answers,
) -> Result<u64, Direction> {
    let seen = opener_bits(arrival.direction, arrival.is_from_node) | stamp_bit(is_stamped);
    // Nobody opens a connection from a Service's address, nor with a packet that is stamped.
    if !is_midway(packet) || arrival.is_from_node || arrival.is_translated || is_stamped {
        return Ok(seen);
    }
    // Nor from an address that is not the pod's.
    if arrival.is_towards_pod() && !is_own_source(maps, endpoint, arrival, packet) {
        return Ok(seen);
    }
    let other = if arrival.is_towards_pod() { Direction::Egress } else { Direction::Ingress };
    let judged = answers.get(other)?;
    if judged.is_allowed {
        return Ok(OPENED_UNSEEN | stamp_bit(judged.is_stamped));
    }
    Ok(seen)
}

/// Whether somebody else sends to the pod in a flow that the node opened: a forged source.
#[inline(always)]
const fn poses_as_node(state: u64, arrival: Arrival) -> bool {
    is_nodes(state) && arrival.is_towards_pod() && !arrival.is_from_node
}

/// Judges a packet of a known flow: as long as that is allowed in the direction it was opened in,
/// its packets pass both ways.
#[inline(always)]
fn judge_known<M: Maps + ?Sized, B: flow::Bucket>(
    maps: &M,
    entry: &Entry<B>,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &Packet,
    clock: &Clock,
    answers: Answers,
) -> FirstLook {
    let opener_bits = entry.state & OPENER;
    let mut is_stamped = entry.state & STAMPED != 0;
    let is_expired = entry.is_expired(clock);
    if entry.epoch() != endpoint.epoch || is_expired {
        // The address may have gone to another pod since this one opened the flow from there.
        let is_forged = may_be_pods(entry.state)
            && !arrival.is_translated
            && !is_own_source(maps, endpoint, arrival, packet);
        if is_forged && !arrival.is_towards_pod() {
            return Ok(Verdict::drop(Reason::SourceAddress, 0));
        }
        let judged = judge_opened(entry.state, |direction| answers.get(direction))?;
        let is_kept = maps.keeps_established() && !starts_over(packet) && !is_expired;
        if judged.is_allowed {
            // A flow that is kept goes on as it is: what is stamped from its middle on would be
            // judged as new where it leaves. A new one with its ports is judged as such.
            // What still comes in lets nothing out.
            if !is_forged && (!is_kept || is_stamped == judged.is_stamped) {
                is_stamped = judged.is_stamped;
                entry.renew(endpoint.epoch, opener_bits | stamp_bit(is_stamped));
            }
        } else if !is_kept {
            // The entry stays as it is, with its old epoch: whichever end sends next, the flow is
            // judged in its opening direction again, until it has been idle for its time. A
            // denied packet does not keep it from being idle, nor does one of the node's, which
            // passes in any case but makes the flow no better.
            if arrival.is_from_node {
                return Ok(Verdict::PASS);
            }
            let cut = if packet.is_opening { Reason::Policy } else { Reason::PolicyCut };
            return Ok(Verdict::drop(judged.reason(cut), judged.class));
        }
    }
    let is_first_answer = note(entry, arrival, packet, clock);
    let then = if is_first_answer { Then::SETTLE } else { Then::NOTHING };
    Ok(Verdict { then, is_stamped: is_stamped && !arrival.is_towards_pod(), ..Verdict::PASS })
}

/// Judges a packet of no known flow; `is_new`: of no flow at all that could be answered.
#[inline(always)]
fn judge_new<M: Maps + ?Sized>(
    maps: &M,
    endpoint: &Endpoint,
    arrival: Arrival,
    packet: &Packet,
    is_new: bool,
    answers: Answers,
) -> FirstLook {
    let Arrival { direction, is_from_node, is_translated, .. } = arrival;
    if let Some(reason) = refuses_source(maps, endpoint, arrival, packet) {
        return Ok(Verdict::drop(reason, 0));
    }
    if is_from_node {
        return Ok(Verdict { is_noted: true, ..Verdict::PASS });
    }
    // An answer to something never seen opens nothing: an isolated pod has not asked for it.
    if packet.is_answer && endpoint.is_isolated(direction) && is_new {
        return Ok(Verdict::drop(Reason::Policy, 0));
    }
    let judged = answers.get(direction)?;
    Ok(if judged.is_allowed {
        // The flow was noted where it began.
        let PolicyVerdict { is_stamped, class, .. } = judged;
        Verdict { is_noted: !is_translated, is_stamped, class, ..Verdict::PASS }
    } else {
        Verdict::drop(judged.reason(Reason::Policy), judged.class)
    })
}

/// What the policies say of a flow with this state word; `ask`: what they say by direction.
#[inline(always)]
pub(super) fn judge_opened(
    state: u64,
    ask: impl Fn(Direction) -> Result<PolicyVerdict, Direction>,
) -> Result<PolicyVerdict, Direction> {
    let opener = state & OPENER;
    if opener == OPENED_BY_NODE {
        return Ok(PolicyVerdict::ALLOWED);
    }
    if opener != 0 {
        let judged = ask(Direction::Ingress)?;
        if opener == OPENED_BY_REMOTE || !judged.is_allowed {
            return Ok(judged);
        }
    }
    ask(Direction::Egress)
}
