//! A small world that can be copied: two managers on one name, and every single thing that can happen next.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::time::Duration;

use super::super::world::root;
use super::fingerprint::FIRST_REVISION;
use crate::clock::Time;
use crate::memory::model::{Limits, Model, Notice, Watcher};
use crate::name::LockName;
use crate::protocol::{
    Acquire, Action, Command, Config, HoldId, Patience, Protocol, Refusal, ReleaseFailure, RequestId, Ticket,
};
use crate::store::{
    Failure, FailureClass, Key, KeyValue, LeaseId, Order, Range, Request, Response, Revision, Span,
    WatchEvent, WatchId, WatchSpec,
};

const TTL: Duration = Duration::from_secs(5);

/// How often each kind of thing may still happen on a path; without a limit there is no end to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope {
    /// The threads of each manager.
    pub(super) threads: [usize; 2],
    pub(super) calls: u8,
    /// Requests without an answer: lost, carried out and unheard, or carried out much later.
    pub(super) unanswered: u8,
    /// Deletes that are carried out twice.
    pub(super) repeated: u8,
    /// Watch streams that break.
    pub(super) breaks: u8,
    pub(super) expiries: u8,
    pub(super) timers: u8,
    /// Times that a manager's thread takes in something more before it acts.
    pub(super) bursts: u8,
}

/// Something that can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    Lock {
        node: usize,
        thread: usize,
    },
    Try {
        node: usize,
        thread: usize,
    },
    Leave {
        node: usize,
        thread: usize,
    },
    /// The store carries the request out.
    Execute {
        node: usize,
        at: usize,
    },
    /// The same, and a copy stays under way.
    Repeat {
        node: usize,
        at: usize,
    },
    /// The manager hears the answer.
    Answer {
        node: usize,
        at: usize,
    },
    /// The manager stops waiting, and knows nothing; the request stays under way.
    GiveUp {
        node: usize,
        at: usize,
    },
    /// A watch request reaches the store.
    Open {
        node: usize,
        at: usize,
    },
    /// The manager hears what its watch stream tells next.
    Tell {
        node: usize,
    },
    /// The watch stream breaks, and what it carried is lost; another is opened.
    Break {
        node: usize,
    },
    /// The next timer of the manager.
    Timer {
        node: usize,
    },
    /// The manager's lease expires.
    Expire {
        node: usize,
    },
    /// The manager's thread acts on what it has taken in.
    Act {
        node: usize,
    },
}

#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) scope: Scope,
    now: Time,
    model: Model,
    sides: [Side; 2],
    last_ticket: u64,
    last_token: Revision,
}

#[derive(Clone, Debug)]
struct Side {
    protocol: Protocol,
    lease: Option<LeaseId>,
    deadline: Option<Time>,
    threads: Vec<Caller>,
    requests: Vec<InFlight>,
    /// Watches that were asked for and are not open yet.
    asked: Vec<WatchId>,
    wanted: BTreeMap<WatchId, WatchSpec>,
    open: BTreeMap<WatchId, Watcher>,
    told: VecDeque<WatchEvent>,
    /// It has taken something in and has not acted yet.
    busy: bool,
}

#[derive(Clone, Debug)]
struct InFlight {
    id: RequestId,
    request: Request,
    /// Nobody waits for the answer.
    unheard: bool,
    reply: Option<Result<Response, Failure>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Caller {
    Idle,
    /// `kept_out`: so far, something that justifies a refused try was there.
    Waiting {
        ticket: Ticket,
        try_only: bool,
        kept_out: bool,
    },
    Holding {
        ticket: Ticket,
        hold: HoldId,
        key: Key,
        token: Revision,
    },
    Leaving {
        ticket: Ticket,
        held: Option<(HoldId, Key, Revision)>,
        lost: bool,
    },
}

type Step = Result<(), String>;

impl State {
    /// Both sessions are up and watched, and nobody has asked for anything.
    pub(super) fn new(scope: Scope) -> Self {
        let side = |node: usize| Side {
            protocol: Protocol::new(Config {
                root: root(),
                owner: "walker".into(),
                pid: 1,
                ttl: TTL,
                safety_margin: TTL / 10,
                request_timeout: Duration::from_secs(1),
                steps_in_flight: 1,
                seed: 1,
            }),
            lease: None,
            deadline: None,
            threads: vec![Caller::Idle; scope.threads[node]],
            requests: Vec::new(),
            asked: Vec::new(),
            wanted: BTreeMap::new(),
            open: BTreeMap::new(),
            told: VecDeque::new(),
            busy: false,
        };
        let mut state = Self {
            scope,
            now: Time::from_nanos(1_000_000_000_000),
            model: Model::with(Limits::default(), FIRST_REVISION),
            sides: [side(0), side(1)],
            last_ticket: 0,
            last_token: 0,
        };
        for node in 0..2 {
            state.sides[node].protocol.handle_start(state.now);
            state.act(node).expect("nothing to break yet");
            while state.sides[node].lease.is_none() || !state.sides[node].told.is_empty() {
                let choices = state.choices();
                let set_up = choices.into_iter().find(|choice| {
                    matches!(
                        choice,
                        Choice::Execute { .. }
                            | Choice::Answer { .. }
                            | Choice::Open { .. }
                            | Choice::Tell { .. }
                    )
                });
                state.happen(set_up.expect("the session comes up"), false).expect("nothing to break yet");
            }
        }
        state
    }

