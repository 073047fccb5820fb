//! Contenders of other clients in the same queue.

use std::time::Duration;

use super::world::{Event, World};
use crate::kv::{Answer, Compare, Field, Key, LeaseId, Op, Request, Span, Txn};
use crate::name::LockName;

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
    pub(super) fn add_foreign(&mut self) {
        let name = self.names[self.rng.usize(..self.names.len())].clone();
        let grant = self.model.execute(self.now, &Request::GrantLease { ttl: self.ttl });
        let Ok(Answer::LeaseGranted { lease, .. }) = grant.map(|response| response.answer) else {
            return;
        };
        let Span::Prefix(prefix) = name.contenders() else {
            return;
        };
        let key = Key::from(format!("{prefix}{lease:x}"));
        let enter = Txn {
            when: vec![Compare::equal(Span::Key(key.clone()), Field::CreateRevision, 0)],
            then: vec![Op::Put { key: key.clone(), value: Vec::new(), lease }],
            otherwise: Vec::new(),
        };
        let _ = self.model.execute(self.now, &Request::Txn(enter));
        self.foreign.push(Foreign { name, lease, key, phase: Phase::Waiting });
        self.schedule(Duration::from_millis(50), Event::Foreign(self.foreign.len() - 1));
    }

    pub(super) fn advance_foreign(&mut self, at: usize) {
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
