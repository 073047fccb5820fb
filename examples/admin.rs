//! An administrator's view: list holders and waiters, and end holds by force.

mod support;

use std::error::Error;

use etcd_lock::{ForceUnlock, LockError, LockManager, LockManagerOptions};

fn main() -> Result<(), Box<dyn Error>> {
    support::show_logs();
    let etcd = support::etcd();
    let connect = |owner: &str| {
        LockManager::connect(etcd.endpoints(), "/admin", LockManagerOptions::default().owner(owner))
    };
    let (billing, shipping, admin) = (connect("billing")?, connect("shipping")?, connect("admin")?);

    // Some locks to list.
    let invoices = billing.new_lock("invoices/2024")?.lock()?;
    let customers = billing.new_lock("customers")?.lock()?;
    let parcels = shipping.new_lock("parcels")?.lock()?;
    let waiting = shipping.new_lock("invoices/2024")?.enqueue()?;

    println!("\nall locks:");
    show(&admin, "")?;
    println!("\nthose that begin with \"invoices/\":");
    show(&admin, "invoices/")?;
    println!("\nis \"attic\" held? {}", admin.lock_info("attic")?.is_some());

    println!("\nforce-unlock one lock:");
    let evicted = admin.force_unlock("parcels", ForceUnlock::Lock)?;
    println!("   {} was evicted", evicted.owner.unwrap_or_default());
    let _ = parcels.done().recv();
    println!("   and was notified: {:?}", parcels.loss());

    println!("\nend a whole session with all its locks; the next in the queue acquires the lock:");
    admin.force_unlock("invoices/2024", ForceUnlock::Session)?;
    for guard in [&invoices, &customers] {
        let _ = guard.done().recv();
        println!("   {:?}: {:?}", guard.key(), guard.loss());
    }
    let guard = waiting.wait()?;
    println!("   shipping holds {:?}, token {}", guard.key(), guard.token());

    println!("\na free lock cannot be force-unlocked:");
    match admin.force_unlock("customers", ForceUnlock::Lock) {
        Err(error) => println!("   {}: {error}", error.code()),
        Ok(info) => println!("   unexpected: {info:?}"),
    }
    Ok(())
}

fn show(admin: &LockManager, prefix: &str) -> Result<(), LockError> {
    println!("   {:15} {:10} {:>6} {:>8} {:>8}", "lock", "owner", "token", "TTL", "waiting");
    for info in admin.list_locks(prefix)? {
        let owner = info.owner.unwrap_or_else(|| "?".into());
        let ttl = info.ttl_remaining.map_or("-".into(), |ttl| format!("{} s", ttl.as_secs()));
        println!("   {:15} {owner:10} {:>6} {ttl:>8} {:>8}", info.key, info.token, info.waiters);
    }
    Ok(())
}
