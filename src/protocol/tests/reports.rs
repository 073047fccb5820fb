//! Reports about conditions that last: a silent store, a long wait.

use std::time::Duration;

use super::world::{MARGIN, TTL, WARN_AFTER, World};
use crate::kv::FailureClass;

fn log_of<'a>(world: &'a World, what: &'a str) -> impl Iterator<Item = &'a String> {
    world.nodes[0].log.iter().filter(move |line| line.starts_with(what))
}

#[test]
fn a_silent_store_is_reported_after_a_third_of_the_assured_time_and_again_when_it_answers() {
    let mut world = World::with(1);
    world.pass(TTL);
    assert_eq!(log_of(&world, "Store").count(), 0, "a store without requests is not silent");
    world.pass(TTL / 3);
    let third = (TTL - MARGIN) / 3;
    world.fail_for(0, third * 2, FailureClass::NotDone);
    let silent: Vec<_> = log_of(&world, "StoreSilent").cloned().collect();
    assert_eq!(silent.len(), 1);
    assert!(silent[0].contains("injected failure"), "{silent:?}");
    world.settle();
    world.pass(TTL);
    assert_eq!(log_of(&world, "StoreSilent").count(), 1);
    assert_eq!(log_of(&world, "StoreAnswers").count(), 1);
}

#[test]
fn a_store_that_never_answers_is_reported_before_the_session_is_lost() {
    let mut world = World::with(1);
    world.pass_alone(TTL - MARGIN);
    let log = world.nodes[0].log.join("\n");
    let (silent, lost) = (log.find("StoreSilent"), log.find("SessionDown"));
    assert!(silent.is_some() && silent < lost, "{log}");
}

#[test]
fn a_long_wait_is_reported_once_with_the_holder() {
    let mut world = World::with(2);
    world.lock(1, "a", 1);
    world.settle();
    world.lock(0, "a", 1);
    world.pass(WARN_AFTER - Duration::from_millis(1));
    assert_eq!(log_of(&world, "SlowWait").count(), 0);
    world.pass(WARN_AFTER * 3);
    let reported: Vec<_> = log_of(&world, "SlowWait").cloned().collect();
    assert_eq!(reported.len(), 1);
    assert!(reported[0].contains(world.contenders("a")[0].key.as_str()), "{reported:?}");
}

#[test]
fn a_wait_that_ends_in_time_is_not_reported() {
    let mut world = World::with(2);
    let elsewhere = world.lock(1, "a", 1);
    world.settle();
    let waiter = world.lock(0, "a", 1);
    world.pass(WARN_AFTER / 2);
    world.abandon(1, elsewhere);
    world.settle();
    assert!(world.holds(0, waiter));
    world.pass(WARN_AFTER);
    assert_eq!(log_of(&world, "SlowWait").count(), 0);
}
