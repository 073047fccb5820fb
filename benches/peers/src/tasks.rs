//! The contestants that are tasks of a tokio runtime: etcd-client's `LockClient`, which uses etcd's lock service, and
//! plain puts, the lower bound for any lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use etcd_client::{Client, LockOptions};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::Setting;
use crate::part::Part;
use crate::window::{Sheet, Turn, Window};

/// About the size of a contender's value.
const VALUE: [u8; 100] = [b'v'; 100];

/// Longer than any measurement, so no renewal is needed.
const TTL: i64 = 3_600;

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

pub(crate) fn lock_client(part: &Part) -> Sheet {
    runtime().block_on(async {
        let mut client = connect(&part.endpoints).await;
        let mut lease = grant(&mut client).await;
        let mut leases = vec![lease];
        let mut all = Vec::new();
        for worker in 0..part.shape.workers_each() {
            // A lease can lock a name only once.
            if worker > 0 && part.shape.is_shared() {
                lease = grant(&mut client).await;
                leases.push(lease);
            }
            let names = part.names(worker).iter().map(|name| format!("{}/{name}", part.prefix)).collect();
            all.push((lease, names));
        }
        let window = Window::agreed();
        let mut tasks = JoinSet::new();
        for (lease, names) in all {
            tasks.spawn(take_turns(client.clone(), lease, names, window));
        }
        let turns = tasks.join_all().await;
        for lease in leases {
            client.lease_revoke(lease).await.unwrap();
        }
        Sheet { turns, ..Sheet::default() }
    })
}

async fn take_turns(client: Client, lease: i64, names: Vec<String>, window: Window) -> Vec<Turn> {
    let mut locks = client.lock_client();
    let mut turns = Vec::new();
    for name in names.iter().cycle() {
        if window.is_over() {
            break;
        }
        let asked = window.now();
        let options = LockOptions::new().with_lease(lease);
        let held = locks.lock(name.as_str(), Some(options)).await.unwrap();
        let granted = window.now();
        let releasing = window.now();
        locks.unlock(held.key()).await.unwrap();
        window.note(&mut turns, [asked, granted, releasing]);
    }
    turns
}

pub(crate) fn puts(part: &Part) -> Sheet {
    runtime().block_on(async {
        let client = connect(&part.endpoints).await;
        let window = Window::agreed();
        let mut tasks = JoinSet::new();
        for number in 0..part.shape.putters() {
            let mut client = client.clone();
            let key = format!("{}/{number}", part.prefix);
            tasks.spawn(async move {
                let mut turns = Vec::new();
                while !window.is_over() {
                    let asked = window.now();
                    client.put(key.as_str(), VALUE, None).await.unwrap();
                    let done = window.now();
                    window.note(&mut turns, [asked, done, done]);
                }
                turns
            });
        }
        Sheet { turns: tasks.join_all().await, ..Sheet::default() }
    })
}

/// Unrelated writes at a steady rate, until it is dropped.
#[derive(Debug)]
pub(crate) struct Writes {
    runtime: Runtime,
    done: Arc<AtomicU64>,
    since: Instant,
}

impl Writes {
    pub(crate) fn start(setting: &Setting) -> Option<Self> {
        let each = Duration::from_secs(1).checked_div(setting.row.writes)?;
        let runtime = runtime();
        let done = Arc::new(AtomicU64::new(0));
        let client = runtime.block_on(connect(&setting.endpoints));
        let key = format!("{}/unrelated", setting.prefix);
        let counted = Arc::clone(&done);
        runtime.spawn(async move {
            let mut pace = tokio::time::interval(each);
            loop {
                pace.tick().await;
                let (mut client, key, counted) = (client.clone(), key.clone(), Arc::clone(&counted));
                tokio::spawn(async move {
                    if client.put(key, VALUE, None).await.is_ok() {
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        Some(Self { runtime, done, since: Instant::now() })
    }

    /// Ends the writes, and returns their rate per second.
    pub(crate) fn stop(self) -> f64 {
        let rate = self.done.load(Ordering::Relaxed) as f64 / self.since.elapsed().as_secs_f64();
        self.runtime.shutdown_background();
        rate
    }
}

async fn connect(endpoints: &[String]) -> Client {
    Client::connect(endpoints, None).await.unwrap()
}

async fn grant(client: &mut Client) -> i64 {
    client.lease_grant(TTL, None).await.unwrap().id()
}
