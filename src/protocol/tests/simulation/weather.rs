//! The kind of world that a seed makes, and the faults planned in it.

use std::time::Duration;

use super::faults::InjectedFault;
use super::network::Link;
use super::world::{Event, World};
use crate::name::LockName;
use crate::store::memory::model::{Limits, Model};

/// The kinds of faults.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Cut,
    Slow,
    BreakStream,
    StallStream,
    Pause,
    Suspend,
    Jump,
    Crash,
    Expire,
    RevokeLease,
    DeleteContender,
    DeleteName,
    DeleteSessionKey,
    LeaderChange,
    TermBack,
    Compact,
    Full,
    Deny,
    Foreign,
}

/// A kind of world.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    /// The faults that it injects.
    kinds: &'static [Kind],
    /// No faults at all, not even a failed request.
    calm: bool,
    /// A proxy executes deletes twice.
    pub(super) duplicates: bool,
    /// Members lag, possibly by more than the last compaction, and answer reads from their old state (etcd #20418).
    pub(super) stale_reads: bool,
    /// Many managers on one name.
    crowd: bool,
    /// The clocks' rates differ by as much as the safety margin allows, not by one per cent.
    pub(super) drift: bool,
    /// etcd allows few operations in a transaction.
    small_transactions: bool,
    /// Most calls are tries.
    pub(super) tries: bool,
}

const FAIR: Weather = Weather {
    kinds: &[],
    calm: false,
    duplicates: false,
    stale_reads: false,
    crowd: false,
    drift: false,
    small_transactions: false,
    tries: false,
};

const EVERYTHING: &[Kind] = &[
    Kind::Cut,
    Kind::Slow,
    Kind::BreakStream,
    Kind::StallStream,
    Kind::Pause,
    Kind::Suspend,
    Kind::Jump,
    Kind::Crash,
    Kind::Expire,
    Kind::RevokeLease,
    Kind::DeleteContender,
    Kind::DeleteName,
    Kind::DeleteSessionKey,
    Kind::LeaderChange,
    Kind::Compact,
    Kind::Full,
    Kind::Deny,
    Kind::Foreign,
];

/// Mixtures of faults. With all kinds at once, some interactions of a few kinds never show, so these are also mixed on
/// their own.
const WEATHERS: [Weather; 15] = [
    Weather { kinds: EVERYTHING, ..FAIR },
    Weather { calm: true, ..FAIR },
    Weather { calm: true, crowd: true, ..FAIR },
    // A bad network and slow processes.
    Weather {
        kinds: &[Kind::Cut, Kind::Cut, Kind::Slow, Kind::Slow, Kind::Pause, Kind::StallStream],
        ..FAIR
    },
    // A busy administrator, while watches are unreliable.
    Weather {
        kinds: &[
            Kind::DeleteContender,
            Kind::DeleteName,
            Kind::RevokeLease,
            Kind::StallStream,
            Kind::Foreign,
        ],
        ..FAIR
    },
    // Elections.
    Weather { kinds: &[Kind::LeaderChange, Kind::LeaderChange, Kind::Cut, Kind::Slow], ..FAIR },
    // Processes that start and crash.
    Weather { kinds: &[Kind::Crash, Kind::Pause, Kind::Foreign, Kind::Compact], ..FAIR },
    // A full store, and changing permissions.
    Weather { kinds: &[Kind::Full, Kind::Full, Kind::Deny, Kind::Slow], ..FAIR },
    Weather { kinds: &[Kind::Full, Kind::Cut, Kind::Deny], small_transactions: true, ..FAIR },
    // A proxy that retries.
    Weather { kinds: &[Kind::Slow, Kind::Pause, Kind::Full], duplicates: true, ..FAIR },
    // Lagging members.
    Weather {
        kinds: &[
            Kind::Compact,
            Kind::BreakStream,
            Kind::BreakStream,
            Kind::StallStream,
            Kind::DeleteContender,
        ],
        stale_reads: true,
        ..FAIR
    },
    // Bad clocks.
    Weather {
        kinds: &[Kind::Jump, Kind::Suspend, Kind::Cut, Kind::Expire, Kind::Pause],
        drift: true,
        ..FAIR
    },
    // A long queue.
    Weather {
        kinds: &[Kind::StallStream, Kind::BreakStream, Kind::Crash, Kind::DeleteContender, Kind::Slow],
        crowd: true,
        ..FAIR
    },
    // Mostly tries, with slow answers.
    Weather { kinds: &[Kind::Slow, Kind::Slow, Kind::Pause], tries: true, ..FAIR },
    // A restored cluster.
    Weather { kinds: &[Kind::LeaderChange, Kind::TermBack, Kind::BreakStream, Kind::Crash], ..FAIR },
];

