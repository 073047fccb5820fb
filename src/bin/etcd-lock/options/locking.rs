//! Options of the commands that take a lock or wait for it.

use std::time::Duration;

use clap::{Args, ValueEnum};

/// How long to wait for a lock, and what comes after that.
#[derive(Args, Debug, Default)]
pub(crate) struct Waiting {
    /// Do not wait: if somebody else holds the lock, exit with 75
    #[arg(short = 'n', long = "try", conflicts_with = "wait")]
    pub(crate) no_wait: bool,
    /// Wait so long at most, then exit with 75 [default: without a limit]
    #[arg(short, long, value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) wait: Option<Duration>,
    /// What a busy lock is
    #[arg(long, value_enum, default_value = "fail", value_name = "WHAT")]
    pub(crate) if_busy: IfBusy,
    /// The exit code for a busy lock [default: 75; 0 with --if-busy skip]
    #[arg(short = 'E', long, value_name = "CODE")]
    pub(crate) busy_code: Option<u8>,
}

/// How a lock is held, and who is told of it.
#[derive(Args, Debug)]
pub(crate) struct Holding {
    /// How long the lock outlives a machine that dies, and how long an outage of etcd may last
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) ttl: Duration,
    /// Who holds the lock, for others to see [default: <hostname>/<pid>]
    #[arg(long, value_name = "NAME")]
    pub(crate) owner: Option<String>,
    /// Say on standard error what happens
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Write events to this file descriptor, as lines of JSON
    #[arg(long, value_name = "N")]
    pub(crate) status_fd: Option<u32>,
}

/// What a busy lock is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum IfBusy {
    /// A failure: one line on standard error
    #[default]
    Fail,
    /// What was to be expected: silence, and exit code 0
    Skip,
}

/// Hold a lock until standard input is closed or a signal arrives
///
/// Prints one line of JSON when it holds the lock. Exits with 76 if the lock is lost.
#[derive(Args, Debug)]
pub(crate) struct Hold {
    /// The lock
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) waiting: Waiting,
    /// Why it is held, an address, a job's number: shown to others
    #[arg(long, value_name = "TEXT")]
    pub(crate) note: Option<String>,
    #[command(flatten)]
    pub(crate) holding: Holding,
}

/// Wait until a lock is free, without taking it
#[derive(Args, Debug)]
pub(crate) struct Wait {
    /// The lock
    pub(crate) name: String,
    /// Do not wait: if somebody holds the lock, exit with 75
    #[arg(short = 'n', long = "try", conflicts_with = "wait")]
    pub(crate) no_wait: bool,
    /// Wait so long at most, then exit with 75 [default: without a limit]
    #[arg(short, long, value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) wait: Option<Duration>,
}

/// Show who holds a lock, and the next change of that
///
/// Prints a line when it begins, and one when the holder, or its note, changes.
#[derive(Args, Debug)]
pub(crate) struct Watch {
    /// The lock
    pub(crate) name: String,
    /// Go on after the first change
    #[arg(short, long)]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// How a command that looks prints what it saw.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Output {
    /// Lines of JSON, also on a terminal
    #[arg(long, conflicts_with = "table")]
    pub(crate) json: bool,
    /// A table, also into a file or pipe
    #[arg(long)]
    pub(crate) table: bool,
}
