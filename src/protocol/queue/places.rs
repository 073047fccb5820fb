//! Which waiters of a queue stand in etcd, and with which contenders.
//!
//! In etcd stands the longest prefix of the local queue that may hold the lock together with the holders of this process,
//! and the first waiter behind it. So the order of arrival is kept among the threads of a process, and nobody else is
//! overtaken by a thread that could not hold the lock yet. Behind an exclusive one, nothing else stands: a process has
//! one exclusive place in the queue of a name at a time, and the next one is put by the write that deletes it.

use super::waiter::Waiter;
use super::writes::LOOK_OPERATIONS;
use super::{Context, Queue};
use crate::mode::{Load, Mode};
use crate::protocol::contender::Contender;
use crate::protocol::messages::ContenderId;

/// A waiter that stands, or is to stand, in etcd.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// The index of the waiter.
    pub(super) waiter: usize,
    /// The contender that stands for it; `None` if one has to be put.
    pub(super) contender: Option<ContenderId>,
}

impl Queue {
    /// What the holders of this process take together.
    pub(super) fn held_load(&self) -> Load {
        Load::of(self.contenders.iter().filter(|it| it.held().is_some()).map(Contender::mode))
    }

    /// The places of this process in the queue of the name, in order of arrival.
    pub(super) fn places(&self) -> Vec<Place> {
        let mut load = self.held_load();
        let mut free = self.contenders.iter().filter(|contender| contender.held().is_none());
        let mut places = Vec::new();
        for (at, waiter) in self.waiters.iter().enumerate() {
            let fits = load.admits(waiter.mode);
            // A try is never put behind others.
            if load.is_exclusive() || !fits && waiter.limits.try_only {
                break;
            }
            // In order, because a contender must not stand for a later waiter than one behind it does.
            let usable = |contender: &&Contender| {
                contender.suits(waiter) && contender.is_try() == waiter.limits.try_only
            };
            let mut rest = free.clone();
            let contender = rest.find(usable).map(|contender| {
                free = rest;
                contender.id()
            });
            places.push(Place { waiter: at, contender });
            load = load.with(waiter.mode);
            if !fits {
                break;
            }
        }
        places
    }

    /// The index of the waiter that this contender stands for, unless that would overtake an earlier one. The first waiter
    /// overtakes nobody, even if the contender was put for another one, which has given up since.
    pub(super) fn waiter_of(&self, id: ContenderId) -> Option<usize> {
        let place = self.places().into_iter().find(|place| place.contender == Some(id));
        let suits = |first: &&Waiter| self.contender(id).is_some_and(|contender| contender.suits(first));
        let first = || self.waiters.front().filter(suits).map(|_| 0);
        let at = place.map(|place| place.waiter).or_else(first)?;
        let before = self.waiters.iter().take(at).fold(self.held_load(), |load, it| load.with(it.mode));
        before.admits(self.waiters[at].mode).then_some(at)
    }

    /// Discards the contenders that no waiter can use. One that holds the lock stays, and one whose put is in flight stays
    /// until that is answered. Returns whether all that are left are of use.
    pub(super) fn drop_unwanted_contenders(&mut self, cx: &mut Context<'_>) {
        let places = self.places();
        let wanted = |id| places.iter().any(|place| place.contender == Some(id));
        let unwanted: Vec<ContenderId> = self
            .contenders
            .iter()
            .filter(|it| it.held().is_none() && !wanted(it.id()))
            .map(Contender::id)
            .collect();
        self.put_operations = self.operations_to_put(&places);
        self.in_flight_for_nobody = false;
        for id in unwanted {
            let Some(contender) = self.contender(id) else { continue };
            if !contender.is_entering() {
                self.discard_contender(id, Vec::new(), cx);
            } else if self.is_in_flight(id) {
                self.in_flight_for_nobody = true;
            } else {
                self.forget_contender(id, cx);
            }
        }
        self.read_positions_for_heirs(&places, cx);
    }

    /// An upper limit of the operations that put those that are to be put.
    fn operations_to_put(&self, places: &[Place]) -> usize {
        let mut modes = places
            .iter()
            .filter(|it| self.is_to_be_put(it))
            .map(|it| self.waiters[it.waiter].mode)
            .peekable();
        match modes.peek() {
            None => 0,
            Some(Mode::Exclusive) => 1,
            Some(Mode::Permits { .. }) => 1 + LOOK_OPERATIONS,
            Some(Mode::Shared) => LOOK_OPERATIONS + modes.take_while(|&mode| mode == Mode::Shared).count(),
        }
    }

    /// Its key is not known to exist.
    pub(super) fn is_to_be_put(&self, place: &Place) -> bool {
        place.contender.and_then(|id| self.contender(id)).is_none_or(Contender::is_entering)
    }

    /// A waiter that takes over a queued contender needs a read of its own: an older one does not say whether somebody has
    /// kept it out since it asked. Read once for each, because the contender goes on reading by itself.
    fn read_positions_for_heirs(&mut self, places: &[Place], cx: &mut Context<'_>) {
        for place in places {
            let Some(id) = place.contender else { continue };
            let since = self.waiters[place.waiter].since;
            if self.contender(id).is_some_and(|contender| contender.was_read_before(since))
                && self.waiters[place.waiter].position_read.replace(id) != Some(id)
            {
                self.ask_contender(id, cx, Contender::check_position);
            }
        }
    }
}
