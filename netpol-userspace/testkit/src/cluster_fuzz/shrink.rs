//! Makes a script that shows a difference as small as it gets, while it shows one. Which
//! difference may change on the way: any is a bug. Deterministic.

use crate::generate::service_world::ServiceWorld;
use crate::generate::world::{Event, World};

use super::packets::{Body, Frame, Packet, Part};
use super::script::{Action, Difference, Script, Sending};

/// Runs a script; the first difference that it shows.
pub type Run<'a> = &'a mut dyn FnMut(&Script) -> Option<Difference>;

/// The smallest script found and its difference; `None` if the script does not show any.
pub fn shrink(script: &Script, run: Run<'_>) -> Option<(Script, Difference)> {
    let mut found = Found { difference: run(script)?, script: script.clone(), run };
    found.keep_to_the_difference();
    found.forget_others();
    found.without_past();
    loop {
        let n_bytes = found.size();
        found.fewer_actions();
        found.smaller_worlds();
        found.plainer_frames();
        if found.size() == n_bytes {
            let Found { script, difference, .. } = found;
            return Some((script, difference));
        }
    }
}

struct Found<'a> {
    script: Script,
    difference: Difference,
    run: Run<'a>,
}

impl Found<'_> {
    /// Takes the candidate if it shows a difference.
    fn try_script(&mut self, candidate: Script) -> bool {
        let Some(difference) = (self.run)(&candidate) else { return false };
        self.script = candidate;
        self.difference = difference;
        self.keep_to_the_difference();
        true
    }

    /// Drops what comes after the first difference.
    fn keep_to_the_difference(&mut self) {
        self.script.actions.truncate(self.difference.at + 1);
    }

    /// Other endpoints than the pod's seldom matter.
    fn forget_others(&mut self) {
        let pod = self.difference.sending.pod.clone();
        let mut candidate = self.script.clone();
        candidate.local = vec![pod.clone()];
        candidate.actions.retain(|action| match action {
            Action::Send(sending) => sending.pod == pod,
            Action::Event(_) | Action::Service(_) => true,
        });
        self.try_script(candidate);
    }

    /// The last frame alone, in the cluster that the events led to.
    fn without_past(&mut self) {
        let mut candidate = self.script.clone();
        let Some(last) = candidate.actions.pop() else { return };
        for action in std::mem::take(&mut candidate.actions) {
            candidate.settle(&action);
        }
        candidate.actions.push(last);
        self.try_script(candidate);
    }

    /// Without parts of the past, large ones first; the first event as part of the cluster.
    fn fewer_actions(&mut self) {
        let mut n_left_out = self.script.actions.len().next_power_of_two() / 2;
        while n_left_out > 0 {
            let mut start = 0;
            while start + 1 < self.script.actions.len() {
                let end = (start + n_left_out).min(self.script.actions.len() - 1);
                let mut candidate = self.script.clone();
                candidate.actions.drain(start..end);
                if !self.try_script(candidate) {
                    start = end;
                }
            }
            n_left_out /= 2;
        }
        while let Some(at) =
            self.script.actions.iter().position(|action| !matches!(action, Action::Send(_)))
        {
            let mut candidate = self.script.clone();
            let event = candidate.actions.remove(at);
            candidate.settle(&event);
            if !self.try_script(candidate) {
                return;
            }
        }
    }

    fn smaller_worlds(&mut self) {
        self.greedily(|script| {
            let worlds = script.world.smaller().into_iter();
            let of_world = worlds.map(|world| Script { world, ..script.clone() });
            let fewer = fewer_services(&script.services).into_iter();
            let of_services = fewer.map(|services| Script { services, ..script.clone() });
            of_services.chain(of_world).chain(smaller_events(script)).collect()
        });
    }

    fn plainer_frames(&mut self) {
        self.greedily(|script| {
            let mut found = Vec::new();
            for (index, action) in script.actions.iter().enumerate() {
                let Action::Send(sending) = action else { continue };
                for frame in plainer(&sending.frame) {
                    let mut candidate = script.clone();
                    candidate.actions[index] = Action::Send(Sending { frame, ..sending.clone() });
                    found.push(candidate);
                }
            }
            found
        });
    }

    /// Goes through the candidates for as long as one of them will do.
    fn greedily(&mut self, candidates: impl Fn(&Script) -> Vec<Script>) {
        let mut first = 0;
        loop {
            let all = candidates(&self.script);
            // From where the last one was found: what did not do before it hardly does now.
            let order = (first..all.len()).chain(0..first.min(all.len()));
            let mut chosen = None;
            for index in order {
                if self.try_script(all[index].clone()) {
                    chosen = Some(index);
                    break;
                }
            }
            match chosen {
                Some(index) => first = index,
                None => return,
            }
        }
    }

    /// A measure that only shrinks.
    fn size(&self) -> usize {
        self.script.manifests().len()
            + self.script.actions.iter().map(|action| format!("{action:?}").len()).sum::<usize>()
    }
}

/// Without any Services, or without one object that makes them up.
fn fewer_services(world: &ServiceWorld) -> Vec<ServiceWorld> {
    let mut found = Vec::new();
    if !(world.services.is_empty() && world.slices.is_empty()) {
        found.push(ServiceWorld::default());
    }
    let mut without = |edit: &dyn Fn(&mut ServiceWorld)| {
        let mut fewer = world.clone();
        edit(&mut fewer);
        found.push(fewer);
    };
    for name in world.services.keys() {
        without(&|world| drop(world.services.remove(name)));
    }
    for name in world.slices.keys() {
        without(&|world| drop(world.slices.remove(name)));
    }
    found
}

/// The script with one event's object smaller.
fn smaller_events(script: &Script) -> Vec<Script> {
    let mut found = Vec::new();
    for (index, action) in script.actions.iter().enumerate() {
        let Action::Event(event) = action else { continue };
        let mut world = World::default();
        world.apply(event);
        for smaller in world.smaller() {
            let event = match &**event {
                Event::Pod(_) => smaller.pods.into_values().next().map(Event::Pod),
                Event::Policy(_) => smaller.policies.into_values().next().map(Event::Policy),
                Event::ClusterPolicy(_) => {
                    smaller.cluster_policies.into_values().next().map(Event::ClusterPolicy)
                }
                _ => None,
            };
            let Some(event) = event else { continue };
            let mut candidate = script.clone();
            candidate.actions[index] = Action::Event(Box::new(event));
            found.push(candidate);
        }
    }
    found
}

/// Simpler frames than this one.
fn plainer(frame: &Frame) -> Vec<Frame> {
    let packet = match frame {
        Frame::Ip(packet) => packet,
        Frame::Tagged(packet) => return vec![Frame::Ip(packet.clone())],
        Frame::Arp | Frame::Other(_) => return Vec::new(),
    };
    let mut found = Vec::new();
    let mut add = |edit: &dyn Fn(&mut Packet)| {
        let mut plainer = packet.clone();
        edit(&mut plainer);
        if plainer != *packet {
            found.push(Frame::Ip(plainer));
        }
    };
    add(&|packet| *packet = packet.undressed());
    add(&|packet| packet.options = 0);
    add(&|packet| packet.extensions.clear());
    add(&|packet| packet.extensions.truncate(packet.extensions.len().saturating_sub(1)));
    add(&|packet| packet.inner_extensions.clear());
    add(&|packet| packet.part = Part::Whole);
    add(&|packet| {
        if let Body::Error { about, .. } = &mut packet.body {
            **about = about.undressed();
        }
    });
    found
}
