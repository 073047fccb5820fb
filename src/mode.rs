//! The mode of a contender: who may hold a lock together with it.

use std::fmt;

use crate::kv::Key;

/// The largest limit of a semaphore. A contender for a permit may have to read the keys of as many others.
pub(crate) const MAX_LIMIT: u32 = 4096;

/// Who may hold a lock at the same time as others; see [`LockOptions::mode`](crate::LockOptions::mode).
///
/// All modes wait in one queue, in the order of their arrival. The holders of a lock may hold it together if the permits
/// that all of them have taken are at most the smallest of their limits. A shared hold counts as one permit without a
/// limit, and an exclusive one as the only permit of one.
///
/// # Examples
///
/// ```
/// use etcd_lock::Mode;
///
/// assert_eq!(Mode::default(), Mode::Exclusive);
/// assert_eq!(Mode::Permits { take: 2, limit: 8 }.to_string(), "2 of 8 permits");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum Mode {
    /// Alone: a mutex, or the writer of a read-write lock.
    #[default]
    Exclusive,
    /// Together with other shared holds: the readers of a read-write lock.
    Shared,
    /// Together with others, as long as no more than `limit` permits are taken.
    Permits {
        /// How many permits one hold takes.
        take: u32,
        /// How many permits there are, as far as this contender knows. If contenders know different limits, the smallest
        /// one counts.
        limit: u32,
    },
}

impl Mode {
    /// Why it is not a valid mode.
    pub(crate) fn invalid(self) -> Option<String> {
        match self {
            Self::Permits { limit: 0, .. } => Some("a semaphore needs a limit of at least 1 permit".into()),
            Self::Permits { limit, .. } if limit > MAX_LIMIT => {
                Some(format!("the limit of {limit} permits is too large; the largest is {MAX_LIMIT}"))
            }
            Self::Permits { take: 0, .. } => Some("at least 1 permit must be taken".into()),
            Self::Permits { take, limit } if take > limit => {
                Some(format!("{take} permits cannot be taken of a semaphore that has {limit}"))
            }
            Self::Exclusive | Self::Shared | Self::Permits { .. } => None,
        }
    }

    /// How many permits a hold takes.
    pub(crate) fn take(self) -> u32 {
        match self {
            Self::Exclusive | Self::Shared => 1,
            Self::Permits { take, .. } => take,
        }
    }

    /// How many permits may be taken at most while it holds.
    pub(crate) fn limit(self) -> u32 {
        match self {
            Self::Exclusive => 1,
            Self::Shared => u32::MAX,
            Self::Permits { limit, .. } => limit,
        }
    }

    /// What follows the key of a lock in log lines and errors: nothing for an exclusive mode, else the mode in brackets.
    pub(crate) fn remark(self) -> String {
        if self == Self::Exclusive { String::new() } else { format!(" ({self})") }
    }

    /// How the last segment of a contender's key begins.
    pub(crate) fn marker(self) -> String {
        match self {
            Self::Exclusive => String::new(),
            Self::Shared => "~r.".into(),
            Self::Permits { take, limit } => format!("~{take}of{limit}."),
        }
    }

    /// The mode of a contender's key. Every key that is not exactly as we write those of other modes is exclusive: those
    /// of Go's `concurrency.Mutex` and of `etcdctl lock` are.
    pub(crate) fn of(key: &Key) -> Self {
        let contender = key.as_str().rsplit('/').next().unwrap_or_default();
        Self::of_marked(contender).unwrap_or_default()
    }

    fn of_marked(contender: &str) -> Option<Self> {
        let (marker, id) = contender.strip_prefix('~')?.split_once('.')?;
        let (lease, seq) = id.split_once('-')?;
        if !is_hex(lease) || !is_hex(seq) {
            return None;
        }
        if marker == "r" {
            return Some(Self::Shared);
        }
        let (take, limit) = marker.split_once("of")?;
        let mode = Self::Permits { take: decimal(take)?, limit: decimal(limit)? };
        mode.invalid().is_none().then_some(mode)
    }
}

/// What some contenders would take if they held the lock together: the one rule of who may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    taken: u64,
    limit: u32,
}

impl Load {
    pub(crate) const NONE: Self = Self { taken: 0, limit: u32::MAX };

    pub(crate) fn of(modes: impl IntoIterator<Item = Mode>) -> Self {
        modes.into_iter().fold(Self::NONE, Self::with)
    }

    /// The load with one more contender.
    pub(crate) fn with(self, mode: Mode) -> Self {
        Self { taken: self.taken + u64::from(mode.take()), limit: self.limit.min(mode.limit()) }
    }

    /// Whether a contender of this mode holds the lock if these are all that are before it.
    pub(crate) fn admits(self, mode: Mode) -> bool {
        let all = self.with(mode);
        all.taken <= u64::from(all.limit)
    }

    /// How many of these contenders, in their order, hold the lock together. They are the first ones: a contender that is
    /// not admitted leaves even less for those behind it.
    pub(crate) fn holders(in_order: impl IntoIterator<Item = Mode>) -> usize {
        let mut load = Self::NONE;
        let admitted = |&mode: &Mode| {
            let admitted = load.admits(mode);
            load = load.with(mode);
            admitted
        };
        in_order.into_iter().take_while(admitted).count()
    }

