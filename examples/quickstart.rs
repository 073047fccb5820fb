//! A demonstration of five seconds: two programs contend for one lock, hand it over, and one of them loses it. With
//! `--memory` it runs without etcd, on a store within this program.

mod support;

use std::error::Error;
use std::thread::sleep;
use std::time::{Duration, Instant};

use etcd_lock::memory::MemoryStore;
use etcd_lock::{ForceUnlock, LockManager, LockManagerOptions};

fn main() -> Result<(), Box<dyn Error>> {
    support::show_logs();
    let memory = wants_memory()?;
    let (store, etcd) = (MemoryStore::new(), (!memory).then(support::etcd));
    // Each manager stands for a program: it has its own session.
    let connect = |owner: &str| {
        let options = LockManagerOptions::default().owner(owner);
        match &etcd {
            Some(etcd) => LockManager::connect(etcd.endpoints(), "/quickstart", options),
            None => LockManager::in_memory(&store, "/quickstart", options),
        }
    };
    let (alice, bob) = (connect("alice")?, connect("bob")?);

    println!("\n1. Alice acquires the lock \"report\".");
    let start = Instant::now();
    let mut guard = alice.new_lock("report")?.lock()?;
    println!("   It took {}. Her fencing token is {}.", ms(start), guard.token());

    println!("\n2. Bob wants it too. He waits in the queue while Alice works for a second.");
    let pending = bob.new_lock("report")?.enqueue()?;
    sleep(Duration::from_secs(1));
    if let Some(info) = alice.lock_info("report")? {
        let owner = info.owner.unwrap_or_default();
        println!(
            "   Any program can see that {:?} is held by {owner}, with {} waiting.",
            info.key, info.waiters
        );
    }
    let start = Instant::now();
    drop(guard);
    guard = pending.wait()?;
    println!("   Alice released it, and {} later Bob holds it. His token is {}.", ms(start), guard.token());

    println!("\n3. They hand it back and forth.");
    for next in [&alice, &bob, &alice, &bob] {
        let pending = next.new_lock("report")?.enqueue()?;
        sleep(Duration::from_millis(250));
        let start = Instant::now();
        drop(guard);
        guard = pending.wait()?;
        println!("   {:>8}   token {}", ms(start), guard.token());
    }

    println!("\n4. Bob holds it, for another {:.1?} even if etcd never answers again.", guard.remaining());
    println!("   Now an administrator force-unlocks it.");
    let start = Instant::now();
    alice.force_unlock("report", ForceUnlock::Lock)?;
    // done() carries no messages: it disconnects when the hold is over.
    let _ = guard.done().recv();
    println!("   Bob was notified after {}. The reason: {:?}.", ms(start), guard.loss());
    if let Err(error) = guard.ensure(Duration::from_secs(1)) {
        println!("   So he must not write any more: {error}.");
    }

    println!("\n5. Both close.");
    alice.close()?;
    bob.close()?;
    Ok(())
}

/// Whether `--memory`, the only argument, is given.
fn wants_memory() -> Result<bool, String> {
    match std::env::args().skip(1).find(|arg| arg != "--memory") {
        Some(unknown) => Err(format!("unknown argument {unknown:?}; the only one is --memory")),
        None => Ok(std::env::args().len() > 1),
    }
}

fn ms(start: Instant) -> String {
    format!("{:.1} ms", start.elapsed().as_secs_f64() * 1e3)
}
