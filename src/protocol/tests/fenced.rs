//! What holders ask of etcd while they hold: it is carried out only while the hold stands, and an unanswered write never
//! lands on a later one.

use std::time::Duration;

use super::node::FencedResult;
use super::world::{NodeId, TTL, World};
use crate::error::LossReason;
use crate::kv::{Failure, FailureClass, Key, Request, Span};
use crate::protocol::mutants::Mutant;
use crate::protocol::{
    Command, FencedAnswer, FencedCall, FencedFailure, FencedId, FencedRequest, FencedWrite, Ticket,
};

const DATA: &str = "/data";

impl World {
    /// A holder asks for something; it waits for five seconds.
    fn fenced(&mut self, id: NodeId, ticket: Ticket, request: FencedRequest) -> FencedId {
        let call = FencedId(self.nodes[id].fenced.len() as u64 + 1_000 * (self.count(id, "txn") as u64 + 1));
        let until = self.now + Duration::from_secs(5);
        self.command(id, Command::Fenced(FencedCall { id: call, ticket, request, until }));
        call
    }

    fn put(&mut self, id: NodeId, ticket: Ticket, value: &str) -> FencedId {
        let write = FencedWrite::Put { key: Key::from(DATA), value: value.into() };
        self.fenced(id, ticket, FencedRequest::Write(vec![write]))
    }

    fn get(&mut self, id: NodeId, ticket: Ticket) -> FencedId {
        self.fenced(id, ticket, FencedRequest::Get(Key::from(DATA)))
    }

    /// The lock "a" held by a node.
    fn held(nodes: usize) -> (Self, Ticket) {
        let mut world = Self::with(nodes);
        let ticket = world.lock(0, "a", 1);
        world.settle();
        assert!(world.holds(0, ticket));
        (world, ticket)
    }

    fn data(&self) -> Option<String> {
        let kv = self.read(Span::Key(Key::from(DATA))).pop()?;
        Some(String::from_utf8(kv.value).unwrap())
    }

    fn answer_to(&self, id: NodeId, call: FencedId) -> Option<&FencedResult> {
        self.nodes[id].fenced.get(&call)
    }

    fn is_done(&self, id: NodeId, call: FencedId) -> bool {
        matches!(self.answer_to(id, call), Some(Ok(_)))
    }

    fn is_not_held(&self, id: NodeId, call: FencedId) -> bool {
        self.answer_to(id, call) == Some(&Err(FencedFailure::NotHeld))
    }

    fn is_unknown(&self, id: NodeId, call: FencedId) -> bool {
        matches!(self.answer_to(id, call), Some(Err(FencedFailure::Failed(failure))) if failure.class == FailureClass::Unknown)
    }

    /// Moves the epoch, as the manager does for another lock's lost request.
    fn move_epoch(&mut self) {
        let key = self.session_keys()[0].clone();
        let put = crate::kv::Op::Put { key: key.key, value: Vec::new(), lease: key.lease };
        let txn = crate::kv::Txn { then: vec![put], ..Default::default() };
        self.model.execute(self.now, &Request::Txn(txn)).unwrap();
    }
}

#[test]
fn a_write_of_a_holder_is_one_request() {
    let (mut world, ticket) = World::held(1);
    let sent = world.count(0, "txn");
    let put = world.put(0, ticket, "1");
    world.settle();
    assert!(world.is_done(0, put));
    let get = world.get(0, ticket);
    world.settle();
    let value = Some(b"1".to_vec());
    assert!(matches!(world.answer_to(0, get), Some(Ok(FencedAnswer { value: read, .. })) if *read == value));
    assert_eq!(world.count(0, "txn"), sent + 2);
}

#[test]
fn a_write_of_a_hold_that_is_over_is_refused_without_a_request() {
    let (mut world, ticket) = World::held(1);
    world.abandon(0, ticket);
    world.settle();
    let sent = world.count(0, "txn");
    let put = world.put(0, ticket, "1");
    assert!(world.is_not_held(0, put));
    assert_eq!(world.count(0, "txn"), sent);
}

