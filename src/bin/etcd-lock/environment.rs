//! What a command under a lock finds in its environment.

use etcd_lock::{LockGuard, LockManager};
use serde::{Deserialize, Serialize};

use crate::exit::Failure;

/// The locks under which this program runs, as JSON: those of `ETCD_LOCK_NAME`, and of the commands around it.
const HELD: &str = "ETCD_LOCK_HELD";

/// One of them.
#[derive(Debug, Deserialize, Serialize)]
struct Ancestor {
    root: String,
    name: String,
    token: u64,
}

fn ancestors() -> Vec<Ancestor> {
    let held = std::env::var(HELD).unwrap_or_default();
    serde_json::from_str(&held).unwrap_or_default()
}

/// Whether a command around this one holds the lock: waiting for it would last for ever.
///
/// The variable alone proves nothing, because it survives its command, so the token decides.
pub(crate) fn is_held_by_ancestor(manager: &LockManager, name: &str) -> Result<bool, Failure> {
    let mut ancestors = ancestors();
    ancestors.retain(|ancestor| ancestor.root == manager.root() && ancestor.name == name);
    if ancestors.is_empty() {
        return Ok(false);
    }
    let holder = manager.lock_info(name)?;
    Ok(holder.is_some_and(|holder| ancestors.iter().any(|ancestor| ancestor.token == holder.token.as_u64())))
}

/// The variables of a command under this lock.
pub(crate) fn variables(
    manager: &LockManager,
    guard: &LockGuard,
    owner: &str,
    endpoints: &[String],
) -> Vec<(&'static str, String)> {
    let (session, token) = (manager.session(), guard.token());
    let (root, name) = (manager.root().to_owned(), guard.key().to_owned());
    let mut ancestors = ancestors();
    ancestors.push(Ancestor { root, name, token: token.as_u64() });
    vec![
        ("ETCD_LOCK_NAME", guard.key().to_owned()),
        ("ETCD_LOCK_KEY", guard.etcd_key().to_owned()),
        ("ETCD_LOCK_TOKEN", token.to_string()),
        // etcdctl's own `lock` puts the revision of a read here, which can exceed a successor's.
        ("ETCD_LOCK_REV", token.to_string()),
        ("ETCD_LOCK_LEASE", format!("{:x}", session.lease_id.unwrap_or(0))),
        ("ETCD_LOCK_TTL", session.ttl.as_secs().to_string()),
        ("ETCD_LOCK_OWNER", owner.to_owned()),
        ("ETCD_LOCK_MODE", "exclusive".to_owned()),
        ("ETCD_LOCK_ENDPOINTS", endpoints.join(",")),
        ("ETCD_LOCK_ROOT", manager.root().to_owned()),
        (HELD, serde_json::to_string(&ancestors).unwrap_or_default()),
    ]
}
