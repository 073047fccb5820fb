//! The oracle of exclusion: which thread believed to hold which lock, from when to when, with which token.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Collects holds from any thread, and from other processes as the text of their [`Interval`]s.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    holds: Mutex<Vec<Interval>>,
}

/// One hold as its holder saw it: from just after the grant to just before the release, or to the moment when it
/// learned of the loss. On CLOCK_MONOTONIC, which all processes of a machine share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interval {
    pub(crate) name: String,
    pub(crate) token: u64,
    pub(crate) from: u64,
    /// `None` while the hold lasts.
    pub(crate) to: Option<u64>,
    /// A name of the holder, for messages.
    pub(crate) who: String,
}

/// The hold lasts until this is dropped: create it after the guard, and drop it before the guard.
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

    /// The current thread was just granted the lock `name`. Judging happens at the end, so that nothing is slowed down.
    pub(crate) fn enter(&self, name: &str, token: u64) -> Inside<'_> {
        let who = format!("{:?}", std::thread::current().id());
        let mut holds = self.holds();
        // Read under the mutex and after the grant, so a hold is never recorded as starting too early.
        holds.push(Interval { name: name.into(), token, from: now(), to: None, who });
        Inside { oracle: self, index: holds.len() - 1 }
    }

    /// Adds a hold that another process recorded.
    pub(crate) fn record(&self, hold: Interval) {
        self.holds().push(hold);
    }

    /// The number of recorded holds.
    pub(crate) fn count(&self) -> usize {
        self.holds().len()
    }

    /// The tokens of a name's holds, in the order of their start.
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

    /// The violations that [`Self::judge`] would report.
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
        // Read before the mutex is locked, so a hold is never recorded as ending too late.
        let end = now();
        self.oracle.holds()[self.index].to = Some(end);
    }
}

/// `token from to who name`, with `-` for an open end; the name is last, because it may contain any character.
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
