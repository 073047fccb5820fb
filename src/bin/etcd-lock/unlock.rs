//! `unlock`: takes a lock away from its holder.

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;

use etcd_lock::{FencingToken, ForceUnlock, LockError, LockInfo};

use crate::acquire::describe;
use crate::exit::{BUSY, Failure, NOTHING};
use crate::options::{Connection, Unlock};
use crate::output::print;
use crate::settings::Settings;

pub(crate) fn unlock(connection: &Connection, options: &Unlock) -> Result<ExitCode, Failure> {
    let settings = Settings::read(connection)?;
    let manager = settings.connect(settings.options()?)?;
    let name = &options.name;
    let free = || Failure::new(NOTHING, format!("lock {name:?} is free"));
    let holder = manager.lock_info(name)?.ok_or_else(free)?;
    let token = options.token.map_or(holder.token, FencingToken::from);
    if token != holder.token {
        return Err(changed(name, token));
    }
    if !options.yes && !agreed(options, &holder)? {
        return Err(Failure::silent(NOTHING));
    }
    let scope = if options.session { ForceUnlock::Session } else { ForceUnlock::Lock };
    // Nobody but the one that was shown.
    let evicted = manager.force_unlock_if(name, token, scope).map_err(|error| match error {
        LockError::NotHeld { .. } => changed(name, token),
        error => error.into(),
    })?;
    let _ = manager.close();
    print(&[evicted], options.output)?;
    Ok(ExitCode::SUCCESS)
}

/// The lock has changed hands: its holder is not the one that was meant.
fn changed(name: &str, token: FencingToken) -> Failure {
    Failure::new(BUSY, format!("lock {name:?} is not held with token {token} any more; look again with info"))
}

/// Asks on the terminal.
fn agreed(options: &Unlock, holder: &LockInfo) -> Result<bool, Failure> {
    let whom = describe(holder);
    let input = std::io::stdin();
    if !input.is_terminal() {
        return Err(Failure::usage(format!(
            "lock {:?} is held by {whom}: evict it with --yes",
            options.name
        )));
    }
    let what = if options.session { "all locks of the session" } else { "the lock" };
    let mut out = std::io::stderr().lock();
    let _ = write!(out, "Lock {:?} is held by {whom}.\nTake {what} away? [y/N] ", options.name);
    let _ = out.flush();
    let mut answer = String::new();
    input.lock().read_line(&mut answer).map_err(|error| Failure::internal("reading the answer", error))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
