//! `traffic`: what the scenarios' pods run. Sends numbered messages, echoes those of others, and
//! counts both exactly, so that each lost and each wrongly passed message shows. Must never send
//! to anything but the targets it was given, and must never leave out what failed.

#![expect(clippy::cast_possible_truncation, reason = "times and numbers of messages of one run")]

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use tokio::net::{TcpListener, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;
use tokio::time::sleep;

mod client;
mod http;
mod message;
mod report;
mod server;
mod spec;

use report::Report;
use spec::{CallBack, Spec};

/// Send numbered messages, echo those of others, count both
#[derive(Debug, Parser)]
struct Args {
    /// Print a running one's counters (`stats`), begin (`start`) or end its flows first (`stop`)
    #[arg(value_parser = ["stats", "start", "stop"])]
    ask: Option<String>,

    /// Echo what arrives at this TCP and UDP port
    #[arg(long, value_name = "PORT")]
    serve: Vec<u16>,

    /// Where the counters are, and what probes ask for
    #[arg(long, value_name = "PORT", default_value_t = 8081)]
    http: u16,

    /// Such as `name=web,kind=tcp-connect,to=web.shop:80,rate=20,count=5,timeout=3000`
    #[arg(long)]
    flow: Vec<Spec>,

    /// Send nothing before `start` is asked for
    #[arg(long)]
    hold: bool,

    /// Whoever sends a first message is sent one at this port at once: a flow's name and the port
    #[arg(long, value_name = "NAME=PORT")]
    call_back: Vec<CallBack>,

    /// End when all flows have sent what they shall
    #[arg(long)]
    once: bool,

    /// How many seconds answers may take after the last message, and a server goes on after
    /// SIGTERM
    #[arg(long, default_value_t = 2.0)]
    drain: f64,

    /// Where to write the counters at the end, beside standard output
    #[arg(long, value_name = "FILE", default_value = "/dev/termination-log")]
    last_words: PathBuf,

    /// Whose messages they are
    #[arg(long, env = "HOSTNAME", default_value = "traffic")]
    name: String,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let Some(what) = &args.ask {
        println!("{}", runtime.block_on(http::ask(args.http, what))?);
        return Ok(());
    }
    LocalSet::new().block_on(&runtime, run(&args))?;
    // Look-ups that nobody waits for any longer must not keep the process.
    runtime.shutdown_background();
    Ok(())
}

/// Works until told to end. What was not answered is no failure: it may be what is expected.
async fn run(args: &Args) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut report = Report::new(args.name.clone(), Duration::from_secs_f64(args.drain));
    report.call_backs.clone_from(&args.call_back);
    let report = Rc::new(report);
    if !args.hold {
        report.start();
    }
    for &port in &args.serve {
        serve(port, &report).await?;
    }
    let listener = TcpListener::bind(any(args.http)).await.context("cannot listen for probes")?;
    tokio::task::spawn_local(http::serve(listener, Rc::clone(&report)));
    let flows: Vec<_> = args
        .flow
        .iter()
        .map(|spec| tokio::task::spawn_local(client::run(spec.clone(), Rc::clone(&report))))
        .collect();
    let all_sent = async {
        for flow in flows {
            // A flow that panicked has said so; what it did not send is missing in the counters.
            let _ = flow.await;
        }
        if !args.once {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = all_sent => {}
        _ = terminate.recv() => report.stop(),
    }
    sleep(report.drain).await;
    let text = report.summary().to_string();
    println!("{text}");
    if args.last_words.exists() {
        std::fs::write(&args.last_words, &text).context("cannot write the last words")?;
    }
    Ok(())
}

async fn serve(port: u16, report: &Rc<Report>) -> Result<()> {
    let listener = TcpListener::bind(any(port)).await;
    let listener = listener.with_context(|| format!("cannot listen on TCP port {port}"))?;
    let socket = UdpSocket::bind(any(port)).await;
    let socket = socket.with_context(|| format!("cannot listen on UDP port {port}"))?;
    tokio::task::spawn_local(server::streams(listener, Rc::clone(report)));
    tokio::task::spawn_local(server::datagrams(socket, Rc::clone(report)));
    Ok(())
}

/// Both families: Linux takes IPv4 at an unspecified IPv6 address, too.
fn any(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}
