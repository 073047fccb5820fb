//! The faults of a seed.

use std::time::Duration;

use super::checks::Deleted;
use super::network::Link;
use super::node::new_protocol;
use super::reading::{keys_within, sessions};
use super::world::{Event, World};
use crate::kv::{Key, LeaseId, Op, Request, Span, Txn};
use crate::store::memory::model::Space;

/// A fault, or its end.
#[derive(Clone, Debug)]
pub(super) enum InjectedFault {
    /// The network between the manager and the store changes.
    Link {
        node: usize,
        link: Link,
    },
    /// The watch stream ends, and the manager notices.
    BreakStream(usize),
    /// The watch stream dies silently.
    StallStream(usize),
    /// The manager's process is stopped for this time.
    Pause(usize, Duration),
    /// The manager's machine sleeps for this time, which its timers do not count.
    Suspend(usize, Duration),
    /// The manager's clock jumps forward.
    Jump(usize, Duration),
    /// The manager's process is killed; a new one replaces it later.
    Crash(usize),
    Restart(usize),
    /// A caller's thread notices the deadline before the I/O thread has run.
    Expire(usize),
    /// An administrator revokes a lease.
    RevokeLease,
    /// An administrator deletes a contender's key.
    DeleteContender,
    /// An administrator deletes all keys of a name at once.
    DeleteName,
    DeleteSessionKey,
    /// A new leader starts every lease anew. The old leader may answer renewals for a while.
    LeaderChange,
    StaleMemberGone,
    /// The cluster is restored from a backup of this moment, so its terms restart.
    TermBack,
    Compact,
    /// The store is out of space. `applied`: it reports so only after executing the request that it refuses.
    Full {
        applied: bool,
    },
    NotFull,
    /// The managers have no permission for these keys.
    Deny(Span),
    Allow,
    /// A foreign contender joins a queue.
    Foreign,
}

impl World {
    pub(super) fn inject(&mut self, fault: InjectedFault) {
        self.tally.faults += 1;
        self.disturbed = self.now;
        self.note(|| format!("fault: {fault:?}"));
        match fault {
            InjectedFault::Link { node, link } => {
                let before = self.nodes[node].link;
                self.nodes[node].link = link;
                if link.is_bad() {
                    let after = self.below(self.ttl * 2);
                    let healed = Link { unreliable: before.unreliable, ..Link::default() };
                    self.schedule(after, Event::Fault(InjectedFault::Link { node, link: healed }));
                }
            }
            InjectedFault::BreakStream(node) => self.break_stream(node),
            InjectedFault::StallStream(node) => self.stall(node),
            // Inputs are delayed to the end of the pause in their order, so a pause is never shortened.
            InjectedFault::Pause(node, pause) => {
                self.nodes[node].paused_until = self.nodes[node].paused_until.max(self.now + pause);
            }
            InjectedFault::Suspend(node, pause) => {
                let until = self.nodes[node].paused_until.max(self.now + pause);
                let it = &mut self.nodes[node];
                (it.paused_until, it.overslept) = (until, self.now + pause * 2);
            }
            InjectedFault::Jump(node, forward) => {
                let it = &mut self.nodes[node];
                it.jumped += forward;
                it.jumped_at = self.now;
            }
            InjectedFault::Crash(node) => self.crash(node),
            InjectedFault::Restart(node) => self.start(node),
            InjectedFault::Expire(node) => {
                let local = self.local(node);
                let it = &mut self.nodes[node];
                it.expiry_seen |= it.deadline.is_some_and(|deadline| local >= deadline);
            }
            InjectedFault::RevokeLease => self.revoke_some_lease(),
            InjectedFault::DeleteContender => self.delete_some(false),
            InjectedFault::DeleteName => self.delete_name(),
            InjectedFault::DeleteSessionKey => self.delete_some(true),
            InjectedFault::LeaderChange => self.change_leader(),
            InjectedFault::StaleMemberGone => self.stale_term = None,
            InjectedFault::TermBack => self.reset_term(),
            InjectedFault::Compact => {
                let _ = self.model.compact(self.model.revision());
            }
            InjectedFault::Full { applied } => {
                self.model.set_space(if applied { Space::FoundOutAfterwards } else { Space::Full });
                self.checks.may_refuse = true;
                let after = self.below(self.ttl);
                self.schedule(after, Event::Fault(InjectedFault::NotFull));
            }
            InjectedFault::NotFull => self.model.set_space(Space::Enough),
            InjectedFault::Deny(span) => {
                self.model.deny(Some(span));
                self.checks.may_refuse = true;
                self.denied = true;
                let after = self.below(self.ttl);
                self.schedule(after, Event::Fault(InjectedFault::Allow));
            }
            InjectedFault::Allow => {
                self.model.deny(None);
                self.denied = false;
            }
            InjectedFault::Foreign => self.add_foreign(),
        }
    }

