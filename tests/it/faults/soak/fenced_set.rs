//! A set in one key, to which holders of a lock add elements through random faults: by fenced writes, and beside that by
//! plain ones, as programs do that trust their lock.
//!
//! `ETCD_LOCK_SET_SECONDS` sets the length, and `ETCD_LOCK_SOAK_SEED` repeats the faults of a failed run.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use etcd_lock::{LockError, LockGuard, LockManager};
use fastrand::Rng;

use super::chaos::{Chaos, Stage};
use super::{MANAGERS, MEMBERS, Seed, TTL, managers_with_doors, number};
use crate::support::{Cluster, Raw, eventually, fresh_root};

const THREADS: usize = 2;
const DEFAULT_SECONDS: u64 = 20;

/// A new key after so many elements, so that the values stay small.
const PER_KEY: u64 = 200;

/// What the writers were told.
#[derive(Debug, Default)]
struct Told {
    acknowledged: BTreeSet<u64>,
    /// "Not written."
    refused: BTreeSet<u64>,
    unknown: BTreeSet<u64>,
}

/// One set, and who may write to it how.
struct Set<'a> {
    /// The lock's key, and the beginning of the keys of the set.
    lock: &'a str,
    data: String,
    /// Writes without a fence, past the manager's proxies.
    unfenced: Option<&'a Raw>,
    next: AtomicU64,
    told: Mutex<Told>,
}

fn parse(value: Option<Vec<u8>>) -> BTreeSet<u64> {
    let text = String::from_utf8(value.unwrap_or_default()).expect("our own text");
    text.split_whitespace().map(|number| number.parse().expect("a number")).collect()
}

fn print(set: &BTreeSet<u64>) -> String {
    set.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
}

impl<'a> Set<'a> {
    fn new(root: &str, lock: &'a str, unfenced: Option<&'a Raw>) -> Self {
        let data = format!("{root}-{lock}");
        Self { lock, data, unfenced, next: AtomicU64::new(0), told: Mutex::default() }
    }

    fn key(&self, element: u64) -> String {
        format!("{}/{}", self.data, element / PER_KEY)
    }

    fn work(&self, manager: &LockManager, stop: &AtomicBool, seed: u64) {
        let mut rng = Rng::with_seed(seed);
        let lock = manager.new_lock(self.lock).expect("the manager is open");
        while !stop.load(Ordering::Relaxed) {
            let Ok(guard) = lock.lock_timeout(TTL) else { continue };
            for _ in 0..rng.u32(1..8) {
                self.add(&guard, &mut rng);
                std::thread::sleep(Duration::from_millis(rng.u64(0..10)));
            }
        }
    }

    /// Reads the set, thinks, and writes it with one more element.
    fn add(&self, guard: &LockGuard, rng: &mut Rng) {
        let element = self.next.fetch_add(1, Ordering::Relaxed);
        let key = self.key(element);
        let Ok(value) = self.read(guard, &key) else { return };
        let mut set = parse(value);
        set.insert(element);
        if rng.u8(..40) == 0 {
            // Longer than the TTL: if there is a fault meanwhile, somebody else holds the lock by now.
            std::thread::sleep(TTL + Duration::from_millis(rng.u64(0..1_500)));
        }
        let outcome = self.write(guard, &key, print(&set));
        let mut told = self.told.lock().unwrap();
        match outcome {
            Ok(()) => told.acknowledged.insert(element),
            Err(LockError::Unavailable { .. } | LockError::NoSpace) => told.unknown.insert(element),
            Err(LockError::Expired { .. }) => told.refused.insert(element),
            Err(other) => panic!("no fault explains this error: {other:?}"),
        };
    }

    fn read(&self, guard: &LockGuard, key: &str) -> Result<Option<Vec<u8>>, LockError> {
        match self.unfenced {
            None => guard.etcd().get(key),
            Some(raw) => {
                let key = key.to_owned();
                let answer = raw.call(|mut client| async move { client.get(key, None).await });
                Ok(answer.map_err(|_| unavailable())?.kvs().first().map(|kv| kv.value().to_vec()))
            }
        }
    }

    fn write(&self, guard: &LockGuard, key: &str, value: String) -> Result<(), LockError> {
        match self.unfenced {
            None => guard.etcd().put(key, value),
            Some(raw) => {
                let key = key.to_owned();
                let put = raw.call(|mut client| async move { client.put(key, value, None).await });
                put.map(drop).map_err(|_| unavailable())
            }
        }
    }

    /// The acknowledged elements that are missing, and those that are there although they were refused.
    fn judge(&self, raw: &Raw) -> (Vec<u64>, Vec<u64>) {
        let told = self.told.lock().unwrap();
        let keys = 0..=self.next.load(Ordering::Relaxed) / PER_KEY;
        let all: BTreeSet<u64> = keys
            .flat_map(|number| parse(raw.get(&format!("{}/{number}", self.data)).map(|kv| kv.value)))
            .collect();
        println!(
            "{}: {} acknowledged, {} refused, {} unknown ({} of them written)",
            self.lock,
            told.acknowledged.len(),
            told.refused.len(),
            told.unknown.len(),
            told.unknown.intersection(&all).count()
        );
        let lost = told.acknowledged.difference(&all).copied().collect();
        (lost, told.refused.intersection(&all).copied().collect())
    }
}

/// Stands for the error of a plain client.
fn unavailable() -> LockError {
    LockError::NoSpace
}

/// Purpose: partitions, pauses longer than the TTL and killed members must not lose an acknowledged fenced write, nor
/// carry out a refused one; what the same loses without the fence is printed.
#[test]
fn random_faults_lose_no_acknowledged_fenced_write() {
    let seed = Seed(number("ETCD_LOCK_SOAK_SEED").unwrap_or_else(|| fastrand::u64(..)));
    let length = Duration::from_secs(number("ETCD_LOCK_SET_SECONDS").unwrap_or(DEFAULT_SECONDS));
    let cluster = Cluster::start(MEMBERS);
    let root = fresh_root("set");
    let (doors, managers) = managers_with_doors(&cluster, &root);
    let raw = Raw::connect(cluster.access());
    let sets = [Set::new(&root, "fenced", None), Set::new(&root, "unfenced", Some(&raw))];
    let stage = Stage { cluster: &cluster, doors: &doors, managers: &managers, root: &root };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (n, manager) in managers.iter().cycle().take(MANAGERS * THREADS).enumerate() {
            for set in &sets {
                let (stop, seed) = (&stop, seed.0.wrapping_add(n as u64));
                threads.push(scope.spawn(move || set.work(manager, stop, seed)));
            }
        }
        let mut chaos = Chaos::new(seed.0);
        let end = Instant::now() + length;
        while Instant::now() < end && !threads.iter().any(|thread| thread.is_finished()) {
            chaos.step(&stage);
        }
        stage.heal();
        stop.store(true, Ordering::Relaxed);
        println!("{length:?}, seed {}: {}", seed.0, chaos.summary());
        threads.into_iter().for_each(|thread| thread.join().expect("a writer"));
    });
    // A parked copy of a write would be carried out by now.
    eventually(Duration::from_secs(60), "the locks are free", || {
        managers[0].list_locks("").is_ok_and(|all| all.is_empty())
    });
    let raw = Raw::connect(cluster.access());
    let (lost, _) = sets[1].judge(&raw);
    println!("unfenced: {} acknowledged writes lost", lost.len());
    let (lost, refused) = sets[0].judge(&raw);
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    assert!(refused.is_empty(), "refused and written: {refused:?}");
}
