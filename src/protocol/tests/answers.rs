//! The answers to tries and releases are true.

use std::time::Duration;

use super::world::World;
use crate::kv::{Answer, FailureClass, Op, Request, Response, Txn, TxnAnswer};
use crate::protocol::{Refusal, ReleaseFailure, WaitLimits};

#[test]
fn a_try_together_with_the_release_gets_the_lock() {
    let mut world = World::with(1);
    let first = world.lock(0, "a", 1);
    world.settle();
    let mut second = None;
    world.together(0, |world| {
        world.abandon(0, first);
        second = Some(world.try_lock(0, "a", 1));
    });
    world.settle();
    assert!(world.holds(0, second.unwrap()));
}

#[test]
fn a_try_waits_for_a_key_of_ours_that_still_needs_its_fence() {
    let mut world = World::with(1);
    let given_up = world.lock(0, "a", 1);
    let parked = world.lose_answer(0);
    world.execute_late(&parked);
    world.abandon(0, given_up);
    let ticket = world.try_lock(0, "a", 2);
    world.settle();
    world.pass(Duration::from_millis(500));
    assert!(world.holds(0, ticket));
}

#[test]
fn a_try_is_not_refused_by_an_answer_from_before_the_call() {
    let mut world = World::with(2);
    let elsewhere = world.lock(1, "a", 1);
    world.settle();
    let given_up = world.lock(0, "a", 1);
    let (request, behind) = world.execute_oldest(0);
    world.abandon(1, elsewhere);
    world.settle_node(1);
    world.abandon(0, given_up);
    // From here on the lock has no holder and no waiter.
    let ticket = world.try_lock(0, "a", 2);
    world.deliver(0, request, behind);
    world.settle();
    assert!(world.holds(0, ticket), "{:?}", world.refusal(0, ticket));
}

#[test]
fn a_try_does_not_take_over_the_contender_of_an_abandoned_wait() {
    let mut world = World::with(2);
    let elsewhere = world.lock(1, "a", 1);
    world.settle();
    let waiter = world.lock(0, "a", 1);
    world.settle();
    let mut tried = None;
    world.together(0, |world| {
        world.abandon(0, waiter);
        tried = Some(world.try_lock(0, "a", 2));
    });
    world.settle();
    assert_eq!(world.refusal(0, tried.unwrap()), Some(Refusal::Held));
    assert_eq!(world.contenders("a").len(), 1);
    assert!(world.holds(1, elsewhere));
}

#[test]
fn a_try_behind_a_waiter_of_this_process_is_refused_at_once() {
    let mut world = World::with(2);
    world.lock(1, "a", 1);
    world.settle();
    world.lock(0, "a", 1);
    world.settle();
    let ticket = world.try_lock(0, "a", 2);
    assert_eq!(world.refusal(0, ticket), Some(Refusal::Held));
}

#[test]
fn a_hand_over_that_was_executed_and_answered_with_no_space_is_still_a_release() {
    let mut world = World::with(1);
    let first = world.lock(0, "a", 1);
    world.settle();
    let second = world.lock(0, "a", 2);
    world.abandon_and_confirm(0, first);
    world.execute_and_answer_no_space(0);
    assert!(matches!(world.refusal(0, second), Some(Refusal::Failed(_))));
    world.settle();
    assert_eq!(world.nodes[0].confirms[&first], Ok(()));
    assert!(world.contenders("a").is_empty());
}

#[test]
fn a_release_reports_that_its_key_was_deleted_even_if_the_key_was_put_again() {
    let mut world = World::with(1);
    let ticket = world.lock(0, "a", 1);
    world.settle();
    let held = world.contenders("a")[0].clone();
    world.delete(held.key.clone());
    // A key that another client put under the same name is not deleted.
    let put = Op::Put { key: held.key.clone(), value: Vec::new(), lease: 0 };
    world.execute_late(&Request::Txn(Txn { then: vec![put], ..Txn::default() }));
    world.abandon_and_confirm(0, ticket);
    world.settle();
    assert_eq!(world.nodes[0].confirms[&ticket], Err(ReleaseFailure::NotHeld));
    assert_eq!(world.contenders("a").len(), 1);
}

#[test]
fn a_second_copy_of_a_release_does_not_end_a_later_hold_under_the_same_key() {
    let mut world = World::with(1);
    let first = world.lock(0, "a", 1);
    world.settle();
    world.abandon(0, first);
    let (_, release) = world.nodes[0].sent.front().cloned().unwrap();
    world.settle();
    let second = world.lock(0, "a", 1);
    world.settle();
    let key = world.contenders("a")[0].clone();
    world.execute_late(&release);
    assert_eq!(world.contenders("a"), [key]);
    world.pass(Duration::from_secs(1));
    assert!(world.holds(0, second));
}

#[test]
fn a_second_copy_of_an_unconditional_delete_does_not_end_a_later_hold() {
    let mut world = World::with(1);
    world.lock(0, "a", 1);
    // The key is put, and its create revision is unknown.
    let (request, reply) = world.execute_oldest(0);
    let misfit = Answer::Txn(TxnAnswer { succeeded: true, results: Vec::new() });
    world.deliver(0, request, reply.map(|response| Response { answer: misfit, ..response }));
    let (_, plain) = world.nodes[0].sent.front().cloned().unwrap();
    assert!(matches!(plain, Request::Delete { .. }));
    world.settle();
    let held = world.lock(0, "a", 1);
    world.settle();
    world.execute_late(&plain);
    world.pass(Duration::from_secs(1));
    assert!(world.holds(0, held));
}

#[test]
fn an_acquire_abandoned_in_flight_is_deleted_by_its_create_revision() {
    let mut world = World::with(1);
    let unwanted = world.lock(0, "a", 1);
    let (request, reply) = world.execute_oldest(0);
    world.abandon(0, unwanted);
    world.deliver(0, request, reply);
    assert!(matches!(world.nodes[0].sent.front(), Some((_, Request::Txn(_)))));
    world.settle();
    assert!(world.contenders("a").is_empty());
}

#[test]
fn a_try_without_an_answer_of_the_store_is_never_refused_as_held() {
    let mut world = World::with(1);
    let ticket = world.try_lock(0, "a", 1);
    world.fail(0, FailureClass::NotDone);
    world.pass_alone(Duration::from_secs(5));
    assert!(matches!(world.refusal(0, ticket), Some(Refusal::Unavailable(_))));
}

#[test]
fn each_of_several_simultaneous_tries_gets_an_answer_from_after_its_call() {
    let mut world = World::with(1);
    let first = world.try_lock(0, "a", 1);
    let second = world.try_lock(0, "a", 2);
    let patient = world.ask(0, "a", 3, WaitLimits::default());
    world.settle();
    assert!(world.holds(0, first));
    assert_eq!(world.refusal(0, second), Some(Refusal::Held));
    world.abandon(0, first);
    world.settle();
    assert!(world.holds(0, patient));
}
