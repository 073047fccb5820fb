//! The two stores on which one test body shows the same behaviour: a real etcd, and the library's in-memory store.

use super::lease_of;
use std::thread;
use std::time::Duration;

use etcd_lock::crossbeam_channel::{Receiver, RecvTimeoutError};
use etcd_lock::memory::MemoryStore;
use etcd_lock::{DistributedLock, LockGuard, LockManager, LockManagerOptions};

use super::{Etcd, Raw, eventually, fresh_root, shared};

/// An event that has not happened within this time is regarded as impossible.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// A store, and a root in it that no other test uses.
#[derive(Debug)]
pub(crate) struct Backend {
    root: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// `own` is a server that no other test uses; without it, the shared server is used.
    Etcd { own: Option<Etcd>, raw: Box<Raw> },
    /// The model of etcd has no `Raw` client, so a manager without locks reads it.
    Memory { store: MemoryStore, observer: LockManager },
}

impl Backend {
    /// On the server that most tests share.
    pub(crate) fn etcd(test: &str) -> Self {
        Self { root: fresh_root(test), kind: Kind::Etcd { own: None, raw: connect(shared()) } }
    }

    /// On a server that may be stopped and killed.
    pub(crate) fn own_etcd(test: &str) -> Self {
        let etcd = Etcd::start();
        let raw = connect(&etcd);
        Self { root: fresh_root(test), kind: Kind::Etcd { own: Some(etcd), raw } }
    }

    pub(crate) fn memory(test: &str) -> Self {
        let (root, store) = (fresh_root(test), MemoryStore::new());
        let observer = LockManager::in_memory(&store, &root, LockManagerOptions::default()).unwrap();
        Self { root, kind: Kind::Memory { store, observer } }
    }

    /// Another manager, as in another process.
    #[track_caller]
    pub(crate) fn manager(&self) -> LockManager {
        self.manager_with(LockManagerOptions::default())
    }

    /// Another manager, with an owner name that waiters see.
    #[track_caller]
    pub(crate) fn manager_of(&self, owner: &str) -> LockManager {
        self.manager_with(LockManagerOptions::default().owner(owner))
    }

    #[track_caller]
    pub(crate) fn manager_with(&self, options: LockManagerOptions) -> LockManager {
        let manager = match &self.kind {
            Kind::Etcd { own, .. } => {
                let etcd = own.as_ref().unwrap_or_else(|| shared());
                LockManager::connect(etcd.endpoints(), &self.root, options)
            }
            Kind::Memory { store, .. } => LockManager::in_memory(store, &self.root, options),
        };
        manager.unwrap_or_else(|error| panic!("no manager: {error:?}"))
    }

    /// The same backend, for a thread that must own it.
    pub(crate) fn again(&self) -> Self {
        let kind = match &self.kind {
            Kind::Etcd { own: Some(_), .. } => panic!("an own server has one owner"),
            Kind::Etcd { own: None, .. } => Kind::Etcd { own: None, raw: connect(shared()) },
            Kind::Memory { store, observer } => {
                Kind::Memory { store: store.clone(), observer: observer.clone() }
            }
        };
        Self { root: self.root.clone(), kind }
    }

    pub(crate) fn root(&self) -> &str {
        &self.root
    }

    /// How many keys the lock's queue has, including the holder's.
    #[track_caller]
    pub(crate) fn contenders(&self, name: &str) -> usize {
        match &self.kind {
            Kind::Etcd { raw, .. } => {
                usize::try_from(raw.count(&format!("{}/{name}/", self.root))).expect("a count")
            }
            Kind::Memory { observer, .. } => observer.queue(name).unwrap().len(),
        }
    }

    #[track_caller]
    pub(crate) fn wait_for_contenders(&self, name: &str, count: usize) {
        eventually(SOON, &format!("{count} keys in the queue of {name:?}"), || {
            self.contenders(name) == count
        });
    }

