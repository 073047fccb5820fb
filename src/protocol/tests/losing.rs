//! Renewals, and all the ways to lose a session or a hold.

use std::time::Duration;

use super::world::{MARGIN, TTL, World};
use crate::error::LossReason;
use crate::kv::{Answer, FailureClass, KeyValue, OpResult, RangeResult, Request, Response, TxnAnswer};
use crate::protocol::Refusal;

#[test]
fn the_lease_is_renewed_every_third_of_the_ttl() {
    let mut world = World::with(1);
    let ticket = world.lock(0, "a", 1);
    world.pass(TTL * 10);
    assert!(world.holds(0, ticket));
    let renewals = world.count(0, "renew");
    assert!((29..=31).contains(&renewals), "{renewals}");
}

#[test]
fn a_hold_ends_at_its_deadline_without_any_answer_and_before_the_lease_can() {
    let mut world = World::with(1);
    let ticket = world.lock(0, "a", 1);
    world.settle();
    world.pass_alone(TTL - MARGIN - Duration::from_millis(1));
    assert!(world.holds(0, ticket));
    world.pass_alone(Duration::from_millis(1));
    assert_eq!(world.loss(0, ticket), Some(LossReason::SessionExpired));
    assert!(world.model.next_expiry().unwrap() > world.now);
}

#[test]
fn the_deadline_counts_from_when_the_renewal_was_sent() {
    let mut world = World::with(1);
    let ticket = world.lock(0, "a", 1);
    world.settle();
    world.pass_alone(TTL / 3);
    let sent = world.now;
    let (request, reply) = world.execute_oldest(0);
    world.pass_alone(Duration::from_secs(1));
    world.deliver(0, request, reply);
    world.pass_alone(sent.since(world.now) + TTL - MARGIN - world.now.since(sent));
    assert_eq!(world.loss(0, ticket), Some(LossReason::SessionExpired));
}

#[test]
fn an_answer_at_or_after_the_deadline_does_not_revive_the_hold() {
    let mut world = World::with(1);
    let ticket = world.lock(0, "a", 1);
    world.settle();
    world.pass_alone(TTL / 3);
    let (request, reply) = world.execute_oldest(0);
    world.now = world.now + TTL;
    world.deliver(0, request, reply);
    assert_eq!(world.loss(0, ticket), Some(LossReason::SessionExpired));
}

#[test]
fn a_member_of_an_older_term_cannot_extend_the_lease() {
    let mut world = World::with(1);
    let ticket = world.lock(0, "a", 1);
    world.settle();
    world.model.set_term(5);
    world.pass(TTL / 3);
    world.model.set_term(4);
    for _ in 0..100 {
        world.pass_alone(TTL / 30);
        while let Some((id, request)) = world.nodes[0].sent.pop_front() {
            let reply = match request {
                Request::RenewLease { .. } => {
                    Ok(Response { revision: 1, term: 4, answer: Answer::LeaseRenewed { ttl: TTL } })
                }
                _ => Err(crate::kv::Failure::new(FailureClass::Unknown, "")),
            };
            world.deliver(0, id, reply);
        }
    }
    assert_eq!(world.loss(0, ticket), Some(LossReason::SessionExpired));
}

#[test]
fn the_next_session_accepts_the_lower_term_of_a_restored_cluster() {
    let mut world = World::with(1);
    world.model.set_term(7);
    world.pass(TTL);
    world.model.set_term(2);
    world.pass(TTL * 2);
    let sessions = world.session_keys();
    assert_eq!(sessions.len(), 1);
    let held = world.lock(0, "a", 1);
    world.pass(TTL * 3);
    assert!(world.holds(0, held));
    assert_eq!(world.session_keys(), sessions);
}

#[test]
fn a_session_whose_epoch_decreased_with_a_restore_is_replaced() {
    let mut world = World::with(1);
    let backup = world.model.clone();
    // The epoch changes after the backup.
    let given_up = world.lock(0, "a", 1);
    world.lose_txn(0).expect("the acquire is in flight");
    world.abandon(0, given_up);
    world.pass(Duration::from_millis(500));
    let held = world.lock(0, "b", 1);
    world.settle();
    assert!(world.holds(0, held));
    world.restore(backup);
    let next = world.lock(0, "c", 1);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.loss(0, held), Some(LossReason::SessionRevoked));
    assert!(world.holds(0, next));
}

