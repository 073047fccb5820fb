//! At most three downloads at a time, whichever processes they are in; a large one counts twice.

mod support;

use std::error::Error;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use etcd_lock::{LockError, LockManager, LockManagerOptions, LockOptions, Mode};

const LIMIT: u32 = 3;

/// Permits in use, as this process sees it.
static RUNNING: AtomicU32 = AtomicU32::new(0);

fn main() -> Result<(), Box<dyn Error>> {
    support::show_logs();
    let etcd = support::etcd();
    // Two programs; here they are managers of one process.
    let connect = |owner: &str| {
        LockManager::connect(etcd.endpoints(), "/semaphore", LockManagerOptions::default().owner(owner))
    };
    let programs = [connect("north")?, connect("south")?];

    println!("\n1. Eight downloads in two programs, of which two count twice.");
    thread::scope(|scope| {
        let downloads: Vec<_> = (0..8)
            .map(|number| {
                let take = if number % 4 == 3 { 2 } else { 1 };
                let program = &programs[number % 2];
                scope.spawn(move || download(program, number, take))
            })
            .collect();
        downloads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Ok(())))
    })?;

    println!("\n2. A mutex on the same key waits until all permits are back: for maintenance, say.");
    let permit = programs[0].new_semaphore("downloads", LIMIT)?.lock()?;
    let maintenance = programs[1].new_lock("downloads")?;
    println!("   while a download runs: {}", outcome(maintenance.try_lock()?.is_some()));
    drop(permit);
    let guard = maintenance.lock_timeout(Duration::from_secs(5))?;
    println!("   afterwards: {}", outcome(guard.is_held()));
    Ok(())
}

fn download(program: &LockManager, number: usize, take: u32) -> Result<(), LockError> {
    let options = LockOptions::default().mode(Mode::Permits { take, limit: LIMIT });
    let guard = program.new_lock_with("downloads", options)?.lock()?;
    let running = RUNNING.fetch_add(take, Ordering::SeqCst) + take;
    println!("   download {number} takes {}; {running} of {LIMIT} permits are in use", guard.mode());
    thread::sleep(Duration::from_millis(100));
    RUNNING.fetch_sub(take, Ordering::SeqCst);
    guard.unlock()
}

fn outcome(taken: bool) -> &'static str {
    if taken { "maintenance has begun" } else { "maintenance waits" }
}
