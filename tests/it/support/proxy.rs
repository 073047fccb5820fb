//! A network with faults on demand: a TCP proxy in front of one member, for its clients or for its peers.

mod pipe;

use std::future::pending;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use etcd_fixture::{Member, free_port};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use pipe::Pipe;

use super::http2::Calls;
use super::mute::Muzzle;

/// The proxy; dropping it resets its connections and waits for its thread. Every method has taken effect when it
/// returns.
#[derive(Debug)]
pub(crate) struct Proxy {
    scheme: &'static str,
    address: SocketAddr,
    rules: Arc<watch::Sender<Rules>>,
    orders: Option<mpsc::UnboundedSender<Order>>,
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    ToServer,
    ToClient,
}

/// The fate of a connection whose answer was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// It is reset.
    Reset,
    /// It stays open, and the client receives no more data on it.
    Silence,
}

#[derive(Clone, Debug, Default)]
struct Rules {
    hold_to_server: bool,
    hold_to_client: bool,
    delay_to_server: Duration,
    delay_to_client: Duration,
    /// The number of answers to forward before one is lost.
    lose: Option<(u32, Loss)>,
    mute_watches: bool,
    /// The peer whose connections are held in both directions.
    cut: Option<String>,
    /// Connections of earlier generations are reset.
    generation: u64,
}

impl Rules {
    fn holds(&self, way: Way, peer: Option<&String>) -> bool {
        let whole_way = match way {
            Way::ToServer => self.hold_to_server,
            Way::ToClient => self.hold_to_client,
        };
        whole_way || (peer.is_some() && self.cut.as_ref() == peer)
    }

