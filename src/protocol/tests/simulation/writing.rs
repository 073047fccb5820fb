//! Holders that write to etcd while they hold, and what must be true of that.
//!
//! Each name has one key of data. A holder puts, reads and changes its note, one after the other, and each value says
//! which hold wrote it and as its how manieth.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::checks::Violation;
use super::reading::keys_within;
use super::world::{Event, World};
use crate::kv::{FailureClass, Key, Order, Range, Revision, Span};
use crate::protocol::{
    Command, FencedAnswer, FencedCall, FencedFailure, FencedId, FencedRequest, FencedWrite, Ticket,
};

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
    /// Up to this number, no write may be applied any more.
    settled: u64,
}

#[derive(Debug)]
struct Asked {
    ticket: Ticket,
    what: What,
}

#[derive(Debug)]
enum What {
    Put(String, u64),
    /// A read, after the write with this number.
    Get(u64),
    Note,
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
        writing.holds.insert(ticket, Writer { node, life, name, token, last: 0, settled: 0 });
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
        let kind = self.rng.u8(0..8);
        let until = self.local(node) + LIMIT;
        let Some(writing) = &mut self.writing else { return };
        let Some(writer) = writing.holds.get_mut(&ticket) else { return };
        writing.last_call += 1;
        let id = FencedId(writing.last_call);
        let key = data(writer.name);
        let (request, what) = match kind {
            0 => (FencedRequest::Note(Some(format!("note {}", writing.last_call).into())), What::Note),
            1 => (FencedRequest::Get(key), What::Get(writer.last)),
            _ => {
                writer.last += 1;
                let value = format!("{}/{}/{}", ticket.0, writer.last, writer.token);
                let write = FencedWrite::Put { key, value: value.clone().into() };
                (FencedRequest::Write(vec![write]), What::Put(value, writer.last))
            }
        };
        writing.calls.insert(id, Asked { ticket, what });
        self.post(node, Command::Fenced(FencedCall { id, ticket, request, until }));
    }

    /// A holder's request was answered.
    pub(super) fn wrote(
        &mut self,
        id: FencedId,
        result: Result<FencedAnswer, FencedFailure>,
    ) -> Result<(), Violation> {
        let Some(writing) = &mut self.writing else { return Ok(()) };
        let Some(Asked { ticket, what }) = writing.calls.remove(&id) else {
            return Err(Violation::new(format!("{id:?} is answered twice")));
        };
        let Some(writer) = writing.holds.get_mut(&ticket) else { return Ok(()) };
        let not_done = match &result {
            Ok(_) => false,
            Err(FencedFailure::NotHeld) => true,
            Err(FencedFailure::Failed(failure)) => {
                !matches!(failure.class, FailureClass::Unknown | FailureClass::NoSpace)
            }
        };
        match what {
            What::Put(value, number) if result.is_ok() => {
                writer.settled = writer.settled.max(number);
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
            What::Get(last) if result.is_ok() => writer.settled = writer.settled.max(last),
            What::Put(..) | What::Get(_) | What::Note => {}
        }
        if !matches!(result, Err(FencedFailure::NotHeld)) {
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
            let settled = writing.holds.get(&ticket).map_or(0, |writer| writer.settled);
            let wrong = if !stands {
                Some("its hold is over")
            } else if number <= settled {
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
