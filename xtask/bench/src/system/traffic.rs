//! Traffic between the two pods with a thread at each end, each on a processor of its own: as two
//! programs talk to each other. Must never go on for longer than it was told, whatever gets lost.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use netpol_isolation::netns::Netns;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::pair::{CLIENT, Pair, SERVER};
use super::population::OPEN;

/// A hang guard: no answer takes so long.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// After this long without a packet the last one has come.
const SILENCE: Duration = Duration::from_millis(20);
/// What a request or an answer is.
const REQUEST: [u8; 1] = [1];
/// The last one.
const STOP: [u8; 1] = [0];
/// Of a small packet.
pub const SMALL: [u8; 18] = [7; 18];
/// How many exchanges are timed together.
const BATCH: usize = 8;
/// What a stream writes at once.
const BLOCK: usize = 128 << 10;

/// One of the two ends of a connection, which decides where it runs.
#[derive(Debug, Clone, Copy)]
pub enum End {
    Client,
    Server,
}

/// Keeps the calling thread on the first or the second of the processors that this process may
/// use; on the only one if there is no second.
pub fn pin(end: End) -> Result<()> {
    let allowed = sched_getaffinity(None).context("cannot read the processors of this process")?;
    let mut processors = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    let first = processors.next().context("this process may use no processor")?;
    let chosen = match end {
        End::Client => first,
        End::Server => processors.next().unwrap_or(first),
    };
    let mut set = CpuSet::new();
    set.set(chosen);
    sched_setaffinity(None, &set).context("cannot bind a thread to a processor")
}

/// Runs both ends at the same time, each in its pod and on its processor.
fn meet<T: Send>(
    pair: &Pair,
    serve: impl FnOnce() -> Result<T> + Send,
    ask: impl FnOnce() -> Result<f64> + Send,
    combine: impl FnOnce(f64, T) -> f64,
) -> Result<f64> {
    thread::scope(|scope| {
        let server = scope.spawn(|| at(&pair.server, End::Server, serve));
        let asked = at(&pair.client, End::Client, ask);
        let served = server.join().map_err(|_| anyhow!("the server panicked"))?;
        // What the client says is nearer to the cause.
        Ok(combine(asked?, served?))
    })
}

fn at<T: Send>(netns: &Netns, end: End, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    netns.run(|| {
        pin(end)?;
        work()
    })?
}

// === TCP ===

/// A listening socket of the server.
pub fn listen(pair: &Pair, port: u16) -> Result<TcpListener> {
    let listener = pair.server.run(|| TcpListener::bind((SERVER, port)))??;
    set_socket_timeout(&listener, Timeout::Recv, Some(PATIENCE))?;
    Ok(listener)
}

fn accept(listener: &TcpListener) -> Result<TcpStream> {
    let (stream, _) = listener.accept().context("the server waited for a connection")?;
    prepare(&stream)?;
    Ok(stream)
}

fn connect() -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&(SERVER, OPEN).into(), PATIENCE)
        .context("the client cannot connect")?;
    prepare(&stream)?;
    Ok(stream)
}

fn prepare(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(())
}

fn exchange(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(&REQUEST)?;
    stream.read_exact(&mut [0; 1]).context("the client waited for an answer")
}

/// Answers bytes until the other end closes; whether the last one said that no one comes after.
fn answer(stream: &mut TcpStream) -> Result<bool> {
    let mut byte = REQUEST;
    while stream.read(&mut byte)? == 1 {
        if byte == STOP {
            return Ok(true);
        }
        stream.write_all(&byte)?;
    }
    Ok(false)
}

/// TCP requests and answers of one byte on one connection, a second.
pub fn tcp_requests(pair: &Pair, time: Duration) -> Result<f64> {
    let listener = listen(pair, OPEN)?;
    let ask = || {
        let mut stream = connect()?;
        per_second(time, || exchange(&mut stream))
    };
    meet(pair, || answer(&mut accept(&listener)?), ask, |rate, _| rate)
}

/// TCP connections, each with a request and an answer of one byte, a second.
pub fn tcp_connections(pair: &Pair, time: Duration) -> Result<f64> {
    let listener = listen(pair, OPEN)?;
    let serve = || {
        while !answer(&mut accept(&listener)?)? {}
        Ok(())
    };
    let ask = || {
        let rate = per_second(time, || exchange(&mut connect()?));
        connect()?.write_all(&STOP)?;
        rate
    };
    meet(pair, serve, ask, |rate, ()| rate)
}

