//! etcd's command line client, as a foreign client of the same locks.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use etcd_fixture::{Leash, forget_settings, program};
use rustix::process::Signal;
use tempfile::TempDir;

use super::setup::Access;

/// The time that `etcdctl lock` may take to report that it holds the lock, or to release it.
const PATIENCE: Duration = Duration::from_secs(20);

/// `etcdctl` for one etcd.
#[derive(Debug)]
pub(crate) struct Etcdctl {
    program: PathBuf,
    settings: Vec<(&'static str, String)>,
    /// The certificates that the settings name.
    _files: TempDir,
}

impl Etcdctl {
    pub(crate) fn new(access: &Access) -> Self {
        let files = TempDir::with_prefix("etcd-lock-test-ctl-").expect("a temporary folder");
        let mut settings = vec![
            ("ETCDCTL_API", "3".to_owned()),
            ("ETCDCTL_ENDPOINTS", access.endpoints.join(",")),
            ("ETCDCTL_DIAL_TIMEOUT", "5s".to_owned()),
        ];
        if let Some((name, password)) = &access.user {
            settings.push(("ETCDCTL_USER", format!("{name}:{password}")));
        }
        #[cfg(feature = "tls")]
        if let Some(tls) = &access.tls {
            let write = |name: &str, text: &str| {
                let file = files.path().join(name);
                std::fs::write(&file, text).expect("a file can be written");
                file.display().to_string()
            };
            settings.push(("ETCDCTL_CACERT", write("ca.crt", &tls.ca)));
            if let Some(identity) = &tls.identity {
                settings.push(("ETCDCTL_CERT", write("client.crt", &identity.certificate)));
                settings.push(("ETCDCTL_KEY", write("client.key", &identity.key)));
            }
        }
        Self { program: program("ETCDCTL_BIN", "etcdctl"), settings, _files: files }
    }

    fn set_up(&self, command: &mut Command) {
        forget_settings(command, "ETCDCTL_");
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
    }

    /// Runs a command to its end, and returns its output, or its error message.
    pub(crate) fn run(&self, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new(&self.program);
        self.set_up(&mut command);
        let output = command.args(args).stdin(Stdio::null()).output().expect("etcdctl runs");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim_end().to_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    fn must(&self, args: &[&str]) -> String {
        self.run(args).unwrap_or_else(|why| panic!("etcdctl {args:?}: {why}"))
    }

    pub(crate) fn get(&self, key: &str) -> Option<String> {
        let value = self.must(&["get", "--print-value-only", "--", key]);
        (!value.is_empty()).then_some(value)
    }

    pub(crate) fn put(&self, key: &str, value: &str) {
        self.must(&["put", "--", key, value]);
    }

    /// Returns how many keys were deleted.
    pub(crate) fn del(&self, key: &str) -> u64 {
        self.must(&["del", "--", key]).parse().expect("a number of keys")
    }

    /// Grants a lease, and returns its id in hexadecimal, as the other commands expect it.
    pub(crate) fn lease_grant(&self, seconds: u32) -> String {
        let said = self.must(&["lease", "grant", &seconds.to_string()]);
        said.split_whitespace().nth(1).expect("lease <id> granted ...").to_owned()
    }

    pub(crate) fn lease_revoke(&self, lease: &str) {
        self.must(&["lease", "revoke", lease]);
    }

    /// Saves a backup of the only member.
    pub(crate) fn snapshot_save(&self, file: &Path) {
        self.must(&["snapshot", "save", &file.display().to_string()]);
    }

    /// Starts `etcdctl lock`, which queues up. (Its lock is at `<name>/<lease>`: give the root and the encoded name.)
    pub(crate) fn queue_for_lock(&self, name: &str) -> QueuedLock {
        let mut leash = Leash::start(&self.program, ["lock", "--ttl=5", "--", name], None, |command| {
            self.set_up(command);
        })
        .expect("a shell starts etcdctl");
        let (said, key) = mpsc::channel();
        let output = leash.take_output();
        std::thread::spawn(move || first_line(output, &said));
        QueuedLock { leash, key }
    }

    /// Takes a lock with `etcdctl lock`, and holds it until the returned process is released, killed or dropped.
    pub(crate) fn lock_process(&self, name: &str) -> LockProcess {
        self.queue_for_lock(name).wait(PATIENCE).unwrap_or_else(|_| panic!("etcdctl did not get {name}"))
    }

    /// Runs a command under a lock: `etcdctl lock <name> <command>`. The command gets `ETCD_LOCK_KEY` and
    /// `ETCD_LOCK_REV` in its environment.
    pub(crate) fn lock_exec(&self, name: &str, command: &[impl AsRef<OsStr>]) -> Result<String, String> {
        let mut args = vec!["lock".as_ref(), "--".as_ref(), name.as_ref()];
        args.extend(command.iter().map(AsRef::as_ref));
        let mut etcdctl = Command::new(&self.program);
        self.set_up(&mut etcdctl);
        let output = etcdctl.args(args).stdin(Stdio::null()).output().expect("etcdctl runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }
}

fn first_line(mut output: BufReader<ChildStdout>, said: &mpsc::Sender<String>) {
    let mut line = String::new();
    if output.read_line(&mut line).is_ok_and(|read| read > 0) {
        let _ = said.send(line.trim_end().to_owned());
    }
    // Read to the end, so that etcdctl never writes to a closed pipe.
    while output.read_line(&mut line).is_ok_and(|read| read > 0) {}
}

/// An `etcdctl lock` that does not hold the lock yet.
#[derive(Debug)]
pub(crate) struct QueuedLock {
    leash: Leash,
    key: mpsc::Receiver<String>,
}

impl QueuedLock {
    /// The holder, or the process itself if it does not hold the lock within `limit`.
    pub(crate) fn wait(self, limit: Duration) -> Result<LockProcess, Self> {
        match self.key.recv_timeout(limit) {
            Ok(key) => Ok(LockProcess { leash: self.leash, key }),
            Err(_) => Err(self),
        }
    }

    /// Leaves the queue as on Ctrl-C, and waits for the process to end.
    pub(crate) fn leave(self) {
        interrupt(self.leash);
    }
}

/// Sends SIGINT, as Ctrl-C does.
fn interrupt(mut leash: Leash) {
    leash.signal(Signal::INT);
    super::eventually(PATIENCE, "etcdctl lock ends after SIGINT", || leash.exited().is_some());
}

/// An `etcdctl lock` that holds the lock. Dropping it kills the process, so the lock stays until its lease (5 s)
/// expires.
#[derive(Debug)]
pub(crate) struct LockProcess {
    leash: Leash,
    key: String,
}

impl LockProcess {
    /// The contender's key in etcd.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Releases the lock, and waits for the process to end.
    pub(crate) fn release(self) {
        interrupt(self.leash);
    }

    /// Whether the process has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.leash.exited().is_some()
    }

    /// SIGSTOP, so it renews its lease no more.
    pub(crate) fn stop(&mut self) {
        self.leash.signal(Signal::STOP);
    }
}
