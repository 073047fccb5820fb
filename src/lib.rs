//! Blocking distributed locks on etcd, for ordinary threads.
//!
//! **What holds.** Among all programs that use one etcd cluster, at most one holds a lock at a time; threads of one
//! process count as different holders. Readers of a read-write lock hold it together, and so do the holders of a
//! semaphore's permits. Waiters are served in the order in which they asked. Dropping the [`LockGuard`] releases the lock. If the hold is lost first (etcd is unreachable for too long, or the session is revoked),
//! [`Hold::done`] disconnects and [`Hold::is_held`] turns false *before* another program can acquire the lock. Both
//! follow this machine's own clock and need no answer from the network. A lost guard stays lost. Every call returns
//! within its own limit: its timeout, its cancel channel, or the end of the manager.
//!
//! **When it stops holding.** A process that is paused between its check and its write can still write late. So every
//! hold has a [`FencingToken`], greater than the token of every earlier exclusive hold. Send it with each write, and let the
//! receiver refuse a token smaller than the greatest it has seen. A forced unlock and a lease revoked by hand are
//! reported within milliseconds, but after the fact. The clocks of client and server need not agree, but must run at
//! about the same rate.
//!
//! **What it is not.** Its API is blocking: callers never see a future, a runtime or a type of an etcd client.
//!
//! # A complete program
//!
//! ```no_run
//! use etcd_lock::{LockError, LockManager};
//!
//! fn main() -> Result<(), LockError> {
//!     let manager = LockManager::connect(["http://127.0.0.1:2379"], "/app/locks", Default::default())?;
//!     let lock = manager.new_lock("nightly-report")?;
//!
//!     let guard = lock.lock()?; // waits until the lock is free
//!     println!("working, with token {}", guard.token());
//!     guard.unlock() // or drop it; unlock() also reports whether the lock was lost
//! }
//! ```
//!
//! The same program without etcd uses [`memory::MemoryStore`], which has the same semantics within one process. The
//! examples in this documentation run on it, except those that connect to a cluster:
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
//! store.expire_session(&manager); // as if the lease had expired in etcd
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
//! | [`docs::guide`] | How do I program with it? The tour, electing a leader, fenced writes, errors, the table from the Go API, what is stable. |
//! | [`docs::operations`] | How do I run it? Options, TLS, roles, etcd releases, logs, alerts, troubleshooting. |
//! | [`docs::command_line`] | How do I run a program under a lock, and see who holds which lock? |
//! | [`docs::guarantees`] | What can I rely on? Each promise with its limits, and what holds under which fault. |
//! | [`docs::protocol`] | How does another program join the same queues? |
//! | [`docs::evidence`] | Why should I believe it? |
//!
//! Start with [`LockManager`] (one session, any number of locks), [`DistributedLock`] (the ways to acquire a lock, and
//! a place in the queue for `select!`), [`Mode`] (a mutex, readers or permits) and [`LockGuard`] with its [`Hold`]
//! (detects a loss, and checks the remaining time). [`ReentrantLock`] is for functions that acquire one lock within each
//! other, [`LockViewer`] is for programs that only read, and [`memory`] is for tests. [`FencedStore`] writes to etcd only
//! while a hold stands, [`Observer`] reports who holds a lock as it changes, and [`DistributedLock::lead`] is a leader's
//! whole loop. Options are in [`LockManagerOptions`] and [`LockOptions`], errors in
//! [`LockError`] with its [`ErrorCode`]. Log lines go to the [`log`] crate with the target `etcd_lock`.
//!
//! # Words
//!
//! | Word | Meaning |
//! |---|---|
//! | lease | etcd's lease: it expires after its TTL unless it is renewed, and its keys are deleted with it |
//! | session | one lease, its renewals and its session key; each manager has one, shared by all of its locks |
//! | contender | one key below a lock's name in etcd; the first ones by create revision hold the lock, as far as their modes allow it |
//! | mode | who may hold a lock together: nobody else, other readers, or others as long as there are permits ([`Mode`]) |
//! | waiter | a call that waits for a lock. The waiters of one process form a local queue; the first of them that can hold the lock together have contenders in etcd, and the next one; behind an exclusive one, none has |
//! | hold | one period in which the lock is held, from its grant to its release or loss ([`Hold`]) |
//! | guard | a value that keeps the hold alive: [`LockGuard`] and its clones, [`ReentrantGuard`] |
//! | owner | the name under which a program appears to others ([`LockManagerOptions::owner`]) |
//! | token | the number of a hold, greater than that of every earlier exclusive hold: the create revision of its contender ([`FencingToken`]) |
//! | epoch | the mod revision of the session key. Every request that could put a contender's key compares it, so once it has changed, no older request can take effect |
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
//!  done(), is_held()  <--- hold table ---> |  thread "etcd-lock-watchdog": sleeps until the session's deadline and
//!  (on the caller's thread)   deadline     |  then ends the holds, even if the I/O thread hangs
//! ```
//!
//! All of the lock logic is in `protocol`, which a simulator drives in virtual time ([`docs::evidence`]). Guards are
//! built on the caller's thread. If the I/O thread dies, every `done()` disconnects and every call returns an error.
//!
//! # Features
//!
//! | Feature | Default | What it adds |
//! |---|---|---|
//! | `tls` | on | [`TlsOptions`](docs::operations) and `https://` endpoints, through rustls |
//! | `cli` | off | The program `etcd-lock` ([`docs::command_line`]); the library does not change |
//! | `serde` | off | `Serialize` and `Deserialize` for [`FencingToken`], [`LockInfo`] and [`Mode`] |
//!
//! Channels are those of [`crossbeam_channel`] 0.5, which is re-exported so that `select!` comes from the same version.

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
mod mode;
mod mutex;
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
pub use lock::fenced::{FencedStore, WriteBatch};
pub use lock::guard::LockGuard;
pub use lock::hold::Hold;
pub use lock::observer::Observer;
pub use lock::pending::PendingLock;
pub use lock::reentrant::ReentrantLock;
pub use lock::reentrant_guard::ReentrantGuard;
pub use manager::LockManager;
pub use mode::Mode;
pub use options::{LockManagerOptions, LockOptions};
pub use stats::{LossCounts, RpcCounts, Stats};
#[cfg(feature = "tls")]
pub use tls::TlsOptions;
pub use viewer::LockViewer;

/// Compiles and runs the programs in the READMEs as doctests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[doc = include_str!("../README.zh-CN.md")]
struct Readme;
