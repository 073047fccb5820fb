//! A mixed fleet: `etcdctl lock` (Go's `concurrency.Mutex`) and this library contend for the same locks.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use crate::support::etcdctl::Etcdctl;
use crate::support::manager::{
    assert_still_waiting, connect, enqueue, granted, lock, wait_for_contenders, wait_until_done,
};
use crate::support::witness::{What, Witness};
use crate::support::{Raw, SOON, eventually, fresh_root, lease_of, shared};

/// The fencing token of a foreign holder.
fn token_of(raw: &Raw, key: &str) -> u64 {
    raw.get(key).expect("the holder's key").create_revision.unsigned_abs()
}

#[test]
fn the_library_waits_until_etcdctl_releases() {
    let (root, raw) = (fresh_root("interop"), Raw::connect(shared().access()));
    let manager = connect(shared().access(), &root);
    let theirs = Etcdctl::new(shared().access()).lock_process(&format!("{root}/a"));
    let their_token = token_of(&raw, theirs.key());

    let ours = manager.new_lock("a").unwrap();
    assert!(ours.try_lock().unwrap().is_none());
    // A call on a busy machine may end before it has read the holder.
    let named = (0..10).find_map(|_| match ours.lock_timeout(Duration::from_millis(300)).unwrap_err() {
        etcd_lock::LockError::Timeout { holder, .. } => holder,
        error => panic!("{error:?}"),
    });
    let holder = named.expect("one of the calls names the holder");
    assert_eq!((holder.owner, holder.token.as_u64()), (None, their_token));

    let pending = ours.enqueue().unwrap();
    wait_for_contenders(&raw, &format!("{root}/a/"), 2);
    assert_still_waiting(&pending);
    theirs.release();
    let guard = granted(pending);
    assert!(guard.token().as_u64() > their_token);
    assert_eq!(token_of(&raw, guard.etcd_key()), guard.token().as_u64());
    assert_eq!(raw.count(&format!("{root}/a/")), 1);
}

#[test]
fn etcdctl_waits_until_the_library_releases() {
    let (root, raw) = (fresh_root("interop"), Raw::connect(shared().access()));
    let manager = connect(shared().access(), &root);
    let guard = lock(&manager, "a");
    let theirs = Etcdctl::new(shared().access()).queue_for_lock(&format!("{root}/a"));
    wait_for_contenders(&raw, &format!("{root}/a/"), 2);
    assert_eq!(manager.lock_info("a").unwrap().unwrap().waiters, 1);
    let theirs = theirs.wait(Duration::from_millis(300)).expect_err("we hold the lock");
    let token = guard.token().as_u64();
    guard.unlock().unwrap();
    let theirs = theirs.wait(SOON).expect("the lock is free");
    assert!(token_of(&raw, theirs.key()) > token);
    theirs.release();
    assert!(manager.lock_info("a").unwrap().is_none());
}

#[test]
fn both_kinds_of_clients_are_served_in_the_order_of_arrival() {
    let (root, raw) = (fresh_root("interop"), Raw::connect(shared().access()));
    let (first, third, fifth) = (
        connect(shared().access(), &root),
        connect(shared().access(), &root),
        connect(shared().access(), &root),
    );
    let ctl = Etcdctl::new(shared().access());
    let (name, keys) = (format!("{root}/a"), format!("{root}/a/"));

    let first = lock(&first, "a");
    let second = ctl.queue_for_lock(&name);
    wait_for_contenders(&raw, &keys, 2);
    let third = enqueue(&third, "a");
    wait_for_contenders(&raw, &keys, 3);
    let fourth = ctl.queue_for_lock(&name);
    wait_for_contenders(&raw, &keys, 4);
    let fifth = enqueue(&fifth, "a");
    wait_for_contenders(&raw, &keys, 5);

    let mut tokens = vec![first.token().as_u64()];
    first.unlock().unwrap();
    let second = second.wait(SOON).expect("the second one is granted");
    tokens.push(token_of(&raw, second.key()));
    assert_still_waiting(&third);
    second.release();

    let third = granted(third);
    tokens.push(third.token().as_u64());
    let fourth = fourth.wait(Duration::from_millis(300)).expect_err("the third holds it");
    assert_still_waiting(&fifth);
    third.unlock().unwrap();

    let fourth = fourth.wait(SOON).expect("the fourth one is granted");
    tokens.push(token_of(&raw, fourth.key()));
    assert_still_waiting(&fifth);
    fourth.release();
    tokens.push(granted(fifth).token().as_u64());
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
}

/// A killed process: its lock is free once its lease has expired, and not before.
#[test]
fn the_lock_of_a_killed_etcdctl_is_free_when_its_lease_expires() {
    let (root, raw) = (fresh_root("interop"), Raw::connect(shared().access()));
    let manager = connect(shared().access(), &root);
    let theirs = Etcdctl::new(shared().access()).lock_process(&format!("{root}/a"));
    let (key, token) = (theirs.key().to_owned(), token_of(&raw, theirs.key()));
    let pending = enqueue(&manager, "a");
    wait_for_contenders(&raw, &format!("{root}/a/"), 2);
    drop(theirs);
    assert_still_waiting(&pending);
    let guard = granted(pending);
    assert!(raw.get(&key).is_none());
    assert!(guard.token().as_u64() > token);
}

