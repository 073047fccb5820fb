//! Whether the answers are true (P9): each is compared with what the store and the manager's own threads had in the
//! time of the call.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::checks::Violation;
use super::liveness::SETTLED;
use super::world::World;
use crate::clock::Time;
use crate::error::LossReason;
use crate::kv::{Key, LeaseId, Order, Range, Revision};
use crate::name::LockName;
use crate::protocol::{CurrentHolder, HoldId, Refusal, ReleaseFailure, Ticket};

/// A wait of this length, in weather without faults, was long enough for every answer that it depends on.
const ANSWERED: Duration = Duration::from_millis(150);

/// Everything that was so at some time. Two things of one instant are told apart by their stamps.
#[derive(Debug, Default)]
pub(super) struct Truth {
    stamp: u64,
    claims: BTreeMap<Ticket, Claim>,
    /// Those that have not ended.
    standing: BTreeSet<Ticket>,
    holds: BTreeMap<(usize, HoldId), Vec<Ticket>>,
    /// For each name, every queue that etcd had, from its stamp to that of the next.
    queues: Vec<Vec<ObservedQueue>>,
    /// The store's revision that the last queues are of.
    revision: Revision,
    /// Which manager deleted a contender; `None`: somebody else, or the end of its lease.
    gone: BTreeMap<(Key, Revision), Option<usize>>,
    /// When it was said last that a key is gone for good.
    gone_for_good: BTreeMap<Key, u64>,
    /// When a manager's session ended last.
    session_over: BTreeMap<usize, u64>,
    /// Confirmations that blame the loss of the session: it must be over by the end of the turn.
    blamed: Vec<(usize, Ticket)>,
}

/// What a ticket had.
#[derive(Debug)]
struct Claim {
    node: usize,
    name: LockName,
    try_only: bool,
    asked: u64,
    asked_at: Time,
    granted: Option<(u64, HoldId, Key, Revision)>,
    /// Left, refused, or over.
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
        name: &LockName,
        try_only: bool,
        asked_at: Time,
    ) {
        let asked = self.stamp();
        let name = name.clone();
        let claim = Claim { node, name, try_only, asked, asked_at, granted: None, ended: None, lost: false };
        self.claims.insert(ticket, claim);
        self.standing.insert(ticket);
    }

    /// The caller gave up, or its guard is gone.
    pub(super) fn ended(&mut self, ticket: Ticket) {
        let stamp = self.stamp();
        self.standing.remove(&ticket);
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

    /// A manager's session is over, and with it all its holds.
    pub(super) fn session_over(&mut self, node: usize) {
        let holds = self.holds.keys().filter(|(holder, _)| *holder == node);
        for (_, hold) in holds.copied().collect::<Vec<_>>() {
            self.hold_over(node, hold, true);
        }
        let stamp = self.stamp();
        self.session_over.insert(node, stamp);
    }

    /// The process died: what its tickets had ended, and its hold ids mean nothing to the next.
    pub(super) fn forget_manager(&mut self, node: usize) {
        let stamp = self.stamp();
        for claim in self.claims.values_mut().filter(|claim| claim.node == node) {
            claim.ended.get_or_insert(stamp);
            claim.node = usize::MAX;
        }
        let claims = &self.claims;
        self.standing.retain(|ticket| claims[ticket].node != usize::MAX);
        self.holds.retain(|(holder, _), _| *holder != node);
    }

    /// The claims of the manager on the name that stood at some time since `since`, but for the ticket's own.
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

    /// The queues that etcd had for the name at some time since `since`.
    fn queues(&self, name: usize, since: u64) -> &[ObservedQueue] {
        let queues = self.queues.get(name).map(Vec::as_slice).unwrap_or_default();
        let first = queues.partition_point(|queue| queue.stamp <= since).saturating_sub(1);
        &queues[first..]
    }
}

impl Claim {
    /// It is a place in the queue, or a hold. A try that waits for its answer is neither.
    fn is_in_the_way(&self) -> bool {
        !self.try_only || self.granted.is_some()
    }
}

