//! etcd servers: a single one, and one process of it or of a cluster.

use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::leash::{Leash, program};
use super::ports::free_port;
use super::setup::{Access, Setup};
use super::version::Version;
use super::{Cluster, Proxy, metrics};

/// A server that is not ready by then never will be. (A single one takes a fifth of a second, a cluster one or two.)
const READY: Duration = Duration::from_secs(30);

/// A single server; all that it has is its [`Member`]'s and its [`Cluster`]'s.
#[derive(Debug)]
pub(crate) struct Etcd(Cluster);

impl Etcd {
    pub(crate) fn start() -> Self {
        Setup::default().start()
    }

    pub(crate) fn access(&self) -> &Access {
        self.0.access()
    }

    pub(crate) fn endpoints(&self) -> &[String] {
        &self.0.access().endpoints
    }
}

impl From<Cluster> for Etcd {
    /// The only member of this cluster.
    fn from(cluster: Cluster) -> Self {
        Self(cluster)
    }
}

impl Deref for Etcd {
    type Target = Member;

    fn deref(&self) -> &Member {
        self.0.member(0)
    }
}

/// Why a server did not come up.
#[derive(Debug)]
pub(super) enum StartError {
    PortTaken,
    Failed(String),
}

/// One server process: its folder and ports stay the same however often it is killed and restarted.
#[derive(Debug)]
pub(crate) struct Member {
    name: String,
    dir: PathBuf,
    client: u16,
    peer: u16,
    metrics: u16,
    scheme: &'static str,
    args: Vec<String>,
    process: Mutex<Option<Leash>>,
    peer_door: Option<Proxy>,
}

