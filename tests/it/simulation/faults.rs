//! What goes wrong around the managers, by seed.

use std::time::Duration;

use super::checks::forfeit_reason;
use super::network::Link;
use super::node::new_protocol;
use super::world::{Event, TTL, World};
use crate::name::LockName;
use crate::store::{Answer, Compare, Field, Key, LeaseId, Op, Order, Range, Request, Span, Txn};

/// One thing that goes wrong, or gets well again.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// The manager's way to the store changes.
    Link {
        node: usize,
        link: Link,
    },
    /// The watch stream ends; the manager notices.
    BreakStream(usize),
    /// The watch stream dies in silence.
    StallStream(usize),
    /// The manager's process is stopped for a while.
    Pause(usize, Duration),
    /// The manager's process is killed; another takes its place later.
    Crash(usize),
    Restart(usize),
    /// A caller's thread sees the deadline pass before the I/O thread has run.
    Expire(usize),
    /// The holding threads ask once more.
    Reenter(usize),
    /// An administrator revokes somebody's lease.
    RevokeLease,
    /// An administrator deletes somebody's key.
    DeleteContender,
    /// An administrator deletes all keys of a name at once.
    DeleteName,
    DeleteSessionKey,
    /// A new leader: every lease starts anew. The old one may go on answering renewals for a while.
    LeaderChange,
    StaleMemberGone,
    Compact,
    Full(bool),
    /// A foreign contender comes.
    Foreign,
}

/// What can be planned to go wrong.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Cut,
    Slow,
    BreakStream,
    StallStream,
    Pause,
    Crash,
    Expire,
    Reenter,
    RevokeLease,
    DeleteContender,
    DeleteName,
    DeleteSessionKey,
    LeaderChange,
    Compact,
    Full,
    Foreign,
}

/// Mixtures of faults. Everything at once hides what a few do to each other, so some are mixed alone.
const WEATHERS: [&[Kind]; 5] = [
    &[
        Kind::Cut,
        Kind::Slow,
        Kind::BreakStream,
        Kind::StallStream,
        Kind::Pause,
        Kind::Crash,
        Kind::Expire,
        Kind::Reenter,
        Kind::RevokeLease,
        Kind::DeleteContender,
        Kind::DeleteName,
        Kind::DeleteSessionKey,
        Kind::LeaderChange,
        Kind::Compact,
        Kind::Full,
        Kind::Foreign,
    ],
    // A bad network and slow processes.
    &[Kind::Cut, Kind::Cut, Kind::Slow, Kind::Slow, Kind::Pause, Kind::StallStream],
    // A busy administrator, while watches are unreliable.
    &[Kind::DeleteContender, Kind::DeleteName, Kind::RevokeLease, Kind::StallStream, Kind::Foreign],
    // Elections.
    &[Kind::LeaderChange, Kind::LeaderChange, Kind::Cut, Kind::Slow],
    // Processes come and go.
    &[Kind::Crash, Kind::Pause, Kind::Foreign, Kind::Reenter, Kind::Compact],
];

/// A contender that behaves like Go's `concurrency.Mutex`.
#[derive(Debug)]
pub(super) struct Foreign {
    name: LockName,
    lease: LeaseId,
    key: Key,
    phase: Phase,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Holding,
    /// It died; its lease will expire.
    Dead,
    Gone,
}

impl Foreign {
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.phase, Phase::Gone | Phase::Dead)
    }
}

impl World {
    pub(super) fn plan_faults(&mut self) {
        let kinds = self.rng.choice(WEATHERS).unwrap_or_default();
        let unreliable = self.rng.choice([0.0, 0.02, 0.2, 0.4]).unwrap_or_default();
        for node in 0..self.nodes.len() {
            self.nodes[node].link.unreliable = unreliable;
        }
        for _ in 0..self.rng.usize(0..24) {
            let at = self.below(Duration::from_secs(30));
            let fault = self.pick_fault(kinds);
            self.schedule(at, Event::Fault(fault));
        }
    }

