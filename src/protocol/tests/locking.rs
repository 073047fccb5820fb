//! Locking, queueing, handing over, trying.

use std::time::Duration;

use super::node::Outcome;
use super::world::World;
use crate::kv::{FailureClass, WatchEvent};
use crate::protocol::admission::WATCH_ALL_UP_TO;
use crate::protocol::{Refusal, Ticket, WaitLimits};

/// All nodes request the lock, one after the other.
fn queue_up(world: &mut World) -> Vec<Ticket> {
    let nodes = world.nodes.len();
    let ask = |node| {
        let ticket = world.lock(node, "a", 1);
        world.settle();
        ticket
    };
    (0..nodes).map(ask).collect()
}

#[test]
fn an_uncontended_lock_and_its_release_cost_one_transaction_each() {
    let mut world = World::with(1);
    let ticket = world.lock(0, "a", 1);
    world.settle();
    assert!(world.holds(0, ticket));
    world.abandon(0, ticket);
    world.settle();
    assert_eq!((world.count(0, "txn"), world.count(0, "delete")), (2, 0));
    assert!(world.contenders("a").is_empty());
}

#[test]
fn the_key_s_value_names_the_owner_and_the_time_of_the_call() {
    let mut world = World::unconnected(1);
    let ticket = world.lock(0, "a", 7);
    world.now = world.now + Duration::from_millis(250);
    world.settle();
    assert!(world.holds(0, ticket));
    let value: serde_json::Value = serde_json::from_slice(&world.contenders("a")[0].value).unwrap();
    assert_eq!(value["owner"], "owner");
    assert_eq!(value["thread"], "7");
    assert_eq!(value["created_at"], 1_700_000_000_250_u64);
}

#[test]
fn managers_get_the_lock_in_the_order_of_their_keys_with_growing_tokens() {
    let mut world = World::with(3);
    let tickets = queue_up(&mut world);
    let mut last = 0;
    for node in 0..3 {
        for (other, &ticket) in tickets.iter().enumerate() {
            assert_eq!(world.holds(other, ticket), other == node);
        }
        let token = world.token(node, tickets[node]).unwrap();
        assert!(token > last);
        last = token;
        world.abandon(node, tickets[node]);
        world.settle();
    }
}

#[test]
fn a_hand_over_between_local_threads_is_one_transaction() {
    let mut world = World::with(1);
    let first = world.lock(0, "a", 1);
    world.settle();
    let second = world.lock(0, "a", 2);
    world.settle();
    assert_eq!(world.contenders("a").len(), 1, "a waiter behind its own process puts no key");
    let before = world.count(0, "txn");
    world.abandon(0, first);
    world.settle();
    assert!(world.holds(0, second));
    assert_eq!((world.count(0, "txn") - before, world.count(0, "delete")), (1, 0));
    assert!(world.token(0, second) > world.token(0, first));
}

#[test]
fn a_release_and_an_acquire_that_arrive_together_are_sent_together() {
    let mut world = World::with(1);
    let first = world.lock(0, "a", 1);
    world.settle();
    let before = world.count(0, "txn");
    // Both commands are handled before the first action is polled.
    let now = world.now;
    let abandon = crate::protocol::Command::Abandon { ticket: first, confirm: false };
    world.nodes[0].protocol.handle_command(now, abandon);
    let second = world.lock(0, "a", 1);
    world.settle();
    assert!(world.holds(0, second));
    assert_eq!((world.count(0, "txn") - before, world.count(0, "delete")), (1, 0));
}

#[test]
fn a_process_goes_to_the_back_of_the_queue_when_its_next_thread_takes_over() {
    let mut world = World::with(2);
    let first = world.lock(0, "a", 1);
    world.settle();
    let second = world.lock(0, "a", 2);
    let elsewhere = world.lock(1, "a", 1);
    world.settle();
    world.abandon(0, first);
    world.settle();
    assert!(world.holds(1, elsewhere));
    assert_eq!(world.token(0, second), None);
    world.abandon(1, elsewhere);
    world.settle();
    assert!(world.holds(0, second));
}

#[test]
fn a_thread_that_locks_what_its_process_holds_waits() {
    let mut world = World::with(1);
    let first = world.lock(0, "a", 1);
    let again = world.lock(0, "a", 1);
    world.settle();
    assert!(world.holds(0, first) && !world.holds(0, again));
    let tried = world.try_lock(0, "a", 1);
    assert_eq!(world.refusal(0, tried), Some(Refusal::Held));
    world.abandon(0, first);
    world.settle();
    assert!(world.token(0, again) > world.token(0, first));
}