    /// Everything that can happen next.
    pub(super) fn choices(&self) -> Vec<Choice> {
        let mut choices = Vec::new();
        for (node, side) in self.sides.iter().enumerate() {
            if side.busy {
                choices.push(Choice::Act { node });
            }
            for (at, it) in side.requests.iter().enumerate() {
                match &it.reply {
                    None => choices.push(Choice::Execute { node, at }),
                    Some(_) if !it.unheard => choices.push(Choice::Answer { node, at }),
                    Some(_) => {}
                }
                if it.reply.is_none() && self.scope.repeated > 0 && is_delete(&it.request) {
                    choices.push(Choice::Repeat { node, at });
                }
                // What is not answered for other reasons than these shows nothing new.
                if !it.unheard && self.scope.unanswered > 0 && it.request.is_write() {
                    choices.push(Choice::GiveUp { node, at });
                }
            }
            choices.extend((0..side.asked.len()).map(|at| Choice::Open { node, at }));
            if !side.told.is_empty() {
                choices.push(Choice::Tell { node });
            }
            for (thread, caller) in side.threads.iter().enumerate() {
                match caller {
                    Caller::Idle if self.scope.calls > 0 => {
                        choices.extend([Choice::Lock { node, thread }, Choice::Try { node, thread }]);
                    }
                    Caller::Waiting { try_only: false, .. } | Caller::Holding { .. } => {
                        choices.push(Choice::Leave { node, thread });
                    }
                    _ => {}
                }
            }
            if self.scope.breaks > 0 && !side.wanted.is_empty() {
                choices.push(Choice::Break { node });
            }
            if self.scope.timers > 0 && side.protocol.next_timeout().is_some() {
                choices.push(Choice::Timer { node });
            }
            if self.scope.expiries > 0
                && side.lease.is_some_and(|lease| self.model.leases().any(|it| it == lease))
            {
                choices.push(Choice::Expire { node });
            }
        }
        choices
    }

    /// Whether the manager may take in something more before it acts on this.
    pub(super) fn may_wait(&self, choice: Choice) -> bool {
        let feeds = matches!(
            choice,
            Choice::Lock { .. }
                | Choice::Try { .. }
                | Choice::Leave { .. }
                | Choice::Answer { .. }
                | Choice::GiveUp { .. }
                | Choice::Tell { .. }
                | Choice::Timer { .. }
        );
        feeds && self.scope.bursts > 0
    }

    /// Lets it happen; `Err` says which promise broke. With `wait`, the manager does not act on it yet.
    pub(super) fn happen(&mut self, choice: Choice, wait: bool) -> Step {
        let (now, node) = (self.now, choice.node());
        match choice {
            Choice::Lock { thread, .. } => self.ask(node, thread, false),
            Choice::Try { thread, .. } => self.ask(node, thread, true),
            Choice::Leave { thread, .. } => self.leave(node, thread),
            Choice::Execute { at, .. } => return self.execute(node, at),
            Choice::Repeat { at, .. } => {
                self.scope.repeated -= 1;
                let copy = InFlight { unheard: true, ..self.sides[node].requests[at].clone() };
                self.sides[node].requests.push(copy);
                return self.execute(node, at);
            }
            Choice::Answer { at, .. } => {
                let InFlight { id, reply, .. } = self.sides[node].requests.remove(at);
                if let Some(reply) = reply {
                    self.sides[node].protocol.handle_reply(now, id, reply);
                }
            }
            Choice::GiveUp { at, .. } => {
                self.scope.unanswered -= 1;
                let it = &mut self.sides[node].requests[at];
                it.unheard = true;
                let (id, done) = (it.id, it.reply.is_some());
                if done {
                    self.sides[node].requests.remove(at);
                }
                let failure = Failure::new(FailureClass::Unknown, "walked");
                self.sides[node].protocol.handle_reply(now, id, Err(failure));
            }
            Choice::Open { at, .. } => {
                self.open(node, at);
                return Ok(());
            }
            Choice::Tell { .. } => {
                if let Some(event) = self.sides[node].told.pop_front() {
                    self.sides[node].protocol.handle_watch(now, event);
                }
            }
            Choice::Break { .. } => {
                self.scope.breaks -= 1;
                self.reopen(node);
                return Ok(());
            }
            Choice::Timer { .. } => {
                self.scope.timers -= 1;
                self.now = self.sides[node].protocol.next_timeout().unwrap_or(now).max(now);
                self.sides[node].protocol.handle_timeout(self.now);
            }
            Choice::Expire { .. } => return self.expire(node),
            Choice::Act { .. } => {}
        }
        if wait {
            self.scope.bursts -= 1;
            self.sides[node].busy = true;
            return self.check();
        }
        self.act(node)
    }

