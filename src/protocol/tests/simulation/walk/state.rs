//! A small world that can be copied: two managers on one name, and every single thing that can happen next.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::super::reading::keys_within;
use super::super::world::root;
use super::fingerprint::FIRST_REVISION;
use crate::clock::Time;
use crate::kv::{
    Failure, Key, KeyValue, LeaseId, Request, Response, Revision, WatchEvent, WatchId, WatchSpec,
};
use crate::name::LockName;
use crate::protocol::{Config, HoldId, Protocol, RequestId, Ticket};
use crate::store::memory::model::{Limits, Model, Watcher};

pub(super) const TTL: Duration = Duration::from_secs(5);

/// How many more events of each kind a path may contain. Without these limits the walk would never end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope {
    /// The threads of each manager.
    pub(super) threads: [usize; 2],
    pub(super) calls: u8,
    /// Requests that get no answer: lost, executed with the answer lost, or executed much later.
    pub(super) unanswered: u8,
    /// Deletes that are carried out twice.
    pub(super) repeated: u8,
    /// Watch streams that break.
    pub(super) breaks: u8,
    pub(super) expiries: u8,
    pub(super) timers: u8,
    /// How often a manager's thread may take further input before it carries out its actions.
    pub(super) bursts: u8,
}

/// One event that can happen next.
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
    Abandon {
        node: usize,
        thread: usize,
    },
    /// The store executes the request.
    Execute {
        node: usize,
        at: usize,
    },
    /// The store executes the request, and a copy of it remains in flight.
    Repeat {
        node: usize,
        at: usize,
    },
    /// The manager receives the answer.
    Answer {
        node: usize,
        at: usize,
    },
    /// The manager's request times out with an unknown outcome; the request stays in flight.
    GiveUp {
        node: usize,
        at: usize,
    },
    /// A watch request reaches the store.
    Open {
        node: usize,
        at: usize,
    },
    /// The manager receives the next event of its watch stream.
    Deliver {
        node: usize,
    },
    /// The watch stream breaks, its undelivered events are lost, and a new stream is opened.
    Break {
        node: usize,
    },
    /// The manager's next timer fires.
    Timer {
        node: usize,
    },
    /// The manager's lease expires.
    Expire {
        node: usize,
    },
    /// The manager's thread carries out the actions that its input led to.
    Act {
        node: usize,
    },
}

#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) scope: Scope,
    pub(super) now: Time,
    pub(super) model: Model,
    pub(super) sides: [Side; 2],
    pub(super) last_ticket: u64,
    pub(super) last_token: Revision,
}

#[derive(Clone, Debug)]
pub(super) struct Side {
    pub(super) protocol: Protocol,
    pub(super) lease: Option<LeaseId>,
    pub(super) deadline: Option<Time>,
    pub(super) threads: Vec<Caller>,
    pub(super) requests: Vec<InFlight>,
    /// Watches that were requested and are not open yet.
    pub(super) asked: Vec<WatchId>,
    pub(super) wanted: BTreeMap<WatchId, WatchSpec>,
    pub(super) open: BTreeMap<WatchId, Watcher>,
    pub(super) events: VecDeque<WatchEvent>,
    /// The protocol has taken input whose actions are not carried out yet.
    pub(super) busy: bool,
}

#[derive(Clone, Debug)]
pub(super) struct InFlight {
    pub(super) id: RequestId,
    pub(super) request: Request,
    /// The manager no longer waits for the answer.
    pub(super) abandoned: bool,
    pub(super) reply: Option<Result<Response, Failure>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    Idle,
    /// `kept_out`: at some time since the call, another contender or waiter justified the refusal of a try.
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
    Ending {
        ticket: Ticket,
        held: Option<(HoldId, Key, Revision)>,
        lost: bool,
    },
}

pub(super) type Checked = Result<(), String>;

