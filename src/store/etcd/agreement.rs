//! Detects that the endpoints now belong to another cluster, as after a restore from a backup, once all of them agree.

use std::sync::Arc;
use std::time::Duration;

use crate::mutex::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::endpoint::Endpoint;
use super::endpoints::Endpoints;
use crate::kv::{Failure, FailureClass, LeaseId, Request};

/// Minimum time between two rounds of status requests: every failed request starts one, and restores are rare.
const PAUSE: Duration = Duration::from_millis(200);

/// The cluster of the current session's lease, and the time of the last round of status requests.
#[derive(Debug, Default)]
pub(super) struct Agreement {
    /// The last lease granted, and the era it was granted in.
    lease: Mutex<Option<(LeaseId, u64)>>,
    asked: tokio::sync::Mutex<Option<Instant>>,
}

impl Agreement {
    pub(super) fn granted(&self, lease: LeaseId, era: u64) {
        *self.lease.lock() = Some((lease, era));
    }

    /// The failure for a session's request whose lease was granted by an earlier cluster; `None` if it may be sent.
    ///
    /// A restored cluster may have the lease and the session key from its backup, but lack keys that were put later. A
    /// session therefore ends with its cluster.
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

    /// Asks every endpoint for its cluster. If all report the same one, it becomes ours; an endpoint that does not answer
    /// prevents this.
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
            // An endpoint that is back in our cluster becomes usable again.
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

/// The cluster that the endpoint reports; `None` if it does not answer, or reports none.
async fn cluster_of(endpoint: &Endpoint, limit: Duration) -> Option<u64> {
    let status = timeout(limit, async { endpoint.link().await.ok()?.status().await.ok() }).await;
    status.ok().flatten().map(|status| status.cluster).filter(|&cluster| cluster != 0)
}
