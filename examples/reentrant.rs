//! The thread that holds a lock may take it again; other threads wait. A clone takes the hold to another thread.

mod support;

use std::error::Error;
use std::thread;
use std::time::Duration;

use etcd_lock::{LockError, LockManager, LockManagerOptions};

fn main() -> Result<(), Box<dyn Error>> {
    support::show_logs();
    let etcd = support::etcd();
    let manager = LockManager::connect(etcd.endpoints(), "/reentrant", LockManagerOptions::default())?;

    println!("\n1. transfer() takes the lock, and calls deposit(), which takes it too.");
    transfer(&manager)?;

    println!("\n2. Another thread is another caller, also within this process.");
    let lock = manager.new_lock("account")?;
    let guard = lock.lock()?;
    let other = lock.clone();
    let tried = thread::spawn(move || other.try_lock().map(|got| got.is_some()));
    println!("   could it take the lock? {}", tried.join().map_err(|_| "a panic")??);

    println!("\n3. A clone of the guard is one more hold, and may go to another thread.");
    let helper = {
        let hold = guard.clone();
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            println!("   the helper is done, under token {}", hold.token());
        })
    };
    drop(guard);
    println!("   the main thread let go; still locked: {}", lock.is_locked());
    helper.join().map_err(|_| "a panic")?;
    println!("   the last one is out; still locked: {}", lock.is_locked());
    Ok(())
}

fn transfer(manager: &LockManager) -> Result<(), LockError> {
    let guard = manager.new_lock("account")?.lock()?;
    println!("   transfer() has token {}", guard.token());
    deposit(manager)?;
    // Only the last guard out releases.
    println!("   back in transfer(), still held: {}", guard.is_held());
    Ok(())
}

fn deposit(manager: &LockManager) -> Result<(), LockError> {
    // The same key is the same lock, whatever handle it comes from. No request is sent for this.
    let guard = manager.new_lock("account")?.lock()?;
    println!("   deposit()  has token {}", guard.token());
    Ok(())
}
