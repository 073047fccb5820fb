//! Waits that end early: by time limit, by retries, or abandoned; before, during and after the grant.

use std::time::Duration;

use super::world::World;
use crate::kv::FailureClass;
use crate::protocol::{Refusal, WaitLimits};

const GRACE: Duration = Duration::from_millis(30);

#[test]
fn a_timeout_leaves_the_queue_and_names_the_holder() {
    let mut world = World::with(2);
    let holder = world.lock(0, "a", 1);
    world.settle();
    let waiter = world.lock_within(1, "a", 1, Duration::from_millis(300));
    world.pass(Duration::from_millis(300));
    let Some(Refusal::Timeout { waited, holder: Some(found) }) = world.refusal(1, waiter) else {
        panic!("{:?}", world.refusal(1, waiter));
    };
    assert_eq!(waited, Duration::from_millis(300));
    assert_eq!(found.kv.create_revision, world.token(0, holder).unwrap());
    assert_eq!(world.contenders("a").len(), 1);
}

#[test]
fn a_timeout_passes_the_contender_on_to_the_next_thread_of_the_process() {
    let mut world = World::with(2);
    let holder = world.lock(0, "a", 1);
    world.settle();
    let hasty = world.lock_within(1, "a", 1, Duration::from_millis(300));
    let patient = world.lock(1, "a", 2);
    world.settle();
    let place = world.contenders("a")[1].clone();
    world.pass(Duration::from_millis(300));
    assert!(matches!(world.refusal(1, hasty), Some(Refusal::Timeout { holder: Some(_), .. })));
    assert_eq!(world.contenders("a")[1], place);
    world.abandon(0, holder);
    world.settle();
    assert!(world.holds(1, patient));
}

#[test]
fn a_time_limit_without_any_answer_ends_within_the_grace_and_not_in_contention() {
    let mut world = World::with(1);
    let waiter = world.lock_within(0, "a", 1, Duration::from_millis(300));
    world.pass_alone(Duration::from_millis(300) + GRACE);
    assert!(matches!(world.refusal(0, waiter), Some(Refusal::Unavailable(_))));
}

#[test]
fn a_wait_that_ends_while_the_store_is_unreachable_reports_the_failure_whatever_its_limit() {
    for limited in ["deadline", "budget"] {
        let mut world = World::with(2);
        world.lock(1, "a", 1);
        world.settle();
        let at = Some(world.now + Duration::from_secs(3));
        let limits = match limited {
            "deadline" => WaitLimits { deadline: at, ..WaitLimits::default() },
            _ => WaitLimits { budget: at, ..WaitLimits::default() },
        };
        let waiter = world.ask(0, "a", 1, limits);
        world.settle();
        // The waiter is in the queue when the store becomes unreachable.
        world.fail_for(0, Duration::from_secs(3) + GRACE, FailureClass::NotDone);
        match world.refusal(0, waiter) {
            Some(Refusal::Unavailable(failure)) => assert_eq!(failure.message, "injected failure"),
            other => panic!("{limited}: {other:?}"),
        }
    }
}

#[test]
fn a_wait_behind_a_hold_of_this_process_ends_in_contention_whatever_the_store_does() {
    let mut world = World::with(1);
    let held = world.lock(0, "a", 1);
    world.settle();
    let waiter = world.lock_within(0, "a", 2, Duration::from_secs(3));
    world.fail_for(0, Duration::from_secs(3) + GRACE, FailureClass::NotDone);
    assert!(world.holds(0, held));
    assert!(matches!(world.refusal(0, waiter), Some(Refusal::Timeout { holder: None, .. })));
}

#[test]
fn the_retries_end_in_already_held_or_in_unavailable() {
    let mut world = World::with(2);
    let budget = |world: &World| WaitLimits {
        budget: Some(world.now + Duration::from_millis(300)),
        ..WaitLimits::default()
    };
    world.lock(0, "a", 1);
    world.settle();
    let limits = budget(&world);
    let contended = world.ask(1, "a", 1, limits);
    world.pass(Duration::from_millis(300));
    assert!(matches!(world.refusal(1, contended), Some(Refusal::AlreadyHeld { holder: Some(_) })));

    let limits = budget(&world);
    let undelivered = world.ask(1, "b", 1, limits);
    world.pass_alone(Duration::from_millis(300) + GRACE);
    assert!(matches!(world.refusal(1, undelivered), Some(Refusal::Unavailable(_))));
}

