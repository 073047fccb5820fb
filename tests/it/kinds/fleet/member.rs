//! One process of the fleet.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use etcd_lock::{LockError, LockGuard, LockManager, LockManagerOptions, LockOptions, Mode};
use fastrand::Rng;

use crate::kinds::permits;
use crate::support::Access;
use crate::support::manager::connect_with;
use crate::support::oracle::now;
use crate::support::process::Role;

const THREADS: u64 = 4;
const TTL: Duration = Duration::from_secs(2);

/// A lock of readers and writers, a semaphore, and one of everything.
pub(super) const NAMES: [&str; 3] = ["book", "pool", "mix"];

/// Works until the parent says so, and reports each hold at its start and at its end.
pub(super) fn run(role: &Role) {
    let var = |name: &str| std::env::var(name).unwrap();
    let access = Access::default().at(var("TEST_ENDPOINTS").split(',').map(String::from));
    let manager = connect_with(&access, &var("TEST_ROOT"), LockManagerOptions::default().ttl(TTL));
    let stop = AtomicBool::new(false);
    role.say("ready");
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (manager, stop) = (&manager, &stop);
            scope.spawn(move || work(role, manager, thread, stop));
        }
        // `None`: the parent is gone.
        assert!(role.hear().is_none_or(|line| line == "stop"));
        stop.store(true, Ordering::Relaxed);
    });
    manager.close().unwrap();
    role.say("stopped");
}

fn work(role: &Role, manager: &LockManager, thread: u64, stop: &AtomicBool) {
    let mut rng = Rng::new();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let (name, mode) = choice(&mut rng);
        let options = LockOptions::default().mode(mode).retry_interval(Duration::from_millis(20));
        let lock = manager.new_lock_with(name, options).unwrap();
        let taken = match rng.u8(..4) {
            0 => lock.try_lock(),
            1 => lock.enqueue().and_then(|pending| pending.wait()).map(Some),
            _ => lock.lock_timeout(Duration::from_millis(rng.u64(1..400))).map(Some),
        };
        let guard = match taken {
            Ok(Some(guard)) => guard,
            Ok(None)
            | Err(LockError::Timeout { .. } | LockError::Unavailable { .. } | LockError::Expired { .. }) => {
                continue;
            }
            Err(error) => panic!("{name} {mode}: {error}"),
        };
        number += 1;
        hold(role, &guard, &format!("{thread}-{number}"), Duration::from_micros(rng.u64(..3000)));
    }
}

fn choice(rng: &mut Rng) -> (&'static str, Mode) {
    let some = permits(rng.u32(1..=3), 3);
    match rng.u8(..10) {
        0..3 => ("book", Mode::Shared),
        3 => ("book", Mode::Exclusive),
        4..7 => ("pool", some),
        7 => ("mix", Mode::Exclusive),
        8 => ("mix", Mode::Shared),
        _ => ("mix", permits(rng.u32(1..=2), rng.u32(2..=4))),
    }
}

/// Reports the time in which the hold is known to have stood.
fn hold(role: &Role, guard: &LockGuard, id: &str, time: Duration) {
    let from = now();
    if !guard.is_held() {
        return;
    }
    let (take, limit) = match guard.mode() {
        Mode::Exclusive => (1, 1),
        Mode::Shared => (1, u32::MAX),
        Mode::Permits { take, limit } => (take, limit),
        other => panic!("{other:?}"),
    };
    role.say(&format!("from {id} {from} {} {take} {limit} {}", guard.token(), guard.key()));
    let mut last = from;
    while now() < from + u64::try_from(time.as_nanos()).unwrap() {
        thread::sleep(Duration::from_micros(300));
        let look = now();
        if !guard.is_held() {
            break;
        }
        last = look;
    }
    role.say(&format!("to {id} {last}"));
}
