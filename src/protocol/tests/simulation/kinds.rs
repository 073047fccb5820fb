//! The modes in which the threads ask for each name of a schedule.
//!
//! They come from a random source of their own, so that they change nothing else of the schedule.

use crate::mode::Mode;

/// Mixed into the seed of the schedule.
const OWN_SOURCE: u64 = 0x6b69_6e64;

/// The modes in which a name is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Mutex,
    ReadWrite,
    Semaphore,
    Anything,
}

/// The kinds of the names, and the source of the modes.
#[derive(Debug)]
pub(super) struct Kinds {
    rng: fastrand::Rng,
    names: Vec<NameKind>,
}

#[derive(Debug)]
struct NameKind {
    kind: Kind,
    /// The limit that each manager knows.
    limits: Vec<u32>,
}

impl Kinds {
    pub(super) fn choose(seed: u64, names: usize, managers: usize) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ OWN_SOURCE);
        // As if there were no other kinds.
        let only_mutexes = rng.u8(0..4) == 0;
        let names = (0..names)
            .map(|_| {
                let kind = match rng.u8(0..8) {
                    _ if only_mutexes => Kind::Mutex,
                    0 | 1 => Kind::Mutex,
                    2 | 3 => Kind::ReadWrite,
                    4 | 5 => Kind::Semaphore,
                    _ => Kind::Anything,
                };
                let (limit, differ) = (rng.u32(1..=4), rng.u8(0..3) == 0);
                let limits = (0..managers).map(|_| if differ { rng.u32(1..=4) } else { limit }).collect();
                NameKind { kind, limits }
            })
            .collect();
        Self { rng, names }
    }

    /// The mode in which a thread of the manager asks for the name next.
    pub(super) fn pick(&mut self, name: usize, node: usize) -> Mode {
        let NameKind { kind, limits } = &self.names[name];
        let rng = &mut self.rng;
        let permits = |rng: &mut fastrand::Rng, limit| {
            let take = if rng.bool() { 1 } else { rng.u32(1..=limit) };
            Mode::Permits { take, limit }
        };
        let limit = limits[node];
        match (kind, rng.u8(0..12)) {
            (Kind::Mutex, _) | (Kind::ReadWrite, 0..4) | (Kind::Semaphore, 0) | (Kind::Anything, 0..3) => {
                Mode::Exclusive
            }
            (Kind::ReadWrite, _) | (Kind::Anything, 3..7) => Mode::Shared,
            (Kind::Semaphore, _) => permits(rng, limit),
            (Kind::Anything, 7..9) => {
                let limit = rng.u32(1..=4);
                permits(rng, limit)
            }
            (Kind::Anything, _) => permits(rng, limit),
        }
    }
}
