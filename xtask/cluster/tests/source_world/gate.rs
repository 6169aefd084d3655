//! A TCP forwarder between agent and API server that can be shut: connections cut, or kept while
//! nothing passes, or cut in the middle of an answer. Must never look at what it forwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens to connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// They pass.
    Open,
    /// They end, and new ones too, at once.
    Cut,
    /// They stay, and new ones are accepted, but nothing passes.
    Frozen,
}

/// The forwarder; it ends when dropped.
pub struct Gate {
    address: String,
    mode: watch::Sender<Mode>,
    /// How many bytes of answers a new connection passes until it is cut.
    budget: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Gate {
    pub async fn new(to: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (mode, receiver) = watch::channel(Mode::Open);
        let budget = Arc::new(AtomicU64::new(u64::MAX));
        let budgets = budget.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let budget = budgets.load(Ordering::SeqCst);
                tokio::spawn(forward(stream, to, receiver.clone(), budget));
            }
        });
        Self { address, mode, budget, task }
    }

    pub fn address(&self) -> String {
        self.address.clone()
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Of the next connections, only so many bytes of the answers.
    pub fn pass_only(&self, bytes: u64) {
        self.budget.store(bytes, Ordering::SeqCst);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
        self.set(Mode::Cut);
    }
}

async fn forward(stream: TcpStream, to: &str, mut mode: watch::Receiver<Mode>, budget: u64) {
    if *mode.borrow() == Mode::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(to).await else { return };
    let (from_client, to_client) = stream.into_split();
    let (from_server, to_server) = server.into_split();
    let (there, back) = (mode.clone(), mode.clone());
    tokio::select! {
        () = copy(from_client, to_server, there, u64::MAX) => {}
        () = copy(from_server, to_client, back, budget) => {}
        _ = mode.wait_for(|mode| *mode == Mode::Cut) => {}
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    mut budget: u64,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(n @ 1..) = from.read(&mut buffer).await else { return };
        if mode.wait_for(|mode| *mode != Mode::Frozen).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..n]).await.is_err() || budget < n as u64 {
            return;
        }
        budget -= n as u64;
    }
}
