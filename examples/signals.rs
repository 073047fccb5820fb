//! Ctrl-C, and the SIGTERM of a service manager: stop waiting, finish the current job, close. The next process then
//! acquires the locks at once.
//!
//! Without a handler a signal kills the process. Its locks are then held until their lease expires, 30 seconds by
//! default, because etcd cannot know that the process is dead.

mod support;

use std::error::Error;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use etcd_lock::crossbeam_channel::{self, Receiver, select};
use etcd_lock::{LockError, LockManager, LockManagerOptions};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

fn main() -> Result<(), Box<dyn Error>> {
    support::show_logs();
    let etcd = support::etcd();
    let connect = || LockManager::connect(etcd.endpoints(), "/signals", LockManagerOptions::default());
    let (manager, next_process) = (connect()?, connect()?);
    let shutdown = shutdown()?;

    let worker = {
        let (manager, shutdown) = (manager.clone(), shutdown.clone());
        thread::spawn(move || work(&manager, &shutdown))
    };
    // This thread waits for a lock that stays held. The signal ends the wait, too.
    let _hers = next_process.new_lock("busy")?.lock()?;
    let waiter = {
        let (lock, shutdown) = (manager.new_lock("busy")?, shutdown.clone());
        thread::spawn(move || lock.lock_or_cancel(&shutdown))
    };

    println!("\nWorking. Press Ctrl-C; after two seconds this program sends the signal to itself.");
    if shutdown.recv_timeout(Duration::from_secs(2)) == Err(crossbeam_channel::RecvTimeoutError::Timeout) {
        low_level::raise(SIGINT)?;
    }
    let jobs = worker.join().map_err(|_| "the worker panicked")??;
    if let Err(error) = waiter.join().map_err(|_| "the waiter panicked")? {
        println!("   the waiter stopped: {error}");
    }
    println!("   the worker stopped after {jobs} jobs");

    // A shutdown needs no other call: it releases all locks, leaves every queue and ends the session, in one request.
    let start = Instant::now();
    manager.close()?;
    let _guard = next_process.new_lock("report")?.lock()?;
    println!("\nClosed, and the next process holds the lock, all within {:.0?}.", start.elapsed());
    Ok(())
}

/// Returns a channel that disconnects at the first signal. The second signal kills the process, as it would without a
/// handler.
fn shutdown() -> io::Result<Receiver<()>> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let (running, shutdown) = crossbeam_channel::bounded(0);
    thread::spawn(move || {
        let mut signals = signals.forever();
        signals.next();
        drop::<crossbeam_channel::Sender<()>>(running);
        if let Some(signal) = signals.next() {
            let _ = low_level::emulate_default_handler(signal);
        }
    });
    Ok(shutdown)
}

/// Does jobs of a tenth of a second until the signal arrives or the lock is lost. Returns how many it did.
fn work(manager: &LockManager, shutdown: &Receiver<()>) -> Result<u32, LockError> {
    let guard = manager.new_lock("report")?.lock_or_cancel(shutdown)?;
    let mut jobs = 0;
    loop {
        select! {
            recv(shutdown) -> _ => return Ok(jobs), // between two jobs
            recv(guard.done()) -> _ => return guard.unlock().map(|()| jobs), // the error says why it was lost
            default(Duration::from_millis(100)) => jobs += 1,
        }
    }
}
