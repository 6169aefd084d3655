//! The echo, over TCP and UDP. Must answer nothing that is no message.

use std::io;
use std::net::IpAddr;
use std::rc::Rc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::client;
use super::message::{Message, SIZE};
use super::report::Report;

/// Takes connections until the process ends.
pub async fn streams(listener: TcpListener, report: Rc<Report>) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let report = Rc::clone(&report);
                tokio::task::spawn_local(async move {
                    if let Ok(0) | Err(_) = stream_of_one(stream, from.ip(), &report).await {
                        report.silent(from.ip());
                    }
                });
            }
            // The connection ended before it was taken; only those that come matter here.
            Err(error) => eprintln!("cannot accept a connection: {error}"),
        }
    }
}

/// How many messages came.
async fn stream_of_one(
    mut stream: TcpStream,
    from: IpAddr,
    report: &Rc<Report>,
) -> io::Result<u64> {
    stream.set_nodelay(true)?;
    let mut bytes = [0; SIZE];
    let mut count = 0;
    while let Ok(SIZE) = stream.read_exact(&mut bytes).await {
        let Some(message) = Message::decode(&bytes) else { break };
        if report.received(&message.sender, count == 0) {
            client::call_back(from, report);
        }
        count += 1;
        // Whoever does not wait for the answer has been counted all the same.
        if stream.write_all(&bytes).await.is_err() {
            break;
        }
    }
    Ok(count)
}

/// Answers datagrams until the process ends.
pub async fn datagrams(socket: UdpSocket, report: Rc<Report>) {
    let mut bytes = [0; SIZE + 1];
    loop {
        match socket.recv_from(&mut bytes).await {
            Ok((length, from)) => {
                let Some(message) = Message::decode(&bytes[..length]) else { continue };
                if report.received(&message.sender, false) {
                    client::call_back(from.ip(), &report);
                }
                if let Err(error) = socket.send_to(&bytes[..length], from).await {
                    eprintln!("cannot answer {from}: {error}");
                }
            }
            // ICMP errors about former answers are told here.
            Err(error) => eprintln!("cannot receive: {error}"),
        }
    }
}
