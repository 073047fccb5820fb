//! No key of ours is left behind, whatever the store reports or refuses.

use std::time::Duration;

use super::world::{MARGIN, TTL, World};
use crate::error::LossReason;
use crate::kv::{
    Answer, FailureClass, Key, Op, OpResult, RangeResult, Request, Response, Span, Txn, TxnAnswer,
};
use crate::protocol::Refusal;
use crate::store::memory::model::{Limits, Model};

#[test]
fn an_acquire_that_was_executed_and_answered_with_no_space_leaves_no_key() {
    let mut world = World::with(2);
    let ticket = world.lock(0, "a", 1);
    world.execute_and_answer_no_space(0);
    assert!(matches!(
        world.refusal(0, ticket),
        Some(Refusal::Failed(failure)) if failure.class == FailureClass::NoSpace
    ));
    world.settle();
    assert!(world.contenders("a").is_empty());
    let next = world.lock(1, "a", 1);
    world.settle();
    assert!(world.holds(1, next));
}

#[test]
fn a_batch_that_was_executed_and_answered_with_no_space_leaves_no_key() {
    let mut world = World::with(1);
    for i in 0..20 {
        world.lock(0, &format!("n{i}"), 1);
    }
    for _ in 0..3 {
        world.answer(0);
    }
    world.execute_and_answer_no_space(0);
    world.settle();
    assert_eq!(world.read(Span::Prefix(Key::from("/t/n"))).len(), 3);
}

#[test]
fn a_release_succeeds_without_space() {
    let mut world = World::with(1);
    let ticket = world.lock(0, "a", 1);
    world.settle();
    world.abandon_and_confirm(0, ticket);
    // etcd 3.4 and 3.5 before 3.5.7 refuse a transaction with only deletes, but not a plain delete.
    world.fail(0, FailureClass::NoSpace);
    world.settle();
    assert_eq!(world.count(0, "delete"), 1);
    assert_eq!(world.nodes[0].confirms[&ticket], Ok(()));
    assert!(world.contenders("a").is_empty());
    let again = world.lock(0, "a", 1);
    world.settle();
    let (first, second) = (world.key_of(0, ticket), world.key_of(0, again));
    assert_ne!(first, second, "a plain delete could be executed twice");
}

/// An acquire that is granted by its second copy, so its release needs a new epoch.
fn hold_that_needs_a_fence(world: &mut World) -> crate::protocol::Ticket {
    let ticket = world.lock(0, "a", 1);
    world.lose_answer(0);
    world.pass(Duration::from_millis(200));
    assert!(world.holds(0, ticket));
    ticket
}

#[test]
fn a_release_that_needs_a_fence_frees_the_lock_at_once_even_if_the_fence_is_refused() {
    let refuse: [fn(&mut World); 2] = [
        |world| world.model.set_no_space(true),
        |world| world.model.deny(Some(Span::Prefix(Key::from("/t/~session/")))),
    ];
    for refuse in refuse {
        let mut world = World::with(1);
        let ticket = hold_that_needs_a_fence(&mut world);
        refuse(&mut world);
        world.abandon_and_confirm(0, ticket);
        world.pass(Duration::from_secs(2));
        assert!(world.contenders("a").is_empty());
        assert_eq!(world.nodes[0].confirms.get(&ticket), None, "a late copy could put the key again");
        world.model.set_no_space(false);
        world.model.deny(None);
        world.pass(Duration::from_secs(3));
        assert_eq!(world.nodes[0].confirms[&ticket], Ok(()));
        assert!(world.nodes[0].protocol.is_idle());
    }
}

#[test]
fn a_copy_that_puts_the_key_between_an_early_delete_and_the_fence_is_deleted_at_last() {
    let mut world = World::with(1);
    let ticket = world.lock(0, "a", 1);
    let parked = world.lose_txn(0).expect("the acquire is in flight");
    world.pass(Duration::from_millis(200));
    world.abandon_and_confirm(0, ticket);
    // The early delete is executed with its answer lost, and then the copy is executed.
    let release = world.lose_txn(0).expect("the release is in flight");
    world.execute_late(&release);
    world.execute_late(&parked);
    assert_eq!(world.contenders("a").len(), 1);
    world.pass(Duration::from_secs(2));
    assert!(world.contenders("a").is_empty());
    assert_eq!(world.nodes[0].confirms[&ticket], Ok(()));
}

/// Fences fail, so every stale key keeps waiting for one.
fn answer_all_but_fences(world: &mut World) {
    while let Some((_, request)) = world.nodes[0].sent.front() {
        match request {
            Request::Txn(Txn { when, then, .. })
                if when.is_empty() && matches!(then[..], [Op::Put { .. }]) =>
            {
                world.fail(0, FailureClass::NotDone);
            }
            _ => world.answer(0),
        }
    }
}

