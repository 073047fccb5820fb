//! Watches the lock, the command and the clock, and ends the command in time.

use std::process::Command;
use std::time::{Duration, Instant};

use etcd_lock::crossbeam_channel::{Receiver, never, select};
use rustix::process::Signal;
use signal_hook::consts::{SIGCHLD, SIGCONT, SIGHUP};

use super::child::{Change, Child};
use super::clock;
use crate::acquire::Held;
use crate::exit;
use crate::options::{Ending, OnLoss};
use crate::output::age;
use crate::report::Report;
use crate::say::say;
use crate::signals::ends_a_wait;

/// How often an idle supervisor looks at the clock: what waits for a channel does not count the time in which the
/// machine sleeps.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// How often it looks while processes of the group die that are not children of this process.
const LOOK_AT_DYING: Duration = Duration::from_millis(10);

/// How the command ended.
#[derive(Debug)]
pub(super) enum End {
    /// By itself; its exit code.
    Command(u8),
    /// By this program, because the lock was lost; why, and the signal that had asked for the end anyway.
    Lost(String, Option<i32>),
    /// By this program, because of `--max-run`.
    MaxRun,
}

impl End {
    pub(super) fn code(&self) -> u8 {
        match self {
            Self::Command(code) => *code,
            Self::Lost(..) => exit::LOST,
            Self::MaxRun => exit::MAX_RUN,
        }
    }
}

/// How far the end of the command is. It only goes down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Running,
    /// SIGTERM was sent; SIGKILL follows then.
    Asked(Instant),
    Killed,
}

/// Why this program ends the command.
#[derive(Debug)]
enum Why {
    Lost(String),
    MaxRun,
    /// The command itself has ended, others of its group or cgroup have not.
    Leftovers,
}

/// When and how the command is ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits<'a> {
    pub(super) ttl: Duration,
    pub(super) ending: &'a Ending,
    pub(super) max_run: Option<Duration>,
}

pub(super) struct Supervisor<'a> {
    held: &'a Held,
    child: Child,
    limits: Limits<'a>,
    report: &'a Report,
    environment: &'a [(&'static str, String)],
    started: Instant,
    stage: Stage,
    why: Option<Why>,
    /// Whether the end of the hold was noticed; with `--on-loss ignore` nothing else follows.
    noticed_loss: bool,
    /// The last signal that asked for the end of the command.
    asked_to_end: Option<i32>,
}

