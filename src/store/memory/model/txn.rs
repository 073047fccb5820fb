//! Transactions: what etcd refuses before it starts, which branches run, and their operations.

use std::collections::BTreeSet;

use crate::kv::{Failure, FailureClass, Key, LeaseId, Op, OpResult, Range, Span, Txn, TxnAnswer};

use super::refusal::{check_key, denied, lease_gone, no_space, refused};
use super::{Model, Space};

/// etcd's default of `--max-request-bytes`.
const MAX_REQUEST_BYTES: usize = 3 << 19;

/// The branch of a transaction that will run, decided before any operation runs.
struct Plan<'a> {
    succeeded: bool,
    steps: Vec<Step<'a>>,
}

/// An [`Op`] whose nested transactions are also decided.
enum Step<'a> {
    Put { key: &'a Key, value: &'a [u8], lease: LeaseId },
    Range(&'a Range),
    Delete { key: &'a Key },
    Txn(Plan<'a>),
}

impl Model {
    /// Executes the whole transaction or none of it: everything that can be refused is refused before the first
    /// operation runs.
    pub(super) fn txn(&mut self, txn: &Txn) -> Result<TxnAnswer, Failure> {
        check_size(txn, self.limits.max_txn_ops)?;
        if bytes(txn) > MAX_REQUEST_BYTES {
            return Err(Failure::new(FailureClass::TooLarge, "etcdserver: request is too large"));
        }
        writes(&txn.then)?;
        writes(&txn.otherwise)?;
        if self.denied.as_ref().is_some_and(|denied| touches(txn, denied)) {
            return Err(denied());
        }
        if self.space == Space::Full && puts(txn) {
            return Err(no_space());
        }
        let plan = self.plan(txn);
        self.check_leases(&plan)?;
        self.check_revisions(&plan)?;
        let answer = self.run(plan);
        self.commit();
        // etcd's `quotaApplierV3` executes the transaction before it refuses it.
        if self.space == Space::FoundOutAfterwards && puts(txn) {
            return Err(no_space());
        }
        Ok(answer)
    }

    /// Evaluates the compares of every level that will run, against the store as it was before the transaction.
    fn plan<'a>(&self, txn: &'a Txn) -> Plan<'a> {
        let succeeded = txn.when.iter().all(|compare| self.keys.satisfies(compare));
        let branch = if succeeded { &txn.then } else { &txn.otherwise };
        let steps = branch.iter().map(|op| match op {
            Op::Put { key, value, lease } => Step::Put { key, value, lease: *lease },
            Op::Range(range) => Step::Range(range),
            Op::Delete { key } => Step::Delete { key },
            Op::Txn(nested) => Step::Txn(self.plan(nested)),
        });
        Plan { succeeded, steps: steps.collect() }
    }

    /// A put with a lease that does not exist fails the whole transaction, if its branch runs.
    fn check_leases(&self, plan: &Plan<'_>) -> Result<(), Failure> {
        plan.steps.iter().try_for_each(|step| match step {
            Step::Put { lease, .. } if *lease != 0 && !self.leases.contains(*lease) => Err(lease_gone()),
            Step::Txn(nested) => self.check_leases(nested),
            _ => Ok(()),
        })
    }

    /// The same for a read of a revision that cannot be read. The revision of the transaction itself is still in the
    /// future.
    fn check_revisions(&self, plan: &Plan<'_>) -> Result<(), Failure> {
        plan.steps.iter().try_for_each(|step| match step {
            Step::Range(range) => self.keys.check_readable(range.at_revision),
            Step::Txn(nested) => self.check_revisions(nested),
            _ => Ok(()),
        })
    }

    fn run(&mut self, plan: Plan<'_>) -> TxnAnswer {
        let results = plan.steps.into_iter().map(|step| match step {
            Step::Put { key, value, lease } => {
                self.put(key, value, lease);
                OpResult::Put
            }
            Step::Range(range) => OpResult::Range(self.keys.range(range)),
            Step::Delete { key } => OpResult::Deleted { count: self.delete(key) },
            Step::Txn(nested) => OpResult::Txn(self.run(nested)),
        });
        TxnAnswer { succeeded: plan.succeeded, results: results.collect() }
    }

    /// Puts a key. It belongs to the lease of its last put only, and to none if that put named none.
    fn put(&mut self, key: &Key, value: &[u8], lease: LeaseId) {
        let before = self.keys.put(key, value.to_vec(), lease);
        self.leases.detach(before, key);
        self.leases.attach(lease, key);
    }

    /// Deletes a key as part of the current revision.
    pub(super) fn delete(&mut self, key: &Key) -> u64 {
        match self.keys.delete(key) {
            Some(lease) => {
                self.leases.detach(lease, key);
                1
            }
            None => 0,
        }
    }
}

