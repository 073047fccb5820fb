//! The loop's second half: carrying out the protocol's actions.

use std::sync::Arc;

use super::inflight::Outgoing;
use super::log::{Line, SlowWait};
use super::observers::ObserverCommand;
use super::startup::Abandoned;
use super::{Done, Driver};
use crate::clock::Time;
use crate::error::LossReason;
use crate::kv::{Failure, FailureClass};
use crate::protocol::{Action, FencedId, HoldId};
use crate::shared::deadline::Deadline;
use crate::shared::message::FencedResult;
use crate::store::{Store, WatchOrder};

impl<S: Store> Driver<S> {
    /// Carries out all pending actions.
    pub(super) fn perform(&mut self) {
        while let Some(action) = self.protocol.poll_action() {
            self.perform_one(action);
        }
        self.write_lines();
    }

    /// Runs after all actions were carried out and all callers were answered, because a logger may block this thread.
    fn write_lines(&mut self) {
        if self.lines.is_empty() {
            return;
        }
        let begun = self.settings.clock.now();
        for line in self.lines.drain(..) {
            line.write();
        }
        // Time spent in the logger does not count: the lease must still be revoked.
        if let Some(closing) = &mut self.closing {
            *closing = *closing + self.settings.clock.now().since(begun);
        }
    }

    fn end_session(&mut self, reason: LossReason) {
        if reason == LossReason::Closed {
            self.closing_session = self.report.session.info(self.settings.clock.now()).lease_id;
        }
        self.report.session.down(reason);
        let ended = self.report.holds.end_session(reason);
        self.lines.push(Line::SessionDown(reason));
        self.lines.extend(ended.into_iter().map(Line::Ended));
        let _ = self.observers.send(ObserverCommand::HoldsEnded);
        self.drop_queued();
    }

    fn perform_one(&mut self, action: Action) {
        match action {
            Action::Send { id, request, timeout, urgent } => {
                let now = self.settings.clock.now();
                let outgoing = Outgoing { id, request, until: now + timeout, urgent };
                if let Some(outgoing) = self.inflight.admit(outgoing) {
                    self.send(now, outgoing);
                }
            }
            // Sending fails only if the watch task has ended, which `finish` reports.
            Action::Watch { id, spec } => {
                self.report.stats.record(|stats| stats.rpcs.watch += 1);
                let _ = self.watch_orders.send(WatchOrder::Open { id, spec });
            }
            Action::Unwatch { id } => {
                let _ = self.watch_orders.send(WatchOrder::Close { id });
            }
            Action::SessionUp { lease, ttl, deadline } => {
                self.failing = false;
                let deadline = Arc::new(Deadline::new(deadline));
                self.report.holds.begin_session(Arc::clone(&deadline));
                self.report.session.up(lease, ttl, deadline);
                self.report.stats.record(|stats| stats.sessions += 1);
                self.lines.push(Line::SessionUp { lease, ttl });
                if let Some(startup) = self.startup.take()
                    && startup.ready() == Err(Abandoned)
                {
                    self.begin_to_close(self.settings.clock.now());
                }
            }
            Action::SessionFailed { failure } => self.session_failed(failure),
            Action::ExtendSession { deadline } => {
                if !self.report.holds.extend_session(deadline) {
                    self.protocol.handle_expired(self.settings.clock.now());
                }
            }
            Action::StoreSilent { since, failure, assured } => {
                self.lines.push(Line::StoreSilent { since, failure, assured });
            }
            Action::StoreAnswers { after } => self.lines.push(Line::StoreAnswers { after }),
            Action::SlowWait { name, mode, waited, holder, waiting_here } => {
                let own_lease = self.report.session.info(self.settings.clock.now()).lease_id;
                let slow = SlowWait { name, mode, waited, holder, waiting_here, own_lease };
                self.lines.push(Line::SlowWait(slow));
            }
            Action::SessionDown { reason } => self.end_session(reason),
            Action::Grant { ticket, hold, name, key, token } => {
                if let Some(state) = self.report.holds.get(hold) {
                    self.report.tickets.granted(ticket, state);
                    return;
                }
                let state = self.report.holds.open(self.settings.clock.now(), hold, name, token, key);
                self.report.tickets.granted(ticket, Arc::clone(&state));
                self.lines.push(Line::Acquired(state));
            }
            Action::Released { name, token } => self.lines.push(Line::Released { name, token }),
            Action::Refuse { ticket, refusal } => self.report.tickets.refused(ticket, refusal),
            Action::EndHold { hold, lost } => self.end_hold(hold, lost),
            Action::Confirm { ticket, result } => self.report.tickets.confirmed(ticket, result),
            Action::Fenced { id, result } => self.answer_fenced(id, result),
            Action::Closed => {
                self.lines.extend(self.closing_session.map(Line::SessionClosed));
                self.over = true;
            }
        }
    }

    fn end_hold(&mut self, hold: HoldId, lost: Option<LossReason>) {
        let Some(ended) = self.report.holds.end(hold, lost) else {
            return;
        };
        if self.asked_for_contention {
            // Fails only if the observers have ended, which `finish` reports.
            let _ = self.observers.send(ObserverCommand::HoldsEnded);
        }
        self.lines.push(Line::Ended(ended));
    }

    fn answer_fenced(&mut self, id: FencedId, result: FencedResult) {
        if let Some(reply) = self.fenced.remove(&id) {
            // A caller that no longer listens has reached its own limit.
            let _ = reply.send(result);
        }
    }

    pub(super) fn send(&mut self, now: Time, Outgoing { id, request, until, urgent }: Outgoing) {
        let call = self.store.call(request, until.since(now));
        self.tasks.spawn(async move { Done::Request { id, reply: call.await, limited: !urgent } });
    }

    /// Drops the queued requests of a session that is over.
    fn drop_queued(&mut self) {
        let queued = self.inflight.take_queued();
        self.not_sent(self.settings.clock.now(), queued, "the session ended before it was sent");
    }

    /// Reports that these requests were never sent.
    pub(super) fn not_sent(&mut self, now: Time, requests: Vec<Outgoing>, why: &str) {
        for Outgoing { id, .. } in requests {
            self.protocol.handle_reply(now, id, Err(Failure::new(FailureClass::NotDone, why)));
        }
    }

    fn session_failed(&mut self, failure: Failure) {
        let line = if self.failing { Line::SessionFailedAgain } else { Line::SessionFailed };
        self.lines.push(line(failure.clone()));
        self.failing = true;
        if let Some(startup) = self.startup.take() {
            self.startup = startup.failed(failure);
            if self.startup.is_none() {
                self.begin_to_close(self.settings.clock.now());
            }
        }
    }
}
