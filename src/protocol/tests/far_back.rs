//! Waiting far back in a long queue.

use std::time::Duration;

use super::world::{NodeId, World};
use crate::kv::{Failure, Key, Op, Request, Response, Span, WatchEvent, WatchId};
use crate::protocol::mutants::Mutant;
use crate::protocol::{RequestId, Ticket};

/// Enough contenders before the last one for it to wait for a milestone; the first one holds the lock.
const QUEUE: usize = 12;

/// A queue of `length` managers for one lock, in their order.
fn queue(length: usize) -> (World, Vec<Ticket>) {
    let mut world = World::with(length);
    let tickets = (0..length).map(|id| lock(&mut world, id)).collect();
    (world, tickets)
}

fn lock(world: &mut World, id: NodeId) -> Ticket {
    let ticket = world.lock(id, "a", 1);
    world.settle();
    ticket
}

/// The third contender before the last one.
fn milestone(world: &World) -> Key {
    let contenders = world.contenders("a");
    contenders[contenders.len() - 4].key.clone()
}

/// Executes the check of the milestone that is in flight, and leaves its answer in transit.
fn execute_check(world: &mut World, id: NodeId) -> (RequestId, Result<Response, Failure>) {
    let is_check =
        |(_, request): &(RequestId, Request)| matches!(request, Request::Txn(txn) if txn.then.len() == 2);
    let at = world.nodes[id].sent.iter().position(is_check).unwrap();
    let (check, request) = world.nodes[id].sent.remove(at).unwrap();
    (check, world.model.execute(world.now, &request))
}

/// Its watch stream is found dead and opened anew: what it had not reported is lost.
fn reopen_stream(world: &mut World, id: NodeId) {
    world.deliver_events(id);
    world.nodes[id].undelivered.clear();
    world.nodes[id].events_held_back = false;
    let revision = world.model.revision();
    let mut watches: Vec<WatchId> = world.nodes[id].watches.keys().copied().collect();
    watches.sort_unstable();
    for watch in watches {
        world.nodes[id].protocol.handle_watch(world.now, WatchEvent::Created { watch, revision });
        world.pump(id);
    }
}

/// All others release or leave. Whether the last waiter has the lock at once.
fn last_is_next(world: &mut World, tickets: &[Ticket]) -> bool {
    let last = tickets.len() - 1;
    for (id, &ticket) in tickets[..last].iter().enumerate() {
        world.abandon(id, ticket);
    }
    world.settle();
    world.holds(last, tickets[last])
}

#[test]
fn idle_waiters_of_one_name_read_little_however_many_they_are() {
    let sent = |length: usize| {
        let (mut world, tickets) = queue(length);
        // Until every wait has been reported as a long one, and every watch is known to have missed nothing.
        world.pass(Duration::from_secs(35));
        let count = |world: &World| (0..length).map(|id| world.count(id, "txn")).sum::<usize>();
        let before = count(&world);
        world.pass(Duration::from_secs(60));
        assert!(world.holds(0, tickets[0]));
        (count(&world) - before) as f64 / 60.0
    };
    let (some, many) = (sent(30), sent(240));
    assert!(some < 10.0 && many < some + 5.0, "{some} a second with 30, {many} with 240");
}

#[test]
fn a_check_far_back_reads_two_keys_and_no_range_of_the_name() {
    let (mut world, _) = queue(QUEUE);
    world.pass_alone(Duration::from_secs(20));
    let last = &world.nodes[QUEUE - 1].sent;
    let ops = |request: &Request| match request {
        Request::Txn(txn) => Some(txn.then.clone()),
        _ => None,
    };
    let checks: Vec<Vec<Op>> = last.iter().filter_map(|(_, request)| ops(request)).collect();
    let is_key = |op: &Op| matches!(op, Op::Range(range) if matches!(range.span, Span::Key(_)));
    assert!(!checks.is_empty() && checks.iter().all(|ops| ops.iter().all(is_key)), "{checks:?}");
}

#[test]
fn a_waiter_far_back_comes_closer_when_its_milestone_is_deleted() {
    let wait = || {
        let (mut world, tickets) = queue(QUEUE);
        world.delete(milestone(&world));
        world.settle();
        last_is_next(&mut world, &tickets)
    };
    assert!(wait());
    assert!(!Mutant::MilestoneIgnored.during(wait));
}

#[test]
fn a_milestone_deleted_before_its_watch_began_is_missed_in_time() {
    let wait = || {
        let (mut world, last) = (World::with(QUEUE), QUEUE - 1);
        let mut tickets: Vec<Ticket> = (0..last).map(|id| lock(&mut world, id)).collect();
        tickets.push(world.lock(last, "a", 1));
        world.nodes[last].actions_held_back = true;
        world.settle_node(last);
        world.delete(milestone(&world));
        world.nodes[last].actions_held_back = false;
        world.pass(Duration::from_millis(10) * QUEUE as u32);
        last_is_next(&mut world, &tickets)
    };
    assert!(wait());
    assert!(!Mutant::MilestoneGapIgnored.during(wait));
}

#[test]
fn a_waiter_far_back_whose_stream_was_dead_comes_closer_when_it_is_reopened() {
    let (mut world, tickets) = queue(QUEUE);
    let last = QUEUE - 1;
    world.pass(Duration::from_secs(1));
    world.nodes[last].events_held_back = true;
    world.delete(milestone(&world));
    world.settle();
    reopen_stream(&mut world, last);
    world.settle();
    assert!(last_is_next(&mut world, &tickets));
}

#[test]
fn a_check_that_predates_the_reported_deletion_of_its_milestone_says_nothing() {
    let wait = || {
        let (mut world, tickets) = queue(QUEUE);
        let last = QUEUE - 1;
        reopen_stream(&mut world, last);
        let (check, reply) = execute_check(&mut world, last);
        world.delete(milestone(&world));
        // The watch of the whole name is not confirmed before the answer is there.
        world.nodes[last].actions_held_back = true;
        world.deliver_events(last);
        world.deliver(last, check, reply);
        world.nodes[last].actions_held_back = false;
        world.settle();
        last_is_next(&mut world, &tickets)
    };
    assert!(wait());
    assert!(!Mutant::PassedMilestoneBelieved.during(wait));
}
