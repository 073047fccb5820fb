//! The queries about locks, and the forced unlock, over any store.

mod asker;
pub(crate) mod holder_read;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use asker::Asker;

use crate::error::{Cause, LockError, lock_error};
use crate::info::{FencingToken, ForceUnlock, LockInfo, LockState};
use crate::kv::{
    Answer, Compare, Failure, FailureClass, Field, Key, KeyValue, Op, Request, Response, Span, Txn, TxnAnswer,
};
use crate::log_target::LOG;
use crate::name::{LockName, Root};
use crate::protocol::{self, CurrentHolder};
use crate::shared::message::Query;
use crate::store::Store;

/// How often a forced unlock tries again because the holder changed between its read and its write.
const MAX_CHASES: u32 = 10;

/// Answers a caller's question within the time of one request.
pub(crate) async fn answer<S: Store>(store: S, root: Root, timeout: Duration, question: Query) {
    let (store, root) = (&store, &root);
    // Sending fails only if the caller no longer waits.
    let _ = match question {
        Query::LockInfo { name, reply } => reply.send(lock_info(store, &name, timeout).await).is_ok(),
        Query::ListLocks { prefix, reply } => {
            reply.send(list_locks(store, root, &prefix, timeout).await).is_ok()
        }
        Query::Queue { name, reply } => reply.send(queue(store, &name, timeout).await).is_ok(),
        Query::ForceUnlock { name, token, scope, reply } => {
            reply.send(force_unlock(store, &name, token, scope, timeout).await).is_ok()
        }
    };
}

/// The holder of the lock; `None` if it is free.
pub(crate) async fn lock_info<S: Store>(
    store: &S,
    name: &LockName,
    timeout: Duration,
) -> Result<Option<LockInfo>, LockError> {
    let asker = Asker::new(store, timeout);
    let info = async {
        let Some(holder) = asker.holder(name).await? else {
            return Ok(None);
        };
        let ttl = asker.time_to_live(holder.kv.lease).await?;
        Ok(Some(LockInfo::from_holder(name.as_str(), &holder.kv, holder.waiters, ttl)))
    };
    info.await.map_err(|failure| lock_error(failure, &format!("looking at lock {:?}", name.as_str())))
}

/// Every held lock whose name begins with `prefix`, by name.
pub(crate) async fn list_locks<S: Store>(
    store: &S,
    root: &Root,
    prefix: &str,
    timeout: Duration,
) -> Result<Vec<LockInfo>, LockError> {
    let asker = Asker::new(store, timeout);
    let infos = async {
        let holders = asker.holders(root, prefix).await?;
        let ttls = asker.times_to_live(holders.values().map(|holder| holder.kv.lease)).await?;
        let info = |(name, holder): (&String, &CurrentHolder)| {
            let ttl = ttls.get(&holder.kv.lease).copied().flatten();
            LockInfo::from_holder(name, &holder.kv, holder.waiters, ttl)
        };
        Ok(holders.iter().map(info).collect())
    };
    infos.await.map_err(|failure| lock_error(failure, "listing locks"))
}

/// The whole queue of the lock, in order: the holder, then the waiters.
pub(crate) async fn queue<S: Store>(
    store: &S,
    name: &LockName,
    timeout: Duration,
) -> Result<Vec<LockInfo>, LockError> {
    let asker = Asker::new(store, timeout);
    let infos = async {
        let mut kvs = asker.scan(&name.contenders(), Vec::new, Vec::push).await?;
        // Two keys of one transaction share their create revision.
        kvs.sort_by(|a: &KeyValue, b| (a.create_revision, &a.key).cmp(&(b.create_revision, &b.key)));
        let ttls = asker.times_to_live(kvs.iter().map(|kv| kv.lease)).await?;
        let behind = (0..kvs.len() as u64).rev();
        let infos = kvs.iter().zip(behind).enumerate().map(|(place, (kv, behind))| {
            let ttl = ttls.get(&kv.lease).copied().flatten();
            let state = if place == 0 { LockState::Held } else { LockState::Waiting };
            LockInfo { state, ..LockInfo::from_holder(name.as_str(), kv, behind, ttl) }
        });
        Ok(infos.collect())
    };
    infos
        .await
        .map_err(|failure| lock_error(failure, &format!("looking at the queue of lock {:?}", name.as_str())))
}

/// Takes the lock away from its holder, and returns who that was. With a token, only a holder that has it.
pub(crate) async fn force_unlock<S: Store>(
    store: &S,
    name: &LockName,
    token: Option<FencingToken>,
    scope: ForceUnlock,
    timeout: Duration,
) -> Result<LockInfo, LockError> {
    let asker = Asker::new(store, timeout);
    let doing = || format!("force-unlocking lock {:?}", name.as_str());
    let evicted = asker.evict(name, token, scope).await.map_err(|failure| lock_error(failure, &doing()))?;
    match evicted {
        Eviction::Done(info) => {
            let owner = info.owner.as_deref().unwrap_or("a foreign client");
            let lease =
                info.lease_id.map_or_else(|| "no lease".to_owned(), |lease| format!("lease {lease:x}"));
            log::warn!(
                target: LOG,
                "lock {:?} force-unlocked by us ({scope:?}): {owner} had it ({lease}, token {})",
                info.key, info.token
            );
            Ok(info)
        }
        Eviction::NotHeld => Err(LockError::NotHeld { key: name.as_str().into() }),
        Eviction::Missed => Err(LockError::Unavailable {
            doing: doing(),
            source: Cause::new("the lock changes hands faster than it can be taken away"),
        }),
    }
}

