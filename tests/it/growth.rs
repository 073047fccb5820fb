//! Unused names cost no memory.

use std::time::Duration;

use etcd_lock::LockManager;

use crate::support::manager::connect;
use crate::support::process::alone;
use crate::support::wait::resident_bytes;
use crate::support::{SOON, eventually, fresh_root, shared};

/// For a debug build on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

const HANDLES: u64 = 1_000_000;
/// A twentieth of the smallest entry that could leak: a name, a pointer to it, and one to its lock.
const BYTES_PER_HANDLE: u64 = 4;

const HOLDS: u64 = 6_000;
const HOLDS_AT_ONCE: u64 = 200;
/// Less than one leaked queue, ticket or watch, and more than the allocator itself retains.
const BYTES_PER_HOLD: u64 = 200;

/// The growth over the second half of the names, after the first half as a warm-up.
fn growth(count: u64, mut use_names: impl FnMut(std::ops::Range<u64>)) -> u64 {
    use_names(0..count / 2);
    let before = resident_bytes();
    use_names(count / 2..count);
    resident_bytes().saturating_sub(before)
}

fn make_handles(manager: &LockManager, names: std::ops::Range<u64>) {
    for n in names {
        let name = format!("handle-{n}");
        assert!(!manager.new_lock(&name).unwrap().is_locked());
    }
}

fn take_and_release(manager: &LockManager, names: std::ops::Range<u64>) {
    let names: Vec<u64> = names.collect();
    for some in names.chunks(HOLDS_AT_ONCE as usize) {
        let name = |n: &u64| format!("hold-{n}");
        let pending: Vec<_> =
            some.iter().map(|n| manager.new_lock(&name(n)).unwrap().enqueue().unwrap()).collect();
        for pending in pending {
            drop(pending.wait().unwrap());
        }
    }
    eventually(SOON, "everything is released", || manager.stats().held == 0);
}

#[test]
fn a_million_names_leave_nothing_in_memory() {
    alone("growth::a_million_names_leave_nothing_in_memory", LIMIT, || {
        let manager = connect(shared().access(), &fresh_root("growth"));
        let grown = growth(HANDLES, |names| make_handles(&manager, names));
        println!("{HANDLES} handles: {grown} bytes of growth over the second half");
        assert!(grown < HANDLES / 2 * BYTES_PER_HANDLE, "{grown} bytes of growth");
    });
}

#[test]
fn thousands_of_holds_with_names_of_their_own_leave_nothing_in_memory() {
    alone("growth::thousands_of_holds_with_names_of_their_own_leave_nothing_in_memory", LIMIT, || {
        let manager = connect(shared().access(), &fresh_root("growth"));
        let grown = growth(HOLDS, |names| take_and_release(&manager, names));
        println!("{HOLDS} holds: {grown} bytes of growth over the second half");
        assert_eq!(manager.stats().released, HOLDS);
        assert!(grown < HOLDS / 2 * BYTES_PER_HOLD, "{grown} bytes of growth");
    });
}