    fn ask(&mut self, node: usize, thread: usize, try_only: bool) {
        self.scope.calls -= 1;
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        self.sides[node].threads[thread] = Caller::Waiting { ticket, try_only, kept_out: false };
        self.note_who_is_kept_out();
        let acquire = Acquire {
            ticket,
            name: name(),
            thread: thread as u64,
            patience: Patience { try_only, deadline: None, budget: None },
            retry_interval: Duration::from_millis(100),
            warn_after: None,
            since: self.now,
            asked_at: Duration::from_secs(1),
        };
        self.sides[node].protocol.handle_command(self.now, Command::Acquire(acquire));
    }

    fn leave(&mut self, node: usize, thread: usize) {
        let caller = &mut self.sides[node].threads[thread];
        let (ticket, held) = match caller.clone() {
            Caller::Waiting { ticket, .. } => (ticket, None),
            Caller::Holding { ticket, hold, key, token } => (ticket, Some((hold, key, token))),
            Caller::Idle | Caller::Leaving { .. } => return,
        };
        *caller = Caller::Leaving { ticket, held, lost: false };
        self.sides[node].protocol.handle_command(self.now, Command::Leave { ticket, confirm: true });
    }

    fn execute(&mut self, node: usize, at: usize) -> Step {
        let it = &mut self.sides[node].requests[at];
        let reply = self.model.execute(self.now, &it.request);
        if it.unheard {
            self.sides[node].requests.remove(at);
        } else {
            it.reply = Some(reply);
        }
        self.after_the_store()
    }

    fn expire(&mut self, node: usize) -> Step {
        self.scope.expiries -= 1;
        if let (Some(lease), Some(due)) = (self.sides[node].lease, self.model.next_expiry()) {
            // The other's lease is renewed meanwhile, or as good as.
            self.now = self.now.max(due + TTL);
            self.model.expire_lease(lease);
            self.model.extend_all_leases(self.now);
        }
        self.after_the_store()
    }

    fn after_the_store(&mut self) -> Step {
        while let Some((watcher, notice)) = self.model.poll_notice() {
            for side in &mut self.sides {
                let open = side.open.iter().find(|&(_, &open)| open == watcher);
                if let (Some((&watch, _)), Notice::Deleted { keys, revision }) = (open, &notice) {
                    side.told.push_back(WatchEvent::Deleted {
                        watch,
                        keys: keys.clone(),
                        revision: *revision,
                    });
                }
            }
        }
        self.note_who_is_kept_out();
        self.check()
    }

    fn open(&mut self, node: usize, at: usize) {
        let watch = self.sides[node].asked.remove(at);
        let Some(spec) = self.sides[node].wanted.get(&watch).cloned() else { return };
        let Ok((watcher, revision)) = self.model.watch(&spec) else { return };
        let side = &mut self.sides[node];
        side.open.insert(watch, watcher);
        side.told.push_back(WatchEvent::Created { watch, revision });
        let _ = self.after_the_store();
    }

    fn reopen(&mut self, node: usize) {
        let side = &mut self.sides[node];
        for watcher in std::mem::take(&mut side.open).into_values() {
            self.model.unwatch(watcher);
        }
        side.told.clear();
        side.asked = side.wanted.keys().copied().collect();
    }

