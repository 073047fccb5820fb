//! The promises that must hold under every fault.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::reading::{everything, keys_within, sessions};
use super::rule::{Part, is_holder, may_hold_together};
use super::world::World;
use crate::clock::Time;
use crate::kv::{Key, LeaseId, Revision, Span};
use crate::mode::Mode;
use crate::name::LockName;
use crate::protocol::{HoldId, Refusal, Ticket, WaitLimits};
use crate::store::memory::model::Model;

/// After its time limit, a ticket is answered within this grace.
const ANSWER_GRACE: Duration = Duration::from_millis(31);

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Violation(String);

impl Violation {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The current holds and waits of all managers, and the holds that an administrator ended.
#[derive(Debug, Default)]
pub(super) struct Checks {
    holds: BTreeMap<(usize, HoldId), GrantedHold>,
    asked: BTreeMap<Ticket, Asked>,
    last_token: BTreeMap<String, LastTokens>,
    /// Keys that an administrator deleted, and when.
    taken: BTreeMap<Key, Time>,
    /// When the store executed the request whose answer the manager is handling.
    pub(super) handling_as_of: Time,
    /// The store was full, or denied access, at some time, so callers may get such refusals.
    pub(super) may_refuse: bool,
    /// The store's revision at the last check of the holds.
    checked: Revision,
}

/// The greatest tokens of a name so far.
#[derive(Clone, Copy, Debug, Default)]
struct LastTokens {
    of_writers: Revision,
    of_all: Revision,
}

#[derive(Debug)]
struct GrantedHold {
    name: LockName,
    part: Part,
    key: Key,
    token: Revision,
    worker: usize,
    /// An administrator ended this hold; the manager learns of it only afterwards.
    forfeited: bool,
}

#[derive(Debug)]
struct Asked {
    node: usize,
    worker: usize,
    name: LockName,
    part: Part,
    limits: WaitLimits,
    at: Time,
    abandoned: bool,
}

/// The lease or the key that an administrator deletes.
pub(super) enum Deleted {
    Lease(LeaseId),
    Key(Key),
}

impl Checks {
    pub(super) fn asked(
        &mut self,
        ticket: Ticket,
        node: usize,
        worker: usize,
        (name, mode): (&LockName, Mode),
        limits: WaitLimits,
        at: Time,
    ) {
        let (name, part) = (name.clone(), Part::of_mode(mode));
        self.asked.insert(ticket, Asked { node, worker, name, part, limits, at, abandoned: false });
    }

    pub(super) fn abandoned(&mut self, ticket: Ticket) {
        if let Some(asked) = self.asked.get_mut(&ticket) {
            asked.abandoned = true;
        }
    }

    /// An administrator is about to delete this.
    pub(super) fn forfeit(&mut self, now: Time, deleted: Deleted, model: &Model) {
        let keys: Vec<Key> = match deleted {
            Deleted::Key(key) => vec![key],
            Deleted::Lease(lease) => keys_of(model, lease),
        };
        for key in keys {
            for held in self.holds.values_mut().filter(|held| held.key == key) {
                held.forfeited = true;
            }
            self.taken.insert(key, now);
        }
    }

    /// An administrator may have deleted the key that stood for it: it has to queue again, behind others.
    fn lost_its_place(&self, asked: &Asked) -> bool {
        let prefix = match asked.name.contenders() {
            Span::Prefix(prefix) => prefix,
            other => unreachable!("{other:?}"),
        };
        let of_name = |key: &Key| key.as_bytes().starts_with(prefix.as_bytes());
        self.taken.iter().any(|(key, at)| *at >= asked.at && of_name(key))
    }

    /// Ends all holds of the manager, and returns their number.
    pub(super) fn session_down(&mut self, node: usize) -> u64 {
        let before = self.holds.len();
        self.holds.retain(|(holder, _), _| *holder != node);
        (before - self.holds.len()) as u64
    }

