//! Many names held by one manager: their cost while nothing happens.
//!
//! Measured in a process of its own, so that the memory is only the manager's.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use etcd_lock::{LockGuard, LockManager, LockManagerOptions};
use serde::{Deserialize, Serialize};

use crate::numbers::{median, rounded};
use crate::options::Options;

/// Renewals are sent at a third of it.
const TTL: Duration = Duration::from_secs(6);
/// Long enough for five renewals.
const IDLE: Duration = Duration::from_secs(10);
/// The work that follows an acquisition ends within this time: a hold is watched from 100 ms after its grant.
const SETTLE: Duration = Duration::from_secs(1);

/// The targets.
pub(crate) const BYTES_EACH: f64 = 2_048.0;
pub(crate) const LIST_SECONDS: f64 = 0.5;
pub(crate) const CPU_PERCENT: f64 = 1.0;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) names: usize,
    pub(crate) seconds_to_take: f64,
    /// Resident memory; `None` outside Linux.
    pub(crate) bytes_each: Option<f64>,
    pub(crate) idle_seconds: f64,
    pub(crate) renewals_with_none: u64,
    pub(crate) renewals_with_all: u64,
    /// All requests except renewals.
    pub(crate) requests_with_all: u64,
    /// The share of one processor.
    pub(crate) cpu_percent_with_none: f64,
    pub(crate) cpu_percent_with_all: f64,
    pub(crate) seconds_to_list: f64,
    pub(crate) seconds_to_release: f64,
}

/// Measures in a child process.
pub(crate) fn measure(options: &Options, endpoints: &[String]) -> Held {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--names", &options.names.to_string(), "--hold-at", &endpoints.join(",")]);
    let output = child.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "the process that holds {} names failed", options.names);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The work of the child process.
pub(crate) fn hold(endpoints: &str, names: usize) {
    let endpoints: Vec<&str> = endpoints.split(',').collect();
    let options = LockManagerOptions::default().ttl(TTL).request_timeout(Duration::from_secs(30));
    let root = format!("/bench/held/{}", std::process::id());
    let manager = LockManager::connect(&endpoints, &root, options).unwrap();
    // Memory that is used from the first lock on does not count for the names.
    drop(take(&manager, "warm-up", 100));
    let none = Idle::watch(&manager);
    let before = resident_bytes();

    let start = Instant::now();
    let guards = take(&manager, "name", names);
    let seconds_to_take = start.elapsed().as_secs_f64();
    std::thread::sleep(SETTLE);
    let after = resident_bytes();
    let all = Idle::watch(&manager);

    let lists = (0..5).map(|_| {
        let start = Instant::now();
        assert_eq!(manager.list_locks("name").unwrap().len(), names);
        start.elapsed().as_secs_f64()
    });
    let seconds_to_list = median(lists.collect());
    assert_eq!(manager.stats().held, names as u64, "a name was lost");
    let start = Instant::now();
    drop(guards);
    while manager.stats().held > 0 || !manager.list_locks("").unwrap().is_empty() {}
    let held = Held {
        names,
        seconds_to_take: rounded(seconds_to_take),
        bytes_each: before.zip(after).map(|(before, after)| rounded((after - before) / names as f64)),
        idle_seconds: IDLE.as_secs_f64(),
        renewals_with_none: none.renewals,
        renewals_with_all: all.renewals,
        requests_with_all: all.requests,
        cpu_percent_with_none: rounded(none.cpu_percent),
        cpu_percent_with_all: rounded(all.cpu_percent),
        seconds_to_list: rounded(seconds_to_list),
        seconds_to_release: rounded(start.elapsed().as_secs_f64()),
    };
    println!("{}", serde_json::to_string(&held).unwrap());
}

fn take(manager: &LockManager, prefix: &str, names: usize) -> Vec<LockGuard> {
    let enqueue = |n| manager.new_lock(&format!("{prefix}-{n:06}")).unwrap().enqueue().unwrap();
    let mut guards = Vec::with_capacity(names);
    for start in (0..names).step_by(1_000) {
        let burst: Vec<_> = (start..names.min(start + 1_000)).map(enqueue).collect();
        guards.extend(burst.into_iter().map(|place| place.wait().unwrap()));
    }
    guards
}

/// The cost of a manager without calls.
struct Idle {
    renewals: u64,
    requests: u64,
    cpu_percent: f64,
}

impl Idle {
    fn watch(manager: &LockManager) -> Self {
        std::thread::sleep(SETTLE);
        let (before, start, cpu) = (manager.stats().rpcs, Instant::now(), cpu_time());
        std::thread::sleep(IDLE);
        let (cpu, elapsed, after) = (cpu_time() - cpu, start.elapsed(), manager.stats().rpcs);
        let renewals = after.lease_renew - before.lease_renew;
        Self {
            renewals,
            requests: after.total() - before.total() - renewals,
            cpu_percent: 100.0 * cpu.as_secs_f64() / elapsed.as_secs_f64(),
        }
    }
}

/// The processor time of this process.
fn cpu_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), u32::try_from(spent.tv_nsec).unwrap_or(0))
}

fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<f64>().ok().map(|kilobytes| kilobytes * 1_024.0)
}
