//! Whose address a backend sees: the sender's, or one that a node's proxy puts in its place. Which
//! one that is, is not always certain; then each is tried. Must never decide a verdict.

use std::net::IpAddr;

use anyhow::{Context as _, Result};

use super::party::{Kind, Party, any_address};
use super::tracer::{Tracer, Try, name_of};
use super::{Backend, Hop};
use crate::proxy::{Passage, Sender};
use netpol_api::client;
use netpol_api::decision::Decision;
use netpol_api::questions::Question;
use netpol_api::state::EndpointView;
use netpol_datapath::run::Place;
use netpol_endpoint::masquerades;
use netpol_model::Direction;

/// What is in place of the sender's address.
#[derive(Debug, Clone)]
pub(super) struct Masquerade {
    /// The addresses that come into question; none if nobody knows.
    pub(super) sources: Vec<IpAddr>,
    /// The node whose they are.
    pub(super) node: String,
    /// It is another one, so that packets come from there.
    pub(super) is_elsewhere: bool,
}

/// The sender as a proxy sees it.
pub(super) fn sender(from: &Party) -> Sender<'_> {
    match (&from.kind, from.node.as_deref()) {
        (Kind::Endpoint(_) | Kind::Elsewhere { .. }, Some(node)) => Sender::Pod(node),
        (_, Some(node)) => Sender::Node(node),
        (_, None) => Sender::Outside,
    }
}

impl Tracer<'_> {
    /// What a backend sees in place of the sender's address, if that is replaced.
    pub(super) fn seen(
        &self,
        from: &Party,
        backend: &Party,
        passage: &Passage<'_>,
        to: IpAddr,
    ) -> Result<Option<Masquerade>> {
        let Kind::Endpoint(_) = backend.kind else { return Ok(None) };
        let here = &*self.directory.node.state.node;
        let node = passage.translator.unwrap_or(here).to_owned();
        let is_elsewhere = node != here;
        // What comes back to its sender is masqueraded in any case: else it would answer itself.
        let is_masqueraded = passage.is_masqueraded || is_itself(from, backend);
        // A node's own packets are known for its own, whichever of its addresses they have.
        let is_own = matches!(from.kind, Kind::ThisNode) && !is_elsewhere;
        if !is_masqueraded || is_own {
            return Ok(None);
        }
        let sources = if is_elsewhere {
            let question = Question::Node { name: node.clone() };
            let known = client::ask::<Vec<IpAddr>>(self.directory.run_dir, &question)?;
            let is_of_family = |address: &IpAddr| address.is_ipv6() == to.is_ipv6();
            known.unwrap_or_default().into_iter().filter(is_of_family).collect()
        } else {
            masquerades(to).with_context(|| format!("ask the kernel for the way to {to}"))?
        };
        Ok(Some(Masquerade { sources, node, is_elsewhere }))
    }

    /// Ingress of a pod of this node, from each address that it may see.
    pub(super) fn ingress(
        &mut self,
        endpoint: &EndpointView,
        packet: &Try,
        place: Place,
        seen: Option<&Masquerade>,
    ) -> Result<Hop> {
        let Some(seen) = seen else {
            return self.hop(endpoint, Direction::Ingress, packet, place, false);
        };
        let mut from = |source| {
            let packet = Try { source, ..*packet };
            self.hop(endpoint, Direction::Ingress, &packet, place, false)
        };
        let tried: Result<Vec<(IpAddr, Hop)>> =
            seen.sources.iter().map(|&source| Ok((source, from(source)?))).collect();
        if let Some(hop) = join(tried?, &seen.node) {
            return Ok(hop);
        }
        let mut hop = from(any_address(packet.source.is_ipv6()))?;
        if !hop.verdict.is_allow() {
            hop.reason = format!("which of its addresses {} takes is not known", seen.node);
        }
        Ok(hop)
    }
}

/// Whether a backend is the very pod that sends.
pub(super) fn is_itself(from: &Party, backend: &Party) -> bool {
    match (&from.kind, &backend.kind) {
        (Kind::Endpoint(from), Kind::Endpoint(backend)) => from.ifindex == backend.ifindex,
        _ => false,
    }
}

/// One hop of several with different sources: it allows only what all of them do.
fn join(tried: Vec<(IpAddr, Hop)>, node: &str) -> Option<Hop> {
    let of = |verdict: Decision| {
        let those = tried.iter().filter(move |(_, hop)| hop.verdict == verdict);
        those.map(|(source, _)| source.to_string()).collect::<Vec<_>>().join(", ")
    };
    let (allowed, denied) = (of(Decision::Allow), of(Decision::Deny));
    let mut hops = tried.into_iter().map(|(_, hop)| hop);
    if allowed.is_empty() || denied.is_empty() {
        return hops.next();
    }
    let reason = format!(
        "it depends on which of its addresses {node} takes: allowed from {allowed}, denied from \
         {denied}"
    );
    hops.find(|hop| !hop.verdict.is_allow()).map(|hop| Hop { reason, ..hop })
}

/// What to know beside the verdict about backends that do not see the sender.
pub(super) fn notes(
    from: &Party,
    passage: &Passage<'_>,
    here: &str,
    backends: &[Backend],
) -> Vec<String> {
    let is_seen_here = backends.iter().any(|backend| !backend.seen_as.is_empty());
    let is_its_own = passage.translator.map(Sender::Node) == Some(sender(from));
    if !passage.is_masqueraded || is_its_own || backends.is_empty() {
        return Vec::new();
    }
    let node = passage.translator.unwrap_or(here);
    let mut notes = vec![format!(
        "the proxy of {node} puts an address of that node in place of the sender's: that is what \
         ingress policies see, and not {}",
        name_of(from)
    )];
    if is_seen_here && node != here {
        notes.push(format!(
            "of {node} only the addresses of its Node object are known here; from a tunnel it has \
             another"
        ));
    }
    if passage.translator.is_none() {
        notes.push(
            "if it comes to the cluster by another node, it is that node's address".to_owned(),
        );
    }
    notes
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use netpol_common::layout::Reason;

    fn tried(source: &str, verdict: Decision) -> (IpAddr, Hop) {
        let hop = Hop {
            endpoint: "shop/web".into(),
            direction: Direction::Ingress,
            verdict,
            policies: vec![],
            isolated_by: vec![],
            rules: vec![],
            reason: format!("for {source}"),
            code: (!verdict.is_allow()).then_some(Reason::Policy),
        };
        (source.parse().unwrap(), hop)
    }

    #[test]
    fn what_depends_on_the_address_is_denied_and_told() {
        let joined = |tried: &[(IpAddr, Hop)]| {
            let hop = join(tried.to_vec(), "n1").unwrap();
            (hop.verdict, hop.code, hop.reason)
        };
        let [a, b] = [tried("10.0.0.1", Decision::Allow), tried("10.0.0.2", Decision::Allow)];
        assert_eq!(joined(&[a.clone(), b]), (Decision::Allow, None, "for 10.0.0.1".into()));
        let b = tried("10.0.0.2", Decision::Deny);
        assert_eq!(joined(std::slice::from_ref(&b)).2, "for 10.0.0.2");
        let reason = "it depends on which of its addresses n1 takes: allowed from 10.0.0.1, \
                      denied from 10.0.0.2";
        assert_eq!(joined(&[a, b]), (Decision::Deny, Some(Reason::Policy), reason.into()));
        assert_eq!(join(vec![], "n1"), None);
    }
}
