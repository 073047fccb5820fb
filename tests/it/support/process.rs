//! Tests that run in a process of their own, and tests with several processes.
//!
//! Both run this test binary again, for a single test, with a role in its environment:
//!
//! ```text
//! #[test]
//! fn a_killed_process_loses_its_lock() {
//!     if let Some(role) = process::role() {
//!         // In the child: talk to the parent with `role.say` and `role.hear`.
//!         return hold_for_ever(&role);
//!     }
//!     let mut holder = Process::spawn("faults::a_killed_process_loses_its_lock", "holder");
//!     assert_eq!(holder.hear(LIMIT), "locked");
//!     holder.kill();
//!     ...
//! }
//! ```

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::Signal;

/// The environment variable with a child's role.
const ROLE: &str = "ETCD_LOCK_TEST_ROLE";
/// Marks lines for the other side among the output of the test harness.
const MARK: &str = "@@ ";

/// The role of this process if it is a child; `None` in the test run itself.
pub(crate) fn role() -> Option<Role> {
    std::env::var(ROLE).ok().map(Role)
}

/// The child's side.
#[derive(Debug)]
pub(crate) struct Role(String);

impl Role {
    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    /// Sends a line to the parent.
    pub(crate) fn say(&self, line: &str) {
        // The harness may have left a line unfinished.
        let mut out = std::io::stdout().lock();
        out.write_all(format!("\n{MARK}{line}\n").as_bytes())
            .and_then(|()| out.flush())
            .expect("the parent reads the line");
    }

    /// Waits for a line of the parent; `None` if the parent has ended.
    pub(crate) fn hear(&self) -> Option<String> {
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line).ok()?;
        (read > 0).then(|| line.trim_end().to_owned())
    }
}

/// The parent's side. Dropping it kills the child; if the parent is killed, the child's `hear` returns `None`.
#[derive(Debug)]
pub(crate) struct Process {
    child: std::process::Child,
    lines: mpsc::Receiver<String>,
    input: Option<ChildStdin>,
}

impl Process {
    /// Runs the test `test`, given by its path within this binary, in a new process with that role.
    pub(crate) fn spawn(test: &str, role: &str) -> Self {
        Self::spawn_with(test, role, &[])
    }

    /// Like `spawn`, with more variables in the child's environment.
    pub(crate) fn spawn_with(test: &str, role: &str, environment: &[(&str, &str)]) -> Self {
        let mut command = std::process::Command::new(std::env::current_exe().expect("this binary"));
        command.args([test, "--exact", "--nocapture", "--include-ignored", "--test-threads=1"]);
        command.env(ROLE, role).envs(environment.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("this binary runs");
        let (said, lines) = mpsc::channel();
        let output = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        std::thread::spawn(move || pass_on(output, &said));
        Self { input: child.stdin.take(), child, lines }
    }

    /// Waits for a line of the child.
    #[track_caller]
    pub(crate) fn hear(&mut self, limit: Duration) -> String {
        match self.lines.recv_timeout(limit) {
            Ok(line) => line,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("the child sent no line within {limit:?}"),
            Err(mpsc::RecvTimeoutError::Disconnected) => panic!("the child ended: {:?}", self.child.wait()),
        }
    }

    /// All lines that a child which has ended sent and that were not heard.
    pub(crate) fn said(&self) -> Vec<String> {
        self.lines.iter().collect()
    }

    /// Sends a line to the child.
    pub(crate) fn say(&mut self, line: &str) {
        let input = self.input.as_mut().expect("the child's input is open");
        writeln!(input, "{line}").expect("the child reads the line");
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGSTOP.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub(crate) fn cont(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal)
            .expect("the child exists");
    }

    /// Waits for the child to end; panics if its test failed.
    #[track_caller]
    pub(crate) fn finish(mut self, limit: Duration) {
        drop(self.input.take());
        let mut ended = None;
        super::eventually(limit, "the child ends", || {
            ended = self.child.try_wait().expect("a child can be waited for");
            ended.is_some()
        });
        assert!(ended.is_some_and(|status| status.success()), "the child failed: {ended:?}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Splits the child's output: marked lines go to the parent, the others to the captured output of this test.
fn pass_on(output: BufReader<ChildStdout>, said: &mpsc::Sender<String>) {
    for line in output.lines().map_while(Result::ok) {
        match line.strip_prefix(MARK) {
            Some(line) => drop(said.send(line.to_owned())),
            None if line.is_empty() => {}
            None => println!("    {line}"),
        }
    }
}

/// Runs the body of the test `test` in a process without other tests, to count threads or to measure.
#[track_caller]
pub(crate) fn alone(test: &str, limit: Duration, body: impl FnOnce()) {
    match role() {
        Some(role) if role.name() == "alone" => {
            body();
            role.say("done");
        }
        Some(role) => panic!("{role:?} is not a role of {test}"),
        None => {
            let mut child = Process::spawn(test, "alone");
            // A wrong name would run no test, and succeed.
            assert_eq!(child.hear(limit), "done");
            child.finish(Duration::from_secs(10));
        }
    }
}
