//! The end of the session for good: every lease is given back.

use super::lease::Tenure;
use super::{Session, State};
use crate::clock::Time;
use crate::kv::{Failure, LeaseId, Response};
use crate::protocol::Action;
use crate::protocol::effects::Outbox;
use crate::protocol::timers::Timer;

impl Session {
    pub(in crate::protocol) fn retry_revoke(&mut self, lease: LeaseId, out: &mut Outbox) {
        self.revocations.send(lease, out);
    }

    pub(in crate::protocol) fn handle_revoked(
        &mut self,
        now: Time,
        lease: LeaseId,
        reply: &Result<Response, Failure>,
        out: &mut Outbox,
    ) {
        if self.revocations.handle_reply(now, lease, reply, out) {
            self.end_if_done(out);
        }
    }

    /// Ends the session for good; its end was announced before.
    pub(in crate::protocol) fn close(&mut self, now: Time, out: &mut Outbox) {
        out.timers.clear(Timer::Connect);
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Up(tenure) | State::Registering(tenure) => {
                tenure.clear(out);
                self.close_lease(now, &tenure, out);
            }
            State::Granting => self.state = State::Closing { granting: true },
            State::Down => self.state = State::Closing { granting: false },
            ending @ (State::Closing { .. } | State::Closed) => {
                self.state = ending;
                return;
            }
        }
        // The holders of an earlier session were given time to stop; now they have been told to.
        self.revocations.hurry(out);
        self.end_if_done(out);
    }

    fn close_lease(&mut self, now: Time, tenure: &Tenure, out: &mut Outbox) {
        self.state = State::Closing { granting: false };
        self.revocations.begin(now, tenure.lease, tenure.ttl, out);
    }

    /// Every lease is gone that a close has to wait for, this session's and earlier ones'.
    pub(super) fn end_if_done(&mut self, out: &mut Outbox) {
        if matches!(self.state, State::Closing { granting: false }) && self.revocations.is_empty() {
            self.state = State::Closed;
            out.act(Action::Closed);
        }
    }

    /// Nothing that is known of stands in the store: there is neither a session nor one that is still to be revoked.
    pub(in crate::protocol) fn has_left_nothing(&self) -> bool {
        matches!(self.state, State::Down | State::Granting | State::Closed) && self.revocations.is_empty()
    }
}
