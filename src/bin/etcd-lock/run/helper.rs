//! What the command is before it is the command: a process of this program, which ties its life to its parent's and
//! then executes the command in its own place.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use super::cgroup::Cgroup;
use super::terminal::Terminal;
use crate::exit::{CANNOT_EXECUTE, INTERNAL, NOT_FOUND};
use crate::say::say;

/// Its first argument.
pub(super) const WORD: &str = "__execute";

/// What stands for "none" among the arguments.
pub(super) const NONE: &str = "-";

/// The command of a helper: `__execute PARENT CGROUP FOREGROUND PROGRAM ARGS...`.
pub(super) fn command(parent: Pid, cgroup: Option<&Cgroup>, foreground: bool, words: &[OsString]) -> Command {
    // Not the path of this program, which may be another one after an update.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("etcd-lock").arg(WORD).arg(parent.to_string());
    command.arg(cgroup.map_or(Path::new(NONE), Cgroup::path));
    command.arg(if foreground { "foreground" } else { NONE });
    command.args(words);
    command
}

/// Executes the command; returns only if that fails.
pub(super) fn execute(mut words: impl Iterator<Item = OsString>) -> ExitCode {
    let mut word = || words.next().unwrap_or_default();
    let (parent, cgroup, foreground, program) = (word(), word(), word(), word());
    // Survives the `exec`, but not that of a set-user-ID program.
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        say(&format!("the command cannot be tied to this process: {error}"));
        return ExitCode::from(INTERNAL);
    }
    // It may have died before it could be said that this matters.
    if getppid().map(|pid| pid.to_string()).as_deref() != parent.to_str() {
        return ExitCode::from(INTERNAL);
    }
    if cgroup != NONE {
        // Without it, what has left the group is not reached.
        let _ = Cgroup::at(cgroup.into()).enter();
    }
    if foreground != NONE
        && let Some(terminal) = Terminal::open()
    {
        terminal.take();
    }
    let error = Command::new(&program).args(words).exec();
    say(&format!("{} cannot be executed: {error}", program.display()));
    ExitCode::from(if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { CANNOT_EXECUTE })
}
