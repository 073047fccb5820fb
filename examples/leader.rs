//! A leader and its standby: candidates publish their address, a third process follows who leads, and a shutdown hands
//! the leadership over in one commit.
//!
//! Each "process" here is a thread with a manager of its own, so that the example runs by itself. In a real program the
//! shutdown channel is disconnected by a handler of SIGTERM; see the example `signals`.

mod support;

use std::error::Error;
use std::thread;
use std::time::{Duration, Instant};

use etcd_lock::crossbeam_channel::{Receiver, Sender, bounded, never, select, tick};
use etcd_lock::{Hold, LockError, LockManager, LockManagerOptions, LockOptions, LockViewer};

const ROOT: &str = "/leader";
const KEY: &str = "scheduler";

fn main() -> Result<(), Box<dyn Error>> {
    support::show_logs();
    let etcd = support::etcd();

    // Somebody who wants to know where the leader is: read permission, no session.
    let viewer = LockViewer::connect(etcd.endpoints(), ROOT, LockManagerOptions::default())?;
    let leader = viewer.observe(KEY)?;

    let (stop_first, first_stopped) = bounded::<()>(0);
    let (standby, stands_by) = bounded(1);
    let first = candidate(etcd.endpoints(), "10.0.0.1:8080", first_stopped, standby.clone())?;
    let address = follow(&leader, |address| address.is_some())?;
    println!("clients: the leader is at {address:?}");

    let (stop_second, second_stopped) = bounded::<()>(0);
    let second = candidate(etcd.endpoints(), "10.0.0.2:8080", second_stopped, standby)?;
    stands_by.recv_timeout(Duration::from_secs(30))?;
    println!("clients: {} stands by", viewer.queue(KEY)?[1].note.as_deref().unwrap_or("somebody"));

    // SIGTERM for the first one: it finishes its work, and the other leads.
    let start = Instant::now();
    drop(stop_first);
    let next = follow(&leader, |now| now.is_some() && *now != address)?;
    println!("clients: the leader is at {next:?}, {:.0?} after the shutdown began", start.elapsed());
    first.join().map_err(|_| "the first candidate panicked")??;

    drop(stop_second);
    second.join().map_err(|_| "the second candidate panicked")??;
    follow(&leader, Option::is_none)?;
    println!("clients: nobody leads");
    Ok(())
}

/// A process that leads whenever it can, until it is stopped.
fn candidate(
    endpoints: &[String],
    address: &str,
    stop: Receiver<()>,
    standby: Sender<()>,
) -> Result<thread::JoinHandle<Result<(), LockError>>, LockError> {
    let manager = LockManager::connect(endpoints, ROOT, LockManagerOptions::default())?;
    // Whoever leads shows the address of its candidate.
    let lock = manager.new_lock_with(KEY, LockOptions::default().note(address))?;
    let address = address.to_owned();
    Ok(thread::spawn(move || {
        lock.lead(&stop, |term| serve(&address, term, &standby))?;
        println!("{address}: stopped");
        manager.close()
    }))
}

/// One term. Returns soon after `done()` disconnects: the leadership was lost, or the process is to end.
fn serve(address: &str, term: &Hold, standby: &Sender<()>) {
    println!("{address}: leads, term {}", term.token());
    let work = tick(Duration::from_millis(50));
    // Disconnects once another candidate waits, and stays so.
    let mut contended = term.contended().clone();
    loop {
        select! {
            recv(term.done()) -> _ => break,
            recv(contended) -> _ => {
                let _ = standby.try_send(());
                contended = never();
            }
            recv(work) -> _ => {} // do a piece of work that fits into the rest of the lease
        }
    }
    match term.loss() {
        Some(why) => println!("{address}: no leader any more, because {why}"),
        None => println!("{address}: finishes its work, still the leader"),
    }
}

/// Waits until the leader's address is as wanted.
fn follow(
    leader: &etcd_lock::Observer,
    wanted: impl Fn(&Option<String>) -> bool,
) -> Result<Option<String>, Box<dyn Error>> {
    loop {
        let address = leader.current().and_then(|info| info.note);
        if wanted(&address) {
            return Ok(address);
        }
        leader.changes().recv_timeout(Duration::from_secs(30))?;
    }
}
