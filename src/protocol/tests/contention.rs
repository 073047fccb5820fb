//! Which waits end in contention, who is named as the holder, and which waits end as unavailable.

use std::time::Duration;

use super::world::World;
use crate::kv::{FailureClass, Request};
use crate::protocol::{Refusal, Ticket, WaitLimits};

#[test]
fn a_budget_that_ends_without_a_session_is_not_contention_even_if_the_holder_can_be_read() {
    let mut world = World::unconnected(1);
    let limits = WaitLimits { budget: Some(world.now + Duration::from_millis(300)), ..WaitLimits::default() };
    let ticket = world.ask(0, "a", 1, limits);
    world.fail(0, FailureClass::NotDone);
    world.pass_alone(Duration::from_millis(300));
    // The read of the holder succeeds and finds none.
    let at = world.nodes[0].sent.iter().rposition(|(_, request)| matches!(request, Request::Txn(_))).unwrap();
    let inspect = world.nodes[0].sent.remove(at).unwrap();
    let reply = world.model.execute(world.now, &inspect.1);
    world.deliver(0, inspect.0, reply);
    assert!(
        matches!(world.refusal(0, ticket), Some(Refusal::Unavailable(_))),
        "{:?}",
        world.refusal(0, ticket)
    );
}

#[test]
fn a_queued_waiter_ends_in_contention_even_if_the_read_of_the_holder_is_too_late() {
    let mut world = World::with(2);
    world.lock(1, "a", 1);
    world.settle();
    let limits = WaitLimits { budget: Some(world.now + Duration::from_millis(300)), ..WaitLimits::default() };
    let ticket = world.ask(0, "a", 1, limits);
    world.pass(Duration::from_millis(299));
    world.pass_alone(Duration::from_millis(100));
    assert_eq!(world.refusal(0, ticket), Some(Refusal::AlreadyHeld { holder: None }));
}

/// In one turn, the manager learns that the other manager's key was deleted and that `limit` has passed.
fn let_go_as_the_time_runs_out(world: &mut World, elsewhere: Ticket, limit: Duration) {
    world.nodes[0].events_held_back = true;
    world.abandon(1, elsewhere);
    world.settle_node(1);
    world.now = world.now + limit;
    world.together(0, |world| {
        world.nodes[0].events_held_back = false;
        assert!(world.deliver_events(0));
        world.nodes[0].protocol.handle_timeout(world.now);
    });
    world.pass(Duration::from_millis(50));
}

#[test]
fn a_wait_that_ends_in_the_turn_that_reports_its_predecessor_s_deletion_ends_in_contention() {
    let mut world = World::with(2);
    let elsewhere = world.lock(1, "a", 1);
    world.settle();
    let waiter = world.lock_within(0, "a", 1, Duration::from_millis(300));
    world.settle();
    let_go_as_the_time_runs_out(&mut world, elsewhere, Duration::from_millis(300));
    let refusal = world.refusal(0, waiter);
    assert!(matches!(refusal, Some(Refusal::Timeout { holder: None, .. })), "{refusal:?}");
}

#[test]
fn a_waiter_that_took_over_its_process_s_contender_ends_in_contention() {
    let mut world = World::with(2);
    let elsewhere = world.lock(1, "a", 1);
    world.settle();
    let first = world.lock(0, "a", 1);
    // Until the watch is confirmed and no read is in flight.
    world.pass(Duration::from_millis(300));
    let heir = world.lock_within(0, "a", 2, Duration::from_millis(100));
    world.abandon(0, first);
    let_go_as_the_time_runs_out(&mut world, elsewhere, Duration::from_millis(100));
    let refusal = world.refusal(0, heir);
    assert!(matches!(refusal, Some(Refusal::Timeout { holder: None, .. })), "{refusal:?}");
}

