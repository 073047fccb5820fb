//! What callers are told is true: a try, and a release.

use std::time::Duration;

use super::world::World;
use crate::kv::{Answer, FailureClass, Op, Request, Response, Txn, TxnAnswer};
use crate::protocol::{Refusal, ReleaseFailure, Ticket, WaitLimits};

#[test]
fn a_try_that_comes_with_the_release_gets_the_lock() {
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
    world.carry_out_late(&parked);
    world.abandon(0, given_up);
    let ticket = world.try_lock(0, "a", 2);
    world.settle();
    world.pass(Duration::from_millis(500));
    assert!(world.holds(0, ticket));
}

#[test]
fn a_try_is_not_refused_by_an_answer_that_is_older_than_the_question() {
    let mut world = World::with(2);
    let elsewhere = world.lock(1, "a", 1);
    world.settle();
    let given_up = world.lock(0, "a", 1);
    let (request, behind) = world.carry_out(0);
    world.abandon(1, elsewhere);
    world.settle_node(1);
    world.abandon(0, given_up);
    // Nobody holds the lock and nobody waits for it from here on.
    let ticket = world.try_lock(0, "a", 2);
    world.deliver(0, request, behind);
    world.settle();
    assert!(world.holds(0, ticket), "{:?}", world.refusal(0, ticket));
}

