//! One manager of the world.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use super::world::{MARGIN, TTL};
use crate::error::LossReason;
use crate::kv::{Key, Request, Revision, WatchEvent, WatchId};
use crate::name::Root;
use crate::protocol::{
    Action, Config, FencedAnswer, FencedFailure, FencedId, HoldId, Protocol, Refusal, ReleaseFailure,
    RequestId, Ticket,
};
use crate::store::memory::model::Watcher;

pub(super) type FencedResult = Result<FencedAnswer, FencedFailure>;

pub(super) struct Node {
    pub(super) protocol: Protocol,
    /// Requests in flight, oldest first.
    pub(super) sent: VecDeque<(RequestId, Request)>,
    /// The number of requests sent, by kind.
    pub(super) count: BTreeMap<&'static str, usize>,
    pub(super) watches: HashMap<WatchId, Watcher>,
    /// The watches that a restore has closed.
    pub(super) watches_before: Vec<WatchId>,
    pub(super) outcomes: HashMap<Ticket, Outcome>,
    pub(super) confirms: HashMap<Ticket, Result<(), ReleaseFailure>>,
    pub(super) fenced: BTreeMap<FencedId, FencedResult>,
    pub(super) holds: HashMap<HoldId, Option<LossReason>>,
    /// All actions except requests and watches, in order.
    pub(super) log: Vec<String>,
    pub(super) closed: bool,
    /// Watch events are held back.
    pub(super) events_held_back: bool,
    /// Actions are not carried out yet.
    pub(super) actions_held_back: bool,
    pub(super) undelivered: VecDeque<WatchEvent>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outcome {
    Granted { hold: HoldId, token: Revision, key: Key },
    Refused(Refusal),
}

impl Node {
    pub(super) fn new() -> Self {
        let config = Config {
            root: Root::parse("/t").unwrap(),
            owner: "owner".into(),
            pid: 1,
            ttl: TTL,
            safety_margin: MARGIN,
            request_timeout: Duration::from_secs(5),
            writes_in_flight: crate::protocol::WRITES_IN_FLIGHT,
            seed: 7,
        };
        Self {
            protocol: Protocol::new(config),
            sent: VecDeque::new(),
            count: BTreeMap::new(),
            watches: HashMap::new(),
            watches_before: Vec::new(),
            outcomes: HashMap::new(),
            confirms: HashMap::new(),
            fenced: BTreeMap::new(),
            holds: HashMap::new(),
            log: Vec::new(),
            closed: false,
            events_held_back: false,
            actions_held_back: false,
            undelivered: VecDeque::new(),
        }
    }

    pub(super) fn note(&mut self, action: Action) {
        self.log.push(format!("{action:?}"));
        match action {
            Action::Grant { ticket, hold, key, token, .. } => {
                let old = self.outcomes.insert(ticket, Outcome::Granted { hold, token, key });
                assert_eq!(old, None, "{ticket:?} is answered once");
            }
            Action::Refuse { ticket, refusal } => {
                let old = self.outcomes.insert(ticket, Outcome::Refused(refusal));
                assert_eq!(old, None, "{ticket:?} is answered once");
            }
            Action::Confirm { ticket, result } => assert!(self.confirms.insert(ticket, result).is_none()),
            Action::Fenced { id, result } => assert!(self.fenced.insert(id, result).is_none()),
            Action::EndHold { hold, lost } => {
                assert!(self.holds.insert(hold, lost).is_none(), "{hold:?} ends once");
            }
            Action::SessionDown { reason } => {
                for outcome in self.outcomes.values() {
                    if let Outcome::Granted { hold, .. } = outcome {
                        self.holds.entry(*hold).or_insert(Some(reason));
                    }
                }
            }
            Action::Closed => self.closed = true,
            _ => {}
        }
    }
}
