//! Real etcd servers for tests.

use std::collections::VecDeque;
use std::future::Future;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::Etcd;
use crate::error::LockError;
use crate::kv::{
    Answer, Failure, FailureClass, Key, Op, OpResult, Order, Range, Request, Response, Span, Txn, TxnAnswer,
    WatchEvent,
};
use crate::options::{Credentials, LockManagerOptions};
use crate::store::{Store, WatchOrder};

/// Longer than anything a test waits for takes, even on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Options with short timeouts, so that a test of a failure is quick.
pub(crate) fn options() -> LockManagerOptions {
    LockManagerOptions {
        ttl: Duration::from_secs(5),
        owner: None,
        credentials: None,
        #[cfg(feature = "tls")]
        tls: None,
        connect_timeout: Duration::from_secs(5),
        request_timeout: Duration::from_secs(3),
        safety_margin: None,
        close_timeout: Duration::from_secs(2),
    }
}

pub(crate) fn as_user(user: &str, password: &str) -> LockManagerOptions {
    let credentials = Credentials { user: user.into(), password: password.into() };
    LockManagerOptions { credentials: Some(credentials), ..options() }
}

/// The options with which a test waits for a server that is still starting.
pub(crate) fn patient(options: LockManagerOptions) -> LockManagerOptions {
    LockManagerOptions { connect_timeout: LONG, ..options }
}

pub(crate) async fn connect(endpoints: &[String]) -> Etcd {
    connect_with(endpoints, &patient(options())).await.unwrap()
}

pub(crate) async fn connect_with(
    endpoints: &[String],
    options: &LockManagerOptions,
) -> Result<Etcd, LockError> {
    Etcd::connect(endpoints, options).await
}

/// Members of one cluster, in a temporary folder, stopped at the end of the test.
pub(crate) struct TestCluster {
    members: Vec<Member>,
    _folder: TempDir,
}

struct Member {
    client_url: String,
    command: Vec<String>,
    process: Option<Child>,
}

impl TestCluster {
    pub(crate) fn start(size: usize) -> Self {
        Self::start_with(size, "http", &[])
    }

    /// With further flags, and a scheme for the clients.
    pub(crate) fn start_with(size: usize, scheme: &str, flags: &[&str]) -> Self {
        let _ = env_logger::builder().is_test(true).format_timestamp_millis().try_init();
        let folder = tempfile::tempdir().unwrap();
        // A port that was free may be taken by the time that etcd wants it.
        let members = (0..5).find_map(|_| Self::try_start(size, scheme, flags, folder.path()));
        Self { members: members.expect("etcd does not start: is it installed?"), _folder: folder }
    }

    fn try_start(size: usize, scheme: &str, flags: &[&str], folder: &Path) -> Option<Vec<Member>> {
        let ports = free_ports(2 * size);
        let peers: Vec<String> =
            (0..size).map(|i| format!("m{i}=http://127.0.0.1:{}", ports[size + i])).collect();
        let mut members: Vec<Member> = (0..size)
            .map(|i| {
                let client_url = format!("{scheme}://127.0.0.1:{}", ports[i]);
                let peer_url = format!("http://127.0.0.1:{}", ports[size + i]);
                let data = folder.join(format!("{}", ports[i])).display().to_string();
                let named = [
                    ("name", format!("m{i}")),
                    ("data-dir", data),
                    ("listen-client-urls", client_url.clone()),
                    ("advertise-client-urls", client_url.clone()),
                    ("listen-peer-urls", peer_url.clone()),
                    ("initial-advertise-peer-urls", peer_url),
                    ("initial-cluster", peers.join(",")),
                    ("initial-cluster-token", ports[0].to_string()),
                    ("heartbeat-interval", "50".into()),
                    ("election-timeout", "500".into()),
                    ("logger", "zap".into()),
                    ("log-level", "fatal".into()),
                ];
                let mut command: Vec<String> = named.map(|(name, value)| format!("--{name}={value}")).into();
                command.extend(flags.iter().map(|&flag| flag.to_owned()));
                Member { client_url, command, process: None }
            })
            .collect();
        members.iter_mut().for_each(Member::start);
        members.iter_mut().all(Member::listens).then_some(members)
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.members.iter().map(|member| member.client_url.clone()).collect()
    }

