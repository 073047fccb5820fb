//! Exit codes, and the one line that says why a command failed.

use std::fmt;
use std::process::ExitCode;

use etcd_lock::{ErrorCode, LockError};

use crate::say::say;

/// There is nothing: the lock is free, nobody was evicted.
pub(crate) const NOTHING: u8 = 1;
/// The command line is wrong.
pub(crate) const USAGE: u8 = 64;
/// etcd cannot be reached.
pub(crate) const UNAVAILABLE: u8 = 69;
/// A defect, or a system call that failed.
pub(crate) const INTERNAL: u8 = 70;
/// The lock is held by somebody else.
pub(crate) const BUSY: u8 = 75;
/// The lock was lost while it was held.
pub(crate) const LOST: u8 = 76;
/// etcd refuses the user.
pub(crate) const DENIED: u8 = 77;
/// A setting is invalid, or a file that one names cannot be read.
pub(crate) const CONFIG: u8 = 78;
/// `--max-run` ended the command; the number that `timeout` uses.
pub(crate) const MAX_RUN: u8 = 124;
/// The command was found but cannot be executed; the number that shells use.
pub(crate) const CANNOT_EXECUTE: u8 = 126;
/// There is no such command; the number that shells use.
pub(crate) const NOT_FOUND: u8 = 127;

/// The exit codes as `--help` shows them.
pub(crate) const HELP: &str = "\
Exit codes:
  0-255  of `run`: the command's own exit code
  128+N  the command was ended by signal N; or etcd-lock was, before it held the lock
    1    nothing: the lock is free (`info`, `unlock`)
   64    the command line is wrong
   69    etcd cannot be reached
   70    internal error
   75    busy: somebody else holds the lock (-E changes it, --if-busy skip makes it 0)
   76    the lock was lost
   77    etcd refuses the user: authentication or permission
   78    a setting is invalid, or a file that it names cannot be read
  124    --max-run ended the command
  126    the command cannot be executed
  127    the command does not exist";

/// What `main` returns for a signal.
pub(crate) fn of_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// Why a command of this program failed.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    /// `None` where the caller asked for silence.
    message: Option<String>,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: Some(message.into()) }
    }

    pub(crate) fn silent(code: u8) -> Self {
        Self { code, message: None }
    }

    /// The same without a message, for one that was shown in another way.
    pub(crate) fn quiet(self) -> Self {
        Self { message: None, ..self }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(USAGE, message)
    }

    /// A system call that failed.
    pub(crate) fn internal(doing: &str, error: impl fmt::Display) -> Self {
        Self::new(INTERNAL, format!("{doing}: {error}"))
    }

    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    /// Prints the line and returns the code.
    pub(crate) fn report(self) -> ExitCode {
        if let Some(message) = &self.message {
            say(message);
        }
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message.as_deref().unwrap_or_default())
    }
}

impl From<LockError> for Failure {
    fn from(error: LockError) -> Self {
        let code = match error.code() {
            ErrorCode::LockTimeout | ErrorCode::LockAlreadyHeld => BUSY,
            ErrorCode::LockExpired | ErrorCode::InsufficientTime => LOST,
            ErrorCode::LockNotHeld => NOTHING,
            ErrorCode::InvalidKey | ErrorCode::InvalidOptions => CONFIG,
            ErrorCode::Unavailable | ErrorCode::ClusterChanged | ErrorCode::NoSpace => UNAVAILABLE,
            ErrorCode::Unauthenticated | ErrorCode::PermissionDenied => DENIED,
            _ => INTERNAL,
        };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_code_is_in_the_help() {
        for code in [
            NOTHING,
            USAGE,
            UNAVAILABLE,
            INTERNAL,
            BUSY,
            LOST,
            DENIED,
            CONFIG,
            MAX_RUN,
            CANNOT_EXECUTE,
            NOT_FOUND,
        ] {
            let line = format!("{code:>5}");
            assert!(HELP.lines().any(|help| help.starts_with(&line)), "{code}");
        }
        assert_eq!(of_signal(15), 143);
    }
}
