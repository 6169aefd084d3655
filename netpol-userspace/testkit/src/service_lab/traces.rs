//! What `netpol trace` says of the connections that a test has made. Must never be asked before the
//! packets: what these do is what it has to say.

use std::net::IpAddr;

use netpol_observe::node::Node;
use netpol_observe::trace::{self, Answer, Port, Question, Tracer};

use super::backend::Backend;
use super::{Client, Cluster};

impl Cluster<'_> {
    /// Insists that traces say of a Service's backends what [`Self::expect_at`] has found: which of
    /// them answer the client, which do not, and that there are no others.
    pub fn expect_traces(
        &self,
        from: &Client,
        addresses: &[IpAddr],
        port: u16,
        may: &[&Backend],
        must_not: &[&Backend],
    ) {
        let is_asked = |node: usize| {
            let mut nodes = may.iter().chain(must_not).filter_map(|backend| backend.node);
            from.pod.node == node || nodes.any(|other| other == node)
        };
        let ask = |node| match is_asked(node) {
            true => self.trace(node, from, addresses, port),
            false => vec![None; addresses.len()],
        };
        let answers = [ask(1), ask(2)];
        let here = &answers[from.pod.node - 1];
        for (index, address) in addresses.iter().enumerate() {
            let what = format!("{} {} -> {address}:{port}", self.describe(), from.pod.name);
            let sent = here[index].as_ref().expect("the client is here");
            assert!(
                sent.backends.len() <= may.len() + must_not.len()
                    && sent.backends.len() >= may.len(),
                "{what}: {sent:#?}"
            );
            let is_sent = sent.hops.iter().all(|hop| hop.verdict.is_allow());
            for (backend, expected) in
                may.iter().map(|it| (it, true)).chain(must_not.iter().map(|it| (it, false)))
            {
                let ip = backend.addresses.iter().find(|ip| ip.is_ipv4() == address.is_ipv4());
                let allows = |answer: &Answer| {
                    let found = answer.backends.iter().find(|one| one.side.ip == ip.copied());
                    found.is_some_and(|found| found.verdict.is_allow())
                };
                let judge = backend.node.map_or(here, |node| &answers[node - 1]);
                let received = judge[index].as_ref().is_some_and(allows);
                assert_eq!(
                    is_sent && allows(sent) && received,
                    expected,
                    "{what}: {}: {sent:#?}\n{:#?}",
                    backend.name,
                    judge[index]
                );
            }
        }
    }

    /// The answers of a node, by TCP; none where it has no part in it.
    fn trace(
        &self,
        node: usize,
        from: &Client,
        addresses: &[IpAddr],
        port: u16,
    ) -> Vec<Option<Answer>> {
        let lab = self.lab.node(node);
        let state = Node::read(&lab.run_dir).unwrap().unwrap();
        let ask = || {
            let mut tracer = Tracer::new(&state, &lab.run_dir, &lab.pins).unwrap();
            let mut answer = |to: &IpAddr| {
                tracer
                    .ask(&Question {
                        from: format!("{}/{}", from.pod.namespace, from.pod.name),
                        to: to.to_string(),
                        protocol: trace::Protocol::Tcp,
                        port: Port::Number(port),
                        is_v6: to.is_ipv6(),
                    })
                    .ok()
            };
            addresses.iter().map(&mut answer).collect()
        };
        lab.netns.run(ask).unwrap()
    }
}
