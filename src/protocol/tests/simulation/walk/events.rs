//! The events of the small world, one after the other.

use std::time::Duration;

use super::state::{Caller, Checked, Choice, InFlight, State, TTL, contenders, name};
use crate::kv::{Failure, FailureClass, WatchEvent};
use crate::mode::Mode;
use crate::protocol::{Acquire, Command, Ticket, WaitLimits};
use crate::store::memory::model::Notice;

impl State {
    /// Executes one event; `Err` names the broken promise. With `wait`, the manager does not carry out its actions yet.
    pub(super) fn happen(&mut self, choice: Choice, wait: bool) -> Checked {
        let (now, node) = (self.now, choice.node());
        match choice {
            Choice::Lock { thread, .. } => self.ask(node, thread, false),
            Choice::Try { thread, .. } => self.ask(node, thread, true),
            Choice::Abandon { thread, .. } => self.abandon(node, thread),
            Choice::Execute { at, .. } => return self.execute(node, at),
            Choice::Repeat { at, .. } => {
                self.scope.repeated -= 1;
                let copy = InFlight { abandoned: true, ..self.sides[node].requests[at].clone() };
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
                it.abandoned = true;
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
            Choice::Deliver { .. } => {
                if let Some(event) = self.sides[node].events.pop_front() {
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
            mode: Mode::Exclusive,
            thread: thread as u64,
            limits: WaitLimits { try_only, deadline: None, budget: None },
            retry_interval: Duration::from_millis(100),
            warn_after: None,
            since: self.now,
            asked_at: Duration::from_secs(1),
            note: None,
        };
        self.sides[node].protocol.handle_command(self.now, Command::Acquire(acquire));
    }

    fn abandon(&mut self, node: usize, thread: usize) {
        let caller = &mut self.sides[node].threads[thread];
        let (ticket, held) = match caller.clone() {
            Caller::Waiting { ticket, .. } => (ticket, None),
            Caller::Holding { ticket, hold, key, token } => (ticket, Some((hold, key, token))),
            Caller::Idle | Caller::Ending { .. } => return,
        };
        *caller = Caller::Ending { ticket, held, lost: false };
        self.sides[node].protocol.handle_command(self.now, Command::Abandon { ticket, confirm: true });
    }

    fn execute(&mut self, node: usize, at: usize) -> Checked {
        let it = &mut self.sides[node].requests[at];
        let reply = self.model.execute(self.now, &it.request);
        if it.abandoned {
            self.sides[node].requests.remove(at);
        } else {
            it.reply = Some(reply);
        }
        self.after_the_store()
    }

    fn expire(&mut self, node: usize) -> Checked {
        self.scope.expiries -= 1;
        if let (Some(lease), Some(due)) = (self.sides[node].lease, self.model.next_expiry()) {
            // The other manager's lease does not expire: its renewals are assumed to succeed meanwhile.
            self.now = self.now.max(due + TTL);
            self.model.expire_lease(lease);
            self.model.extend_all_leases(self.now);
        }
        self.after_the_store()
    }

    fn after_the_store(&mut self) -> Checked {
        while let Some((watcher, notice)) = self.model.poll_notice() {
            for side in &mut self.sides {
                let open = side.open.iter().find(|&(_, &open)| open == watcher);
                if let (Some((&watch, _)), Notice::Deleted { keys, revision }) = (open, &notice) {
                    side.events.push_back(WatchEvent::Deleted {
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
        side.events.push_back(WatchEvent::Created { watch, revision });
        let _ = self.after_the_store();
    }

    fn reopen(&mut self, node: usize) {
        let side = &mut self.sides[node];
        for watcher in std::mem::take(&mut side.open).into_values() {
            self.model.unwatch(watcher);
        }
        side.events.clear();
        side.asked = side.wanted.keys().copied().collect();
    }

    /// A try is kept out by another session's key in etcd, or by another thread's wait or hold in this process.
    pub(super) fn note_who_is_kept_out(&mut self) {
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
}
