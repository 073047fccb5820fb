//! A small world that can be copied: two managers on one name, and every single thing that can happen next.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::super::world::root;
use super::fingerprint::FIRST_REVISION;
use crate::clock::Time;
use crate::kv::{
    Failure, Key, KeyValue, LeaseId, Order, Range, Request, Response, Revision, Span, WatchEvent, WatchId,
    WatchSpec,
};
use crate::name::LockName;
use crate::protocol::{Config, HoldId, Protocol, RequestId, Ticket};
use crate::store::memory::model::{Limits, Model, Watcher};

pub(super) const TTL: Duration = Duration::from_secs(5);

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
    Abandon {
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
    /// Watches that were asked for and are not open yet.
    pub(super) asked: Vec<WatchId>,
    pub(super) wanted: BTreeMap<WatchId, WatchSpec>,
    pub(super) open: BTreeMap<WatchId, Watcher>,
    pub(super) told: VecDeque<WatchEvent>,
    /// It has taken something in and has not acted yet.
    pub(super) busy: bool,
}

#[derive(Clone, Debug)]
pub(super) struct InFlight {
    pub(super) id: RequestId,
    pub(super) request: Request,
    /// Nobody waits for the answer.
    pub(super) unheard: bool,
    pub(super) reply: Option<Result<Response, Failure>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Caller {
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
    Ending {
        ticket: Ticket,
        held: Option<(HoldId, Key, Revision)>,
        lost: bool,
    },
}

pub(super) type Checked = Result<(), String>;

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

    /// Whether the manager may take in something more before it acts on this.
    pub(super) fn may_wait(&self, choice: Choice) -> bool {
        let feeds = matches!(
            choice,
            Choice::Lock { .. }
                | Choice::Try { .. }
                | Choice::Abandon { .. }
                | Choice::Answer { .. }
                | Choice::GiveUp { .. }
                | Choice::Tell { .. }
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
            | Self::Tell { node }
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

pub(super) fn contenders(model: &Model) -> Vec<KeyValue> {
    read(model, name().contenders())
}

pub(super) fn everything(model: &Model) -> Vec<KeyValue> {
    read(model, Span::Prefix(Key::from(format!("{}/", root().as_str()))))
}

/// A delete, and nothing else.
pub(super) fn is_delete(request: &Request) -> bool {
    super::super::network::only_deletes(request)
}