enum Eviction {
    Done(LockInfo),
    NotHeld,
    /// The holder had changed each time.
    Missed,
}

impl<S: Store> Asker<S> {
    async fn holder(&self, name: &LockName) -> Result<Option<CurrentHolder>, Failure> {
        let read = Request::Txn(protocol::holder(name));
        protocol::holder_answer(self.ask(read).await.0?.answer)
    }

    async fn holders(&self, root: &Root, prefix: &str) -> Result<BTreeMap<String, CurrentHolder>, Failure> {
        let locks = self.scan(&root.locks_beginning_with(prefix), || Locks::new(root), Locks::add).await?;
        Ok(locks.holders)
    }

    async fn evict(
        &self,
        name: &LockName,
        token: Option<FencingToken>,
        scope: ForceUnlock,
    ) -> Result<Eviction, Failure> {
        for _ in 0..MAX_CHASES {
            let Some(CurrentHolder { kv, waiters }) = self.holder(name).await? else {
                return Ok(Eviction::NotHeld);
            };
            let ttl = self.time_to_live(kv.lease).await?;
            let info = LockInfo::from_holder(name.as_str(), &kv, waiters, ttl);
            if token.is_some_and(|token| token != info.token) {
                return Ok(Eviction::NotHeld);
            }
            let revokes = scope == ForceUnlock::Session && kv.lease != 0;
            if revokes && token.is_some() {
                return self.evict_session_of(&kv, info).await;
            }
            let request =
                if revokes { Request::RevokeLease { lease: kv.lease } } else { delete_exactly(&kv) };
            let (result, maybe_done) = self.ask(request).await;
            let gone = match result {
                Ok(Response { answer: Answer::LeaseRevoked, .. }) => true,
                Ok(Response { answer: Answer::Txn(TxnAnswer { succeeded, .. }), .. }) => succeeded,
                Ok(_) => return Err(Failure::malformed()),
                Err(Failure { class: FailureClass::LeaseGone, .. }) if revokes => false,
                Err(failure) => return Err(failure),
            };
            // Without an answer to an earlier attempt it is unknown whether that attempt or the holder itself ended the hold.
            // It is over in either case, and going on could evict a second holder.
            if gone || maybe_done {
                return Ok(Eviction::Done(info));
            }
        }
        Ok(Eviction::Missed)
    }

    /// Revokes the lease of this hold. A revocation compares nothing, and the session may have given the lock back since;
    /// so first the key is deleted, which proves that the hold still stood.
    async fn evict_session_of(&self, kv: &KeyValue, info: LockInfo) -> Result<Eviction, Failure> {
        let (result, maybe_done) = self.ask(delete_exactly(kv)).await;
        let Answer::Txn(TxnAnswer { succeeded, .. }) = result?.answer else {
            return Err(Failure::malformed());
        };
        if !succeeded && !maybe_done {
            return Ok(Eviction::NotHeld);
        }
        match self.ask(Request::RevokeLease { lease: kv.lease }).await.0 {
            Ok(_) | Err(Failure { class: FailureClass::LeaseGone, .. }) => Ok(Eviction::Done(info)),
            Err(failure) => Err(failure),
        }
    }
}

/// The holders of locks, gathered from keys in their order.
struct Locks<'a> {
    root: &'a Root,
    holders: BTreeMap<String, CurrentHolder>,
}

impl<'a> Locks<'a> {
    fn new(root: &'a Root) -> Self {
        Self { root, holders: BTreeMap::new() }
    }

    fn add(&mut self, kv: KeyValue) {
        let Some(name) = self.name_of(&kv.key) else {
            return;
        };
        match self.holders.get_mut(&name) {
            None => {
                self.holders.insert(name, CurrentHolder { kv, waiters: 0 });
            }
            Some(holder) => {
                holder.waiters += 1;
                if kv.create_revision < holder.kv.create_revision {
                    holder.kv = kv;
                }
            }
        }
    }

    /// The lock that this is a contender of; `None` for sessions, and for keys that no lock's name leads to.
    fn name_of(&self, key: &Key) -> Option<String> {
        let name = self.root.name_of(key)?;
        match LockName::parse(self.root, &name).ok()?.contenders() {
            Span::Prefix(prefix) if key.as_bytes().starts_with(prefix.as_bytes()) => Some(name),
            _ => None,
        }
    }
}

/// Deletes this very key, and not one that was created under the same name since.
fn delete_exactly(kv: &KeyValue) -> Request {
    let same =
        Compare { span: Span::Key(kv.key.clone()), field: Field::CreateRevision, equals: kv.create_revision };
    Request::Txn(Txn {
        when: vec![same],
        then: vec![Op::Delete { key: kv.key.clone() }],
        otherwise: Vec::new(),
    })
}
