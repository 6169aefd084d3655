//! What of the endpoints is written down for the next agent, so that no pod can become another
//! one, or none, while no agent looks; and reading it. Pure.

use std::collections::BTreeMap;

use super::questions::NamedPort;
use super::state::{Remembered, State};
use crate::endpoint::{Endpoint, Holder, Interface};
use crate::model::{self, ObjectName, Pod, Protocol, Str};

/// What an earlier agent knew of the interfaces that are still there.
#[derive(Debug, Default)]
pub struct Memory {
    /// Those of which it knew whose they are.
    pub endpoints: Vec<Endpoint>,
    /// Their pods, by uid, as it saw them last.
    pub pods: BTreeMap<Str, Pod>,
    /// All of which it knew something, also that it cannot be decided, by incarnation.
    pub interfaces: Vec<u64>,
}

/// Writes down endpoints, with what is known of their pods.
pub fn write<'a>(
    endpoints: impl IntoIterator<Item = &'a Endpoint>,
    pods: &BTreeMap<Str, Pod>,
) -> Vec<Remembered> {
    // What is unknown is so because nothing is remembered.
    let known = endpoints.into_iter().filter(|endpoint| endpoint.holder != Holder::Unknown);
    let remember = |endpoint: &Endpoint| {
        let place = Remembered {
            ifindex: endpoint.ifindex,
            interface: endpoint.interface.clone(),
            namespace: endpoint.pod.namespace.to_string(),
            pod: endpoint.pod.name.to_string(),
            uid: endpoint.uid.to_string(),
            addresses: endpoint.addresses.clone(),
            is_by_address: endpoint.is_by_address,
            is_former: endpoint.holder == Holder::Former,
            ..Remembered::default()
        };
        let Some(pod) = pods.get(&endpoint.uid) else { return place };
        let labels = pod.labels.iter().map(|(key, value)| (key.to_string(), value.to_string()));
        let ports = pod.ports.iter().map(|port| NamedPort {
            name: port.name.to_string(),
            protocol: port.protocol.number(),
            port: port.port,
        });
        Remembered {
            labels: labels.collect(),
            ports: ports.collect(),
            created: pod.created,
            ..place
        }
    };
    known.map(remember).collect()
}

/// Reads it. An interface is the same if it is the one that an agent has enforced, of which
/// `is_enforced` tells, or if it has the same number and name in the same `place`.
pub fn read(
    state: &State,
    interfaces: &[Interface],
    place: &str,
    is_enforced: impl Fn(u32) -> bool,
) -> Memory {
    let mut memory = Memory::default();
    for remembered in all(state) {
        let is_its = |interface: &&Interface| interface.ifindex == remembered.ifindex;
        let Some(interface) = interfaces.iter().find(is_its) else { continue };
        let is_same_place = !place.is_empty() && place == state.place;
        if !(is_enforced(interface.ifindex)
            || is_same_place && interface.name == remembered.interface)
        {
            continue;
        }
        memory.interfaces.push(interface.incarnation);
        if remembered.uid.is_empty() {
            continue;
        }
        let endpoint = endpoint(&remembered, interface);
        // Without labels, as by an agent that did not write them down, they are not known.
        if state.remembered.iter().any(|other| *other == remembered) {
            memory.pods.insert(endpoint.uid.clone(), pod(&remembered));
        }
        memory.endpoints.push(endpoint);
    }
    memory
}

/// What a state says. Earlier releases have only written what people read.
fn all(state: &State) -> Vec<Remembered> {
    if !state.remembered.is_empty() {
        return state.remembered.clone();
    }
    let views = state.endpoints.iter().map(|view| Remembered {
        ifindex: view.ifindex,
        interface: view.interface.clone(),
        namespace: view.namespace.clone(),
        pod: view.pod.clone(),
        uid: view.uid.clone(),
        addresses: view.ips.clone(),
        ..Remembered::default()
    });
    views.filter(|remembered| !remembered.uid.is_empty()).collect()
}

fn endpoint(remembered: &Remembered, interface: &Interface) -> Endpoint {
    Endpoint {
        ifindex: interface.ifindex,
        interface: interface.name.clone(),
        incarnation: interface.incarnation,
        nsid: interface.nsid,
        netns: interface.netns.as_ref().map(|netns| netns.id),
        pod: ObjectName::new(remembered.namespace.as_str(), remembered.pod.as_str()),
        uid: remembered.uid.as_str().into(),
        holder: if remembered.is_former { Holder::Former } else { Holder::Current },
        is_by_address: remembered.is_by_address,
        addresses: remembered.addresses.clone(),
    }
}

fn pod(remembered: &Remembered) -> Pod {
    let port = |port: &NamedPort| {
        let (name, protocol) = (port.name.as_str().into(), Protocol::from_number(port.protocol)?);
        Some(model::NamedPort { name, protocol, port: port.port })
    };
    let labels = remembered.labels.iter();
    Pod {
        id: ObjectName::new(remembered.namespace.as_str(), remembered.pod.as_str()),
        uid: remembered.uid.as_str().into(),
        labels: labels.map(|(key, value)| (key.as_str(), value.as_str())).collect(),
        node: None,
        addresses: remembered.addresses.clone(),
        host_network: false,
        finished: false,
        running: false,
        ports: remembered.ports.iter().filter_map(port).collect(),
        created: remembered.created,
    }
}
