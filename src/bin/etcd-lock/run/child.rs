//! The command's process group, from its start until the last of it is dead.

use std::ffi::OsString;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus, getpgid, getpgrp, getpid, getsid,
    kill_current_process_group, kill_process, kill_process_group, set_child_subreaper,
    test_kill_process_group, wait, waitid,
};

use signal_hook::consts::SIGTSTP;

use super::cgroup::Cgroup;
use super::helper;
use super::terminal::Terminal;
use super::watcher::Watcher;

/// How long the kernel may need to let go of a cgroup that is empty.
const EMPTY: Duration = Duration::from_millis(100);

/// The command with all that it has started, as far as it has stayed in its process group or its cgroup.
#[derive(Debug)]
pub(super) struct Child {
    group: Pid,
    cgroup: Option<Cgroup>,
    watcher: Watcher,
    terminal: Option<Terminal>,
    /// Whether the group was put into the foreground of the terminal when it last started or went on.
    foreground: bool,
    /// The exit code of the command itself, once it has ended.
    code: Option<u8>,
    /// Nothing of the group lives, so its number may be another's; of its cgroup, something may.
    group_gone: bool,
    /// Nothing of the cgroup lives, either.
    over: bool,
}

/// What became of the command since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// The command itself was stopped, by this signal.
    Stopped(i32),
}

impl Child {
    /// Starts the command. The thread that calls this must not end before the command does: its end would be taken for
    /// the death of this process.
    ///
    /// The watcher knows the deadline first: what this thread does next may block.
    pub(super) fn spawn(
        words: &[OsString],
        environment: &[(&str, String)],
        deadline: Option<Duration>,
    ) -> std::io::Result<Self> {
        use std::os::unix::process::CommandExt;
        // What the command leaves behind becomes a child of this process, which learns of its end.
        set_child_subreaper(Some(getpid()))?;
        let mut watcher = Watcher::spawn()?;
        let cgroup = Cgroup::create();
        if let Some(cgroup) = &cgroup {
            watcher.guard_cgroup(cgroup);
        }
        if let Some(deadline) = deadline {
            watcher.set_deadline(deadline);
        }
        let terminal = Terminal::open();
        let foreground = terminal.as_ref().is_some_and(Terminal::is_ours);
        let mut command = helper::command(getpid(), cgroup.as_ref(), foreground, words);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        // Readiness was this program's to tell.
        command.env_remove("NOTIFY_SOCKET").process_group(0);
        let process = command.spawn().inspect_err(|_| {
            watcher.end();
            if let Some(cgroup) = &cgroup {
                cgroup.remove(EMPTY);
            }
        })?;
        let group = Pid::from_child(&process);
        watcher.guard(Some(group));
        Ok(Self { group, cgroup, watcher, terminal, foreground, code: None, group_gone: false, over: false })
    }

    pub(super) fn id(&self) -> i32 {
        self.group.as_raw_nonzero().get()
    }

    /// Tells the watcher until when the lock is held for certain.
    pub(super) fn set_deadline(&mut self, deadline: Duration) {
        self.watcher.set_deadline(deadline);
    }

    /// Sends a signal to the group; a stopped group gets it, too.
    pub(super) fn signal(&self, signal: Signal) {
        self.signal_group(signal);
        if signal == Signal::TERM {
            self.signal_group(Signal::CONT);
        }
    }

    fn signal_group(&self, signal: Signal) {
        if !self.group_gone {
            let _ = kill_process_group(self.group, signal);
        }
    }

    /// Asks the group to end, and what has left it but not its cgroup.
    pub(super) fn terminate(&self) {
        self.signal(Signal::TERM);
        let members = self.cgroup.iter().flat_map(Cgroup::members);
        for pid in members.filter(|pid| getpgid(Some(*pid)).is_ok_and(|group| group != self.group)) {
            let _ = kill_process(pid, Signal::TERM);
            let _ = kill_process(pid, Signal::CONT);
        }
    }

    /// Kills the group, and what has left it but not its cgroup.
    pub(super) fn kill(&mut self) {
        self.signal_group(Signal::KILL);
        let _ = self.cgroup.as_ref().map(Cgroup::kill);
    }

    /// Learns what has happened, after SIGCHLD or a while.
    pub(super) fn look(&mut self) -> Change {
        let stops = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
        let stopped = waitid(WaitId::Pid(self.group), stops).ok().flatten();
        let stopped = stopped.and_then(|status| status.stopping_signal());
        // Among them are those that the command has left behind, which are this process's children now.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid == self.group {
                self.code = Some(code_of(status));
            }
            self.watcher.reaped(pid);
        }
        if self.code.is_some() && !self.group_gone {
            self.group_gone = test_kill_process_group(self.group) == Err(Errno::SRCH);
            if self.group_gone {
                self.watcher.guard(None);
            }
        }
        self.watcher.revive();
        stopped.filter(|_| self.code.is_none()).map_or(Change::None, Change::Stopped)
    }

    /// The command's exit code, once it has ended; others of its group or cgroup may live.
    pub(super) fn code(&self) -> Option<u8> {
        self.code
    }

    /// Whether nothing of the group lived at the last look, and nothing of its cgroup does.
    pub(super) fn is_gone(&self) -> bool {
        self.group_gone && !self.cgroup.as_ref().is_some_and(Cgroup::is_populated)
    }

    /// Stops this process and its whole group, a script say, with the command, as the shell that waits for them expects;
    /// returns when it is continued.
    pub(super) fn stop_together(&mut self, signal: i32) {
        let Some(terminal) = &self.terminal else { return };
        if getsid(None) == Ok(getpgrp()) {
            // No shell would continue this group: Ctrl-Z has no effect, as in any program that has a terminal to itself.
            if signal == SIGTSTP {
                self.cont();
            }
            return;
        }
        if self.has_terminal() {
            terminal.take();
        }
        // Not SIGTSTP, which this program catches.
        let _ = kill_current_process_group(Signal::STOP);
    }

    /// Continues the group, in the foreground if this process is there.
    pub(super) fn cont(&mut self) {
        if let Some(terminal) = &self.terminal {
            self.foreground = terminal.is_ours() || self.has_terminal();
            if self.foreground {
                terminal.give(self.group);
            }
        }
        self.signal_group(Signal::CONT);
    }

    /// Whether this process may take the terminal from the group: `bg` has given it to others.
    fn has_terminal(&self) -> bool {
        self.foreground && self.terminal.as_ref().is_some_and(|terminal| terminal.is_left_by(self.group))
    }

    /// Gives back what this process had for the group, when that is gone.
    pub(super) fn clean_up(&mut self) {
        self.over = true;
        self.watcher.end();
        if let Some(cgroup) = &self.cgroup {
            cgroup.remove(EMPTY);
        }
        if let Some(terminal) = self.terminal.as_ref().filter(|_| self.has_terminal()) {
            terminal.take();
            if self.code.is_some_and(|code| code > 128) {
                terminal.restore();
            }
        }
    }
}

/// A panic of this program releases the lock, so it must not leave the command behind.
impl Drop for Child {
    fn drop(&mut self) {
        if !self.over {
            self.kill();
        }
    }
}

fn code_of(status: WaitStatus) -> u8 {
    if let Some(signal) = status.terminating_signal() {
        return crate::exit::of_signal(signal);
    }
    u8::try_from(status.exit_status().unwrap_or(0)).unwrap_or(u8::MAX)
}
