//! The program `etcd-lock`, run for one etcd and one root.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use etcd_fixture::forget_settings;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::setup::Access;
use super::{SOON, eventually};

/// Its settings. They are given in the environment, so a test's arguments are those of its purpose.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    settings: Vec<(&'static str, String)>,
}

/// What a run that has ended printed, and how it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Program {
    pub(crate) fn new(access: &Access, root: &str) -> Self {
        Self::at(&access.endpoints, root)
    }

    pub(crate) fn at(endpoints: &[String], root: &str) -> Self {
        Self { settings: vec![("ETCD_LOCK_ENDPOINTS", endpoints.join(",")), ("ETCD_LOCK_ROOT", root.into())] }
    }

    /// Adds a variable to the program's environment.
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.settings.push((name, value.into()));
        self
    }

    /// The path of the program.
    pub(crate) fn path() -> &'static Path {
        Path::new(env!("CARGO_BIN_EXE_etcd-lock"))
    }

    pub(crate) fn set_up(&self, command: &mut Command) {
        forget_settings(command, "ETCDCTL_");
        forget_settings(command, "ETCD_LOCK_");
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
    }

    fn command(&self, args: &[impl AsRef<OsStr>]) -> Command {
        let mut command = undisturbed(Self::path());
        self.set_up(&mut command);
        command.args(args);
        command
    }

    /// Runs it to its end, with an empty standard input.
    pub(crate) fn run(&self, args: &[impl AsRef<OsStr>]) -> Ended {
        self.run_with(args, "")
    }

    /// Runs it to its end, with this standard input.
    pub(crate) fn run_with(&self, args: &[impl AsRef<OsStr>], input: &str) -> Ended {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program runs");
        let _ = child.stdin.take().expect("stdin is a pipe").write_all(input.as_bytes());
        let output = child.wait_with_output().expect("the program ends");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        Ended { code: code(output.status), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Starts it; events come on its standard error, which no command may use for anything else.
    pub(crate) fn start(&self, args: &[impl AsRef<OsStr>]) -> Running {
        let command = self.command(args);
        Running::start(command)
    }
}

/// A command with SIGINT and SIGQUIT at their defaults: what a shell starts in the background ignores them, tests included, and
/// what is ignored stays ignored. (`env` becomes the program.)
pub(crate) fn undisturbed(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("env");
    command.arg("--default-signal=INT,QUIT").arg(program);
    command
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or(-1)
}

/// A program that runs; killed when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
    said: Vec<String>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program runs");
        let (sender, lines) = mpsc::channel();
        let output = BufReader::new(child.stderr.take().expect("stderr is a pipe"));
        thread::spawn(move || {
            output.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok());
        });
        Self { child, lines, said: Vec::new() }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits for an event of this name, with `--status-fd 2`.
    #[track_caller]
    pub(crate) fn event(&mut self, name: &str) -> Value {
        loop {
            let line = self.line();
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            if event["event"] == name {
                return event;
            }
        }
    }

    /// The next line of its standard error.
    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        match self.lines.recv_timeout(SOON) {
            Ok(line) => {
                self.said.push(line.clone());
                line
            }
            Err(error) => panic!("no further line ({error}) after {:#?}", self.said),
        }
    }

    /// Reads what it prints until it closes its standard output.
    pub(crate) fn rest_of_stdout(&mut self) -> String {
        let mut text = String::new();
        self.child.stdout.take().expect("read once").read_to_string(&mut text).expect("text");
        text
    }

    /// Its standard output, line by line; it panics if a line takes too long.
    pub(crate) fn stdout(&mut self) -> impl Iterator<Item = String> + use<> {
        let mut output = BufReader::new(self.child.stdout.take().expect("read once"));
        std::iter::from_fn(move || {
            let wait = || {
                let mut fds = [PollFd::new(output.get_ref(), PollFlags::IN)];
                let limit = SOON.try_into().expect("a time span");
                rustix::io::retry_on_intr(|| poll(&mut fds, Some(&limit))).expect("a pipe can be waited for")
            };
            assert!(!output.buffer().is_empty() || wait() > 0, "no further line on standard output");
            let mut line = String::new();
            (output.read_line(&mut line).expect("text") > 0).then(|| line.trim_end_matches('\n').to_owned())
        })
    }

    /// Its standard input; dropping that closes it.
    pub(crate) fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("taken once")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the program runs");
    }

    /// Waits for its end, and returns its exit code.
    #[track_caller]
    pub(crate) fn code(&mut self) -> i32 {
        let mut status = None;
        eventually(SOON, "the program ends", || {
            status = self.child.try_wait().expect("a child can be waited for");
            status.is_some()
        });
        status.map_or(-1, code)
    }

    /// The processes that it has started, by a word of their command lines.
    pub(crate) fn child_with(&self, word: &str) -> Option<Pid> {
        let pid = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        let child = children.split_whitespace().find(|child| {
            let line = std::fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(word)
        });
        child.and_then(|child| child.parse().ok()).and_then(Pid::from_raw)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Tells when the last of a command's processes is dead: each of them has this pipe open for writing.
#[derive(Debug)]
pub(crate) struct Lifeline {
    fifo: PathBuf,
    alive: mpsc::Receiver<()>,
    dead: mpsc::Receiver<Instant>,
    _folder: TempDir,
}

impl Lifeline {
    pub(crate) fn new() -> Self {
        let folder = TempDir::with_prefix("etcd-lock-test-life-").expect("a temporary folder");
        let fifo = folder.path().join("fifo");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).expect("a named pipe");
        let ((on_life, alive), (on_death, dead)) = (mpsc::channel(), mpsc::channel());
        let path = fifo.clone();
        thread::spawn(move || {
            // Opened once a process opens the other end.
            let mut pipe = std::fs::File::open(path).expect("a named pipe");
            let mut byte = [0];
            while pipe.read(&mut byte).is_ok_and(|read| read > 0) {
                let _ = on_life.send(());
            }
            let _ = on_death.send(Instant::now());
        });
        Self { fifo, alive, dead, _folder: folder }
    }

    /// A shell script in whose processes the pipe is open.
    pub(crate) fn script(&self, rest: &str) -> String {
        format!("exec 9>'{}'; {rest}", self.fifo.display())
    }

    /// A script for a command that ignores every wish to end, with two generations of the same kind. Each of them
    /// writes to the pipe when it is there.
    pub(crate) fn stubborn(&self) -> String {
        self.script("trap '' TERM INT HUP; (trap '' TERM; (echo >&9; exec sleep 600) & echo >&9; wait) & echo >&9; wait; wait")
    }

    /// Waits until so many lines were written.
    #[track_caller]
    pub(crate) fn wait_alive(&self, lines: usize) {
        for _ in 0..lines {
            self.alive.recv_timeout(SOON).expect("the command starts");
        }
    }

    /// Waits until the last process is dead.
    #[track_caller]
    pub(crate) fn wait_dead(&self, limit: Duration) -> Instant {
        self.dead.recv_timeout(limit).expect("the command dies")
    }

    /// Whether a process lives.
    pub(crate) fn is_alive(&self) -> bool {
        matches!(self.dead.try_recv(), Err(mpsc::TryRecvError::Empty))
    }
}
