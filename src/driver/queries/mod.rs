//! The queries about locks, and the forced unlock, over any store.

mod asker;
mod contenders;
pub(crate) mod holder_read;
#[cfg(test)]
mod tests;

use std::time::Duration;

use asker::Asker;
use contenders::{Contenders, Locks};

use crate::error::{Cause, LockError, lock_error};
use crate::info::{FencingToken, ForceUnlock, LockInfo, LockState};
use crate::kv::{
    Answer, Compare, Failure, FailureClass, Field, KeyValue, Op, Request, Response, Span, Txn, TxnAnswer,
};
use crate::log_target::LOG;
use crate::mode::Mode;
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

/// The first holder of the lock; `None` if it is free.
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
        let span = root.locks_beginning_with(prefix);
        let locks = asker.scan(&span, || Locks::new(root), Locks::add).await?.into_holders();
        let ttls = asker.times_to_live(locks.values().map(|holder| holder.kv.lease)).await?;
        let info = |(name, CurrentHolder { kv, waiters }): (&String, &CurrentHolder)| {
            let ttl = ttls.get(&kv.lease).copied().flatten();
            LockInfo::from_holder(name, kv, *waiters, ttl)
        };
        Ok(locks.iter().map(info).collect())
    };
    infos.await.map_err(|failure| lock_error(failure, "listing locks"))
}

/// The whole queue of the lock, in order: the holders, then the waiters.
pub(crate) async fn queue<S: Store>(
    store: &S,
    name: &LockName,
    timeout: Duration,
) -> Result<Vec<LockInfo>, LockError> {
    let asker = Asker::new(store, timeout);
    let infos = async {
        let contenders = asker.contenders(name).await?;
        let ttls = asker.times_to_live(contenders.leases()).await?;
        let info = |(kv, state, waiters): (&KeyValue, LockState, u64)| {
            let ttl = ttls.get(&kv.lease).copied().flatten();
            LockInfo { state, ..LockInfo::from_holder(name.as_str(), kv, waiters, ttl) }
        };
        Ok(contenders.iter().map(info).collect())
    };
    infos
        .await
        .map_err(|failure| lock_error(failure, &format!("looking at the queue of lock {:?}", name.as_str())))
}

/// Takes the lock away from its first holder, and returns who that was. With a token, only a holder that has it.
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
                "lock {:?}{} force-unlocked by us ({scope:?}): {owner} had it ({lease}, token {})",
                info.key, info.mode.remark(), info.token
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
    /// The first holder, with the number of those that wait. One read if it is exclusive or alone.
    async fn holder(&self, name: &LockName) -> Result<Option<CurrentHolder>, Failure> {
        let read = Request::Txn(protocol::holder(name));
        match protocol::holder_answer(self.ask(read).await.0?.answer)? {
            // Others may hold the lock with it.
            Some(CurrentHolder { kv, waiters: 1.. }) if Mode::of(&kv.key) != Mode::Exclusive => {
                Ok(self.contenders(name).await?.into_first())
            }
            first => Ok(first),
        }
    }

    async fn contenders(&self, name: &LockName) -> Result<Contenders, Failure> {
        Ok(Contenders::of(self.scan(&name.contenders(), Vec::new, Vec::push).await?))
    }

    async fn evict(
        &self,
        name: &LockName,
        token: Option<FencingToken>,
        scope: ForceUnlock,
    ) -> Result<Eviction, Failure> {
        for _ in 0..MAX_CHASES {
            let holder = match token {
                Some(token) => self.contenders(name).await?.into_holder_with(token),
                None => self.holder(name).await?,
            };
            let Some(CurrentHolder { kv, waiters }) = holder else {
                return Ok(Eviction::NotHeld);
            };
            let ttl = self.time_to_live(kv.lease).await?;
            let info = LockInfo::from_holder(name.as_str(), &kv, waiters, ttl);
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
            // Readers of one commit share their token; only the first of them was meant.
            if token.is_some() {
                return Ok(Eviction::NotHeld);
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

/// Deletes this very key, and not one that was created under the same name since.
fn delete_exactly(kv: &KeyValue) -> Request {
    let same = Compare::equal(Span::Key(kv.key.clone()), Field::CreateRevision, kv.create_revision);
    Request::Txn(Txn {
        when: vec![same],
        then: vec![Op::Delete { key: kv.key.clone() }],
        otherwise: Vec::new(),
    })
}
