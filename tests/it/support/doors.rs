//! A proxy in front of each member of a cluster, and managers that connect through them.

use std::time::Duration;

use etcd_fixture::Member;
use etcd_lock::{LockManager, LockManagerOptions};

use super::cluster::Cluster;
use super::proxy::Proxy;

/// The metric for a member's open watches.
const WATCHERS: &str = "etcd_debugging_mvcc_watcher_total";

/// Slows the other members' answers, so that the wanted member answers first.
const HANDICAP: Duration = Duration::from_millis(60);

/// The proxies of one cluster, in the order of its members.
#[derive(Debug)]
pub(crate) struct Doors(Vec<Proxy>);

impl Doors {
    pub(crate) fn of(cluster: &Cluster) -> Self {
        Self(cluster.members().iter().map(Proxy::of).collect())
    }

    pub(crate) fn at(&self, member: usize) -> &Proxy {
        &self.0[member]
    }

    pub(crate) fn all(&self) -> &[Proxy] {
        &self.0
    }

    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.0.iter().map(Proxy::endpoint).collect()
    }

    /// A manager that knows all members and uses this one, so its streams are there.
    #[track_caller]
    pub(crate) fn manager_at(
        &self,
        cluster: &Cluster,
        member: usize,
        root: &str,
        options: &LockManagerOptions,
    ) -> LockManager {
        for _ in 0..10 {
            let others = || self.0.iter().enumerate().filter(|(other, _)| *other != member);
            others().for_each(|(_, door)| door.delay(HANDICAP));
            let before = watchers(cluster.member(member));
            let manager = LockManager::connect(self.endpoints(), root, options.clone()).expect("a session");
            others().for_each(|(_, door)| door.delay(Duration::ZERO));
            // The watch on the session key is opened at once, but a slow machine needs a moment.
            for _ in 0..100 {
                if watchers(cluster.member(member)) > before {
                    return manager;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        panic!("no manager uses member {member}");
    }
}

/// The number of open watches at a member, also while it is cut off from its peers.
pub(crate) fn watchers(member: &Member) -> u64 {
    member.metric(WATCHERS) as u64
}

/// The usual options of a test, with a TTL in seconds.
pub(crate) fn options(ttl: u64) -> LockManagerOptions {
    LockManagerOptions::default().ttl(Duration::from_secs(ttl)).connect_timeout(Duration::from_secs(20))
}
