//! `run`: a command under a lock, dead before anybody else can have the lock.
//!
//! Four processes take part. *This one* holds the lock and watches the time. The *command* leads a process group of its
//! own; it starts as a [`helper`] of this program, which asks the kernel to kill it when this process dies, and then
//! executes the command. The [`watcher`] kills the group when this process dies, or stands still past the deadline.
//!
//! ```text
//!   lease expires in etcd, at the earliest ---------------------------------+
//!   the hold ends (`done`), KILL ------------------------------+            |
//!   only the grace is left, TERM ------------------+           |            |
//!   last renewal ------+                           |           |            |
//!                      v                           v   grace   v   margin   v
//!              --------|---------------------------|-----------|------------|---> time
//! ```

mod cgroup;
mod child;
mod clock;
mod helper;
mod supervise;
mod terminal;
mod watcher;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use etcd_lock::LockManager;
use etcd_lock::crossbeam_channel::Receiver;

use crate::acquire::{Held, connect, take};
use crate::environment::variables;
use crate::exit::{self, Failure};
use crate::options::{Connection, Ending, Holding, Lead, OnLoss, Run, Waiting};
use crate::report::{Report, ready_meanwhile};
use crate::say::say;
use crate::settings::{Settings, for_holding, owner};
use crate::signals::{ends_a_wait, listen};
use child::Child;
use supervise::{End, Limits, Supervisor};

/// How long a service manager has for a message after the command has ended.
const READY: Duration = Duration::from_secs(1);

/// This process as one of its own helpers, if it was started so.
pub(crate) fn as_helper() -> Option<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    match words.next()?.to_str()? {
        helper::WORD => Some(helper::execute(words)),
        watcher::WORD => Some(watcher::watch()),
        _ => None,
    }
}

pub(crate) fn run(connection: &Connection, options: &Run) -> Result<ExitCode, Failure> {
    let office = Office::new(connection, &options.name, &options.holding, &options.ending)?;
    let held = office.take(options.note.as_deref(), &options.waiting)?;
    let since = Instant::now();
    match office.serve(&held, &options.command, options.max_run)? {
        End::Lost(why, _) => {
            let _ = held.manager.close();
            Err(Failure::new(exit::LOST, format!("lost lock {:?}: {why}", options.name)))
        }
        End::MaxRun => {
            held.release(&office.report)?;
            let limit = humantime::format_duration(options.max_run.unwrap_or_default());
            Err(Failure::new(exit::MAX_RUN, format!("ended the command after {limit} (--max-run)")))
        }
        End::Command(code) => {
            let signalled = hold_on(&held, options, since, &office.signals);
            office.finish(held, signalled.unwrap_or(code))
        }
    }
}

/// As `run`, but a loss is followed by another campaign.
pub(crate) fn lead(connection: &Connection, options: &Lead) -> Result<ExitCode, Failure> {
    let office = Office::new(connection, &options.name, &options.holding, &options.ending)?;
    loop {
        let held = office.take(Some(&options.value), &Waiting::default())?;
        match office.serve(&held, &options.command, None)? {
            End::Command(code) => return office.finish(held, code),
            End::Lost(why, Some(signal)) => {
                let _ = held.manager.close();
                let message = format!("lost lock {:?}: {why}", options.name);
                return Err(Failure::new(exit::of_signal(signal), message));
            }
            End::Lost(why, None) => say(&format!("lost lock {:?}: {why}; campaigning again", options.name)),
            End::MaxRun => {}
        }
    }
}

/// What the terms of one command have in common.
struct Office<'a> {
    name: &'a str,
    settings: Settings,
    holding: &'a Holding,
    ending: &'a Ending,
    report: Report,
    signals: Receiver<i32>,
    manager: LockManager,
}

impl<'a> Office<'a> {
    fn new(
        connection: &Connection,
        name: &'a str,
        holding: &'a Holding,
        ending: &'a Ending,
    ) -> Result<Self, Failure> {
        ending.check(holding.ttl)?;
        let report = Report::new(holding.verbose, holding.status_fd)?;
        // A signal while a password is typed just ends this program.
        let settings = Settings::read(connection)?;
        let signals = listen()?;
        let options = for_holding(settings.options()?, holding, ending.reserve());
        let manager = connect(&settings, options, &signals)?;
        Ok(Self { name, settings, holding, ending, report, signals, manager })
    }

    fn take(&self, note: Option<&str>, waiting: &Waiting) -> Result<Held, Failure> {
        take(&self.manager, self.name, note, waiting, (&self.signals, &self.report))
    }

    /// Runs the command under the lock, to its end.
    fn serve(&self, held: &Held, command: &[OsString], max_run: Option<Duration>) -> Result<End, Failure> {
        let owner = owner(self.holding);
        let environment = variables(&held.manager, &held.guard, &owner, &self.settings.endpoints);
        let lock = || ("lock", self.name.into());
        let lost = |why: &str| self.report.event("lost", &[lock(), ("reason", why.into())]);
        if !held.guard.is_held() {
            let why = held.guard.loss().map_or("its time is over".to_owned(), |reason| reason.to_string());
            lost(&why);
            return Ok(End::Lost(why, None));
        }
        let deadline = (self.ending.on_loss != OnLoss::Ignore).then(|| clock::now() + held.guard.remaining());
        let child = Child::spawn(command, &environment, deadline)
            .map_err(|error| Failure::internal("the command cannot be started", error))?;
        self.report.event("started", &[lock(), ("pid", child.id().into())]);
        let notified = ready_meanwhile(format!("running under {}", self.name));
        let limits = Limits { ttl: self.holding.ttl, ending: self.ending, max_run };
        let end = Supervisor::new(held, child, limits, &self.report, &environment).run(&self.signals);
        self.report.event("ended", &[lock(), ("code", end.code().into())]);
        if let End::Lost(why, _) = &end {
            lost(why);
        }
        // A service that ends before its manager has the message was never ready.
        let _ = notified.recv_timeout(READY);
        Ok(end)
    }

    /// Releases the lock after a command that has ended by itself.
    fn finish(&self, held: Held, code: u8) -> Result<ExitCode, Failure> {
        match held.release(&self.report) {
            // That it was lost was said when it happened.
            Err(failure) if failure.code() == exit::LOST && self.ending.on_loss == OnLoss::Ignore => {}
            released => released?,
        }
        Ok(ExitCode::from(code))
    }
}

/// Keeps the lock for the rest of `--hold-at-least`. Returns the code of the signal that ended that.
fn hold_on(held: &Held, options: &Run, since: Instant, signals: &Receiver<i32>) -> Option<u8> {
    let until = since.checked_add(options.hold_at_least?)?;
    while held.guard.is_held() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        if let Ok(signal) = signals.recv_timeout(left.min(supervise::LOOK))
            && ends_a_wait(signal)
        {
            return Some(exit::of_signal(signal));
        }
    }
    None
}
