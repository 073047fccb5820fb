//! Read-write locks and semaphores: who holds together, in which order, and what it costs.

mod tries;

use std::time::Duration;

use super::world::World;
use crate::kv::{Key, Op, Request, Txn};
use crate::mode::Mode;
use crate::protocol::{Refusal, Ticket, WaitLimits};

const READ: Mode = Mode::Shared;
const WRITE: Mode = Mode::Exclusive;

fn permits(take: u32, limit: u32) -> Mode {
    Mode::Permits { take, limit }
}

/// A ticket and the manager that asked for it.
#[derive(Clone, Copy, Debug)]
struct Asked(usize, Ticket);

struct Locks(World);

impl Locks {
    fn with(nodes: usize) -> Self {
        Self(World::with(nodes))
    }

    /// Asks for the lock, and lets everything settle.
    fn lock(&mut self, node: usize, mode: Mode) -> Asked {
        let asked = self.ask(node, mode);
        self.0.settle();
        asked
    }

    fn ask(&mut self, node: usize, mode: Mode) -> Asked {
        Asked(node, self.0.ask_in(mode, node, "a", 1, WaitLimits::default()))
    }

    fn try_lock(&mut self, node: usize, mode: Mode) -> Asked {
        let ticket = self.0.try_in(mode, node, "a", 1);
        self.0.settle();
        Asked(node, ticket)
    }

    fn release(&mut self, Asked(node, ticket): Asked) {
        self.0.abandon(node, ticket);
        self.0.pass(Duration::from_millis(1));
    }

    fn release_all(&mut self, asked: &[Asked]) {
        for &it in asked {
            self.release(it);
        }
    }

    fn holds(&self, Asked(node, ticket): Asked) -> bool {
        self.0.holds(node, ticket)
    }

    /// Which of these hold the lock.
    fn holding<const N: usize>(&self, asked: [Asked; N]) -> [bool; N] {
        asked.map(|it| self.holds(it))
    }

    fn is_refused(&self, Asked(node, ticket): Asked) -> bool {
        self.0.refusal(node, ticket) == Some(Refusal::Held)
    }

    /// A client that knows no modes takes its place.
    fn foreign(&mut self, key: &str) {
        let put = Op::Put { key: Key::from(key), value: Vec::new(), lease: 0 };
        self.0.execute_late(&Request::Txn(Txn { then: vec![put], ..Txn::default() }));
    }
}

#[test]
fn readers_hold_together_across_managers_and_each_costs_one_transaction() {
    let mut locks = Locks::with(2);
    let readers = [(0, READ), (0, READ), (1, READ)].map(|(node, mode)| locks.lock(node, mode));
    assert_eq!(locks.holding(readers), [true; 3]);
    assert_eq!((locks.0.count(0, "txn"), locks.0.count(1, "txn")), (2, 1));
    locks.release_all(&readers);
    assert!(locks.0.contenders("a").is_empty());
}

#[test]
fn a_writer_waits_for_all_readers_and_later_readers_wait_for_it() {
    let mut locks = Locks::with(3);
    let (first, second) = (locks.lock(0, READ), locks.lock(1, READ));
    let writer = locks.lock(2, WRITE);
    let later = [locks.lock(0, READ), locks.lock(1, READ)];
    assert_eq!(locks.holding([first, second, writer]), [true, true, false]);
    assert_eq!(locks.holding(later), [false; 2]);
    locks.release(first);
    assert!(!locks.holds(writer));
    locks.release(second);
    assert!(locks.holds(writer));
    assert_eq!(locks.holding(later), [false; 2]);
    locks.release(writer);
    assert_eq!(locks.holding(later), [true; 2]);
}

#[test]
fn in_one_manager_the_order_of_arrival_is_kept_between_readers_and_writers() {
    let mut locks = Locks::with(1);
    let reader = locks.lock(0, READ);
    let writer = locks.lock(0, WRITE);
    let later = [locks.lock(0, READ), locks.lock(0, READ)];
    let last = locks.lock(0, WRITE);
    assert_eq!(locks.0.contenders("a").len(), 2, "behind the writer nothing stands in etcd");
    assert_eq!(locks.holding([reader, writer, last]), [true, false, false]);
    locks.release(reader);
    assert!(locks.holds(writer));
    assert_eq!(locks.holding(later), [false; 2]);
    let before = locks.0.count(0, "txn");
    locks.release(writer);
    assert_eq!(locks.holding(later), [true; 2]);
    assert_eq!(locks.0.count(0, "txn") - before, 2, "one for both readers, one for the writer behind them");
    locks.release_all(&later);
    assert!(locks.holds(last));
}

