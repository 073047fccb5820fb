//! The contestants that are tasks of a tokio runtime: etcd-client's `LockClient`, which asks etcd's lock service, and
//! plain puts, which no lock can be faster than.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use etcd_client::{Client, LockOptions};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::Setting;
use crate::rows::Shape;
use crate::window::{Figures, Relay, Tally, Window};

/// About the size of a contender's value.
const VALUE: [u8; 100] = [b'v'; 100];

/// Longer than any measurement, so that nothing needs to be renewed.
const TTL: i64 = 3_600;

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

pub(crate) fn lock_client(setting: &Setting) -> Figures {
    runtime().block_on(async {
        let shape = setting.row.shape;
        let apart = matches!(shape, Shape::HandOver { .. });
        let mut client = connect(setting).await;
        let mut lease = grant(&mut client).await;
        let mut leases = vec![lease];
        let mut all = Vec::new();
        for number in 0..shape.workers() {
            if number > 0 && apart {
                client = connect(setting).await;
            }
            // A lease has a name only once.
            if number > 0 && shape.is_shared() {
                lease = grant(&mut client).await;
                leases.push(lease);
            }
            let name = |n| {
                let own = format!("{}/{number}-{n}", setting.prefix);
                if shape.is_shared() { format!("{}/shared", setting.prefix) } else { own }
            };
            all.push((number, client.clone(), lease, (0..shape.names()).map(name).collect::<Vec<_>>()));
        }
        let window = Window::opens_in(setting.warm_up, setting.measured);
        let relay = shape.is_shared().then(|| Arc::new(Relay::default()));
        let mut tasks = JoinSet::new();
        for (number, client, lease, names) in all {
            tasks.spawn(take_turns(number, client, lease, names, relay.clone(), window));
        }
        let figures = window.figures(tasks.join_all().await);
        for lease in leases {
            client.lease_revoke(lease).await.unwrap();
        }
        figures
    })
}

async fn take_turns(
    number: usize,
    client: Client,
    lease: i64,
    names: Vec<String>,
    relay: Option<Arc<Relay>>,
    window: Window,
) -> Tally {
    let mut locks = client.lock_client();
    let mut tally = Tally::new(window);
    for name in names.iter().cycle() {
        if window.is_over() {
            break;
        }
        let start = Instant::now();
        let options = LockOptions::new().with_lease(lease);
        let held = locks.lock(name.as_str(), Some(options)).await.unwrap();
        let mut latency = Some(start.elapsed());
        if let Some(relay) = &relay {
            latency = relay.granted(number);
            relay.releasing(number);
        }
        locks.unlock(held.key()).await.unwrap();
        tally.cycle(latency);
    }
    tally
}

pub(crate) fn puts(setting: &Setting) -> Figures {
    runtime().block_on(async {
        let client = connect(setting).await;
        let window = Window::opens_in(setting.warm_up, setting.measured);
        let mut tasks = JoinSet::new();
        for number in 0..setting.row.shape.putters() {
            let mut client = client.clone();
            let key = format!("{}/{number}", setting.prefix);
            tasks.spawn(async move {
                let mut tally = Tally::new(window);
                while !window.is_over() {
                    let start = Instant::now();
                    client.put(key.as_str(), VALUE, None).await.unwrap();
                    tally.cycle(Some(start.elapsed()));
                }
                tally
            });
        }
        window.figures(tasks.join_all().await)
    })
}

/// Unrelated writes at a steady pace, until it is dropped.
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
        let client = runtime.block_on(connect(setting));
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

    /// Ends them; the writes that were done each second.
    pub(crate) fn stop(self) -> f64 {
        let rate = self.done.load(Ordering::Relaxed) as f64 / self.since.elapsed().as_secs_f64();
        self.runtime.shutdown_background();
        rate
    }
}

pub(crate) async fn connect(setting: &Setting) -> Client {
    Client::connect(&setting.endpoints, None).await.unwrap()
}

async fn grant(client: &mut Client) -> i64 {
    client.lease_grant(TTL, None).await.unwrap().id()
}
