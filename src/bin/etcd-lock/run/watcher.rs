//! A process that kills the command's group when this program cannot: it was killed, or it stands still and the deadline
//! has passed.

use std::fmt;
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
use signal_hook::consts::{FORBIDDEN, SIGABRT, SIGBUS, SIGSYS, SIGTRAP};

use super::cgroup::Cgroup;
use super::clock::now;
use crate::say::say;

/// Its first argument.
pub(super) const WORD: &str = "__watch";

/// The last order: there is nothing to kill any more.
const END: &str = "end";

/// How long the watcher of a program that was killed waits for the deaths in the cgroup, to remove it.
const DYING: Duration = Duration::from_secs(60);

/// The clock of a timeout does not count the time in which the machine sleeps, so it is read again so often.
const LOOK: Duration = Duration::from_millis(250);

/// Linux's last signal; those of the C library itself are refused.
const LAST_SIGNAL: i32 = 64;

/// Those that a defect of the watcher itself would raise. They end it.
const FAULTS: [i32; 4] = [SIGABRT, SIGBUS, SIGSYS, SIGTRAP];

/// The program's side: a pipe, whose end tells the watcher that this process has died.
#[derive(Debug, Default)]
pub(super) struct Watcher {
    /// `None` once it has died.
    process: Option<std::process::Child>,
    orders: Option<ChildStdin>,
    prey: Prey,
    deadline: Option<Duration>,
    /// Whether it was said that none can be started.
    complained: bool,
}

impl Watcher {
    pub(super) fn spawn() -> std::io::Result<Self> {
        let mut watcher = Self::default();
        watcher.start()?;
        Ok(watcher)
    }

    fn start(&mut self) -> std::io::Result<()> {
        let mut process = Command::new("/proc/self/exe")
            .arg0("etcd-lock")
            .arg(WORD)
            .stdin(Stdio::piped())
            // Whoever waits for the end of the command's output does not wait for the watcher.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        self.orders = process.stdin.take();
        self.process = Some(process);
        Ok(())
    }

    /// Names the group that is to be killed; none once it is dead.
    pub(super) fn guard(&mut self, group: Option<Pid>) {
        self.prey.group = group;
        self.order(&Order::Group(group));
    }

    /// Names the cgroup that is to be killed, too.
    pub(super) fn guard_cgroup(&mut self, cgroup: &Cgroup) {
        self.prey.cgroup = Some(Cgroup::at(cgroup.path().to_owned()));
        self.order(&Order::Cgroup(cgroup.path().to_owned()));
    }

    /// Sets the deadline, by the clock of [`now`].
    pub(super) fn set_deadline(&mut self, deadline: Duration) {
        // Two readings of one deadline differ by the time between its two clocks' readings.
        let same = |told: Duration| deadline.abs_diff(told) <= Duration::from_millis(1);
        if !self.deadline.is_some_and(same) {
            self.deadline = Some(deadline);
            self.order(&Order::Deadline(deadline));
        }
    }

    fn order(&mut self, order: &Order) {
        // One that has died leaves the rest to this process and to the kernel, until there is another.
        if let Some(orders) = &mut self.orders
            && orders.write_all(format!("{order}\n").as_bytes()).is_err()
        {
            self.orders = None;
        }
    }

    /// Says that this child of this process was reaped.
    pub(super) fn reaped(&mut self, pid: Pid) {
        if self.process.as_ref().is_some_and(|process| Pid::from_child(process) == pid) {
            self.process = None;
        }
    }

    /// Starts another one in place of one that has died.
    pub(super) fn revive(&mut self) {
        if self.process.is_some() {
            return;
        }
        match self.start() {
            Ok(()) => {
                let group = Some(Order::Group(self.prey.group));
                let cgroup = self.prey.cgroup.as_ref().map(|cgroup| Order::Cgroup(cgroup.path().to_owned()));
                for order in [group, cgroup, self.deadline.map(Order::Deadline)].iter().flatten() {
                    self.order(order);
                }
            }
            // Tried again at the next look.
            Err(error) => {
                if !std::mem::replace(&mut self.complained, true) {
                    say(&format!("the watcher has died, and another cannot be started yet: {error}"));
                }
            }
        }
    }

    /// Ends the watcher; it kills nothing from then on.
    pub(super) fn end(&mut self) {
        self.order(&Order::End);
        self.orders = None;
        if let Some(mut process) = self.process.take() {
            // It may be stopped.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// What the watcher is told.
#[derive(Debug)]
enum Order {
    Group(Option<Pid>),
    Cgroup(PathBuf),
    Deadline(Duration),
    End,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group(group) => {
                write!(f, "group {}", group.map_or(0, |group| group.as_raw_nonzero().get()))
            }
            Self::Cgroup(path) => write!(f, "cgroup {}", path.display()),
            Self::Deadline(deadline) => write!(f, "deadline {}", deadline.as_nanos()),
            Self::End => f.write_str(END),
        }
    }
}

fn parse(line: &str) -> Option<Order> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "group" => rest.parse().ok().map(|group| Order::Group(Pid::from_raw(group))),
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
    for signal in (1..=LAST_SIGNAL).filter(|signal| !FAULTS.contains(signal) && !FORBIDDEN.contains(signal)) {
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
            Ok(Order::Group(group)) => (prey.group, over) = (group, false),
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
                    cgroup.remove(DYING);
                }
                return;
            }
        }
    }
}

/// What a watcher kills.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_arrives_as_it_was_given() {
        let orders = [
            Order::Group(Pid::from_raw(4711)),
            Order::Group(None),
            Order::Cgroup("/sys/fs/cgroup/a b".into()),
            Order::Deadline(Duration::new(7, 11)),
            Order::End,
        ];
        for order in orders {
            assert_eq!(format!("{:?}", parse(&order.to_string())), format!("{:?}", Some(order)));
        }
    }
}