#[test]
fn a_write_after_a_forced_unlock_is_refused_by_etcd_and_ends_the_hold() {
    let (mut world, ticket) = World::held(2);
    world.nodes[0].events_held_back = true;
    let key = world.key_of(0, ticket).unwrap();
    world.delete(key);
    let next = world.lock(1, "a", 1);
    world.settle();
    assert!(world.holds(1, next) && world.holds(0, ticket));
    let put = world.put(0, ticket, "late");
    world.settle();
    assert!(world.is_not_held(0, put));
    assert_eq!(world.loss(0, ticket), Some(LossReason::ForceUnlocked));
    assert_eq!(world.data(), None);
}

#[test]
fn a_write_after_a_revoked_lease_ends_the_session() {
    let (mut world, ticket) = World::held(1);
    world.nodes[0].events_held_back = true;
    let lease = world.session_keys()[0].lease;
    world.model.execute(world.now, &Request::RevokeLease { lease }).unwrap();
    let put = world.put(0, ticket, "late");
    world.settle();
    assert!(world.is_not_held(0, put));
    assert_eq!(world.loss(0, ticket), Some(LossReason::SessionRevoked));
    assert_eq!(world.data(), None);
}

#[test]
fn a_write_that_is_refused_because_the_epoch_moved_goes_again() {
    let (mut world, ticket) = World::held(1);
    world.move_epoch();
    let put = world.put(0, ticket, "1");
    world.settle();
    assert!(world.is_done(0, put));
    assert_eq!(world.data().as_deref(), Some("1"));
}

/// The old copy is executed after the next write was acknowledged.
fn an_old_copy_after_a_later_write() -> Option<String> {
    let (mut world, ticket) = World::held(1);
    let first = world.put(0, ticket, "1");
    let parked = world.lose_answer(0);
    assert!(world.is_unknown(0, first));
    let second = world.put(0, ticket, "2");
    world.settle();
    assert!(world.is_done(0, second));
    world.execute_late(&parked);
    world.data()
}

#[test]
fn an_unanswered_write_never_lands_on_a_later_one() {
    assert_eq!(an_old_copy_after_a_later_write().as_deref(), Some("2"));
    let mutant = Mutant::FencedUnderOldEpoch.during(an_old_copy_after_a_later_write);
    assert_eq!(mutant.as_deref(), Some("1"), "without a new epoch it does");
}

#[test]
fn what_a_read_shows_after_an_unanswered_write_is_final() {
    let (mut world, ticket) = World::held(1);
    world.put(0, ticket, "1");
    let parked = world.lose_answer(0);
    let get = world.get(0, ticket);
    world.settle();
    assert!(matches!(world.answer_to(0, get), Some(Ok(FencedAnswer { value: None, .. }))));
    world.execute_late(&parked);
    assert_eq!(world.data(), None);
}

/// Before the failure of the first is known, its caller may have stopped waiting and written again.
#[test]
fn a_write_whose_caller_may_have_gone_counts_as_unanswered() {
    let (mut world, ticket) = World::held(1);
    world.put(0, ticket, "1");
    let (_, parked) = world.nodes[0].sent.pop_front().unwrap();
    world.pass(Duration::from_secs(5));
    let second = world.put(0, ticket, "2");
    world.settle();
    assert!(world.is_done(0, second));
    world.execute_late(&parked);
    assert_eq!(world.data().as_deref(), Some("2"));
}

#[test]
fn an_unanswered_write_does_not_land_after_the_release() {
    let (mut world, ticket) = World::held(2);
    world.put(0, ticket, "1");
    let parked = world.lose_answer(0);
    world.abandon_and_confirm(0, ticket);
    world.settle();
    assert_eq!(world.nodes[0].confirms[&ticket], Ok(()));
    let next = world.lock(1, "a", 1);
    world.settle();
    assert!(world.holds(1, next));
    world.execute_late(&parked);
    assert_eq!(world.data(), None);
}

