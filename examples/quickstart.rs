//! Something to watch for five seconds: two programs contend for one lock, hand it over, and one of them loses it.

mod support;

use std::error::Error;
use std::thread::sleep;
use std::time::{Duration, Instant};

use etcd_lock::{ForceUnlock, LockError, LockManager, LockManagerOptions};

fn main() -> Result<(), Box<dyn Error>> {
    support::show_logs();
    let etcd = support::etcd();
    // Each manager stands for a program of its own: it has its own session with etcd.
    let connect = |owner: &str| {
        LockManager::connect(etcd.endpoints(), "/quickstart", LockManagerOptions::default().owner(owner))
    };
    let (alice, bob) = (connect("alice")?, connect("bob")?);

    println!("\n1. Alice takes the lock \"report\".");
    let start = Instant::now();
    let mut guard = alice.new_lock("report")?.lock()?;
    println!("   It took {}. Her fencing token is {}.", ms(start), guard.token());

    println!("\n2. Bob wants it too. He waits in the queue while Alice works for a second.");
    let pending = bob.new_lock("report")?.enqueue()?;
    sleep(Duration::from_secs(1));
    if let Some(info) = alice.lock_info("report")? {
        let owner = info.owner.unwrap_or_default();
        println!("   etcd says: {:?} is held by {owner}, {} waiting.", info.key, info.waiters);
    }
    let start = Instant::now();
    drop(guard);
    guard = pending.wait()?;
    println!("   Alice let go, and {} later it is Bob's. His token is {}.", ms(start), guard.token());

    println!("\n3. They hand it back and forth.");
    for next in [&alice, &bob, &alice, &bob] {
        let pending = next.new_lock("report")?.enqueue()?;
        sleep(Duration::from_millis(250));
        let start = Instant::now();
        drop(guard);
        guard = pending.wait()?;
        println!("   {:>8}   token {}", ms(start), guard.token());
    }

    println!("\n4. Bob has it, for {:.1?} even if etcd never answered again.", guard.remaining());
    println!("   Now somebody takes the lock away from him by force.");
    let start = Instant::now();
    alice.force_unlock("report", ForceUnlock::Lock)?;
    // done() carries nothing: it closes when the hold is over.
    let _ = guard.done().recv();
    println!("   Bob was told after {}. He asks why: {:?}.", ms(start), guard.loss());
    match guard.ensure(Duration::from_secs(1)) {
        Err(error @ LockError::Expired { .. }) => println!("   So he does not write any more: {error}."),
        other => println!("   That should not be: {other:?}"),
    }

    println!("\n5. Both close.");
    alice.close()?;
    bob.close()?;
    Ok(())
}

fn ms(start: Instant) -> String {
    format!("{:.1} ms", start.elapsed().as_secs_f64() * 1e3)
}
