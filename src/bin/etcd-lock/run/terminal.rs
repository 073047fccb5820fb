//! The controlling terminal: while the command runs, its group is in the foreground, as a shell does it with a job.

use std::fs::File;

use nix::sys::signal::{SigSet, Signal};
use rustix::io::Errno;
use rustix::process::{Pid, getpgrp, test_kill_process_group};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr, tcsetpgrp};

/// The controlling terminal of this process.
#[derive(Debug)]
pub(super) struct Terminal {
    tty: File,
    modes: Option<Termios>,
}

impl Terminal {
    /// `None` without a terminal, as in a service or a cron job.
    pub(super) fn open() -> Option<Self> {
        let tty = File::options().read(true).write(true).open("/dev/tty").ok()?;
        let modes = tcgetattr(&tty).ok();
        Some(Self { tty, modes })
    }

    /// Whether this process's group is in the foreground.
    pub(super) fn is_ours(&self) -> bool {
        tcgetpgrp(&self.tty).is_ok_and(|front| front == getpgrp())
    }

    /// Whether this group is in the foreground, or one that it has put there and that is dead: nobody else has the terminal.
    pub(super) fn is_left_by(&self, group: Pid) -> bool {
        tcgetpgrp(&self.tty)
            .is_ok_and(|front| front == group || test_kill_process_group(front) == Err(Errno::SRCH))
    }

    /// Puts this process's group into the foreground.
    pub(super) fn take(&self) {
        self.give(getpgrp());
    }

    /// Puts a group into the foreground.
    pub(super) fn give(&self, group: Pid) {
        // From the background this is a SIGTTOU, and works while that is blocked.
        let mut background = SigSet::empty();
        background.add(Signal::SIGTTOU);
        let blocked = background.thread_block();
        let _ = tcsetpgrp(&self.tty, group);
        if blocked.is_ok() {
            let _ = background.thread_unblock();
        }
    }

    /// Sets the modes back that the terminal had; for a command that could not do so itself.
    pub(super) fn restore(&self) {
        if let Some(modes) = &self.modes {
            let _ = tcsetattr(&self.tty, OptionalActions::Drain, modes);
        }
    }
}