    fn pick_fault(&mut self, kinds: &[Kind]) -> Fault {
        let node = self.rng.usize(..self.nodes.len());
        let mut link = self.nodes[node].link;
        match self.rng.choice(kinds).copied().unwrap_or(Kind::Foreign) {
            Kind::Cut => {
                (link.requests_lost, link.answers_lost) = (self.rng.bool(), self.rng.bool());
                Fault::Link { node, link }
            }
            Kind::Slow => {
                let slow = self.below(Duration::from_secs(2));
                (link.slow_requests, link.slow_answers) = match self.rng.u8(0..3) {
                    0 => (slow, slow),
                    1 => (slow, Duration::ZERO),
                    _ => (Duration::ZERO, slow),
                };
                Fault::Link { node, link }
            }
            Kind::BreakStream => Fault::BreakStream(node),
            Kind::StallStream => Fault::StallStream(node),
            Kind::Pause => Fault::Pause(node, self.below(TTL * 2)),
            Kind::Crash => Fault::Crash(node),
            Kind::Expire => Fault::Expire(node),
            Kind::Reenter => Fault::Reenter(node),
            Kind::RevokeLease => Fault::RevokeLease,
            Kind::DeleteContender => Fault::DeleteContender,
            Kind::DeleteName => Fault::DeleteName,
            Kind::DeleteSessionKey => Fault::DeleteSessionKey,
            Kind::LeaderChange => Fault::LeaderChange,
            Kind::Compact => Fault::Compact,
            Kind::Full => Fault::Full(true),
            Kind::Foreign => Fault::Foreign,
        }
    }

    pub(super) fn strike(&mut self, fault: Fault) {
        self.tally.faults += 1;
        self.disturbed = self.now;
        self.note(|| format!("fault: {fault:?}"));
        match fault {
            Fault::Link { node, link } => {
                let before = self.nodes[node].link;
                self.nodes[node].link = link;
                if link.is_bad() {
                    let after = self.below(TTL * 2);
                    let healed = Link { unreliable: before.unreliable, ..Link::default() };
                    self.schedule(after, Event::Fault(Fault::Link { node, link: healed }));
                }
            }
            Fault::BreakStream(node) => self.break_stream(node),
            Fault::StallStream(node) => self.stall(node),
            // What arrives meanwhile is kept until the end of the pause, in its order; so that end does not come nearer.
            Fault::Pause(node, pause) => {
                self.nodes[node].paused_until = self.nodes[node].paused_until.max(self.now + pause);
            }
            Fault::Crash(node) => self.crash(node),
            Fault::Restart(node) => self.start(node),
            Fault::Expire(node) => {
                let local = self.local(node);
                let it = &mut self.nodes[node];
                it.seen_over |= it.deadline.is_some_and(|deadline| local >= deadline);
            }
            Fault::Reenter(node) => self.reenter(node),
            Fault::RevokeLease => self.revoke_some_lease(),
            Fault::DeleteContender => self.delete_some(false),
            Fault::DeleteName => self.delete_name(),
            Fault::DeleteSessionKey => self.delete_some(true),
            Fault::LeaderChange => self.change_leader(),
            Fault::StaleMemberGone => self.stale_term = None,
            Fault::Compact => {
                let _ = self.model.compact(self.model.revision());
            }
            Fault::Full(full) => {
                self.model.set_no_space(full);
                self.checks.was_full |= full;
                if full {
                    let after = self.below(TTL);
                    self.schedule(after, Event::Fault(Fault::Full(false)));
                }
            }
            Fault::Foreign => self.foreign_comes(),
        }
    }

    /// Everything that is wrong gets well, and nothing new goes wrong.
    pub(super) fn wind_down(&mut self) {
        self.note(|| "the faults stop".into());
        self.winding_down = true;
        self.drop_faults();
        self.model.set_no_space(false);
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
        let it = &mut self.nodes[node];
        it.life += 1;
        it.protocol = new_protocol(&mut rng);
        it.deadline = None;
        it.seen_over = false;
        it.lease = None;
        it.seen_term = 0;
        let after = self.below(TTL);
        self.schedule(after, Event::Fault(Fault::Restart(node)));
    }

    fn revoke_some_lease(&mut self) {
        let leases: Vec<LeaseId> = self.nodes.iter().filter_map(|node| node.lease).collect();
        if let Some(&lease) = self.rng.choice(&leases) {
            self.checks.forfeit(self.now, forfeit_reason::lease(lease), &self.model);
            let _ = self.model.execute(self.now, &Request::RevokeLease { lease });
        }
    }

