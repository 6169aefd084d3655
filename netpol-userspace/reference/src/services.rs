//! Service addresses, plainly evaluated on the API objects: where a packet to one may end up, and
//! what a client's egress policies say of all these places. Like the rest of the evaluator it must
//! never share code with what it is compared with, nor be made faster or cleverer.
//!
//! Decisions of netpol's own: what goes to a Service passes if its true destination is allowed,
//! which is seen once the proxy has chosen it; unless a place that is not allowed is the node
//! itself, since what goes there is not seen again: then nothing passes that could go there. The pod
//! itself is allowed by NetworkPolicies as a place, but not exempt from the tiers. To a
//! Service of which no backend is known everything passes that far. The backends are the ready endpoints, or those that serve if none is
//! ready; a Service that two claim an address and port for is that of the older one, of equally
//! old ones that with the smaller namespace/name; without cluster IP a Service is of both
//! families.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Node, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Reference, namespace_of, protocol_name};
use netpol_model::Direction;

/// The objects that Services consist of.
#[derive(Debug, Clone, Default)]
pub struct Services {
    /// Services.
    pub services: Vec<Service>,
    /// Their endpoints.
    pub slices: Vec<EndpointSlice>,
    /// Nodes, on whose addresses node ports are reached.
    pub nodes: Vec<Node>,
    /// The addresses of the client's own node.
    pub here: BTreeSet<IpAddr>,
    /// The name of this node's proxy, if it is not kube-proxy.
    pub proxy: Option<String>,
}

/// What a client's policies say of a packet whose destination a proxy may choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It must not go out.
    No,
    /// It depends on the backend that the proxy chooses, whether it gets there; or the client may
    /// be that backend.
    Depends,
    /// It may go out.
    Yes,
}

impl Services {
    /// The places that a packet to this address, protocol and port may be sent on to; `None` if no
    /// Service is reached there.
    pub fn backends(
        &self,
        address: IpAddr,
        protocol: u8,
        port: u16,
    ) -> Option<BTreeSet<(IpAddr, u16)>> {
        let (service, port) = self.reached(address, protocol, port)?;
        Some(self.chosen_from(service, port, address.is_ipv4()))
    }

    /// The Service that is reached there, and by which of its ports.
    fn reached(
        &self,
        address: IpAddr,
        protocol: u8,
        port: u16,
    ) -> Option<(&Service, &ServicePort)> {
        let protocol = protocol_name(protocol)?;
        let mut best: Option<(&Service, &ServicePort)> = None;
        for service in self.services.iter().filter(|service| self.is_handled(&service.metadata)) {
            let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
            for candidate in ports {
                if candidate.protocol.as_deref().unwrap_or("TCP") != protocol
                    || !self.is_reached(service, candidate, address, i32::from(port))
                {
                    continue;
                }
                if best.is_none_or(|(other, _)| precedence(service) < precedence(other)) {
                    best = Some((service, candidate));
                }
            }
        }
        best
    }

    /// What the egress policies of `pod` say of a packet to this destination, if need be by the
    /// places that it may be sent on to.
    pub fn egress(
        &self,
        reference: &Reference,
        pod: &Pod,
        remote: IpAddr,
        protocol: u8,
        port: u16,
    ) -> Answer {
        let allows =
            |address, port| reference.allows(Direction::Egress, pod, address, protocol, port);
        let allows_backend = |address, port| reference.allows_backend(pod, address, protocol, port);
        let is_judged = reference.is_judged(Direction::Egress, pod);
        let yes = |is_allowed: bool| if is_allowed { Answer::Yes } else { Answer::No };
        let Some(places) = self.backends(remote, protocol, port) else {
            return yes(allows(remote, port));
        };
        if !is_judged && !reference.is_judged(Direction::Ingress, pod) {
            return Answer::Yes;
        }
        let own = super::addresses(pod);
        let may_be_itself = places.iter().any(|(address, _)| own.contains(address));
        if !is_judged {
            return if may_be_itself { Answer::Depends } else { Answer::Yes };
        }
        if places.is_empty() {
            // Nobody will translate it: the node itself receives what is for its address.
            let is_here = self.here.contains(&remote);
            return if is_here { yes(allows(remote, port)) } else { Answer::Depends };
        }
        let denied: Vec<_> = places.iter().filter(|(a, p)| !allows_backend(*a, *p)).collect();
        if denied.len() == places.len() || denied.iter().any(|(a, _)| self.here.contains(a)) {
            return Answer::No;
        }
        if denied.is_empty() && !may_be_itself { Answer::Yes } else { Answer::Depends }
    }

    /// Whether this node's proxy looks at an object: kube-proxy at what has no label that names a
    /// proxy, another one at what names it, and neither at what is labelled as headless.
    fn is_handled(&self, metadata: &ObjectMeta) -> bool {
        let label = |key: &str| metadata.labels.as_ref().and_then(|labels| labels.get(key));
        label("service.kubernetes.io/headless").is_none()
            && label("service.kubernetes.io/service-proxy-name") == self.proxy.as_ref()
    }

