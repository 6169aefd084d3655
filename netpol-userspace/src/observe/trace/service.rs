//! Questions about a Service: which of its ports is meant, and what becomes of a packet at each of
//! its backends. Must never decide a verdict.

use anyhow::{Result, bail};

use super::party::{Kind, Party};
use super::tracer::{ALLOW, DENY, Tracer, Try, Way, assemble, name_of, side, verdict};
use super::{Answer, Backend, Hop, Port, Protocol};
use crate::agent::questions::{BackendInfo, End, FrontInfo, Owner};
use crate::model::Direction;

impl Tracer<'_> {
    /// The answer for a packet to a Service, and for each place where it may end up.
    pub(super) fn reach_service(
        &mut self,
        from: &Party,
        to: &Party,
        packet: Try,
        front: &FrontInfo,
    ) -> Result<Answer> {
        let mut way = Way::default();
        if let Kind::Endpoint(endpoint) = &from.kind {
            way.hops.push(self.egress(endpoint, &packet, true)?);
        }
        let mut backends = Vec::new();
        for backend in &front.backends {
            let party = self.backend_party(backend);
            let packet = Try { destination: backend.ip, port: backend.port, ..packet };
            let mut one = self.way(from, &party, &packet)?;
            way.elsewhere.append(&mut one.elsewhere);
            let side = side(&party, backend.ip, Some(backend.port));
            backends.push(Backend { verdict: verdict(&one.hops), side, hops: one.hops });
        }
        if way.hops.is_empty() && backends.iter().all(|backend| backend.hops.is_empty()) {
            bail!(
                "neither {} nor a backend of {} is a pod of this node: ask on the node of one",
                name_of(from),
                name_of(to)
            );
        }
        way.elsewhere.sort();
        way.elsewhere.dedup();
        for hop in &mut way.hops {
            summarise(hop, &backends);
        }
        let mut answer = assemble(from, to, &packet, way, backends, Vec::new());
        if answer.backends.is_empty() {
            answer.verdict = DENY;
            let note = format!("{} has no ready backend: nobody answers there", name_of(to));
            answer.notes.push(note);
        }
        Ok(answer)
    }

    fn backend_party(&self, backend: &BackendInfo) -> Party {
        let Owner { pod, node, .. } = backend.owner.clone();
        let own_node = &self.directory.node.state.node;
        let local = pod.as_ref().and_then(|pod| self.directory.node.endpoint(pod).ok());
        let kind = match (local, &pod, node.clone()) {
            (Some(endpoint), ..) => Kind::Endpoint(Box::new(endpoint.clone())),
            (None, Some(_), Some(node)) => Kind::Elsewhere { node },
            (None, None, Some(node)) if node == *own_node => Kind::ThisNode,
            _ => Kind::Other,
        };
        let name = pod.or(node.map(|node| format!("node {node}")));
        Party { name, ips: vec![backend.ip], kind, ports: Vec::new(), are_ports_known: true }
    }
}

/// The port of a Service that has only one of the protocol.
pub(super) fn only_port(to: &Party, protocol: Protocol) -> Result<u16> {
    let Kind::Service(service) = &to.kind else { return to.port(protocol, &Port::None) };
    let number = protocol.number(false);
    let ends = service.fronts.iter().flat_map(|front| &front.own);
    let mut ports: Vec<u16> =
        ends.filter(|end| end.protocol == number).map(|end| end.port).collect();
    ports.sort_unstable();
    ports.dedup();
    match ports[..] {
        [port] => Ok(port),
        [] => bail!("{} has no {protocol} port", name_of(to)),
        _ => bail!("which port of {}? add --port N, one of {ports:?}", name_of(to)),
    }
}

/// Where a packet to a Service arrives, and what stands behind it.
pub(super) fn front<'a>(
    fronts: &'a [FrontInfo],
    to: &Party,
    packet: &Try,
) -> Option<(End, &'a FrontInfo)> {
    let number = packet.protocol.number(false);
    fronts.iter().find_map(|front| {
        let end = front.own.iter().chain(&front.on_nodes).find(|end| {
            end.protocol == number
                && end.port == packet.port
                && end.ip.is_ipv6() == packet.destination.is_ipv6()
                && to.ips.contains(&end.ip)
        })?;
        Some((*end, front))
    })
}

/// What a hop to a Service says once the backends are known.
fn summarise(hop: &mut Hop, backends: &[Backend]) {
    if hop.verdict == DENY || !hop.reason.is_empty() {
        return;
    }
    let egress = || {
        let hops = backends.iter().flat_map(|backend| &backend.hops);
        hops.filter(|hop| hop.direction == Direction::Egress.as_str())
    };
    let mut policies: Vec<String> =
        egress().filter(|hop| hop.verdict == ALLOW).flat_map(|hop| hop.policies.clone()).collect();
    policies.sort();
    policies.dedup();
    hop.policies = policies;
    let n_denied = egress().filter(|hop| hop.verdict == DENY).count();
    hop.reason = match n_denied {
        0 => "every backend is allowed".to_owned(),
        _ => format!("{n_denied} of {} backends will be denied", backends.len()),
    };
}