#[test]
fn failed_renewals_are_retried_and_do_not_end_the_session() {
    let mut world = World::with(1);
    let ticket = world.lock(0, "a", 1);
    world.settle();
    world.pass_alone(TTL / 3);
    world.fail(0, FailureClass::Unknown);
    world.pass_alone(TTL / 20);
    world.fail(0, FailureClass::NotDone);
    world.pass(TTL);
    assert!(world.holds(0, ticket));
    assert_eq!(world.session_keys().len(), 1);
}

#[test]
fn a_renewal_that_finds_no_lease_ends_the_session_at_once() {
    let mut world = World::with(1);
    let ticket = world.lock(0, "a", 1);
    world.settle();
    world.nodes[0].events_held_back = true;
    let lease = world.contenders("a")[0].lease;
    world.model.expire_lease(lease);
    world.pass(TTL / 3);
    assert_eq!(world.loss(0, ticket), Some(LossReason::SessionRevoked));
}

#[test]
fn an_expired_session_is_replaced_and_its_lease_revoked_after_its_holds_ended() {
    let mut world = World::with(2);
    let held = world.lock(0, "a", 1);
    world.settle();
    let waiter = world.lock(0, "a", 2);
    let elsewhere = world.lock(1, "a", 1);
    // Only the first manager gets no answers.
    for _ in 0..90 {
        world.pass_alone(TTL / 100);
        while !world.nodes[1].sent.is_empty() {
            world.answer(1);
        }
    }
    assert_eq!(world.loss(0, held), Some(LossReason::SessionExpired));
    let log = world.nodes[0].log.join("\n");
    assert!(
        log.contains("SessionDown") && !log.contains("EndHold"),
        "one action ends all holds of the session"
    );
    world.settle();
    assert!(!world.holds(1, elsewhere), "the old holder has the safety margin to stop");
    world.pass(MARGIN);
    assert!(world.holds(1, elsewhere));
    assert_eq!(world.refusal(0, waiter), None, "waiters stay");
    world.abandon(1, elsewhere);
    world.settle();
    assert!(world.holds(0, waiter));
    assert!(!world.holds(0, held), "a lost hold stays lost");
    assert_eq!(world.session_keys().len(), 2);
}

#[test]
fn a_revoked_lease_is_the_reported_reason_even_if_the_contender_s_deletion_is_reported_first() {
    let mut world = World::with(1);
    let held = world.lock(0, "a", 1);
    world.pass(Duration::from_millis(200));
    let contender = world.contenders("a")[0].clone();
    world.model.expire_lease(contender.lease);
    world.settle();
    assert_eq!(world.loss(0, held), Some(LossReason::SessionRevoked));
    let again = world.lock(0, "a", 1);
    world.settle();
    assert!(world.holds(0, again));
}

#[test]
fn a_deleted_session_key_ends_the_session() {
    let mut world = World::with(1);
    let held = world.lock(0, "a", 1);
    world.settle();
    let key = world.session_keys()[0].key.clone();
    world.delete(key);
    world.settle();
    assert_eq!(world.loss(0, held), Some(LossReason::SessionRevoked));
    assert_eq!(world.model.leases().count(), 1, "the old lease is revoked");
}

#[test]
fn a_waiter_whose_session_is_revoked_queues_again_under_the_next() {
    let mut world = World::with(2);
    let holder = world.lock(0, "a", 1);
    world.settle();
    let waiter = world.lock(1, "a", 1);
    world.settle();
    let lease = world.contenders("a")[1].lease;
    world.model.expire_lease(lease);
    world.settle();
    assert_eq!(world.contenders("a").len(), 2);
    world.abandon(0, holder);
    world.settle();
    assert!(world.holds(1, waiter));
}

#[test]
fn a_forced_unlock_is_reported_and_the_next_waiter_gets_the_lock() {
    let mut world = World::with(2);
    let held = world.lock(0, "a", 1);
    world.settle();
    let local = world.lock(0, "a", 2);
    let elsewhere = world.lock(1, "a", 1);
    world.pass(Duration::from_millis(100));
    let key = world.contenders("a")[0].key.clone();
    world.delete(key);
    world.settle();
    assert_eq!(world.loss(0, held), Some(LossReason::ForceUnlocked));
    assert!(world.holds(1, elsewhere));
    world.abandon(1, elsewhere);
    world.settle();
    assert!(world.holds(0, local));
}

