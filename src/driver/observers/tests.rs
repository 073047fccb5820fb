//! An observed name against random histories of a lock: what it publishes is true, in the order of history, and complete.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::name::{ObservedName, Step};
use crate::clock::Time;
use crate::driver::queries::holder_read::HolderRead;
use crate::info::LockInfo;
use crate::kv::{Key, Op, Order, Range, Request, Revision, Txn, WatchEvent, WatchId, WatchSpec};
use crate::mode::Mode;
use crate::name::{LockName, Root};
use crate::protocol::CurrentHolder;
use crate::protocol::mutants::Mutant;
use crate::shared::feeds::{Feeds, ObserverId};
use crate::store::memory::model::{Model, Notice};

const OBSERVER: ObserverId = ObserverId(1);

fn name() -> LockName {
    LockName::parse(&Root::parse("/app").unwrap(), "a").unwrap()
}

/// One random history, its watch, and the reads of one observed name.
struct World {
    rng: fastrand::Rng,
    now: Instant,
    model: Model,
    name: ObservedName,
    feeds: Feeds,
    changes: crossbeam_channel::Receiver<Option<LockInfo>>,
    events: VecDeque<WatchEvent>,
    reading: bool,
    /// The read in flight was executed, and its answer is on its way.
    executed: Option<HolderRead>,
    /// The holder's token and note as of each revision.
    truth: Vec<Option<(u64, Option<String>)>>,
    published: Vec<Option<(u64, Option<String>)>>,
}

fn shown(info: &LockInfo) -> (u64, Option<String>) {
    (info.token.as_u64(), info.note.clone())
}

impl World {
    fn new(seed: u64) -> Self {
        let (mut model, feeds, now) = (Model::new(), Feeds::default(), Instant::now());
        let spec = WatchSpec { span: name().contenders(), from_revision: 0, puts: true };
        let (_, revision) = model.watch(&spec).unwrap();
        let (changes, _) = feeds.observe(OBSERVER);
        let mut observed = ObservedName::new(name(), now);
        let reading = observed.join(OBSERVER, Box::new(|_| {})) == Step::Read;
        let events = [WatchEvent::Created { watch: WatchId(1), revision }].into();
        let truth = vec![None; usize::try_from(revision).unwrap() + 1];
        let rng = fastrand::Rng::with_seed(seed);
        let published = Vec::new();
        Self {
            rng,
            now,
            model,
            name: observed,
            feeds,
            changes,
            events,
            reading,
            executed: None,
            truth,
            published,
        }
    }

    fn read_at(&self, at_revision: Revision) -> Option<crate::kv::KeyValue> {
        let span = name().contenders();
        let order = Order::OldestFirst;
        let range = Range { span, order, limit: 1, max_create_revision: 0, at_revision, keys_only: false };
        self.model.read(&range).unwrap().kvs.pop()
    }

