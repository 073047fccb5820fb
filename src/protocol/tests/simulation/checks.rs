//! What must hold, whatever happens.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::world::{World, root};
use crate::clock::Time;
use crate::kv::{Key, LeaseId, Order, Range, Revision, Span};
use crate::name::LockName;
use crate::protocol::{HoldId, Refusal, Ticket, WaitLimits};
use crate::store::memory::model::Model;

/// A ticket that gave up is answered within the grace for its farewell.
const ANSWER_GRACE: Duration = Duration::from_millis(31);

/// A promise that was broken.
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

/// What is believed, asked and forfeited at the moment.
#[derive(Debug, Default)]
pub(super) struct Checks {
    holds: BTreeMap<(usize, HoldId), GrantedHold>,
    asked: BTreeMap<Ticket, Asked>,
    last_token: BTreeMap<String, Revision>,
    /// Keys that an administrator took away, and when.
    taken: BTreeMap<Key, Time>,
    /// When the store carried out what the manager hears about right now.
    pub(super) hearing_as_of: Time,
    /// The store was full at some time, so refusals for that are fine.
    pub(super) was_full: bool,
    /// The store's revision at the last check of what is believed.
    checked: Revision,
}

#[derive(Debug)]
struct GrantedHold {
    name: LockName,
    key: Key,
    token: Revision,
    worker: usize,
    /// An administrator took it; the manager is told after the fact.
    forfeited: bool,
}

#[derive(Debug)]
struct Asked {
    node: usize,
    worker: usize,
    name: LockName,
    limits: WaitLimits,
    at: Time,
    abandoned: bool,
}

/// What an administrator takes away.
pub(super) mod forfeit_reason {
    use crate::kv::{Key, LeaseId};

    pub(in super::super) enum Taken {
        Lease(LeaseId),
        Key(Key),
    }

    pub(in super::super) fn lease(lease: LeaseId) -> Taken {
        Taken::Lease(lease)
    }

    pub(in super::super) fn key(key: Key) -> Taken {
        Taken::Key(key)
    }
}

impl Checks {
    pub(super) fn asked(
        &mut self,
        ticket: Ticket,
        node: usize,
        worker: usize,
        name: &LockName,
        limits: WaitLimits,
        at: Time,
    ) {
        self.asked.insert(ticket, Asked { node, worker, name: name.clone(), limits, at, abandoned: false });
    }

    pub(super) fn abandoned(&mut self, ticket: Ticket) {
        if let Some(asked) = self.asked.get_mut(&ticket) {
            asked.abandoned = true;
        }
    }

    /// An administrator is about to take this away.
    pub(super) fn forfeit(&mut self, now: Time, taken: forfeit_reason::Taken, model: &Model) {
        let keys: Vec<Key> = match taken {
            forfeit_reason::Taken::Key(key) => vec![key],
            forfeit_reason::Taken::Lease(lease) => keys_of(model, lease),
        };
        for key in keys {
            for held in self.holds.values_mut().filter(|held| held.key == key) {
                held.forfeited = true;
            }
            self.taken.insert(key, now);
        }
    }

    /// All holds of the manager are over; returns how many.
    pub(super) fn session_down(&mut self, node: usize) -> u64 {
        let before = self.holds.len();
        self.holds.retain(|(holder, _), _| *holder != node);
        (before - self.holds.len()) as u64
    }

    /// Nobody of a manager that died believes anything any more.
    pub(super) fn forget_manager(&mut self, node: usize) {
        self.holds.retain(|(holder, _), _| *holder != node);
        self.asked.retain(|_, asked| asked.node != node);
    }
}

fn all(model: &Model, span: Span) -> Vec<crate::kv::KeyValue> {
    let range = Range {
        span,
        order: Order::OldestFirst,
        limit: 0,
        max_create_revision: 0,
        at_revision: 0,
        keys_only: true,
    };
    model.read(&range).map(|found| found.kvs).unwrap_or_default()
}

fn everything() -> Span {
    Span::Prefix(Key::from(format!("{}/", root().as_str())))
}

fn keys_of(model: &Model, lease: LeaseId) -> Vec<Key> {
    all(model, everything()).into_iter().filter(|kv| kv.lease == lease).map(|kv| kv.key).collect()
}