impl Weather {
    pub(super) fn choose(rng: &mut fastrand::Rng) -> Self {
        rng.choice(WEATHERS).unwrap_or(FAIR)
    }

    /// The numbers of managers, of threads of each, and of names.
    pub(super) fn size(self, rng: &mut fastrand::Rng) -> (usize, usize, usize) {
        if self.crowd {
            (rng.usize(10..=14), rng.usize(1..=2), 1)
        } else {
            (rng.usize(1..=4), rng.usize(1..=3), rng.usize(1..=4))
        }
    }

    pub(super) fn ttl(self, rng: &mut fastrand::Rng) -> Duration {
        Duration::from_secs(rng.choice([2, 5, 5, 5, 30]).unwrap_or(5))
    }

    /// The scheduling delay of the managers' threads: on an idle machine, on a busy one, and on one with too little
    /// CPU.
    pub(super) fn lateness(self, rng: &mut fastrand::Rng) -> Duration {
        let choice: &[u64] =
            if self.calm { &[0, 0, 200, 2_000] } else { &[0, 0, 200, 2_000, 20_000, 100_000] };
        Duration::from_micros(rng.choice(choice).copied().unwrap_or_default())
    }

    /// The rate of a manager's clock.
    pub(super) fn rate(self, rng: &mut fastrand::Rng) -> f64 {
        if self.drift { 0.905 + rng.f64() * 0.19 } else { 0.99 + rng.f64() * 0.02 }
    }

    pub(super) fn model(self, rng: &mut fastrand::Rng) -> Model {
        let max_txn_ops = match (self.small_transactions, rng.bool()) {
            (false, _) => 128,
            (true, false) => 16,
            (true, true) => 6,
        };
        Model::with(Limits { max_txn_ops, ..Limits::default() }, 1)
    }
}

impl World {
    /// Whether no faults happen in this world.
    pub(super) fn is_calm(&self) -> bool {
        self.weather.calm
    }

    pub(super) fn plan_faults(&mut self) {
        if self.weather.calm {
            return;
        }
        let unreliable = self.rng.choice([0.0, 0.02, 0.2, 0.4]).unwrap_or_default();
        for node in 0..self.nodes.len() {
            self.nodes[node].link.unreliable = unreliable;
        }
        for _ in 0..self.rng.usize(0..24) {
            let at = self.below(Duration::from_secs(30));
            let fault = self.pick_fault(self.weather.kinds);
            self.schedule(at, Event::Fault(fault));
        }
    }

    fn pick_fault(&mut self, kinds: &[Kind]) -> InjectedFault {
        let node = self.rng.usize(..self.nodes.len());
        let ttl = self.ttl;
        match self.rng.choice(kinds).copied().unwrap_or(Kind::Foreign) {
            Kind::Cut => {
                let link = self.nodes[node].link;
                let (requests_lost, answers_lost) = (self.rng.bool(), self.rng.bool());
                InjectedFault::Link { node, link: Link { requests_lost, answers_lost, ..link } }
            }
            Kind::Slow => self.slow_link(node),
            Kind::BreakStream => InjectedFault::BreakStream(node),
            Kind::StallStream => InjectedFault::StallStream(node),
            Kind::Pause => InjectedFault::Pause(node, self.below(ttl * 2)),
            Kind::Suspend => InjectedFault::Suspend(node, self.below(ttl * 2)),
            Kind::Jump => InjectedFault::Jump(node, self.below(ttl * 2)),
            Kind::Crash => InjectedFault::Crash(node),
            Kind::Expire => InjectedFault::Expire(node),
            Kind::RevokeLease => InjectedFault::RevokeLease,
            Kind::DeleteContender => InjectedFault::DeleteContender,
            Kind::DeleteName => InjectedFault::DeleteName,
            Kind::DeleteSessionKey => InjectedFault::DeleteSessionKey,
            Kind::LeaderChange => InjectedFault::LeaderChange,
            Kind::TermBack => InjectedFault::TermBack,
            Kind::Compact => InjectedFault::Compact,
            Kind::Full => InjectedFault::Full { applied: self.rng.bool() },
            Kind::Deny => {
                let name = self.rng.usize(..=self.names.len());
                InjectedFault::Deny(
                    self.names.get(name).map(LockName::contenders).unwrap_or_else(super::reading::sessions),
                )
            }
            Kind::Foreign => InjectedFault::Foreign,
        }
    }

    fn slow_link(&mut self, node: usize) -> InjectedFault {
        let slow = self.below(Duration::from_secs(2));
        let (slow_requests, slow_answers) = match self.rng.u8(0..3) {
            0 => (slow, slow),
            1 => (slow, Duration::ZERO),
            _ => (Duration::ZERO, slow),
        };
        InjectedFault::Link { node, link: Link { slow_requests, slow_answers, ..self.nodes[node].link } }
    }
}
