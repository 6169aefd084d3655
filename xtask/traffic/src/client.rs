//! The flows. Must count each message as sent before it can have left, and as answered only when
//! the very same one came back.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket, lookup_host};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::message::{Message, SIZE};
use super::report::Report;
use super::spec::{Kind, Spec};

/// Sends what `spec` says.
pub async fn run(spec: Spec, report: Rc<Report>) {
    report.add_flow(&spec.name);
    tokio::select! {
        () = report.begun() => {}
        () = report.stopped() => return,
    }
    report.flow_begins();
    match spec.kind {
        Kind::TcpStream => tcp_stream(&spec, &report).await,
        Kind::UdpStream => udp_stream(&spec, &report).await,
        Kind::TcpConnect | Kind::UdpConnect | Kind::Resolve => connects(spec, &report).await,
    }
    report.flow_ends();
}

/// Connects to a sender of a first message, once for each port that is to be called.
pub fn call_back(from: IpAddr, report: &Rc<Report>) {
    for call in &report.call_backs {
        let spec = Spec {
            name: call.name.clone(),
            kind: Kind::TcpConnect,
            to: SocketAddr::new(from.to_canonical(), call.port).to_string(),
            period: Duration::ZERO,
            count: Some(1),
            timeout: Duration::from_secs(3),
        };
        let report = Rc::clone(report);
        tokio::task::spawn_local(async move { connect(&spec, &report).await });
    }
}

