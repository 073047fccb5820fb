use std::thread;
use std::time::Duration;

use crate::clock::Time;
use crate::error::LossReason;
use crate::shared::deadline::Deadline;
use crate::shared::tests::at;

#[test]
fn a_deadline_is_live_before_its_instant_and_can_be_moved() {
    let deadline = Deadline::new(at(10));
    assert_eq!(deadline.remaining(at(4)), Some(Duration::from_secs(6)));
    assert!(deadline.extend(at(20)));
    assert!(deadline.is_live(at(19)));
}

#[test]
fn a_deadline_once_seen_past_is_never_revived() {
    let deadline = Deadline::new(at(10));
    assert!(!deadline.is_live(at(10)), "the instant itself is too late");
    assert!(!deadline.extend(at(30)));
    assert!(!deadline.is_live(at(1)));
}

#[test]
fn a_deadline_that_no_thread_saw_pass_can_be_extended() {
    let deadline = Deadline::new(at(10));
    assert!(deadline.extend(at(30)));
    assert!(deadline.is_live(at(11)));
}

#[test]
fn an_ended_deadline_is_over_at_once() {
    let deadline = Deadline::new(at(10));
    assert_eq!(deadline.end(LossReason::SessionRevoked), LossReason::SessionRevoked);
    assert_eq!(deadline.look(at(1)), Err(LossReason::SessionRevoked));
    assert!(!deadline.extend(at(30)));
    assert!(!Deadline::over().is_live(Time::default()));
}

/// Readers and an extender race at the instant itself: either no reader sees it pass, or all do from then on.
#[test]
fn threads_never_disagree_about_a_deadline() {
    for _ in 0..2000 {
        let deadline = Deadline::new(at(10));
        let (seen, extended) = thread::scope(|scope| {
            let readers: Vec<_> = (0..3).map(|_| scope.spawn(|| deadline.is_live(at(10)))).collect();
            let extender = scope.spawn(|| deadline.extend(at(20)));
            let seen: Vec<bool> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
            (seen, extender.join().unwrap())
        });
        assert!(seen.iter().all(|live| *live == extended), "{seen:?}, extended: {extended}");
        assert_eq!(deadline.is_live(at(15)), extended);
    }
}

#[test]
fn the_first_reason_of_an_end_is_final() {
    let deadline = Deadline::new(at(10));
    assert!(!deadline.is_live(at(10)));
    assert_eq!(deadline.end(LossReason::Closed), LossReason::SessionExpired);
    assert_eq!(deadline.instant(), Err(LossReason::SessionExpired));
    for reason in [
        LossReason::SessionExpired,
        LossReason::SessionRevoked,
        LossReason::ForceUnlocked,
        LossReason::Closed,
        LossReason::Crashed,
    ] {
        let deadline = Deadline::new(at(10));
        deadline.end(reason);
        assert_eq!(deadline.look(at(1)), Err(reason));
    }
}

#[test]
fn a_deadline_at_the_clock_s_zero_is_an_instant() {
    let deadline = Deadline::new(Time::default());
    assert!(deadline.instant().is_ok());
    assert!(deadline.extend(Time::default()) && deadline.instant().is_ok());
    assert_eq!(deadline.look(at(1)), Err(LossReason::SessionExpired));
}
