//! All the ways to stop waiting: a timeout, a deadline, a number of retries, a cancel channel.

mod support;

use std::error::Error;
use std::thread;
use std::time::{Duration, Instant};

use etcd_lock::crossbeam_channel;
use etcd_lock::{LockError, LockManager, LockManagerOptions, LockOptions};

fn main() -> Result<(), Box<dyn Error>> {
    support::show_logs();
    let etcd = support::etcd();
    let connect = |owner: &str| {
        LockManager::connect(etcd.endpoints(), "/timeout", LockManagerOptions::default().owner(owner))
    };
    let (holder, waiter) = (connect("holder")?, connect("waiter")?);
    let held = holder.new_lock("printer")?.lock()?;
    let lock = waiter.new_lock("printer")?;

    println!("\n1. lock_timeout: at most 300 ms from now");
    let start = Instant::now();
    tell(start, lock.lock_timeout(Duration::from_millis(300)));

    println!("\n2. lock_deadline: several calls share one limit");
    let start = Instant::now();
    tell(start, lock.lock_deadline(start + Duration::from_millis(300)));

    println!("\n3. retries: three times 100 ms");
    let options = LockOptions::default().retry_interval(Duration::from_millis(100)).max_retries(3);
    let patient = waiter.new_lock_with("printer", options)?;
    let start = Instant::now();
    tell(start, patient.lock());

    println!("\n4. lock_or_cancel: until the cancel channel disconnects");
    let (cancel, cancelled) = crossbeam_channel::bounded::<()>(0);
    let caller = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        drop(cancel);
    });
    let start = Instant::now();
    tell(start, lock.lock_or_cancel(&cancelled));
    caller.join().map_err(|_| "a panic")?;

    println!("\n5. Calls that gave up have left the queue, so the next call acquires the lock at once.");
    held.unlock()?;
    let start = Instant::now();
    tell(start, lock.lock_timeout(Duration::from_secs(5)));
    Ok(())
}

fn tell<T>(start: Instant, result: Result<T, LockError>) {
    let after = start.elapsed().as_millis();
    match result {
        Ok(_guard) => println!("   after {after} ms: acquired"),
        Err(error) => println!("   after {after} ms: {} - {error}", error.code()),
    }
}
