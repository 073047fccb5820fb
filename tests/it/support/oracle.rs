//! The judge of exclusion: who believed to hold what, from when to when, with which token.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Collects holds from any thread, and from other processes through their [`Interval`]s as text.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    holds: Mutex<Vec<Interval>>,
}

/// One hold as its holder saw it: from just after it got the lock to just before it let go, or to when it was told
/// of the loss. On CLOCK_MONOTONIC, which all processes of a machine share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interval {
    pub(crate) name: String,
    pub(crate) token: u64,
    pub(crate) from: u64,
    /// `None` while it lasts.
    pub(crate) to: Option<u64>,
    /// For people: who it was.
    pub(crate) who: String,
}

/// Somebody is inside until this is dropped: take it after the guard, drop it before.
#[must_use]
#[derive(Debug)]
pub(crate) struct Inside<'a> {
    oracle: &'a Oracle,
    index: usize,
}

/// Nanoseconds on the clock of all [`Interval`]s.
pub(crate) fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

impl Oracle {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// The current thread has just got the lock `name`. Judges only at the end, so that nothing is slowed down.
    pub(crate) fn enter(&self, name: &str, token: u64) -> Inside<'_> {
        let who = format!("{:?}", std::thread::current().id());
        let mut holds = self.holds();
        // Read under the mutex and after the grant: a hold is never taken to begin earlier than it did.
        holds.push(Interval { name: name.into(), token, from: now(), to: None, who });
        Inside { oracle: self, index: holds.len() - 1 }
    }

    /// Adds a hold that somebody else recorded.
    pub(crate) fn record(&self, hold: Interval) {
        self.holds().push(hold);
    }

    /// How many holds were recorded.
    pub(crate) fn count(&self) -> usize {
        self.holds().len()
    }

    /// The tokens of a name's holds, in the order in which the holds began.
    pub(crate) fn tokens(&self, name: &str) -> Vec<u64> {
        let mut holds: Vec<_> = self.holds().iter().filter(|hold| hold.name == name).cloned().collect();
        holds.sort_by_key(|hold| hold.from);
        holds.iter().map(|hold| hold.token).collect()
    }

    /// Panics unless, for every name, no two holds overlap and each token is greater than the one before.
    #[track_caller]
    pub(crate) fn judge(&self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "{} violations:\n{}", violations.len(), violations.join("\n"));
    }

    /// What [`Self::judge`] would complain about.
    pub(crate) fn violations(&self) -> Vec<String> {
        let mut holds = self.holds().clone();
        holds.sort_by(|a, b| (&a.name, a.from).cmp(&(&b.name, b.from)));
        let mut violations = Vec::new();
        for pair in holds.windows(2) {
            let (first, second) = (&pair[0], &pair[1]);
            if first.name != second.name {
                continue;
            }
            if first.to.is_none_or(|to| to > second.from) {
                violations.push(format!("held twice: {first} and {second}"));
            }
            if first.token >= second.token {
                violations.push(format!("token not greater: {first} then {second}"));
            }
        }
        violations
    }

    fn holds(&self) -> MutexGuard<'_, Vec<Interval>> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        // Read before the mutex: a hold is never taken to end later than it did.
        let end = now();
        self.oracle.holds()[self.index].to = Some(end);
    }
}

/// `token from to who name`, with `-` for an end that has not come; the name last, as it may hold anything.
impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, token, from, to, who } = self;
        match to {
            Some(to) => write!(f, "{token} {from} {to} {who} {name}"),
            None => write!(f, "{token} {from} - {who} {name}"),
        }
    }
}

impl FromStr for Interval {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let bad = || format!("not a hold: {line:?}");
        let fields: Vec<&str> = line.splitn(5, ' ').collect();
        let [token, from, to, who, name] = fields[..] else { return Err(bad()) };
        Ok(Self {
            token: token.parse().map_err(|_| bad())?,
            from: from.parse().map_err(|_| bad())?,
            to: if to == "-" { None } else { Some(to.parse().map_err(|_| bad())?) },
            who: who.into(),
            name: name.into(),
        })
    }
}
