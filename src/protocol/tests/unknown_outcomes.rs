//! Requests that get no answer, and copies of them that are executed much later.

use std::time::Duration;

use super::world::World;
use crate::kv::FailureClass;
use crate::protocol::Refusal;

#[test]
fn an_acquire_whose_answer_was_lost_is_granted_with_its_first_token() {
    let mut world = World::with(1);
    let ticket = world.lock(0, "a", 1);
    let request = world.lose_answer(0);
    world.execute_late(&request);
    let created = world.contenders("a")[0].create_revision;
    world.pass(Duration::from_millis(100));
    assert!(world.holds(0, ticket));
    assert_eq!(world.token(0, ticket), Some(created));
    assert_eq!(world.contenders("a").len(), 1);
}

#[test]
fn a_repeated_acquire_that_queued_finds_its_predecessor_behind_later_arrivals() {
    let mut world = World::with(3);
    let holder = world.lock(0, "a", 1);
    world.settle();
    let waiter = world.lock(1, "a", 1);
    let request = world.lose_answer(1);
    world.execute_late(&request);
    let later = world.lock(2, "a", 1);
    world.pass(Duration::from_millis(100));
    assert_eq!(world.contenders("a").len(), 3);
    world.abandon(0, holder);
    world.settle();
    assert!(world.holds(1, waiter) && !world.holds(2, later));
}

#[test]
fn a_copy_of_a_repeated_acquire_cannot_put_the_key_again_after_the_release() {
    let mut world = World::with(2);
    let ticket = world.lock(0, "a", 1);
    let parked = world.lose_answer(0);
    world.pass(Duration::from_millis(100));
    assert!(world.holds(0, ticket));
    world.abandon(0, ticket);
    world.settle();
    assert!(world.contenders("a").is_empty());
    world.execute_late(&parked);
    assert!(world.contenders("a").is_empty());
    let next = world.lock(1, "a", 1);
    world.settle();
    assert!(world.holds(1, next));
}

#[test]
fn a_copy_that_arrives_between_the_fence_and_the_delete_is_deleted() {
    let mut world = World::with(1);
    let ticket = world.lock(0, "a", 1);
    let parked = world.lose_answer(0);
    world.abandon_and_confirm(0, ticket);
    // The fence is in flight, and the copy is executed before it.
    world.execute_late(&parked);
    assert_eq!(world.contenders("a").len(), 1);
    world.settle();
    world.pass(Duration::from_secs(1));
    assert!(world.contenders("a").is_empty());
    assert_eq!(world.refusal(0, ticket), Some(Refusal::Cancelled));
}

#[test]
fn a_key_is_reused_unless_a_request_that_names_it_went_unanswered() {
    let mut world = World::with(1);
    let mut keys = Vec::new();
    for round in 0..6 {
        let ticket = world.lock(0, "a", 1);
        world.settle();
        keys.push(world.contenders("a")[0].key.clone());
        world.abandon(0, ticket);
        if round == 2 {
            world.lose_answer(0);
            world.pass(Duration::from_millis(200));
        }
        world.settle();
    }
    assert_eq!((&keys[1], &keys[2]), (&keys[0], &keys[0]));
    assert_ne!(keys[3], keys[0]);
    assert_eq!((&keys[4], &keys[5]), (&keys[3], &keys[3]));
}

#[test]
fn an_abandoned_acquire_without_an_answer_never_takes_effect() {
    let mut world = World::with(1);
    let ticket = world.lock(0, "a", 1);
    let parked = world.lose_answer(0);
    world.abandon_and_confirm(0, ticket);
    world.pass(Duration::from_millis(200));
    assert_eq!(world.refusal(0, ticket), Some(Refusal::Cancelled));
    world.execute_late(&parked);
    assert!(world.contenders("a").is_empty());
}

#[test]
fn an_abandoned_try_without_an_answer_never_takes_effect() {
    let mut world = World::with(2);
    let elsewhere = world.lock(1, "a", 1);
    world.settle();
    let ticket = world.try_lock(0, "a", 1);
    let parked = world.lose_answer(0);
    world.pass(Duration::from_millis(200));
    assert_eq!(world.refusal(0, ticket), Some(Refusal::Held));
    world.abandon(1, elsewhere);
    world.settle();
    world.execute_late(&parked);
    assert!(world.contenders("a").is_empty());
}

#[test]
fn after_a_forced_unlock_no_copy_of_a_repeated_acquire_can_put_the_key_again() {
    let mut world = World::with(1);
    let ticket = world.lock(0, "a", 1);
    let parked = world.lose_answer(0);
    world.pass(Duration::from_millis(500));
    assert!(world.holds(0, ticket));
    let key = world.contenders("a")[0].key.clone();
    world.delete(key);
    world.pass(Duration::from_secs(1));
    assert!(!world.holds(0, ticket));
    world.execute_late(&parked);
    assert!(world.contenders("a").is_empty());
}

#[test]
fn a_late_copy_of_a_fence_costs_one_retry_and_no_caller_an_error() {
    let mut world = World::with(1);
    let ticket = world.lock(0, "a", 1);
    world.lose_answer(0);
    world.abandon(0, ticket);
    // The put of the session key goes unanswered and is repeated; its first copy is executed last.
    let parked_fence = world.lose_answer(0);
    world.pass(Duration::from_millis(300));
    world.execute_late(&parked_fence);
    let next = world.lock(0, "b", 1);
    world.settle();
    assert!(world.holds(0, next));
}

#[test]
fn many_abandoned_names_share_one_fence() {
    let mut world = World::with(1);
    let tickets: Vec<_> = (0..10).map(|i| world.lock(0, &format!("n{i}"), 1)).collect();
    while !world.nodes[0].sent.is_empty() {
        world.lose_answer(0);
    }
    let before = world.count(0, "txn");
    for &ticket in &tickets {
        world.abandon(0, ticket);
    }
    world.settle();
    world.pass(Duration::from_secs(1));
    // The fence, and all deletes in one batch.
    assert_eq!((world.count(0, "txn") - before, world.count(0, "delete")), (2, 0));
    assert!(world.nodes[0].protocol.is_idle());
}

#[test]
fn a_delete_whose_answer_was_lost_still_counts_as_a_release() {
    let mut world = World::with(1);
    let ticket = world.lock(0, "a", 1);
    world.settle();
    world.abandon_and_confirm(0, ticket);
    let delete = world.lose_answer(0);
    world.execute_late(&delete);
    world.pass(Duration::from_millis(100));
    assert_eq!(world.nodes[0].confirms[&ticket], Ok(()));
}

#[test]
fn a_hand_over_whose_answer_is_lost_is_repeated_whole() {
    let mut world = World::with(1);
    let first = world.lock(0, "a", 1);
    world.settle();
    let second = world.lock(0, "a", 2);
    world.abandon(0, first);
    let request = world.lose_answer(0);
    world.execute_late(&request);
    let created = world.contenders("a")[0].create_revision;
    world.pass(Duration::from_millis(100));
    assert_eq!(world.token(0, second), Some(created));
}

#[test]
fn an_acquire_that_was_certainly_not_executed_needs_no_fence() {
    let mut world = World::with(1);
    let ticket = world.lock(0, "a", 1);
    world.fail(0, FailureClass::NotDone);
    world.abandon_and_confirm(0, ticket);
    assert_eq!(world.refusal(0, ticket), Some(Refusal::Cancelled));
    assert!(world.nodes[0].sent.is_empty());
}
