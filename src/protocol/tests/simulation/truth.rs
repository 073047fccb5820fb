//! Answers are true (P9): each is compared with the queues in the store, and the tickets of the process, during the
//! call.

mod ends;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::checks::Violation;
use super::liveness::SETTLED;
use super::reading::keys_within;
use super::rule::{Part, may_hold_together};
use super::world::World;
use crate::clock::Time;
use crate::kv::{Key, LeaseId, Revision};
use crate::mode::Mode;
use crate::name::LockName;
use crate::protocol::{CurrentHolder, HoldId, Refusal, Ticket};

/// Without faults, every answer that a wait depends on arrives within this time.
const ANSWERED: Duration = Duration::from_millis(150);

/// The history of the tickets, holds and queues. Stamps order events that happen at the same time.
#[derive(Debug, Default)]
pub(super) struct Truth {
    stamp: u64,
    claims: BTreeMap<Ticket, Claim>,
    /// The claims that have not ended.
    open: BTreeSet<Ticket>,
    holds: BTreeMap<(usize, HoldId), Vec<Ticket>>,
    /// For each name, all successive queues in etcd; each is valid from its stamp to the next one's.
    queues: Vec<Vec<ObservedQueue>>,
    /// The store's revision at the last recorded queues.
    revision: Revision,
    /// The manager that deleted a contender; `None` for other clients and the expiry of its lease.
    deleted: BTreeMap<(Key, Revision), Option<usize>>,
    /// When a key was last confirmed to be deleted for good.
    confirmed_deleted: BTreeMap<Key, u64>,
    /// When a manager's session last ended.
    session_over: BTreeMap<usize, u64>,
    /// Confirmations that report the loss of the session: it must be over by the end of the turn.
    blamed: Vec<(usize, Ticket)>,
}

/// A ticket's wait and hold.
#[derive(Debug)]
struct Claim {
    node: usize,
    name: LockName,
    mode: Mode,
    try_only: bool,
    asked: u64,
    asked_at: Time,
    granted: Option<(u64, HoldId, Key, Revision)>,
    /// When the ticket was abandoned or refused, or its hold ended.
    ended: Option<u64>,
    lost: bool,
}

#[derive(Debug)]
struct ObservedQueue {
    stamp: u64,
    contenders: Vec<ObservedContender>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct ObservedContender {
    key: Key,
    created: Revision,
    lease: LeaseId,
}

impl Truth {
    pub(super) fn stamp(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    pub(super) fn asked(
        &mut self,
        ticket: Ticket,
        node: usize,
        (name, mode): (&LockName, Mode),
        try_only: bool,
        asked_at: Time,
    ) {
        let asked = self.stamp();
        let name = name.clone();
        let claim =
            Claim { node, name, mode, try_only, asked, asked_at, granted: None, ended: None, lost: false };
        self.claims.insert(ticket, claim);
        self.open.insert(ticket);
    }

    /// The caller gave up, or dropped its guard.
    pub(super) fn ended(&mut self, ticket: Ticket) {
        let stamp = self.stamp();
        self.open.remove(&ticket);
        if let Some(claim) = self.claims.get_mut(&ticket) {
            claim.ended.get_or_insert(stamp);
        }
    }

    pub(super) fn granted(&mut self, ticket: Ticket, hold: HoldId, key: &Key, token: Revision) {
        let stamp = self.stamp();
        if let Some(claim) = self.claims.get_mut(&ticket) {
            self.holds.entry((claim.node, hold)).or_default().push(ticket);
            claim.granted = Some((stamp, hold, key.clone(), token));
        }
    }

    pub(super) fn hold_over(&mut self, node: usize, hold: HoldId, lost: bool) {
        for ticket in self.holds.remove(&(node, hold)).unwrap_or_default() {
            self.ended(ticket);
            if let Some(claim) = self.claims.get_mut(&ticket) {
                claim.lost |= lost;
            }
        }
    }

    /// A manager's session ended, and with it all its holds.
    pub(super) fn session_over(&mut self, node: usize) {
        let holds = self.holds.keys().filter(|(holder, _)| *holder == node);
        for (_, hold) in holds.copied().collect::<Vec<_>>() {
            self.hold_over(node, hold, true);
        }
        let stamp = self.stamp();
        self.session_over.insert(node, stamp);
    }

    /// The process died: the claims of its tickets end, and the next life uses its hold ids anew.
    pub(super) fn forget_manager(&mut self, node: usize) {
        let stamp = self.stamp();
        for claim in self.claims.values_mut().filter(|claim| claim.node == node) {
            claim.ended.get_or_insert(stamp);
            claim.node = usize::MAX;
        }
        let claims = &self.claims;
        self.open.retain(|ticket| claims[ticket].node != usize::MAX);
        self.holds.retain(|(holder, _), _| *holder != node);
    }

    /// The manager's other claims on the name that existed at some time after `since`.
    fn others<'a>(
        &'a self,
        node: usize,
        name: &'a LockName,
        ticket: Ticket,
        since: u64,
    ) -> impl Iterator<Item = &'a Claim> {
        let claims = self.claims.iter().filter(move |&(&other, _)| other != ticket);
        claims.map(|(_, claim)| claim).filter(move |claim| {
            claim.node == node && claim.name == *name && claim.ended.is_none_or(|ended| ended > since)
        })
    }