    /// Drops the holds and waits of a manager that died.
    pub(super) fn forget_manager(&mut self, node: usize) {
        self.holds.retain(|(holder, _), _| *holder != node);
        self.asked.retain(|_, asked| asked.node != node);
    }
}

fn keys_of(model: &Model, lease: LeaseId) -> Vec<Key> {
    keys_within(model, everything()).into_iter().filter(|kv| kv.lease == lease).map(|kv| kv.key).collect()
}

impl World {
    /// P1, P3, P4: a grant goes to a contender in etcd for which all earlier ones leave room, and to a waiter in the
    /// process for which all earlier ones leave room.
    pub(super) fn check_grant(
        &mut self,
        node: usize,
        ticket: Ticket,
        hold: HoldId,
        name: &LockName,
        key: Key,
        token: Revision,
    ) -> Result<(), Violation> {
        let Some(asked) = self.checks.asked.remove(&ticket) else {
            return Err(Violation::new(format!("{ticket:?} is granted without having asked")));
        };
        if let Some(held) = self.checks.holds.get(&(node, hold)) {
            if held.worker == asked.worker && held.token == token {
                return Ok(());
            }
            return Err(Violation::new(format!("{hold:?} of thread {} is shared with another", held.worker)));
        }
        self.check_local_order(node, &asked)?;
        // An administrator deleted the key while the answer was in transit: the manager learns of it afterwards.
        let taken = self.checks.taken.get(&key).is_some_and(|&at| at >= self.checks.handling_as_of);
        // Or the deadline passed before the manager's thread could deliver the grant: its guard is expired from the
        // start.
        let taken = taken || !self.is_assured(node);
        if !taken {
            let queue = keys_within(&self.model, name.contenders());
            if !is_holder(&queue, &key, token) {
                let queue: Vec<_> = queue.iter().map(|kv| (&kv.key, kv.create_revision)).collect();
                return Err(Violation::new(format!(
                    "P1: {key} is granted, but the contenders are {queue:?}"
                )));
            }
            let last = self.checks.last_token.entry(name.as_str().to_owned()).or_default();
            let earlier = if asked.part == Part::Writer { last.of_all } else { last.of_writers };
            if token <= earlier {
                return Err(Violation::new(format!("P4: token {token} of {name:?} after {last:?}")));
            }
            last.of_all = last.of_all.max(token);
            if asked.part == Part::Writer {
                last.of_writers = token;
            }
        }
        let (name, part, worker) = (name.clone(), asked.part, asked.worker);
        let held = GrantedHold { name: name.clone(), part, key, token, worker, forfeited: taken };
        self.checks.holds.insert((node, hold), held);
        self.check_held_together(&name)
    }

    /// P1: those who hold the lock now may hold it together.
    fn check_held_together(&self, name: &LockName) -> Result<(), Violation> {
        let holds = self.checks.holds.iter();
        let assured =
            holds.filter(|((node, _), held)| held.name == *name && !held.forfeited && self.is_assured(*node));
        let parts: Vec<Part> = assured.map(|(_, held)| held.part).collect();
        if may_hold_together(&parts) {
            return Ok(());
        }
        Err(Violation::new(format!("P1: {name:?} is held by {parts:?}")))
    }

    /// Whether a guard of this manager that reads the clock now reports that it holds the lock.
    fn is_assured(&self, node: usize) -> bool {
        let it = &self.nodes[node];
        !it.expiry_seen && it.deadline.is_some_and(|deadline| self.local(node) < deadline)
    }

    fn check_local_order(&self, node: usize, granted: &Asked) -> Result<(), Violation> {
        let local = self.local(node);
        let waiting = self.checks.asked.iter().filter(|(_, other)| {
            let limit = [other.limits.deadline, other.limits.budget].into_iter().flatten().min();
            other.node == node
                && other.name == granted.name
                && other.worker != granted.worker
                && other.at < granted.at
                && !other.abandoned
                && limit.is_none_or(|limit| local < limit)
                && !self.checks.lost_its_place(other)
        });
        let earlier: Vec<_> = waiting.map(|(ticket, other)| (*ticket, other.part)).collect();
        let parts: Vec<Part> = earlier.iter().map(|&(_, part)| part).chain([granted.part]).collect();
        if may_hold_together(&parts) {
            return Ok(());
        }
        let granted = granted.part;
        Err(Violation::new(format!("P3: {earlier:?} asked before {granted:?} and are still waiting")))
    }

    /// P1 and P2: every hold's key stands in the store, and the earlier contenders leave room for it, unless an
    /// administrator deleted it.
    pub(super) fn check_holds(&mut self) -> Result<(), Violation> {
        // Between revisions holds only end by themselves, and each new grant is checked separately.
        let revision = self.model.revision();
        if std::mem::replace(&mut self.checks.checked, revision) == revision {
            return Ok(());
        }
        for (&(node, hold), held) in &self.checks.holds {
            if !self.is_assured(node) || held.forfeited {
                continue;
            }
            let queue = keys_within(&self.model, held.name.contenders());
            if !is_holder(&queue, &held.key, held.token) {
                return Err(Violation::new(format!(
                    "P2: manager {node} reports {hold:?} of {}, which does not hold the lock in the store",
                    held.key
                )));
            }
        }
        Ok(())
    }