/// Each message for itself; they overlap where answers take longer than the period.
async fn connects(spec: Spec, report: &Rc<Report>) {
    let spec = Rc::new(spec);
    let mut ticks = interval(spec.period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut under_way = Vec::new();
    for _ in 0..spec.count.unwrap_or(u64::MAX) {
        tokio::select! {
            biased;
            () = report.stopped() => break,
            _ = ticks.tick() => {}
        }
        let (spec, report) = (Rc::clone(&spec), Rc::clone(report));
        under_way.retain(|task: &tokio::task::JoinHandle<()>| !task.is_finished());
        under_way.push(tokio::task::spawn_local(async move { connect(&spec, &report).await }));
    }
    for task in under_way {
        // A panic has been printed, and its message counts as lost.
        let _ = task.await;
    }
}

async fn connect(spec: &Spec, report: &Report) {
    let number = report.sent(&spec.name);
    let message = Message { number, sender: report.name.clone() }.encode();
    let attempt = async {
        match spec.kind {
            Kind::Resolve => resolve(&spec.to).await.map(drop),
            Kind::UdpConnect => one_datagram(&spec.to, &message).await,
            _ => one_connection(&spec.to, &message).await,
        }
    };
    match timeout(spec.timeout, attempt).await {
        Ok(Ok(())) => report.answered(&spec.name, number),
        Ok(Err(error)) => report.failed(&spec.name, &word(&error)),
        Err(_) => report.failed(&spec.name, "timeout"),
    }
}

async fn one_connection(to: &str, message: &[u8; SIZE]) -> io::Result<()> {
    let mut stream = TcpStream::connect(resolve(to).await?).await?;
    stream.set_nodelay(true)?;
    stream.write_all(message).await?;
    let mut answer = [0; SIZE];
    stream.read_exact(&mut answer).await?;
    same(message, &answer)
}

async fn one_datagram(to: &str, message: &[u8; SIZE]) -> io::Result<()> {
    let socket = udp_socket(resolve(to).await?).await?;
    socket.send(message).await?;
    let mut answer = [0; SIZE + 1];
    let length = socket.recv(&mut answer).await?;
    same(message, &answer[..length])
}

fn same(sent: &[u8], received: &[u8]) -> io::Result<()> {
    match sent == received {
        true => Ok(()),
        false => Err(io::Error::other("another message")),
    }
}

async fn udp_stream(spec: &Spec, report: &Rc<Report>) {
    let Some(to) = resolve_patiently(spec, report).await else { return };
    let socket = match udp_socket(to).await {
        Ok(socket) => Rc::new(socket),
        Err(error) => return report.failed(&spec.name, &word(&error)),
    };
    let answers = tokio::task::spawn_local(datagram_answers(
        Rc::clone(&socket),
        spec.clone(),
        Rc::clone(report),
    ));
    let mut ticks = interval(spec.period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for _ in 0..spec.count.unwrap_or(u64::MAX) {
        tokio::select! {
            biased;
            () = report.stopped() => break,
            _ = ticks.tick() => {}
        }
        let number = report.sent(&spec.name);
        let message = Message { number, sender: report.name.clone() };
        if let Err(error) = socket.send(&message.encode()).await {
            report.failed(&spec.name, &word(&error));
        }
    }
    sleep(report.drain).await;
    answers.abort();
}

async fn datagram_answers(socket: Rc<UdpSocket>, spec: Spec, report: Rc<Report>) {
    let mut bytes = [0; SIZE + 1];
    loop {
        match socket.recv(&mut bytes).await {
            Ok(length) => took_answer(&bytes[..length], &spec, &report),
            Err(error) => report.failed(&spec.name, &word(&error)),
        }
    }
}

fn took_answer(bytes: &[u8], spec: &Spec, report: &Report) {
    match Message::decode(bytes) {
        Some(message) if message.sender == report.name => {
            report.answered(&spec.name, message.number);
        }
        _ => report.failed(&spec.name, "another message"),
    }
}

/// One connection after the other, each for as long as it holds.
async fn tcp_stream(spec: &Spec, report: &Rc<Report>) {
    let mut left = spec.count.unwrap_or(u64::MAX);
    while left > 0 && !report.is_stopped() {
        let connected = async {
            let to = resolve(&spec.to).await?;
            TcpStream::connect(to).await
        };
        match timeout(spec.timeout, connected).await {
            Ok(Ok(stream)) => {
                if let Err(error) = one_stream(stream, spec, report, &mut left).await {
                    report.failed(&spec.name, &format!("broken: {}", word(&error)));
                }
                continue;
            }
            Ok(Err(error)) => report.failed(&spec.name, &format!("connect: {}", word(&error))),
            Err(_) => report.failed(&spec.name, "connect: timeout"),
        }
        sleep(spec.period).await;
    }
}

async fn one_stream(
    stream: TcpStream,
    spec: &Spec,
    report: &Rc<Report>,
    left: &mut u64,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = stream.into_split();
    let (flow, answers_to) = (spec.clone(), Rc::clone(report));
    let mut answers = tokio::task::spawn_local(async move {
        let mut bytes = [0; SIZE];
        loop {
            reader.read_exact(&mut bytes).await?;
            took_answer(&bytes, &flow, &answers_to);
        }
    });
    let mut ticks = interval(spec.period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while *left > 0 {
        tokio::select! {
            biased;
            () = report.stopped() => break,
            ended = &mut answers => return ended.unwrap_or_else(|panic| Err(io::Error::other(panic))),
            _ = ticks.tick() => {}
        }
        *left -= 1;
        let number = report.sent(&spec.name);
        let message = Message { number, sender: report.name.clone() };
        writer.write_all(&message.encode()).await?;
    }
    sleep(report.drain).await;
    answers.abort();
    Ok(())
}

/// Tries until the name is known, or no more is to be sent.
async fn resolve_patiently(spec: &Spec, report: &Report) -> Option<SocketAddr> {
    loop {
        match resolve(&spec.to).await {
            Ok(to) => return Some(to),
            Err(error) => report.failed(&spec.name, &word(&error)),
        }
        tokio::select! {
            () = report.stopped() => return None,
            () = sleep(spec.period) => {}
        }
    }
}

/// The first address, as most clients take it.
async fn resolve(to: &str) -> io::Result<SocketAddr> {
    let unknown = |why: &str| io::Error::new(io::ErrorKind::NotFound, why.to_owned());
    let addresses = lookup_host(to).await;
    let addresses = addresses.map_err(|error| unknown(&format!("resolve: {error}")));
    addresses?.next().ok_or_else(|| unknown("resolve: no address"))
}

async fn udp_socket(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    Ok(socket)
}

/// What went wrong, short and the same for the same cause.
fn word(error: &io::Error) -> String {
    let text = error.to_string();
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused".to_owned(),
        io::ErrorKind::ConnectionReset => "reset".to_owned(),
        io::ErrorKind::UnexpectedEof => "closed".to_owned(),
        io::ErrorKind::NotFound if text.starts_with("resolve") => "resolve".to_owned(),
        _ => text,
    }
}
