//! Processes that die, and processes that are stopped and continue unaware of it.

use std::time::{Duration, Instant};

use etcd_lock::{LockGuard, LossReason};

use crate::faults::ground::{assert_nothing_left, connect};
use crate::support::oracle::{Interval, Oracle, now};
use crate::support::process::{Process, Role, role};
use crate::support::register::{Register, Stale};
use crate::support::stalls;
use crate::support::{Access, Raw, eventually, fresh_root, shared};

const SOON: Duration = Duration::from_secs(20);
/// How much longer than the TTL the next holder may have to wait after a holder's death.
const SLACK: Duration = Duration::from_millis(1500);

/// A client in a process of its own.
fn client(test: &str, name: &str, root: &str, ttl: Duration) -> Process {
    let endpoints = shared().endpoints().join(",");
    let ttl = ttl.as_millis().to_string();
    let environment = [("TEST_ENDPOINTS", &*endpoints), ("TEST_ROOT", root), ("TEST_TTL", &ttl)];
    let mut client = Process::spawn_with(&format!("faults::processes::{test}"), name, &environment);
    assert_eq!(client.hear(SOON), "ready");
    client
}

/// The client's commands: `lock`, `unlock`, and `watch` for a process that is about to be stopped.
fn serve(role: &Role) {
    let var = |name: &str| std::env::var(name).unwrap();
    let access = Access::default().at(var("TEST_ENDPOINTS").split(',').map(String::from));
    let ttl = Duration::from_millis(var("TEST_TTL").parse().unwrap());
    let manager = connect(&access, &var("TEST_ROOT"), ttl);
    let lock = manager.new_lock("x").unwrap();
    role.say("ready");
    let mut held: Option<(LockGuard, Interval)> = None;
    while let Some(order) = role.hear() {
        match order.as_str() {
            "lock" => {
                let guard = lock.lock().unwrap();
                let (token, who) = (guard.token().as_u64(), role.name().to_owned());
                let hold = Interval { name: "x".into(), token, from: now(), to: None, who };
                role.say(&hold.to_string());
                held = Some((guard, hold));
            }
            "unlock" => {
                let (guard, hold) = held.take().unwrap();
                let hold = Interval { to: Some(now()), ..hold };
                guard.unlock().unwrap();
                role.say(&hold.to_string());
            }
            "watch" => {
                let (guard, _) = held.take().unwrap();
                watch_over(role, guard);
            }
            other => panic!("{other:?} is not a command"),
        }
    }
}

/// Reports that the hold was just renewed, until when it is then assured, and what its first check after a long pause
/// saw.
fn watch_over(role: &Role, guard: LockGuard) {
    let mut left = guard.remaining();
    // Taken before the line that may lead to the pause.
    let mut last = loop {
        std::thread::sleep(Duration::from_millis(1));
        let (now, more) = (now(), guard.remaining());
        if more > left {
            role.say(&format!("renewed {}", u128::from(now) + more.as_nanos()));
            break now;
        }
        left = more;
    };
    let pause = 500_000_000;
    let (woken, held) = loop {
        let before = now();
        let held = guard.is_held();
        // A pause within the check proves nothing; the check after it does.
        if now() - before < pause && before - last > pause {
            break (before, held);
        }
        last = before;
        std::thread::sleep(Duration::from_micros(200));
    };
    role.say(&format!("woken {woken} {held}"));
    if held {
        guard.unlock().unwrap();
        return;
    }
    assert!(guard.done().recv_timeout(SOON).is_err_and(|error| error.is_disconnected()));
    assert_eq!(guard.loss(), Some(LossReason::SessionExpired));
    assert!(guard.ensure(Duration::ZERO).is_err() && guard.remaining().is_zero());
    assert!(guard.unlock().is_err());
}

/// The hold that a client reports within the limit.
#[track_caller]
fn hold(client: &mut Process, limit: Duration) -> Interval {
    client.hear(limit).parse().unwrap()
}

