//! `unlock`: takes a lock away from its holder.

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;

use etcd_lock::{ForceUnlock, LockInfo};

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
    if let Some(token) = options.token.filter(|&token| token != holder.token.as_u64()) {
        return Err(Failure::new(
            BUSY,
            format!("lock {name:?} is not held with token {token} any more, but by {}", describe(&holder)),
        ));
    }
    if !options.yes && !agreed(options, &holder)? {
        return Err(Failure::silent(NOTHING));
    }
    let scope = if options.session { ForceUnlock::Session } else { ForceUnlock::Lock };
    let evicted = manager.force_unlock(name, scope)?;
    let _ = manager.close();
    print(&[evicted], options.output)?;
    Ok(ExitCode::SUCCESS)
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
