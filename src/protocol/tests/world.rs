//! Protocols and one store model in virtual time; the test decides when what arrives.

use std::time::Duration;

use super::node::{Node, Outcome};
use crate::clock::Time;
use crate::error::LossReason;
use crate::kv::{
    Failure, FailureClass, Key, KeyValue, Op, Order, Range, Request, Response, Revision, Span, Txn,
    WatchEvent,
};
use crate::name::{LockName, Root};
use crate::protocol::{Acquire, Action, Command, Refusal, RequestId, Ticket, WaitLimits};
use crate::store::memory::model::{Model, Notice};

pub(super) const TTL: Duration = Duration::from_secs(10);
pub(super) const MARGIN: Duration = Duration::from_secs(1);
/// A wait of this length is told of.
pub(super) const WARN_AFTER: Duration = Duration::from_secs(30);

/// Names one manager of the world.
pub(super) type NodeId = usize;

pub(super) struct World {
    pub(super) now: Time,
    pub(super) model: Model,
    pub(super) nodes: Vec<Node>,
    next_ticket: u64,
}

pub(super) fn name(text: &str) -> LockName {
    LockName::parse(&Root::parse("/t").unwrap(), text).unwrap()
}

fn kind(request: &Request) -> &'static str {
    match request {
        Request::GrantLease { .. } => "grant",
        Request::RenewLease { .. } => "renew",
        Request::RevokeLease { .. } => "revoke",
        Request::LeaseTimeToLive { .. } => "ttl",
        Request::Delete { .. } => "delete",
        Request::Txn(_) => "txn",
    }
}

impl World {
    /// A world whose managers have their sessions.
    pub(super) fn with(nodes: usize) -> Self {
        let mut world = Self::unconnected(nodes);
        world.settle();
        for node in &mut world.nodes {
            node.count.clear();
            node.log.clear();
        }
        world
    }

    pub(super) fn unconnected(nodes: usize) -> Self {
        let now = Time::from_nanos(1_000_000_000_000);
        let mut world = Self {
            now,
            model: Model::new(),
            nodes: (0..nodes).map(|_| Node::new()).collect(),
            next_ticket: 0,
        };
        for node in 0..nodes {
            world.nodes[node].protocol.handle_start(now);
            world.pump(node);
        }
        world
    }

    /// The same store, and managers that have just begun.
    pub(super) fn reconnected(mut self) -> Self {
        let nodes = self.nodes.len();
        self.nodes = (0..nodes).map(|_| Node::new()).collect();
        for node in 0..nodes {
            self.nodes[node].protocol.handle_start(self.now);
            self.pump(node);
        }
        self.settle();
        self
    }

    /// Carries out what the protocol wants, except requests, which wait in `sent`.
    pub(super) fn pump(&mut self, id: NodeId) {
        let node = &mut self.nodes[id];
        if node.bursting {
            return;
        }
        while let Some(action) = node.protocol.poll_action() {
            match action {
                Action::Send { id, request, .. } => {
                    *node.count.entry(kind(&request)).or_default() += 1;
                    node.sent.push_back((id, request));
                }
                Action::Watch { id, spec } => {
                    // etcd answers no request for progress while a watch begins in the future.
                    assert!(spec.from_revision <= self.model.revision(), "{spec:?}");
                    let (watcher, revision) = self.model.watch(&spec).unwrap();
                    node.watches.insert(id, watcher);
                    node.unheard.push_back(WatchEvent::Created { watch: id, revision });
                }
                Action::Unwatch { id } => match node.watches.remove(&id) {
                    Some(watcher) => self.model.unwatch(watcher),
                    None => assert!(node.deaf, "only open watches are closed"),
                },
                other => node.note(other),
            }
        }
    }

    /// Lets everything that is on its way arrive, until nothing is.
    pub(super) fn settle(&mut self) {
        loop {
            let mut busy = false;
            for id in 0..self.nodes.len() {
                self.pump(id);
                while !self.nodes[id].sent.is_empty() {
                    busy = true;
                    self.answer(id);
                }
                busy |= self.hear(id);
            }
            if !busy {
                return;
            }
        }
    }

    /// Lets everything of one node arrive.
    pub(super) fn settle_node(&mut self, id: NodeId) {
        while !self.nodes[id].sent.is_empty() {
            self.answer(id);
        }
    }

    /// Loses the answer to the oldest transaction under way, if there is one.
    pub(super) fn lose_some_txn(&mut self, id: NodeId) -> Option<Request> {
        let at = self.nodes[id].sent.iter().position(|(_, request)| matches!(request, Request::Txn(_)))?;
        let (request_id, request) = self.nodes[id].sent.remove(at)?;
        self.deliver(id, request_id, Err(Failure::new(FailureClass::Unknown, "no answer")));
        Some(request)
    }

