//! Blocking distributed locks on etcd, for ordinary threads.
//!
//! **What holds.** Among all programs that use one etcd cluster, at most one holds a lock of a given key at a time,
//! the threads of one process included; they get it in the order in which they asked. A holder's
//! [`LockGuard`] releases the lock when it is dropped. If the hold is lost first (etcd out of reach for too long, the
//! session revoked), the guard knows *before* anybody else can have the lock: [`Hold::done`] disconnects and
//! [`Hold::is_held`] turns false by this machine's own clock, without any answer from the network. A lost guard
//! stays lost.
//!
//! **When it stops holding.** A process that is paused between its check and its write can still write late. So every
//! hold has a [`FencingToken`], greater than that of every holder before: send it along, and let the receiver refuse
//! a smaller one than the greatest it has seen. An administrator's forced unlock, or a lease revoked by hand, is told
//! within milliseconds, but after the fact. The clocks of client and server need not agree, but must run at about the
//! same rate.
//!
//! **What it is not.** No election of a leader, no semaphore, no read-write lock; and nothing here is asynchronous: no
//! caller ever sees a future, a runtime, or a type of etcd's. Every call is bounded by what it says: its timeout, its
//! cancel channel, or the manager's end.
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
//!     let guard = lock.lock()?; // waits until nobody else has it
//!     println!("working, as number {}", guard.token());
//!     guard.unlock() // or drop it; this way an error tells if the lock was lost meanwhile
//! }
//! ```
//!
//! # The same without etcd
//!
//! [`LockManager::in_memory`] has the same semantics within one process, for tests and for trying things out. All
//! examples of this documentation that need no cluster run on it.
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
//! - [`LockManager`]: one connection, one session, any number of locks; who holds what; forced unlocks. With
//!   [`connect_lazy`](LockManager::connect_lazy) it starts before etcd does. Behind it work two threads.
//! - [`LockViewer`]: who holds and waits for what, for programs that take no lock and may only read.
//! - [`DistributedLock`]: wait for ever, try, wait with a timeout, a deadline, a cancel channel or both, queue up.
//! - [`ReentrantLock`]: the same for functions that take one lock within each other.
//! - [`LockGuard`] and what it tells, [`Hold`]: notice a loss, check before a step that takes time, share a hold between threads.
//! - [`LockManagerOptions`] and [`LockOptions`]: every option with its default, cost and limit.
//! - [`memory`]: locks without a server, and faults to test with.
//! - [`LockError`] and [`ErrorCode`]: what can go wrong. An outage is [`LockError::Unavailable`] from every call with a limit,
//!   and shows in [`SessionInfo::last_answer`] and [`Stats::rpc_failures`]. Logs go to the [`log`] crate, target `etcd_lock`.
//! - Features: `tls` (on by default) and `serde`, with which [`FencingToken`] and [`LockInfo`] can be serialised.
//!
//! Channels are those of [`crossbeam_channel`], which is re-exported so that `select!` uses the same version.

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

/// The programs in README.md, one of which needs TLS, are tested like those of this documentation.
#[cfg(all(doctest, feature = "tls"))]
#[doc = include_str!("../README.md")]
struct Readme;