    /// The name's queues in etcd at some time after `since`.
    fn queues(&self, name: usize, since: u64) -> &[ObservedQueue] {
        let queues = self.queues.get(name).map(Vec::as_slice).unwrap_or_default();
        let first = queues.partition_point(|queue| queue.stamp <= since).saturating_sub(1);
        &queues[first..]
    }
}

impl Claim {
    /// Whether this claim keeps a try out: it is a wait in the queue, or a hold. A try without an answer is neither.
    fn keeps_tries_out(&self) -> bool {
        !self.try_only || self.granted.is_some()
    }

    /// From when on it may keep the other one out: from its call, or from its grant if it came later.
    fn keeps_out_since(&self, other: &Self) -> u64 {
        match &self.granted {
            _ if self.asked < other.asked && !self.try_only => self.asked,
            Some((granted, ..)) => *granted,
            None => u64::MAX,
        }
    }
}

impl World {
    /// Records how the queues changed; `by` is the manager whose request was executed, with the stamp at which it was
    /// sent.
    pub(super) fn record_queues(&mut self, by: Option<(usize, u64)>) -> Result<(), Violation> {
        let revision = self.model.revision();
        if std::mem::replace(&mut self.truth.revision, revision) == revision {
            return Ok(());
        }
        self.past.remember_time(revision, self.now);
        let stamp = self.truth.stamp();
        self.truth.queues.resize_with(self.names.len(), Vec::new);
        for name in 0..self.names.len() {
            let contenders = self.contenders(&self.names[name]);
            let before =
                self.truth.queues[name].last().map(|queue| &queue.contenders[..]).unwrap_or_default();
            if before == contenders {
                continue;
            }
            for gone in before.iter().filter(|contender| !contenders.contains(contender)) {
                let by = by.map(|(node, _)| node);
                self.past.remember_deletion(revision, &gone.key);
                self.truth.deleted.insert((gone.key.clone(), gone.created), by);
            }
            if let Some((_, sent)) = by {
                let new = contenders.iter().filter(|contender| !before.contains(contender));
                let mut new = new.filter_map(|new| Some((new, *self.truth.confirmed_deleted.get(&new.key)?)));
                if let Some((new, _)) = new.find(|&(_, said)| said > sent) {
                    return Err(Violation::new(format!(
                        "P6: {} was confirmed as deleted, and exists again",
                        new.key
                    )));
                }
            }
            self.truth.queues[name].push(ObservedQueue { stamp, contenders });
        }
        Ok(())
    }

    fn contenders(&self, name: &LockName) -> Vec<ObservedContender> {
        let found = keys_within(&self.model, name.contenders()).into_iter();
        found
            .map(|kv| ObservedContender { key: kv.key, created: kv.create_revision, lease: kv.lease })
            .collect()
    }

    /// P9: the reason that the refusal gives was true at some time of the call.
    pub(super) fn check_refusal_true(&self, ticket: Ticket, refusal: &Refusal) -> Result<(), Violation> {
        let Some(claim) = self.truth.claims.get(&ticket) else {
            return Ok(());
        };
        let (since, node) = (claim.asked, claim.node);
        let kept_out = self.was_kept_out(ticket, claim);
        // Whether the manager must know the reason: the wait was long enough, and there was no fault.
        let waited = self.now.since(claim.asked_at);
        let late = self.nodes[node].turns.lateness * 5;
        let knows = self.calm_for() > waited + SETTLED && waited > ANSWERED + late;
        let true_so_far = match refusal {
            Refusal::Held => kept_out,
            Refusal::Timeout { holder: Some(holder), .. } | Refusal::AlreadyHeld { holder: Some(holder) } => {
                (kept_out || self.weather.stale_reads) && self.was_holder(ticket, claim, holder)
            }
            Refusal::Timeout { holder: None, .. } | Refusal::AlreadyHeld { holder: None } => kept_out,
            // A wait that ends right after another thread's release, before etcd has answered who is next, cannot know
            // the reason. The refusal is then more cautious than necessary, but states nothing false about contenders
            // in etcd.
            Refusal::Unavailable(_) => {
                !knows || self.truth.others(node, &claim.name, ticket, since).count() > 0
            }
            Refusal::Cancelled | Refusal::Closed | Refusal::Failed(_) => true,
        };
        if true_so_far {
            return Ok(());
        }
        let queues = self.truth.queues(self.index_of(&claim.name), since);
        Err(Violation::new(format!(
            "P9: {ticket:?} of manager {node} on {:?} is answered {refusal:?}; in that time etcd had {:?}",
            claim.name,
            queues.iter().map(|queue| &queue.contenders).collect::<Vec<_>>()
        )))
    }