impl World {
    /// Takes down what changed in the store; `by` which manager's request, sent at which stamp.
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
                self.truth.gone.insert((gone.key.clone(), gone.created), by);
            }
            if let Some((_, sent)) = by {
                let new = contenders.iter().filter(|contender| !before.contains(contender));
                let mut new = new.filter_map(|new| Some((new, *self.truth.gone_for_good.get(&new.key)?)));
                if let Some((new, _)) = new.find(|&(_, said)| said > sent) {
                    return Err(Violation::new(format!(
                        "P6: {} was said to be gone, and comes back",
                        new.key
                    )));
                }
            }
            self.truth.queues[name].push(ObservedQueue { stamp, contenders });
        }
        Ok(())
    }

    fn contenders(&self, name: &LockName) -> Vec<ObservedContender> {
        let range = Range {
            span: name.contenders(),
            order: Order::OldestFirst,
            limit: 0,
            max_create_revision: 0,
            at_revision: 0,
            keys_only: true,
        };
        let found = self.model.read(&range).unwrap_or_default().kvs.into_iter();
        found
            .map(|kv| ObservedContender { key: kv.key, created: kv.create_revision, lease: kv.lease })
            .collect()
    }

    /// P9: what the refusal says was so at some time of the call.
    pub(super) fn check_refusal_true(&self, ticket: Ticket, refusal: &Refusal) -> Result<(), Violation> {
        let Some(claim) = self.truth.claims.get(&ticket) else {
            return Ok(());
        };
        let (since, node) = (claim.asked, claim.node);
        let kept_out = self.was_kept_out(ticket, claim);
        // Whether there was time enough, and no fault, so that the manager knows all of it.
        let waited = self.now.since(claim.asked_at);
        let late = self.nodes[node].turns.lateness * 5;
        let knows = self.calm_for() > waited + SETTLED && waited > ANSWERED + late;
        let true_so_far = match refusal {
            Refusal::Held => kept_out,
            Refusal::Timeout { holder: Some(holder), .. } | Refusal::AlreadyHeld { holder: Some(holder) } => {
                self.was_holder(ticket, claim, holder)
            }
            Refusal::Timeout { holder: None, .. } | Refusal::AlreadyHeld { holder: None } => kept_out,
            // A wait that ends right after another thread's release, before etcd has said who is next, knows nothing: too
            // careful, but no lie about etcd's contenders.
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

    /// Somebody else had the lock or a place in its queue at some time of the call. A key of this manager's session counts
    /// only for the ticket whose it is.
    fn was_kept_out(&self, ticket: Ticket, claim: &Claim) -> bool {
        let mine = self.nodes[claim.node].lease;
        let mut here = self.truth.others(claim.node, &claim.name, ticket, claim.asked);
        let mut there = self.truth.queues(self.index_of(&claim.name), claim.asked).iter();
        here.any(Claim::is_in_the_way)
            || there.any(|queue| queue.contenders.iter().any(|contender| Some(contender.lease) != mine))
    }

    /// The holder that was named was the first at some time of the call, and if it is of this manager, for a ticket.
    fn was_holder(&self, ticket: Ticket, claim: &Claim, holder: &CurrentHolder) -> bool {
        let (key, created) = (&holder.kv.key, holder.kv.create_revision);
        let is_it = |contender: &ObservedContender| contender.key == *key && contender.created == created;
        let mut there = self.truth.queues(self.index_of(&claim.name), claim.asked).iter();
        // Where reads may be stale, so may be the holder's name.
        if !there.any(|queue| queue.contenders.first().is_some_and(is_it)) {
            return self.weather.stale_reads;
        }
        let mut here = self.truth.others(claim.node, &claim.name, ticket, claim.asked);
        Some(holder.kv.lease) != self.nodes[claim.node].lease
            || here.any(|other| matches!(&other.granted, Some((_, _, k, c)) if k == key && *c == created))
    }

    /// P9: a release that is confirmed has taken place, and one that failed had its reason.
    pub(super) fn check_confirmed(
        &mut self,
        node: usize,
        ticket: Ticket,
        result: &Result<(), ReleaseFailure>,
    ) -> Result<(), Violation> {
        let stamp = self.truth.stamp();
        let Some(claim) = self.truth.claims.get(&ticket) else {
            return Ok(());
        };
        // The driver knows that it was lost, and tells its caller so whatever comes here.
        let Some((_, hold, key, token)) = claim.granted.clone().filter(|_| !claim.lost) else {
            return Ok(());
        };
        let contender = |other: &ObservedContender| other.key == key && other.created == token;
        let there = self.contenders(&claim.name).iter().any(contender);
        let sharing = self.truth.holds.get(&(node, hold)).into_iter().flatten();
        let shared = sharing.into_iter().any(|other| self.truth.standing.contains(other));
        let fits = match result {
            Ok(()) if shared => true,
            Ok(()) => {
                self.truth.gone_for_good.insert(key.clone(), stamp);
                !there
            }
            Err(ReleaseFailure::NotHeld) => {
                let gone = self.truth.gone.get(&(key.clone(), token));
                !there && gone.is_some_and(|by| *by != Some(node))
            }
            Err(ReleaseFailure::Lost(_)) => {
                self.truth.blamed.push((node, ticket));
                true
            }
            Err(ReleaseFailure::Failed(_)) => self.checks.was_full,
        };
        if fits {
            return Ok(());
        }
        let by = self.truth.gone.get(&(key.clone(), token));
        Err(Violation::new(format!(
            "P9: the release of {ticket:?} ({key}) by manager {node} is confirmed as {result:?}; there: {there}, gone by: {by:?}"
        )))
    }

    /// P9: a hold was force-unlocked only if its key was deleted.
    pub(super) fn check_loss_true(
        &self,
        node: usize,
        hold: HoldId,
        lost: Option<LossReason>,
    ) -> Result<(), Violation> {
        let tickets = self.truth.holds.get(&(node, hold)).into_iter().flatten();
        let mut granted = tickets.filter_map(|ticket| self.truth.claims[ticket].granted.clone());
        match granted.find(|(_, _, key, token)| !self.truth.gone.contains_key(&(key.clone(), *token))) {
            Some((.., key, _)) if lost == Some(LossReason::ForceUnlocked) => {
                Err(Violation::new(format!("P9: {key} of manager {node} is told to be deleted, and stands")))
            }
            _ => Ok(()),
        }
    }

    /// At the end of a turn: whoever was told that the session is over was told so rightly.
    pub(super) fn check_blamed(&mut self) -> Result<(), Violation> {
        for (node, ticket) in std::mem::take(&mut self.truth.blamed) {
            let granted = self.truth.claims.get(&ticket).and_then(|claim| claim.granted.as_ref());
            let over = self.truth.session_over.get(&node);
            if over.is_none_or(|&over| granted.is_some_and(|&(granted, ..)| granted > over)) {
                return Err(Violation::new(format!(
                    "P9: {ticket:?} was lost with its session, which stands"
                )));
            }
        }
        Ok(())
    }

    /// Somebody waits for the name, and nobody has it, nor a key in its queue that no live manager looks after.
    pub(super) fn is_free_and_wanted(&self, name: usize) -> bool {
        let leases: Vec<LeaseId> = self.nodes.iter().filter_map(|node| node.lease).collect();
        let mut wanted = false;
        for claim in self.truth.standing.iter().map(|ticket| &self.truth.claims[ticket]) {
            if claim.name == self.names[name] {
                if claim.granted.is_some() {
                    return false;
                }
                wanted = true;
            }
        }
        let queue = self.truth.queues.get(name).and_then(|queues| queues.last());
        wanted && queue.is_none_or(|queue| queue.contenders.iter().all(|it| leases.contains(&it.lease)))
    }
}
