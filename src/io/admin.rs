//! Looking at locks and breaking them, over any store.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Store, deadline_after, lock_error};
use crate::LOG;
use crate::error::{Cause, LockError};
use crate::info::{ForceUnlock, LockInfo};
use crate::name::{LockName, Root};
use crate::store::{
    Answer, Compare, Failure, FailureClass, Field, Key, KeyValue, LeaseId, Op, OpResult, Order, Range,
    RangeResult, Request, Response, Revision, Span, Txn, TxnAnswer,
};

/// Keys in one page: at 512-byte names, well below a megabyte.
const PAGE: u32 = 1000;
/// Leases asked for at a time.
const LEASES_AT_ONCE: usize = 16;
/// A listing that is overtaken by a compaction begins again; one that is overtaken so often has another problem.
const MAX_LISTINGS: u32 = 3;
/// How often a force unlock follows a lock that changes hands between the look and the deed.
const MAX_CHASES: u32 = 10;
/// The pause before a request that had no answer is repeated.
const PAUSE: Duration = Duration::from_millis(100);
/// An attempt gets half of the time that is left, so that another endpoint can have the rest; but not less than this.
const SHORTEST_ATTEMPT: Duration = Duration::from_millis(500);

/// Who holds the lock; `None`: nobody.
pub(crate) async fn lock_info<S: Store>(
    store: &S,
    _root: &Root,
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
    asker
        .bounded(info)
        .await
        .map_err(|failure| lock_error(failure, &format!("looking at lock {:?}", name.as_str())))
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
        let leases = holders.values().map(|holder| holder.kv.lease).filter(|&lease| lease != 0).collect();
        let ttls = asker.times_to_live(leases).await?;
        let info = |(name, holder): (&String, &Holder)| {
            let ttl = ttls.get(&holder.kv.lease).copied().flatten();
            LockInfo::from_holder(name, &holder.kv, holder.waiters, ttl)
        };
        Ok(holders.iter().map(info).collect())
    };
    asker.bounded(infos).await.map_err(|failure| lock_error(failure, "listing locks"))
}

