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

/// A server that is not ready by then has failed. (A single one takes 0.2 s, a cluster one or two.)
const READY: Duration = Duration::from_secs(30);

/// The time that a busy machine may need to stop all threads of a process.
const STOPPED: Duration = Duration::from_secs(1);

/// How often servers get new ports after another process bound one first.
const ATTEMPTS: u32 = 5;

/// Why a server did not start.
#[derive(Debug)]
pub enum StartError {
    /// There is no etcd on the `PATH`, and `ETCD_BIN` names none.
    NotInstalled,
    /// Another process bound one of its ports first.
    PortTaken,
    /// It ended or did not become ready; with the end of its log.
    Failed(String),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInstalled => {
                f.write_str("etcd is not installed: run ./setup.sh (or set ETCD_BIN to its path)")
            }
            Self::PortTaken => f.write_str("every port for etcd was taken"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for StartError {}

/// Starts all members of one cluster, and waits until each of them serves requests.
///
/// # Errors
/// That of the first member that does not become ready.
pub fn start<'a>(members: impl IntoIterator<Item = &'a Member> + Clone) -> Result<(), StartError> {
    let cluster: Vec<String> = members.clone().into_iter().map(Member::in_cluster).collect();
    let cluster = cluster.join(",");
    members.clone().into_iter().try_for_each(|member| member.spawn(&cluster))?;
    members.into_iter().try_for_each(Member::wait_ready)
}

/// Calls `start` again, for members with new ports, when another process bound a port first. After any other failure
/// there is one more attempt.
///
/// # Errors
/// That of the last attempt.
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

/// One server process. Its folder and ports stay the same over kills and restarts.
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
    /// A member that is not started yet, with a folder in the system's temporary folder.
    pub fn new(name: &str) -> Self {
        Self::new_in(&std::env::temp_dir(), name)
    }

    /// A member that is not started yet, with a folder in `parent`.
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

    /// Adds flags, as `--name=value`. Of two flags with one name the later one counts.
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

    /// The URL for clients.
    pub fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.address())
    }

    /// Host and port for clients.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.client)
    }

    /// Host and port for the other members.
    pub fn peer_address(&self) -> String {
        format!("127.0.0.1:{}", self.peer)
    }

    /// The port of its metrics, which does not serve clients. (The port for other members does.)
    pub fn metrics_address(&self) -> String {
        format!("127.0.0.1:{}", self.metrics)
    }

    /// This member's entry in `--initial-cluster`.
    fn in_cluster(&self) -> String {
        format!("{}={}", self.name, self.peer_url())
    }

    /// The URL for the other members.
    fn peer_url(&self) -> String {
        let direct = || format!("http://{}", self.peer_address());
        self.advertised_peer.clone().unwrap_or_else(direct)
    }

    /// The member's name in the cluster.
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
            // Health and metrics without TLS, whatever the clients use.
            format!("--listen-metrics-urls=http://{}", self.metrics_address()),
        ];
        args.extend(self.args.iter().cloned());
        let log = File::options().create(true).append(true).open(self.log_file()).expect("a log file");
        let leash = Leash::start(&etcd, args, Some(&self.dir), |command| {
            command.stderr(log);
            forget_settings(command, "ETCD_");
            if cfg!(target_arch = "aarch64") {
                // etcd before 3.5 requires this on ARM.
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

    /// Whether the member answers and has a leader; false for a stopped process.
    pub fn is_healthy(&self) -> bool {
        metrics::get(self.metrics, "/health").is_ok_and(|body| body.contains(r#""health":"true""#))
    }

    /// The value of one series of its metrics, in etcd's notation: `name` or `name{label="value"}`. 0 if it does not
    /// exist (yet).
    pub fn metric(&self, series: &str) -> f64 {
        metrics::value(self.metrics, series)
    }

    /// How many requests of a gRPC method (`Txn`, `Range`, `LeaseGrant`, ...) this member has started to serve.
    pub fn requests(&self, method: &str) -> u64 {
        metrics::requests(self.metrics, method)
    }

    /// SIGSTOP: the sockets stay open, and nothing answers. The signal reaches the threads one after the other; on
    /// Linux, all of them have stopped when this returns.
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
        self.process().as_mut().expect("the member is running").signal(signal);
    }

    /// SIGKILL; the process is gone and reaped when this returns. Does nothing if it has ended.
    pub fn kill(&self) {
        let leash = self.process().take();
        if let Some(leash) = leash {
            leash.kill_and_keep_folder();
        }
    }

    /// Kills the member if it runs, and starts it again with the same ports and folder. It is ready on return; in a
    /// cluster this needs a running majority.
    pub fn restart(&self) {
        self.restart_without_waiting();
        self.wait_ready().unwrap_or_else(|why| panic!("{} does not come back: {why}", self.name));
    }

    /// Like [`Self::restart`], but does not wait until the member is ready.
    pub fn restart_without_waiting(&self) {
        self.kill();
        // The members are known from the data folder, so the flag only has to be consistent.
        self.spawn(&self.in_cluster())
            .unwrap_or_else(|why| panic!("{} does not come back: {why}", self.name));
    }

    /// Kills the member and deletes its data.
    pub fn wipe(&self) {
        self.kill();
        std::fs::remove_dir_all(self.data_dir()).expect("the member has data");
    }

    /// Replaces the member's data by the backup, as an administrator does, and starts it on the same ports. It must be
    /// the only member. With another token it becomes another cluster.
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

    /// The release of this member.
    pub fn version(&self) -> Version {
        Version::parse(&metrics::get(self.metrics, "/metrics").expect("etcd serves its metrics"))
    }

    /// Whether the process exists, stopped or not.
    pub fn is_running(&self) -> bool {
        self.process().as_mut().is_some_and(|leash| leash.exited().is_none())
    }

    /// The process id of etcd itself, unless it was killed.
    pub fn pid(&self) -> Option<Pid> {
        self.process().as_ref().map(Leash::pid)
    }

    /// The folder with data, log and certificates; deleted with the member.
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
        // Lines of our own health checks.
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
            eprintln!("--- the end of the log of etcd {}:\n{}\n---", self.name, self.log_tail());
        }
        drop(self.process().take());
        // It still exists if the process ended by itself or was killed.
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

/// Removes the user's settings for etcd and etcdctl from a child's environment.
pub fn forget_settings(command: &mut Command, prefix: &str) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with(prefix) {
            command.env_remove(name);
        }
    }
}
