//! Protocols and one model of the store in virtual time; the test decides when each message arrives.

use std::sync::Arc;
use std::time::Duration;

use super::node::Node;
use crate::clock::Time;
use crate::kv::{
    Failure, FailureClass, Key, KeyValue, Op, Order, Range, Request, Response, Revision, Span, Txn,
    WatchEvent,
};
use crate::mode::Mode;
use crate::name::{LockName, Root};
use crate::protocol::{Acquire, Action, Command, RequestId, Ticket, WaitLimits};
use crate::store::memory::model::{Model, Notice};

pub(super) const TTL: Duration = Duration::from_secs(10);
pub(super) const MARGIN: Duration = Duration::from_secs(1);
/// The length of a wait that is reported.
pub(super) const WARN_AFTER: Duration = Duration::from_secs(30);

/// A manager of the world.
pub(super) type NodeId = usize;

pub(super) struct World {
    pub(super) now: Time,
    pub(super) model: Model,
    pub(super) nodes: Vec<Node>,
    next_ticket: u64,
    /// The note of the next calls.
    pub(super) note: Option<Arc<str>>,
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
    /// A world whose managers all have their session.
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
            note: None,
        };
        for node in 0..nodes {
            world.nodes[node].protocol.handle_start(now);
            world.pump(node);
        }
        world
    }

    /// The same store with newly started managers.
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

    /// Carries out the protocol's actions, except requests, which wait in `sent`.
    pub(super) fn pump(&mut self, id: NodeId) {
        let node = &mut self.nodes[id];
        if node.actions_held_back {
            return;
        }
        while let Some(action) = node.protocol.poll_action() {
            match action {
                Action::Send { id, request, .. } => {
                    *node.count.entry(kind(&request)).or_default() += 1;
                    node.sent.push_back((id, request));
                }
                Action::Watch { id, spec } => {
                    // etcd answers no health probe while a watch starts in the future.
                    assert!(spec.from_revision <= self.model.revision(), "{spec:?}");
                    let (watcher, revision) = self.model.watch(&spec).unwrap();
                    node.watches.insert(id, watcher);
                    node.undelivered.push_back(WatchEvent::Created { watch: id, revision });
                }
                Action::Unwatch { id } => match node.watches.remove(&id) {
                    Some(watcher) => self.model.unwatch(watcher),
                    None => assert!(node.events_held_back, "only open watches are closed"),
                },
                other => node.note(other),
            }
        }
    }

    /// Delivers all requests, answers and events, until none is left.
    pub(super) fn settle(&mut self) {
        loop {
            let mut busy = false;
            for id in 0..self.nodes.len() {
                self.pump(id);
                while !self.nodes[id].sent.is_empty() {
                    busy = true;
                    self.answer(id);
                }
                busy |= self.deliver_events(id);
            }
            if !busy {
                return;
            }
        }
    }

    /// Delivers all requests and answers of one node.
    pub(super) fn settle_node(&mut self, id: NodeId) {
        while !self.nodes[id].sent.is_empty() {
            self.answer(id);
        }
    }

    /// Loses the answer to the oldest transaction in flight, if there is one.
    pub(super) fn lose_txn(&mut self, id: NodeId) -> Option<Request> {
        let at = self.nodes[id].sent.iter().position(|(_, request)| matches!(request, Request::Txn(_)))?;
        let (request_id, request) = self.nodes[id].sent.remove(at)?;
        self.deliver(id, request_id, Err(Failure::new(FailureClass::Unknown, "no answer")));
        Some(request)
    }

    /// Executes the node's oldest request and delivers the answer.
    pub(super) fn answer(&mut self, id: NodeId) {
        let (request, reply) = self.execute_oldest(id);
        self.deliver(id, request, reply);
    }

    /// Executes the node's oldest request, and leaves its answer in transit.
    pub(super) fn execute_oldest(&mut self, id: NodeId) -> (RequestId, Result<Response, Failure>) {
        let (request_id, request) = self.nodes[id].sent.pop_front().expect("a request is in flight");
        (request_id, self.model.execute(self.now, &request))
    }

    pub(super) fn deliver(&mut self, id: NodeId, request: RequestId, reply: Result<Response, Failure>) {
        self.nodes[id].protocol.handle_reply(self.now, request, reply);
        self.pump(id);
    }

    /// The outcome of the oldest request stays unknown; it is returned, so that the test can execute it later.
    pub(super) fn lose_answer(&mut self, id: NodeId) -> Request {
        let (request_id, request) = self.nodes[id].sent.pop_front().expect("a request is in flight");
        self.deliver(id, request_id, Err(Failure::new(FailureClass::Unknown, "no answer")));
        request
    }

    pub(super) fn fail(&mut self, id: NodeId, class: FailureClass) {
        let (request_id, _) = self.nodes[id].sent.pop_front().expect("a request is in flight");
        self.deliver(id, request_id, Err(Failure::new(class, "injected failure")));
    }

    /// Lets time pass; every request fails with `class`.
    pub(super) fn fail_for(&mut self, id: NodeId, duration: Duration, class: FailureClass) {
        let end = self.now + duration;
        while self.now < end {
            while !self.nodes[id].sent.is_empty() {
                self.fail(id, class);
            }
            self.pass_alone(Duration::from_millis(10).min(end.since(self.now)));
        }
    }

    /// The store returns to an earlier state; no watch survives that.
    pub(super) fn restore(&mut self, backup: Model) {
        self.model = backup;
        for node in &mut self.nodes {
            node.watches.clear();
            node.events_held_back = true;
        }
    }

    /// Executes a parked request; its answer is lost.
    pub(super) fn execute_late(&mut self, request: &Request) {
        let _ = self.model.execute(self.now, request);
    }

    pub(super) fn delete_all(&mut self, name: &str) {
        let then = self.contenders(name).into_iter().map(|kv| Op::Delete { key: kv.key }).collect();
        self.execute_late(&Request::Txn(Txn { then, ..Txn::default() }));
    }

    /// Executes the oldest request, and answers that the store has run out of space.
    pub(super) fn execute_and_answer_no_space(&mut self, id: NodeId) {
        let (request, _) = self.execute_oldest(id);
        self.deliver(id, request, Err(Failure::new(FailureClass::NoSpace, "space exceeded")));
    }

    /// The node's newest watch reports that this key was deleted at `revision`.
    pub(super) fn report_deletion(&mut self, id: NodeId, key: Key, revision: Revision) {
        let watch = *self.nodes[id].watches.keys().max().expect("a watch is open");
        let event = WatchEvent::Deleted { watch, keys: vec![key], revision };
        self.nodes[id].protocol.handle_watch(self.now, event);
        self.pump(id);
    }

    /// Delivers the watch events of one node; false if there were none.
    pub(super) fn deliver_events(&mut self, id: NodeId) -> bool {
        while let Some((watcher, notice)) = self.model.poll_notice() {
            for node in &mut self.nodes {
                let watch = node.watches.iter().find(|&(_, &open)| open == watcher).map(|(&watch, _)| watch);
                if let (Some(watch), Notice::Deleted { keys, revision }) = (watch, notice.clone()) {
                    node.undelivered.push_back(WatchEvent::Deleted { watch, keys, revision });
                }
            }
        }
        if self.nodes[id].events_held_back {
            return false;
        }
        let mut delivered = false;
        while let Some(event) = self.nodes[id].undelivered.pop_front() {
            delivered = true;
            self.nodes[id].protocol.handle_watch(self.now, event);
            self.pump(id);
        }
        delivered
    }

    /// Lets time pass; all messages arrive at once.
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

    /// Lets time pass; no request is answered.
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
        self.ask_in(Mode::Exclusive, id, lock, thread, limits)
    }

    pub(super) fn ask_in(
        &mut self,
        mode: Mode,
        id: NodeId,
        lock: &str,
        thread: u64,
        limits: WaitLimits,
    ) -> Ticket {
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        let acquire = Acquire {
            ticket,
            name: name(lock),
            mode,
            thread,
            limits,
            retry_interval: Duration::from_millis(100),
            warn_after: Some(WARN_AFTER),
            since: self.now,
            asked_at: Duration::from_secs(1_700_000_000),
            note: self.note.clone(),
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
        self.try_in(Mode::Exclusive, id, lock, thread)
    }

    pub(super) fn try_in(&mut self, mode: Mode, id: NodeId, lock: &str, thread: u64) -> Ticket {
        let budget = Some(self.now + Duration::from_secs(5));
        self.ask_in(mode, id, lock, thread, WaitLimits { try_only: true, deadline: None, budget })
    }

    pub(super) fn abandon(&mut self, id: NodeId, ticket: Ticket) {
        self.command(id, Command::Abandon { ticket, confirm: false });
    }

    pub(super) fn abandon_and_confirm(&mut self, id: NodeId, ticket: Ticket) {
        self.command(id, Command::Abandon { ticket, confirm: true });
    }

    /// Handles commands together: the actions are carried out after the last one.
    pub(super) fn together(&mut self, id: NodeId, commands: impl FnOnce(&mut Self)) {
        self.nodes[id].actions_held_back = true;
        commands(self);
        self.nodes[id].actions_held_back = false;
        self.pump(id);
    }

    pub(super) fn command(&mut self, id: NodeId, command: Command) {
        self.nodes[id].protocol.handle_command(self.now, command);
        self.pump(id);
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