/// The key of the hold is used again by a later hold of the same session.
fn an_old_copy_in_a_later_hold_of_the_same_key() -> Option<String> {
    let (mut world, ticket) = World::held(1);
    world.put(0, ticket, "1");
    let parked = world.lose_answer(0);
    let key = world.key_of(0, ticket);
    world.abandon(0, ticket);
    let again = world.lock(0, "a", 1);
    world.settle();
    assert!(world.holds(0, again));
    assert_eq!(world.key_of(0, again), key);
    world.execute_late(&parked);
    world.data()
}

#[test]
fn an_unanswered_write_does_not_land_in_a_later_hold_of_the_same_key() {
    assert_eq!(an_old_copy_in_a_later_hold_of_the_same_key(), None);
    let mutant = Mutant::FencedByExistence.during(an_old_copy_in_a_later_hold_of_the_same_key);
    assert_eq!(mutant.as_deref(), Some("1"), "compared by existence it does");
}

#[test]
fn a_write_in_flight_at_the_loss_of_the_session_is_answered_by_etcd() {
    let (mut world, ticket) = World::held(1);
    let put = world.put(0, ticket, "1");
    let (request, reply) = world.execute_oldest(0);
    let waiting = world.get(0, ticket);
    world.pass_alone(TTL);
    assert!(!world.holds(0, ticket));
    world.deliver(0, request, reply);
    assert!(world.is_done(0, put), "it was carried out while the hold stood");
    assert!(world.answer_to(0, waiting).is_none());
}

#[test]
fn a_refusal_in_the_next_session_does_not_end_that() {
    let (mut world, ticket) = World::held(1);
    let put = world.put(0, ticket, "1");
    let (id, request) = world.nodes[0].sent.pop_front().unwrap();
    world.pass_alone(TTL);
    world.settle();
    world.pass(Duration::from_secs(2));
    let next = world.lock(0, "b", 1);
    world.settle();
    assert!(world.holds(0, next));
    let reply = world.model.execute(world.now, &request);
    world.deliver(0, id, reply);
    assert!(world.is_not_held(0, put));
    assert!(world.holds(0, next));
}

#[test]
fn a_request_that_was_not_carried_out_goes_again_until_its_time_is_over() {
    let (mut world, ticket) = World::held(1);
    let put = world.put(0, ticket, "1");
    world.fail(0, FailureClass::NotDone);
    assert!(world.answer_to(0, put).is_none());
    world.pass(Duration::from_millis(200));
    assert!(world.is_done(0, put));
    let put = world.put(0, ticket, "2");
    world.fail_for(0, Duration::from_secs(5), FailureClass::NotDone);
    assert!(
        matches!(world.answer_to(0, put), Some(Err(FencedFailure::Failed(failure))) if failure.class == FailureClass::NotDone)
    );
}

#[test]
fn a_read_without_an_answer_goes_again() {
    let (mut world, ticket) = World::held(1);
    let get = world.get(0, ticket);
    world.fail(0, FailureClass::Unknown);
    world.pass(Duration::from_millis(200));
    assert!(world.is_done(0, get));
}

#[test]
fn a_write_that_etcd_refuses_for_good_is_answered_at_once() {
    for class in [FailureClass::TooLarge, FailureClass::PermissionDenied, FailureClass::NoSpace] {
        let (mut world, ticket) = World::held(1);
        let put = world.put(0, ticket, "1");
        world.fail(0, class);
        assert!(
            matches!(world.answer_to(0, put), Some(Err(FencedFailure::Failed(failure))) if failure.class == class)
        );
        assert!(world.holds(0, ticket));
    }
}

