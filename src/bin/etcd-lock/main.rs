//! `etcd-lock`: runs programs under locks, and shows who holds which lock.
//!
//! It uses the library's public API only. [`run`] has the promise: the command and its whole process group are dead
//! before anybody else can have the lock.

#[cfg(target_os = "linux")]
mod options;
#[cfg(target_os = "linux")]
mod settings;

#[cfg(target_os = "linux")]
mod run;

#[cfg(target_os = "linux")]
mod hold;
#[cfg(target_os = "linux")]
mod wait;

#[cfg(target_os = "linux")]
mod bench;
#[cfg(target_os = "linux")]
mod check;
#[cfg(target_os = "linux")]
mod show;
#[cfg(target_os = "linux")]
mod unlock;

#[cfg(target_os = "linux")]
mod acquire;
#[cfg(target_os = "linux")]
mod client;
#[cfg(target_os = "linux")]
mod environment;
#[cfg(target_os = "linux")]
mod exit;
#[cfg(target_os = "linux")]
mod generate;
#[cfg(target_os = "linux")]
mod output;
#[cfg(target_os = "linux")]
mod percentiles;
#[cfg(target_os = "linux")]
mod report;
#[cfg(target_os = "linux")]
mod say;
#[cfg(target_os = "linux")]
mod signals;

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    if let Some(code) = run::as_helper() {
        return code;
    }
    let cli = match options::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let outcome = match cli.command {
        options::Command::Run(run) => run::run(&cli.connection, &run),
        options::Command::Hold(hold) => hold::hold(&cli.connection, &hold),
        options::Command::Lead(lead) => run::lead(&cli.connection, &lead),
        options::Command::Watch(watch) => wait::watch(&cli.connection, &watch),
        options::Command::Wait(wait) => wait::wait(&cli.connection, &wait),
        options::Command::List(list) => show::list(&cli.connection, &list),
        options::Command::Info(info) => show::info(&cli.connection, &info),
        options::Command::Queue(queue) => show::queue(&cli.connection, &queue),
        options::Command::Unlock(unlock) => unlock::unlock(&cli.connection, &unlock),
        options::Command::Check { output } => check::check(&cli.connection, output),
        options::Command::Bench(bench) => bench::bench(&cli.connection, &bench),
        options::Command::Completions { shell } => generate::completions(shell),
        options::Command::Man { folder } => generate::man(folder.as_deref()),
    };
    outcome.unwrap_or_else(|failure| failure.report())
}

/// The promise needs the parent-death signal, a clock that counts the time asleep, and `/proc`.
#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("etcd-lock: the command line needs Linux; the library does not");
    ExitCode::from(78)
}
