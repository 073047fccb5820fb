//! Tries of all modes: whom they are refused by, and that they leave nothing.

use super::*;

#[test]
fn a_try_is_refused_only_by_those_that_leave_no_room() {
    let mut locks = Locks::with(2);
    let reader = locks.lock(0, READ);
    let (read, write) = (locks.try_lock(1, READ), locks.try_lock(1, WRITE));
    assert!(locks.holds(read) && locks.is_refused(write));
    let writer = locks.lock(0, WRITE);
    let late = locks.try_lock(1, READ);
    assert!(locks.is_refused(late), "a writer waits");
    locks.release_all(&[reader, read]);
    assert!(locks.holds(writer));
    locks.release(writer);

    let permit = locks.try_lock(0, permits(2, 3));
    let (large, small) = (locks.try_lock(1, permits(2, 3)), locks.try_lock(1, permits(1, 3)));
    assert_eq!(locks.holding([permit, small]), [true, true]);
    assert!(locks.is_refused(large));
    let read = locks.try_lock(0, READ);
    assert!(locks.is_refused(read), "no permit is left");
    locks.release(small);
    let read = locks.try_lock(0, READ);
    assert!(locks.holds(read));
    assert_eq!(locks.0.contenders("a").len(), 2, "a refused try leaves no key");
}

#[test]
fn a_try_right_after_a_release_gets_the_lock_in_every_mode() {
    for mode in [READ, WRITE, permits(1, 1), permits(2, 3)] {
        let mut locks = Locks::with(1);
        for _ in 0..20 {
            let held = locks.lock(0, mode);
            let mut tried = None;
            locks.0.together(0, |world| {
                world.abandon(0, held.1);
                tried = Some(Asked(0, world.try_in(mode, 0, "a", 1)));
            });
            locks.0.settle();
            assert!(locks.holds(tried.unwrap()), "{mode}");
            locks.release(tried.unwrap());
        }
    }
}

#[test]
fn a_reader_is_not_granted_the_key_of_a_try_that_gave_up_before_an_earlier_writer() {
    let mut locks = Locks::with(1);
    let tried = locks.0.try_in(READ, 0, "a", 1);
    let (writer, reader) = (locks.ask(0, WRITE), locks.ask(0, READ));
    locks.0.abandon(0, tried);
    locks.0.settle();
    assert_eq!(locks.holding([writer, reader]), [true, false]);
    locks.release(writer);
    assert!(locks.holds(reader));
}

#[test]
fn a_try_beside_a_waiter_that_leaves_room_for_it_is_decided_by_the_store() {
    let mut locks = Locks::with(2);
    let other = locks.lock(1, permits(2, 3));
    let waiter = locks.lock(0, permits(2, 3));
    let refused = locks.try_lock(0, permits(1, 3));
    assert!(!locks.holds(waiter) && locks.is_refused(refused));
    // The manager has not heard that the permits are back.
    locks.0.nodes[0].events_held_back = true;
    locks.0.abandon(1, other.1);
    locks.0.settle();
    let tried = locks.try_lock(0, permits(1, 3));
    assert!(locks.holds(tried), "{:?}", locks.0.refusal(0, tried.1));
    locks.0.nodes[0].events_held_back = false;
    locks.0.settle();
    assert!(locks.holds(waiter));
}

#[test]
fn a_try_beside_a_reader_that_must_count_the_others_first_is_not_refused() {
    let mut locks = Locks::with(1);
    let permit = locks.lock(0, permits(1, 3));
    let (mut tried, mut reader) = (None, None);
    locks.0.together(0, |world| {
        tried = Some(Asked(0, world.try_in(READ, 0, "a", 1)));
        reader = Some(Asked(0, world.ask_in(READ, 0, "a", 2, WaitLimits::default())));
    });
    locks.0.settle();
    assert_eq!(locks.holding([permit, tried.unwrap(), reader.unwrap()]), [true; 3]);
}

#[test]
fn two_tries_together_take_the_one_permit_that_is_left_once_and_leave_no_key() {
    let mut locks = Locks::with(2);
    locks.lock(1, permits(2, 3));
    let mut tried = Vec::new();
    locks.0.together(0, |world| {
        tried = (1..3).map(|thread| Asked(0, world.try_in(READ, 0, "a", thread))).collect();
    });
    locks.0.settle();
    assert_eq!(locks.holding([tried[0], tried[1]]), [true, false]);
    assert!(locks.is_refused(tried[1]));
    assert_eq!(locks.0.contenders("a").len(), 2);
}

#[test]
fn a_try_is_not_overtaken_by_a_reader_that_asks_after_it() {
    let mut locks = Locks::with(2);
    locks.lock(1, permits(2, 3));
    let (mut tried, mut reader) = (None, None);
    locks.0.together(0, |world| {
        tried = Some(Asked(0, world.try_in(READ, 0, "a", 1)));
        reader = Some(Asked(0, world.ask_in(READ, 0, "a", 2, WaitLimits::default())));
    });
    locks.0.settle();
    assert_eq!(locks.holding([tried.unwrap(), reader.unwrap()]), [true, false]);
}

#[test]
fn a_try_that_is_refused_never_has_a_key() {
    for mode in [READ, WRITE, permits(1, 3)] {
        let mut locks = Locks::with(2);
        locks.lock(1, permits(3, 3));
        let tried = Asked(0, locks.0.try_in(mode, 0, "a", 1));
        while !locks.0.nodes[0].sent.is_empty() {
            locks.0.answer(0);
            assert_eq!(locks.0.contenders("a").len(), 1, "{mode}");
        }
        assert!(locks.is_refused(tried), "{mode}");
    }
}

#[test]
fn a_try_is_not_overtaken_by_a_later_waiter_that_takes_over_a_contender() {
    let mut locks = Locks::with(1);
    let first = locks.ask(0, permits(1, 2));
    let tried = Asked(0, locks.0.try_in(permits(2, 2), 0, "a", 2));
    locks.0.abandon(0, first.1);
    let later = locks.ask(0, permits(1, 2));
    locks.0.settle();
    assert_eq!(locks.holding([tried, later]), [true, false]);
    locks.release(tried);
    assert!(locks.holds(later));
}

#[test]
fn a_try_is_not_refused_because_of_a_hold_that_its_process_has_released_meanwhile() {
    let mut locks = Locks::with(2);
    let own = locks.lock(0, permits(1, 4));
    let tried = Asked(0, locks.0.try_in(permits(3, 4), 0, "a", 2));
    // It has found the own hold, and is to be put beside it.
    locks.0.answer(0);
    locks.0.abandon(0, own.1);
    let other = locks.ask(1, permits(1, 4));
    locks.0.settle_node(1);
    assert!(locks.holds(other));
    locks.0.settle();
    assert!(locks.holds(tried), "{:?}", locks.0.refusal(0, tried.1));
}
