//! Answers from an old state of the store: reads that are not linearizable (etcd #20418), and a store restored from a
//! backup. Old reads are not believed, and what a restore has lost is not held any longer.

use std::time::Duration;

use super::world::{TTL, World};
use crate::error::LossReason;
use crate::kv::{Key, Op, Request, Span, Txn, WatchEvent, WatchSpec};
use crate::protocol::Refusal;

/// The session and its lease are in the backup, and the raft term stays: only revisions show the restore.
#[test]
fn a_hold_that_a_restored_store_lacks_is_lost_with_its_session() {
    let mut world = World::with(1);
    let backup = world.model.clone();
    let held = world.lock(0, "a", 1);
    world.settle();
    let other = world.lock(0, "b", 1);
    // Their own keys are watched by then.
    world.pass(Duration::from_millis(200));
    world.restore(backup);
    world.pass(TTL / 2);
    for ticket in [held, other] {
        assert_eq!(world.loss(0, ticket), Some(LossReason::SessionRevoked));
    }
    let again = world.lock(0, "a", 2);
    world.settle();
    assert!(world.holds(0, again));
}

/// The manager writes before it renews.
#[test]
fn a_write_that_a_restored_store_answers_ends_the_session() {
    let mut world = World::with(1);
    let backup = world.model.clone();
    let held = world.lock(0, "a", 1);
    world.settle();
    world.lock(0, "b", 1);
    world.settle();
    world.restore(backup);
    let other = world.lock(0, "c", 1);
    world.settle();
    assert_eq!(world.loss(0, held), Some(LossReason::SessionRevoked));
    assert!(world.holds(0, other), "granted by the next session");
}

/// The watch stream breaks, and its reopening asks whether the session key is still there. A member that was paused since
/// before the session answers from then.
#[test]
fn a_check_of_the_session_that_is_answered_from_before_it_does_not_end_it() {
    let mut world = World::unconnected(1);
    let mut old = world.model.clone();
    world.settle();
    let held = world.lock(0, "a", 1);
    world.settle();
    assert!(world.holds(0, held));
    let watch = *world.nodes[0].watches.keys().min().expect("the session is watched");
    let revision = world.model.revision();
    world.nodes[0].protocol.handle_watch(world.now, WatchEvent::Created { watch, revision });
    world.pump(0);
    let (id, request) = world.nodes[0].sent.pop_back().expect("the session key is read");
    let reply = old.execute(world.now, &request);
    assert!(reply.as_ref().unwrap().revision < world.model.revision(), "{reply:?}");
    world.deliver(0, id, reply);
    let lease_stands = world.model.leases().count() == 1 && world.session_keys().len() == 1;
    assert!(lease_stands && world.holds(0, held), "lost as {:?}", world.loss(0, held));
}

/// Nobody has had the lock since long before the call, whose own request hangs.
#[test]
fn a_holder_that_is_read_from_before_the_call_is_no_contention() {
    let mut world = World::with(2);
    let elsewhere = world.lock(1, "a", 1);
    world.settle();
    let mut old = world.model.clone();
    world.abandon(1, elsewhere);
    world.settle();
    // The manager has seen a later revision since.
    let other = world.lock(0, "b", 1);
    world.settle();
    assert!(world.token(0, other).unwrap() > old.revision());
    world.pass(Duration::from_secs(1));
    assert!(world.contenders("a").is_empty());
    let late = world.lock_within(0, "a", 2, Duration::from_millis(20));
    world.pass_alone(Duration::from_millis(20));
    let is_inspection = |request: &Request| matches!(request, Request::Txn(txn) if txn.when.is_empty());
    let at = world.nodes[0].sent.iter().position(|(_, request)| is_inspection(request)).expect("it is read");
    let (inspection, request) = world.nodes[0].sent.remove(at).unwrap();
    let read = old.execute(world.now, &request);
    world.deliver(0, inspection, read);
    world.pass_alone(Duration::from_millis(50));
    let refusal = world.refusal(0, late);
    assert!(matches!(refusal, Some(Refusal::Unavailable(_))), "{refusal:?}");
}

/// Others write to the store, as `etcdutl snapshot restore --bump-revision` does at once.
fn overtake(world: &mut World, revision: i64) {
    while world.model.revision() <= revision {
        let put = Op::Put { key: Key::from("/elsewhere"), value: Vec::new(), lease: 0 };
        world.execute_late(&Request::Txn(Txn { then: vec![put], ..Txn::default() }));
    }
}

/// The watch stream is reopened: all watches that were open are confirmed again.
fn reopen(world: &mut World, node: usize) {
    let revision = world.model.revision();
    world.nodes[node].events_held_back = false;
    let watches: Vec<_> = world.nodes[node].watches_before.drain(..).collect();
    for watch in watches {
        // No key is deleted after the restore in these tests, so it does not matter which key is watched.
        let spec = WatchSpec { span: Span::Key(Key::from("/nowhere")), from_revision: 0, puts: false };
        let (watcher, _) = world.model.watch(&spec).unwrap();
        world.nodes[node].watches.insert(watch, watcher);
        world.nodes[node].protocol.handle_watch(world.now, WatchEvent::Created { watch, revision });
        world.pump(node);
    }
}

/// The hold has no watch of its own key yet when the store goes away.
#[test]
fn a_young_hold_that_a_restored_store_with_later_revisions_lacks_is_lost() {
    restored_store_with_later_revisions(Duration::from_millis(50));
}

#[test]
fn a_watched_hold_that_a_restored_store_with_later_revisions_lacks_is_lost() {
    restored_store_with_later_revisions(Duration::from_millis(200));
}

fn restored_store_with_later_revisions(age: Duration) {
    let mut world = World::with(2);
    let backup = world.model.clone();
    let held = world.lock(0, "a", 1);
    world.settle();
    assert!(world.holds(0, held));
    world.pass(age);
    let known = world.model.revision();
    for node in 0..2 {
        world.nodes[node].watches_before = world.nodes[node].watches.keys().copied().collect();
    }
    world.restore(backup);
    overtake(&mut world, known + 10);
    reopen(&mut world, 0);
    reopen(&mut world, 1);
    world.pass(TTL * 3);
    let other = world.lock(1, "a", 1);
    world.settle();
    assert!(world.holds(1, other), "the lock is free in etcd");
    assert!(!world.holds(0, held), "two holders, long after the restore");
}

/// An answer from before the restore arrives when the next session is up.
#[test]
fn a_late_answer_from_before_a_restore_does_not_end_the_next_session() {
    let mut world = World::with(1);
    let backup = world.model.clone();
    let keeper = world.lock(0, "x", 1);
    world.settle();
    for n in 0..20 {
        let ticket = world.lock(0, "y", n);
        world.settle();
        world.abandon(0, ticket);
        world.settle();
    }
    // A caller gives up, so the holder is read; the answer is delayed.
    world.lock_within(0, "x", 2, Duration::from_millis(20));
    world.pass_alone(Duration::from_millis(20));
    let (read, reply) = world.execute_oldest(0);
    assert!(reply.is_ok() && world.nodes[0].sent.is_empty());
    world.restore(backup);
    let next = world.lock(0, "c", 1);
    world.settle();
    assert!(!world.holds(0, keeper) && world.holds(0, next), "by the next session");
    world.deliver(0, read, reply);
    world.lock(0, "d", 1);
    world.settle();
    assert!(world.holds(0, next), "a healthy session was ended as {:?}", world.loss(0, next));
}
