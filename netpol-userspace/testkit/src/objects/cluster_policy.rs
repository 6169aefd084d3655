//! A ClusterNetworkPolicy as the compiler hears of it, from JSON that the generators make. Must never
//! be given what an API server refuses: it would panic.

use std::net::IpAddr;

use ipnet::IpNet;
use netpol_model::{
    Action, ClusterPolicy, ClusterRule, IpBlock, NamespaceScope, Peer, Peers, PortMatch, PortRange,
    Ports, Protocol, Selector, Subject, Tier,
};
use serde_json::{Value, json};

fn selector(value: &Value) -> Selector {
    let policy =
        json!({"metadata": {"namespace": "x", "name": "x"}, "spec": {"podSelector": value}});
    let policy = serde_json::from_value(policy).expect("a policy");
    netpol_source::convert::policy(&policy).expect("a valid selector").pods
}

fn pods(value: &Value) -> Subject {
    if let Some(namespaces) = value.get("namespaces") {
        return Subject { namespaces: selector(namespaces), pods: Selector::everything() };
    }
    let pods = &value["pods"];
    Subject {
        namespaces: selector(&pods["namespaceSelector"]),
        pods: selector(&pods["podSelector"]),
    }
}

/// What the object says. A rule with something unknown is what it comes to.
pub(super) fn convert(object: &Value) -> ClusterPolicy {
    let spec = &object["spec"];
    let rules =
        |direction: &str| spec[direction].as_array().into_iter().flatten().map(rule).collect();
    ClusterPolicy {
        name: object["metadata"]["name"].as_str().expect("a name").into(),
        tier: if spec["tier"] == "Admin" { Tier::Admin } else { Tier::Baseline },
        priority: spec["priority"].as_u64().and_then(|n| n.try_into().ok()).expect("small"),
        subject: pods(&spec["subject"]),
        ingress: rules("ingress"),
        egress: rules("egress"),
    }
}

fn rule(value: &Value) -> ClusterRule {
    let name = value["name"].as_str().map(Into::into);
    let understood = (|| {
        let action = match value["action"].as_str()? {
            "Accept" => Action::Accept,
            "Deny" => Action::Deny,
            "Pass" => Action::Pass,
            _ => return None,
        };
        let peers = value.get("from").or(value.get("to"))?.as_array()?;
        let mut all = Vec::new();
        for peer in peers {
            all.extend(peers_of(peer)?);
        }
        let ports = match value.get("protocols") {
            None => Ports::Any,
            Some(list) => {
                let mut all = Vec::new();
                for protocol in list.as_array()? {
                    all.extend(ports_of(protocol)?);
                }
                Ports::Only(all)
            }
        };
        Some(ClusterRule { name: name.clone(), action, peers: Peers::Only(all.into()), ports })
    })();
    understood.unwrap_or(match value["action"] == "Accept" {
        true => ClusterRule {
            name: name.clone(),
            action: Action::Accept,
            peers: Peers::Only([].into()),
            ports: Ports::Any,
        },
        false => ClusterRule { name, action: Action::Deny, peers: Peers::Any, ports: Ports::Any },
    })
}

fn peers_of(peer: &Value) -> Option<Vec<Peer>> {
    if let Some(networks) = peer.get("networks") {
        let block = |text: &Value| {
            let text = text.as_str().expect("a text");
            let (base, length) = text.split_once('/').expect("a block");
            let base: IpAddr = base.parse().expect("an address");
            let net = IpNet::new(base, length.parse().expect("a length")).expect("a block").trunc();
            Peer::Block(IpBlock { cidr: net, except: Vec::new() })
        };
        return Some(networks.as_array()?.iter().map(block).collect());
    }
    if let Some(nodes) = peer.get("nodes") {
        return Some(vec![Peer::Nodes(selector(nodes))]);
    }
    if peer.get("namespaces").is_none() && peer.get("pods").is_none() {
        return None;
    }
    let Subject { namespaces, pods } = pods(peer);
    Some(vec![Peer::Pods { namespaces: NamespaceScope::Matching(namespaces), pods }])
}

fn ports_of(value: &Value) -> Option<Vec<PortMatch>> {
    if let Some(name) = value.get("destinationNamedPort") {
        let name = name.as_str()?;
        let named = |protocol| PortMatch { protocol, range: PortRange::Named(name.into()) };
        return Some(Protocol::ALL.map(named).into());
    }
    for (key, protocol) in
        [("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("sctp", Protocol::Sctp)]
    {
        let Some(transport) = value.get(key) else { continue };
        let port = transport.get("destinationPort")?;
        let number = |value: &Value| u16::try_from(value.as_u64()?).ok();
        let range = match port.get("number") {
            Some(only) => PortRange::Numbers(number(only)?, number(only)?),
            None => {
                let range = port.get("range")?;
                PortRange::Numbers(number(&range["start"])?, number(&range["end"])?)
            }
        };
        return Some(vec![PortMatch { protocol, range }]);
    }
    None
}