    /// As a restore from a backup does.
    fn reset_term(&mut self) {
        self.term = 1;
        self.stale_term = None;
        self.model.set_term(self.term);
        self.model.extend_all_leases(self.now);
        for node in 0..self.nodes.len() {
            self.nodes[node].seen_term = 0;
            self.break_stream(node);
        }
    }

    /// Ends all faults, and injects no new ones.
    pub(super) fn wind_down(&mut self) {
        self.note(|| "the faults stop".into());
        self.winding_down = true;
        self.drop_faults();
        self.model.set_space(Space::Enough);
        self.model.deny(None);
        self.denied = false;
        self.stale_term = None;
        for node in 0..self.nodes.len() {
            self.nodes[node].link = Link::default();
        }
    }

    fn crash(&mut self, node: usize) {
        self.checks.forget_manager(node);
        self.truth.forget_manager(node);
        self.forget_manager(node);
        self.forget_workers(node);
        let mut rng = self.rng.fork();
        let ttl = self.ttl;
        let it = &mut self.nodes[node];
        it.life += 1;
        it.protocol = new_protocol(&mut rng, ttl);
        it.deadline = None;
        it.expiry_seen = false;
        it.lease = None;
        it.seen_term = 0;
        let after = self.below(self.ttl);
        self.schedule(after, Event::Fault(InjectedFault::Restart(node)));
    }

    fn revoke_some_lease(&mut self) {
        let leases: Vec<LeaseId> = self.nodes.iter().filter_map(|node| node.lease).collect();
        if let Some(&lease) = self.rng.choice(&leases) {
            self.checks.forfeit(self.now, Deleted::Lease(lease), &self.model);
            let _ = self.model.execute(self.now, &Request::RevokeLease { lease });
        }
    }

    fn delete_some(&mut self, session: bool) {
        let prefix = super::world::root().as_str().to_owned();
        let contenders = Span::Between(Key::from(format!("{prefix}/a")), Key::from(format!("{prefix}/e")));
        let keys = self.keys(if session { sessions() } else { contenders });
        if let Some(key) = self.rng.choice(&keys).cloned() {
            self.checks.forfeit(self.now, Deleted::Key(key.clone()), &self.model);
            let _ = self.model.execute(self.now, &Request::Delete { key });
        }
    }

    fn delete_name(&mut self) {
        let name = self.names[self.rng.usize(..self.names.len())].clone();
        let keys = self.keys(name.contenders());
        for key in &keys {
            self.checks.forfeit(self.now, Deleted::Key(key.clone()), &self.model);
        }
        let then = keys.into_iter().map(|key| Op::Delete { key }).collect();
        let _ = self.model.execute(self.now, &Request::Txn(Txn { then, ..Txn::default() }));
    }

    pub(super) fn keys(&self, span: Span) -> Vec<Key> {
        keys_within(&self.model, span).into_iter().map(|kv| kv.key).collect()
    }

    fn change_leader(&mut self) {
        self.term += 1;
        self.model.set_term(self.term);
        self.model.extend_all_leases(self.now);
        if self.rng.bool() {
            self.stale_term = Some(self.term - 1);
            let after = self.below(self.ttl);
            self.schedule(after, Event::Fault(InjectedFault::StaleMemberGone));
        }
    }
}