#[test]
fn abandoning_while_the_timeout_reads_the_holder_is_answered() {
    let mut world = World::with(1);
    let ticket = world.lock_within(0, "a", 1, Duration::from_millis(300));
    world.pass_alone(Duration::from_millis(300));
    world.abandon_and_confirm(0, ticket);
    world.pass(GRACE);
    assert_eq!(world.refusal(0, ticket), Some(Refusal::Cancelled));
}

#[test]
fn abandoning_before_there_is_a_session_leaves_nothing() {
    let mut world = World::unconnected(1);
    let ticket = world.lock(0, "a", 1);
    world.abandon_and_confirm(0, ticket);
    world.settle();
    assert_eq!(world.refusal(0, ticket), Some(Refusal::Cancelled));
    assert!(world.nodes[0].protocol.is_idle());
    assert!(world.contenders("a").is_empty());
}

#[test]
fn abandoning_while_the_acquire_is_in_flight_leaves_no_key() {
    let mut world = World::with(1);
    let ticket = world.lock(0, "a", 1);
    world.abandon_and_confirm(0, ticket);
    assert_eq!(world.refusal(0, ticket), None, "the key may still be put");
    world.settle();
    assert_eq!(world.refusal(0, ticket), Some(Refusal::Cancelled));
    assert!(world.contenders("a").is_empty());
}

#[test]
fn abandoning_right_after_the_grant_releases_the_lock() {
    let mut world = World::with(1);
    let ticket = world.lock(0, "a", 1);
    let (request, reply) = world.execute_oldest(0);
    world.deliver(0, request, reply);
    assert!(world.holds(0, ticket));
    world.abandon_and_confirm(0, ticket);
    world.settle();
    assert!(!world.holds(0, ticket));
    assert_eq!(world.nodes[0].confirms[&ticket], Ok(()));
    assert!(world.contenders("a").is_empty());
}

#[test]
fn the_next_caller_takes_over_an_abandoned_acquire_in_flight() {
    let mut world = World::with(1);
    let first = world.lock(0, "a", 1);
    world.abandon(0, first);
    let second = world.lock(0, "a", 2);
    let before = world.count(0, "txn");
    world.settle();
    assert!(world.holds(0, second));
    assert_eq!(world.count(0, "txn"), before);
}

#[test]
fn a_release_is_confirmed_once_the_key_is_deleted_and_fails_if_it_was_deleted_before() {
    let mut world = World::with(1);
    let ticket = world.lock(0, "a", 1);
    world.settle();
    world.abandon_and_confirm(0, ticket);
    assert!(world.nodes[0].confirms.is_empty());
    world.settle();
    assert_eq!(world.nodes[0].confirms[&ticket], Ok(()));

    let ticket = world.lock(0, "a", 1);
    world.settle();
    let key = world.contenders("a")[0].key.clone();
    world.delete(key);
    world.abandon_and_confirm(0, ticket);
    world.settle();
    assert!(world.nodes[0].confirms[&ticket].is_err());
}

#[test]
fn a_failed_release_is_retried_until_it_succeeds() {
    let mut world = World::with(1);
    let ticket = world.lock(0, "a", 1);
    world.settle();
    world.abandon_and_confirm(0, ticket);
    world.fail(0, FailureClass::NotDone);
    world.pass(Duration::from_millis(100));
    assert_eq!(world.nodes[0].confirms[&ticket], Ok(()));
    assert!(world.contenders("a").is_empty());
}

#[test]
fn closing_loses_the_holds_refuses_the_waiters_and_revokes_the_lease() {
    let mut world = World::with(2);
    let holder = world.lock(0, "a", 1);
    world.settle();
    let waiter = world.lock(0, "a", 2);
    let elsewhere = world.lock(1, "a", 1);
    world.settle();
    world.command(0, crate::protocol::Command::Close);
    assert_eq!(world.loss(0, holder), Some(crate::error::LossReason::Closed));
    assert_eq!(world.refusal(0, waiter), Some(Refusal::Closed));
    assert!(!world.nodes[0].closed, "the lease is not revoked yet");
    let late = world.lock(0, "b", 1);
    world.settle();
    assert!(world.nodes[0].closed);
    assert_eq!(world.refusal(0, late), Some(Refusal::Closed));
    assert!(world.holds(1, elsewhere));
    assert_eq!(world.session_keys().len(), 1);
}

#[test]
fn closing_while_a_lease_is_requested_revokes_it_once_granted() {
    let mut world = World::unconnected(1);
    world.command(0, crate::protocol::Command::Close);
    world.settle();
    assert!(world.nodes[0].closed);
    assert_eq!(world.model.leases().count(), 0);
}
