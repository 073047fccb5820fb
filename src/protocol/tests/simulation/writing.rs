//! Holders that write to etcd while they hold, and what must be true of that.
//!
//! Each name has one key of data. A holder puts, reads and changes its note, sometimes two at once, as its threads may, and
//! each value says which hold wrote it and as its how manieth.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::checks::Violation;
use super::reading::keys_within;
use super::world::{Event, World};
use crate::kv::{FailureClass, Key, Order, Range, Revision, Span};
use crate::protocol::{
    Command, FencedAnswer, FencedCall, FencedFailure, FencedId, FencedRequest, FencedWrite, Ticket,
};
use crate::store::memory::model::Model;

/// The time limit of a holder's request, as in the library that of any request.
const LIMIT: Duration = Duration::from_secs(1);

/// What holders have written and were told.
#[derive(Debug, Default)]
pub(super) struct Writing {
    last_call: u64,
    /// Requests without an answer.
    calls: BTreeMap<FencedId, Asked>,
    holds: BTreeMap<Ticket, Writer>,
    /// Every value that was applied, and those that were said not to be.
    applied: BTreeSet<String>,
    refused: BTreeSet<String>,
    /// The mod revision of each name's data.
    data: BTreeMap<usize, Revision>,
}

/// One hold's writes.
#[derive(Debug)]
struct Writer {
    node: usize,
    life: u32,
    name: usize,
    token: Revision,
    /// The number of its last write.
    last: u64,
    /// Its writes without an answer.
    in_flight: BTreeSet<u64>,
    /// Its requests without an answer.
    waiting: usize,
    /// These writes must not be applied any more: a request that began after their end was acknowledged.
    settled: BTreeSet<u64>,
}

impl Writer {
    /// The writes that have ended by now.
    fn ended(&self) -> Vec<u64> {
        (1..=self.last).filter(|number| !self.in_flight.contains(number)).collect()
    }
}

#[derive(Debug)]
struct Asked {
    ticket: Ticket,
    what: What,
    /// The writes of its hold that had ended when it was made.
    after: Vec<u64>,
}

#[derive(Debug)]
enum What {
    Put(String, u64),
    Get(Key),
    Note,
}

/// The value of a key as of a revision; `None` if the store does not know it any more.
fn value_at(model: &Model, key: &Key, at_revision: Revision) -> Option<Option<Vec<u8>>> {
    let range = Range {
        span: Span::Key(key.clone()),
        order: Order::ByKey,
        limit: 1,
        max_create_revision: 0,
        at_revision,
        keys_only: false,
    };
    Some(model.read(&range).ok()?.kvs.into_iter().next().map(|kv| kv.value))
}

fn data(name: usize) -> Key {
    Key::from(format!("/data/{name}"))
}

impl World {
    /// A world whose holders write.
    pub(super) fn with_writers(seed: u64, tracing: bool) -> Self {
        let mut world = Self::new(seed, tracing);
        world.writing = Some(Writing::default());
        world
    }

    /// A ticket was granted: it writes soon.
    pub(super) fn begin_writing(&mut self, node: usize, ticket: Ticket, name: usize, token: Revision) {
        let life = self.nodes[node].life;
        let Some(writing) = &mut self.writing else { return };
        writing.holds.insert(
            ticket,
            Writer {
                node,
                life,
                name,
                token,
                last: 0,
                in_flight: BTreeSet::new(),
                waiting: 0,
                settled: BTreeSet::new(),
            },
        );
        self.write_soon(node, life, ticket);
    }

    fn write_soon(&mut self, node: usize, life: u32, ticket: Ticket) {
        let after = self.below(Duration::from_millis(20));
        self.schedule(after, Event::Write { node, life, ticket });
    }

    /// The holder's next request.
    pub(super) fn write(&mut self, node: usize, life: u32, ticket: Ticket) {
        if self.nodes[node].life != life || !self.is_holding(node, ticket) {
            return;
        }
        let (kind, another) = (self.rng.u8(0..8), self.rng.u8(0..4) == 0);
        let until = self.local(node) + LIMIT;
        let Some(writing) = &mut self.writing else { return };
        let Some(writer) = writing.holds.get_mut(&ticket) else { return };
        let after = writer.ended();
        writing.last_call += 1;
        let id = FencedId(writing.last_call);
        let key = data(writer.name);
        let (request, what) = match kind {
            0 => (FencedRequest::Note(Some(format!("note {}", writing.last_call).into())), What::Note),
            1 => (FencedRequest::Get(key.clone()), What::Get(key)),
            _ => {
                writer.last += 1;
                writer.in_flight.insert(writer.last);
                let value = format!("{}/{}/{}", ticket.0, writer.last, writer.token);
                let write = FencedWrite::Put { key, value: value.clone().into() };
                (FencedRequest::Write(vec![write]), What::Put(value, writer.last))
            }
        };
        writing.calls.insert(id, Asked { ticket, what, after });
        writer.waiting += 1;
        let another = another && writer.waiting < 2;
        self.post(node, Command::Fenced(FencedCall { id, ticket, request, until }));
        if another {
            self.write_soon(node, life, ticket);
        }
    }

