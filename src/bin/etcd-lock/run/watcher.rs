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

    /// Names the group that is to be killed.
    pub(super) fn guard(&mut self, group: Pid) {
        self.order(&format!("group {group}"));
    }

    /// Names the cgroup that is to be killed, too.
    pub(super) fn guard_cgroup(&mut self, cgroup: &Cgroup) {
        self.order(&format!("cgroup {}", cgroup.path().display()));
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
    let mut prey = Prey::default();
    let mut deadline = None;
    // Whether the deadline was dealt with.
    let mut over = false;
    loop {
        let left =
            deadline.filter(|_| !over).map_or(LOOK, |deadline: Duration| deadline.saturating_sub(now()));
        match orders.recv_timeout(left.min(LOOK)) {
            // An order that comes after the deadline does not wait for the next one.
            Ok(Order::Group(pid)) => (prey.group, over) = (Some(pid), false),
            Ok(Order::Cgroup(path)) => (prey.cgroup, over) = (Some(Cgroup::at(path)), false),
            Ok(Order::Deadline(time)) => (deadline, over) = (Some(time), false),
            Ok(Order::End) => return,
            Err(RecvTimeoutError::Timeout) => {
                if !over && deadline.is_some_and(|deadline| deadline <= now()) {
                    prey.kill();
                    over = true;
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                prey.kill();
                if let Some(cgroup) = prey.cgroup {
                    cgroup.remove();
                }
                return;
            }
        }
    }
}

/// What the watcher kills.
#[derive(Debug, Default)]
struct Prey {
    group: Option<Pid>,
    cgroup: Option<Cgroup>,
}

impl Prey {
    fn kill(&self) {
        let _ = self.group.map(|group| kill_process_group(group, Signal::KILL));
        let _ = self.cgroup.as_ref().map(Cgroup::kill);
    }
}