    /// Ends the manager's session behind its back, as an administrator would.
    #[track_caller]
    pub(crate) fn end_session(&self, manager: &LockManager) {
        match &self.kind {
            Kind::Etcd { raw, .. } => raw.revoke(lease_of(manager)),
            Kind::Memory { store, .. } => store.revoke_session(manager),
        }
    }

    /// From now on the manager's requests get no answer. On etcd this needs an own server, whose other clients get no
    /// answers either.
    #[track_caller]
    pub(crate) fn cut_off(&self, manager: &LockManager) {
        match &self.kind {
            Kind::Etcd { own, .. } => own.as_ref().expect("the test has its own server").stop(),
            Kind::Memory { store, .. } => store.disconnect(manager),
        }
    }

    /// Undoes [`cut_off`](Self::cut_off).
    #[track_caller]
    pub(crate) fn rejoin(&self, manager: &LockManager) {
        match &self.kind {
            Kind::Etcd { own, .. } => own.as_ref().expect("the test has its own server").cont(),
            Kind::Memory { store, .. } => store.reconnect(manager),
        }
    }
}

fn connect(etcd: &Etcd) -> Box<Raw> {
    Box::new(Raw::connect(etcd.access()))
}

/// Makes two tests of each body `fn(&Backend)`: one on etcd, one in memory. Bodies after `own_server:` may stop the
/// server; those after `alone:` run in a process of their own.
macro_rules! on_both_stores {
    (own_server: $($body:ident),+ $(,)?) => {
        mod on_own_etcd {
            $(#[test] fn $body() { super::$body(&$crate::support::Backend::own_etcd(stringify!($body))); })+
        }
        mod in_own_memory {
            $(#[test] fn $body() { super::$body(&$crate::support::Backend::memory(stringify!($body))); })+
        }
    };
    (alone: $($body:ident),+ $(,)?) => {
        mod alone_on_etcd {
            $(#[test] fn $body() {
                $crate::support::backend::alone(concat!(module_path!(), "::", stringify!($body)), || {
                    super::$body(&$crate::support::Backend::etcd(stringify!($body)));
                });
            })+
        }
        mod alone_in_memory {
            $(#[test] fn $body() {
                $crate::support::backend::alone(concat!(module_path!(), "::", stringify!($body)), || {
                    super::$body(&$crate::support::Backend::memory(stringify!($body)));
                });
            })+
        }
    };
    ($($body:ident),+ $(,)?) => {
        mod on_etcd {
            $(#[test] fn $body() { super::$body(&$crate::support::Backend::etcd(stringify!($body))); })+
        }
        mod in_memory {
            $(#[test] fn $body() { super::$body(&$crate::support::Backend::memory(stringify!($body))); })+
        }
    };
}
pub(crate) use on_both_stores;

/// Runs the body of a test in a process of its own; `test` is its path with the crate's name in front.
#[track_caller]
pub(crate) fn alone(test: &str, body: impl FnOnce()) {
    let (_, path) = test.split_once("::").expect("a test is in a module");
    super::process::alone(path, 2 * SOON, body);
}

/// Takes the lock within a long limit, so that a test fails instead of hanging.
#[track_caller]
pub(crate) fn take(lock: &DistributedLock) -> LockGuard {
    lock.lock_timeout(SOON).unwrap_or_else(|error| panic!("lock {:?} not taken: {error:?}", lock.key()))
}

/// Takes the lock on a thread that ends afterwards.
#[track_caller]
pub(crate) fn take_elsewhere(lock: &DistributedLock) -> LockGuard {
    thread::scope(|scope| scope.spawn(|| take(lock)).join()).expect("the lock can be taken")
}

/// Whether the channel disconnects, as `done()` and `ready()` do, within a long limit.
pub(crate) fn disconnects(channel: &Receiver<()>) -> bool {
    channel.recv_timeout(SOON) == Err(RecvTimeoutError::Disconnected)
}

/// Waits until this manager has `count` waiting calls and pending locks.
#[track_caller]
pub(crate) fn wait_for_waiting(manager: &LockManager, count: u64) {
    eventually(SOON, &format!("the manager has {count} waiters"), || manager.stats().waiting == count);
}