/// Takes the lock away from its holder, and tells who that was.
pub(crate) async fn force_unlock<S: Store>(
    store: &S,
    _root: &Root,
    name: &LockName,
    scope: ForceUnlock,
    timeout: Duration,
) -> Result<LockInfo, LockError> {
    let asker = Asker::new(store, timeout);
    let doing = || format!("force-unlocking lock {:?}", name.as_str());
    let evicted =
        asker.bounded(asker.evict(name, scope)).await.map_err(|failure| lock_error(failure, &doing()))?;
    match evicted {
        Eviction::Done(info) => {
            let owner = info.owner.as_deref().unwrap_or("a foreign client");
            log::warn!(
                target: LOG,
                "lock {:?} force-unlocked by us ({scope:?}): {owner} had it (lease {:x}, token {})",
                info.key, info.lease_id, info.token
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

/// A lock's holder and the number of contenders behind it.
struct Holder {
    kv: KeyValue,
    waiters: u64,
}

enum Eviction {
    Done(LockInfo),
    NotHeld,
    /// The holder was another one each time.
    Missed,
}

/// Asks the store, again and again where it may help, until the time is over.
struct Asker<'a, S> {
    store: &'a S,
    timeout: Duration,
    deadline: Instant,
}

impl<'a, S: Store> Asker<'a, S> {
    fn new(store: &'a S, timeout: Duration) -> Self {
        Self { store, timeout, deadline: deadline_after(timeout) }
    }

    async fn bounded<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let late = || Failure::new(FailureClass::Unknown, format!("no answer within {:?}", self.timeout));
        timeout_at(self.deadline, work).await.unwrap_or_else(|_| Err(late()))
    }

    /// Carries out a request whose repetition does no harm. Says with the answer whether an attempt before the last
    /// one may have been carried out as well.
    async fn ask(&self, request: Request) -> (Result<Answered, Failure>, bool) {
        let mut maybe_done = false;
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let attempt = (left / 2).max(SHORTEST_ATTEMPT).min(left);
            let failure = match self.store.call(request.clone(), attempt).await {
                Ok(response) => return (Ok(response.into()), maybe_done),
                Err(failure) => failure,
            };
            let passing = matches!(failure.class, FailureClass::NotDone | FailureClass::Unknown);
            if !passing || Instant::now() + PAUSE >= self.deadline {
                return (Err(failure), maybe_done);
            }
            maybe_done |= failure.class == FailureClass::Unknown;
            sleep(PAUSE).await;
        }
    }

    async fn range(&self, range: Range) -> Result<(RangeResult, Revision), Failure> {
        let txn = Txn { then: vec![Op::Range(range)], ..Txn::default() };
        let answered = self.ask(Request::Txn(txn)).await.0?;
        match answered.answer {
            Answer::Txn(TxnAnswer { mut results, .. }) => match results.pop() {
                Some(OpResult::Range(result)) => Ok((result, answered.revision)),
                _ => Err(unexpected()),
            },
            _ => Err(unexpected()),
        }
    }

    async fn holder(&self, name: &LockName) -> Result<Option<Holder>, Failure> {
        let oldest = Range { order: Order::OldestFirst, limit: 1, ..all(name.contenders()) };
        let (mut found, _) = self.range(oldest).await?;
        Ok(found.kvs.pop().map(|kv| Holder { kv, waiters: found.count.saturating_sub(1) }))
    }

    /// How long the lease still has; `None` if there is none, or etcd does not tell us.
    async fn time_to_live(&self, lease: LeaseId) -> Result<Option<Duration>, Failure> {
        if lease == 0 {
            return Ok(None);
        }
        match self.ask(Request::LeaseTimeToLive { lease }).await.0 {
            Ok(Answered { answer: Answer::LeaseTimeToLive { remaining }, .. }) => Ok(remaining),
            Ok(_) => Err(unexpected()),
            Err(failure) => match failure.class {
                // Newer etcd tells it only to those who may read every key of the lease.
                FailureClass::PermissionDenied | FailureClass::LeaseGone | FailureClass::Refused => Ok(None),
                _ => Err(failure),
            },
        }
    }

    async fn times_to_live(
        &self,
        leases: BTreeSet<LeaseId>,
    ) -> Result<BTreeMap<LeaseId, Option<Duration>>, Failure> {
        let mut answers = BTreeMap::new();
        let mut leases = leases.into_iter();
        let mut asking = JoinSet::new();
        loop {
            while asking.len() < LEASES_AT_ONCE
                && let Some(lease) = leases.next()
            {
                let (store, timeout, deadline) = (self.store.clone(), self.timeout, self.deadline);
                asking.spawn(async move {
                    let asker = Asker { store: &store, timeout, deadline };
                    (lease, asker.time_to_live(lease).await)
                });
            }
            match asking.join_next().await {
                None => return Ok(answers),
                Some(Ok((lease, ttl))) => answers.insert(lease, ttl?),
                Some(Err(lost)) => return Err(Failure::new(FailureClass::Unknown, lost.to_string())),
            };
        }
    }

    async fn holders(&self, root: &Root, prefix: &str) -> Result<BTreeMap<String, Holder>, Failure> {
        let mut listings = 1;
        loop {
            match self.holders_at_one_revision(root, prefix).await {
                Err(Failure { class: FailureClass::Compacted, .. }) if listings < MAX_LISTINGS => {
                    listings += 1
                }
                result => return result,
            }
        }
    }

    /// Reads page by page what was there at the revision of the first page.
    async fn holders_at_one_revision(
        &self,
        root: &Root,
        prefix: &str,
    ) -> Result<BTreeMap<String, Holder>, Failure> {
        let mut locks = Locks::new(root);
        let mut span = root.locks_beginning_with(prefix);
        let end = match &span {
            Span::Prefix(key) => Key::from(key.prefix_end()),
            Span::Key(key) | Span::Between(_, key) => key.clone(),
        };
        let mut at_revision = 0;
        loop {
            let (page, revision) = self.range(Range { limit: PAGE, at_revision, ..all(span) }).await?;
            if at_revision == 0 {
                at_revision = revision;
            }
            let is_last = page.kvs.len() < PAGE as usize;
            let last = page.kvs.last().map(|kv| kv.key.clone());
            page.kvs.into_iter().for_each(|kv| locks.add(kv));
            match last {
                Some(last) if !is_last => span = Span::Between(after(&last), end.clone()),
                _ => return Ok(locks.holders),
            }
        }
    }

    async fn evict(&self, name: &LockName, scope: ForceUnlock) -> Result<Eviction, Failure> {
        for _ in 0..MAX_CHASES {
            let Some(Holder { kv, waiters }) = self.holder(name).await? else {
                return Ok(Eviction::NotHeld);
            };
            let ttl = self.time_to_live(kv.lease).await?;
            let info = LockInfo::from_holder(name.as_str(), &kv, waiters, ttl);
            let (result, maybe_done) = match scope {
                ForceUnlock::Session if kv.lease != 0 => {
                    self.ask(Request::RevokeLease { lease: kv.lease }).await
                }
                ForceUnlock::Session | ForceUnlock::Lock => self.ask(delete_exactly(&kv)).await,
            };
            let gone = match result {
                Ok(Answered { answer: Answer::LeaseRevoked, .. }) => true,
                Ok(Answered { answer: Answer::Txn(TxnAnswer { succeeded, .. }), .. }) => succeeded,
                Ok(_) => return Err(unexpected()),
                Err(Failure { class: FailureClass::LeaseGone, .. }) => false,
                Err(failure) => return Err(failure),
            };
            // Where an attempt without an answer went before, it was most likely that one which did it.
            if gone || maybe_done {
                return Ok(Eviction::Done(info));
            }
        }
        Ok(Eviction::Missed)
    }
}

/// The parts of a [`Response`] that matter here.
struct Answered {
    revision: Revision,
    answer: Answer,
}

impl From<Response> for Answered {
    fn from(response: Response) -> Self {
        Self { revision: response.revision, answer: response.answer }
    }
}

/// The holders of locks, gathered from keys in their order.
struct Locks<'a> {
    root: &'a Root,
    holders: BTreeMap<String, Holder>,
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
                self.holders.insert(name, Holder { kv, waiters: 0 });
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

fn all(span: Span) -> Range {
    Range { span, order: Order::ByKey, limit: 0, max_create_revision: 0, at_revision: 0, keys_only: false }
}

/// The first key after this one.
fn after(key: &Key) -> Key {
    let mut bytes = key.as_bytes().to_vec();
    bytes.push(0);
    Key::from(bytes)
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

fn unexpected() -> Failure {
    Failure::new(FailureClass::Refused, "an answer to another request")
}
