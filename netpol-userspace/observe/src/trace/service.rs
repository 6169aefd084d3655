//! Questions about a Service: which of its ports is meant, and what becomes of a packet at each of
//! its backends. Must never decide a verdict.

use anyhow::{Result, bail};
use netpol_api::decision::Decision;
use netpol_common::layout::Reason;
use netpol_common::service::ToService;

use super::masquerade;
use super::party::{Kind, Party};
use super::tracer::{Route, Tracer, Try, assemble, name_of, side};
use super::{Answer, Backend, Elsewhere, Hop, Port, Protocol};
use crate::events;
use crate::proxy::{self, Passage};
use netpol_api::questions::{BackendInfo, End, FrontInfo, Owner, ServiceInfo};
use netpol_api::state::EndpointView;
use netpol_compile::ServiceKey;
use netpol_model::{self as model, Direction};

impl Tracer<'_> {
    /// The answer for a packet to a Service, and for each place where it may end up.
    pub(super) fn reach_service(
        &mut self,
        from: &Party,
        to: &Party,
        packet: Try,
        front: &FrontInfo,
        passage: &Passage<'_>,
    ) -> Result<Answer> {
        let node = self.directory.node;
        let here = &*node.state.node;
        let mut way = Route::default();
        if let Kind::Endpoint(endpoint) = &from.kind {
            let mut hop = self.egress(endpoint, &packet, true)?;
            if passage.translator != Some(here) {
                self.judge_untranslated(&mut hop, endpoint, &packet);
            }
            way.hops.push(hop);
        }
        let (used, others): (Vec<&BackendInfo>, Vec<_>) =
            front.backends.iter().partition(|backend| passage.leads_to(backend, here));
        let mut backends = Vec::new();
        for backend in &used {
            let (backend, mut elsewhere) = self.reach_backend(from, backend, packet, passage)?;
            way.elsewhere.append(&mut elsewhere);
            backends.push(backend);
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
        let mut notes = masquerade::notes(from, passage, here, &backends);
        notes.extend(others_note(to, passage, used.len(), others.len()));
        let mut answer = assemble(from, to, &packet, way, backends, notes);
        if answer.backends.is_empty() {
            answer.verdict = Decision::Deny;
        }
        Ok(answer)
    }

    /// What becomes of packets to a Service that another node translates: that is not seen here, so
    /// they pass only if it makes no difference to which backend they go.
    fn judge_untranslated(&self, hop: &mut Hop, endpoint: &EndpointView, packet: &Try) {
        let Some(protocol) = model::Protocol::from_number(packet.protocol_number()) else { return };
        let key = ServiceKey { address: packet.destination, protocol, port: packet.port };
        let word = self.scratch.to_service(endpoint.egress.set, endpoint.id, &key);
        if hop.verdict.is_allow() && word == ToService::Mixed {
            let reason = Reason::ServiceMixed;
            hop.verdict = Decision::Deny;
            hop.code = Some(reason);
            hop.policies.clone_from(&hop.isolated_by);
            hop.reason = events::message(reason, &hop.policies, &[]);
        }
    }

    fn reach_backend(
        &mut self,
        from: &Party,
        backend: &BackendInfo,
        packet: Try,
        passage: &Passage<'_>,
    ) -> Result<(Backend, Vec<Elsewhere>)> {
        let party = self.backend_party(backend);
        let packet = Try { destination: backend.ip, port: backend.port, ..packet };
        let seen = self.seen(from, &party, passage, backend.ip)?;
        let way = self.way(from, &party, &packet, seen.as_ref())?;
        let side = side(&party, backend.ip, Some(backend.port));
        let seen_as = seen.map(|seen| seen.sources).unwrap_or_default();
        let verdict = Decision::of_all(way.hops.iter().map(|hop| hop.verdict));
        Ok((Backend { verdict, side, seen_as, hops: way.hops }, way.elsewhere))
    }

    fn backend_party(&self, backend: &BackendInfo) -> Party {
        let Owner { pod, node, .. } = backend.owner.clone();
        let own_node = &self.directory.node.state.node;
        let local = pod.as_ref().and_then(|pod| self.directory.node.endpoint(pod).ok());
        let home = node.clone().or_else(|| pod.as_ref().map(|_| own_node.clone()));
        let kind = match (local, &pod, node.clone()) {
            (Some(endpoint), ..) => Kind::Endpoint(Box::new(endpoint.clone())),
            (None, Some(_), Some(node)) => Kind::Elsewhere { node },
            (None, None, Some(node)) if node == *own_node => Kind::ThisNode,
            _ => Kind::Other,
        };
        let name = pod.or(node.map(|node| format!("node {node}")));
        Party {
            name,
            ips: vec![backend.ip],
            kind,
            node: home,
            ports: Vec::new(),
            are_ports_known: true,
        }
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

/// How packets from one party to a Service go on that arrive at `end`.
pub(super) fn passage_of<'a>(
    service: &ServiceInfo,
    to: &'a Party,
    from: &'a Party,
    front: &FrontInfo,
    end: &End,
) -> Passage<'a> {
    let node = to.node.as_deref().filter(|_| front.on_nodes.contains(end));
    proxy::passage(service, end.ip, node, masquerade::sender(from))
}

/// Said where not all backends, or none, are used.
fn others_note(
    to: &Party,
    passage: &Passage<'_>,
    n_used: usize,
    n_others: usize,
) -> Option<String> {
    let node = passage.only_on.unwrap_or_default();
    match (n_used, n_others) {
        (0, 0) => Some(format!("{} has no ready backend: nobody answers there", name_of(to))),
        (0, _) => Some(format!(
            "{} has no ready backend on {node}, and its traffic policy is Local: nobody answers",
            name_of(to)
        )),
        (_, 0) => None,
        (_, n) => Some(format!(
            "only backends on {node} are used, since the traffic policy is Local: {n} elsewhere \
             are left out"
        )),
    }
}

/// What a hop to a Service says once the backends are known.
fn summarise(hop: &mut Hop, backends: &[Backend]) {
    if !hop.verdict.is_allow() || !hop.reason.is_empty() {
        return;
    }
    let egress = || {
        let hops = backends.iter().flat_map(|backend| &backend.hops);
        hops.filter(|hop| hop.direction == Direction::Egress)
    };
    let mut policies: Vec<String> = egress()
        .filter(|hop| hop.verdict.is_allow())
        .flat_map(|hop| hop.policies.clone())
        .collect();
    policies.sort();
    policies.dedup();
    hop.policies = policies;
    let n_denied = egress().filter(|hop| !hop.verdict.is_allow()).count();
    hop.reason = match n_denied {
        0 => "every backend is allowed".to_owned(),
        _ => format!("{n_denied} of {} backends will be denied", backends.len()),
    };
}