#[test]
fn stale_keys_beyond_the_limit_of_a_transaction_are_deleted_one_after_the_other() {
    let mut world = World::with(1);
    world.model = Model::with(Limits { max_txn_ops: 8, ..Limits::default() }, 1);
    let mut world = world.reconnected();
    for _ in 0..30 {
        let ticket = world.lock(0, "a", 1);
        world.lose_txn(0).expect("the acquire is in flight");
        world.pass_alone(Duration::from_millis(100));
        answer_all_but_fences(&mut world);
        assert!(world.holds(0, ticket));
        world.abandon(0, ticket);
        answer_all_but_fences(&mut world);
    }
    let last = world.lock(0, "a", 1);
    world.pass(TTL);
    assert!(world.holds(0, last));
    assert_eq!(world.contenders("a").len(), 1);
}

#[test]
fn a_deletion_of_an_earlier_use_of_the_key_does_not_end_the_hold() {
    let mut world = World::with(1);
    let earlier = world.lock(0, "a", 1);
    world.settle();
    let key = world.contenders("a")[0].key.clone();
    world.abandon(0, earlier);
    world.settle();
    let ended = world.model.revision();
    let held = world.lock(0, "a", 1);
    world.pass(Duration::from_millis(200));
    // The watch of the key was reopened at a lagging member.
    world.report_deletion(0, key, ended);
    world.pass_alone(Duration::from_millis(200));
    assert!(world.holds(0, held));
}

#[test]
fn a_hold_whose_key_is_falsely_reported_deleted_ends_and_deletes_the_key() {
    let mut world = World::with(2);
    let held = world.lock(0, "a", 1);
    world.pass(Duration::from_millis(200));
    let key = world.contenders("a")[0].clone();
    // etcd reports the deletion, falsely.
    world.report_deletion(0, key.key.clone(), world.model.revision() + 5);
    let elsewhere = world.lock(1, "a", 1);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.loss(0, held), Some(LossReason::ForceUnlocked));
    assert!(world.holds(1, elsewhere), "the key does not block the queue");
}

/// The answer of a lagging member to a read of the position: it does not know our key yet.
fn older_answer(revision: i64) -> Response {
    let nothing = || OpResult::Range(RangeResult::default());
    let answer = TxnAnswer { succeeded: true, results: vec![nothing(), nothing()] };
    Response { revision, term: 1, answer: Answer::Txn(answer) }
}

#[test]
fn an_answer_older_than_the_key_says_nothing_about_it() {
    let mut world = World::with(2);
    let elsewhere = world.lock(1, "a", 1);
    world.settle();
    let before = world.model.revision();
    let waiter = world.lock(0, "a", 1);
    world.answer(0);
    let created = world.contenders("a")[1].create_revision;
    world.nodes[0].events_held_back = true;
    world.pass_alone(Duration::from_secs(3));
    let (read, _) = world.nodes[0].sent.pop_back().expect("it reads its position");
    world.nodes[0].sent.clear();
    world.deliver(0, read, Ok(older_answer(before)));
    world.nodes[0].events_held_back = false;
    world.pass(Duration::from_secs(3));
    world.abandon(1, elsewhere);
    world.pass(Duration::from_secs(3));
    assert_eq!(world.token(0, waiter), Some(created), "its first key is still queued");
}

#[test]
fn a_full_store_is_reported_at_once_even_while_a_stale_key_waits_for_its_fence() {
    let mut world = World::with(1);
    let ticket = hold_that_needs_a_fence(&mut world);
    world.model.set_no_space(true);
    world.abandon(0, ticket);
    // The early delete is refused as a transaction, and executed as a plain delete.
    world.fail(0, FailureClass::NoSpace);
    world.settle();
    assert!(world.contenders("a").is_empty());
    let waiter = world.lock(0, "a", 1);
    world.settle();
    let tried = world.try_lock(0, "a", 1);
    world.pass(Duration::from_secs(3));
    for ticket in [waiter, tried] {
        let refusal = world.refusal(0, ticket);
        assert!(
            matches!(&refusal, Some(Refusal::Failed(failure)) if failure.class == FailureClass::NoSpace),
            "{refusal:?}"
        );
    }
}

#[test]
fn closing_revokes_the_lease_of_a_session_that_was_lost_just_before() {
    let mut world = World::with(2);
    world.lock(0, "a", 1);
    world.settle();
    // The last renewal is executed and its answer is lost, so the lease outlives the hold.
    world.pass_alone(TTL / 3);
    let (_, renewal) = world.nodes[0].sent.pop_front().expect("a renewal");
    world.execute_late(&renewal);
    world.pass_alone(TTL - MARGIN - TTL / 3 + Duration::from_millis(10));
    let lost = world.nodes[0].log.iter().any(|line| line.starts_with("SessionDown"));
    assert!(lost && !world.contenders("a").is_empty());
    world.nodes[0].sent.clear();
    world.command(0, crate::protocol::Command::Close);
    assert!(!world.nodes[0].closed, "its lease is not revoked yet");
    while !world.nodes[0].sent.is_empty() {
        world.answer(0);
    }
    assert!(world.contenders("a").is_empty());
}