    /// A holder's request was answered.
    pub(super) fn wrote(
        &mut self,
        id: FencedId,
        result: Result<FencedAnswer, FencedFailure>,
    ) -> Result<(), Violation> {
        let Some(writing) = &mut self.writing else { return Ok(()) };
        let Some(Asked { ticket, what, after }) = writing.calls.remove(&id) else {
            return Err(Violation::new(format!("{id:?} is answered twice")));
        };
        let Some(writer) = writing.holds.get_mut(&ticket) else { return Ok(()) };
        writer.waiting -= 1;
        if let What::Put(_, number) = &what {
            writer.in_flight.remove(number);
        }
        if result.is_ok() && !matches!(what, What::Note) {
            writer.settled.extend(after);
        }
        let idle = writer.waiting == 0;
        let not_done = match &result {
            Ok(_) => false,
            Err(FencedFailure::NotHeld) => true,
            Err(FencedFailure::Failed(failure)) => {
                !matches!(failure.class, FailureClass::Unknown | FailureClass::NoSpace)
            }
        };
        match what {
            What::Put(value, number) if result.is_ok() => {
                writer.settled.insert(number);
                self.tally.writes += 1;
                if !writing.applied.contains(&value) {
                    return Err(Violation::new(format!(
                        "the write {value} is acknowledged and was never applied"
                    )));
                }
            }
            What::Put(value, _) if not_done => {
                if writing.applied.contains(&value) {
                    return Err(Violation::new(format!(
                        "the write {value} was applied, and is answered {result:?}"
                    )));
                }
                writing.refused.insert(value);
            }
            What::Get(key) => {
                if let Ok(answer) = &result
                    && value_at(&self.model, &key, answer.revision).is_some_and(|value| value != answer.value)
                {
                    return Err(Violation::new(format!("a read of {key} is answered {answer:?}")));
                }
            }
            What::Put(..) | What::Note => {}
        }
        if idle && !matches!(result, Err(FencedFailure::NotHeld)) {
            let (node, life) = (writer.node, writer.life);
            self.write_soon(node, life, ticket);
        }
        Ok(())
    }

    /// A request was executed: whatever it wrote, it wrote while its hold stood, and not on top of something later.
    pub(super) fn check_written(&mut self) {
        let Some(writing) = &mut self.writing else { return };
        for (index, name) in self.names.iter().enumerate() {
            let range = Range {
                span: Span::Key(data(index)),
                order: Order::ByKey,
                limit: 1,
                max_create_revision: 0,
                at_revision: 0,
                keys_only: false,
            };
            let Some(kv) = self.model.read(&range).ok().and_then(|found| found.kvs.into_iter().next()) else {
                continue;
            };
            if writing.data.insert(index, kv.mod_revision) == Some(kv.mod_revision) {
                continue;
            }
            let value = String::from_utf8_lossy(&kv.value).into_owned();
            let parts: Vec<u64> = value.split('/').filter_map(|part| part.parse().ok()).collect();
            let (ticket, number) = (Ticket(parts[0]), parts[1]);
            let contenders = keys_within(&self.model, name.contenders());
            let stands = contenders.iter().any(|it| it.create_revision.unsigned_abs() == parts[2]);
            let settled = writing.holds.get(&ticket).is_some_and(|writer| writer.settled.contains(&number));
            let wrong = if !stands {
                Some("its hold is over")
            } else if settled {
                Some("a later request of the hold was acknowledged")
            } else if writing.refused.contains(&value) {
                Some("it was said not to be")
            } else {
                None
            };
            writing.applied.insert(value.clone());
            if let Some(wrong) = wrong {
                self.broken = Some(Violation::new(format!("the write {value} is applied, and {wrong}")));
            }
        }
    }
}