    /// Carries out the oldest request of the node and delivers the answer.
    pub(super) fn answer(&mut self, id: NodeId) {
        let (request, reply) = self.carry_out(id);
        self.deliver(id, request, reply);
    }

    /// Carries out the oldest request of the node; its answer is still on the way.
    pub(super) fn carry_out(&mut self, id: NodeId) -> (RequestId, Result<Response, Failure>) {
        let (request_id, request) = self.nodes[id].sent.pop_front().expect("a request is under way");
        (request_id, self.model.execute(self.now, &request))
    }

    pub(super) fn deliver(&mut self, id: NodeId, request: RequestId, reply: Result<Response, Failure>) {
        self.nodes[id].protocol.handle_reply(self.now, request, reply);
        self.pump(id);
    }

    /// The oldest request's fate stays unknown; it is given back, to be carried out at the worst moment.
    pub(super) fn lose_answer(&mut self, id: NodeId) -> Request {
        let (request_id, request) = self.nodes[id].sent.pop_front().expect("a request is under way");
        self.deliver(id, request_id, Err(Failure::new(FailureClass::Unknown, "no answer")));
        request
    }

    pub(super) fn fail(&mut self, id: NodeId, class: FailureClass) {
        let (request_id, _) = self.nodes[id].sent.pop_front().expect("a request is under way");
        self.deliver(id, request_id, Err(Failure::new(class, "as the test wants")));
    }

    /// Lets time pass, during which every request fails so.
    pub(super) fn fail_for(&mut self, id: NodeId, duration: Duration, class: FailureClass) {
        let end = self.now + duration;
        while self.now < end {
            while !self.nodes[id].sent.is_empty() {
                self.fail(id, class);
            }
            self.pass_alone(Duration::from_millis(10).min(end.since(self.now)));
        }
    }

    /// The store is one of an earlier moment; no watch survives that.
    pub(super) fn restore(&mut self, backup: Model) {
        self.model = backup;
        for node in &mut self.nodes {
            node.watches.clear();
            node.deaf = true;
        }
    }

    /// A request that was parked somewhere takes effect after all; nobody hears its answer.
    pub(super) fn carry_out_late(&mut self, request: &Request) {
        let _ = self.model.execute(self.now, request);
    }

    pub(super) fn delete_all(&mut self, name: &str) {
        let then = self.contenders(name).into_iter().map(|kv| Op::Delete { key: kv.key }).collect();
        self.carry_out_late(&Request::Txn(Txn { then, ..Txn::default() }));
    }

    /// The store has carried out the oldest request, and answers that its space is used up.
    pub(super) fn carry_out_and_say_no_space(&mut self, id: NodeId) {
        let (request, _) = self.carry_out(id);
        self.deliver(id, request, Err(Failure::new(FailureClass::NoSpace, "space exceeded")));
    }

    /// The node's newest watch tells that this key was deleted at `revision`.
    pub(super) fn tell_newest_watch(&mut self, id: NodeId, key: Key, revision: Revision) {
        let watch = *self.nodes[id].watches.keys().max().expect("something is watched");
        let event = WatchEvent::Deleted { watch, keys: vec![key], revision };
        self.nodes[id].protocol.handle_watch(self.now, event);
        self.pump(id);
    }

    /// Delivers the watch events of one node; false if there were none.
    pub(super) fn hear(&mut self, id: NodeId) -> bool {
        while let Some((watcher, notice)) = self.model.poll_notice() {
            for node in &mut self.nodes {
                let watch = node.watches.iter().find(|&(_, &open)| open == watcher).map(|(&watch, _)| watch);
                if let (Some(watch), Notice::Deleted { keys, revision }) = (watch, notice.clone()) {
                    node.unheard.push_back(WatchEvent::Deleted { watch, keys, revision });
                }
            }
        }
        if self.nodes[id].deaf {
            return false;
        }
        let mut heard = false;
        while let Some(event) = self.nodes[id].unheard.pop_front() {
            heard = true;
            self.nodes[id].protocol.handle_watch(self.now, event);
            self.pump(id);
        }
        heard
    }

