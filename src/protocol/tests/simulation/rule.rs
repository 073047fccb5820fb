//! Who may hold a lock together, written down a second time: the checks must not share a mistake with the protocol.

use crate::kv::{Key, KeyValue, Revision};
use crate::mode::Mode;

/// What a contender is, as its key says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Writer,
    Reader,
    Permits { take: u64, limit: u64 },
}

impl Part {
    pub(super) fn of_key(key: &Key) -> Self {
        let last = key.as_str().rsplit('/').next().unwrap_or_default();
        let Some((kind, _)) = last.strip_prefix('~').and_then(|rest| rest.split_once('.')) else {
            return Self::Writer;
        };
        match kind.split_once("of") {
            _ if kind == "r" => Self::Reader,
            Some((take, limit)) => match (take.parse(), limit.parse()) {
                (Ok(take), Ok(limit)) => Self::Permits { take, limit },
                _ => Self::Writer,
            },
            None => Self::Writer,
        }
    }

    pub(super) fn of_mode(mode: Mode) -> Self {
        match mode {
            Mode::Exclusive => Self::Writer,
            Mode::Shared => Self::Reader,
            Mode::Permits { take, limit } => Self::Permits { take: take.into(), limit: limit.into() },
        }
    }
}

/// Whether all of them may hold the lock at the same time: a writer only alone, and no more permits taken than the
/// smallest limit. A reader takes one.
pub(super) fn may_hold_together(all: &[Part]) -> bool {
    if all.contains(&Part::Writer) {
        return all.len() == 1;
    }
    let permits = |part: &Part| match part {
        Part::Permits { take, limit } => (*take, Some(*limit)),
        Part::Reader | Part::Writer => (1, None),
    };
    let taken: u64 = all.iter().map(|part| permits(part).0).sum();
    let smallest = all.iter().filter_map(|part| permits(part).1).min();
    smallest.is_none_or(|smallest| taken <= smallest)
}

/// How many of these contenders, from the first on, hold the lock. Sorted by create revision, then by key.
pub(super) fn holders(queue: &[KeyValue]) -> usize {
    let parts: Vec<Part> = queue.iter().map(|kv| Part::of_key(&kv.key)).collect();
    (1..=parts.len()).take_while(|&first| may_hold_together(&parts[..first])).count()
}

/// Whether the contender stands in the queue and holds the lock.
pub(super) fn is_holder(queue: &[KeyValue], key: &Key, created: Revision) -> bool {
    queue[..holders(queue)].iter().any(|kv| kv.key == *key && kv.create_revision == created)
}

#[test]
fn the_rule_of_the_checks_is_the_one_of_the_contract() {
    let permits = |take, limit| Part::Permits { take, limit };
    use Part::{Reader, Writer};
    for together in [
        &[][..],
        &[Writer],
        &[Reader, Reader, Reader],
        &[permits(3, 3)],
        &[permits(1, 3), permits(2, 4), permits(0, 9)],
        &[permits(1, 2), Reader],
    ] {
        assert!(may_hold_together(together), "{together:?}");
    }
    for not in [
        &[Writer, Writer][..],
        &[Writer, Reader],
        &[permits(1, 9), Writer],
        &[permits(2, 9), permits(1, 2)],
        &[permits(1, 2), Reader, Reader],
        &[permits(1, 1), permits(1, 5)],
    ] {
        assert!(!may_hold_together(not), "{not:?}");
    }
    for (key, part) in
        [("/a/1f", Writer), ("/a/1f-2", Writer), ("/a/~r.1f-2", Reader), ("/a/~2of3.1f-2", permits(2, 3))]
    {
        assert_eq!(Part::of_key(&Key::from(key.to_owned())), part);
    }
}