#[test]
fn readers_that_ask_together_share_a_commit_and_a_token() {
    let mut locks = Locks::with(1);
    let mut readers = Vec::new();
    locks.0.together(0, |world| {
        let mut ask = |thread| world.ask_in(READ, 0, "a", thread, WaitLimits::default());
        readers = (0..5).map(&mut ask).collect();
    });
    locks.0.settle();
    let tokens: Vec<_> = readers.iter().map(|&reader| locks.0.token(0, reader)).collect();
    assert_eq!((locks.0.count(0, "txn"), tokens.len()), (1, 5));
    assert!(tokens[0].is_some() && tokens.iter().all(|token| *token == tokens[0]), "{tokens:?}");
    for reader in readers {
        locks.release(Asked(0, reader));
    }
    assert!(locks.0.contenders("a").is_empty());
}

#[test]
fn a_writer_s_token_exceeds_those_of_the_readers_before_it_and_is_exceeded_by_those_after_it() {
    let mut locks = Locks::with(2);
    let mut last = None;
    for mode in [READ, WRITE, READ, WRITE] {
        let asked = locks.lock(usize::from(mode == WRITE), mode);
        let token = locks.0.token(asked.0, asked.1);
        assert!(token > last, "{token:?} after {last:?}");
        last = token;
        locks.release(asked);
    }
}

#[test]
fn permits_are_taken_up_to_the_limit_and_large_requests_are_not_overtaken() {
    let mut locks = Locks::with(3);
    let (one, two) = (locks.lock(0, permits(1, 4)), locks.lock(1, permits(2, 4)));
    let large = locks.lock(2, permits(3, 4));
    let small = locks.lock(0, permits(1, 4));
    assert_eq!(locks.holding([one, two, large, small]), [true, true, false, false]);
    locks.release(one);
    assert_eq!(locks.holding([two, large, small]), [true, false, false]);
    locks.release(two);
    assert_eq!(locks.holding([large, small]), [true, true]);
}

#[test]
fn the_smallest_limit_of_those_before_counts() {
    let mut locks = Locks::with(3);
    let wide = locks.lock(0, permits(1, 3));
    let narrow = locks.lock(1, permits(1, 2));
    let third = locks.lock(2, permits(1, 3));
    assert_eq!(locks.holding([wide, narrow, third]), [true, true, false]);
    locks.release(narrow);
    assert_eq!(locks.holding([wide, third]), [true, true]);
}

#[test]
fn a_long_queue_for_permits_is_admitted_in_order() {
    let mut locks = Locks::with(12);
    let mut holding: Vec<Asked> = (0..12).map(|node| locks.lock(node, permits(1, 2))).collect();
    for _ in 0..10 {
        let held: Vec<bool> = holding.iter().map(|&it| locks.holds(it)).collect();
        assert!(held.iter().enumerate().all(|(at, &held)| held == (at < 2)), "{held:?}");
        locks.release(holding.remove(1));
    }
}

#[test]
fn a_mutex_drains_a_semaphore_and_a_foreign_key_counts_as_one() {
    let mut locks = Locks::with(2);
    let permit = locks.lock(0, permits(1, 8));
    let mutex = locks.lock(1, WRITE);
    let later = locks.lock(0, permits(1, 8));
    assert_eq!(locks.holding([permit, mutex, later]), [true, false, false]);
    locks.release(permit);
    assert_eq!(locks.holding([mutex, later]), [true, false]);
    locks.foreign("/t/a/694d71ad");
    let reader = locks.lock(1, READ);
    locks.release(mutex);
    assert_eq!(
        locks.holding([later, reader]),
        [true, false],
        "the permit was asked for before the foreign key"
    );
    locks.0.delete(Key::from("/t/a/694d71ad"));
    locks.0.pass(Duration::from_millis(1));
    assert_eq!(locks.holding([later, reader]), [true, true]);
}