    pub(crate) fn url(&self, member: usize) -> Vec<String> {
        vec![self.members[member].client_url.clone()]
    }

    /// Ends the member at once, as a power failure would.
    pub(crate) fn kill(&mut self, member: usize) {
        self.members[member].kill();
    }

    pub(crate) fn restart(&mut self, member: usize) {
        self.members[member].kill();
        self.members[member].start();
        assert!(self.members[member].listens(), "the member does not come back");
    }

    /// Another cluster takes the place of the only member's, on the same ports and without any key.
    pub(crate) fn replace(&mut self, token: &str) {
        let [member] = &mut self.members[..] else { panic!("more than one member") };
        member.kill();
        for flag in &mut member.command {
            if let Some(data) = flag.strip_prefix("--data-dir=") {
                std::fs::remove_dir_all(data).unwrap();
            } else if flag.starts_with("--initial-cluster-token=") {
                *flag = format!("--initial-cluster-token={token}");
            }
        }
        self.restart(0);
    }

    /// The member stays connected and says nothing more.
    pub(crate) fn freeze(&self, member: usize) {
        self.members[member].signal(Signal::STOP);
        // The signal reaches one thread after the other.
        let threads = format!("/proc/{}/task", self.members[member].id());
        let stopped = |stat: String| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'));
        let all_stopped = || {
            let mut threads = std::fs::read_dir(&threads).unwrap();
            threads
                .all(|thread| std::fs::read_to_string(thread.unwrap().path().join("stat")).is_ok_and(stopped))
        };
        while !all_stopped() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn thaw(&self, member: usize) {
        self.members[member].signal(Signal::CONT);
    }

    pub(crate) fn etcdctl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(std::env::var_os("ETCDCTL_BIN").unwrap_or_else(|| "etcdctl".into()));
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", self.urls().join(","))).args(args);
        command
    }

