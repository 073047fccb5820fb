//! A worker that must stop when it loses its lock, and a test that it does, without a server and without waiting for
//! timeouts. `cargo test --example test_your_worker` runs the test; `cargo run --example test_your_worker` shows one
//! run.

use std::error::Error;
use std::thread;
use std::time::Duration;

use etcd_lock::crossbeam_channel::{Receiver, Sender, select, unbounded};
use etcd_lock::memory::MemoryStore;
use etcd_lock::{DistributedLock, FencingToken, LockError, LockManager};

/// The result of a worker: an error if the lock was lost, with the reason.
type Ended = Result<(), LockError>;

/// Writes each order while the lock is held.
fn work(lock: &DistributedLock, orders: &Receiver<u32>, written: &Sender<(u32, FencingToken)>) -> Ended {
    let guard = lock.lock()?;
    loop {
        select! {
            recv(orders) -> order => {
                let Ok(order) = order else { break }; // no more orders
                let token = guard.ensure(Duration::from_secs(1))?; // enough time to write one?
                if written.send((order, token)).is_err() { break }
            }
            recv(guard.done()) -> _ => break,
        }
    }
    guard.unlock() // an error if the lock was lost
}

/// Sends one order, expires the session, and sends a second order too late. Returns the worker's result and what it
/// wrote.
fn lose_the_lock() -> Result<(Ended, Vec<u32>), Box<dyn Error>> {
    let store = MemoryStore::new(); // one "cluster" with two programs
    let manager = LockManager::in_memory(&store, "/orders", Default::default())?;
    let successor = LockManager::in_memory(&store, "/orders", Default::default())?;
    let (orders, incoming) = unbounded();
    let (written, out) = unbounded();

    let lock = manager.new_lock("writer")?;
    let worker = thread::spawn(move || work(&lock, &incoming, &written));
    orders.send(1)?;
    let (first, token) = out.recv()?; // the worker has written it, so it holds the lock
    store.expire_session(&manager); // as if the lease had expired in etcd
    let next = successor.new_lock("writer")?.lock()?; // now the successor holds it
    assert!(next.token() > token);
    let ended = worker.join().map_err(|_| "the worker panicked")?;
    assert!(orders.send(2).is_err(), "the worker takes no more orders");
    Ok((ended, [first].into_iter().chain(out.iter().map(|(order, _)| order)).collect()))
}

fn main() -> Result<(), Box<dyn Error>> {
    let (ended, written) = lose_the_lock()?;
    println!("The worker wrote {written:?} and stopped: {ended:?}.");
    Ok(())
}

#[test]
fn the_worker_stops_when_it_loses_the_lock() {
    let (ended, written) = lose_the_lock().unwrap();
    assert!(matches!(ended, Err(LockError::Expired { .. })), "{ended:?}");
    assert_eq!(written, [1]);
}