#[test]
fn a_forced_unlock_right_after_the_grant_is_reported_once_the_own_key_is_watched() {
    let mut world = World::with(1);
    let held = world.lock(0, "a", 1);
    world.settle();
    let key = world.contenders("a")[0].key.clone();
    world.delete(key);
    world.pass(Duration::from_millis(100));
    assert_eq!(world.loss(0, held), Some(LossReason::ForceUnlocked));
}

#[test]
fn a_forced_unlock_is_reported_even_if_its_reason_cannot_be_read() {
    let mut world = World::with(1);
    let held = world.lock(0, "a", 1);
    world.pass(Duration::from_millis(100));
    let key = world.contenders("a")[0].key.clone();
    world.delete(key);
    world.deliver_events(0);
    assert!(world.holds(0, held));
    world.pass_alone(Duration::from_millis(50));
    assert_eq!(world.loss(0, held), Some(LossReason::ForceUnlocked));
}

/// A correct store never answers so. If it happens, the hold cannot be relied on.
#[test]
fn a_newer_read_that_shows_a_predecessor_of_the_holder_ends_the_hold() {
    let mut world = World::with(1);
    let held = world.lock(0, "a", 1);
    world.pass(Duration::from_millis(200));
    let own = world.contenders("a")[0].clone();
    let revision = world.model.revision() + 1;
    world.report_deletion(0, own.key.clone(), revision);
    let (read, _) = world.nodes[0].sent.pop_back().expect("the contender reads its position");
    let before = KeyValue { key: "/t/a/1-1".into(), create_revision: own.create_revision - 1, ..own.clone() };
    let found = |kv| OpResult::Range(RangeResult { kvs: vec![kv], count: 1 });
    let answer = TxnAnswer { succeeded: true, results: vec![found(own), found(before)] };
    world.deliver(0, read, Ok(Response { revision, term: 1, answer: Answer::Txn(answer) }));
    assert_eq!(world.loss(0, held), Some(LossReason::ForceUnlocked));
}

#[test]
fn a_waiter_whose_key_is_deleted_queues_again_and_is_never_granted_on_the_dead_key() {
    let mut world = World::with(2);
    let holder = world.lock(0, "a", 1);
    world.settle();
    let waiter = world.lock(1, "a", 1);
    world.pass(Duration::from_millis(100));
    let dead = world.contenders("a")[1].clone();
    world.delete(dead.key.clone());
    world.settle();
    let alive = world.contenders("a")[1].clone();
    assert_ne!(alive.key, dead.key);
    world.abandon(0, holder);
    world.settle();
    assert_eq!(world.token(1, waiter), Some(alive.create_revision));
}

#[test]
fn a_waiter_whose_key_was_reported_deleted_is_not_granted_by_an_older_answer() {
    let mut world = World::with(2);
    let holder = world.lock(0, "a", 1);
    world.settle();
    let waiter = world.lock(1, "a", 1);
    let (acquire, queued) = world.execute_oldest(1);
    let dead = world.contenders("a")[1].clone();
    // The holder releases before the waiter's watch is confirmed, so the waiter reads its position. Before that answer
    // arrives, the waiter's key is deleted, which its watch reports.
    world.abandon(0, holder);
    world.answer(0);
    world.deliver(1, acquire, queued);
    world.deliver_events(1);
    let (request, reply) = world.execute_oldest(1);
    world.delete(dead.key.clone());
    world.deliver_events(1);
    world.deliver(1, request, reply);
    world.settle();
    assert!(world.token(1, waiter).unwrap() > dead.create_revision);
}

#[test]
fn without_a_session_a_final_refusal_reaches_the_waiters_and_the_session_is_retried() {
    let mut world = World::unconnected(1);
    let ticket = world.lock(0, "a", 1);
    world.fail(0, FailureClass::Unauthenticated);
    assert!(matches!(world.refusal(0, ticket), Some(Refusal::Failed(_))));
    let later = world.lock(0, "a", 1);
    world.pass(Duration::from_millis(100));
    assert!(world.holds(0, later));
}

#[test]
fn a_hold_that_a_caller_saw_expire_stays_expired() {
    let mut world = World::with(1);
    let held = world.lock(0, "a", 1);
    world.settle();
    let now = world.now;
    world.nodes[0].protocol.handle_expired(now);
    world.settle();
    assert_eq!(world.loss(0, held), Some(LossReason::SessionExpired));
    let next = world.lock(0, "a", 1);
    world.pass(MARGIN);
    assert!(world.holds(0, next));
}