/// Gigabits a second of one TCP stream.
pub fn tcp_stream(pair: &Pair, time: Duration) -> Result<f64> {
    let listener = listen(pair, OPEN)?;
    let serve = || {
        let (mut stream, mut buffer, mut total) = (accept(&listener)?, vec![0; BLOCK], 0);
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(total),
                length => total += length,
            }
        }
    };
    let ask = || {
        let (mut stream, block) = (connect()?, vec![0; BLOCK]);
        let begin = Instant::now();
        while begin.elapsed() < time {
            stream.write_all(&block)?;
        }
        Ok(begin.elapsed().as_secs_f64())
    };
    meet(pair, serve, ask, |seconds, total| total as f64 * 8e-9 / seconds)
}

// === UDP ===

/// A socket of the server.
pub fn bind(pair: &Pair, port: u16) -> Result<UdpSocket> {
    Ok(pair.server.run(|| UdpSocket::bind((SERVER, port)))??)
}

/// A socket of the client that sends to this port of the server.
pub fn dial(pair: &Pair, port: u16) -> Result<UdpSocket> {
    pair.client.run(|| dial_here(0, port))?
}

/// The same in the calling thread's namespace, from this port (0: any).
pub fn dial_here(from: u16, port: u16) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((CLIENT, from))?;
    socket.connect((SERVER, port))?;
    Ok(socket)
}

/// A packet and its answer, so that conntrack calls it established. A packet that gets lost at the
/// start is sent again.
pub fn establish(client: &UdpSocket, server: &UdpSocket) -> Result<()> {
    let begin = Instant::now();
    client.set_read_timeout(Some(SILENCE))?;
    server.set_read_timeout(Some(SILENCE))?;
    let mut byte = [0; SMALL.len()];
    while begin.elapsed() < PATIENCE {
        client.send(&SMALL)?;
        let Ok((_, from)) = server.recv_from(&mut byte) else { continue };
        server.send_to(&SMALL, from)?;
        if client.recv(&mut byte).is_ok() {
            return Ok(());
        }
    }
    Err(anyhow!("no UDP packet got from {CLIENT} to {SERVER} and back"))
}

/// UDP requests and answers of one byte, a second.
pub fn udp_requests(pair: &Pair, time: Duration) -> Result<f64> {
    let (server, client) = (bind(pair, OPEN)?, dial(pair, OPEN)?);
    establish(&client, &server)?;
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    let serve = || {
        let mut byte = REQUEST;
        loop {
            let (_, from) = server.recv_from(&mut byte).context("the server waited for UDP")?;
            if byte == STOP {
                return Ok(());
            }
            server.send_to(&byte, from)?;
        }
    };
    let ask = || {
        let rate = per_second(time, || {
            client.send(&REQUEST)?;
            client.recv(&mut [0; 1]).context("the client waited for an answer by UDP")?;
            Ok(())
        });
        client.send(&STOP)?;
        rate
    };
    meet(pair, serve, ask, |rate, ()| rate)
}

/// Small UDP packets of one established flow that arrive, a second, sent as fast as can be.
pub fn udp_packets(pair: &Pair, time: Duration) -> Result<f64> {
    let (server, client) = (bind(pair, OPEN)?, dial(pair, OPEN)?);
    establish(&client, &server)?;
    let has_ended = AtomicBool::new(false);
    let serve = || {
        let (mut count, mut buffer) = (0_u64, [0; SMALL.len()]);
        loop {
            match server.recv(&mut buffer) {
                Ok(_) => count += 1,
                Err(error) if is_timeout(&error) && !has_ended.load(Ordering::Acquire) => {}
                Err(error) if is_timeout(&error) => return Ok(count),
                Err(error) => return Err(error.into()),
            }
        }
    };
    let ask = || {
        let mut sent = 0_u64;
        let rate = per_second(time, || {
            sent += 1;
            client.send(&SMALL)?;
            Ok(())
        })?;
        has_ended.store(true, Ordering::Release);
        Ok(rate / sent as f64)
    };
    // What got lost on its way was not delivered, however fast it was sent.
    meet(pair, serve, ask, |rate, count| rate * count as f64)
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// How often a second it can be done, by the time that batches of them take.
fn per_second(time: Duration, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < time {
        let begin = Instant::now();
        for _ in 0..BATCH {
            work()?;
        }
        times.push(begin.elapsed().as_secs_f64());
    }
    Ok(BATCH as f64 / undisturbed(times)?)
}

/// The mean of the faster half: in the other one something else ran too.
pub fn undisturbed(mut times: Vec<f64>) -> Result<f64> {
    times.sort_by(f64::total_cmp);
    times.truncate(times.len().div_ceil(2));
    if times.is_empty() {
        bail!("no time was given to measure in");
    }
    Ok(times.iter().sum::<f64>() / times.len() as f64)
}