#[test]
fn a_waiter_that_took_over_a_contender_ends_in_contention_even_if_the_read_of_the_holder_is_too_late() {
    let mut world = World::with(2);
    world.lock(1, "a", 1);
    world.settle();
    let first = world.lock(0, "a", 1);
    // Until the watch is confirmed and no read is in flight.
    world.pass(Duration::from_millis(300));
    let mut heir = None;
    world.together(0, |world| {
        world.abandon(0, first);
        heir = Some(world.lock_within(0, "a", 2, Duration::from_millis(500)));
    });
    world.settle();
    world.pass_alone(Duration::from_millis(600));
    let refusal = world.refusal(0, heir.unwrap());
    assert!(matches!(refusal, Some(Refusal::Timeout { holder: None, .. })), "{refusal:?}");
}

#[test]
fn a_waiter_that_asks_after_the_only_other_one_of_its_process_gave_up_was_not_kept_out_by_it() {
    let mut world = World::with(2);
    let elsewhere = world.lock(1, "a", 1);
    world.settle();
    let first = world.lock(0, "a", 1);
    world.pass(Duration::from_millis(300));
    world.nodes[0].events_held_back = true;
    world.abandon(1, elsewhere);
    world.settle_node(1);
    world.now = world.now + Duration::from_millis(1);
    // The manager has not heard that the lock is free, and the new caller inherits the contender.
    let mut heir = None;
    world.together(0, |world| {
        world.abandon(0, first);
        heir = Some(world.lock_within(0, "a", 2, Duration::ZERO));
        world.nodes[0].protocol.handle_timeout(world.now);
    });
    world.pass(Duration::from_millis(50));
    let refusal = world.refusal(0, heir.unwrap());
    assert!(matches!(refusal, Some(Refusal::Unavailable(_))), "{refusal:?}");
}

#[test]
fn an_own_key_that_is_being_deleted_is_not_named_as_the_holder() {
    let mut world = World::with(2);
    let elsewhere = world.lock(1, "a", 1);
    world.settle();
    let waiter = world.lock_within(0, "a", 1, Duration::from_millis(300));
    world.settle();
    world.nodes[0].events_held_back = true;
    world.abandon(1, elsewhere);
    world.settle_node(1);
    world.pass_alone(Duration::from_millis(300));
    // The read of the holder finds our own key, but the answer to its delete arrives first.
    let replies: Vec<_> =
        std::iter::from_fn(|| (!world.nodes[0].sent.is_empty()).then(|| world.execute_oldest(0))).collect();
    for (request, reply) in replies.into_iter().rev() {
        world.deliver(0, request, reply);
    }
    world.pass_alone(Duration::from_millis(30));
    assert!(
        matches!(world.refusal(0, waiter), Some(Refusal::Timeout { holder: None, .. })),
        "{:?}",
        world.refusal(0, waiter)
    );
}

#[test]
fn a_wait_behind_other_threads_of_the_process_ends_in_contention() {
    let mut world = World::with(1);
    let held = world.lock(0, "a", 1);
    world.settle();
    let next = world.lock_within(0, "a", 2, Duration::from_millis(300));
    let last = world.lock_within(0, "a", 3, Duration::from_millis(300));
    world.pass(Duration::from_millis(290));
    world.abandon(0, held);
    // The hand-over is in flight when their limits end.
    world.pass_alone(Duration::from_millis(100));
    for ticket in [next, last] {
        let refusal = world.refusal(0, ticket);
        assert!(matches!(refusal, Some(Refusal::Timeout { .. })), "{refusal:?}");
    }
}

#[test]
fn a_wait_that_began_after_the_release_does_not_end_in_contention() {
    let mut world = World::with(1);
    let held = world.lock(0, "a", 1);
    world.settle();
    world.abandon(0, held);
    let late = world.lock_within(0, "a", 2, Duration::from_millis(300));
    world.pass_alone(Duration::from_millis(400));
    assert!(matches!(world.refusal(0, late), Some(Refusal::Unavailable(_))));
}

#[test]
fn a_read_from_before_a_call_says_nothing_about_its_wait() {
    let mut world = World::with(2);
    let elsewhere = world.lock(1, "a", 1);
    world.settle();
    let given_up = world.lock(0, "a", 1);
    world.settle();
    world.nodes[0].events_held_back = true;
    world.abandon(1, elsewhere);
    world.settle_node(1);
    world.now = world.now + Duration::from_millis(1);
    // The lock is free again, but this process has not learned it yet.
    let mut late = None;
    world.together(0, |world| {
        world.abandon(0, given_up);
        late = Some(world.lock_within(0, "a", 2, Duration::from_millis(5)));
    });
    world.pass_alone(Duration::from_millis(50));
    let refusal = world.refusal(0, late.unwrap());
    assert!(matches!(refusal, Some(Refusal::Unavailable(_))), "{refusal:?}");
}

