//! `list`, `info` and `queue`: with the permission to read only.

use std::process::ExitCode;

use crate::exit::{Failure, NOTHING};
use crate::options::{Connection, List, Name};
use crate::output::print;
use crate::settings::Settings;

pub(crate) fn list(connection: &Connection, options: &List) -> Result<ExitCode, Failure> {
    let viewer = Settings::read(connection)?.view()?;
    print(&viewer.list_locks(&options.prefix)?, options.output)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn info(connection: &Connection, options: &Name) -> Result<ExitCode, Failure> {
    let viewer = Settings::read(connection)?.view()?;
    match viewer.lock_info(&options.name)? {
        Some(info) => print(&[info], options.output).map(|()| ExitCode::SUCCESS),
        None => Err(Failure::new(NOTHING, format!("lock {:?} is free", options.name))),
    }
}

pub(crate) fn queue(connection: &Connection, options: &Name) -> Result<ExitCode, Failure> {
    let viewer = Settings::read(connection)?.view()?;
    print(&viewer.queue(&options.name)?, options.output)?;
    Ok(ExitCode::SUCCESS)
}