impl State {
    /// Both sessions are up and watched, and there is no ticket yet.
    pub(super) fn new(scope: Scope) -> Self {
        let side = |node: usize| Side {
            protocol: Protocol::new(Config {
                root: root(),
                owner: "walker".into(),
                pid: 1,
                ttl: TTL,
                safety_margin: TTL / 10,
                request_timeout: Duration::from_secs(1),
                writes_in_flight: 1,
                seed: 1,
            }),
            lease: None,
            deadline: None,
            threads: vec![Caller::Idle; scope.threads[node]],
            requests: Vec::new(),
            asked: Vec::new(),
            wanted: BTreeMap::new(),
            open: BTreeMap::new(),
            events: VecDeque::new(),
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
            state.act(node).expect("the set-up breaks no promise");
            while state.sides[node].lease.is_none() || !state.sides[node].events.is_empty() {
                let choices = state.choices();
                let set_up = choices.into_iter().find(|choice| {
                    matches!(
                        choice,
                        Choice::Execute { .. }
                            | Choice::Answer { .. }
                            | Choice::Open { .. }
                            | Choice::Deliver { .. }
                    )
                });
                state
                    .happen(set_up.expect("the session comes up"), false)
                    .expect("the set-up breaks no promise");
            }
        }
        state
    }

    /// Every event that can happen next.
    pub(super) fn choices(&self) -> Vec<Choice> {
        let mut choices = Vec::new();
        for (node, side) in self.sides.iter().enumerate() {
            if side.busy {
                choices.push(Choice::Act { node });
            }
            for (at, it) in side.requests.iter().enumerate() {
                match &it.reply {
                    None => choices.push(Choice::Execute { node, at }),
                    Some(_) if !it.abandoned => choices.push(Choice::Answer { node, at }),
                    Some(_) => {}
                }
                if it.reply.is_none() && self.scope.repeated > 0 && is_delete(&it.request) {
                    choices.push(Choice::Repeat { node, at });
                }
                // Losing the answer to a read leads to no state that these losses do not reach.
                if !it.abandoned && self.scope.unanswered > 0 && it.request.is_write() {
                    choices.push(Choice::GiveUp { node, at });
                }
            }
            choices.extend((0..side.asked.len()).map(|at| Choice::Open { node, at }));
            if !side.events.is_empty() {
                choices.push(Choice::Deliver { node });
            }
            for (thread, caller) in side.threads.iter().enumerate() {
                match caller {
                    Caller::Idle if self.scope.calls > 0 => {
                        choices.extend([Choice::Lock { node, thread }, Choice::Try { node, thread }]);
                    }
                    Caller::Waiting { try_only: false, .. } | Caller::Holding { .. } => {
                        choices.push(Choice::Abandon { node, thread });
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

    /// Whether the manager may take further input before it carries out the actions of this event.
    pub(super) fn may_wait(&self, choice: Choice) -> bool {
        let feeds = matches!(
            choice,
            Choice::Lock { .. }
                | Choice::Try { .. }
                | Choice::Abandon { .. }
                | Choice::Answer { .. }
                | Choice::GiveUp { .. }
                | Choice::Deliver { .. }
                | Choice::Timer { .. }
        );
        feeds && self.scope.bursts > 0
    }
}

impl Choice {
    pub(super) fn node(self) -> usize {
        match self {
            Self::Lock { node, .. }
            | Self::Try { node, .. }
            | Self::Abandon { node, .. }
            | Self::Execute { node, .. }
            | Self::Repeat { node, .. }
            | Self::Answer { node, .. }
            | Self::GiveUp { node, .. }
            | Self::Open { node, .. }
            | Self::Deliver { node }
            | Self::Break { node }
            | Self::Timer { node }
            | Self::Expire { node }
            | Self::Act { node } => node,
        }
    }
}

pub(super) fn name() -> LockName {
    LockName::parse(&root(), "a").expect("a valid name")
}

pub(super) fn contenders(model: &Model) -> Vec<KeyValue> {
    keys_within(model, name().contenders())
}

/// A delete, and nothing else.
pub(super) fn is_delete(request: &Request) -> bool {
    super::super::network::only_deletes(request)
}