#[test]
fn a_try_takes_a_free_lock_and_does_not_queue_for_a_held_one() {
    let mut world = World::with(2);
    let free = world.try_lock(0, "a", 1);
    world.settle();
    assert!(world.holds(0, free));
    let elsewhere = world.try_lock(1, "a", 1);
    let local = world.try_lock(0, "a", 2);
    world.settle();
    assert_eq!(world.refusal(1, elsewhere), Some(Refusal::Held));
    assert_eq!(world.refusal(0, local), Some(Refusal::Held));
    assert_eq!(world.contenders("a").len(), 1);
}

#[test]
fn a_try_right_after_a_release_finds_the_lock_free() {
    let mut world = World::with(1);
    let first = world.lock(0, "a", 1);
    world.settle();
    world.abandon(0, first);
    let tried = world.try_lock(0, "a", 1);
    world.settle();
    assert!(world.holds(0, tried));
}

#[test]
fn a_try_behind_a_local_waiter_is_refused_once_the_store_has_answered() {
    let mut world = World::with(1);
    let first = world.lock(0, "a", 1);
    let tried = world.try_lock(0, "a", 2);
    assert_eq!(world.refusal(0, tried), None);
    world.settle();
    assert!(world.holds(0, first));
    assert_eq!(world.refusal(0, tried), Some(Refusal::Held));
}

#[test]
fn a_try_that_cannot_be_decided_is_unavailable() {
    let mut world = World::with(1);
    let tried = world.try_lock(0, "a", 1);
    world.pass_alone(Duration::from_secs(5));
    assert!(matches!(world.refusal(0, tried), Some(Refusal::Unavailable(_))));
}

#[test]
fn a_predecessor_deleted_before_its_watch_is_confirmed_is_not_missed() {
    let mut world = World::with(2);
    let holder = world.lock(0, "a", 1);
    world.settle();
    let waiter = world.lock(1, "a", 1);
    // The waiter's put is executed, the holder releases, and only then the answer arrives and the watch opens.
    let (request, reply) = world.execute_oldest(1);
    world.abandon(0, holder);
    world.answer(0);
    world.deliver(1, request, reply);
    world.settle();
    assert!(world.holds(1, waiter));
}

#[test]
fn a_contender_that_watches_all_predecessors_takes_over_without_a_read() {
    let mut world = World::with(WATCH_ALL_UP_TO + 1);
    let tickets = queue_up(&mut world);
    for (node, &ticket) in tickets.iter().enumerate() {
        assert!(world.holds(node, ticket));
        assert_eq!(world.count(node, "txn"), 1, "only the acquire");
        world.abandon(node, ticket);
        world.settle();
    }
}

#[test]
fn a_contender_that_watches_a_milestone_widens_its_watch_in_time() {
    let mut world = World::with(12);
    let tickets = queue_up(&mut world);
    for (node, &ticket) in tickets.iter().enumerate() {
        assert!(world.holds(node, ticket));
        let reads = usize::from(node > WATCH_ALL_UP_TO);
        assert_eq!(world.count(node, "txn"), 1 + reads, "manager {node}");
        world.abandon(node, ticket);
        world.settle();
    }
}

#[test]
fn a_late_answer_to_a_read_does_not_bring_back_deleted_predecessors() {
    let mut world = World::with(3);
    let tickets = queue_up(&mut world);
    world.pass_alone(Duration::from_millis(10));
    let (request, reply) = world.execute_oldest(2);
    world.abandon(0, tickets[0]);
    world.answer(0);
    world.deliver_events(2);
    world.deliver(2, request, reply);
    world.settle();
    world.abandon(1, tickets[1]);
    world.settle();
    assert!(world.holds(2, tickets[2]));
}

#[test]
fn a_waiter_whose_watch_is_live_needs_no_read_for_the_next_hand_over() {
    let mut world = World::with(3);
    let tickets = queue_up(&mut world);
    world.abandon(0, tickets[0]);
    world.pass(Duration::from_millis(900));
    assert!(world.holds(1, tickets[1]));
    assert_eq!(world.count(2, "txn"), 1, "only the acquire");
}

#[test]
fn a_waiter_whose_key_is_deleted_together_with_its_predecessor_s_is_not_granted_on_it() {
    let mut world = World::with(2);
    let holder = world.lock(0, "a", 1);
    world.settle();
    let waiter = world.lock(1, "a", 1);
    world.settle();
    let dead = world.contenders("a")[1].clone();
    world.delete_all("a");
    world.deliver_events(1);
    assert!(!world.holds(1, waiter));
    world.settle();
    assert!(world.token(1, waiter).is_some_and(|token| token > dead.create_revision));
    world.pass(Duration::from_secs(1));
    assert!(!world.holds(0, holder));
}

