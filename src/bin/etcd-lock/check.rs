//! `check`: whether etcd and this machine are fit for locks.

mod finding;
mod members;
mod releases;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use etcd_lock::{LockError, LockManager};

use finding::{Finding, Level};

use crate::exit::Failure;
use crate::options::{Connection, Output};
use crate::output::{Line, age, print_lines};
use crate::percentiles::Percentiles;
use crate::settings::Settings;

/// How many commits are timed.
const COMMITS: usize = 20;

/// The shortest TTL that can be asked for: etcd raises it to its floor.
const SHORTEST: Duration = Duration::from_secs(1);

/// Commits that take longer on a quiet cluster make holds fragile and hand-overs slow.
const SLOW: Duration = Duration::from_millis(100);

/// A machine that wakes a thread later than this may end a hold late.
const LATE: Duration = Duration::from_millis(100);

pub(crate) fn check(connection: &Connection, output: Output) -> Result<ExitCode, Failure> {
    let settings = Settings::read(connection)?;
    let mut findings = members::look(&settings)?;
    let outcome = role(&settings, &mut findings);
    findings.push(wake_ups());
    let lines: Vec<Line> = findings.iter().map(Finding::line).collect();
    print_lines(&lines, output);
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Takes and releases a lock of its own, as any program with these settings would.
fn role(settings: &Settings, findings: &mut Vec<Finding>) -> Result<(), Failure> {
    let options = settings.options()?.ttl(SHORTEST);
    let failed = |findings: &mut Vec<Finding>, error: LockError| {
        findings.push(Finding::new(Level::Fail, "role", error.to_string()));
        Failure::from(error).quiet()
    };
    let manager = LockManager::connect(&settings.endpoints, &settings.root, options)
        .map_err(|error| failed(findings, error))?;
    let floor = manager.session().ttl;
    let commits = commits(&manager).map_err(|error| failed(findings, error))?;
    let _ = manager.close();
    let may = format!("may take locks below {}", settings.root);
    findings.push(Finding::new(Level::Ok, "role", may));
    findings.push(Finding::new(
        Level::Ok,
        "TTL floor",
        format!("{}: a shorter TTL is raised to it", age(floor)),
    ));
    let level = if commits.at(0.99) > SLOW { Level::Warn } else { Level::Ok };
    findings.push(Finding::new(level, "commit latency", format!("{commits} for one lock")));
    Ok(())
}

/// The times of some acquires.
fn commits(manager: &LockManager) -> Result<Percentiles, LockError> {
    let lock = manager.new_lock(&format!("etcd-lock-check/{}", std::process::id()))?;
    let mut times = Vec::with_capacity(COMMITS);
    for _ in 0..COMMITS {
        let start = Instant::now();
        let guard = lock.lock()?;
        times.push(start.elapsed());
        guard.unlock()?;
    }
    Ok(Percentiles::of(times))
}

/// How late this machine wakes up a thread that sleeps.
fn wake_ups() -> Finding {
    let nap = Duration::from_millis(5);
    let late = (0..40).map(|_| {
        let start = Instant::now();
        std::thread::sleep(nap);
        start.elapsed().saturating_sub(nap)
    });
    let worst = late.max().unwrap_or_default();
    let level = if worst > LATE { Level::Warn } else { Level::Ok };
    Finding::new(level, "clock", format!("this machine wakes a sleeping thread at most {worst:.1?} late"))
}
