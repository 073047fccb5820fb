//! Waiting with a limit, and measurements of this process.

use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The interval at which a condition outside the process is checked.
const LOOK: Duration = Duration::from_millis(5);

/// Waits until `condition` holds; panics with `what` if it does not within `limit`.
#[track_caller]
pub(crate) fn eventually(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    eventually_some(limit, what, || condition().then_some(()));
}

/// Waits until `look` returns a value; panics with `what` if it does not within `limit`.
#[track_caller]
pub(crate) fn eventually_some<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(LOOK);
    }
}

/// Runs `action` on a thread of its own and returns its result; panics with `what` if it panics or does not end within
/// `limit`, in which case the thread is left behind.
#[track_caller]
pub(crate) fn within<T: Send + 'static>(
    limit: Duration,
    what: &str,
    action: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (done, outcome) = mpsc::channel();
    let thread = std::thread::Builder::new().name(format!("within:{what}"));
    let thread = thread.spawn(move || drop(done.send(action()))).expect("a thread can be spawned");
    match outcome.recv_timeout(limit) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("hangs for more than {limit:?}: {what}"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => panic!("panicked: {what}"),
        },
    }
}

/// The threads of this process whose name has this prefix. Linux stores the first 15 bytes of a name.
#[cfg(target_os = "linux")]
pub(crate) fn threads_named(prefix: &str) -> usize {
    thread_dirs().filter(|dir| name_of(dir).starts_with(prefix)).count()
}

/// The processor time of the threads of this process whose name has this prefix, without ended threads.
#[cfg(target_os = "linux")]
pub(crate) fn cpu_time_of_threads(prefix: &str) -> Duration {
    let nanos = thread_dirs().filter(|dir| name_of(dir).starts_with(prefix)).filter_map(|dir| {
        // The first number is the processor time in nanoseconds; `stat` counts in steps of 10 ms.
        let schedstat = std::fs::read_to_string(dir.join("schedstat")).ok()?;
        schedstat.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

#[cfg(target_os = "linux")]
fn thread_dirs() -> impl Iterator<Item = std::path::PathBuf> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux lists the threads");
    tasks.flatten().map(|entry| entry.path())
}

#[cfg(target_os = "linux")]
fn name_of(thread: &std::path::Path) -> String {
    // Empty for a thread that has ended meanwhile.
    std::fs::read_to_string(thread.join("comm")).unwrap_or_default()
}

/// The processor time of this process, including ended threads.
pub(crate) fn cpu_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), u32::try_from(spent.tv_nsec).unwrap_or(0))
}

/// The resident memory of this process, in bytes.
#[cfg(target_os = "linux")]
pub(crate) fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux reports the status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line for VmRSS");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number of kB") * 1024
}
