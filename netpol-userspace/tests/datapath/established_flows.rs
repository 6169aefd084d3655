//! What the flow table makes of flows in odd circumstances: forbidden and allowed again, thrown
//! out of a full table, reset by a packet nobody can vouch for. The loaded programs, frame by
//! frame. Needs root and the eBPF object.

use netpol_common::layout::Reason;
use netpol_datapath::{AttachMode, LoadOptions};
use netpol_model::Direction;
use netpol_observe::frames::Transport;
use netpol_testkit::rig::{Rig, ack, in_node, syn, syn_ack, udp};

const PEER: &str = "10.2.0.2";
const PEER6: &str = "fd00:2::2";
/// A set that allows the peer, and one that allows nobody.
const OPEN: u16 = 1;
const CLOSED: u16 = 2;
const CLASS: u32 = 3;

fn rig(options: &LoadOptions) -> Rig {
    let mut rig = Rig::with(options, AttachMode::Auto);
    rig.class(PEER, CLASS);
    rig.class(PEER6, CLASS);
    rig.allow_all(OPEN, CLASS);
    rig
}

fn rst(source: u16, destination: u16) -> Transport {
    Transport::Tcp { source, destination, flags: 0x04 }
}

/// A client that is denied for a while and goes on trying from the same port is let in as soon as
/// that is allowed again: a remembered denial is no verdict.
#[test]
fn a_denied_flow_passes_at_once_when_it_is_allowed_again() {
    in_node(|| {
        let mut rig = rig(&LoadOptions::default());
        for peer in [PEER, PEER6] {
            rig.isolate(OPEN, 0);
            assert!(rig.comes_in(peer, &udp(5000, 53)));
            assert!(rig.comes_in(peer, &syn(5000, 80)) && rig.goes_out(peer, &syn_ack(80, 5000)));
            rig.isolate(CLOSED, 0);
            rig.rejudge();
            for _ in 0..3 {
                assert!(!rig.comes_in(peer, &udp(5000, 53)));
                assert!(!rig.goes_out(peer, &udp(53, 5000)));
                assert!(!rig.comes_in(peer, &ack(5000, 80)));
                assert!(!rig.comes_in(peer, &syn(5000, 80)));
            }
            // Nothing is taken away, so nobody is judged again for it.
            rig.isolate(OPEN, 0);
            assert!(rig.comes_in(peer, &udp(5000, 53)) && rig.goes_out(peer, &udp(53, 5000)));
            assert!(rig.comes_in(peer, &syn(5000, 80)) && rig.goes_out(peer, &syn_ack(80, 5000)));
        }
        // Nor does one that was denied from the start leave anything behind.
        rig.isolate(CLOSED, 0);
        rig.rejudge();
        assert!(!rig.comes_in(PEER, &udp(6000, 53)));
        rig.isolate(OPEN, 0);
        assert!(rig.comes_in(PEER, &udp(6000, 53)));
    });
}

/// The table is full and the flow's entry is gone: its packets are judged as if they opened it.
/// From the client, whom the policy allows, that changes nothing; from the other end it is the
/// end's own policies that decide, and never does a forbidden sender get in.
#[test]
fn a_flow_thrown_out_of_a_full_table_opens_nothing_that_is_forbidden() {
    in_node(|| {
        let options = LoadOptions { flow_buckets: Some([2, 2]), ..LoadOptions::default() };
        let mut rig = rig(&options);
        // Ingress only; the flow is the peer's.
        rig.isolate(OPEN, 0);
        assert!(rig.comes_in(PEER, &syn(5000, 80)) && rig.goes_out(PEER, &syn_ack(80, 5000)));
        throw_out(&mut rig);
        assert!(rig.comes_in(PEER, &ack(5000, 80)), "allowed as ever");
        assert!(rig.goes_out(PEER, &ack(80, 5000)));
        // One that the pod opened, and may not be opened from the other side.
        rig.isolate(CLOSED, 0);
        rig.rejudge();
        assert!(rig.goes_out(PEER, &syn(6000, 443)) && rig.comes_in(PEER, &syn_ack(443, 6000)));
        throw_out(&mut rig);
        assert!(!rig.comes_in(PEER, &ack(443, 6000)), "nobody knows that it was asked for");
        assert_eq!(rig.counted(Direction::Ingress, Reason::Policy), 1);
        assert!(rig.goes_out(PEER, &ack(6000, 443)), "the pod's next packet opens it again");
        assert!(rig.comes_in(PEER, &ack(443, 6000)));
    });
}

/// Fills the table with other flows, which the pod opens: to as many peers, since who has most of
/// a full table makes room first.
fn throw_out(rig: &mut Rig) {
    for port in 0..200 {
        let peer = format!("10.9.0.{port}");
        assert!(rig.goes_out(&peer, &udp(10_000 + port, 53)));
    }
}

/// A reset is believed without a look at its sequence number, but costs the flow nothing while it
/// is in use: only the time that it may be idle becomes that of a closed connection.
#[test]
fn a_forged_reset_cuts_nothing_that_is_in_use() {
    in_node(|| {
        let mut rig = rig(&LoadOptions::default());
        rig.isolate(OPEN, 0);
        assert!(rig.comes_in(PEER, &syn(5000, 80)) && rig.goes_out(PEER, &syn_ack(80, 5000)));
        assert!(rig.comes_in(PEER, &rst(5000, 80)));
        for _ in 0..3 {
            assert!(rig.comes_in(PEER, &ack(5000, 80)) && rig.goes_out(PEER, &ack(80, 5000)));
        }
        // A reset of a flow that is not known opens none.
        rig.isolate(CLOSED, 0);
        rig.rejudge();
        assert!(!rig.comes_in(PEER, &rst(7000, 80)));
        assert!(!rig.comes_in(PEER, &ack(7000, 80)));
    });
}