impl<'a> Supervisor<'a> {
    pub(super) fn new(
        held: &'a Held,
        child: Child,
        limits: Limits<'a>,
        report: &'a Report,
        environment: &'a [(&'static str, String)],
    ) -> Self {
        Self {
            held,
            child,
            limits,
            report,
            environment,
            started: Instant::now(),
            stage: Stage::Running,
            why: None,
            noticed_loss: false,
            asked_to_end: None,
        }
    }

    /// Returns when nothing of the command's group lives any more, nor of its cgroup.
    pub(super) fn run(mut self, signals: &Receiver<i32>) -> End {
        let silent = never();
        let mut signals = signals.clone();
        loop {
            if let Change::Stopped(signal) = self.child.look() {
                self.child.stop_together(signal);
            }
            if self.child.is_gone() {
                break;
            }
            self.decide(Instant::now());
            let done = if self.noticed_loss { &silent } else { self.held.guard.done() };
            select! {
                recv(done) -> _ => {}
                recv(signals) -> signal => match signal {
                    Ok(signal) => self.pass_on(signal),
                    Err(_) => {
                        signals = never();
                        self.lost("the signals' thread died");
                    }
                },
                default(self.pause()) => {}
            }
        }
        self.child.clean_up();
        let code = self.child.code().unwrap_or(exit::INTERNAL);
        match self.why {
            Some(Why::Lost(why)) => End::Lost(why, self.asked_to_end),
            Some(Why::MaxRun) => End::MaxRun,
            Some(Why::Leftovers) | None => End::Command(code),
        }
    }

    /// Goes on to the next stage if it is time.
    fn decide(&mut self, now: Instant) {
        let guard = &self.held.guard;
        let left = guard.remaining();
        if self.limits.ending.on_loss != OnLoss::Ignore {
            self.child.set_deadline(clock::now() + left);
        }
        if let Some(reason) = guard.loss() {
            self.lost(&reason.to_string());
        } else if left <= self.limits.ending.grace && self.stage == Stage::Running {
            let silence = self.held.manager.session().last_answer.unwrap_or_default();
            self.runs_out(now, left, silence);
        }
        if self.limits.max_run.is_some_and(|limit| now.duration_since(self.started) >= limit) {
            self.ask(now, Why::MaxRun);
        }
        if self.child.code().is_some() {
            self.ask(now, Why::Leftovers);
        }
        match self.stage {
            Stage::Asked(until) if until <= now => self.kill(),
            // Again and again, for what comes into the cgroup meanwhile.
            Stage::Killed => self.child.kill(),
            Stage::Asked(_) | Stage::Running => {}
        }
    }

    /// The hold is over, and another holder may have the lock soon, or already.
    fn lost(&mut self, reason: &str) {
        if std::mem::replace(&mut self.noticed_loss, true) {
            return;
        }
        if self.limits.ending.on_loss == OnLoss::Ignore {
            let fields = [("lock", self.held.guard.key().into()), ("reason", reason.into())];
            self.report.event("lost", &fields);
            say(&format!("lost lock {:?}: {reason}; the command goes on", self.held.guard.key()));
            return;
        }
        self.kill();
        if !matches!(self.why, Some(Why::Lost(_))) {
            self.tell_program();
            self.why = Some(Why::Lost(reason.to_owned()));
        }
    }

    /// etcd has been silent for so long that only the grace is left.
    fn runs_out(&mut self, now: Instant, left: Duration, silence: Duration) {
        if self.limits.ending.on_loss == OnLoss::Ignore {
            return;
        }
        let why = format!("etcd has not answered for {}", age(silence));
        if !self.tell_program() {
            self.child.terminate();
        }
        self.stage = Stage::Asked(now + left);
        self.why = Some(Why::Lost(why));
    }

    /// Asks the command to end, with the grace to do so; once only.
    fn ask(&mut self, now: Instant, why: Why) {
        if self.stage == Stage::Running {
            self.child.terminate();
            self.stage = Stage::Asked(now + self.limits.ending.grace);
            self.why = Some(why);
        }
    }

    fn kill(&mut self) {
        self.child.kill();
        self.stage = Stage::Killed;
    }

    /// Runs the program of `--on-loss exec:`; false if there is none.
    fn tell_program(&self) -> bool {
        let OnLoss::Exec(program) = &self.limits.ending.on_loss else { return false };
        let mut command = Command::new(program);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.env("ETCD_LOCK_PID", self.child.id().to_string());
        match command.spawn() {
            Ok(_) => true,
            Err(error) => {
                say(&format!("{} cannot be executed: {error}", program.display()));
                false
            }
        }
    }

    /// Passes a signal on to the group.
    fn pass_on(&mut self, signal: i32) {
        match signal {
            // The next look shows what it was about.
            SIGCHLD => {}
            SIGCONT => self.child.cont(),
            signal => {
                // A command that runs may take SIGHUP as the wish to read its settings again.
                if ends_a_wait(signal) && (signal != SIGHUP || self.stage != Stage::Running) {
                    self.asked_to_end = Some(signal);
                }
                if let Some(signal) = Signal::from_named_raw(signal) {
                    self.child.signal(signal);
                }
            }
        }
    }

    /// Until when nothing happens unless something is received.
    fn pause(&self) -> Duration {
        let now = Instant::now();
        // Often enough that the watcher knows of a renewal long before the deadline that it has moved.
        let mut pause = LOOK.min(self.limits.ttl / 12);
        if self.child.code().is_some() || self.stage == Stage::Killed {
            pause = LOOK_AT_DYING;
        }
        if self.stage == Stage::Running {
            if self.limits.ending.on_loss != OnLoss::Ignore {
                pause = pause.min(self.held.guard.remaining().saturating_sub(self.limits.ending.grace));
            }
            if let Some(limit) = self.limits.max_run {
                pause = pause.min(limit.saturating_sub(now.duration_since(self.started)));
            }
        }
        if let Stage::Asked(until) = self.stage {
            pause = pause.min(until.saturating_duration_since(now));
        }
        // Rounded up, so that the time has come after the pause.
        pause + Duration::from_millis(1)
    }
}
