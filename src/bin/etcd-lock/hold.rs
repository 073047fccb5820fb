//! `hold`: a lock for as long as standard input is open.

use std::io::{Read, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use etcd_lock::crossbeam_channel::{Receiver, bounded, select};
use serde_json::json;

use crate::acquire::{connect, take};
use crate::exit::{self, Failure};
use crate::options::{Connection, Hold};
use crate::report::{Report, ready};
use crate::settings::{Settings, for_holding, owner};
use crate::signals::{ends_a_wait, listen};

pub(crate) fn hold(connection: &Connection, options: &Hold) -> Result<ExitCode, Failure> {
    let report = Report::new(options.holding.verbose, options.holding.status_fd)?;
    if connection.reads_stdin() {
        return Err(Failure::usage("hold ends with its standard input, so --password-file must name a file"));
    }
    let settings = Settings::read(connection)?;
    let signals = listen()?;
    let manager_options = for_holding(settings.options()?, &options.holding, Duration::ZERO);
    let manager = connect(&settings, manager_options, &signals)?;
    let held = take(&manager, &options.name, options.note.as_deref(), &options.waiting, (&signals, &report))?;
    let line = json!({
        "lock": held.guard.key(),
        "key": held.guard.etcd_key(),
        "token": held.guard.token().as_u64(),
        "owner": owner(&options.holding),
    });
    // Whoever reads it may be gone already; then standard input ends, too.
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    drop(out);
    ready(&format!("holding {}", held.guard.key()));
    let ended = input_ends()?;
    let code = loop {
        select! {
            recv(ended) -> _ => break ExitCode::SUCCESS,
            recv(held.guard.done()) -> _ => break ExitCode::from(exit::LOST),
            recv(signals) -> signal => match signal {
                Ok(signal) if ends_a_wait(signal) => break ExitCode::from(exit::of_signal(signal)),
                Ok(_) => {}
                Err(_) => return Err(Failure::internal("receiving signals", "their thread died")),
            },
        }
    };
    held.release(&report)?;
    Ok(code)
}

/// Disconnects when standard input ends. What arrives there is ignored.
fn input_ends() -> Result<Receiver<()>, Failure> {
    let (open, ended) = bounded::<()>(0);
    let read = move || {
        let mut input = std::io::stdin().lock();
        let mut some = [0; 1024];
        while input.read(&mut some).is_ok_and(|read| read > 0) {}
        drop(open);
    };
    thread::Builder::new()
        .name("stdin".into())
        .spawn(read)
        .map_err(|error| Failure::internal("no thread can be started", error))?;
    Ok(ended)
}