/// The other direction: the end of our session frees the lock for etcdctl, and our holder knows.
#[test]
fn etcdctl_gets_the_lock_of_a_revoked_session() {
    let (root, raw) = (fresh_root("interop"), Raw::connect(shared().access()));
    let manager = connect(shared().access(), &root);
    let guard = lock(&manager, "a");
    let theirs = Etcdctl::new(shared().access()).queue_for_lock(&format!("{root}/a"));
    wait_for_contenders(&raw, &format!("{root}/a/"), 2);
    raw.revoke(lease_of(&manager));
    wait_until_done(&guard);
    let theirs = theirs.wait(SOON).expect("the lock is free");
    assert!(token_of(&raw, theirs.key()) > guard.token().as_u64());
    let behind = connect(shared().access(), &root);
    assert!(behind.new_lock("a").unwrap().try_lock().unwrap().is_none());
}

/// The holder creates a folder that must not exist, records its key, and removes the folder.
fn step_inside(dir: &Path, key: &str) {
    fs::create_dir(dir.join("inside")).expect("no other holder is inside");
    let mut notes = fs::File::options().append(true).create(true).open(dir.join("notes")).expect("a file");
    notes.write_all(format!("{key}\n").as_bytes()).expect("a file");
    fs::remove_dir(dir.join("inside")).expect("the folder still exists");
}

/// The same for the shell that `etcdctl lock` runs.
const STEP_INSIDE: &str = r#"mkdir "$1/inside" && echo "$ETCD_LOCK_KEY" >>"$1/notes" && rmdir "$1/inside""#;

/// Both kinds of clients contend: no two of them are ever inside together, and the tokens increase over all of them.
#[test]
fn the_members_of_a_mixed_fleet_exclude_each_other_and_their_tokens_increase() {
    const OURS: usize = 20;
    const THEIRS: usize = 4;
    let root = fresh_root("interop");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let witness = Witness::of(shared().access(), &format!("{root}/a/"));
    let managers = [connect(shared().access(), &root), connect(shared().access(), &root)];
    std::thread::scope(|scope| {
        for manager in managers.iter().cycle().take(4) {
            scope.spawn(|| {
                let lock = manager.new_lock("a").unwrap();
                for _ in 0..OURS {
                    let guard = lock.lock_timeout(3 * SOON).unwrap();
                    step_inside(path, &format!("{} {}", guard.etcd_key(), guard.token()));
                }
            });
        }
        for _ in 0..3 {
            scope.spawn(|| {
                let ctl = Etcdctl::new(shared().access());
                let command = ["sh", "-c", STEP_INSIDE, "sh", path.to_str().unwrap()];
                for _ in 0..THEIRS {
                    ctl.lock_exec(&format!("{root}/a"), &command).unwrap();
                }
            });
        }
    });
    let notes = fs::read_to_string(path.join("notes")).unwrap();
    // Ours record their token too. A call of etcdctl has a key of its own, whose revision the witness knows.
    let holders: Vec<(&str, Option<&str>)> = notes
        .lines()
        .map(|line| line.split_once(' ').map_or((line, None), |(key, token)| (key, Some(token))))
        .collect();
    assert_eq!(holders.len(), 4 * OURS + 3 * THEIRS);
    for (key, _) in &holders {
        witness.wait_for_delete(SOON, key);
    }
    let seen = witness.seen();
    let tokens: HashMap<&str, i64> = seen
        .iter()
        .filter_map(|seen| match &seen.what {
            What::Put { create_revision, .. } => Some((seen.key.as_str(), *create_revision)),
            What::Deleted => None,
        })
        .collect();
    let tokens: Vec<i64> = holders
        .iter()
        .map(|(key, token)| token.map_or_else(|| tokens[key], |token| token.parse().unwrap()))
        .collect();
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
}

/// Calls that give up behind a foreign holder leave no key that would block a foreign waiter.
#[test]
fn a_call_that_gave_up_does_not_block_a_foreign_waiter() {
    let (root, raw) = (fresh_root("interop"), Raw::connect(shared().access()));
    let manager = connect(shared().access(), &root);
    let keys = format!("{root}/a/");
    for round in 0..20 {
        let theirs = raw.put(&format!("{keys}foreign-{round}"), "", 0);
        let lock = manager.new_lock("a").unwrap();
        // One call gave up while waiting, another was a failed try.
        assert!(lock.lock_timeout(Duration::from_millis(10)).is_err());
        assert!(lock.try_lock().unwrap().is_none());
        drop(enqueue(&manager, "a"));
        eventually(SOON, "the foreign key is the only one", || {
            raw.keys(&keys).iter().map(|kv| kv.create_revision).eq([theirs])
        });
        assert!(raw.delete(&format!("{keys}foreign-{round}")));
    }
    assert_eq!(raw.count(&keys), 0);
}