/// Checks etcd's `--max-txn-ops`: the limit of each of the three lists, and the length of the longest is subtracted
/// from the limit of nested transactions. Also checks that every operation has a key.
fn check_size(txn: &Txn, max_ops: usize) -> Result<(), Failure> {
    let longest = txn.when.len().max(txn.then.len()).max(txn.otherwise.len());
    let Some(left) = max_ops.checked_sub(longest) else {
        let message = "etcdserver: too many operations in txn request";
        return Err(Failure::new(FailureClass::TooManyOperations, message));
    };
    let mut ops = txn.then.iter().chain(&txn.otherwise);
    ops.try_for_each(|op| match op {
        Op::Put { key, .. } | Op::Delete { key } => check_key(key),
        Op::Range(_) => Ok(()),
        Op::Txn(nested) => check_size(nested, left),
    })
}

/// The size of what the transaction can write, which is nearly all of a large request.
fn bytes(txn: &Txn) -> usize {
    let ops = txn.then.iter().chain(&txn.otherwise);
    ops.map(|op| match op {
        Op::Put { key, value, .. } => key.as_bytes().len() + value.len(),
        Op::Txn(nested) => bytes(nested),
        Op::Delete { .. } | Op::Range(_) => 0,
    })
    .sum()
}

/// The keys that a list of operations can write, nested transactions included.
#[derive(Default)]
struct Writes<'a> {
    put: BTreeSet<&'a Key>,
    deleted: BTreeSet<&'a Key>,
}

/// etcd's `checkIntervals`: no key is put twice, and no key is put and deleted. It examines all branches, whichever
/// will run, except that the two branches of one nested transaction may put the same key.
///
/// etcd does not detect one order, and neither does the model: a put in a nested transaction, followed by a delete in a
/// later nested transaction of the same list.
fn writes(ops: &[Op]) -> Result<Writes<'_>, Failure> {
    let mut all = Writes::default();
    for op in ops {
        if let Op::Delete { key } = op {
            all.deleted.insert(key);
        }
    }
    for op in ops {
        if let Op::Txn(nested) = op {
            let (then, otherwise) = (writes(&nested.then)?, writes(&nested.otherwise)?);
            for key in &then.put {
                all.put_once(key)?;
            }
            for key in otherwise.put.difference(&then.put) {
                all.put_once(key)?;
            }
            all.deleted.extend(then.deleted);
            all.deleted.extend(otherwise.deleted);
        }
    }
    for op in ops {
        if let Op::Put { key, .. } = op {
            all.put_once(key)?;
        }
    }
    Ok(all)
}

impl<'a> Writes<'a> {
    fn put_once(&mut self, key: &'a Key) -> Result<(), Failure> {
        if self.deleted.contains(key) || !self.put.insert(key) {
            return Err(refused("etcdserver: duplicate key given in txn request"));
        }
        Ok(())
    }
}

/// Whether any branch of the transaction has a put.
fn puts(txn: &Txn) -> bool {
    txn.then.iter().chain(&txn.otherwise).any(|op| match op {
        Op::Put { .. } => true,
        Op::Txn(nested) => puts(nested),
        Op::Range(_) | Op::Delete { .. } => false,
    })
}

/// Whether any branch of the transaction reads or writes a key of the span.
fn touches(txn: &Txn, span: &Span) -> bool {
    txn.when.iter().any(|compare| compare.span.overlaps(span))
        || txn.then.iter().chain(&txn.otherwise).any(|op| match op {
            Op::Put { key, .. } | Op::Delete { key } => span.contains(key),
            Op::Range(range) => range.span.overlaps(span),
            Op::Txn(nested) => touches(nested, span),
        })
}
