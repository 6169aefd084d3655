//! What of the endpoints is written down for the next agent, so that no pod can become another
//! one, or none, while no agent looks; and reading it. Pure.

use std::collections::BTreeMap;

use netpol_api::questions::NamedPort;
use netpol_api::state::{Remembered, State};
use netpol_endpoint::{Endpoint, Holder, Interface};
use netpol_model::{self as model, ObjectName, Pod, Protocol, Uid};

/// What an earlier agent knew of the interfaces that are still there.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Those of which it knew whose they are.
    pub(crate) endpoints: Vec<Endpoint>,
    /// Their pods, by uid, as it saw them last.
    pub(crate) pods: BTreeMap<Uid, Pod>,
    /// All of which it knew something, also that it cannot be decided, by incarnation.
    pub(crate) interfaces: Vec<u64>,
}

/// Writes down endpoints, with what is known of their pods.
pub(crate) fn write<'a>(
    endpoints: impl IntoIterator<Item = &'a Endpoint>,
    pods: &BTreeMap<Uid, Pod>,
) -> Vec<Remembered> {
    // What is unknown is so because nothing is remembered.
    let known = endpoints.into_iter().filter(|endpoint| endpoint.holder != Holder::Unknown);
    let remember = |endpoint: &Endpoint| {
        let place = Remembered {
            ifindex: endpoint.ifindex,
            interface: endpoint.interface.clone(),
            namespace: endpoint.pod.namespace.to_string(),
            pod: endpoint.pod.name.to_string(),
            // What was only supposed is supposed anew, or known better.
            uid: if endpoint.is_supposed { String::new() } else { endpoint.uid.to_string() },
            addresses: endpoint.addresses.clone(),
            is_by_address: endpoint.is_by_address,
            appeared: endpoint.appeared,
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
pub(crate) fn read(
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
        // Earlier releases have not written down what pods were like.
        if !state.remembered.is_empty() {
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
        is_supposed: false,
        appeared: remembered.appeared,
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
        addresses: remembered.addresses.clone().into(),
        host_network: false,
        finished: false,
        running: false,
        ports: remembered.ports.iter().filter_map(port).collect(),
        annotations: None,
        created: remembered.created,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use netpol_api::testing::{endpoint as view, state};
    use netpol_endpoint::Switch;

    const PLACE: &str = "boot net:[1]";

    fn interface(ifindex: u32, name: &str) -> Interface {
        Interface {
            ifindex,
            name: name.to_owned(),
            incarnation: u64::from(ifindex) + 100,
            nsid: 7,
            netns: None,
            peer_ifindex: 2,
            peer_name: "eth0".to_owned(),
            addresses: vec![],
            link_address: None,
            switch: Switch::None,
            appeared: 2000,
        }
    }

    fn known(uid: &str, holder: Holder) -> Endpoint {
        Endpoint {
            ifindex: 5,
            interface: "v5".to_owned(),
            incarnation: 1,
            nsid: 0,
            netns: None,
            pod: ObjectName::new("shop", "web"),
            uid: uid.into(),
            holder,
            is_by_address: true,
            is_supposed: false,
            appeared: 1000,
            addresses: vec!["10.0.0.1".parse().unwrap()],
        }
    }

    fn web() -> Pod {
        let port = model::NamedPort { name: "http".into(), protocol: Protocol::Tcp, port: 80 };
        Pod {
            id: ObjectName::new("shop", "web"),
            uid: "u".into(),
            labels: [("app", "web")].into_iter().collect(),
            node: None,
            addresses: vec!["10.0.0.1".parse().unwrap()].into(),
            host_network: false,
            finished: false,
            running: false,
            ports: [port].into(),
            annotations: None,
            created: 900,
        }
    }

    fn written(endpoints: &[Endpoint]) -> State {
        let pods = BTreeMap::from([("u".into(), web())]);
        let remembered = write(endpoints, &pods);
        let text =
            serde_json::to_string(&State { remembered, place: PLACE.to_owned(), ..state(vec![]) });
        serde_json::from_str(&text.unwrap()).unwrap()
    }

    fn recalled(state: &State, interface: &Interface, is_enforced: bool) -> Memory {
        read(state, std::slice::from_ref(interface), PLACE, |_| is_enforced)
    }

    #[test]
    fn what_is_written_is_known_again() {
        for holder in [Holder::Current, Holder::Former] {
            let memory =
                recalled(&written(&[known("u", holder.clone())]), &interface(5, "v5"), false);
            let expected = Endpoint { incarnation: 105, nsid: 7, ..known("u", holder) };
            assert_eq!(memory.endpoints, [expected]);
            assert_eq!(memory.pods, BTreeMap::from([("u".into(), web())]));
            assert_eq!(memory.interfaces, [105]);
        }
    }

    #[test]
    fn only_the_same_interface_is_remembered() {
        let state = written(&[known("u", Holder::Current)]);
        let is_known = |interface: &Interface, is_enforced| {
            !recalled(&state, interface, is_enforced).endpoints.is_empty()
        };
        assert!(is_known(&interface(5, "v5"), false));
        assert!(!is_known(&interface(6, "v5"), true));
        // Its name may change, if what is attached to it says that it is the same.
        assert!(!is_known(&interface(5, "other"), false));
        assert!(is_known(&interface(5, "other"), true));
        // Numbers of another boot mean nothing.
        let elsewhere = State { place: "other".to_owned(), ..state.clone() };
        assert!(recalled(&elsewhere, &interface(5, "v5"), false).endpoints.is_empty());
        assert!(!recalled(&elsewhere, &interface(5, "v5"), true).endpoints.is_empty());
        let nowhere = read(&state, &[interface(5, "v5")], "", |_| false);
        assert!(nowhere.endpoints.is_empty());
    }

    #[test]
    fn what_could_not_be_decided_is_no_pods_and_what_is_unknown_not_remembered() {
        let open = known("", Holder::OneOf(vec!["a".into(), "b".into()]));
        let memory = recalled(&written(&[open]), &interface(5, "v5"), true);
        assert_eq!((memory.endpoints.len(), memory.interfaces.as_slice()), (0, &[105][..]));
        let memory = recalled(&written(&[known("", Holder::Unknown)]), &interface(5, "v5"), true);
        assert_eq!((memory.endpoints.len(), memory.interfaces.len()), (0, 0));
    }

    /// It has written down what people read, and nothing of what the pods were like.
    #[test]
    fn an_earlier_releases_state_still_says_whose_an_interface_is() {
        let view = view("shop", "web", 3, "10.0.0.1");
        let (ifindex, name) = (view.ifindex, view.interface.clone());
        let state = state(vec![view]);
        let memory = recalled(&state, &interface(ifindex, &name), true);
        assert_eq!(memory.endpoints[0].pod, ObjectName::new("shop", "web"));
        assert_eq!(memory.endpoints[0].holder, Holder::Current);
        assert!(memory.pods.is_empty());
    }
}