#[test]
fn an_earlier_waiter_of_the_process_does_not_prove_contention_while_the_store_is_silent() {
    let mut world = World::unconnected(1);
    world.lock(0, "a", 1);
    let second = world.lock_within(0, "a", 2, Duration::from_millis(200));
    world.pass_alone(Duration::from_millis(300));
    let refusal = world.refusal(0, second);
    assert!(matches!(refusal, Some(Refusal::Unavailable(_))), "{refusal:?}");
}

#[test]
fn a_late_copy_of_the_holder_s_key_is_not_named_as_the_holder() {
    let mut world = World::with(1);
    world.lock(0, "a", 1);
    let parked = world.lose_answer(0);
    world.pass(Duration::from_millis(150));
    let held = world.contenders("a")[0].clone();
    world.nodes[0].events_held_back = true;
    // Its key is deleted by force, which it has not learned yet, and the copy puts the key again.
    world.delete(held.key.clone());
    world.execute_late(&parked);
    assert!(world.contenders("a")[0].create_revision > held.create_revision);
    let waiter = world.lock_within(0, "a", 2, Duration::from_millis(20));
    world.pass(Duration::from_millis(50));
    let refusal = world.refusal(0, waiter);
    assert!(matches!(refusal, Some(Refusal::Timeout { holder: None, .. })), "{refusal:?}");
}

#[test]
fn a_holder_that_was_read_before_a_ticket_asked_is_not_named_to_it() {
    let mut world = World::with(2);
    let elsewhere = world.lock(1, "a", 1);
    world.settle();
    let early = world.lock_within(0, "a", 1, Duration::from_millis(100));
    world.settle();
    world.nodes[0].events_held_back = true;
    world.pass_alone(Duration::from_millis(100));
    // The holder is read for the first ticket, and releases before the second ticket's call.
    let is_inspection = |request: &Request| matches!(request, Request::Txn(txn) if txn.when.is_empty());
    let at = world.nodes[0]
        .sent
        .iter()
        .position(|(_, request)| is_inspection(request))
        .expect("the holder is read");
    let (inspection, request) = world.nodes[0].sent.remove(at).unwrap();
    let read = world.model.execute(world.now, &request);
    world.abandon(1, elsewhere);
    world.settle_node(1);
    world.pass_alone(Duration::from_millis(1));
    let late = world.lock_within(0, "a", 2, Duration::from_millis(5));
    world.pass_alone(Duration::from_millis(5));
    world.deliver(0, inspection, read);
    assert!(world.refusal(0, late).is_none(), "{:?}", world.refusal(0, late));
    world.pass_alone(Duration::from_millis(50));
    assert!(
        matches!(world.refusal(0, early), Some(Refusal::Timeout { holder: Some(_), .. })),
        "{:?}",
        world.refusal(0, early)
    );
    assert!(matches!(world.refusal(0, late), Some(Refusal::Unavailable(_))), "{:?}", world.refusal(0, late));
}

/// Only this caller has ever asked for the lock. The session ends between the read of the holder and its answer.
#[test]
fn the_own_key_of_a_session_that_ended_meanwhile_is_not_named_as_the_holder() {
    let mut world = World::with(1);
    let late = world.lock_within(0, "a", 1, Duration::from_millis(20));
    // Executed, but not answered.
    let _put = world.execute_oldest(0);
    world.pass_alone(Duration::from_millis(20));
    let (read, reply) = world.execute_oldest(0);
    // The session ends.
    let key = world.session_keys()[0].key.clone();
    world.delete(key);
    world.deliver_events(0);
    world.deliver(0, read, reply);
    world.pass_alone(Duration::from_millis(50));
    let refusal = world.refusal(0, late);
    assert!(matches!(refusal, Some(Refusal::Unavailable(_))), "{refusal:?}");
}
