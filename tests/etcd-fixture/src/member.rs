//! One server process, of a single server or of a cluster.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::leash::{Leash, find_program, program};
use crate::metrics;
use crate::ports::free_port;
use crate::version::Version;

/// A server that is not ready by then never will be. (A single one takes a fifth of a second, a cluster one or two.)
const READY: Duration = Duration::from_secs(30);

/// How long a busy machine may take to stop the threads of a process.
const STOPPED: Duration = Duration::from_secs(1);

/// How often servers are given other ports when another process was faster.
const ATTEMPTS: u32 = 5;

/// Why a server did not come up.
#[derive(Debug)]
pub enum StartError {
    /// There is no etcd on the `PATH`, and `ETCD_BIN` names none.
    NotInstalled,
    /// Another process was faster with one of its ports.
    PortTaken,
    /// It ended, or did not become ready; with the end of its log.
    Failed(String),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInstalled => {
                f.write_str("etcd is not installed: run ./setup.sh (or set ETCD_BIN to its path)")
            }
            Self::PortTaken => f.write_str("the ports of etcd were always taken"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for StartError {}

/// Starts all members of one cluster, and waits until each of them serves.
///
/// # Errors
/// The first member's that does not become ready.
pub fn start<'a>(members: impl IntoIterator<Item = &'a Member> + Clone) -> Result<(), StartError> {
    let cluster: Vec<String> = members.clone().into_iter().map(Member::in_cluster).collect();
    let cluster = cluster.join(",");
    members.clone().into_iter().try_for_each(|member| member.spawn(&cluster))?;
    members.into_iter().try_for_each(Member::wait_ready)
}

/// Calls `start` again, for members with ports of their own, when another process was faster with a port. A server
/// that fails otherwise gets one more attempt.
///
/// # Errors
/// What the last attempt failed with.
pub fn with_fresh_ports<T>(mut start: impl FnMut() -> Result<T, StartError>) -> Result<T, StartError> {
    let mut failed = false;
    for _ in 0..ATTEMPTS {
        match start() {
            Err(StartError::PortTaken) => {}
            Err(StartError::Failed(why)) if !failed => {
                eprintln!("--- a server did not start: {why}");
                failed = true;
            }
            outcome => return outcome,
        }
    }
    Err(StartError::PortTaken)
}

/// One server process: its folder and ports stay the same however often it is killed and restarted.
#[derive(Debug)]
pub struct Member {
    name: String,
    dir: PathBuf,
    client: u16,
    peer: u16,
    metrics: u16,
    scheme: &'static str,
    advertised_peer: Option<String>,
    args: Vec<String>,
    process: Mutex<Option<Leash>>,
}

impl Member {
    /// A member that is not started yet, with a folder in the system's temporary one.
    pub fn new(name: &str) -> Self {
        Self::new_in(&std::env::temp_dir(), name)
    }

    /// The same, with a folder in this one.
    pub fn new_in(parent: &Path, name: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("etcd-lock-test-").tempdir_in(parent);
        Self {
            name: name.to_owned(),
            dir: dir.expect("a temporary folder").keep(),
            client: free_port(),
            peer: free_port(),
            metrics: free_port(),
            scheme: "http",
            advertised_peer: None,
            args: Vec::new(),
            process: Mutex::new(None),
        }
    }

    /// Further flags, as `--name=value`. Of two of one name the later counts.
    pub fn add_args<A: Into<String>>(&mut self, args: impl IntoIterator<Item = A>) {
        self.args.extend(args.into_iter().map(Into::into));
    }

    /// Clients use TLS; [`add_args`](Self::add_args) names the certificates.
    pub fn use_tls(&mut self) {
        self.scheme = "https";
    }

    /// The other members reach this one through a proxy at this URL.
    pub fn advertise_peer(&mut self, url: String) {
        self.advertised_peer = Some(url);
    }

