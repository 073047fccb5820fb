//! `wait` and `watch`: who holds a lock, as it changes.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use etcd_lock::LockInfo;
use etcd_lock::crossbeam_channel::{RecvError, at, never, select};
use serde_json::json;

use crate::acquire::describe;
use crate::exit::{self, BUSY, Failure};
use crate::options::{Connection, Wait, Watch};
use crate::output::{Line, plain, print_lines};
use crate::settings::Settings;
use crate::signals::{ends_a_wait, listen};

pub(crate) fn wait(connection: &Connection, options: &Wait) -> Result<ExitCode, Failure> {
    let viewer = Settings::read(connection)?.view()?;
    let observer = viewer.observe(&options.name)?;
    // Until now there is nothing that a signal could leave behind.
    let signals = listen()?;
    let limit = if options.no_wait { Some(Duration::ZERO) } else { options.wait };
    let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
    let late = deadline.map_or_else(never, at);
    while let Some(holder) = observer.current() {
        select! {
            recv(observer.changes()) -> change => drop(change.map_err(|_| ended())?),
            recv(late) -> _ => {
                let held = format!("lock {:?} is held by {}", options.name, describe(&holder));
                return Err(Failure::new(BUSY, held));
            }
            recv(signals) -> signal => end_by(signal)?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn watch(connection: &Connection, options: &Watch) -> Result<ExitCode, Failure> {
    let viewer = Settings::read(connection)?.view()?;
    let observer = viewer.observe(&options.name)?;
    let signals = listen()?;
    let mut seen = 0;
    while options.follow || seen < 2 {
        select! {
            recv(observer.changes()) -> change => {
                let holder = change.map_err(|_| ended())?;
                if !print_lines(&[state(&options.name, holder.as_ref())?], options.output) {
                    break;
                }
                seen += 1;
            }
            recv(signals) -> signal => end_by(signal)?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One state of a lock.
fn state(name: &str, holder: Option<&LockInfo>) -> Result<Line, Failure> {
    let Some(holder) = holder else {
        return Ok(Line {
            text: format!("{}: free", plain(name)),
            json: json!({ "key": name, "state": "free" }),
        });
    };
    let json = serde_json::to_value(holder).map_err(|error| Failure::internal("writing JSON", error))?;
    Ok(Line { text: format!("{}: {}", plain(name), describe(holder)), json })
}

fn ended() -> Failure {
    Failure::internal("watching the lock", "the connection's thread died")
}

fn end_by(signal: Result<i32, RecvError>) -> Result<(), Failure> {
    match signal {
        Ok(signal) if ends_a_wait(signal) => Err(Failure::silent(exit::of_signal(signal))),
        Ok(_) => Ok(()),
        Err(_) => Err(Failure::internal("receiving signals", "their thread died")),
    }
}
