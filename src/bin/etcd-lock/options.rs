//! The command line.

mod connection;
mod locking;
mod running;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

pub(crate) use connection::Connection;
pub(crate) use locking::{Hold, Holding, IfBusy, Output, Wait, Waiting, Watch};
pub(crate) use running::{Ending, Lead, OnLoss, Run};

use crate::exit::{self, USAGE};
use crate::say::say;

/// Runs programs under locks in etcd, and shows who holds which lock.
///
/// The locks are those of the library etcd-lock, of Go's `concurrency.Mutex` and of `etcdctl lock`: below one root, all
/// of them exclude each other.
#[derive(Debug, Parser)]
#[command(name = "etcd-lock", version, after_help = exit::HELP, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) connection: Connection,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(Run),
    Hold(Hold),
    Lead(Lead),
    List(List),
    /// Show who holds a lock; exits with 1 if nobody does
    Info(Name),
    /// Show who holds a lock, and who waits for it, in their order
    Queue(Name),
    Watch(Watch),
    Wait(Wait),
    Unlock(Unlock),
    /// Look whether etcd and this machine are fit for locks
    ///
    /// Shows the members with the known defects of their releases, whether the user may take locks below the root, the
    /// shortest TTL, and how long a commit takes. Exits with 69 or 77 if no lock can be taken.
    Check {
        #[command(flatten)]
        output: Output,
    },
    Bench(Bench),
    /// Print the completion script of a shell
    Completions {
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write the pages of all commands to a folder
    Man {
        folder: Option<PathBuf>,
    },
}

/// List the locks that are held, with their holders
#[derive(Args, Debug)]
pub(crate) struct List {
    /// Only locks whose names begin so
    #[arg(default_value = "", hide_default_value = true)]
    pub(crate) prefix: String,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// One lock to look at.
#[derive(Args, Debug)]
pub(crate) struct Name {
    /// The lock
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Take a lock away from its holder
///
/// A holder that uses the library is told within milliseconds, but after the fact: for that long, two may believe that
/// they hold the lock.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("whom").required(true))]
pub(crate) struct Unlock {
    /// The lock
    pub(crate) name: String,
    /// Only from the holder with this token (see `info`)
    #[arg(long, group = "whom", value_name = "N")]
    pub(crate) token: Option<u64>,
    /// From whoever holds it
    #[arg(long, group = "whom")]
    pub(crate) any: bool,
    /// Revoke the holder's lease: all locks of its session
    #[arg(long)]
    pub(crate) session: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Measure what this etcd gives to locks
///
/// It loads the cluster for four times the given time, with locks below the root only.
#[derive(Args, Debug)]
pub(crate) struct Bench {
    /// The lock, and the beginning of the names of others [default: etcd-lock-bench/<pid>]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// How many threads take locks of their own
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub(crate) threads: u32,
    /// How long each row is measured
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) time: Duration,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// The command line, or the exit code of a program that ends here.
pub(crate) fn parse() -> Result<Cli, ExitCode> {
    // A variable that is empty is as good as none.
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    let command = Cli::command().mut_args(|arg| match arg.get_env() {
        Some(name) if is_empty(name) => arg.env(Resettable::Reset),
        _ => arg,
    });
    let parsed = command.try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.map_err(|error| {
        if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        say(&one_line(&error));
        ExitCode::from(USAGE)
    })
}

/// clap explains in paragraphs. The first one is the mistake, and sometimes there is a tip.
fn one_line(error: &clap::Error) -> String {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand
    ) {
        return "a command is missing, such as run or list; see --help".into();
    }
    let text = error.to_string();
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mistake: Vec<&str> = lines()
        .take_while(|line| !["Usage:", "tip:", "For more"].iter().any(|end| line.starts_with(end)))
        .collect();
    let mistake = mistake.join(" ");
    let tip = lines().find_map(|line| line.strip_prefix("tip: ")).map(|tip| format!("; {tip}"));
    format!("{}{}; see --help", mistake.trim_start_matches("error: "), tip.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(words: &[&str]) -> String {
        let error = Cli::try_parse_from([&["etcd-lock"], words].concat()).unwrap_err();
        one_line(&error)
    }

    #[test]
    fn the_declarations_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_mistake_is_one_line_that_says_what_to_do() {
        for words in [
            &["run", "jobs"][..],
            &["run", "--", "true"],
            &["run", "jobs", "--tll", "3s", "--", "true"],
            &["run", "jobs", "--ttl", "3", "--", "true"],
            &["run", "jobs", "-n", "-w", "3s", "--", "true"],
            &["run", "jobs", "--on-loss", "pray", "--", "true"],
            &["unlock", "jobs"],
            &["unlock", "jobs", "--any", "--token", "7"],
            &["frobnicate"],
            &[],
        ] {
            let line = refused(words);
            assert!(!line.contains('\n') && line.ends_with("--help"), "{words:?}: {line}");
        }
        assert_eq!(
            refused(&["run", "jobs", "--tll", "3s", "--", "true"]),
            "unexpected argument '--tll' found; a similar argument exists: '--ttl'; see --help"
        );
    }
}