    fn delay(&self, way: Way) -> Duration {
        match way {
            Way::ToServer => self.delay_to_server,
            Way::ToClient => self.delay_to_client,
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    /// The generation of each open connection.
    open: Mutex<Vec<u64>>,
    accepted: AtomicU64,
    lost: AtomicU64,
}

impl Counts {
    fn open(&self) -> MutexGuard<'_, Vec<u64>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether to listen; answered once that is done.
#[derive(Debug)]
struct Order {
    listen: bool,
    done: std::sync::mpsc::Sender<()>,
}

impl Proxy {
    /// A proxy in front of a member's port for clients.
    pub(crate) fn of(member: &Member) -> Self {
        let scheme = if member.endpoint().starts_with("https") { "https" } else { "http" };
        Self::start(scheme, scheme == "http", member.address().parse().expect("an address"))
    }

    /// A proxy in front of a member's port for its peers. The member need not run yet.
    pub(super) fn for_peers(target: SocketAddr) -> Self {
        // Peers use HTTP/1.
        Self::start("http", false, target)
    }

    /// `grpc`: the data can be read as HTTP/2.
    fn start(scheme: &'static str, grpc: bool, target: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let bind = || runtime.block_on(TcpListener::bind(("127.0.0.1", free_port()))).ok();
        let listener = std::iter::repeat_with(bind).take(5).flatten().next().expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let rules = Arc::new(watch::Sender::new(Rules::default()));
        let (orders, on_orders) = mpsc::unbounded_channel();
        let counts = Arc::new(Counts::default());
        let run = run(listener, target, grpc, rules.clone(), on_orders, counts.clone());
        let thread = std::thread::Builder::new().name("proxy".into());
        // Dropping the runtime closes all open connections.
        let thread = thread.spawn(move || runtime.block_on(run)).expect("a thread can be spawned");
        Self { scheme, address, rules, orders: Some(orders), counts, thread: Some(thread) }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Host and port.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Forwards all data, including data that was held, and accepts new connections.
    pub(crate) fn pass(&self) {
        self.rules.send_modify(|rules| *rules = Rules { generation: rules.generation, ..Rules::default() });
        self.listen(true);
    }

    /// No data is delivered in either direction, as with a cut cable. New connections are accepted and get no data.
    /// Data sent meanwhile is delivered after [`Self::pass`], as TCP would retransmit it.
    pub(crate) fn blackhole(&self) {
        self.hold(Way::ToServer);
        self.hold(Way::ToClient);
    }

    /// A black hole in one direction.
    pub(crate) fn hold(&self, way: Way) {
        self.rules.send_modify(|rules| match way {
            Way::ToServer => rules.hold_to_server = true,
            Way::ToClient => rules.hold_to_client = true,
        });
    }

    /// A black hole in both directions for one of the members that connect to this peer port.
    pub(super) fn cut(&self, member: u64) {
        self.rules.send_modify(|rules| rules.cut = Some(format!("{member:x}")));
    }

    /// Delays all data, in both directions.
    pub(crate) fn delay(&self, delay: Duration) {
        self.delay_way(Way::ToServer, delay);
        self.delay_way(Way::ToClient, delay);
    }

    /// Delays all data in one direction.
    pub(crate) fn delay_way(&self, way: Way, delay: Duration) {
        self.rules.send_modify(|rules| match way {
            Way::ToServer => rules.delay_to_server = delay,
            Way::ToClient => rules.delay_to_client = delay,
        });
    }

    /// Resets every connection with its data in flight. New connections are accepted.
    pub(crate) fn reset_all(&self) {
        self.rules.send_modify(|rules| rules.generation += 1);
        let now = self.rules.borrow().generation;
        super::eventually(Duration::from_secs(5), "the proxy's connections are closed", || {
            self.counts.open().iter().all(|generation| *generation >= now)
        });
    }

    /// Resets every connection and refuses new ones, as if the server's process had ended.
    pub(crate) fn refuse(&self) {
        self.listen(false);
        self.reset_all();
    }

    /// Loses the next answer to a unary call after etcd has sent it, on a connection without TLS. (Messages of watch
    /// and keep-alive streams do not count as answers.)
    pub(crate) fn lose_next_answer(&self, loss: Loss) {
        self.lose_answer_after(0, loss);
    }

    /// Like [`Self::lose_next_answer`], after `others` answers.
    pub(crate) fn lose_answer_after(&self, others: u32, loss: Loss) {
        self.rules.send_modify(|rules| rules.lose = Some((others, loss)));
    }

    /// The members' watch streams deliver no more messages, on connections without TLS; all other data is forwarded.
    /// The messages are lost.
    pub(crate) fn mute_watches(&self) {
        self.rules.send_modify(|rules| rules.mute_watches = true);
    }

    /// The number of lost answers so far.
    pub(crate) fn lost_answers(&self) -> u64 {
        self.counts.lost.load(Ordering::SeqCst)
    }

    /// The number of open connections.
    pub(crate) fn connections(&self) -> usize {
        self.counts.open().len()
    }

    /// The number of connections ever accepted.
    pub(crate) fn accepted(&self) -> u64 {
        self.counts.accepted.load(Ordering::SeqCst)
    }

    fn listen(&self, listen: bool) {
        let (done, wait) = std::sync::mpsc::channel();
        let orders = self.orders.as_ref().expect("the proxy is running");
        orders.send(Order { listen, done }).expect("the proxy's thread runs");
        wait.recv().expect("the proxy answers");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The proxy's thread accepts connections while it should listen, until the orders end.
async fn run(
    listener: TcpListener,
    target: SocketAddr,
    grpc: bool,
    rules: Arc<watch::Sender<Rules>>,
    mut orders: mpsc::UnboundedReceiver<Order>,
    counts: Arc<Counts>,
) {
    let address = listener.local_addr().expect("a bound address");
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                None => break,
                Some(Order { listen, done }) => {
                    if !listen {
                        listener = None;
                    } else if listener.is_none() {
                        listener = Some(TcpListener::bind(address).await.expect("the port is still free"));
                    }
                    let _ = done.send(());
                }
            },
            client = accept(listener.as_ref()) => {
                let generation = rules.borrow().generation;
                counts.accepted.fetch_add(1, Ordering::SeqCst);
                counts.open().push(generation);
                connections.spawn(serve(client, generation, target, grpc, rules.clone(), counts.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
    rules.send_modify(|rules| rules.generation += 1);
    while connections.join_next().await.is_some() {}
}

async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    let Some(listener) = listener else { return pending().await };
    loop {
        // An error here is that of a connection that was not established.
        if let Ok((stream, _)) = listener.accept().await {
            return stream;
        }
    }
}

async fn serve(
    mut client: TcpStream,
    generation: u64,
    target: SocketAddr,
    grpc: bool,
    rules: Arc<watch::Sender<Rules>>,
    counts: Arc<Counts>,
) {
    let mut changes = rules.subscribe();
    let reset = changes.wait_for(|rules| rules.generation != generation);
    tokio::pin!(reset);
    let server = tokio::select! {
        server = TcpStream::connect(target) => server.ok(),
        _ = &mut reset => None,
    };
    if let Some(mut server) = server {
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let calls = Mutex::new(Calls::new());
        let muzzle = grpc.then(|| Mutex::new(Muzzle::new()));
        let muzzle = muzzle.as_ref();
        let peer = OnceLock::new();
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let requests = Pipe {
            way: Way::ToServer,
            rules: rules.clone(),
            calls: &calls,
            muzzle,
            peer: &peer,
            counts: &counts,
        };
        let answers = Pipe {
            way: Way::ToClient,
            rules: rules.clone(),
            calls: &calls,
            muzzle,
            peer: &peer,
            counts: &counts,
        };
        let both = async {
            tokio::try_join!(requests.run(from_client, to_server), answers.run(from_server, to_client))
        };
        let in_order = tokio::select! {
            ended = both => ended.is_ok(),
            _ = &mut reset => false,
        };
        if !in_order {
            let _ = (client.set_zero_linger(), server.set_zero_linger());
        }
    } else {
        let _ = client.set_zero_linger();
    }
    drop(client);
    let mut open = counts.open();
    let index = open.iter().position(|other| *other == generation);
    index.map(|index| open.swap_remove(index));
}
