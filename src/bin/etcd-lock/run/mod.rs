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

use std::process::ExitCode;
use std::time::Instant;

use etcd_lock::crossbeam_channel::Receiver;

use crate::acquire::{Held, connect, take};
use crate::environment::variables;
use crate::exit::{self, Failure};
use crate::options::{Connection, OnLoss, Run};
use crate::report::{Report, ready};
use crate::settings::{Settings, for_holding, owner};
use crate::signals::{ends_a_wait, listen};
use child::Child;
use supervise::{End, Supervisor};

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
    options.check()?;
    let report = Report::new(options.acquire.verbose, options.acquire.status_fd)?;
    let signals = listen()?;
    let settings = Settings::read(connection)?;
    let manager_options = for_holding(settings.options()?, &options.acquire, options.grace);
    let manager = connect(&settings, manager_options, &signals)?;
    let held = take(&manager, &options.name, &options.acquire, &signals, &report)?;
    let since = Instant::now();
    let environment = variables(&held.manager, &held.guard, &owner(&options.acquire), &settings.endpoints);
    let child = match Child::spawn(&options.command, &environment) {
        Ok(child) => child,
        Err(error) => {
            let _ = held.manager.close();
            return Err(Failure::internal("the command cannot be started", error));
        }
    };
    report.event("started", &[("lock", options.name.clone().into()), ("pid", child.id().into())]);
    ready(&format!("running under {}", options.name));
    let end = Supervisor::new(&held, child, options, &report, &environment).run(&signals);
    report.event("ended", &[("lock", options.name.clone().into()), ("code", end.code().into())]);
    match end {
        End::Lost(why) => {
            let fields = [("lock", options.name.clone().into()), ("reason", why.clone().into())];
            report.event("lost", &fields);
            let _ = held.manager.close();
            Err(Failure::new(exit::LOST, format!("lost lock {:?}: {why}", options.name)))
        }
        End::MaxRun => {
            held.release(&report)?;
            let limit = humantime::format_duration(options.max_run.unwrap_or_default());
            Err(Failure::new(exit::MAX_RUN, format!("ended the command after {limit} (--max-run)")))
        }
        End::Command(code) => {
            let signalled = hold_on(&held, options, since, &signals);
            match held.release(&report) {
                // That it was lost was said when it happened.
                Err(failure) if failure.code() == exit::LOST && options.on_loss == OnLoss::Ignore => {}
                released => released?,
            }
            Ok(ExitCode::from(signalled.unwrap_or(code)))
        }
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