    /// The URL of clients.
    pub fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.address())
    }

    /// Host and port of clients.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.client)
    }

    /// Host and port of the other members.
    pub fn peer_address(&self) -> String {
        format!("127.0.0.1:{}", self.peer)
    }

    /// Where it shows its metrics: a wrong port for clients. (The port for other members serves clients too.)
    pub fn metrics_address(&self) -> String {
        format!("127.0.0.1:{}", self.metrics)
    }

    /// This member in the words of `--initial-cluster`.
    fn in_cluster(&self) -> String {
        format!("{}={}", self.name, self.peer_url())
    }

    /// Where the other members find this one.
    fn peer_url(&self) -> String {
        let direct = || format!("http://{}", self.peer_address());
        self.advertised_peer.clone().unwrap_or_else(direct)
    }

    /// What the cluster calls this member.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts the process; it is not ready yet.
    fn spawn(&self, initial_cluster: &str) -> Result<(), StartError> {
        let etcd = find_program("ETCD_BIN", "etcd").ok_or(StartError::NotInstalled)?;
        let mut args = vec![
            format!("--name={}", self.name),
            format!("--data-dir={}", self.data_dir().display()),
            format!("--listen-client-urls={}", self.endpoint()),
            format!("--advertise-client-urls={}", self.endpoint()),
            format!("--listen-peer-urls=http://{}", self.peer_address()),
            format!("--initial-advertise-peer-urls={}", self.peer_url()),
            format!("--initial-cluster={initial_cluster}"),
            // Health and metrics without TLS, whatever the clients' door is.
            format!("--listen-metrics-urls=http://{}", self.metrics_address()),
        ];
        args.extend(self.args.iter().cloned());
        let log = File::options().create(true).append(true).open(self.log_file()).expect("a log file");
        let leash = Leash::start(&etcd, args, Some(&self.dir), |command| {
            command.stderr(log);
            forget_settings(command, "ETCD_");
            if cfg!(target_arch = "aarch64") {
                // etcd before 3.5 asks for this assurance on ARM.
                command.env("ETCD_UNSUPPORTED_ARCH", "arm64");
            }
        });
        let failed = |error| StartError::Failed(format!("no shell starts {}: {error}", etcd.display()));
        *self.process() = Some(leash.map_err(failed)?);
        Ok(())
    }

    /// Waits until the member serves and has a leader.
    fn wait_ready(&self) -> Result<(), StartError> {
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
    pub fn is_healthy(&self) -> bool {
        metrics::get(self.metrics, "/health").is_ok_and(|body| body.contains(r#""health":"true""#))
    }

    /// The value of one series of its metrics, written as etcd writes it: `name` or `name{label="value"}`. 0 if there is
    /// none (yet).
    pub fn metric(&self, series: &str) -> f64 {
        metrics::value(self.metrics, series)
    }

    /// How many requests of a gRPC method (`Txn`, `Range`, `LeaseGrant`, ...) this member has begun to serve.
    pub fn requests(&self, method: &str) -> u64 {
        metrics::requests(self.metrics, method)
    }

    /// SIGSTOP: the sockets stay, nothing answers. The signal reaches one thread after the other; all of them have
    /// stopped when this returns (where the system shows them: on Linux).
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        let start = Instant::now();
        while self.pid().is_some_and(has_running_threads) && start.elapsed() < STOPPED {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// SIGCONT.
    pub fn cont(&self) {
        self.signal(Signal::CONT);
    }

    /// SIGCONT, unless it was killed.
    pub fn cont_if_running(&self) {
        if self.process().is_some() {
            self.cont();
        }
    }

    fn signal(&self, signal: Signal) {
        self.process().as_mut().expect("the member runs").signal(signal);
    }

    /// SIGKILL; the process is gone and reaped when this returns. Nothing happens to one that is gone.
    pub fn kill(&self) {
        let leash = self.process().take();
        if let Some(leash) = leash {
            leash.kill_and_keep_folder();
        }
    }

    /// Starts the member again, on the same ports and folder, after killing what may still run. Ready on return, but
    /// in a cluster only once a majority runs.
    pub fn restart(&self) {
        self.restart_without_waiting();
        self.wait_ready().unwrap_or_else(|why| panic!("{} does not come back: {why}", self.name));
    }

    /// Like [`Self::restart`], but returns at once.
    pub fn restart_without_waiting(&self) {
        self.kill();
        // The members are known from the data folder by now; the flag has only to be consistent.
        self.spawn(&self.in_cluster())
            .unwrap_or_else(|why| panic!("{} does not come back: {why}", self.name));
    }

    /// Kills the member and removes all that it has.
    pub fn wipe(&self) {
        self.kill();
        std::fs::remove_dir_all(self.data_dir()).expect("the member has data");
    }

    /// Replaces what the member has by what is in the backup, as an administrator does it, and starts it on the same
    /// ports. The member is the only one. With a token of its own, it is another cluster from then on.
    pub fn restore(&self, backup: &Path, token: Option<&str>) {
        self.wipe();
        let mut command = Command::new(program("ETCDCTL_BIN", "etcdctl"));
        forget_settings(&mut command, "ETCDCTL_");
        command.env("ETCDCTL_API", "3").args(["snapshot", "restore"]).arg(backup);
        command.arg("--data-dir").arg(self.data_dir()).arg(format!("--name={}", self.name));
        command.arg(format!("--initial-cluster={}", self.in_cluster()));
        command.arg(format!("--initial-advertise-peer-urls={}", self.peer_url()));
        command.args(token.map(|token| format!("--initial-cluster-token={token}")));
        let output = command.output().expect("etcdctl runs");
        assert!(output.status.success(), "snapshot restore: {}", String::from_utf8_lossy(&output.stderr));
        self.restart();
    }

    /// The release that runs here.
    pub fn version(&self) -> Version {
        Version::parse(&metrics::get(self.metrics, "/metrics").expect("etcd shows its metrics"))
    }

    /// Whether the process is there, stopped or not.
    pub fn is_running(&self) -> bool {
        self.process().as_mut().is_some_and(|leash| leash.exited().is_none())
    }

    /// The process of etcd itself, unless it was killed.
    pub fn pid(&self) -> Option<Pid> {
        self.process().as_ref().map(Leash::pid)
    }

    /// The folder with data, log and certificates; removed in the end.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// The end of the log.
    pub fn log_tail(&self) -> String {
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

fn has_running_threads(process: Pid) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero())) else {
        return false;
    };
    let is_running = |stat: String| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('T'));
    threads.flatten().any(|thread| std::fs::read_to_string(thread.path().join("stat")).is_ok_and(is_running))
}

/// Keeps the caller's own settings for etcd or etcdctl away from a child.
pub fn forget_settings(command: &mut Command, prefix: &str) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with(prefix) {
            command.env_remove(name);
        }
    }
}
