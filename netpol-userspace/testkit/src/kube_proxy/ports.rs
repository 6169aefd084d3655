//! What kube-proxy translates: Service ports with the endpoints that it would choose from. Must
//! never look at pods or selectors, only at EndpointSlices, as kube-proxy does.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;

use super::{Config, Family};

/// One port of a Service for packets of one family.
#[derive(Debug, Clone)]
pub struct Port {
    /// `namespace/name:port`, as in kube-proxy's comments.
    pub name: String,
    /// In lower case.
    pub protocol: String,
    pub cluster_ip: IpAddr,
    pub port: u16,
    pub external_ips: Vec<IpAddr>,
    pub balancer_ips: Vec<IpAddr>,
    pub node_port: Option<u16>,
    /// Endpoints anywhere, sorted.
    pub cluster: Vec<SocketAddr>,
    /// Those of them on this node.
    pub local: Vec<SocketAddr>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
}

impl Port {
    /// Anybody reaches it by more than its cluster IP.
    pub fn externally_accessible(&self) -> bool {
        self.node_port.is_some() || !self.external_ips.is_empty() || !self.balancer_ips.is_empty()
    }

    /// Endpoints for the cluster IP.
    pub fn internal(&self) -> &[SocketAddr] {
        if self.internal_local { &self.local } else { &self.cluster }
    }

    /// Endpoints for what comes from outside.
    pub fn external(&self) -> &[SocketAddr] {
        if self.external_local { &self.local } else { &self.cluster }
    }

    pub fn uses_cluster(&self) -> bool {
        !self.cluster.is_empty() && (!self.internal_local || self.externally_accessible())
    }

    pub fn uses_local(&self) -> bool {
        !self.local.is_empty()
            && (self.internal_local || (self.external_local && self.externally_accessible()))
    }

    /// Every endpoint that some chain leads to.
    pub fn reachable(&self) -> &[SocketAddr] {
        if self.uses_cluster() { &self.cluster } else { &self.local }
    }
}

/// The ports of a Service; none if it is headless or a name.
pub fn of(
    service: &core::Service,
    slices: &[&discovery::EndpointSlice],
    family: Family,
    config: &Config,
) -> Vec<Port> {
    let spec = service.spec.as_ref().unwrap();
    let cluster_ips =
        spec.cluster_ips.clone().or_else(|| spec.cluster_ip.clone().map(|ip| vec![ip]));
    let cluster_ip = in_family(cluster_ips.unwrap_or_default(), family).first().copied();
    let Some(cluster_ip) = cluster_ip else { return Vec::new() };
    let (namespace, name) = super::name_of(&service.metadata);
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let balancer = balancer.and_then(|balancer| balancer.ingress.clone()).unwrap_or_default();
    let vip = |ip_mode: &Option<String>| ip_mode.as_deref() != Some("Proxy");
    let balancer_ips =
        balancer.iter().filter(|ingress| vip(&ingress.ip_mode)).filter_map(|i| i.ip.clone());
    let is_local = |policy: &Option<String>| policy.as_deref() == Some("Local");
    let own = slices.iter().filter(|slice| {
        let labels = slice.metadata.labels.as_ref();
        let owner = labels.and_then(|labels| labels.get("kubernetes.io/service-name"));
        super::name_of(&slice.metadata).0 == namespace && owner == Some(&name)
    });
    let own: Vec<&discovery::EndpointSlice> = own.copied().collect();
    let port = |port: &core::ServicePort| {
        let (cluster, local) = endpoints(&own, port, family, &config.node_name);
        let suffix = port.name.as_ref().map_or(String::new(), |name| format!(":{name}"));
        Port {
            name: format!("{namespace}/{name}{suffix}"),
            protocol: protocol(port.protocol.as_deref()).to_lowercase(),
            cluster_ip,
            port: port.port.try_into().unwrap(),
            external_ips: in_family(spec.external_ips.clone().unwrap_or_default(), family),
            balancer_ips: in_family(balancer_ips.clone().collect(), family),
            node_port: port.node_port.map(|number| number.try_into().unwrap()),
            cluster,
            local,
            internal_local: is_local(&spec.internal_traffic_policy),
            external_local: is_local(&spec.external_traffic_policy),
        }
    };
    spec.ports.iter().flatten().map(port).collect()
}

fn in_family(texts: Vec<String>, family: Family) -> Vec<IpAddr> {
    let addresses = texts.iter().filter_map(|text| text.parse().ok());
    addresses.filter(|&address| Family::of(address) == family).collect()
}

fn protocol(text: Option<&str>) -> &str {
    text.unwrap_or("TCP")
}

/// The ready endpoints, or, if none is ready, those that still serve while they end: anywhere, and
/// on this node.
fn endpoints(
    slices: &[&discovery::EndpointSlice],
    port: &core::ServicePort,
    family: Family,
    node: &str,
) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
    let mut all = Vec::new();
    for slice in
        slices.iter().filter(|slice| (slice.address_type == "IPv4") == (family == Family::V4))
    {
        let same = |other: &&discovery::EndpointPort| {
            other.name.as_deref().unwrap_or("") == port.name.as_deref().unwrap_or("")
                && protocol(other.protocol.as_deref()) == protocol(port.protocol.as_deref())
        };
        let Some(number) = slice.ports.iter().flatten().find(same).and_then(|port| port.port)
        else {
            continue;
        };
        for endpoint in &slice.endpoints {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let address = endpoint.addresses[0].parse().unwrap();
            let ready = conditions.ready.unwrap_or(true);
            all.push((
                SocketAddr::new(address, number.try_into().unwrap()),
                ready,
                conditions.serving.unwrap_or(ready) && conditions.terminating.unwrap_or(false),
                endpoint.node_name.as_deref() == Some(node),
            ));
        }
    }
    let choose = |local_only: bool| {
        let some: Vec<_> = all.iter().filter(|endpoint| endpoint.3 || !local_only).collect();
        let ready: Vec<SocketAddr> = some.iter().filter(|e| e.1).map(|e| e.0).collect();
        let ending = some.iter().filter(|e| e.2).map(|e| e.0);
        let mut chosen = if ready.is_empty() { ending.collect() } else { ready };
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    };
    (choose(false), choose(true))
}