#[test]
fn a_note_is_put_into_the_value_and_keeps_the_place_in_the_queue() {
    let mut world = World::with(2);
    world.note = Some("first".into());
    let ticket = world.lock(0, "a", 7);
    world.settle();
    let waiter = world.lock(1, "a", 1);
    world.settle();
    let before = world.contenders("a")[0].clone();
    let call = world.fenced(0, ticket, FencedRequest::Note(Some("second".into())));
    world.pass(Duration::from_secs(1));
    assert!(world.is_done(0, call));
    let after = world.contenders("a")[0].clone();
    assert_eq!(
        (after.create_revision, &after.key, after.lease),
        (before.create_revision, &before.key, before.lease)
    );
    let [before, after] = [before, after].map(|kv| String::from_utf8(kv.value).unwrap());
    assert_eq!(before.replace("first", "second"), after);
    assert!(world.holds(0, ticket) && !world.holds(1, waiter));
    world.abandon(0, ticket);
    world.settle();
    assert!(world.holds(1, waiter));
}

#[test]
fn a_ticket_does_not_acquire_with_a_key_that_has_another_note() {
    let mut world = World::with(2);
    let holder = world.lock(1, "a", 1);
    world.settle();
    world.note = Some("gave up".into());
    let first = world.lock(0, "a", 1);
    world.settle();
    world.note = Some("stayed".into());
    let second = world.lock(0, "a", 2);
    world.abandon(0, first);
    world.settle();
    world.abandon(1, holder);
    world.settle();
    assert!(world.holds(0, second));
    let value = String::from_utf8(world.contenders("a")[0].value.clone()).unwrap();
    assert!(value.contains("stayed"), "{value}");
    assert_eq!(world.contenders("a").len(), 1);
}

/// Two threads share the hold. The failure of the later write is known first, and its copy is carried out last.
fn two_unanswered_writes_and_a_third() -> Option<String> {
    let (mut world, ticket) = World::held(1);
    world.put(0, ticket, "1");
    let (first, _) = world.nodes[0].sent.pop_front().unwrap();
    world.move_epoch();
    let refreshed = world.put(0, ticket, "0");
    world.settle();
    assert!(world.is_done(0, refreshed));
    world.put(0, ticket, "2");
    let parked = world.lose_answer(0);
    world.deliver(0, first, Err(Failure::new(FailureClass::Unknown, "no answer")));
    let third = world.put(0, ticket, "3");
    world.settle();
    assert!(world.is_done(0, third));
    world.execute_late(&parked);
    world.data()
}

#[test]
fn the_latest_of_several_unanswered_writes_decides_when_the_next_one_is_sent() {
    assert_eq!(two_unanswered_writes_and_a_third().as_deref(), Some("3"));
    let mutant = Mutant::FencedEpochTakenBack.during(two_unanswered_writes_and_a_third);
    assert_eq!(mutant.as_deref(), Some("2"), "if the last failure decides, it lands");
}

#[test]
fn an_empty_commit_that_a_lagging_member_answers_ends_no_session() {
    let (mut world, ticket) = World::held(1);
    let lagging = world.model.clone();
    let other = world.lock(0, "b", 1);
    world.settle();
    let empty = world.fenced(0, ticket, FencedRequest::Write(Vec::new()));
    let (id, request) = world.nodes[0].sent.pop_front().unwrap();
    let old = lagging.clone().execute(world.now, &request);
    world.deliver(0, id, old);
    assert!(world.holds(0, ticket) && world.holds(0, other));
    world.pass(Duration::from_millis(500));
    assert!(world.is_done(0, empty));
}

#[test]
fn closing_answers_everybody() {
    let (mut world, ticket) = World::held(1);
    let in_flight = world.put(0, ticket, "1");
    world.command(0, Command::Close);
    assert!(world.is_unknown(0, in_flight));
    let late = world.put(0, ticket, "2");
    assert!(world.is_not_held(0, late));
}
