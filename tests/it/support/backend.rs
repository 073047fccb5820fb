//! The two stores on which one body of a test shows the same behaviour: a real etcd, and the library's own in memory.

use super::lease_of;
use std::thread;
use std::time::Duration;

use etcd_lock::crossbeam_channel::{Receiver, RecvTimeoutError};
use etcd_lock::memory::MemoryStore;
use etcd_lock::{DistributedLock, LockGuard, LockManager, LockManagerOptions};

use super::{Etcd, Raw, eventually, fresh_root, shared};

/// What has not happened by then never will.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// A store, and in it a root that no other test uses.
#[derive(Debug)]
pub(crate) struct Backend {
    root: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// `own` is a server that no other test uses; else it is the shared one.
    Etcd { own: Option<Etcd>, raw: Box<Raw> },
    /// A model of etcd has no `Raw`: a manager that takes part in nothing looks into it.
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

    /// One more manager, as a further process would have it.
    #[track_caller]
    pub(crate) fn manager(&self) -> LockManager {
        self.manager_with(LockManagerOptions::default())
    }

    /// One more manager, whose name is seen by those who wait for it.
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

    /// The same place for a thread that must own it.
    pub(crate) fn again(&self) -> Self {
        let kind = match &self.kind {
            Kind::Etcd { own: Some(_), .. } => panic!("a server of one's own has one owner"),
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

    /// How many keys stand in a lock's queue, the holder's included.
    #[track_caller]
    pub(crate) fn contenders(&self, name: &str) -> usize {
        match &self.kind {
            Kind::Etcd { raw, .. } => {
                usize::try_from(raw.count(&format!("{}/{name}/", self.root))).expect("a count")
            }
            Kind::Memory { observer, .. } => {
                observer.lock_info(name).unwrap().map_or(0, |info| info.waiters + 1)
            }
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

    /// From now on the manager's requests have no answer. On etcd it takes a server of one's own, and everybody's
    /// have none.
    #[track_caller]
    pub(crate) fn cut_off(&self, manager: &LockManager) {
        match &self.kind {
            Kind::Etcd { own, .. } => own.as_ref().expect("a server of one's own").stop(),
            Kind::Memory { store, .. } => store.disconnect(manager),
        }
    }

    /// Takes [`cut_off`](Self::cut_off) back.
    #[track_caller]
    pub(crate) fn rejoin(&self, manager: &LockManager) {
        match &self.kind {
            Kind::Etcd { own, .. } => own.as_ref().expect("a server of one's own").cont(),
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
    let (_, path) = test.split_once("::").expect("a test lies in a module");
    super::process::alone(path, 2 * SOON, body);
}

/// Takes the lock within a generous limit, so that a test fails rather than hangs.
#[track_caller]
pub(crate) fn take(lock: &DistributedLock) -> LockGuard {
    lock.lock_timeout(SOON).unwrap_or_else(|error| panic!("lock {:?} not taken: {error:?}", lock.key()))
}

/// Takes the lock on a thread that ends at once.
#[track_caller]
pub(crate) fn take_elsewhere(lock: &DistributedLock) -> LockGuard {
    thread::scope(|scope| scope.spawn(|| take(lock)).join()).expect("the lock can be taken")
}

/// Whether the channel disconnects, as `done()` and `ready()` do; waits for it.
pub(crate) fn disconnects(channel: &Receiver<()>) -> bool {
    channel.recv_timeout(SOON) == Err(RecvTimeoutError::Disconnected)
}

/// Waits until so many calls and places in a queue wait at this manager.
#[track_caller]
pub(crate) fn wait_for_waiting(manager: &LockManager, count: u64) {
    eventually(SOON, &format!("{count} wait at the manager"), || manager.stats().waiting == count);
}
