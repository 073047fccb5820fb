//! Renewing a lease over one long-lived stream.

use crate::mutex::Mutex;
use etcd_client::{LeaseKeepAliveStream, LeaseKeeper};

use super::convert::{self, Answered};
use super::endpoint::Link;
use super::fault::{EtcdFault, FaultKind};
use crate::kv::{FailureClass, LeaseId};

/// The stream of the last renewal, while it is idle.
///
/// A renewal takes the stream out and puts it back once answered. A cancelled renewal therefore drops its stream, and the
/// next one does not wait behind an answer that may never come.
#[derive(Default)]
pub(super) struct KeepAlive {
    idle: Mutex<Option<Stream>>,
}

struct Stream {
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
    opened_on: OpenedOn,
}

/// What a stream is bound to: one lease, the connection it was opened on and the token it was opened with. When any of
/// them changes, a new stream is needed.
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
                // The idle stream may have broken unnoticed. Renewing twice is harmless, so retry on a new stream.
                Err(EtcdFault { kind: FaultKind::Class(FailureClass::Unknown), .. }) => {}
                answered => return answered,
            }
        }
        // `keep_alive` sends a first renewal and hides its answer. The second renewal's answer has the TTL and revision.
        let (keeper, answers) = link.leases().keep_alive(lease).await?;
        self.ask(Stream { keeper, answers, opened_on: wanted }).await
    }

    async fn ask(&self, mut stream: Stream) -> Result<Answered, EtcdFault> {
        stream.keeper.keep_alive().await?;
        // After an error the stream only reports its end. Either way the stream is not put back.
        let Some(answer) = stream.answers.message().await? else {
            return Err(EtcdFault::class(FailureClass::Unknown, "the keep-alive stream has ended"));
        };
        let answered = convert::lease_renewed(&answer)?;
        *self.idle.lock() = Some(stream);
        Ok(answered)
    }
}
