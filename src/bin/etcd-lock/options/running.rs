//! Options of `run`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use super::locking::{Holding, Waiting};
use crate::exit::{self, Failure};

/// Run a command under a lock
///
/// The command and its whole process group are dead before anybody else can have the lock. It is told with SIGTERM when
/// etcd has been silent for so long that only the grace is left, and killed when that is over.
///
/// Its environment has ETCD_LOCK_NAME, KEY, TOKEN, LEASE, TTL, OWNER, MODE, ENDPOINTS and, for `etcdctl txn`, ETCD_LOCK_REV
/// (the token). A token never falls: let the receiver of the command's writes refuse smaller ones.
#[derive(Args, Debug)]
#[command(after_help = exit::HELP)]
pub(crate) struct Run {
    /// The lock
    pub(crate) name: String,
    /// The command and its arguments, after `--`. No shell reads them
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
    #[command(flatten)]
    pub(crate) waiting: Waiting,
    /// Why it is held, an address, a job's number: shown to others
    #[arg(long, value_name = "TEXT")]
    pub(crate) note: Option<String>,
    #[command(flatten)]
    pub(crate) holding: Holding,
    #[command(flatten)]
    pub(crate) ending: Ending,
    /// End the command after this time, and exit with 124
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) max_run: Option<Duration>,
    /// Hold the lock at least so long, for jobs that other machines start a little later
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) hold_at_least: Option<Duration>,
}

/// Run a command while this program is the leader, again and again
///
/// Campaigns for the lock, and runs the command while it is held. When the lock is lost the command is killed as with
/// `run`, and this program campaigns again. When the command ends by itself, so does this program, with its exit code.
/// `info` and `watch` show the leader with its value.
#[derive(Args, Debug)]
#[command(after_help = exit::HELP)]
pub(crate) struct Lead {
    /// The lock
    pub(crate) name: String,
    /// What others see of the leader, such as its address
    #[arg(long, value_name = "TEXT")]
    pub(crate) value: String,
    /// The command and its arguments, after `--`. No shell reads them
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
    #[command(flatten)]
    pub(crate) holding: Holding,
    #[command(flatten)]
    pub(crate) ending: Ending,
}

/// How the command ends when its lock does.
#[derive(Args, Debug)]
pub(crate) struct Ending {
    /// What the command gets for an orderly end, before it is killed; at most a third of the TTL
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) grace: Duration,
    /// What happens when the lock is lost: kill, ignore, or exec:PROGRAM, which is run in place of the SIGTERM
    #[arg(long, default_value = "kill", value_name = "WHAT")]
    pub(crate) on_loss: OnLoss,
}

impl Ending {
    /// The part of a hold that is kept for the end of the command.
    pub(crate) fn reserve(&self) -> Duration {
        if self.on_loss == OnLoss::Ignore { Duration::ZERO } else { self.grace }
    }

    /// The grace must leave time for renewals, so that a healthy etcd never costs the command its lock.
    pub(crate) fn check(&self, ttl: Duration) -> Result<(), Failure> {
        let least = self.reserve().saturating_mul(3);
        if ttl < least {
            // As an argument: humantime writes spaces, which a shell would split.
            let show = |time: Duration| humantime::format_duration(time).to_string().replace(' ', "");
            return Err(Failure::usage(format!(
                "the TTL of {} is less than three times the grace of {}: use --ttl {} or --grace {}",
                show(ttl),
                show(self.grace),
                show(least),
                show(Duration::from_millis(u64::try_from(ttl.as_millis() / 3).unwrap_or(u64::MAX))),
            )));
        }
        Ok(())
    }
}

/// What happens to the command when its lock is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OnLoss {
    /// SIGTERM, and SIGKILL when the time is over.
    Kill,
    /// Nothing.
    Ignore,
    /// This program instead of the SIGTERM, and SIGKILL when the time is over.
    Exec(PathBuf),
}

impl FromStr for OnLoss {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("exec:")) {
            ("kill", _) => Ok(Self::Kill),
            ("ignore", _) => Ok(Self::Ignore),
            (_, Some(program)) if !program.is_empty() => Ok(Self::Exec(program.into())),
            _ => Err("use kill, ignore, or exec:PROGRAM".into()),
        }
    }
}
