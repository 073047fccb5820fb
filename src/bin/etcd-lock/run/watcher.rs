//! A process that kills the command's group when this program cannot: it was killed, or it stands still and the deadline
//! has passed.

use std::io::{BufRead, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use etcd_lock::crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};
use rustix::process::{Pid, Signal, kill_process_group, setsid};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::cgroup::Cgroup;
use super::clock::now;

/// Its first argument.
pub(super) const WORD: &str = "__watch";

/// The last order: there is nothing to kill any more.
const END: &str = "end";

/// The clock of a timeout does not count the time in which the machine sleeps, so it is read again so often.
const LOOK: Duration = Duration::from_millis(250);

/// The program's side: a pipe, whose end tells the watcher that this process has died.
#[derive(Debug)]
pub(super) struct Watcher {
    process: std::process::Child,
    orders: Option<ChildStdin>,
    told: Duration,
}

impl Watcher {
    pub(super) fn spawn() -> std::io::Result<Self> {
        let mut process = Command::new("/proc/self/exe")
            .arg0("etcd-lock")
            .arg(WORD)
            .stdin(Stdio::piped())
            // Whoever waits for the end of the command's output does not wait for the watcher.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let orders = process.stdin.take();
        Ok(Self { process, orders, told: Duration::ZERO })
    }

    /// Names what is to be killed.
    pub(super) fn guard(&mut self, group: Pid, cgroup: Option<&Cgroup>) {
        self.order(&format!("group {group}"));
        if let Some(cgroup) = cgroup {
            self.order(&format!("cgroup {}", cgroup.path().display()));
        }
    }

    /// Sets the deadline, by the clock of [`now`].
    pub(super) fn set_deadline(&mut self, deadline: Duration) {
        // Two readings of one deadline differ by the time between its two clocks' readings.
        if deadline.abs_diff(self.told) > Duration::from_millis(1) {
            self.told = deadline;
            self.order(&format!("deadline {}", deadline.as_nanos()));
        }
    }

    fn order(&mut self, order: &str) {
        // A watcher that was killed leaves the rest to this process and to the kernel.
        if let Some(orders) = &mut self.orders
            && orders.write_all(format!("{order}\n").as_bytes()).is_err()
        {
            self.orders = None;
        }
    }

    /// Ends the watcher; it kills nothing from then on.
    pub(super) fn end(&mut self) {
        self.order(END);
        self.orders = None;
        let _ = self.process.wait();
    }
}

/// What the watcher is told.
#[derive(Debug)]
enum Order {
    Group(Pid),
    Cgroup(PathBuf),
    Deadline(Duration),
    End,
}

fn parse(line: &str) -> Option<Order> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "group" => rest.parse().ok().and_then(Pid::from_raw).map(Order::Group),
        "cgroup" => Some(Order::Cgroup(rest.into())),
        "deadline" => rest.parse().ok().map(Duration::from_nanos).map(Order::Deadline),
        END => Some(Order::End),
        _ => None,
    }
}

/// The watcher's own process.
pub(super) fn watch() -> ExitCode {
    // A terminal's signals, and those for the command's or this program's group, are not for the watcher; a service
    // manager that signals every process of a service means the command.
    let _ = setsid();
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        let _ = signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)));
    }
    let (sender, orders) = unbounded();
    thread::spawn(move || {
        let lines = std::io::stdin().lock().lines().map_while(Result::ok);
        lines.filter_map(|line| parse(&line)).all(|order| sender.send(order).is_ok());
    });
    follow(&orders);
    ExitCode::SUCCESS
}

fn follow(orders: &Receiver<Order>) {
    let (mut group, mut cgroup, mut deadline) = (None, None, None);
    let kill = |group: Option<Pid>, cgroup: &Option<Cgroup>| {
        let _ = group.map(|group| kill_process_group(group, Signal::KILL));
        let _ = cgroup.as_ref().map(Cgroup::kill);
    };
    loop {
        let left = deadline.map_or(LOOK, |deadline: Duration| deadline.saturating_sub(now()));
        match orders.recv_timeout(left.min(LOOK)) {
            Ok(Order::Group(pid)) => group = Some(pid),
            Ok(Order::Cgroup(path)) => cgroup = Some(Cgroup::at(path)),
            Ok(Order::Deadline(time)) => deadline = Some(time),
            Ok(Order::End) => return,
            Err(RecvTimeoutError::Timeout) => {
                if deadline.is_some_and(|deadline| deadline <= now()) {
                    kill(group, &cgroup);
                    deadline = None;
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                kill(group, &cgroup);
                if let Some(cgroup) = cgroup {
                    cgroup.remove();
                }
                return;
            }
        }
    }
}
