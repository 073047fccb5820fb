//! Takes a lock, or says why not; a signal ends the wait.

use std::thread;
use std::time::Duration;

use etcd_lock::crossbeam_channel::{Receiver, RecvTimeoutError, bounded, select};
use etcd_lock::{LockGuard, LockInfo, LockManager, LockManagerOptions, LockOptions};
use serde_json::Value;

use crate::environment;
use crate::exit::{self, BUSY, Failure};
use crate::options::{IfBusy, Waiting};
use crate::output::{age, plain};
use crate::report::Report;
use crate::say::say;
use crate::settings::Settings;
use crate::signals::ends_a_wait;

/// A lock that is held, and the manager that holds it.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) manager: LockManager,
    pub(crate) guard: LockGuard,
}

impl Held {
    /// Releases the lock and ends the session.
    ///
    /// # Errors
    /// The lock had been lost.
    pub(crate) fn release(self, report: &Report) -> Result<(), Failure> {
        let Self { manager, guard } = self;
        let (name, token) = (guard.key().to_owned(), guard.token().as_u64());
        let released = guard.unlock().map_err(Failure::from);
        // What it could still report is that etcd has not confirmed, which `unlock` has reported.
        let _ = manager.close();
        let fields = [("lock", name.clone().into()), ("token", token.into())];
        match released {
            Ok(()) => {
                report.event("released", &fields);
                report.detail(&format!("released {name}"));
                Ok(())
            }
            Err(failure) if failure.code() == exit::LOST => {
                report.event("lost", &fields);
                Err(failure)
            }
            // The lease ends it at the latest: nothing that a caller could do about it.
            Err(failure) => {
                say(&format!("lock {name:?} is released when its lease expires: {failure}"));
                Ok(())
            }
        }
    }
}

/// How often the holder is looked up while somebody reads about the wait.
const LOOK: Duration = Duration::from_secs(2);

/// A lock that is free soon is not worth a line.
const FIRST_LOOK: Duration = Duration::from_millis(200);

/// Connects; a signal ends that, too.
pub(crate) fn connect(
    settings: &Settings,
    options: LockManagerOptions,
    signals: &Receiver<i32>,
) -> Result<LockManager, Failure> {
    let settings = settings.clone();
    interruptible(signals, move || settings.connect(options))?
}

/// Takes the lock.
///
/// # Errors
/// It is busy, it cannot be had, or a signal arrived first; then the manager is closed.
pub(crate) fn take(
    manager: &LockManager,
    name: &str,
    note: Option<&str>,
    waiting: &Waiting,
    (signals, report): (&Receiver<i32>, &Report),
) -> Result<Held, Failure> {
    if environment::is_held_by_ancestor(manager, name)? {
        return Err(busy(waiting, format!("lock {name:?} is held by the command that this one runs under")));
    }
    let (no_wait, limit) = (waiting.no_wait, waiting.wait);
    let lock = manager.new_lock_with(name, LockOptions::default().note(note.unwrap_or_default()))?;
    let wait = move || -> Result<Option<LockGuard>, Failure> {
        Ok(match limit {
            _ if no_wait => lock.try_lock()?,
            Some(limit) => Some(lock.lock_timeout(limit)?),
            None => Some(lock.lock()?),
        })
    };
    let outcome = thread::scope(|scope| {
        let (over, stop) = bounded::<()>(0);
        if report.follows_waits() && !no_wait {
            scope.spawn(move || narrate(manager, name, report, &stop));
        }
        let outcome = interruptible(signals, wait);
        if outcome.is_err() {
            // Leaves the queue, and gives back what may have been granted meanwhile.
            let _ = manager.close();
        }
        drop(over);
        outcome
    });
    match outcome? {
        Ok(Some(guard)) => {
            report.event("held", &[("lock", guard.key().into()), ("token", guard.token().as_u64().into())]);
            let waited = age(guard.waited());
            report.detail(&format!("holding {}, token {}, after {waited}", guard.key(), guard.token()));
            Ok(Held { manager: manager.clone(), guard })
        }
        Ok(None) => Err(busy(waiting, held_by(manager, name))),
        Err(failure) if failure.code() == BUSY => Err(busy(waiting, failure.to_string())),
        Err(failure) => Err(failure),
    }
}

/// Calls a blocking function on a thread of its own, which is left behind when a signal ends this program.
fn interruptible<T: Send + 'static>(
    signals: &Receiver<i32>,
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let (done, outcome) = bounded(1);
    thread::Builder::new()
        .name("acquire".into())
        .spawn(move || drop(done.send(call())))
        .map_err(|error| Failure::internal("no thread can be started", error))?;
    loop {
        select! {
            recv(outcome) -> value => {
                return value.map_err(|_| Failure::internal("taking the lock", "its thread died"));
            }
            recv(signals) -> signal => match signal {
                Ok(signal) if ends_a_wait(signal) => {
                    return Err(Failure::silent(exit::of_signal(signal)));
                }
                Ok(signal) if signal == signal_hook::consts::SIGTSTP => {
                    let _ = signal_hook::low_level::emulate_default_handler(signal);
                }
                _ => {}
            },
        }
    }
}

/// Says for whom this program waits, when the wait begins and when the holder changes.
fn narrate(manager: &LockManager, name: &str, report: &Report, stop: &Receiver<()>) {
    let (mut pause, mut last) = (FIRST_LOOK, None);
    while stop.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        pause = LOOK;
        let Ok(Some(holder)) = manager.lock_info(name) else { continue };
        if last.replace(holder.token) == Some(holder.token) {
            continue;
        }
        report.detail(&format!("waiting for {}", describe(&holder)));
        let owner = holder.owner.clone().map_or(Value::Null, Value::from);
        report.event(
            "waiting",
            &[("lock", name.into()), ("owner", owner), ("token", holder.token.as_u64().into())],
        );
    }
}

/// A holder in words.
pub(crate) fn describe(holder: &LockInfo) -> String {
    let owner = holder.owner.as_deref().map_or("a foreign client".into(), plain);
    let since = holder.created_at.and_then(|at| at.elapsed().ok());
    let since = since.map_or(String::new(), |since| format!(", held for {}", age(since)));
    let note = holder.note.as_ref().map_or(String::new(), |note| format!(", {note:?}"));
    format!("{owner}, token {}{since}{note}", holder.token)
}

fn held_by(manager: &LockManager, name: &str) -> String {
    match manager.lock_info(name) {
        Ok(Some(holder)) => format!("lock {name:?} is held by {}", describe(&holder)),
        _ => format!("lock {name:?} is busy"),
    }
}

/// The failure for a busy lock, as the options want it.
fn busy(waiting: &Waiting, message: String) -> Failure {
    match waiting.if_busy {
        IfBusy::Fail => Failure::new(waiting.busy_code.unwrap_or(BUSY), message),
        IfBusy::Skip => Failure::silent(waiting.busy_code.unwrap_or(0)),
    }
}
