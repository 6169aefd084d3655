//! What is done to a node, in full: a cluster, then events and frames in order. Running a script
//! twice does the same twice. Writes itself down for people.

use std::fmt::Write as _;

use crate::generate::service_world::{ServiceEvent, ServiceWorld};
use crate::generate::world::{Event, World};
use netpol_model::Direction;
use serde::Serialize;

use super::packets::{Frame, Packet};

/// A cluster, and what happens in it.
#[derive(Debug, Clone, Default)]
pub struct Script {
    pub world: World,
    pub services: ServiceWorld,
    /// The pods that are on the node, by name.
    pub local: Vec<String>,
    pub actions: Vec<Action>,
}

#[derive(Debug, Clone)]
pub enum Action {
    Event(Box<Event>),
    Service(Box<ServiceEvent>),
    Send(Sending),
}

/// A frame towards a local pod or from it.
#[derive(Debug, Clone)]
pub struct Sending {
    pub pod: String,
    pub direction: Direction,
    /// Made by this node itself.
    pub is_from_node: bool,
    pub frame: Frame,
    /// Which backend a proxy chooses, if it is to a Service.
    pub choice: usize,
}

/// A frame that was judged otherwise than specified.
#[derive(Debug, Clone)]
pub struct Difference {
    /// Which of the script's actions sent it.
    pub at: usize,
    pub sending: Sending,
    pub passed: bool,
    pub look: Look,
}

/// Where a verdict was given.
#[derive(Debug, Clone)]
pub enum Look {
    /// At the pod.
    First,
    /// At the pod: the packet passes, but was stamped (or not) against the specification.
    Stamp { is_stamped: bool },
    /// On its way, translated.
    Second(Box<Packet>),
}

impl Script {
    /// The same up to a difference that its last action makes, for a bug report.
    pub fn describe(&self, difference: &Difference, keeps: bool) -> String {
        let Difference { sending, passed, look, .. } = difference;
        let (seen, expected) = if *passed { ("passes", "drops") } else { ("drops", "passes") };
        let (Ok(mut out) | Err(mut out)) = Ok::<_, String>(String::new());
        let _ = writeln!(out, "The program {seen} what the specification {expected}:");
        let _ = writeln!(out, "  {}", sending.describe());
        match look {
            Look::First => {}
            Look::Stamp { is_stamped } => {
                let _ = writeln!(out, "  (it passes, with a wrong stamp: {is_stamped})");
            }
            Look::Second(packet) => {
                let _ = writeln!(out, "  translated, where it leaves the node: {packet}");
            }
        }
        let hex: String = sending.frame.bytes().iter().map(|b| format!("{b:02x}")).collect();
        let _ = writeln!(out, "  frame {hex}");
        if keeps {
            let _ = writeln!(out, "  with --established keep");
        }
        if let Some(proxy) = &self.services.proxy {
            let _ = writeln!(out, "  with --service-proxy-name {proxy}");
        }
        let before = &self.actions[..self.actions.len().saturating_sub(1)];
        if !before.is_empty() {
            let _ = writeln!(out, "after the following, in the cluster below:");
            for action in before {
                out.push_str(&action.describe());
            }
        }
        let _ = writeln!(out, "The cluster, for `netpol check` and the playground:");
        out.push_str(&self.manifests());
        out
    }

    /// Takes an event into the cluster that the script begins with.
    pub fn settle(&mut self, action: &Action) {
        match action {
            Action::Event(event) => self.world.apply(event),
            Action::Service(event) => self.services.apply(event),
            Action::Send(_) => {}
        }
    }

    /// The cluster as manifests.
    pub fn manifests(&self) -> String {
        let world = &self.world;
        let namespaces = world.namespaces.values().map(manifest);
        let pods = world.pods.values().map(manifest);
        let policies = world.policies.values().map(manifest);
        let cluster_policies = world.cluster_policies.values().map(manifest);
        let nodes = world.nodes.values().map(manifest);
        let cluster = namespaces.chain(pods).chain(policies).chain(cluster_policies).chain(nodes);
        let world = &self.services;
        let services = world.services.values().map(manifest);
        let slices = world.slices.values().map(manifest);
        cluster.chain(services).chain(slices).collect()
    }
}

impl Sending {
    pub fn describe(&self) -> String {
        let Self { pod, direction, is_from_node, frame, .. } = self;
        let by = if *is_from_node { ", made by the node" } else { "" };
        format!("{direction} of pod {pod}: {frame}{by}")
    }
}

impl Action {
    fn describe(&self) -> String {
        match self {
            Self::Send(sending) => format!("- frame: {}\n", sending.describe()),
            Self::Event(event) => describe_event(event),
            Self::Service(event) => describe_service_event(event),
        }
    }
}

fn describe_service_event(event: &ServiceEvent) -> String {
    match event {
        ServiceEvent::Service(object) => describe_object("applied", object),
        ServiceEvent::Slice(object) => describe_object("applied", object),
        ServiceEvent::ServiceGone(object) => describe_object("deleted", object),
        ServiceEvent::SliceGone(object) => describe_object("deleted", object),
    }
}

fn describe_event(event: &Event) -> String {
    match event {
        Event::Namespace(object) => describe_object("applied", object),
        Event::Pod(object) => describe_object("applied", object),
        Event::Policy(object) => describe_object("applied", object),
        Event::ClusterPolicy(object) => describe_object("applied", object),
        Event::Node(object) => describe_object("applied", object),
        Event::NamespaceGone(object) => describe_object("deleted", object),
        Event::PodGone(object) => describe_object("deleted", object),
        Event::PolicyGone(object) => describe_object("deleted", object),
        Event::ClusterPolicyGone(object) => describe_object("deleted", object),
        Event::NodeGone(object) => describe_object("deleted", object),
    }
}

fn describe_object(what: &str, object: &impl Serialize) -> String {
    let lines: String = manifest(object).lines().map(|line| format!("    {line}\n")).collect();
    format!("- {what}:\n{lines}")
}

fn manifest(object: &impl Serialize) -> String {
    let mut value = serde_json::to_value(object).expect("an object can be written");
    without_nothing(&mut value);
    let yaml = serde_saphyr::to_string(&value).expect("an object can be written as YAML");
    format!("---\n{}\n", yaml.trim_end())
}

/// Required fields that the generator leaves empty where they do not matter are not printed.
fn without_nothing(value: &mut serde_json::Value) {
    if let Some(fields) = value.as_object_mut() {
        fields.values_mut().for_each(without_nothing);
        fields.retain(|_, value| !value.is_null());
    }
}