#[test]
fn an_event_from_before_the_last_read_is_ignored() {
    let mut world = World::with(2);
    let first = world.lock(0, "a", 1);
    world.settle();
    world.abandon(0, first);
    world.settle();
    let released_at = world.model.revision();
    let again = world.lock(0, "a", 1);
    world.settle();
    let waiter = world.lock(1, "a", 1);
    world.settle();
    // A lagging member reports late that the same key was deleted, which was the previous hold's.
    let key = world.contenders("a")[0].key.clone();
    world.report_deletion(1, key, released_at);
    assert!(world.holds(0, again) && !world.holds(1, waiter));
}

#[test]
fn a_watch_that_is_confirmed_late_is_not_trusted_without_a_read() {
    let mut world = World::with(2);
    let holder = world.lock(0, "a", 1);
    world.settle();
    world.nodes[1].events_held_back = true;
    let waiter = world.lock(1, "a", 1);
    world.pass(Duration::from_millis(10));
    world.abandon(0, holder);
    world.settle();
    let dead = world.contenders("a")[0].clone();
    world.delete(dead.key);
    world.nodes[1].events_held_back = false;
    world.settle();
    assert!(world.token(1, waiter).is_some_and(|token| token > dead.create_revision));
}

#[test]
fn a_read_older_than_the_confirmation_of_a_reopened_watch_does_not_make_it_live() {
    let mut world = World::with(2);
    let holder = world.lock(0, "a", 1);
    world.settle();
    let waiter = world.lock(1, "a", 1);
    world.settle();
    let mut past = world.model.clone();
    // The waiter's key is deleted while its watch is broken, so that the watch will never report it.
    let deleted = world.contenders("a")[1].clone();
    world.delete(deleted.key);
    world.nodes[1].events_held_back = true;
    world.settle();
    world.nodes[1].undelivered.clear();
    world.nodes[1].events_held_back = false;
    let prefix = *world.nodes[1].watches.keys().max().expect("the name is watched");
    let revision = world.model.revision();
    world.nodes[1].protocol.handle_watch(world.now, WatchEvent::Created { watch: prefix, revision });
    world.pump(1);
    let (check, request) = world.nodes[1].sent.pop_front().expect("the position is read");
    let stale = past.execute(world.now, &request);
    world.deliver(1, check, stale);
    world.abandon(0, holder);
    world.settle();
    assert!(world.token(1, waiter).is_some_and(|token| token > deleted.create_revision));
}

#[test]
fn a_silently_dead_watch_delays_a_hand_over_but_does_not_strand_the_waiter() {
    let mut world = World::with(2);
    let holder = world.lock(0, "a", 1);
    world.settle();
    let waiter = world.lock(1, "a", 1);
    world.settle();
    world.nodes[1].events_held_back = true;
    world.abandon(0, holder);
    world.settle();
    assert!(!world.holds(1, waiter));
    world.pass(Duration::from_secs(2));
    assert!(world.holds(1, waiter));
}

#[test]
fn a_waiter_whose_predecessor_leaves_the_queue_waits_on() {
    let mut world = World::with(3);
    let tickets = queue_up(&mut world);
    world.abandon(1, tickets[1]);
    world.settle();
    assert!(world.holds(0, tickets[0]) && !world.holds(2, tickets[2]));
    world.abandon(0, tickets[0]);
    world.settle();
    assert!(world.holds(2, tickets[2]));
}

#[test]
fn a_final_refusal_of_etcd_reaches_the_waiters_at_once() {
    for class in [FailureClass::NoSpace, FailureClass::PermissionDenied, FailureClass::Refused] {
        let mut world = World::with(1);
        let first = world.lock(0, "a", 1);
        let second = world.lock(0, "a", 2);
        world.fail(0, class);
        for ticket in [first, second] {
            assert!(matches!(
                world.refusal(0, ticket),
                Some(Refusal::Failed(failure)) if failure.class == class
            ));
        }
    }
}

#[test]
fn a_release_succeeds_alone_where_the_next_acquire_is_refused() {
    let mut world = World::with(1);
    let first = world.lock(0, "a", 1);
    world.settle();
    let second = world.lock(0, "a", 2);
    world.abandon(0, first);
    world.fail(0, FailureClass::NoSpace);
    assert!(matches!(world.nodes[0].outcomes[&second], Outcome::Refused(Refusal::Failed(_))));
    world.settle();
    // The old key, and the new one in case it was put.
    assert_eq!(world.count(0, "delete"), 2);
    assert!(world.contenders("a").is_empty());
}

#[test]
fn unused_names_leave_nothing_in_memory() {
    let mut world = World::with(1);
    for i in 0..1000 {
        let name = format!("n{i}");
        let ticket = world.ask(0, &name, 1, WaitLimits::default());
        world.settle();
        world.abandon(0, ticket);
        world.settle();
    }
    assert!(world.nodes[0].protocol.is_idle());
    world.pass(Duration::from_secs(1));
    assert!(world.read(super::world::name("n1").contenders()).is_empty());
}
