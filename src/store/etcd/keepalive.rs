//! Renewing a lease over one long-lived stream.

use etcd_client::{LeaseKeepAliveStream, LeaseKeeper};
use parking_lot::Mutex;

use super::convert::{self, Answered};
use super::endpoint::Link;
use super::fault::{EtcdFault, FaultKind};
use crate::kv::{FailureClass, LeaseId};

/// The stream of the last renewal, while it is idle.
///
/// A renewal takes the stream out and puts it back when it has its answer. So a renewal that is given up drops the
/// stream with it, and the next one does not wait behind an answer that may never come.
#[derive(Default)]
pub(super) struct KeepAlive {
    idle: Mutex<Option<Stream>>,
}

struct Stream {
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
    opened_on: OpenedOn,
}

/// A stream sends the token it was opened with, over the connection it was opened on, for one lease; where one of them
/// has changed, it is of no use.
#[derive(Clone, Copy, PartialEq, Eq)]
struct OpenedOn {
    lease: LeaseId,
    endpoint: usize,
    link: u64,
    token: u64,
}

impl KeepAlive {
    pub(super) async fn renew(
        &self,
        endpoint: usize,
        link: &Link,
        lease: LeaseId,
    ) -> Result<Answered, EtcdFault> {
        let wanted = OpenedOn { lease, endpoint, link: link.id, token: link.token };
        let idle = self.idle.lock().take().filter(|stream| stream.opened_on == wanted);
        if let Some(stream) = idle {
            match self.ask(stream).await {
                // It may have broken long ago, unnoticed. Renewing twice is harmless, and a fresh stream knows.
                Err(EtcdFault { kind: FaultKind::Class(FailureClass::Unknown), .. }) => {}
                answered => return answered,
            }
        }
        // This sends a first renewal and hides the answer; the next one has TTL and revision.
        let (keeper, answers) = link.leases().keep_alive(lease).await?;
        self.ask(Stream { keeper, answers, opened_on: wanted }).await
    }

    async fn ask(&self, mut stream: Stream) -> Result<Answered, EtcdFault> {
        stream.keeper.keep_alive().await?;
        // An error comes once, and then the end for ever: both mean that the stream is lost.
        let Some(answer) = stream.answers.message().await? else {
            return Err(EtcdFault::class(FailureClass::Unknown, "the keep-alive stream has ended"));
        };
        let answered = convert::lease_renewed(&answer)?;
        *self.idle.lock() = Some(stream);
        Ok(answered)
    }
}