    /// Whoever only tries is kept out by another's key in etcd, or by another thread's place or hold here.
    fn note_who_is_kept_out(&mut self) {
        let contenders = contenders(&self.model);
        for side in &mut self.sides {
            let there = contenders.iter().any(|kv| Some(kv.lease) != side.lease);
            for thread in 0..side.threads.len() {
                let here = side.threads.iter().enumerate().any(|(other, caller)| {
                    other != thread
                        && matches!(caller, Caller::Waiting { try_only: false, .. } | Caller::Holding { .. })
                });
                if let Caller::Waiting { kept_out, .. } = &mut side.threads[thread] {
                    *kept_out |= there || here;
                }
            }
        }
    }

    /// Carries out what the protocol wants.
    fn act(&mut self, node: usize) -> Step {
        self.sides[node].busy = false;
        while let Some(action) = self.sides[node].protocol.poll_action() {
            self.perform(node, action)?;
        }
        self.note_who_is_kept_out();
        self.check()
    }

    fn perform(&mut self, node: usize, action: Action) -> Step {
        let side = &mut self.sides[node];
        match action {
            Action::Send { id, request, .. } => {
                side.requests.push(InFlight { id, request, unheard: false, reply: None });
            }
            Action::Watch { id, spec } => {
                side.wanted.insert(id, spec);
                side.asked.push(id);
            }
            Action::Unwatch { id } => {
                side.wanted.remove(&id);
                side.asked.retain(|&asked| asked != id);
                if let Some(watcher) = side.open.remove(&id) {
                    self.model.unwatch(watcher);
                }
            }
            Action::SessionUp { lease, deadline, .. } => {
                (side.lease, side.deadline) = (Some(lease), Some(deadline));
            }
            Action::ExtendSession { deadline } => side.deadline = Some(deadline),
            Action::SessionDown { .. } => {
                (side.lease, side.deadline) = (None, None);
                side.threads.iter_mut().for_each(Caller::lose);
            }
            Action::SessionFailed { .. }
            | Action::StoreSilent { .. }
            | Action::StoreAnswers { .. }
            | Action::SlowWait { .. }
            | Action::Released { .. }
            | Action::Closed => {}
            Action::Grant { ticket, hold, key, token, .. } => {
                return self.grant(node, ticket, hold, key, token);
            }
            Action::Refuse { ticket, refusal } => return side.refuse(ticket, &refusal),
            Action::EndHold { hold, lost } if lost.is_some() => {
                for caller in &mut side.threads {
                    if caller.hold() == Some(hold) {
                        caller.lose();
                    }
                }
            }
            Action::EndHold { .. } => {}
            Action::Confirm { ticket, result } => return self.confirm(node, ticket, &result),
        }
        Ok(())
    }

    fn grant(&mut self, node: usize, ticket: Ticket, hold: HoldId, key: Key, token: Revision) -> Step {
        if token <= self.last_token {
            return Err(format!("P4: token {token} after {}", self.last_token));
        }
        self.last_token = token;
        let Some(caller) = self.sides[node].threads.iter_mut().find(|caller| caller.ticket() == Some(ticket))
        else {
            return Err(format!("P5: {ticket:?} is granted and not asked for"));
        };
        match caller {
            Caller::Leaving { held, .. } => *held = Some((hold, key, token)),
            _ => *caller = Caller::Holding { ticket, hold, key, token },
        }
        self.note_who_is_kept_out();
        Ok(())
    }

    fn confirm(&mut self, node: usize, ticket: Ticket, result: &Result<(), ReleaseFailure>) -> Step {
        let there = contenders(&self.model);
        let Some(caller) = self.sides[node].threads.iter_mut().find(|caller| caller.ticket() == Some(ticket))
        else {
            return Ok(());
        };
        let Caller::Leaving { held, lost, .. } = std::mem::replace(caller, Caller::Idle) else {
            return Err(format!("P9: {ticket:?} is confirmed and did not leave"));
        };
        let Some((_, key, token)) = held else { return Ok(()) };
        let stands = there.iter().any(|kv| kv.key == key && kv.create_revision == token);
        match result {
            Ok(()) if stands => Err(format!("P9: {key} is said to be released, and stands")),
            // Only the end of a lease deletes anything here but the managers themselves.
            Err(ReleaseFailure::NotHeld) if !lost && self.scope.expiries > 0 => {
                Err(format!("P9: {key} is said to have been deleted by somebody else"))
            }
            Err(ReleaseFailure::Failed(_)) => Err(format!("P9: the release of {key} failed: {result:?}")),
            _ => Ok(()),
        }
    }