#[test]
fn a_try_does_not_join_the_queue_with_the_contender_of_somebody_who_left() {
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
fn a_try_behind_somebody_of_this_process_who_waits_is_refused_at_once() {
    let mut world = World::with(2);
    world.lock(1, "a", 1);
    world.settle();
    world.lock(0, "a", 1);
    world.settle();
    let ticket = world.try_lock(0, "a", 2);
    assert_eq!(world.refusal(0, ticket), Some(Refusal::Held));
}

#[test]
fn a_hand_over_that_was_carried_out_and_answered_with_no_space_is_a_release_all_the_same() {
    let mut world = World::with(1);
    let first = world.lock(0, "a", 1);
    world.settle();
    let second = world.lock(0, "a", 2);
    world.abandon_and_confirm(0, first);
    world.carry_out_and_say_no_space(0);
    assert!(matches!(world.refusal(0, second), Some(Refusal::Failed(_))));
    world.settle();
    assert_eq!(world.nodes[0].confirms[&first], Ok(()));
    assert!(world.contenders("a").is_empty());
}

#[test]
fn a_release_says_that_somebody_else_had_deleted_the_key_even_if_it_is_there_again() {
    let mut world = World::with(1);
    let ticket = world.lock(0, "a", 1);
    world.settle();
    let held = world.contenders("a")[0].clone();
    world.delete(held.key.clone());
    // A stranger's key of the same name is not ours to delete.
    let put = Op::Put { key: held.key.clone(), value: Vec::new(), lease: 0 };
    world.carry_out_late(&Request::Txn(Txn { then: vec![put], ..Txn::default() }));
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
    world.carry_out_late(&release);
    assert_eq!(world.contenders("a"), [key]);
    world.pass(Duration::from_secs(1));
    assert!(world.holds(0, second));
}

#[test]
fn a_second_copy_of_a_delete_that_compares_nothing_does_not_end_a_later_hold() {
    let mut world = World::with(1);
    world.lock(0, "a", 1);
    // The key is put, and the answer does not say as what.
    let (request, reply) = world.carry_out(0);
    let misfit = Answer::Txn(TxnAnswer { succeeded: true, results: Vec::new() });
    world.deliver(0, request, reply.map(|response| Response { answer: misfit, ..response }));
    let (_, plain) = world.nodes[0].sent.front().cloned().unwrap();
    assert!(matches!(plain, Request::Delete { .. }));
    world.settle();
    let held = world.lock(0, "a", 1);
    world.settle();
    world.carry_out_late(&plain);
    world.pass(Duration::from_secs(1));
    assert!(world.holds(0, held));
}

#[test]
fn an_acquire_whose_caller_left_meanwhile_is_taken_back_by_its_create_revision() {
    let mut world = World::with(1);
    let unwanted = world.lock(0, "a", 1);
    let (request, reply) = world.carry_out(0);
    world.abandon(0, unwanted);
    world.deliver(0, request, reply);
    assert!(matches!(world.nodes[0].sent.front(), Some((_, Request::Txn(_)))));
    world.settle();
    assert!(world.contenders("a").is_empty());
}

#[test]
fn without_an_answer_of_the_store_a_try_is_never_told_that_somebody_holds() {
    let mut world = World::with(1);
    let ticket = world.try_lock(0, "a", 1);
    world.fail(0, FailureClass::NotDone);
    world.pass_alone(Duration::from_secs(5));
    assert!(matches!(world.refusal(0, ticket), Some(Refusal::Unavailable(_))));
}

#[test]
fn several_tries_at_once_are_answered_by_what_each_of_them_can_know() {
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

#[test]
fn a_budget_that_ends_without_a_session_is_no_contention_even_if_the_holder_can_be_asked_for() {
    let mut world = World::unconnected(1);
    let limits = WaitLimits { budget: Some(world.now + Duration::from_millis(300)), ..WaitLimits::default() };
    let ticket = world.ask(0, "a", 1, limits);
    world.fail(0, FailureClass::NotDone);
    world.pass_alone(Duration::from_millis(300));
    // The read of the holder comes through: there is none.
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
fn a_waiter_that_was_queued_is_told_of_contention_even_if_the_holder_s_name_comes_too_late() {
    let mut world = World::with(2);
    world.lock(1, "a", 1);
    world.settle();
    let limits = WaitLimits { budget: Some(world.now + Duration::from_millis(300)), ..WaitLimits::default() };
    let ticket = world.ask(0, "a", 1, limits);
    world.pass(Duration::from_millis(299));
    world.pass_alone(Duration::from_millis(100));
    assert_eq!(world.refusal(0, ticket), Some(Refusal::AlreadyHeld { holder: None }));
}

/// In one turn, the manager learns that the other one's key is gone and that `limit` has passed since now.
fn let_go_as_the_time_runs_out(world: &mut World, elsewhere: Ticket, limit: Duration) {
    world.nodes[0].deaf = true;
    world.abandon(1, elsewhere);
    world.settle_node(1);
    world.now = world.now + limit;
    world.together(0, |world| {
        world.nodes[0].deaf = false;
        assert!(world.hear(0));
        world.nodes[0].protocol.handle_timeout(world.now);
    });
    world.pass(Duration::from_millis(50));
}

#[test]
fn a_waiter_whose_predecessor_goes_in_the_turn_in_which_its_time_runs_out_is_told_of_contention() {
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
fn a_waiter_that_inherited_the_place_of_its_process_is_told_of_contention() {
    let mut world = World::with(2);
    let elsewhere = world.lock(1, "a", 1);
    world.settle();
    let first = world.lock(0, "a", 1);
    // Until nothing is read any more: the watch is known to be served.
    world.pass(Duration::from_millis(300));
    let heir = world.lock_within(0, "a", 2, Duration::from_millis(100));
    world.abandon(0, first);
    let_go_as_the_time_runs_out(&mut world, elsewhere, Duration::from_millis(100));
    let refusal = world.refusal(0, heir);
    assert!(matches!(refusal, Some(Refusal::Timeout { holder: None, .. })), "{refusal:?}");
}

#[test]
fn a_waiter_that_asks_after_the_only_other_one_of_its_process_gave_up_was_not_kept_out_by_it() {
    let mut world = World::with(2);
    let elsewhere = world.lock(1, "a", 1);
    world.settle();
    let first = world.lock(0, "a", 1);
    world.pass(Duration::from_millis(300));
    world.nodes[0].deaf = true;
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
fn a_key_of_ours_that_is_on_its_way_out_is_not_named_as_the_holder() {
    let mut world = World::with(2);
    let elsewhere = world.lock(1, "a", 1);
    world.settle();
    let waiter = world.lock_within(0, "a", 1, Duration::from_millis(300));
    world.settle();
    world.nodes[0].deaf = true;
    world.abandon(1, elsewhere);
    world.settle_node(1);
    world.pass_alone(Duration::from_millis(300));
    // The read of the holder finds our own key; the answer to its delete arrives first.
    let replies: Vec<_> =
        std::iter::from_fn(|| (!world.nodes[0].sent.is_empty()).then(|| world.carry_out(0))).collect();
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
fn whoever_was_kept_out_by_others_of_its_process_is_told_of_contention() {
    let mut world = World::with(1);
    let held = world.lock(0, "a", 1);
    world.settle();
    let next = world.lock_within(0, "a", 2, Duration::from_millis(300));
    let last = world.lock_within(0, "a", 3, Duration::from_millis(300));
    world.pass(Duration::from_millis(290));
    world.abandon(0, held);
    // The hand-over is under way when their limits end.
    world.pass_alone(Duration::from_millis(100));
    for ticket in [next, last] {
        let refusal = world.refusal(0, ticket);
        assert!(matches!(refusal, Some(Refusal::Timeout { .. })), "{refusal:?}");
    }
}

#[test]
fn whoever_asked_after_the_release_was_not_kept_out_by_it() {
    let mut world = World::with(1);
    let held = world.lock(0, "a", 1);
    world.settle();
    world.abandon(0, held);
    let late = world.lock_within(0, "a", 2, Duration::from_millis(300));
    world.pass_alone(Duration::from_millis(400));
    assert!(matches!(world.refusal(0, late), Some(Refusal::Unavailable(_))));
}

#[test]
fn what_was_read_before_a_ticket_asked_says_nothing_about_its_wait() {
    let mut world = World::with(2);
    let elsewhere = world.lock(1, "a", 1);
    world.settle();
    let given_up = world.lock(0, "a", 1);
    world.settle();
    world.nodes[0].deaf = true;
    world.abandon(1, elsewhere);
    world.settle_node(1);
    world.now = world.now + Duration::from_millis(1);
    // Nobody has the lock any more, which this process has not heard.
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
fn an_earlier_place_in_the_process_is_no_proof_of_contention_while_the_store_says_nothing() {
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
    world.nodes[0].deaf = true;
    // Its key is deleted by force, which it has not heard, and the copy puts it again.
    world.delete(held.key.clone());
    world.carry_out_late(&parked);
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
    world.nodes[0].deaf = true;
    world.pass_alone(Duration::from_millis(100));
    // The holder is read for the first ticket, and lets go before the second one asks.
    let is_inspection = |request: &Request| matches!(request, Request::Txn(txn) if txn.when.is_empty());
    let at = world.nodes[0].sent.iter().position(|(_, request)| is_inspection(request)).expect("it is read");
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
