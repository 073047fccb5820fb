//! Blocking distributed locks on etcd, for ordinary threads.
//!
//! **What holds.** Among all programs that use one etcd cluster, at most one holds a lock at a time, the threads of one
//! process included; they get it in the order in which they asked. Dropping the holder's [`LockGuard`] releases the
//! lock. If the hold is lost first (etcd out of reach for too long, the session revoked), the guard knows *before*
//! another can hold the lock: [`Hold::done`] disconnects and [`Hold::is_held`] turns false by this machine's own clock,
//! without any answer from the network. A lost guard stays lost. Every call ends by its own limit: its timeout, its
//! cancel channel, or the manager's end.
//!
//! **When it stops holding.** A process that is paused between its check and its write can still write late. So every
//! hold has a [`FencingToken`], greater than that of every hold before: send it along, and let the receiver refuse a
//! smaller one than the greatest it has seen. A forced unlock, or a lease that is revoked by hand, is reported within
//! milliseconds, but after the fact. The clocks of client and server need not agree, but must run at about the same
//! rate.
//!
//! **What it is not.** No election of a leader, no semaphore, no read-write lock. And nothing here is asynchronous: no
//! caller ever sees a future, a runtime, or a type of etcd's.
//!
//! # The smallest whole program
//!
//! ```no_run
//! use etcd_lock::{LockError, LockManager};
//!
//! fn main() -> Result<(), LockError> {
//!     let manager = LockManager::connect(["http://127.0.0.1:2379"], "/app/locks", Default::default())?;
//!     let lock = manager.new_lock("nightly-report")?;
//!
//!     let guard = lock.lock()?; // waits until nobody else holds it
//!     println!("working, with token {}", guard.token());
//!     guard.unlock() // or drop it; unlock() also reports if the lock was lost meanwhile
//! }
//! ```
//!
//! The same without etcd, on [`memory::MemoryStore`], which has the same semantics within one process. All examples of
//! this documentation that need no cluster run on it:
//!
//! ```
//! use etcd_lock::memory::MemoryStore;
//! use etcd_lock::{LockError, LockManager};
//!
//! # fn main() -> Result<(), LockError> {
//! let store = MemoryStore::new(); // one "cluster" for any number of managers
//! let manager = LockManager::in_memory(&store, "/app/locks", Default::default())?;
//! let guard = manager.new_lock("nightly-report")?.lock()?;
//!
//! store.expire_session(&manager); // as if etcd had expired its lease
//!
//! assert!(guard.done().recv().is_err()); // disconnected: the hold is over
//! assert!(!guard.is_held());
//! # Ok(())
//! # }
//! ```
//!
//! # Where to go from here
//!
//! | Chapter | Question |
//! |---|---|
//! | [`docs::guide`] | How do I program with it? The tour, errors, the table from the Go API, what is stable. |
//! | [`docs::operations`] | How do I run it? Options, TLS, roles, etcd releases, logs, alerts, troubleshooting. |
//! | [`docs::guarantees`] | What can I rely on? Each promise with its limits, and what holds under which fault. |
//! | [`docs::protocol`] | How does another program join the same queues? |
//! | [`docs::evidence`] | Why should I believe it? |
//!
//! Of the types, begin with [`LockManager`] (one session, any number of locks), [`DistributedLock`] (six ways to wait, and
//! a place in the queue for `select!`) and [`LockGuard`] with its [`Hold`] (notice a loss, check before a step).
//! [`ReentrantLock`] is for functions that take one lock within each other, [`LockViewer`] for programs that only look,
//! [`memory`] for tests. Options are [`LockManagerOptions`] and [`LockOptions`], failures [`LockError`] with its
//! [`ErrorCode`]. Logs go to the [`log`] crate, target `etcd_lock`.
//!
//! # Words
//!
//! | Word | Meaning |
//! |---|---|
//! | lease | etcd's own: it lives for its TTL unless it is renewed, and its keys are deleted with it |
//! | session | one lease with its renewals and a session key; one for each manager, shared by all of its locks |
//! | contender | one key below a lock's name in etcd; the first one, by create revision, holds the lock |
//! | waiter | a call that waits for a lock. The waiters of a process stand in a queue of its own; for the first of them a contender stands in etcd |
//! | hold | the time for which a lock is held, from its grant to its release or loss ([`Hold`]) |
//! | guard | what keeps a hold: [`LockGuard`] and its clones, [`ReentrantGuard`] |
//! | owner | what a program calls itself, shown to others ([`LockManagerOptions::owner`]) |
//! | token | the number of a hold, greater than those of all holds before: the create revision of its contender ([`FencingToken`]) |
//! | epoch | the mod revision of the session key. Every request that could put a key compares it, so once it has moved, no older request can take effect |
//!
//! # Threads and layers
//!
//! ```text
//!  caller threads                          |  thread "etcd-lock-io" (current-thread tokio runtime)
//!                                          |
//!  LockManager, DistributedLock    message |   driver: select loop, never awaits a request in a branch
//!  PendingLock, LockGuard      --- mailbox --->   |  events in, actions out
//!    ^            ^                        |      v
//!    |            |                        |   protocol: state machine without I/O and without a clock
//!    |            +-- grant (plain data) <-----   ^  replies, watch events      (now + event -> actions)
//!    |                                     |      |
//!    |                                     |   store: actions -> requests
//!    |                                     |      +-- etcd: endpoints, fail-over, watch and keep-alive streams
//!    |                                     |      +-- memory: a model of etcd in this process
//!    |                                     |
//!  done(), is_held()  <--- hold table ---> |  thread "etcd-lock-watchdog": sleeps until the session's deadline, and
//!  (on the caller's thread)   deadline     |  ends the holds then, even where the I/O thread hangs
//! ```
//!
//! The whole lock logic is in `protocol`, which a simulator drives in virtual time ([`docs::evidence`]). Guards are built
//! on the caller's thread. If the I/O thread dies, every `done()` disconnects and every call returns an error.
//!
//! # Features
//!
//! | Feature | Default | What it adds |
//! |---|---|---|
//! | `tls` | on | [`TlsOptions`](docs::operations) and `https://` endpoints, through rustls |
//! | `serde` | off | `Serialize` and `Deserialize` for [`FencingToken`] and [`LockInfo`] |
//!
//! Channels are those of [`crossbeam_channel`] 0.5, which is re-exported so that `select!` uses the same version.

#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod docs;

mod manager;
mod options;
#[cfg(feature = "tls")]
mod tls;

mod lock;
mod viewer;

mod error;
mod info;
mod stats;

mod client;
mod clock;
mod contender_value;
mod log_target;
mod name;
mod shared;

mod driver;
mod kv;
pub mod memory;
mod protocol;
mod store;

pub use crossbeam_channel;

pub use error::{Cause, ErrorCode, LockError, LossReason};
pub use info::{FencingToken, ForceUnlock, InvalidToken, LockInfo, LockState, SessionInfo};
pub use lock::DistributedLock;
pub use lock::guard::LockGuard;
pub use lock::hold::Hold;
pub use lock::pending::PendingLock;
pub use lock::reentrant::ReentrantLock;
pub use lock::reentrant_guard::ReentrantGuard;
pub use manager::LockManager;
pub use options::{LockManagerOptions, LockOptions};
pub use stats::{LossCounts, RpcCounts, Stats};
#[cfg(feature = "tls")]
pub use tls::TlsOptions;
pub use viewer::LockViewer;

/// The programs in the READMEs are tested like those of this documentation.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[doc = include_str!("../README.zh-CN.md")]
struct Readme;
