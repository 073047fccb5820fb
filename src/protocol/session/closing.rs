//! Closing: the session ends for good, and every lease is revoked.

use super::lease::Lease;
use super::{Session, State};
use crate::clock::Time;
use crate::kv::{Failure, LeaseId, Response};
use crate::protocol::effects::Effects;
use crate::protocol::messages::Action;
use crate::protocol::timers::Timer;

impl Session {
    pub(in crate::protocol) fn retry_revoke(&mut self, lease: LeaseId, effects: &mut Effects) {
        self.revocations.send(lease, effects);
    }

    pub(in crate::protocol) fn handle_revoked(
        &mut self,
        now: Time,
        lease: LeaseId,
        reply: &Result<Response, Failure>,
        effects: &mut Effects,
    ) {
        if self.revocations.handle_reply(now, lease, reply, effects) {
            self.end_if_done(effects);
        }
    }

    /// Ends the session for good; its end was announced before.
    pub(in crate::protocol) fn close(&mut self, now: Time, effects: &mut Effects) {
        effects.timers.clear(Timer::Connect);
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Up(lease) | State::Registering(lease) => {
                lease.clear(effects);
                self.close_lease(now, &lease, effects);
            }
            State::Granting => self.state = State::Closing { granting: true },
            State::Down => self.state = State::Closing { granting: false },
            ending @ (State::Closing { .. } | State::Closed) => {
                self.state = ending;
                return;
            }
        }
        // Holders of an earlier session were given time to stop; a close does not wait for that.
        self.revocations.begin_all_now(effects);
        self.end_if_done(effects);
    }

    fn close_lease(&mut self, now: Time, lease: &Lease, effects: &mut Effects) {
        self.state = State::Closing { granting: false };
        self.revocations.begin(now, lease.id, lease.ttl, effects);
    }

    /// Ends the close once all leases are revoked, those of earlier sessions, too.
    pub(super) fn end_if_done(&mut self, effects: &mut Effects) {
        if matches!(self.state, State::Closing { granting: false }) && self.revocations.is_empty() {
            self.state = State::Closed;
            effects.act(Action::Closed);
        }
    }

    /// No lease is known that exists in the store.
    pub(in crate::protocol) fn owns_nothing(&self) -> bool {
        matches!(self.state, State::Down | State::Granting | State::Closed) && self.revocations.is_empty()
    }
}