    /// P1, P2 and P6, in every state.
    fn check(&self) -> Step {
        let there = contenders(&self.model);
        for (node, side) in self.sides.iter().enumerate() {
            let assured = side.deadline.is_some_and(|deadline| self.now < deadline);
            for caller in side.threads.iter().filter(|_| assured) {
                if let Caller::Holding { key, token, .. } = caller
                    && !there
                        .first()
                        .is_some_and(|first| first.key == *key && first.create_revision == *token)
                {
                    return Err(format!("P1: manager {node} believes in {key}, and etcd has {there:?}"));
                }
            }
            let own = there.iter().find(|kv| Some(kv.lease) == side.lease);
            if let (Some(stray), true) =
                (own, side.protocol.is_idle() && side.requests.is_empty() && !side.busy)
            {
                return Err(format!("P6: manager {node} has left {} behind", stray.key));
            }
        }
        Ok(())
    }

    /// All that matters to what comes.
    pub(super) fn print(&self) -> String {
        let mut out = String::new();
        let Scope { calls, unanswered, repeated, breaks, expiries, timers, bursts, .. } = self.scope;
        let _ = write!(out, "{:?} ", [calls, unanswered, repeated, breaks, expiries, timers, bursts]);
        for side in &self.sides {
            let over = side.deadline.is_some_and(|deadline| deadline <= self.now);
            let due = side.protocol.next_timeout().is_some_and(|at| at <= self.now);
            let Side { lease, threads, requests, asked, wanted, told, busy, .. } = side;
            let open: Vec<_> = side.open.keys().collect();
            let protocol = side.protocol.sketch();
            let _ = writeln!(
                out,
                "{protocol} {lease:?} {over} {due} {busy} {threads:?} {requests:?} {asked:?} {wanted:?} {open:?} {told:?}"
            );
        }
        let leases: Vec<LeaseId> = self.model.leases().collect();
        let _ = write!(
            out,
            "{:?} {leases:?} {} {}",
            everything(&self.model),
            self.model.revision(),
            self.last_token
        );
        out
    }
}

impl Choice {
    fn node(self) -> usize {
        match self {
            Self::Lock { node, .. }
            | Self::Try { node, .. }
            | Self::Leave { node, .. }
            | Self::Execute { node, .. }
            | Self::Repeat { node, .. }
            | Self::Answer { node, .. }
            | Self::GiveUp { node, .. }
            | Self::Open { node, .. }
            | Self::Tell { node }
            | Self::Break { node }
            | Self::Timer { node }
            | Self::Expire { node }
            | Self::Act { node } => node,
        }
    }
}

impl Side {
    fn refuse(&mut self, ticket: Ticket, refusal: &Refusal) -> Step {
        let Some(caller) = self.threads.iter_mut().find(|caller| caller.ticket() == Some(ticket)) else {
            return Err(format!("P5: {ticket:?} is refused and did not ask"));
        };
        match (std::mem::replace(caller, Caller::Idle), refusal) {
            (Caller::Leaving { .. }, _) => Ok(()),
            (Caller::Waiting { try_only: true, kept_out: true, .. }, Refusal::Held) => Ok(()),
            (caller, refusal) => Err(format!("P9: {caller:?} is refused for {refusal:?}")),
        }
    }
}

impl Caller {
    fn ticket(&self) -> Option<Ticket> {
        match self {
            Self::Idle => None,
            Self::Waiting { ticket, .. } | Self::Holding { ticket, .. } | Self::Leaving { ticket, .. } => {
                Some(*ticket)
            }
        }
    }

    fn hold(&self) -> Option<HoldId> {
        match self {
            Self::Holding { hold, .. } | Self::Leaving { held: Some((hold, ..)), .. } => Some(*hold),
            _ => None,
        }
    }

    /// Its hold is lost: a caller that held goes on, one that leaves is answered all the same.
    fn lose(&mut self) {
        match self {
            Self::Holding { .. } => *self = Self::Idle,
            Self::Leaving { lost, held: Some(_), .. } => *lost = true,
            _ => {}
        }
    }
}

fn name() -> LockName {
    LockName::parse(&root(), "a").expect("a valid name")
}

fn read(model: &Model, span: Span) -> Vec<KeyValue> {
    let range = Range {
        span,
        order: Order::OldestFirst,
        limit: 0,
        max_create_revision: 0,
        at_revision: 0,
        keys_only: true,
    };
    model.read(&range).unwrap_or_default().kvs
}

fn contenders(model: &Model) -> Vec<KeyValue> {
    read(model, name().contenders())
}

fn everything(model: &Model) -> Vec<KeyValue> {
    read(model, Span::Prefix(Key::from(format!("{}/", root().as_str()))))
}

/// A delete, and nothing else.
fn is_delete(request: &Request) -> bool {
    super::super::network::only_deletes(request)
}
