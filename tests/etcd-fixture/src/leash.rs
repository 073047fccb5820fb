//! Child processes that never outlive their parent.
//!
//! `Drop` does not run for statics, nor when a test run is killed. So each child runs under a small shell that reads
//! from a pipe of the parent: when the pipe closes, for whatever reason, the shell kills the child and exits.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal};

/// `$1`: a folder to remove at the end, or nothing. The command follows. The first line of output is the child's pid.
/// The word `keep` on the pipe preserves the folder.
///
/// The system sends SIGHUP to a group that loses its parent while a member is stopped.
const SCRIPT: &str = r#"
trap '' HUP
dir=$1; shift
exec 3<&0 </dev/null
sh -c 'echo $$; exec "$@"' sh "$@" 3<&- &
child=$!
( while read -r order; do [ "$order" = keep ] && keep=1; done
  trap '' TERM
  kill -9 $child
  exit ${keep:-0} ) <&3 >/dev/null 2>&1 &
holder=$!
exec 3<&-
wait $child; status=$?
kill $holder 2>/dev/null
wait $holder 2>/dev/null && [ -n "$dir" ] && rm -rf "$dir"
exit $status
"#;

/// A running child and its shell.
#[derive(Debug)]
pub struct Leash {
    shell: Child,
    pid: Pid,
    pipe: Option<ChildStdin>,
    output: Option<BufReader<ChildStdout>>,
}

impl Leash {
    /// Starts `program`. `configure` sets environment and standard error (which the shell passes on).
    pub fn start(
        program: &Path,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
        remove_at_end: Option<&Path>,
        configure: impl FnOnce(&mut Command),
    ) -> io::Result<Self> {
        let mut command = Command::new("sh");
        command.arg("-c").arg(SCRIPT).arg("leash");
        command.arg(remove_at_end.unwrap_or(Path::new(""))).arg(program).args(args);
        configure(&mut command);
        // In a group of its own: Ctrl-C at a terminal ends only the parent, and the pipe ends the child.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut shell = command.spawn()?;
        let pipe = shell.stdin.take();
        let mut output = BufReader::new(shell.stdout.take().expect("stdout is a pipe"));
        let mut line = String::new();
        output.read_line(&mut line)?;
        let pid = line.trim().parse().ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other(format!("no pid from the shell, but {line:?}")))?;
        Ok(Self { shell, pid, pipe, output: Some(output) })
    }

    /// The process id of the child, not of the shell.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The child's standard output; it can be taken once.
    pub fn take_output(&mut self) -> BufReader<ChildStdout> {
        self.output.take().expect("the output was not taken before")
    }

    /// Sends a signal; does nothing if the child has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.exited().is_none() {
            let _ = rustix::process::kill_process(self.pid, signal);
        }
    }

    /// The child's exit status, if it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.shell.try_wait().expect("a child can be waited for")
    }

    /// Waits until the child exits.
    pub fn wait(&mut self) -> ExitStatus {
        self.shell.wait().expect("a child can be waited for")
    }

    /// Kills the child, even a stopped one, waits until it has ended, and preserves its folder.
    pub fn kill_and_keep_folder(mut self) {
        if let Some(pipe) = &mut self.pipe {
            let _ = pipe.write_all(b"keep\n");
        }
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _ = self.shell.wait();
    }
}

/// The program named by the environment variable `var`, or `name` from the `PATH`.
///
/// # Panics
/// There is no such program.
pub fn program(var: &str, name: &str) -> PathBuf {
    let missing = || panic!("{name} is not installed: run ./setup.sh (or set {var} to its path)");
    find_program(var, name).unwrap_or_else(missing)
}

/// Like [`program`], but `None` if there is none. The value of `var` is not checked.
pub fn find_program(var: &str, name: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(var) {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}
