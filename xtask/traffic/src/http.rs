//! What probes and `kubectl exec` ask for: `/healthz`, `/stats`, `/start`,
//! `/stop`. Plain HTTP/1.0, one
//! request per connection.

use std::io;
use std::net::Ipv4Addr;
use std::rc::Rc;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::report::Report;

/// Answers until the process ends.
pub async fn serve(listener: TcpListener, report: Rc<Report>) {
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            let report = Rc::clone(&report);
            // A client that goes away half-way is its own affair.
            tokio::task::spawn_local(async move { drop(answer(stream, &report).await) });
        }
    }
}

async fn answer(mut stream: TcpStream, report: &Report) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < 8_192 {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let request = String::from_utf8_lossy(&request);
    let body = match request.split(' ').nth(1) {
        Some("/healthz") => "ok".to_owned(),
        Some("/stats") => report.full().to_string(),
        Some("/start") => {
            report.start();
            report.full().to_string()
        }
        Some("/stop") => {
            report.stop();
            report.all_ended().await;
            report.full().to_string()
        }
        _ => return stream.write_all(b"HTTP/1.0 404 Not Found\r\n\r\n").await,
    };
    let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// Asks the one that runs in this pod.
pub async fn ask(port: u16, what: &str) -> Result<String> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
    let mut stream = stream.with_context(|| format!("nothing answers at port {port}"))?;
    stream.write_all(format!("GET /{what} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let (_, body) = text.split_once("\r\n\r\n").context("the answer has no body")?;
    Ok(body.to_owned())
}
