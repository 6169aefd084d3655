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
    /// Counts cuts.
    cuts: watch::Sender<u64>,
    /// How many bytes of answers pass until connections are cut.
    budget: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Gate {
    pub async fn new(to: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (mode, receiver) = watch::channel(Mode::Open);
        let (cuts, cut) = watch::channel(0);
        let budget = Arc::new(AtomicU64::new(u64::MAX));
        let budgets = budget.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let cut = cut.clone();
                tokio::spawn(forward(stream, to, receiver.clone(), cut, budgets.clone()));
            }
        });
        Self { address, mode, cuts, budget, task }
    }

    pub fn address(&self) -> String {
        self.address.clone()
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Ends the connections there are.
    pub fn cut(&self) {
        self.cuts.send_modify(|count| *count += 1);
    }

    /// Only so many more bytes of answers, over all connections.
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

async fn forward(
    stream: TcpStream,
    to: &str,
    mut mode: watch::Receiver<Mode>,
    mut cut: watch::Receiver<u64>,
    budget: Arc<AtomicU64>,
) {
    cut.mark_unchanged();
    if *mode.borrow() == Mode::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(to).await else { return };
    let (from_client, to_client) = stream.into_split();
    let (from_server, to_server) = server.into_split();
    let (there, back) = (mode.clone(), mode.clone());
    let requests = AtomicU64::new(u64::MAX);
    tokio::select! {
        () = copy(from_client, to_server, there, &requests) => {}
        () = copy(from_server, to_client, back, &budget) => {}
        _ = mode.wait_for(|mode| *mode == Mode::Cut) => {}
        _ = cut.changed() => {}
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    budget: &AtomicU64,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(n @ 1..) = from.read(&mut buffer).await else { return };
        if mode.wait_for(|mode| *mode != Mode::Frozen).await.is_err() {
            return;
        }
        let spend = |left: u64| left.checked_sub(n as u64);
        let is_over = budget.fetch_update(Ordering::SeqCst, Ordering::SeqCst, spend).is_err();
        if is_over || to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}