    /// What becomes of a packet that was sent to a Service and leaves the node as it is, without
    /// anybody having translated it: it goes to the address that it carries. Only to a port of
    /// another node, which translates, it goes as if all backends were there, and must be allowed
    /// to all. Where some backends are denied nothing passes that could still be translated. That it
    /// is itself helps a pod only where its own node translates: what comes back from elsewhere comes
    /// from another address, and nobody could tell whose it is. What goes to the pod's own address
    /// looks as if its node had translated it.
    pub fn leaves_untranslated(
        &self,
        reference: &Reference,
        pod: &Pod,
        remote: IpAddr,
        protocol: u8,
        port: u16,
    ) -> bool {
        if super::addresses(pod).contains(&remote) {
            return reference.allows_backend(pod, remote, protocol, port);
        }
        let allows =
            |address, port| reference.allows(Direction::Egress, pod, address, protocol, port);
        let reached = self.reached(remote, protocol, port);
        let places = self.backends(remote, protocol, port).unwrap_or_default();
        let (Some((service, reached)), false) = (reached, places.is_empty()) else {
            return allows(remote, port);
        };
        let is_on_nodes = !own_addresses(service).contains(&remote)
            && reached.node_port == Some(i32::from(port))
            && !self.here.contains(&remote);
        let is_allowed = |&(address, port): &(IpAddr, u16)| {
            reference.policies_allow(Direction::Egress, pod, address, protocol, port)
        };
        places.iter().all(is_allowed) && (is_on_nodes || allows(remote, port))
    }

    /// Whether packets to this address and port number are for this port of the Service.
    fn is_reached(
        &self,
        service: &Service,
        port: &ServicePort,
        address: IpAddr,
        number: i32,
    ) -> bool {
        let own = cluster_ips(service);
        let external = service.spec.as_ref().is_some_and(|spec| {
            spec.type_.as_deref() == Some("ExternalName")
                || spec.cluster_ip.as_deref() == Some("None")
                || spec.cluster_ips.iter().flatten().any(|ip| ip == "None")
        });
        let of_a_family = own.is_empty() || own.iter().any(|ip| ip.is_ipv4() == address.is_ipv4());
        if external || !of_a_family {
            return false;
        }
        let listens = own_addresses(service).contains(&address);
        let on_node = port.node_port.is_some_and(|n| n != 0 && n == number)
            && self.nodes.iter().any(|node| node_addresses(node).contains(&address));
        (listens && port.port == number) || on_node
    }

    /// The endpoints of the Service that a proxy chooses from for this port and family.
    fn chosen_from(
        &self,
        service: &Service,
        port: &ServicePort,
        v4: bool,
    ) -> BTreeSet<(IpAddr, u16)> {
        let (mut ready, mut serving) = (BTreeSet::new(), BTreeSet::new());
        let handled = self.slices.iter().filter(|slice| self.is_handled(&slice.metadata));
        for slice in handled.filter(|slice| belongs(slice, service)) {
            if slice.address_type != if v4 { "IPv4" } else { "IPv6" } {
                continue;
            }
            for target in slice.ports.iter().flatten() {
                let same_name =
                    target.name.as_deref().unwrap_or("") == port.name.as_deref().unwrap_or("");
                let same_protocol = target.protocol.as_deref().unwrap_or("TCP")
                    == port.protocol.as_deref().unwrap_or("TCP");
                let Some(number) = target.port.and_then(|n| u16::try_from(n).ok()) else {
                    continue;
                };
                if !same_name || !same_protocol {
                    continue;
                }
                for endpoint in &slice.endpoints {
                    let conditions = endpoint.conditions.clone().unwrap_or_default();
                    let is_ready = conditions.ready.unwrap_or(true);
                    let list = match (is_ready, conditions.serving.unwrap_or(is_ready)) {
                        (true, _) => &mut ready,
                        (false, true) => &mut serving,
                        (false, false) => continue,
                    };
                    let addresses = endpoint.addresses.iter();
                    list.extend(addresses.filter_map(|a| Some((a.parse().ok()?, number))));
                }
            }
        }
        if ready.is_empty() { serving } else { ready }
    }
}

fn belongs(slice: &EndpointSlice, service: &Service) -> bool {
    let labels = slice.metadata.labels.as_ref();
    let named = labels.and_then(|labels| labels.get("kubernetes.io/service-name"));
    namespace_of(&slice.metadata) == namespace_of(&service.metadata)
        && named.is_some()
        && named == service.metadata.name.as_ref()
}

fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let texts = if listed.is_empty() { spec.cluster_ip.as_slice() } else { listed };
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// All that it has beside the nodes'.
fn own_addresses(service: &Service) -> Vec<IpAddr> {
    [cluster_ips(service), external_ips(service), balancers(service)].concat()
}

fn external_ips(service: &Service) -> Vec<IpAddr> {
    let ips = service.spec.iter().flat_map(|spec| spec.external_ips.iter().flatten());
    ips.filter_map(|text| text.parse().ok()).collect()
}

/// Load balancer addresses, but of those that are proxies: packets to these leave the cluster.
fn balancers(service: &Service) -> Vec<IpAddr> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref());
    ingress
        .into_iter()
        .flatten()
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_ref()?.parse().ok())
        .collect()
}

pub(super) fn node_addresses(node: &Node) -> Vec<IpAddr> {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    addresses
        .filter(|address| address.type_ == "InternalIP" || address.type_ == "ExternalIP")
        .filter_map(|address| address.address.parse().ok())
        .collect()
}

fn precedence(service: &Service) -> (i64, &str, &str) {
    let created = service.metadata.creation_timestamp.as_ref();
    (
        created.map_or(0, |time| time.0.as_second()),
        namespace_of(&service.metadata),
        service.metadata.name.as_deref().unwrap_or_default(),
    )
}
