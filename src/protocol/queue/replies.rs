//! How a queue handles the answers to its writes.

use super::sent::{SentDelete, SentWrite};
use super::{Context, Queue, WriteState};
use crate::error::LossReason;
use crate::kv::{Failure, FailureClass, Key, KeyValue, Revision};
use crate::mode::{Load, Mode};
use crate::protocol::admission::Admission;
use crate::protocol::batch::WriteOutcome;
use crate::protocol::messages::{Action, ContenderId, Refusal, ReleaseFailure};
use crate::protocol::mutants::mutant;
use crate::protocol::put::PutOutcome;
use crate::protocol::read;
use crate::protocol::session::Verdict;
use crate::protocol::timers::Timer;

impl Queue {
    pub(in crate::protocol) fn handle_write(
        &mut self,
        outcome: WriteOutcome,
        cx: &mut Context<'_>,
    ) -> Verdict {
        let WriteState::InFlight(sent) = std::mem::replace(&mut self.write, WriteState::Idle) else {
            return Verdict::Nothing;
        };
        let answer = match outcome {
            WriteOutcome::Answered(answer) if answer.deleted.len() != sent.deletes.len() => {
                return self.write_failed(sent, read::malformed_write(), cx);
            }
            WriteOutcome::Answered(answer) => answer,
            WriteOutcome::Failed(failure) => return self.write_failed(sent, failure, cx),
            WriteOutcome::Again { alone } => {
                self.alone |= alone;
                return Verdict::Nothing;
            }
        };
        self.alone = false;
        self.failures = 0;
        self.last_failure = None;
        self.deletes_done(&sent.deletes, &answer.deleted, cx);
        for (id, outcome) in sent.puts.iter().copied().zip(answer.puts) {
            if let PutOutcome::StaleEpoch { session } = outcome {
                // So it is for all of them.
                return self.write_refused(sent.epoch, session, cx);
            }
            self.put_answered(id, outcome, answer.revision, &sent, cx);
        }
        Verdict::Nothing
    }

    /// Whether the answer says that there is no room for the contender, and not only that it does not show enough.
    fn is_certainly_behind(&self, id: ContenderId, admission: &Admission) -> bool {
        let exclusive = self.contender(id).is_some_and(|contender| contender.mode() == Mode::Exclusive);
        match admission {
            Admission::Behind(Some(_)) | Admission::Gone => true,
            Admission::Behind(None) => exclusive,
            Admission::Admitted | Admission::Uncounted => false,
        }
    }

    /// Whether these keys keep out the contender even without those of holds that this process has released since: such a
    /// key is only on its way out. Otherwise the try is put again, after the deletes.
    fn keeps_out_for_certain(&self, id: ContenderId, by: &[Key]) -> bool {
        let stays = |key: &&Key| !self.stale_keys.iter().any(|stale| stale.key == **key);
        let load = Load::of(by.iter().filter(stays).map(Mode::of));
        by.is_empty() || self.contender(id).is_some_and(|contender| !load.admits(contender.mode()))
    }

    fn put_answered(
        &mut self,
        id: ContenderId,
        outcome: PutOutcome,
        revision: Revision,
        sent: &SentWrite,
        cx: &mut Context<'_>,
    ) {
        match outcome {
            PutOutcome::Put { created, admission } => {
                if self.is_certainly_behind(id, &admission) {
                    self.refuse_tries_of(id, &sent.tries, cx);
                }
                let (put, answered) = ((created, admission), (revision, sent.sent));
                self.contend(id, cx, |contender, cx| contender.put_answered(put, answered, cx));
            }
            PutOutcome::Taken { by } => {
                if self.keeps_out_for_certain(id, &by) {
                    self.refuse_tries_of(id, &sent.tries, cx);
                }
                self.forget_contender(id, cx);
            }
            PutOutcome::Room { counted } => {
                self.ask_contender(id, cx, |contender, _| contender.try_as_of(revision, counted));
            }
            PutOutcome::StaleEpoch { .. } => {}
            PutOutcome::Malformed => self.refuse_malformed(id, cx),
        }
    }

    /// The epoch has changed. If it is lower than before, the store was restored from a backup: the keys that this session
    /// has put since are gone, even if its lease exists.
    fn write_refused(&mut self, epoch: Revision, session: Option<KeyValue>, cx: &mut Context<'_>) -> Verdict {
        match &session {
            Some(session) if session.mod_revision < epoch => Verdict::Lost(LossReason::SessionRevoked),
            // Answered from an old state; repeating the request at once would get the same answer.
            Some(session) if session.mod_revision == epoch => {
                self.back_off_write(read::stale(), cx);
                Verdict::Nothing
            }
            _ => cx.session.handle_stale_epoch(session),
        }
    }

