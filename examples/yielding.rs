//! A long batch that lets others in between: it holds the lock for as long as nobody waits, and gives it away between two
//! steps as soon as somebody does.

mod support;

use std::error::Error;
use std::thread;
use std::time::{Duration, Instant};

use etcd_lock::crossbeam_channel::{TryRecvError, bounded};
use etcd_lock::{LockGuard, LockManager, LockManagerOptions};

const STEPS: u32 = 40;
const STEP: Duration = Duration::from_millis(50);

fn main() -> Result<(), Box<dyn Error>> {
    support::show_logs();
    let etcd = support::etcd();
    let connect = || LockManager::connect(etcd.endpoints(), "/yielding", LockManagerOptions::default());
    let (batch, urgent) = (connect()?, connect()?);

    // Another process has something short to do now and then.
    let (finished, batch_ended) = bounded::<()>(0);
    let urgent = thread::spawn(move || {
        let lock = urgent.new_lock("disk")?;
        while batch_ended.recv_timeout(Duration::from_millis(600)).is_err_and(|error| error.is_timeout()) {
            let asked = Instant::now();
            let guard = lock.lock()?;
            println!("   urgent: got the lock after {:.0?}", asked.elapsed());
            guard.unlock()?;
        }
        urgent.close()
    });

    let lock = batch.new_lock("disk")?;
    let (mut step, mut holds) = (0, 0);
    while step < STEPS {
        let guard = lock.lock()?; // at the end of the queue
        holds += 1;
        // At least one step, so that two such batches get on as well.
        loop {
            work(&guard, step);
            step += 1;
            if step == STEPS || somebody_waits(&guard) || !guard.is_held() {
                break;
            }
        }
        println!("batch: {step} of {STEPS} steps done");
        guard.unlock()?;
    }
    println!("batch: done in {holds} holds");
    drop(finished);
    urgent.join().map_err(|_| "the urgent process panicked")??;
    Ok(())
}

fn somebody_waits(guard: &LockGuard) -> bool {
    guard.contended().try_recv() == Err(TryRecvError::Disconnected)
}

fn work(_guard: &LockGuard, _step: u32) {
    thread::sleep(STEP);
}
