//! Renewal, and every way to lose a session or a hold.

use std::time::Duration;

use super::world::{MARGIN, TTL, World};
use crate::error::LossReason;
use crate::kv::{Answer, FailureClass, KeyValue, OpResult, RangeResult, Request, Response, TxnAnswer};
use crate::protocol::Refusal;

#[test]
fn renewals_go_on_by_themselves_every_third_of_the_ttl() {
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
    let (request, reply) = world.carry_out(0);
    world.pass_alone(Duration::from_secs(1));
    world.deliver(0, request, reply);
    world.pass_alone(sent.since(world.now) + TTL - MARGIN - world.now.since(sent));
    assert_eq!(world.loss(0, ticket), Some(LossReason::SessionExpired));
}

#[test]
fn an_answer_that_comes_with_or_after_the_deadline_does_not_revive_the_hold() {
    let mut world = World::with(1);
    let ticket = world.lock(0, "a", 1);
    world.settle();
    world.pass_alone(TTL / 3);
    let (request, reply) = world.carry_out(0);
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
fn a_cluster_that_was_restored_with_a_lower_term_is_served_by_the_next_session() {
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
fn a_session_whose_epoch_has_gone_back_with_a_restored_store_is_replaced() {
    let mut world = World::with(1);
    let backup = world.model.clone();
    // The epoch moves after the backup was made.
    let given_up = world.lock(0, "a", 1);
    world.lose_some_txn(0).expect("the acquire is under way");
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
fn failed_renewals_are_tried_again_and_do_not_end_the_session() {
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
    world.nodes[0].deaf = true;
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
    // Only the first manager hears nothing.
    for _ in 0..90 {
        world.pass_alone(TTL / 100);
        while !world.nodes[1].sent.is_empty() {
            world.answer(1);
        }
    }
    assert_eq!(world.loss(0, held), Some(LossReason::SessionExpired));
    let log = world.nodes[0].log.join("\n");
    assert!(log.contains("SessionDown") && !log.contains("EndHold"), "one end for all holds of the session");
    world.settle();
    assert!(!world.holds(1, elsewhere), "the holder has the margin to stop");
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
fn a_revoked_lease_is_told_as_such_also_when_the_lock_s_own_key_is_heard_of_first() {
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
fn a_forced_unlock_is_told_and_the_next_one_gets_the_lock() {
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
fn a_forced_unlock_in_the_first_moments_is_told_when_the_own_key_s_watch_begins() {
    let mut world = World::with(1);
    let held = world.lock(0, "a", 1);
    world.settle();
    let key = world.contenders("a")[0].key.clone();
    world.delete(key);
    world.pass(Duration::from_millis(100));
    assert_eq!(world.loss(0, held), Some(LossReason::ForceUnlocked));
}

#[test]
fn a_forced_unlock_is_told_even_if_its_reason_cannot_be_asked_for() {
    let mut world = World::with(1);
    let held = world.lock(0, "a", 1);
    world.pass(Duration::from_millis(100));
    let key = world.contenders("a")[0].key.clone();
    world.delete(key);
    world.hear(0);
    assert!(world.holds(0, held));
    world.pass_alone(Duration::from_millis(50));
    assert_eq!(world.loss(0, held), Some(LossReason::ForceUnlocked));
}

/// It cannot be, whatever the reason; nothing that is built on such a hold can be relied on.
#[test]
fn a_newer_read_that_shows_somebody_before_the_holder_ends_the_hold() {
    let mut world = World::with(1);
    let held = world.lock(0, "a", 1);
    world.pass(Duration::from_millis(200));
    let own = world.contenders("a")[0].clone();
    let revision = world.model.revision() + 1;
    world.tell_newest_watch(0, own.key.clone(), revision);
    let (look, _) = world.nodes[0].sent.pop_back().expect("it looks whether that is so");
    let before = KeyValue { key: "/t/a/1-1".into(), create_revision: own.create_revision - 1, ..own.clone() };
    let found = |kv| OpResult::Range(RangeResult { kvs: vec![kv], count: 1 });
    let answer = TxnAnswer { succeeded: true, results: vec![found(own), found(before)] };
    world.deliver(0, look, Ok(Response { revision, term: 1, answer: Answer::Txn(answer) }));
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
fn a_waiter_that_was_told_of_its_key_s_end_is_not_granted_by_an_older_answer() {
    let mut world = World::with(2);
    let holder = world.lock(0, "a", 1);
    world.settle();
    let waiter = world.lock(1, "a", 1);
    let (acquire, queued) = world.carry_out(1);
    let dead = world.contenders("a")[1].clone();
    // The holder leaves before the waiter's watch stands, so the waiter looks; and before the answer arrives its key is
    // deleted and it is told.
    world.abandon(0, holder);
    world.answer(0);
    world.deliver(1, acquire, queued);
    world.hear(1);
    let (request, reply) = world.carry_out(1);
    world.delete(dead.key.clone());
    world.hear(1);
    world.deliver(1, request, reply);
    world.settle();
    assert!(world.token(1, waiter).unwrap() > dead.create_revision);
}

#[test]
fn without_a_session_final_refusals_reach_the_waiters_and_the_session_is_tried_again() {
    let mut world = World::unconnected(1);
    let ticket = world.lock(0, "a", 1);
    world.fail(0, FailureClass::Unauthenticated);
    assert!(matches!(world.refusal(0, ticket), Some(Refusal::Failed(_))));
    let later = world.lock(0, "a", 1);
    world.pass(Duration::from_millis(100));
    assert!(world.holds(0, later));
}

#[test]
fn what_a_caller_s_thread_saw_expire_stays_expired() {
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
