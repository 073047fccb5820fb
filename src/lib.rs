//! Blocking distributed locks on etcd.
#![allow(dead_code, missing_docs)]

mod clock;
mod error;
mod info;
mod io;
pub mod memory;
mod name;
mod options;
mod protocol;
mod store;
#[cfg(feature = "tls")]
mod tls;
mod value;

pub use error::{Cause, ErrorCode, LockError, LossReason};
pub use info::{FencingToken, ForceUnlock, LockInfo, SessionInfo};
pub use options::{LockManagerOptions, LockOptions};
#[cfg(feature = "tls")]
pub use tls::TlsOptions;
