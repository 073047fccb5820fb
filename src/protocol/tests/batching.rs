//! Group commit: writes that are ready together are sent together, and one bad name does not fail the others.

use std::time::Duration;

use super::world::World;
use crate::kv::{FailureClass, Key, Request, Span};
use crate::protocol::{Refusal, Ticket};
use crate::store::memory::model::{Limits, Model};

fn lock_many(world: &mut World, names: std::ops::Range<usize>) -> Vec<Ticket> {
    names.map(|i| world.lock(0, &format!("n{i}"), i as u64)).collect()
}

#[test]
fn a_lone_lock_is_sent_at_once_and_locks_requested_meanwhile_are_sent_together() {
    let mut world = World::with(1);
    let tickets = lock_many(&mut world, 0..50);
    // Three are in flight; the others wait for the first answer, not for more writes.
    assert_eq!(world.nodes[0].sent.len(), 3);
    world.answer(0);
    assert_eq!(world.count(0, "txn"), 4);
    world.settle();
    assert_eq!(world.count(0, "txn"), 4);
    assert!(tickets.iter().all(|&ticket| world.holds(0, ticket)));
    for &ticket in &tickets {
        world.abandon(0, ticket);
    }
    world.settle();
    assert_eq!(world.count(0, "txn"), 8);
    assert!(world.nodes[0].protocol.is_idle());
}

#[test]
fn a_full_batch_does_not_wait() {
    let mut world = World::with(1);
    lock_many(&mut world, 0..102);
    assert_eq!(world.nodes[0].sent.len(), 3);
    lock_many(&mut world, 102..103);
    assert_eq!(world.nodes[0].sent.len(), 4);
    lock_many(&mut world, 103..1_000);
    assert_eq!(world.nodes[0].sent.len(), 8);
    world.settle();
    assert_eq!(world.read(Span::Prefix(Key::from("/t/n"))).len(), 1_000);
}

#[test]
fn a_batch_hands_over_in_the_same_commit() {
    let mut world = World::with(1);
    let first = lock_many(&mut world, 0..20);
    world.settle();
    let second: Vec<Ticket> = (0..20).map(|i| world.lock(0, &format!("n{i}"), 100)).collect();
    let before = world.count(0, "txn");
    for &ticket in &first {
        world.abandon(0, ticket);
    }
    world.settle();
    assert_eq!(world.count(0, "txn") - before, 4);
    assert!(second.iter().all(|&ticket| world.holds(0, ticket)));
    assert_eq!(world.read(Span::Prefix(Key::from("/t/n"))).len(), 20);
}

#[test]
fn one_bad_name_does_not_fail_the_rest_of_its_batch() {
    let mut world = World::with(1);
    world.model.deny(Some(super::world::name("n10").contenders()));
    let tickets = lock_many(&mut world, 0..20);
    world.settle();
    for (i, &ticket) in tickets.iter().enumerate() {
        match i {
            10 => assert!(matches!(
                world.refusal(0, ticket),
                Some(Refusal::Failed(failure)) if failure.class == FailureClass::PermissionDenied
            )),
            _ => assert!(world.holds(0, ticket), "n{i}"),
        }
    }
}

#[test]
fn a_denied_name_does_not_split_later_batches() {
    let mut world = World::with(1);
    world.model.deny(Some(super::world::name("n10").contenders()));
    let mut spent = Vec::new();
    for _ in 0..2 {
        let before = world.count(0, "txn");
        let tickets = lock_many(&mut world, 0..20);
        world.settle();
        for &ticket in &tickets {
            if world.holds(0, ticket) {
                world.abandon(0, ticket);
            }
        }
        world.settle();
        spent.push(world.count(0, "txn") - before);
    }
    // The first time, each write of the refused batch was sent alone.
    assert!(spent[0] > 20 && spent[1] < 15, "{spent:?}");
}

#[test]
fn a_smaller_limit_of_the_store_is_detected_and_respected() {
    let mut world = World::with(1);
    let limits = Limits { max_txn_ops: 16, ..Limits::default() };
    // The limit is the server's, so the session starts with it.
    world.model = Model::with(limits, 1);
    let mut world = world.reconnected();
    let tickets = lock_many(&mut world, 0..100);
    world.settle();
    assert!(tickets.iter().all(|&ticket| world.holds(0, ticket)));
    for &ticket in &tickets {
        world.abandon(0, ticket);
    }
    world.settle();
    let before = world.count(0, "txn");
    lock_many(&mut world, 0..100);
    while let Some((_, request)) = world.nodes[0].sent.front() {
        if let Request::Txn(txn) = request {
            assert!(txn.then.len() + 3 <= 16, "{} operations", txn.then.len());
        }
        world.answer(0);
    }
    assert!(world.count(0, "txn") - before < 20);
}

#[test]
fn every_write_of_an_unanswered_batch_is_sent_again() {
    let mut world = World::with(1);
    let tickets = lock_many(&mut world, 0..20);
    for _ in 0..3 {
        world.answer(0);
    }
    let batch = world.lose_answer(0);
    world.execute_late(&batch);
    let created: Vec<_> = (3..20).map(|i| world.contenders(&format!("n{i}"))[0].create_revision).collect();
    world.pass(Duration::from_millis(200));
    for (i, &ticket) in tickets[3..].iter().enumerate() {
        assert_eq!(world.token(0, ticket), Some(created[i]));
    }
}

#[test]
fn a_batch_refused_for_its_epoch_is_sent_again_with_the_new_one() {
    let mut world = World::with(1);
    let tickets = lock_many(&mut world, 0..10);
    let session = world.session_keys()[0].clone();
    let put = crate::kv::Op::Put { key: session.key, value: Vec::new(), lease: session.lease };
    let fence = crate::kv::Txn { then: vec![put], ..Default::default() };
    world.execute_late(&Request::Txn(fence));
    world.settle();
    assert!(tickets.iter().all(|&ticket| world.holds(0, ticket)));
}