#[test]
fn a_reader_counts_as_a_permit_where_permits_are_before_it() {
    let mut locks = Locks::with(3);
    let permit = locks.lock(0, permits(2, 3));
    let readers = [locks.lock(1, READ), locks.lock(2, READ)];
    assert_eq!(locks.holding(readers), [true, false]);
    locks.release(readers[0]);
    assert_eq!(locks.holding([permit, readers[1]]), [true, true]);
    locks.release(permit);
    let many: Vec<Asked> = (0..5).map(|_| locks.lock(0, READ)).collect();
    assert!(many.iter().all(|&reader| locks.holds(reader)));
}

#[test]
fn a_reader_that_gives_up_leaves_no_key_and_keeps_nobody_out() {
    let mut locks = Locks::with(2);
    let writer = locks.lock(0, WRITE);
    let limits =
        WaitLimits { deadline: Some(locks.0.now + Duration::from_millis(300)), ..WaitLimits::default() };
    let reader = locks.0.ask_in(READ, 1, "a", 1, limits);
    locks.0.settle();
    assert_eq!(locks.0.contenders("a").len(), 2);
    locks.0.pass(Duration::from_millis(400));
    let refusal = locks.0.refusal(1, reader);
    assert!(matches!(refusal, Some(Refusal::Timeout { holder: Some(_), .. })), "{refusal:?}");
    assert_eq!(locks.0.contenders("a").len(), 1);
    locks.release(writer);
    assert!(locks.0.contenders("a").is_empty());
}

#[test]
fn a_slow_store_is_not_told_as_contention_to_a_reader_beside_readers() {
    let mut locks = Locks::with(2);
    locks.lock(0, READ);
    let limits =
        WaitLimits { deadline: Some(locks.0.now + Duration::from_millis(300)), ..WaitLimits::default() };
    let reader = locks.0.ask_in(READ, 1, "a", 1, limits);
    // Its put is not answered, while the read of the holder is.
    let put = locks.0.nodes[1].sent.pop_front().unwrap();
    locks.0.pass(Duration::from_millis(400));
    let refusal = locks.0.refusal(1, reader);
    assert!(matches!(refusal, Some(Refusal::Unavailable(_))), "{put:?} {refusal:?}");
}

#[test]
fn a_reader_evicted_by_force_leaves_the_others() {
    let mut locks = Locks::with(2);
    let readers = [locks.lock(0, READ), locks.lock(0, READ), locks.lock(1, READ)];
    let key = locks.0.key_of(0, readers[0].1).unwrap();
    locks.0.pass(Duration::from_millis(200));
    locks.0.delete(key);
    locks.0.pass(Duration::from_millis(200));
    assert_eq!(locks.holding(readers), [false, true, true]);
    let writer = locks.lock(1, WRITE);
    locks.release_all(&readers[1..]);
    assert!(locks.holds(writer));
}

#[test]
fn a_reader_whose_answer_was_lost_holds_with_its_first_token() {
    for mode in [READ, permits(1, 2)] {
        let mut locks = Locks::with(2);
        locks.lock(1, mode);
        let asked = locks.ask(0, mode);
        let put = locks.0.lose_answer(0);
        locks.0.execute_late(&put);
        let revision = locks.0.model.revision();
        locks.0.pass(Duration::from_millis(200));
        assert_eq!(locks.0.token(0, asked.1), Some(revision), "{mode}");
        locks.release(asked);
        locks.0.pass(Duration::from_secs(1));
        assert_eq!(locks.0.contenders("a").len(), 1, "{mode}");
    }
}

#[test]
fn all_modes_are_lost_with_their_session() {
    let mut locks = Locks::with(1);
    let held = [READ, READ].map(|mode| locks.lock(0, mode));
    locks.0.pass_alone(Duration::from_secs(11));
    assert_eq!(locks.holding(held), [false; 2]);
}

#[test]
fn readers_of_one_process_are_admitted_in_their_order_of_arrival_whatever_their_keys_are() {
    let mut locks = Locks::with(2);
    locks.lock(1, permits(1, 8));
    let mut readers = Vec::new();
    locks.0.together(0, |world| {
        let mut ask = |thread| Asked(0, world.ask_in(READ, 0, "a", thread, WaitLimits::default()));
        readers = (0..20).map(&mut ask).collect();
    });
    locks.0.settle();
    let held: Vec<bool> = readers.iter().map(|&reader| locks.holds(reader)).collect();
    assert!(held.iter().enumerate().all(|(at, &held)| held == (at < 7)), "{held:?}");
}
