//! Tries a site before it is measured: what policies allow has to pass, and where it filters, what
//! they do not allow must not. A baseline that filters nothing would flatter itself.

use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::pair::{CLIENT, INTERFACES, Pair, SERVER};
use super::population::{CLOSED, OPEN};
use super::traffic::{End, PATIENCE, SMALL, bind, dial, establish, listen, pin};
use super::variant::{Site, Variant};

/// What a connection that is to fail is given; one that passes takes microseconds.
const DENIED: Duration = Duration::from_millis(300);

/// Fails, and says how, if the site does not do what it is there for.
pub fn try_out(site: &Site) -> Result<()> {
    let is_filter = site.variant.is_filter();
    let about =
        || format!("\"{}\" with {} policies", site.variant.name(), site.population.policies);
    udp(&site.pair, is_filter).with_context(about)?;
    tcp(&site.pair, is_filter).with_context(about)?;
    programs(site).with_context(about)
}

/// The packet to the closed port goes first, by the same processor: it would arrive first.
fn udp(pair: &Pair, is_filter: bool) -> Result<()> {
    let (open, closed) = (bind(pair, OPEN)?, bind(pair, CLOSED)?);
    let (allowed, denied) = (dial(pair, OPEN)?, dial(pair, CLOSED)?);
    establish(&allowed, &open)?;
    pair.client.run(|| -> Result<()> {
        pin(End::Client)?;
        // An ICMP error about an earlier packet is told by the next call.
        let _ = denied.send(&SMALL);
        allowed.send(&SMALL)?;
        Ok(())
    })??;
    receive(&open).context("an allowed UDP packet did not arrive")?;
    closed.set_nonblocking(true)?;
    let has_passed = closed.recv(&mut [0; SMALL.len()]).is_ok();
    if has_passed == is_filter {
        bail!("a UDP packet to port {CLOSED} {}", verdict(has_passed));
    }
    Ok(())
}

fn receive(socket: &UdpSocket) -> Result<()> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.recv(&mut [0; SMALL.len()])?;
    Ok(())
}

fn tcp(pair: &Pair, is_filter: bool) -> Result<()> {
    let _listeners = [listen(pair, OPEN)?, listen(pair, CLOSED)?];
    let connect = |port: u16, time| {
        pair.client.run(|| TcpStream::connect_timeout(&(SERVER, port).into(), time))
    };
    connect(OPEN, PATIENCE)?.context("an allowed TCP connection was not made")?;
    let begin = Instant::now();
    let limit = if is_filter { DENIED } else { PATIENCE };
    let has_passed = connect(CLOSED, limit)?.is_ok();
    if has_passed == is_filter {
        let time = begin.elapsed();
        bail!("a TCP connection from {CLIENT} to port {CLOSED} {} ({time:?})", verdict(has_passed));
    }
    Ok(())
}

fn verdict(has_passed: bool) -> &'static str {
    if has_passed { "passes, though no policy allows it" } else { "does not pass" }
}

/// Whether the programs are where they have to be: the egress hook of a pod's interface has that
/// for its ingress, and the one for what was sent to Services.
fn programs(site: &Site) -> Result<()> {
    use aya::programs::{SchedClassifier, TcAttachType};
    let expected = match site.variant {
        Variant::Netpol => [1, 2],
        // Somebody else on the node is isolated.
        Variant::Unselected => [0, 1],
        Variant::EmptyProgram => [1, 1],
        _ => [0, 0],
    };
    let count = || -> Result<Vec<[usize; 2]>> {
        INTERFACES
            .iter()
            .map(|interface| {
                let on = |hook| -> Result<usize> {
                    Ok(SchedClassifier::query_tcx(interface, hook)?.1.len())
                };
                Ok([on(TcAttachType::Ingress)?, on(TcAttachType::Egress)?])
            })
            .collect()
    };
    let seen = site.pair.node.run(count)??;
    if seen != [expected; INTERFACES.len()] {
        bail!("{seen:?} programs are on the pods' interfaces, not {expected:?} on each");
    }
    Ok(())
}
