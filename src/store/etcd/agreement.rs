//! Another cluster behind the endpoints, as after a restore from a backup: whether all of them agree on it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::endpoint::Endpoint;
use super::endpoints::Endpoints;
use crate::kv::{Failure, FailureClass, LeaseId, Request};

/// Every failed request wants to know, and a cluster is not restored more often.
const PAUSE: Duration = Duration::from_millis(200);

/// Which cluster a session was made in, and when the endpoints were asked last.
#[derive(Debug, Default)]
pub(super) struct Agreement {
    /// The last lease, and the era of the endpoints it is from.
    lease: Mutex<Option<(LeaseId, u64)>>,
    asked: tokio::sync::Mutex<Option<Instant>>,
}

impl Agreement {
    pub(super) fn granted(&self, lease: LeaseId, era: u64) {
        *self.lease.lock() = Some((lease, era));
    }

    /// Why this request of a session must not reach the cluster of this era, if so.
    ///
    /// A restored cluster may know the lease and the session key from its backup, and lack the keys that were put since: a
    /// session does not outlive its cluster.
    pub(super) fn refusal(&self, request: &Request, era: u64) -> Option<Failure> {
        let (lease, of) = (*self.lease.lock())?;
        if of == era {
            return None;
        }
        let of_the_session = match request {
            Request::RenewLease { lease: renewed } => *renewed == lease,
            Request::Txn(_) | Request::Delete { .. } => request.is_write(),
            Request::GrantLease { .. } | Request::RevokeLease { .. } | Request::LeaseTimeToLive { .. } => {
                false
            }
        };
        let why = "etcd is another cluster now, and the session was of the one before";
        of_the_session.then(|| Failure::new(FailureClass::LeaseGone, why))
    }

    /// Asks every endpoint which cluster it belongs to; what all of them say is taken for ours. One that does not answer
    /// agrees to nothing.
    pub(super) async fn seek(&self, endpoints: &Arc<Endpoints>, limit: Duration) {
        let mut asked = self.asked.lock().await;
        if asked.is_some_and(|asked| asked.elapsed() < PAUSE) {
            return;
        }
        let mut questions = JoinSet::new();
        for index in 0..endpoints.len() {
            let Some((_, endpoint)) = endpoints.at(index) else { return };
            questions.spawn(async move { (index, cluster_of(&endpoint, limit).await) });
        }
        let mut answers = Vec::new();
        while let Some(answer) = questions.join_next().await {
            answers.push(answer.ok().and_then(|(index, cluster)| Some((index, cluster?))));
        }
        for &(index, cluster) in answers.iter().flatten() {
            // One that is of our cluster again is used again.
            let _ = endpoints.check_cluster(index, cluster);
        }
        let clusters: Option<Vec<u64>> = answers.into_iter().map(|answer| Some(answer?.1)).collect();
        if let Some([first, others @ ..]) = clusters.as_deref()
            && others.iter().all(|cluster| cluster == first)
        {
            endpoints.all_belong_to(*first);
        }
        *asked = Some(Instant::now());
    }
}

/// `None`: it does not answer, or does not say.
async fn cluster_of(endpoint: &Endpoint, limit: Duration) -> Option<u64> {
    let status = timeout(limit, async { endpoint.link().await.ok()?.status().await.ok() }).await;
    status.ok().flatten().map(|status| status.cluster).filter(|&cluster| cluster != 0)
}
