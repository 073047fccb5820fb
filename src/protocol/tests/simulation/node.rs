//! One simulated manager, and the counts of a run.

use std::collections::BTreeMap;
use std::time::Duration;

use super::network::{Link, Pending};
use super::script::Worker;
use super::streams::Stream;
use super::turns::Turns;
use super::weather::Weather;
use super::world::root;
use crate::clock::Time;
use crate::kv::LeaseId;
use crate::protocol::{Config, Protocol, RequestId};

/// The counts of a run, for the summary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) events: u64,
    pub(super) grants: u64,
    pub(super) losses: u64,
    pub(super) faults: u64,
    /// Acknowledged writes of holders.
    pub(super) writes: u64,
}

/// One manager: the protocol, and the simulated driver around it.
pub(super) struct Node {
    pub(super) protocol: Protocol,
    /// Counts restarts; events of an earlier life are ignored.
    pub(super) life: u32,
    /// The rate of the manager's clock.
    pub(super) rate: f64,
    /// How far the clock has jumped forward in total, and when it last did.
    pub(super) jumped: Duration,
    pub(super) jumped_at: Time,
    /// The process is stopped until then, and everything that arrives waits.
    pub(super) paused_until: Time,
    /// Until then, timers that do not count the machine's sleep may fire late.
    pub(super) overslept: Time,
    pub(super) link: Link,
    pub(super) turns: Turns,
    pub(super) pending: BTreeMap<RequestId, Pending>,
    pub(super) stream: Stream,
    pub(super) workers: Vec<Worker>,
    /// The holds' deadline, by the manager's clock.
    pub(super) deadline: Option<Time>,
    /// A caller's thread noticed that the deadline has passed.
    pub(super) expiry_seen: bool,
    pub(super) lease: Option<LeaseId>,
    /// The highest raft term in any answer.
    pub(super) seen_term: u64,
    pub(super) closed: bool,
}

impl Tally {
    pub(super) fn add(&mut self, other: Self) {
        self.events += other.events;
        self.grants += other.grants;
        self.losses += other.losses;
        self.faults += other.faults;
        self.writes += other.writes;
    }
}

impl Node {
    pub(super) fn new(rng: &mut fastrand::Rng, weather: Weather, ttl: Duration, threads: usize) -> Self {
        Self {
            protocol: new_protocol(rng, ttl),
            life: 0,
            rate: weather.rate(rng),
            jumped: Duration::ZERO,
            jumped_at: Time::default(),
            paused_until: Time::default(),
            overslept: Time::default(),
            link: Link::default(),
            turns: Turns::late_by(weather.lateness(rng)),
            pending: BTreeMap::new(),
            stream: Stream::default(),
            workers: (0..threads).map(|_| Worker::default()).collect(),
            deadline: None,
            expiry_seen: false,
            lease: None,
            seen_term: 0,
            closed: false,
        }
    }
}

pub(super) fn new_protocol(rng: &mut fastrand::Rng, ttl: Duration) -> Protocol {
    Protocol::new(Config {
        root: root(),
        owner: "simulated".into(),
        pid: 1,
        ttl,
        safety_margin: (ttl / 10).max(Duration::from_millis(250)),
        request_timeout: Duration::from_secs(1),
        writes_in_flight: rng.usize(1..=3),
        seed: rng.u64(..),
    })
}
