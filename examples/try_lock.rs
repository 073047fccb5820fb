//! A job that must run once, on any one of several machines: the first one does it, the others skip it.

mod support;

use std::error::Error;
use std::thread;
use std::time::{Duration, Instant};

use etcd_lock::{LockError, LockManager, LockManagerOptions};

fn main() -> Result<(), Box<dyn Error>> {
    support::show_logs();
    let etcd = support::etcd();

    // Each thread stands for a machine, with its own manager and so its own session.
    let machines: Vec<_> = (1..=3)
        .map(|number| {
            let endpoints = etcd.endpoints().to_vec();
            thread::spawn(move || nightly_job(&endpoints, number))
        })
        .collect();
    let mut runs = 0;
    for machine in machines {
        runs += usize::from(machine.join().map_err(|_| "a machine panicked")??);
    }
    println!("\nthe job ran {runs} time(s)");
    Ok(())
}

/// Returns whether this machine did the job.
fn nightly_job(endpoints: &[String], number: u32) -> Result<bool, LockError> {
    let owner = format!("machine {number}");
    let options = LockManagerOptions::default().owner(&owner);
    let manager = LockManager::connect(endpoints, "/try-lock", options)?;
    let start = Instant::now();
    // Never waits for the holder: one request to etcd.
    let Some(guard) = manager.new_lock("nightly")?.try_lock()? else {
        let holder = manager.lock_info("nightly")?.and_then(|info| info.owner);
        let holder = holder.as_deref().unwrap_or("a holder that has released it since");
        println!("{owner}: skipped, {holder} holds the lock (known after {:.1?})", start.elapsed());
        return Ok(false);
    };
    println!("{owner}: acquired, with token {} (after {:.1?})", guard.token(), start.elapsed());
    thread::sleep(Duration::from_secs(1));
    // Dropping would release it, too; unlock() also reports whether the lock was held to the end.
    guard.unlock()?;
    println!("{owner}: done");
    Ok(true)
}
