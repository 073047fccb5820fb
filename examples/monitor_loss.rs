//! One thread that monitors many holds and raises an alarm when one is lost.

mod support;

use std::error::Error;
use std::thread;
use std::time::Duration;

use etcd_lock::crossbeam_channel::Select;
use etcd_lock::{ForceUnlock, LockGuard, LockManager, LockManagerOptions};

fn main() -> Result<(), Box<dyn Error>> {
    support::show_logs();
    let etcd = support::etcd();
    let connect = |owner: &str| {
        LockManager::connect(etcd.endpoints(), "/monitor-loss", LockManagerOptions::default().owner(owner))
    };
    let manager = connect("service")?;

    let mut guards = Vec::new();
    for key in ["orders", "invoices", "mail"] {
        guards.push(manager.new_lock(key)?.lock()?);
    }
    let session = manager.session();
    println!(
        "\nthree locks, one session: lease {:x}, {:.1?} left",
        session.lease_id.unwrap_or_default(),
        session.remaining
    );
    // The workers would have clones of these guards; here the monitor has the only ones.
    let monitor = thread::spawn(move || watch_over(guards));

    let admin = connect("admin")?;
    thread::sleep(Duration::from_millis(500));
    println!("\nan administrator force-unlocks one lock");
    admin.force_unlock("mail", ForceUnlock::Lock)?;
    thread::sleep(Duration::from_millis(500));
    println!("\nand then ends the whole session");
    admin.force_unlock("orders", ForceUnlock::Session)?;
    monitor.join().map_err(|_| "the monitor panicked")?;

    // The manager sets up a new session by itself; the holds stay lost.
    let again = manager.new_lock("orders")?.lock()?;
    println!("\n\"orders\" again, with a greater token: {}", again.token());
    println!("the lease is a new one: {:x}", manager.session().lease_id.unwrap_or_default());
    Ok(())
}

/// Returns when no hold is left to watch.
fn watch_over(mut guards: Vec<LockGuard>) {
    while !guards.is_empty() {
        let lost = {
            let mut select = Select::new();
            for guard in &guards {
                select.recv(guard.done());
            }
            // The channels carry no messages, so "ready" means disconnected: that hold is over.
            select.ready()
        };
        let guard = guards.swap_remove(lost);
        if let Some(why) = guard.loss() {
            println!("   ALARM: {:?} with token {} is lost: {why}", guard.key(), guard.token());
        }
    }
}