    /// Whether an exclusive one is among them, or the only permit of one is taken: nobody else can hold the lock before
    /// that is given back.
    pub(crate) fn is_exclusive(self) -> bool {
        self.limit == 1 && self.taken > 0
    }
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A number as we write it: without a sign and without leading zeros.
fn decimal(text: &str) -> Option<u32> {
    let canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    if canonical { text.parse().ok() } else { None }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exclusive => f.pad("exclusive"),
            Self::Shared => f.pad("shared"),
            Self::Permits { take, limit } => f.pad(&format!("{take} of {limit} permits")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_survives_a_round_trip_through_a_key() {
        let permits = |take, limit| Mode::Permits { take, limit };
        for mode in
            [Mode::Exclusive, Mode::Shared, permits(1, 1), permits(3, 10), permits(MAX_LIMIT, MAX_LIMIT)]
        {
            let key = Key::from(format!("/app/jobs/{}694d71ad-1a", mode.marker()));
            assert_eq!(Mode::of(&key), mode, "{key}");
        }
    }

    #[test]
    fn whatever_is_not_exactly_a_key_of_another_mode_is_exclusive() {
        let foreign = [
            "694d71ad",
            "~r",
            "~r.",
            "~r.1",
            "~r.1-",
            "~r.-1",
            "~r.1-G",
            "~r.A-1",
            "~s.1-1",
            "r.1-1",
            "~0of2.1-1",
            "~3of2.1-1",
            "~01of2.1-1",
            "~+1of2.1-1",
            "~1of02.1-1",
            "~1of2.1",
            "~1of.1-1",
            "~of2.1-1",
            "~1of4097.1-1",
            "~1of99999999999.1-1",
            "~1 of2.1-1",
            "~1of2.1-1-1",
            "",
        ];
        for contender in foreign {
            assert_eq!(
                Mode::of(&Key::from(format!("/app/jobs/{contender}"))),
                Mode::Exclusive,
                "{contender}"
            );
        }
        assert_eq!(Mode::of(&Key::from(vec![b'~', b'r', b'.', 0xff])), Mode::Exclusive);
    }

    /// The rule as it is told to users, case by case.
    fn may_hold(own: Mode, before: &[Mode]) -> bool {
        if before.contains(&Mode::Exclusive) {
            return false;
        }
        let permits = |mode: &Mode| match *mode {
            Mode::Permits { take, limit } => (take, Some(limit)),
            _ => (1, None),
        };
        let smallest = before.iter().chain([&own]).filter_map(|mode| permits(mode).1).min();
        let taken: u32 = before.iter().chain([&own]).map(|mode| permits(mode).0).sum();
        match own {
            Mode::Exclusive => before.is_empty(),
            _ => smallest.is_none_or(|smallest| taken <= smallest),
        }
    }

    #[test]
    fn the_load_decides_as_the_rule_does_for_every_small_queue() {
        let permits = |take, limit| Mode::Permits { take, limit };
        let modes =
            [Mode::Exclusive, Mode::Shared, permits(1, 1), permits(1, 2), permits(2, 3), permits(1, 4)];
        let mut queues: Vec<Vec<Mode>> = vec![Vec::new()];
        for _ in 0..4 {
            queues = queues
                .iter()
                .flat_map(|queue| modes.iter().map(|&mode| [&queue[..], &[mode]].concat()))
                .chain([Vec::new()])
                .collect();
            for before in &queues {
                for own in modes {
                    assert_eq!(
                        Load::of(before.iter().copied()).admits(own),
                        may_hold(own, before),
                        "{own:?} {before:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_holders_are_exactly_the_first_contenders_of_a_queue() {
        let permits = |take, limit| Mode::Permits { take, limit };
        let modes = [Mode::Exclusive, Mode::Shared, permits(1, 2), permits(2, 3), permits(1, 4)];
        for number in 0..modes.len().pow(5) {
            let mut digits = number;
            let queue: [Mode; 5] = std::array::from_fn(|_| {
                let mode = modes[digits % modes.len()];
                digits /= modes.len();
                mode
            });
            let holders = Load::holders(queue);
            for (place, &mode) in queue.iter().enumerate() {
                let admitted = Load::of(queue[..place].iter().copied()).admits(mode);
                assert_eq!(admitted, place < holders, "{place} of {queue:?}");
            }
        }
        assert_eq!(Load::holders([]), 0);
    }

    #[test]
    fn a_limit_or_a_number_of_permits_that_makes_no_sense_is_invalid() {
        for (take, limit) in [(0, 1), (1, 0), (0, 0), (2, 1), (1, MAX_LIMIT + 1), (u32::MAX, u32::MAX)] {
            assert!(Mode::Permits { take, limit }.invalid().is_some(), "{take} of {limit}");
        }
        assert_eq!(Mode::Permits { take: 1, limit: MAX_LIMIT }.invalid(), None);
    }
}
