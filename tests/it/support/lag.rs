//! How late this machine itself is: what a limit of some tens of milliseconds cannot be held against.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How often the machine is asked.
const TICK: Duration = Duration::from_millis(5);
/// A thread that wakes so much late is as punctual as they come.
const PUNCTUAL: Duration = Duration::from_millis(3);

static LATE: Mutex<Vec<(Instant, Duration)>> = Mutex::new(Vec::new());

/// Begins to measure, once for all.
pub(crate) fn watch() {
    static STARTED: OnceLock<()> = OnceLock::new();
    STARTED.get_or_init(|| {
        let thread = std::thread::Builder::new().name("lag".into());
        thread.spawn(measure).expect("a thread can be spawned");
    });
}

fn measure() {
    loop {
        let begun = Instant::now();
        std::thread::sleep(TICK);
        let late = begun.elapsed().saturating_sub(TICK);
        if late > PUNCTUAL {
            LATE.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), late));
        }
    }
}

/// By how much a thread that was due woke late, at worst, since then. A call needs several threads to wake, so this is
/// less than what the machine may have cost it.
pub(crate) fn since(begun: Instant) -> Duration {
    let late = LATE.lock().unwrap_or_else(PoisonError::into_inner);
    late.iter().rev().take_while(|(at, _)| *at >= begun).map(|(_, late)| *late).max().unwrap_or_default()
}
