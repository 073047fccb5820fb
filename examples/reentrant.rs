//! Functions that call each other under one lock: with a reentrant lock the holding thread can acquire it again.

mod support;

use std::error::Error;
use std::thread;
use std::time::Duration;

use etcd_lock::{LockError, LockManager, LockManagerOptions, ReentrantLock};

fn main() -> Result<(), Box<dyn Error>> {
    support::show_logs();
    let etcd = support::etcd();
    let manager = LockManager::connect(etcd.endpoints(), "/reentrant", LockManagerOptions::default())?;
    let lock = manager.new_reentrant_lock("account")?;

    println!("\n1. transfer() acquires the lock, and calls deposit(), which acquires it, too.");
    transfer(&lock)?;

    println!("\n2. Another thread is another caller, also within this process.");
    let guard = lock.lock()?;
    let other = lock.clone();
    let tried = thread::spawn(move || other.try_lock().map(|got| got.is_some()));
    println!("   could it acquire the lock? {}", tried.join().map_err(|_| "a panic")??);

    println!("\n3. A shared guard extends the hold on another thread, and allows no re-entry.");
    let helper = {
        let shared = guard.share();
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            println!("   the helper is done, under token {}", shared.token());
        })
    };
    drop(guard);
    println!("   the main thread dropped its guard; still locked: {}", lock.is_locked());
    helper.join().map_err(|_| "a panic")?;
    println!("   the last guard is dropped; still locked: {}", lock.is_locked());
    Ok(())
}

fn transfer(lock: &ReentrantLock) -> Result<(), LockError> {
    let guard = lock.lock()?;
    println!("   transfer() has token {}", guard.token());
    deposit(lock)?;
    // Only dropping the last guard releases the lock.
    println!("   back in transfer(), still held: {}", guard.is_held());
    Ok(())
}

fn deposit(lock: &ReentrantLock) -> Result<(), LockError> {
    // Sends no request.
    let guard = lock.lock()?;
    println!("   deposit()  has token {}", guard.token());
    Ok(())
}