    /// A contender enters, changes its note or leaves.
    fn change(&mut self) {
        let lease = self.rng.i64(1..4);
        let key: Key = name().contender_key(Mode::Exclusive, lease, 0);
        let note = format!(r#"{{"owner":"o","note":"{}"}}"#, self.rng.u8(0..3));
        let op = match self.rng.u8(0..2) {
            0 => Op::Put { key, value: note.into(), lease: 0 },
            _ => Op::Delete { key },
        };
        self.model.execute(Time::default(), &Request::Txn(Txn { then: vec![op], ..Txn::default() })).unwrap();
        while let Some((_, notice)) = self.model.poll_notice() {
            let watch = WatchId(1);
            self.events.push_back(match notice {
                Notice::Deleted { keys, revision } => WatchEvent::Deleted { watch, keys, revision },
                Notice::Put { keys, revision } => WatchEvent::Put { watch, keys, revision },
                Notice::Compacted { .. } => panic!("nothing is compacted"),
            });
        }
        let holder = self.read_at(0).map(|kv| shown(&LockInfo::from_holder("a", &kv, 0, None)));
        self.truth.resize(usize::try_from(self.model.revision()).unwrap() + 1, holder);
    }

    /// A member executes the read, perhaps on an old state.
    fn execute(&mut self, stale: bool) {
        let newest = self.model.revision();
        let revision = if stale { (newest - self.rng.i64(0..4)).max(1) } else { newest };
        let holder = self.read_at(revision).map(|kv| CurrentHolder { kv, waiters: 0 });
        self.executed = Some(HolderRead { revision, holder, contenders: Vec::new() });
    }

    fn answer(&mut self) {
        let Some(read) = self.executed.take() else { return };
        self.reading = self.name.read_answered(Ok(read), self.now, &self.feeds) == Step::Read;
    }

    /// The watch breaks: what it has not reported is lost, and it is opened anew.
    fn reopen(&mut self) {
        self.events = [WatchEvent::Created { watch: WatchId(1), revision: self.model.revision() }].into();
    }

    fn step(&mut self, quiet: bool) {
        match self.rng.u8(0..8) {
            0..=2 if !quiet => self.change(),
            3 if !quiet && self.rng.u8(0..10) == 0 => self.reopen(),
            4 if self.reading && self.executed.is_none() => {
                let stale = !quiet && self.rng.u8(0..4) == 0;
                self.execute(stale);
            }
            5 => self.answer(),
            6 => {
                if let Some(event) = self.events.pop_front() {
                    self.reading |= self.name.watch_reported(&event, &self.feeds) == Step::Read;
                }
            }
            _ => {
                self.now += Duration::from_millis(5);
                if self.name.due().is_some_and(|due| due <= self.now) {
                    self.reading |= self.name.check_again() == Step::Read;
                }
            }
        }
        let published = self.changes.try_iter().map(|info| info.as_ref().map(shown));
        self.published.extend(published);
    }

    /// What was published is a part of the truth, in its order, and ends with its end.
    fn judge(&self) -> Result<(), String> {
        let mut from = 0;
        for state in &self.published {
            let at = self.truth[from..].iter().position(|truth| truth == state);
            from += at.ok_or_else(|| format!("{state:?} is older than what was published before it"))?;
        }
        match (self.published.last(), self.truth.last()) {
            (Some(last), Some(truth)) if last == truth => Ok(()),
            (last, truth) => Err(format!("the end is {truth:?}, and {last:?} was published last")),
        }
    }
}

fn run(seed: u64) -> Result<(), String> {
    let mut world = World::new(seed);
    (0..400).for_each(|_| world.step(false));
    (0..3_000).for_each(|_| world.step(true));
    world.judge()
}

#[test]
fn an_observer_publishes_the_truth_in_its_order_and_to_its_end() {
    for seed in 0..500 {
        if let Err(wrong) = run(seed) {
            panic!("seed {seed}: {wrong}");
        }
    }
}

#[test]
fn each_defect_of_an_observer_is_noticed() {
    for mutant in [Mutant::ObserverBelievesStaleRead, Mutant::ObserverForgetsWhileReading] {
        let noticed = (0..500).find_map(|seed| mutant.during(|| run(seed)).err());
        assert!(noticed.is_some(), "{mutant:?}");
    }
}

#[test]
fn a_store_that_was_restored_is_believed_after_a_while() {
    let mut world = World::new(1);
    (0..10).for_each(|_| world.change());
    while world.reading {
        world.execute(false);
        world.answer();
    }
    world.events.clear();
    let backup = HolderRead { revision: 2, holder: None, contenders: Vec::new() };
    let begun = world.now;
    while world.now < begun + Duration::from_secs(30) {
        if world.name.due().is_some_and(|due| due <= world.now) && world.name.check_again() == Step::Read {
            let _ = world.name.read_answered(Ok(backup.clone()), world.now, &world.feeds);
        }
        world.now += Duration::from_millis(20);
    }
    let published: Vec<_> = world.changes.try_iter().collect();
    assert_eq!(published.last(), Some(&None));
}