    fn deletes_done(&mut self, deletes: &[SentDelete], counts: &[u64], cx: &mut Context<'_>) {
        for (delete, &count) in deletes.iter().zip(counts) {
            let Some(at) = self.stale_keys.iter().position(|stale| stale.key == delete.key) else {
                continue;
            };
            if !self.stale_keys[at].deleted(count, delete.for_good) {
                continue;
            }
            let stale = self.stale_keys.remove(at);
            if let Some(token) = stale.released.filter(|_| !stale.was_gone) {
                cx.effects.act(Action::Released { name: self.name.clone(), token });
            }
            for ticket in stale.confirm {
                let result = if stale.was_gone { Err(ReleaseFailure::NotHeld) } else { Ok(()) };
                cx.effects.act(Action::Confirm { ticket, result });
            }
        }
    }

    fn write_failed(&mut self, sent: SentWrite, failure: Failure, cx: &mut Context<'_>) -> Verdict {
        match failure.class {
            FailureClass::LeaseGone => return Verdict::Lost(LossReason::SessionRevoked),
            FailureClass::Unknown if !mutant!(UnknownTakenForNotDone) => {
                for contender in self.contenders.iter_mut().filter(|it| sent.puts.contains(&it.id())) {
                    contender.put_unanswered(sent.epoch);
                }
                for stale in self.stale_keys.iter_mut().filter(|stale| sent.deletes(&stale.key)) {
                    stale.unanswered();
                }
                cx.session.retire_keys();
            }
            FailureClass::NoSpace if !mutant!(NoSpaceTakenForNotDone) && self.can_do_without_space(&sent) => {
                self.write_out_of_space(&sent, failure, cx);
                return Verdict::Nothing;
            }
            _ if failure.is_final() && !sent.puts.is_empty() => {
                self.refuse_waiters(&Refusal::Failed(failure), cx);
                for id in sent.puts {
                    self.forget_contender(id, cx);
                }
                return Verdict::Nothing;
            }
            _ if failure.is_final() => {
                // The delete is retried until the lease ends, but callers need not wait for that.
                for stale in &mut self.stale_keys {
                    for ticket in stale.confirm.drain(..) {
                        let result = Err(ReleaseFailure::Failed(failure.clone()));
                        cx.effects.act(Action::Confirm { ticket, result });
                    }
                }
            }
            _ => {}
        }
        self.back_off_write(failure, cx);
        Verdict::Nothing
    }

    /// Whether the queue has something better to do than to retry the write until there is space.
    fn can_do_without_space(&self, sent: &SentWrite) -> bool {
        !sent.puts.is_empty() || self.stale_keys.iter().any(|stale| sent.deletes(&stale.key) && !stale.plain)
    }

    /// etcd may carry out a transaction and still answer that it has run out of space (`quotaApplierV3.Txn` applies it
    /// first; seen in 3.4.42, 3.5.30 and 3.6.14). So our key may exist, and the keys to be deleted may not. A plain delete
    /// is carried out all the same. It does not compare the create revision, so the key is not reused.
    fn write_out_of_space(&mut self, sent: &SentWrite, failure: Failure, cx: &mut Context<'_>) {
        cx.session.retire_keys();
        if !sent.puts.is_empty() {
            self.refuse_waiters(&Refusal::Failed(failure), cx);
        }
        for &id in &sent.puts {
            self.discard_contender(id, Vec::new(), cx);
        }
        for stale in self.stale_keys.iter_mut().filter(|stale| sent.deletes(&stale.key)) {
            stale.unanswered();
            stale.plain = true;
        }
    }

    fn back_off_write(&mut self, failure: Failure, cx: &mut Context<'_>) {
        let pause = self.back_off(failure, cx);
        self.write = WriteState::BackingOff;
        cx.effects.timers.set(Timer::Retry(self.id), cx.now + pause);
    }

    fn refuse_malformed(&mut self, id: ContenderId, cx: &mut Context<'_>) {
        self.refuse_waiters(&Refusal::Failed(Failure::malformed()), cx);
        self.discard_contender(id, Vec::new(), cx);
    }
}