    /// P5: a session whose deadline has passed for the callers is not extended.
    pub(super) fn check_extension(&self, node: usize) -> Result<(), Violation> {
        match self.nodes[node].deadline {
            Some(deadline) if self.nodes[node].turns.began >= deadline => Err(Violation::new(format!(
                "P5: the session of manager {node} is extended after its deadline"
            ))),
            _ => Ok(()),
        }
    }

    /// P5: a hold ends exactly once.
    pub(super) fn check_end(&mut self, node: usize, hold: HoldId) -> Result<(), Violation> {
        match self.checks.holds.remove(&(node, hold)) {
            Some(_) => Ok(()),
            None => {
                Err(Violation::new(format!("P5: {hold:?} of manager {node} ends, but it is not current")))
            }
        }
    }

    /// P7: a refusal has its reason, and arrives in time.
    pub(super) fn check_refusal(
        &mut self,
        node: usize,
        ticket: Ticket,
        refusal: &Refusal,
    ) -> Result<(), Violation> {
        let Some(asked) = self.checks.asked.remove(&ticket) else {
            return Err(Violation::new(format!("{ticket:?} is refused without having asked")));
        };
        let local = self.local(node);
        let limit = [asked.limits.deadline, asked.limits.budget].into_iter().flatten().min();
        let due = limit.is_some_and(|limit| limit <= local);
        let fits = match refusal {
            Refusal::Held => asked.limits.try_only,
            Refusal::Timeout { .. } => due && asked.limits.deadline == limit,
            Refusal::AlreadyHeld { .. } => due && asked.limits.budget == limit,
            Refusal::Unavailable(_) => due,
            Refusal::Cancelled => asked.abandoned,
            Refusal::Failed(_) => self.checks.may_refuse,
            Refusal::Closed => self.nodes[node].closed || self.winding_down,
        };
        if !fits {
            return Err(Violation::new(format!("{ticket:?} ({asked:?}) is refused for {refusal:?}")));
        }
        let it = &self.nodes[node];
        let paused = it.paused_until.max(it.overslept).max(it.jumped_at) > asked.at;
        let late = self.nodes[node].turns.lateness * 5;
        let latest = limit.map(|limit| limit + ANSWER_GRACE + late);
        if !paused && latest.is_some_and(|latest| local > latest) {
            return Err(Violation::new(format!(
                "P7: {ticket:?} is answered {:?} late",
                local.since(latest.unwrap_or_default())
            )));
        }
        Ok(())
    }

    /// P6: without holds and waits there are no contenders, and no leases except those of the sessions.
    pub(super) fn check_nothing_left(&self) -> Result<(), Violation> {
        let keys = keys_within(&self.model, everything()).into_iter().map(|kv| kv.key);
        let stray: Vec<Key> = keys.filter(|key| !sessions().contains(key)).collect();
        if !stray.is_empty() {
            return Err(Violation::new(format!("P6: {stray:?} left behind")));
        }
        let known: Vec<LeaseId> = self.nodes.iter().filter_map(|node| node.lease).collect();
        let leaked: Vec<LeaseId> = self.model.leases().filter(|lease| !known.contains(lease)).collect();
        if !leaked.is_empty() {
            return Err(Violation::new(format!("P6: leases {leaked:x?} left behind")));
        }
        match self.nodes.iter().enumerate().find(|(_, node)| !node.protocol.is_idle()) {
            Some((node, _)) => Err(Violation::new(format!("P6: manager {node} still has a queue"))),
            None => Ok(()),
        }
    }

    pub(super) fn check_all_closed(&self) -> Result<(), Violation> {
        let open = self.nodes.iter().filter(|node| !node.closed).count();
        let keys: Vec<Key> = keys_within(&self.model, everything()).into_iter().map(|kv| kv.key).collect();
        let leases = self.model.leases().count();
        if open > 0 || !keys.is_empty() || leases > 0 {
            return Err(Violation::new(format!(
                "P6: after closing, {open} managers are open, {leases} leases and {keys:?} remain"
            )));
        }
        Ok(())
    }
}
