//! Tickets that give up: their place is given back, and their answer names the holder.

use std::time::Duration;

use super::{Cx, Queue};
use crate::clock::Time;
use crate::kv::{Answer, Failure, FailureClass, Request, Response};
use crate::protocol::contender::Stage;
use crate::protocol::effects::Purpose;
use crate::protocol::read;
use crate::protocol::timers::Timer;
use crate::protocol::{Action, Holder, Refusal, Ticket};

/// How long a ticket that gave up may wait for its key to be gone and the holder's name to be read. A few round
/// trips; a caller must not outstay its own limit by more than 50 ms.
const GRACE: Duration = Duration::from_millis(30);

/// A ticket that gave up.
#[derive(Clone, Debug)]
pub(super) struct Departing {
    pub(super) ticket: Ticket,
    /// When its caller asked.
    since: Time,
    why: Why,
    known: Known,
    /// What the read of the holder brought, once it has.
    inspection: Option<Result<Option<Holder>, Failure>>,
}

/// What was known, when the ticket gave up, of who has the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Nothing,
    /// Somebody of this process asked before; whether the store can be asked is not known.
    LocalPlace,
    /// Somebody was before our contender when the store was last asked, or a hold of this process was.
    Queued,
    /// A hold of this process.
    HeldHere,
}

#[derive(Clone, Debug)]
enum Why {
    Cancelled,
    Timeout,
    /// The retries ran out.
    Budget,
}

impl Departing {
    pub(super) fn cancelled(ticket: Ticket) -> Self {
        Self { ticket, since: Time::default(), why: Why::Cancelled, known: Known::Nothing, inspection: None }
    }

    /// The caller has no time for the holder's name any more.
    pub(super) fn cancel(&mut self) {
        self.why = Why::Cancelled;
    }

    fn wants_holder(&self) -> bool {
        !matches!(self.why, Why::Cancelled) && self.inspection.is_none()
    }
}

impl Queue {
    /// The ticket's time is up.
    pub(in crate::protocol) fn lose_patience(&mut self, ticket: Ticket, cx: &mut Cx<'_>) {
        let Some(at) = self.waiters.iter().position(|waiter| waiter.ticket == ticket) else {
            return;
        };
        let known = self.known(at);
        let Some(waiter) = self.waiters.remove(at) else {
            return;
        };
        let (patience, since) = (waiter.patience, waiter.since);
        if patience.try_only {
            let failure = self.why_unavailable(cx);
            cx.out.refuse(ticket, Refusal::Unavailable(failure));
            return;
        }
        let timed_out = patience.deadline.is_some_and(|deadline| deadline <= cx.now);
        let why = if timed_out { Why::Timeout } else { Why::Budget };
        self.depart(Departing { ticket, since, why, known, inspection: None }, cx);
    }

    pub(super) fn depart(&mut self, departing: Departing, cx: &mut Cx<'_>) {
        cx.out.tickets.insert(departing.ticket, self.id);
        cx.out.timers.set(Timer::Depart(departing.ticket), cx.now + GRACE);
        if departing.wants_holder() {
            self.inspect(cx);
        }
        self.departing.push(departing);
    }

    /// Asks for the holder's name; one read at a time.
    fn inspect(&mut self, cx: &mut Cx<'_>) {
        if self.inspecting.is_none() {
            self.inspecting = Some(cx.now);
            cx.out.send(Purpose::Inspect(self.id), Request::Txn(read::inspect(&self.name)));
        }
    }

    pub(in crate::protocol) fn handle_inspected(
        &mut self,
        reply: Result<Response, Failure>,
        cx: &mut Cx<'_>,
    ) {
        let sent = self.inspecting.take().unwrap_or(cx.now);
        let inspection = match reply.map(|response| response.answer) {
            Ok(Answer::Txn(answer)) => {
                Ok(read::inspected(&answer).map(|(kv, waiters)| Holder { kv: kv.clone(), waiters }))
            }
            Ok(_) => Ok(None),
            Err(failure) => Err(failure),
        };
        // A key of this session in front that nobody here holds is on its way out.
        let own_lease = cx.session.tenure().map(|tenure| tenure.lease);
        let held = self.contender.as_ref().and_then(|own| Some((&own.key, own.hold()?.token)));
        let stays = |holder: &Holder| {
            let named = (&holder.kv.key, holder.kv.create_revision);
            Some(holder.kv.lease) != own_lease || held == Some(named)
        };
        let inspection = inspection.map(|holder| holder.filter(stays));
        for departing in self.departing.iter_mut().filter(|departing| departing.wants_holder()) {
            // A read from before it asked says nothing about its wait.
            if departing.since <= sent {
                departing.inspection = Some(inspection.clone());
            }
        }
        if self.departing.iter().any(Departing::wants_holder) {
            self.inspect(cx);
        }
        self.tell_slow_waits(inspection.as_ref().ok().and_then(Option::as_ref), cx);
    }

