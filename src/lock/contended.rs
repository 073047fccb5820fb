//! Whether somebody waits behind a hold.

use crossbeam_channel::Receiver;

use super::hold::Hold;
use crate::shared::message::Message;
use crate::shared::process;

impl Hold {
    /// Returns a channel that carries no messages and disconnects once somebody waits for the lock behind this hold, in
    /// this process or another one. It stays disconnected. It also disconnects when the hold is over.
    ///
    /// Readers that may hold the lock together do not count. Whoever waits because all permits are taken counts for each hold of
    /// some of them.
    ///
    /// For long holders that can let others in between: release the lock, and acquire it again at the end of the queue.
    /// The first call begins to watch the queue; a hold that never asks pays nothing.
    ///
    /// A [`try_lock`](crate::DistributedLock::try_lock) of this library does not count. The `TryLock` of Go's
    /// `concurrency.Mutex` does, because it joins the queue for an instant. While etcd cannot be reached, waiters of other
    /// processes are not noticed.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), etcd_lock::LockError> {
    /// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
    /// use etcd_lock::crossbeam_channel::TryRecvError;
    ///
    /// let lock = manager.new_lock("disk")?;
    /// let guard = lock.lock()?;
    /// assert_eq!(guard.contended().try_recv(), Err(TryRecvError::Empty)); // nobody waits
    ///
    /// let next = lock.enqueue()?;
    /// assert!(guard.contended().recv().is_err()); // disconnected: somebody does
    /// drop(guard);
    /// assert!(next.wait()?.is_held());
    /// # Ok(())
    /// # }
    /// ```
    pub fn contended(&self) -> &Receiver<()> {
        if !self.is_here() {
            return process::disconnected();
        }
        self.contended_cell().get_or_init(|| {
            let feeds = self.lock().client.feeds();
            let (ticket, state) = (self.ticket(), self.state());
            let receiver = feeds.await_contention(ticket, state.name.clone());
            // On an error, or after the end of the hold, nobody would end the wait.
            let sent = self.lock().client.mailbox.send(Message::AwaitContention { ticket, state });
            if sent.is_err() || !self.is_held() {
                feeds.end_contention(ticket);
            }
            receiver
        })
    }
}
