//! `wait`: until a lock is free.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::acquire::describe;
use crate::exit::{self, BUSY, Failure};
use crate::options::{Connection, Wait};
use crate::settings::Settings;
use crate::signals::{ends_a_wait, listen};

/// How often the lock is looked at: each look is one small read.
const LOOK: Duration = Duration::from_millis(250);

pub(crate) fn wait(connection: &Connection, options: &Wait) -> Result<ExitCode, Failure> {
    let signals = listen()?;
    let viewer = Settings::read(connection)?.view()?;
    let limit = if options.no_wait { Some(Duration::ZERO) } else { options.wait };
    let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
    loop {
        let Some(holder) = viewer.lock_info(&options.name)? else { return Ok(ExitCode::SUCCESS) };
        let left = deadline.map_or(LOOK, |deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Err(Failure::new(
                BUSY,
                format!("lock {:?} is held by {}", options.name, describe(&holder)),
            ));
        }
        if let Ok(signal) = signals.recv_timeout(left.min(LOOK))
            && ends_a_wait(signal)
        {
            return Err(Failure::silent(exit::of_signal(signal)));
        }
    }
}