    /// Answers those for whom everything is done.
    pub(super) fn settle_departures(&mut self, cx: &mut Cx<'_>) {
        let key_gone =
            self.debris.is_empty() && self.contender.as_ref().is_none_or(|own| self.is_wanted(own));
        let (done, waiting) = std::mem::take(&mut self.departing)
            .into_iter()
            .partition(|departing| key_gone && !departing.wants_holder());
        self.departing = waiting;
        let done: Vec<Departing> = done;
        for departing in done {
            self.answer(departing, cx);
        }
    }

    /// The grace is over.
    pub(in crate::protocol) fn end_grace(&mut self, ticket: Ticket, cx: &mut Cx<'_>) {
        if let Some(at) = self.departing.iter().position(|departing| departing.ticket == ticket) {
            let departing = self.departing.remove(at);
            self.answer(departing, cx);
        }
    }

    fn answer(&self, departing: Departing, cx: &mut Cx<'_>) {
        let Departing { ticket, since, why, known, inspection } = departing;
        if let Why::Cancelled = why {
            cx.out.refuse(ticket, Refusal::Cancelled);
            return;
        }
        let held = match (known, inspection) {
            (_, Some(Ok(holder @ Some(_)))) => Ok(holder),
            (Known::HeldHere, _) => Ok(None),
            (_, Some(Err(failure))) => Err(failure),
            (Known::Queued, Some(Ok(None)) | None) | (Known::LocalPlace, Some(Ok(None))) => {
                cx.out.contact.trouble(cx.now).map_or(Ok(None), Err)
            }
            (Known::Nothing, Some(Ok(None)) | None) | (Known::LocalPlace, None) => {
                Err(self.why_unavailable(cx))
            }
        };
        let refusal = match (held, why) {
            (Err(failure), _) => Refusal::Unavailable(failure),
            (Ok(holder), Why::Timeout) => Refusal::Timeout { waited: cx.now.since(since), holder },
            (Ok(holder), _) => Refusal::AlreadyHeld { holder },
        };
        cx.out.refuse(ticket, refusal);
    }

    /// What is known to the waiter at this place.
    fn known(&self, at: usize) -> Known {
        let since = self.waiters.get(at).map(|waiter| waiter.since);
        let mut local = self.waiters.iter().take(at).any(|before| !before.patience.try_only);
        let kept_out = self.waiters.get(at).is_some_and(|waiter| waiter.kept_out);
        let queued = match self.contender.as_ref().map(|contender| &contender.stage) {
            Some(Stage::Held(_)) => return Known::HeldHere,
            // What was read before this ticket asked says nothing about its wait; but then the place is that of a caller
            // of this process who asked earlier and has given up meanwhile.
            Some(Stage::Queued(place)) => {
                let read_since = since.is_some_and(|since| place.asked_at >= since);
                local |= !read_since;
                read_since && place.was_behind
            }
            Some(Stage::Entering) | None => false,
        };
        match self.last_failure {
            Some(_) => Known::Nothing,
            None if kept_out || queued => Known::Queued,
            None if local => Known::LocalPlace,
            None => Known::Nothing,
        }
    }

    fn why_unavailable(&self, cx: &Cx<'_>) -> Failure {
        let silent = || Failure::new(FailureClass::NotDone, "etcd has not answered in time");
        self.last_failure.clone().or_else(|| cx.out.contact.trouble(cx.now)).unwrap_or_else(silent)
    }

    /// The ticket has waited for so long that somebody should know who has the lock. The store is asked for its name.
    pub(in crate::protocol) fn tell_slow_wait(&mut self, ticket: Ticket, cx: &mut Cx<'_>) {
        self.slow.push(ticket);
        self.inspect(cx);
    }

    fn tell_slow_waits(&mut self, holder: Option<&Holder>, cx: &mut Cx<'_>) {
        let waiting_here = self.waiters.len();
        for ticket in std::mem::take(&mut self.slow) {
            // Unless it has its answer meanwhile.
            if let Some(waiter) = self.waiters.iter().find(|waiter| waiter.ticket == ticket) {
                let (name, waited) = (self.name.clone(), cx.now.since(waiter.since));
                cx.out.act(Action::SlowWait { name, waited, holder: holder.cloned(), waiting_here });
            }
        }
    }
}