/// A holder and the waiter in the middle of the queue are killed: the other waiters keep their order, and the next one
/// waits no longer than the dead holder's lease.
#[test]
fn the_order_outlives_a_killed_holder_and_a_killed_waiter() {
    if let Some(role) = role() {
        return serve(&role);
    }
    let ttl = Duration::from_secs(2);
    let root = fresh_root("killed");
    let raw = Raw::connect(shared().access());
    let test = "the_order_outlives_a_killed_holder_and_a_killed_waiter";
    let mut clients: Vec<Process> = Vec::new();
    for (index, name) in ["holder", "first", "middle", "last"].into_iter().enumerate() {
        let mut client = client(test, name, &root, ttl);
        client.say("lock");
        let waits = format!("{name} is queued");
        eventually(SOON, &waits, || raw.count(&format!("{root}/x/")) == index as u64 + 1);
        clients.push(client);
    }
    let [mut holder, mut first, mut middle, mut last] = <[Process; 4]>::try_from(clients).unwrap();
    let oracle = Oracle::new();
    let held = hold(&mut holder, SOON);
    middle.kill();
    let killed = now();
    let start = Instant::now();
    holder.kill();
    oracle.record(Interval { to: Some(killed), ..held });
    let next = hold(&mut first, SOON);
    let waited = Duration::from_nanos(next.from - killed);
    println!("row 13: holder killed, next holder after {waited:?} (TTL {ttl:?})");
    assert!(waited <= ttl + SLACK + stalls::since(start), "the next holder waited {waited:?}");
    assert_eq!(next.who, "first");
    // The dead waiter's lease has expired by then, and its end must not grant the lock to a later waiter.
    eventually(ttl + SLACK, "the dead clients' keys are deleted", || raw.count(&format!("{root}/x/")) == 2);
    first.say("unlock");
    oracle.record(hold(&mut first, SOON));
    let tail = hold(&mut last, SOON);
    last.say("unlock");
    let tail = Interval { to: hold(&mut last, SOON).to, ..tail };
    oracle.record(tail);
    oracle.judge();
    for client in [first, last] {
        client.finish(SOON);
    }
    assert_nothing_left(shared().access(), &root, ttl);
}

/// A holder that was stopped for longer than its TTL knows at its first check that its hold is lost, and its late write
/// is rejected.
#[test]
fn a_holder_stopped_for_longer_than_its_ttl_knows_at_once() {
    if let Some(role) = role() {
        return serve(&role);
    }
    let ttl = Duration::from_secs(3);
    let root = fresh_root("stopped");
    let register = Register::default();
    let mut holder = client("a_holder_stopped_for_longer_than_its_ttl_knows_at_once", "holder", &root, ttl);
    holder.say("lock");
    let old = hold(&mut holder, SOON);
    assert_eq!(register.write(old.token, 1), Ok(()));
    holder.say("watch");
    assert!(holder.hear(SOON).starts_with("renewed"));
    let manager = connect(shared().access(), &root, ttl);
    let lock = manager.new_lock("x").unwrap();
    let start = Instant::now();
    holder.stop();
    let guard = lock.lock_timeout(ttl * 2).unwrap();
    let waited = start.elapsed();
    println!("row 14: holder stopped, next holder after {waited:?} (TTL {ttl:?})");
    assert!(waited <= ttl + SLACK + stalls::since(start), "the next holder waited {waited:?}");
    assert_eq!(register.write(guard.token().as_u64(), 2), Ok(()));
    std::thread::sleep((ttl * 2).saturating_sub(start.elapsed()));
    holder.cont();
    let woken = holder.hear(SOON);
    assert!(woken.ends_with("false"), "a stopped holder continued and still reported a hold: {woken}");
    assert_eq!(register.write(old.token, 3), Err(Stale), "the late write is rejected");
    register.judge("x");
    // It gets a new session by itself, and the lock when it is free.
    holder.say("lock");
    guard.unlock().unwrap();
    let again = hold(&mut holder, SOON);
    assert!(again.token > old.token);
    holder.say("unlock");
    hold(&mut holder, SOON);
    holder.finish(SOON);
    drop((lock, manager));
    assert_nothing_left(shared().access(), &root, ttl);
}

/// A holder that was stopped for most of its TTL, but not beyond the deadline that it knew, still holds.
#[test]
fn a_holder_stopped_within_its_deadline_still_holds() {
    if let Some(role) = role() {
        return serve(&role);
    }
    let ttl = Duration::from_secs(5);
    let stop = ttl.mul_f64(0.8);
    let root = fresh_root("paused");
    let mut holder = client("a_holder_stopped_within_its_deadline_still_holds", "holder", &root, ttl);
    // On a machine that wakes the process after the deadline, the loss is correct: only the consistency counts then.
    for round in 1.. {
        holder.say("lock");
        let first = hold(&mut holder, SOON);
        holder.say("watch");
        let renewed = holder.hear(SOON);
        let deadline: u64 = renewed.strip_prefix("renewed ").unwrap().parse().unwrap();
        let start = Instant::now();
        holder.stop();
        std::thread::sleep(stop.saturating_sub(start.elapsed()));
        holder.cont();
        let woken = holder.hear(SOON);
        let (at, held) = woken.strip_prefix("woken ").unwrap().split_once(' ').unwrap();
        let at: u64 = at.parse().unwrap();
        // The next renewal may have been answered before the first check.
        assert!(held == "true" || at >= deadline, "lost {:?} early", Duration::from_nanos(deadline - at));
        if held == "true" {
            let left = Duration::from_nanos(deadline.saturating_sub(at));
            println!("row 14: stopped for 0.8 TTL, still held with {left:?} left (round {round})");
            assert!(first.token > 0);
            break;
        }
        assert!(round < 5, "the machine never continued the holder in time");
    }
    holder.finish(SOON);
    assert_nothing_left(shared().access(), &root, ttl);
}