    pub(crate) fn etcdctl(&self, args: &[&str]) -> Output {
        let output = self.etcdctl_command(args).output().expect("etcdctl is missing");
        assert!(output.status.success(), "etcdctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// Turns authentication on: `root`, who may do everything, and `app`, who may do everything below `/app/`.
    /// The password is the name.
    pub(crate) fn enable_auth(&self) {
        for args in [
            &["user", "add", "root:root"][..],
            &["user", "grant-role", "root", "root"],
            &["role", "add", "app"],
            &["role", "grant-permission", "app", "readwrite", "--prefix=true", "/app/"],
            &["user", "add", "app:app"],
            &["user", "grant-role", "app", "app"],
            &["auth", "enable"],
        ] {
            self.etcdctl(args);
        }
    }
}

impl Member {
    fn start(&mut self) {
        let mut command = Command::new(std::env::var_os("ETCD_BIN").unwrap_or_else(|| "etcd".into()));
        command.args(&self.command).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(command.spawn().expect("etcd is missing"));
    }

    /// Waits until the member listens; `false` if it died instead.
    fn listens(&mut self) -> bool {
        let address = self.client_url.split_once("://").unwrap().1;
        let limit = Instant::now() + LONG;
        while Instant::now() < limit {
            if TcpStream::connect(address).is_ok() {
                return true;
            }
            if self.process.as_mut().unwrap().try_wait().unwrap().is_some() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    fn id(&self) -> u32 {
        self.process.as_ref().unwrap().id()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.id().try_into().unwrap()).unwrap(), signal).unwrap();
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

/// An address where nobody listens.
pub(crate) fn dead_url() -> String {
    format!("http://127.0.0.1:{}", free_ports(1)[0])
}

/// A server that accepts connections and never says anything, as long as the listener lives.
pub(crate) fn black_hole() -> (TcpListener, String) {
    // The kernel accepts into the backlog.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

// ---- requests, for short

pub(crate) async fn call(store: &impl Store, request: Request) -> Result<Response, Failure> {
    store.call(request, Duration::from_secs(5)).await
}

pub(crate) fn key(text: &str) -> Key {
    Key::from(text)
}

pub(crate) fn put(name: &str, value: &str, lease: i64) -> Op {
    Op::Put { key: key(name), value: value.into(), lease }
}

pub(crate) fn range(span: Span) -> Range {
    Range { span, order: Order::ByKey, limit: 0, max_create_revision: 0, at_revision: 0, keys_only: false }
}

/// A transaction without a condition.
pub(crate) fn always(then: Vec<Op>) -> Request {
    Request::Txn(Txn { then, ..Txn::default() })
}

pub(crate) fn txn_answer(response: Response) -> TxnAnswer {
    match response.answer {
        Answer::Txn(answer) => answer,
        other => panic!("{other:?} is no answer to a transaction"),
    }
}

/// Puts a key; its revision.
pub(crate) async fn put_key(store: &impl Store, name: &str, lease: i64) -> i64 {
    call(store, always(vec![put(name, "", lease)])).await.unwrap().revision
}

/// The names of the keys in a span.
pub(crate) async fn keys(store: &impl Store, range: Range) -> Vec<String> {
    let answer = txn_answer(call(store, always(vec![Op::Range(range)])).await.unwrap());
    match &answer.results[..] {
        [OpResult::Range(result)] => result.kvs.iter().map(|kv| kv.key.to_string()).collect(),
        other => panic!("{other:?} is no range"),
    }
}

pub(crate) async fn grant(store: &impl Store, seconds: u64) -> i64 {
    let response = call(store, Request::GrantLease { ttl: Duration::from_secs(seconds) }).await.unwrap();
    match response.answer {
        Answer::LeaseGranted { lease, .. } => lease,
        other => panic!("{other:?} is no lease"),
    }
}

/// A store in which something happens between one call and the next, and answers get lost.
#[derive(Clone)]
pub(crate) struct Meddled {
    etcd: Etcd,
    plan: Arc<Mutex<VecDeque<Meddling>>>,
}

/// What happens to one call.
pub(crate) enum Meddling {
    Nothing,
    /// Somebody else does this first.
    Before(Vec<Request>),
    /// It is carried out, and nobody hears of it.
    LoseAnswer,
}

impl Meddled {
    /// The calls after the planned ones are left alone.
    pub(crate) fn new(etcd: &Etcd, plan: impl Into<VecDeque<Meddling>>) -> Self {
        Self { etcd: etcd.clone(), plan: Arc::new(Mutex::new(plan.into())) }
    }
}

impl Store for Meddled {
    fn call(
        &self,
        request: Request,
        timeout: Duration,
    ) -> impl Future<Output = Result<Response, Failure>> + Send + 'static {
        let (etcd, meddling) = (self.etcd.clone(), self.plan.lock().pop_front());
        async move {
            match meddling {
                None | Some(Meddling::Nothing) => etcd.call(request, timeout).await,
                Some(Meddling::Before(others)) => {
                    for other in others {
                        etcd.call(other, timeout).await?;
                    }
                    etcd.call(request, timeout).await
                }
                Some(Meddling::LoseAnswer) => {
                    etcd.call(request, timeout).await?;
                    Err(Failure::new(FailureClass::Unknown, "lost"))
                }
            }
        }
    }

    fn run_watches(
        &self,
        orders: UnboundedReceiver<WatchOrder>,
        events: UnboundedSender<WatchEvent>,
    ) -> impl Future<Output = ()> + Send + 'static {
        self.etcd.run_watches(orders, events)
    }
}