impl Member {
    /// A member that is not started yet.
    pub(super) fn new(name: String, setup: &Setup) -> Self {
        let dir = tempfile::Builder::new().prefix("etcd-lock-test-").tempdir().expect("a temporary folder");
        let dir = dir.keep();
        let mut args = setup.security_args(&dir);
        args.extend(setup.args.iter().cloned());
        let (client, peer, metrics) = (free_port(), free_port(), free_port());
        let peer_door = setup.peer_doors.then(|| Proxy::for_peers(([127, 0, 0, 1], peer).into()));
        let (scheme, process) = (setup.scheme(), Mutex::new(None));
        Self { name, dir, client, peer, metrics, scheme, args, process, peer_door }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.client)
    }

    /// Host and port of clients.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.client)
    }

    /// Where it shows its metrics: a wrong port for clients. (The port for other members serves clients too.)
    pub(crate) fn metrics_address(&self) -> String {
        format!("127.0.0.1:{}", self.metrics)
    }

    /// This member in the words of `--initial-cluster`.
    pub(super) fn in_cluster(&self) -> String {
        format!("{}={}", self.name, self.peer_url())
    }

    /// Where the other members find this one.
    fn peer_url(&self) -> String {
        let direct = || format!("http://127.0.0.1:{}", self.peer);
        self.peer_door.as_ref().map_or_else(direct, Proxy::endpoint)
    }

    pub(super) fn peer_door(&self) -> Option<&Proxy> {
        self.peer_door.as_ref()
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Starts the process; it is not ready yet.
    pub(super) fn spawn(&self, initial_cluster: &str) {
        let peer = format!("http://127.0.0.1:{}", self.peer);
        let mut args = vec![
            format!("--name={}", self.name),
            format!("--data-dir={}", self.dir.join("data").display()),
            format!("--listen-client-urls={}", self.endpoint()),
            format!("--advertise-client-urls={}", self.endpoint()),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={}", self.peer_url()),
            format!("--initial-cluster={initial_cluster}"),
            // Health and metrics without TLS, whatever the clients' door is.
            format!("--listen-metrics-urls=http://127.0.0.1:{}", self.metrics),
        ];
        args.extend(self.args.iter().cloned());
        let log = File::options().create(true).append(true).open(self.log_file()).expect("a log file");
        let etcd = program("ETCD_BIN", "etcd");
        let leash = Leash::start(&etcd, args, Some(&self.dir), |command| {
            command.stderr(log);
            forget_settings(command, "ETCD_");
            if cfg!(target_arch = "aarch64") {
                // etcd before 3.5 asks for this assurance on ARM.
                command.env("ETCD_UNSUPPORTED_ARCH", "arm64");
            }
        });
        *self.process() = Some(leash.expect("a shell starts etcd"));
    }

    /// Waits until the member serves and has a leader.
    pub(super) fn wait_ready(&self) -> Result<(), StartError> {
        let start = Instant::now();
        while !self.is_healthy() {
            let ended = self.process().as_mut().and_then(Leash::exited);
            if let Some(status) = ended {
                let log = self.log_tail();
                if log.contains("address already in use") {
                    return Err(StartError::PortTaken);
                }
                return Err(StartError::Failed(format!("etcd ended with {status}:\n{log}")));
            }
            if start.elapsed() > READY {
                return Err(StartError::Failed(format!(
                    "etcd not ready within {READY:?}:\n{}",
                    self.log_tail()
                )));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Whether the member answers and has a leader. False where the process is stopped.
    pub(crate) fn is_healthy(&self) -> bool {
        metrics::get(self.metrics, "/health").is_ok_and(|body| body.contains(r#""health":"true""#))
    }

    /// What etcd itself counts: see [`metrics`].
    pub(crate) fn metric(&self, series: &str) -> f64 {
        metrics::value(self.metrics, series)
    }

    /// How many requests of a gRPC method (`Txn`, `Range`, `LeaseGrant`, ...) this member has begun to serve.
    pub(crate) fn requests(&self, method: &str) -> u64 {
        metrics::requests(self.metrics, method)
    }

    /// SIGSTOP: the sockets stay, nothing answers.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub(crate) fn cont(&self) {
        self.signal(Signal::CONT);
    }

    /// SIGCONT, unless it was killed.
    pub(crate) fn cont_if_running(&self) {
        if self.process().is_some() {
            self.cont();
        }
    }

    fn signal(&self, signal: Signal) {
        self.process().as_mut().expect("the member runs").signal(signal);
    }

    /// SIGKILL; the process is gone and reaped when this returns. Nothing happens to one that is gone.
    pub(crate) fn kill(&self) {
        let leash = self.process().take();
        if let Some(leash) = leash {
            leash.kill_and_keep_folder();
        }
    }

    /// Starts the member again, on the same ports and folder, after killing what may still run. Ready on return, but
    /// in a cluster only once a majority runs.
    pub(crate) fn restart(&self) {
        self.restart_without_waiting();
        self.wait_ready().unwrap_or_else(|why| panic!("{} does not come back: {why:?}", self.name));
    }

    /// Like [`Self::restart`], but returns at once.
    pub(crate) fn restart_without_waiting(&self) {
        self.kill();
        // The members are known from the data folder by now; the flag has only to be consistent.
        self.spawn(&self.in_cluster());
    }

    /// Replaces what the member has by what is in the backup, as an administrator does it, and starts it on the same
    /// ports. The member is the only one. With a token of its own, it is another cluster from then on.
    pub(crate) fn restore(&self, backup: &Path, token: Option<&str>) {
        self.kill();
        let data = self.dir.join("data");
        std::fs::remove_dir_all(&data).expect("the member has data");
        let mut command = std::process::Command::new(program("ETCDCTL_BIN", "etcdctl"));
        forget_settings(&mut command, "ETCDCTL_");
        command.env("ETCDCTL_API", "3").args(["snapshot", "restore"]).arg(backup);
        command.arg("--data-dir").arg(&data).arg(format!("--name={}", self.name));
        command.arg(format!("--initial-cluster={}", self.in_cluster()));
        command.arg(format!("--initial-advertise-peer-urls={}", self.peer_url()));
        command.args(token.map(|token| format!("--initial-cluster-token={token}")));
        let output = command.output().expect("etcdctl runs");
        assert!(output.status.success(), "snapshot restore: {}", String::from_utf8_lossy(&output.stderr));
        self.restart();
    }

    /// The release that runs here.
    pub(crate) fn version(&self) -> Version {
        Version::parse(&metrics::get(self.metrics, "/metrics").expect("etcd shows its metrics"))
    }

    pub(crate) fn is_running(&self) -> bool {
        self.process().as_mut().is_some_and(|leash| leash.exited().is_none())
    }

    pub(crate) fn pid(&self) -> Option<rustix::process::Pid> {
        self.process().as_ref().map(Leash::pid)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// The end of the log.
    pub(crate) fn log_tail(&self) -> String {
        let log = std::fs::read(self.log_file()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        // Our own waiting for it.
        let lines: Vec<&str> = log.lines().filter(|line| !line.contains("/health error")).collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    fn process(&self) -> MutexGuard<'_, Option<Leash>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the log of etcd {} ends so:\n{}\n---", self.name, self.log_tail());
        }
        drop(self.process().take());
        // There still if the process had ended by itself or was killed.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Keeps the caller's own settings for etcd or etcdctl away from a child.
pub(super) fn forget_settings(command: &mut std::process::Command, prefix: &str) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with(prefix) {
            command.env_remove(name);
        }
    }
}