    fn delete_some(&mut self, session: bool) {
        let prefix = super::world::root().as_str().to_owned();
        let sessions = Span::Prefix(Key::from(format!("{prefix}/~session/")));
        let contenders = Span::Between(Key::from(format!("{prefix}/a")), Key::from(format!("{prefix}/e")));
        let keys = self.keys(if session { sessions } else { contenders });
        if let Some(key) = self.rng.choice(&keys).cloned() {
            self.checks.forfeit(self.now, forfeit_reason::key(key.clone()), &self.model);
            let _ = self.model.execute(self.now, &Request::Delete { key });
        }
    }

    fn delete_name(&mut self) {
        let name = self.names[self.rng.usize(..self.names.len())].clone();
        let keys = self.keys(name.contenders());
        for key in &keys {
            self.checks.forfeit(self.now, forfeit_reason::key(key.clone()), &self.model);
        }
        let then = keys.into_iter().map(|key| Op::Delete { key }).collect();
        let _ = self.model.execute(self.now, &Request::Txn(Txn { then, ..Txn::default() }));
    }

    pub(super) fn keys(&self, span: Span) -> Vec<Key> {
        let range = Range {
            span,
            order: Order::OldestFirst,
            limit: 0,
            max_create_revision: 0,
            at_revision: 0,
            keys_only: true,
        };
        let found = self.model.read(&range).unwrap_or_default();
        found.kvs.into_iter().map(|kv| kv.key).collect()
    }

    fn change_leader(&mut self) {
        self.term += 1;
        self.model.set_term(self.term);
        self.model.extend_all_leases(self.now);
        if self.rng.bool() {
            self.stale_term = Some(self.term - 1);
            let after = self.below(TTL);
            self.schedule(after, Event::Fault(Fault::StaleMemberGone));
        }
    }

    fn foreign_comes(&mut self) {
        let name = self.names[self.rng.usize(..self.names.len())].clone();
        let grant = self.model.execute(self.now, &Request::GrantLease { ttl: TTL });
        let Ok(Answer::LeaseGranted { lease, .. }) = grant.map(|response| response.answer) else {
            return;
        };
        let Span::Prefix(prefix) = name.contenders() else {
            return;
        };
        let key = Key::from(format!("{prefix}{lease:x}"));
        let enter = Txn {
            when: vec![Compare { span: Span::Key(key.clone()), field: Field::CreateRevision, equals: 0 }],
            then: vec![Op::Put { key: key.clone(), value: Vec::new(), lease }],
            otherwise: Vec::new(),
        };
        let _ = self.model.execute(self.now, &Request::Txn(enter));
        self.foreign.push(Foreign { name, lease, key, phase: Phase::Waiting });
        self.schedule(Duration::from_millis(50), Event::Foreign(self.foreign.len() - 1));
    }

    pub(super) fn foreign_step(&mut self, at: usize) {
        let pause = self.below(Duration::from_millis(500));
        let Foreign { name, lease, key, phase } = &self.foreign[at];
        let (lease, key) = (*lease, key.clone());
        let queue = self.keys(name.contenders());
        let first = queue.first() == Some(&key);
        match phase {
            Phase::Waiting
                if !queue.contains(&key)
                    || self.model.execute(self.now, &Request::RenewLease { lease }).is_err() =>
            {
                let _ = self.model.execute(self.now, &Request::RevokeLease { lease });
                self.foreign[at].phase = Phase::Gone;
            }
            Phase::Waiting if first => {
                self.note(|| format!("foreign {key} holds"));
                self.foreign[at].phase = if self.rng.u8(0..5) == 0 { Phase::Dead } else { Phase::Holding };
                self.schedule(pause, Event::Foreign(at));
            }
            Phase::Waiting => self.schedule(pause, Event::Foreign(at)),
            Phase::Holding => {
                self.note(|| format!("foreign {key} releases"));
                let _ = self.model.execute(self.now, &Request::Delete { key });
                let _ = self.model.execute(self.now, &Request::RevokeLease { lease });
                self.foreign[at].phase = Phase::Gone;
            }
            Phase::Dead | Phase::Gone => {}
        }
    }
}