    /// Lets time pass, with everything arriving at once.
    pub(super) fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            self.settle();
            let next = self.nodes.iter().filter_map(|node| node.protocol.next_timeout()).min();
            match next.filter(|&next| next <= end) {
                Some(next) => self.jump_to(next.max(self.now)),
                None => break,
            }
        }
        self.jump_to(end);
        self.settle();
    }

    /// Lets time pass for the managers alone: nothing is answered.
    pub(super) fn pass_alone(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let next = self.nodes.iter().filter_map(|node| node.protocol.next_timeout()).min();
            match next.filter(|&next| next <= end) {
                Some(next) => self.jump_to(next.max(self.now)),
                None => break,
            }
        }
        self.jump_to(end);
    }

    fn jump_to(&mut self, now: Time) {
        self.now = now;
        for id in 0..self.nodes.len() {
            self.nodes[id].protocol.handle_timeout(now);
            self.pump(id);
        }
    }

    pub(super) fn ask(&mut self, id: NodeId, lock: &str, thread: u64, limits: WaitLimits) -> Ticket {
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        let acquire = Acquire {
            ticket,
            name: name(lock),
            thread,
            limits,
            retry_interval: Duration::from_millis(100),
            warn_after: Some(WARN_AFTER),
            since: self.now,
            asked_at: Duration::from_secs(1_700_000_000),
        };
        self.command(id, Command::Acquire(acquire));
        ticket
    }

    pub(super) fn lock(&mut self, id: NodeId, lock: &str, thread: u64) -> Ticket {
        self.ask(id, lock, thread, WaitLimits::default())
    }

    pub(super) fn lock_within(&mut self, id: NodeId, lock: &str, thread: u64, limit: Duration) -> Ticket {
        let deadline = Some(self.now + limit);
        self.ask(id, lock, thread, WaitLimits { deadline, ..WaitLimits::default() })
    }

    pub(super) fn try_lock(&mut self, id: NodeId, lock: &str, thread: u64) -> Ticket {
        let budget = Some(self.now + Duration::from_secs(5));
        self.ask(id, lock, thread, WaitLimits { try_only: true, deadline: None, budget })
    }

    pub(super) fn abandon(&mut self, id: NodeId, ticket: Ticket) {
        self.command(id, Command::Abandon { ticket, confirm: false });
    }

    pub(super) fn abandon_and_confirm(&mut self, id: NodeId, ticket: Ticket) {
        self.command(id, Command::Abandon { ticket, confirm: true });
    }

    /// Commands that arrive together: what the protocol wants is carried out after the last.
    pub(super) fn together(&mut self, id: NodeId, commands: impl FnOnce(&mut Self)) {
        self.nodes[id].bursting = true;
        commands(self);
        self.nodes[id].bursting = false;
        self.pump(id);
    }

    pub(super) fn command(&mut self, id: NodeId, command: Command) {
        self.nodes[id].protocol.handle_command(self.now, command);
        self.pump(id);
    }

    pub(super) fn token(&self, id: NodeId, ticket: Ticket) -> Option<Revision> {
        match self.nodes[id].outcomes.get(&ticket) {
            Some(Outcome::Granted { token, .. }) => Some(*token),
            _ => None,
        }
    }

    /// The key under which the ticket was granted.
    pub(super) fn key_of(&self, id: NodeId, ticket: Ticket) -> Option<Key> {
        match self.nodes[id].outcomes.get(&ticket) {
            Some(Outcome::Granted { key, .. }) => Some(key.clone()),
            _ => None,
        }
    }

    /// Whether the ticket was granted and its hold is not over.
    pub(super) fn holds(&self, id: NodeId, ticket: Ticket) -> bool {
        match self.nodes[id].outcomes.get(&ticket) {
            Some(Outcome::Granted { hold, .. }) => !self.nodes[id].holds.contains_key(hold),
            _ => false,
        }
    }

    /// Why the ticket's hold was lost.
    pub(super) fn loss(&self, id: NodeId, ticket: Ticket) -> Option<LossReason> {
        match self.nodes[id].outcomes.get(&ticket) {
            Some(Outcome::Granted { hold, .. }) => self.nodes[id].holds.get(hold).copied().flatten(),
            _ => None,
        }
    }

    pub(super) fn refusal(&self, id: NodeId, ticket: Ticket) -> Option<Refusal> {
        match self.nodes[id].outcomes.get(&ticket) {
            Some(Outcome::Refused(refusal)) => Some(refusal.clone()),
            _ => None,
        }
    }

    /// The contenders of a lock, oldest first.
    pub(super) fn contenders(&self, lock: &str) -> Vec<KeyValue> {
        self.read(name(lock).contenders())
    }

    pub(super) fn read(&self, span: Span) -> Vec<KeyValue> {
        let order = Order::OldestFirst;
        let range = Range { span, order, limit: 0, max_create_revision: 0, at_revision: 0, keys_only: false };
        self.model.read(&range).unwrap().kvs
    }

    pub(super) fn session_keys(&self) -> Vec<KeyValue> {
        self.read(Span::Prefix(Key::from("/t/~session/")))
    }

    /// An administrator deletes a key.
    pub(super) fn delete(&mut self, key: Key) {
        self.model.execute(self.now, &Request::Delete { key }).unwrap();
    }

    pub(super) fn count(&self, id: NodeId, kind: &str) -> usize {
        self.nodes[id].count.get(kind).copied().unwrap_or(0)
    }
}
