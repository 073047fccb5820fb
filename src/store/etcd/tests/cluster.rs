//! Real etcd servers for tests.

use std::collections::VecDeque;
use std::future::Future;
use std::net::TcpListener;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use crate::mutex::Mutex;
use etcd_fixture::{Member, free_port};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use crate::error::LockError;
use crate::kv::{
    Answer, Failure, FailureClass, Key, Op, OpResult, Order, Range, Request, Response, Span, Txn, TxnAnswer,
    WatchEvent,
};
use crate::options::{Credentials, LockManagerOptions};
use crate::store::etcd::Etcd;
use crate::store::{Store, WatchOrder};

/// Longer than any step of a test takes, even on a busy machine.
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

/// Members of one cluster, stopped at the end of the test.
pub(crate) struct TestCluster {
    members: Vec<Member>,
}

impl TestCluster {
    pub(crate) fn start(size: usize) -> Self {
        Self::start_with(size, "http", &[])
    }

    /// With further flags, and a scheme for the clients.
    pub(crate) fn start_with(size: usize, scheme: &str, flags: &[&str]) -> Self {
        let _ = env_logger::builder().is_test(true).format_timestamp_millis().try_init();
        let started = etcd_fixture::with_fresh_ports(|| {
            let mut members: Vec<Member> = (0..size).map(|n| Member::new(&format!("m{n}"))).collect();
            for member in &mut members {
                if scheme == "https" {
                    member.use_tls();
                }
                member.add_args(["--heartbeat-interval=50", "--election-timeout=500"]);
                member.add_args(flags.iter().copied());
            }
            etcd_fixture::start(&members)?;
            Ok(Self { members })
        });
        started.unwrap_or_else(|why| panic!("no cluster of {size}: {why}"))
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.members.iter().map(Member::endpoint).collect()
    }

    pub(crate) fn url(&self, member: usize) -> Vec<String> {
        vec![self.members[member].endpoint()]
    }

    /// The member that carries this store's requests.
    pub(crate) fn member_of(&self, etcd: &Etcd) -> usize {
        self.urls().iter().position(|url| *url == etcd.pinned()).expect("the endpoint is of another cluster")
    }

    /// Kills the member, as a power failure would.
    pub(crate) fn kill(&mut self, member: usize) {
        self.members[member].kill();
    }

    pub(crate) fn restart(&mut self, member: usize) {
        self.members[member].restart();
    }

    /// Replaces the only member by one of another, empty cluster on the same ports.
    pub(crate) fn replace(&mut self, token: &str) {
        let [member] = &mut self.members[..] else { panic!("more than one member") };
        member.wipe();
        member.add_args([format!("--initial-cluster-token={token}")]);
        member.restart();
    }

    /// Suspends the member: it stays connected and sends nothing.
    pub(crate) fn freeze(&self, member: usize) {
        self.members[member].stop();
    }

    pub(crate) fn thaw(&self, member: usize) {
        self.members[member].cont();
    }

    pub(crate) fn etcdctl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(etcd_fixture::program("ETCDCTL_BIN", "etcdctl"));
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

/// An address without a listener.
pub(crate) fn dead_url() -> String {
    format!("http://127.0.0.1:{}", free_port())
}

/// A server that accepts connections and never answers, until the listener is dropped.
pub(crate) fn black_hole() -> (TcpListener, String) {
    // The kernel accepts into the backlog.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

// ---- shorthands for requests

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
        other => panic!("{other:?} is not an answer to a transaction"),
    }
}

/// Puts a key, and returns the revision.
pub(crate) async fn put_key(store: &impl Store, name: &str, lease: i64) -> i64 {
    call(store, always(vec![put(name, "", lease)])).await.unwrap().revision
}

/// The names of the keys in a span.
pub(crate) async fn keys(store: &impl Store, range: Range) -> Vec<String> {
    let answer = txn_answer(call(store, always(vec![Op::Range(range)])).await.unwrap());
    match &answer.results[..] {
        [OpResult::Range(result)] => result.kvs.iter().map(|kv| kv.key.to_string()).collect(),
        other => panic!("{other:?} is not a range"),
    }
}

pub(crate) async fn grant(store: &impl Store, seconds: u64) -> i64 {
    let response = call(store, Request::GrantLease { ttl: Duration::from_secs(seconds) }).await.unwrap();
    match response.answer {
        Answer::LeaseGranted { lease, .. } => lease,
        other => panic!("{other:?} is not a lease"),
    }
}

/// A store that executes other requests between two calls, or loses answers.
#[derive(Clone)]
pub(crate) struct Meddled {
    etcd: Etcd,
    plan: Arc<Mutex<VecDeque<Meddling>>>,
}

/// What happens to one call.
pub(crate) enum Meddling {
    Nothing,
    /// These requests are executed first.
    Before(Vec<Request>),
    /// It is executed, and its answer is lost.
    LoseAnswer,
}

impl Meddled {
    /// Calls after the planned ones are passed on unchanged.
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