impl World {
    /// P1, P3, P4: the grant goes to the first in the queue of etcd, and to the first in the local one.
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
        // Taken by an administrator while the answer was on its way: the manager is told after the fact.
        let taken = self.checks.taken.get(&key).is_some_and(|&at| at >= self.checks.hearing_as_of);
        // Or its time ran out while the manager's thread was on its way to say so: to its guard it is over from the start.
        let taken = taken || !self.is_assured(node);
        if !taken {
            let first = self.first(name);
            if first.as_ref() != Some(&(key.clone(), token)) {
                return Err(Violation::new(format!("P1: {key} is granted although {first:?} is first")));
            }
            let last = self.checks.last_token.entry(name.as_str().to_owned()).or_default();
            if token <= *last {
                return Err(Violation::new(format!("P4: token {token} of {name:?} after {last}")));
            }
            *last = token;
        }
        let held = GrantedHold { name: name.clone(), key, token, worker: asked.worker, forfeited: taken };
        self.checks.holds.insert((node, hold), held);
        Ok(())
    }

    /// Whether a guard of the manager that looks at the clock now believes that it holds.
    fn is_assured(&self, node: usize) -> bool {
        let it = &self.nodes[node];
        !it.seen_over && it.deadline.is_some_and(|deadline| self.local(node) < deadline)
    }

    fn check_local_order(&self, node: usize, granted: &Asked) -> Result<(), Violation> {
        let local = self.local(node);
        let overtaken = self.checks.asked.iter().find(|(_, other)| {
            let limit = [other.limits.deadline, other.limits.budget].into_iter().flatten().min();
            other.node == node
                && other.name == granted.name
                && other.worker != granted.worker
                && other.at < granted.at
                && !other.abandoned
                && limit.is_none_or(|limit| local < limit)
        });
        match overtaken {
            Some((ticket, _)) => Err(Violation::new(format!("P3: {ticket:?} came earlier and still waits"))),
            None => Ok(()),
        }
    }

    fn first(&self, name: &LockName) -> Option<(Key, Revision)> {
        let range = Range {
            span: name.contenders(),
            order: Order::OldestFirst,
            limit: 1,
            max_create_revision: 0,
            at_revision: 0,
            keys_only: true,
        };
        let found = self.model.read(&range).ok()?;
        found.kvs.into_iter().next().map(|kv| (kv.key, kv.create_revision))
    }

    /// P1 and P2: who believes to hold is first in the store, unless an administrator interfered.
    pub(super) fn check_holds(&mut self) -> Result<(), Violation> {
        // What is believed only shrinks by itself, and a grant is checked on its own.
        let revision = self.model.revision();
        if std::mem::replace(&mut self.checks.checked, revision) == revision {
            return Ok(());
        }
        for (&(node, hold), held) in &self.checks.holds {
            if !self.is_assured(node) || held.forfeited {
                continue;
            }
            let first = self.first(&held.name);
            if !first.is_some_and(|(first, created)| first == held.key && created == held.token) {
                return Err(Violation::new(format!(
                    "P2: manager {node} believes in {hold:?} of {}, but the store does not have it first",
                    held.key
                )));
            }
        }
        Ok(())
    }

    /// P5: what is over for everybody who looks at the clock is not extended.
    pub(super) fn check_extension(&self, node: usize) -> Result<(), Violation> {
        match self.nodes[node].deadline {
            Some(deadline) if self.nodes[node].turns.began >= deadline => Err(Violation::new(format!(
                "P5: the session of manager {node} is extended after its deadline"
            ))),
            _ => Ok(()),
        }
    }

    /// P5: a hold ends once, and nothing of it comes again.
    pub(super) fn check_end(&mut self, node: usize, hold: HoldId) -> Result<(), Violation> {
        match self.checks.holds.remove(&(node, hold)) {
            Some(_) => Ok(()),
            None => Err(Violation::new(format!("P5: {hold:?} of manager {node} ends but does not stand"))),
        }
    }

    /// P7: a refusal has its reason, and comes in time.
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
            Refusal::Failed(_) => self.checks.was_full,
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

    /// P6: nobody holds or waits, so there is no contender; and no lease but those of the sessions.
    pub(super) fn check_nothing_left(&self) -> Result<(), Violation> {
        let sessions = Key::from(format!("{}/~session/", root().as_str()));
        let stray: Vec<Key> = all(&self.model, everything())
            .into_iter()
            .map(|kv| kv.key)
            .filter(|key| !key.as_bytes().starts_with(sessions.as_bytes()))
            .collect();
        if !stray.is_empty() {
            return Err(Violation::new(format!("P6: {stray:?} left behind")));
        }
        let known: Vec<LeaseId> = self.nodes.iter().filter_map(|node| node.lease).collect();
        let leaked: Vec<LeaseId> = self.model.leases().filter(|lease| !known.contains(lease)).collect();
        if !leaked.is_empty() {
            return Err(Violation::new(format!("P6: leases {leaked:x?} left behind")));
        }
        match self.nodes.iter().enumerate().find(|(_, node)| !node.protocol.is_idle()) {
            Some((node, _)) => Err(Violation::new(format!("P6: manager {node} still keeps a queue"))),
            None => Ok(()),
        }
    }

    pub(super) fn check_all_closed(&self) -> Result<(), Violation> {
        let open = self.nodes.iter().filter(|node| !node.closed).count();
        let keys: Vec<Key> = all(&self.model, everything()).into_iter().map(|kv| kv.key).collect();
        let leases = self.model.leases().count();
        if open > 0 || !keys.is_empty() || leases > 0 {
            return Err(Violation::new(format!(
                "P6: after closing, {open} managers are open, {leases} leases and {keys:?} are there"
            )));
        }
        Ok(())
    }
}