    fn index_of(&self, name: &LockName) -> usize {
        self.names.iter().position(|other| other == name).unwrap_or(usize::MAX)
    }

    /// Whether others that had the lock or were queued for it left no room for this ticket at some instant of the call.
    /// A key of this manager's session counts only through the ticket that it belongs to. Other calls of this process
    /// that came later count only if they got the lock.
    fn was_kept_out(&self, ticket: Ticket, claim: &Claim) -> bool {
        let mine = self.nodes[claim.node].lease;
        let here: Vec<&Claim> = self.truth.others(claim.node, &claim.name, ticket, claim.asked).collect();
        let there = self.truth.queues(self.index_of(&claim.name), claim.asked);
        let begins =
            there.iter().map(|queue| queue.stamp).chain(here.iter().map(|it| it.keeps_out_since(claim)));
        let instants: BTreeSet<u64> = begins.map(|at| at.max(claim.asked)).collect();
        instants.into_iter().any(|at| {
            let queue = there.iter().rev().find(|queue| queue.stamp <= at);
            let foreign = queue.into_iter().flat_map(|queue| &queue.contenders);
            let foreign = foreign.filter(|it| Some(it.lease) != mine).map(|it| Part::of_key(&it.key));
            let here = here.iter().filter(|it| {
                it.keeps_tries_out()
                    && it.keeps_out_since(claim) <= at
                    && it.ended.is_none_or(|ended| ended > at)
            });
            let here = here.map(|it| Part::of_mode(it.mode));
            let all: Vec<Part> = foreign.chain(here).chain([Part::of_mode(claim.mode)]).collect();
            !may_hold_together(&all)
        })
    }

    /// Whether the reported holder was first at some time of the call and, if it is of this manager, had been granted
    /// to a ticket.
    fn was_holder(&self, ticket: Ticket, claim: &Claim, holder: &CurrentHolder) -> bool {
        let (key, created) = (&holder.kv.key, holder.kv.create_revision);
        let is_it = |contender: &ObservedContender| contender.key == *key && contender.created == created;
        let mut there = self.truth.queues(self.index_of(&claim.name), claim.asked).iter();
        // With stale reads, the reported holder may be out of date as well.
        if !there.any(|queue| queue.contenders.first().is_some_and(is_it)) {
            return self.weather.stale_reads;
        }
        let mut here = self.truth.others(claim.node, &claim.name, ticket, claim.asked);
        Some(holder.kv.lease) != self.nodes[claim.node].lease
            || here.any(|other| matches!(&other.granted, Some((_, _, k, c)) if k == key && *c == created))
    }

    /// What of the name should be taken soon: a contender of a live manager that holds the lock by the rule, but is no
    /// hold of it; or the longest waiting ticket, if the holders leave room for every ticket that waits.
    pub(super) fn is_due(&self, name: usize) -> Option<Due> {
        let leases: Vec<LeaseId> = self.nodes.iter().filter_map(|node| node.lease).collect();
        let open = self.truth.open.iter().map(|ticket| (ticket, &self.truth.claims[ticket]));
        let open: Vec<_> = open.filter(|(_, claim)| claim.name == self.names[name]).collect();
        let is_held = |it: &ObservedContender| {
            open.iter().any(|(_, claim)| {
                matches!(&claim.granted, Some((_, _, key, token)) if *key == it.key && *token == it.created)
            })
        };
        let queue = self.truth.queues.get(name).and_then(|queues| queues.last());
        let queue = queue.map(|queue| &queue.contenders[..]).unwrap_or_default();
        let parts: Vec<Part> = queue.iter().map(|it| Part::of_key(&it.key)).collect();
        let holders = (1..=parts.len()).take_while(|&first| may_hold_together(&parts[..first])).count();
        let idle = queue[..holders].iter().find(|it| leases.contains(&it.lease) && !is_held(it));
        if let Some(idle) = idle {
            return Some(Due::Contender(idle.key.clone(), idle.created));
        }
        let held: Vec<Part> = open.iter().filter(|(_, claim)| claim.granted.is_some()).map(part).collect();
        let waiting = || open.iter().filter(|(_, claim)| claim.granted.is_none());
        let room = waiting().all(|it| may_hold_together(&[&held[..], &[part(it)]].concat()));
        if !room || !queue.iter().all(|it| leases.contains(&it.lease)) {
            return None;
        }
        let &(&longest, _) = waiting().min_by_key(|(_, claim)| claim.asked)?;
        // Whoever waits gets a free lock.
        Some(Due::Waiting((!held.is_empty()).then_some(longest)))
    }
}

fn part((_, claim): &(&Ticket, &Claim)) -> Part {
    Part::of_mode(claim.mode)
}

/// What should be taken soon; see [`World::is_due`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Contender(Key, Revision),
    /// The ticket that has waited longest beside holders; `None`: there is no holder.
    Waiting(Option<Ticket>),
}
