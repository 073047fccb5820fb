//! Requests of queries, repeated within one time limit where that may help.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::kv::{
    Answer, Failure, FailureClass, Key, KeyValue, LeaseId, Op, Order, Range, RangeResult, Request, Response,
    Revision, Span, Txn,
};
use crate::store::{Store, deadline_after};

/// Keys in one page: at 512-byte names, well below a megabyte.
const PAGE: u32 = 1000;
/// Leases asked for at a time.
const LEASES_AT_ONCE: usize = 16;
/// Maximum attempts of a scan, which starts again when its revision is compacted.
const MAX_SCANS: u32 = 3;
/// The pause before a failed request is repeated. A query is not repeated by the protocol, and the store tries each endpoint
/// once, so without this an election or a short restart would fail it.
const PAUSE: Duration = Duration::from_millis(100);
/// An attempt gets half of the time that is left, which leaves the rest for another endpoint; but at least this.
const SHORTEST_ATTEMPT: Duration = Duration::from_millis(500);

/// Sends requests outside any session, and repeats them where that may help, until its deadline.
pub(super) struct Asker<S> {
    store: S,
    deadline: Instant,
}

impl<S: Store> Asker<S> {
    pub(super) fn new(store: &S, timeout: Duration) -> Self {
        Self { store: store.outside_sessions(), deadline: deadline_after(timeout) }
    }

    /// Sends a request that may be repeated without harm. Also returns whether an attempt before the last one may have
    /// been carried out.
    pub(super) async fn ask(&self, request: Request) -> (Result<Response, Failure>, bool) {
        let mut maybe_done = false;
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let attempt = (left / 2).max(SHORTEST_ATTEMPT).min(left);
            let failure = match self.store.call(request.clone(), attempt).await {
                Ok(response) => return (Ok(response), maybe_done),
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
        let Response { answer, revision, .. } = self.ask(Request::Txn(txn)).await.0?;
        Ok((answer.into_range()?, revision))
    }

    /// The remaining time of the lease; `None` if there is no lease, or we may not read it.
    pub(super) async fn time_to_live(&self, lease: LeaseId) -> Result<Option<Duration>, Failure> {
        if lease == 0 {
            return Ok(None);
        }
        match self.ask(Request::LeaseTimeToLive { lease }).await.0 {
            Ok(Response { answer: Answer::LeaseTimeToLive { remaining }, .. }) => Ok(remaining),
            Ok(_) => Err(Failure::malformed()),
            Err(failure) => match failure.class {
                // Newer releases of etcd require read permission on every key of the lease.
                FailureClass::PermissionDenied | FailureClass::LeaseGone | FailureClass::Refused => Ok(None),
                _ => Err(failure),
            },
        }
    }

    pub(super) async fn times_to_live(
        &self,
        leases: impl Iterator<Item = LeaseId>,
    ) -> Result<BTreeMap<LeaseId, Option<Duration>>, Failure> {
        let mut answers = BTreeMap::new();
        let mut leases = leases.filter(|&lease| lease != 0).collect::<BTreeSet<_>>().into_iter();
        let mut asking = JoinSet::new();
        loop {
            while asking.len() < LEASES_AT_ONCE
                && let Some(lease) = leases.next()
            {
                let asker = Asker { store: self.store.clone(), deadline: self.deadline };
                asking.spawn(async move { (lease, asker.time_to_live(lease).await) });
            }
            match asking.join_next().await {
                None => return Ok(answers),
                Some(Ok((lease, ttl))) => answers.insert(lease, ttl?),
                Some(Err(lost)) => return Err(Failure::new(FailureClass::Unknown, lost.to_string())),
            };
        }
    }

    /// Calls `each` with every key of the span in their order, as of one revision, read page by page. Begins again, with
    /// `each` made anew, where a compaction overtakes it.
    pub(super) async fn scan<T>(
        &self,
        span: &Span,
        new: impl Fn() -> T,
        each: impl Fn(&mut T, KeyValue),
    ) -> Result<T, Failure> {
        let mut scans = 1;
        loop {
            let mut gathered = new();
            match self.scan_at_one_revision(span.clone(), |kv| each(&mut gathered, kv)).await {
                Ok(()) => return Ok(gathered),
                Err(Failure { class: FailureClass::Compacted, .. }) if scans < MAX_SCANS => scans += 1,
                Err(failure) => return Err(failure),
            }
        }
    }

    async fn scan_at_one_revision(
        &self,
        mut span: Span,
        mut each: impl FnMut(KeyValue),
    ) -> Result<(), Failure> {
        let end = match &span {
            Span::Prefix(key) => Key::from(key.prefix_end()),
            Span::Key(key) | Span::Between(_, key) => key.clone(),
        };
        let mut at_revision = 0;
        loop {
            let page = Range {
                span,
                order: Order::ByKey,
                limit: PAGE,
                max_create_revision: 0,
                at_revision,
                keys_only: false,
            };
            let (page, revision) = self.range(page).await?;
            if at_revision == 0 {
                at_revision = revision;
            }
            let is_last = page.kvs.len() < PAGE as usize;
            let last = page.kvs.last().map(|kv| kv.key.clone());
            page.kvs.into_iter().for_each(&mut each);
            match last {
                Some(last) if !is_last => span = Span::Between(after(&last), end.clone()),
                _ => return Ok(()),
            }
        }
    }
}

/// The first key after this one.
fn after(key: &Key) -> Key {
    let mut bytes = key.as_bytes().to_vec();
    bytes.push(0);
    Key::from(bytes)
}
