use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::TryRecvError;

use crate::clock::Time;
use crate::error::LossReason;
use crate::kv::Key;
use crate::name::{LockName, Root};
use crate::protocol::HoldId;
use crate::shared::deadline::Deadline;
use crate::shared::hold_state::HoldState;
use crate::shared::hold_table::HoldTable;
use crate::shared::tests::at;
use crate::stats::StatsCell;

/// Long enough for any machine, short enough to end a test that would hang.
const SOON: Duration = Duration::from_secs(20);

/// A table whose session has its deadline at second 10.
fn table() -> (Arc<StatsCell>, HoldTable) {
    let counters = Arc::new(StatsCell::default());
    let table = HoldTable::new(Arc::clone(&counters));
    table.begin_session(Arc::new(Deadline::new(at(10))));
    (counters, table)
}

fn open(table: &HoldTable, now: Time, hold: u64) -> Arc<HoldState> {
    let name = LockName::parse(&Root::parse("/t").unwrap(), "a").unwrap();
    table.open(now, HoldId(hold), name, 7, Key::from("/t/a/1-1"))
}

fn is_closed(hold: &HoldState) -> bool {
    hold.done.try_recv() == Err(TryRecvError::Disconnected)
}

#[test]
fn a_hold_ends_once_and_its_first_reason_is_final() {
    let (counters, table) = table();
    let (released, lost) = (open(&table, at(1), 1), open(&table, at(1), 2));
    assert!(!table.is_empty() && !is_closed(&released));
    assert_eq!(table.end(HoldId(1), None).map(|ended| ended.lost), Some(None));
    assert!(table.end(HoldId(1), None).is_none());
    table.end(HoldId(2), Some(LossReason::ForceUnlocked));
    assert!(is_closed(&released) && is_closed(&lost) && table.is_empty());
    assert_eq!(lost.loss(at(1)), Some(LossReason::ForceUnlocked));
    let stats = counters.snapshot();
    assert_eq!((stats.acquired, stats.released, stats.lost.force_unlocked, stats.held), (2, 1, 1, 0));
}

#[test]
fn the_watchdog_ends_every_hold_at_the_deadline_and_the_i_o_thread_gets_them_all() {
    let (counters, table) = table();
    let clock = AtomicU64::new(1);
    thread::scope(|scope| {
        scope.spawn(|| table.watch(|| at(clock.load(Ordering::SeqCst))));
        let holds: Vec<_> = (1..=3).map(|id| open(&table, at(1), id)).collect();
        assert!(table.extend_session(at(20)));
        clock.store(20, Ordering::SeqCst);
        table.fire_timer(at(20));
        for hold in &holds {
            assert!(hold.done.recv_timeout(SOON).is_err_and(|error| error.is_disconnected()));
            assert!(!hold.is_held(at(1)), "over at any time on the caller's clock");
            assert_eq!(hold.lost(), Some(LossReason::SessionExpired));
        }
        // Meanwhile the I/O thread had a release and another loss to record.
        let ended = table.end(HoldId(1), None).unwrap();
        assert_eq!(ended.lost, Some(LossReason::SessionExpired));
        let mut ended = table.end_session(LossReason::SessionRevoked);
        assert_eq!(ended.len(), 2, "a log line for each");
        assert!(ended.drain(..).all(|ended| ended.lost == Some(LossReason::SessionExpired)));
        table.shut(LossReason::Closed);
    });
    let stats = counters.snapshot();
    assert_eq!((stats.lost.session_expired, stats.lost.total(), stats.held), (3, 3, 0));
}

#[test]
fn the_watchdog_serves_one_session_after_another() {
    const ASSURED: Duration = Duration::from_millis(5);
    let (_, table) = table();
    let clock = AtomicU64::new(0);
    let now = || at(1) + Duration::from_millis(clock.load(Ordering::SeqCst));
    thread::scope(|scope| {
        scope.spawn(|| table.watch(now));
        for session in 0..50 {
            table.begin_session(Arc::new(Deadline::new(now() + ASSURED)));
            let hold = open(&table, now(), session);
            assert!(hold.is_held(now()));
            clock.fetch_add(5, Ordering::SeqCst);
            assert!(hold.done.recv_timeout(SOON).is_err_and(|error| error.is_disconnected()));
            assert_eq!(table.end_session(LossReason::SessionExpired).len(), 1);
        }
        table.shut(LossReason::Closed);
    });
}

#[test]
fn a_hold_opened_under_a_session_that_is_over_is_over_from_the_start() {
    let (counters, table) = table();
    let late = open(&table, at(10), 1);
    assert!(is_closed(&late) && !late.is_held(at(1)));
    assert_eq!(late.loss(at(1)), Some(LossReason::SessionExpired));
    assert!(!table.extend_session(at(30)));
    assert_eq!(table.end_session(LossReason::SessionExpired).len(), 1);
    assert_eq!(counters.snapshot().held, 0);
}

#[test]
fn a_shut_table_opens_no_hold_under_later_sessions() {
    let (_, table) = table();
    let before = open(&table, at(1), 1);
    table.shut(LossReason::Closed);
    table.shut(LossReason::Crashed);
    table.begin_session(Arc::new(Deadline::new(at(30))));
    let after = open(&table, at(1), 2);
    for hold in [before, after] {
        assert!(is_closed(&hold));
        assert_eq!(hold.loss(at(1)), Some(LossReason::Closed));
    }
    assert_eq!(table.end_session(LossReason::SessionRevoked).len(), 2);
    table.watch(|| at(1));
}

/// The end of a session races with threads that wait for `done()`: a thread that sees one hold closed finds all of them
/// over.
#[test]
fn no_guard_says_held_after_another_s_done_closed() {
    for _ in 0..500 {
        let (_, table) = table();
        let holds: Vec<_> = (0..20).map(|id| open(&table, at(1), id)).collect();
        thread::scope(|scope| {
            for closed in &holds {
                let holds = &holds;
                scope.spawn(move || {
                    closed.done.recv().unwrap_err();
                    for other in holds {
                        assert!(!other.is_held(at(1)));
                        assert_eq!(other.loss(at(1)), Some(LossReason::SessionRevoked));
                    }
                });
            }
            assert_eq!(table.end_session(LossReason::SessionRevoked).len(), holds.len());
        });
    }
}
