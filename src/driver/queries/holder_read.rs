//! The holder of a lock as of a revision, for observers.

use std::time::Duration;

use super::asker::Asker;
use crate::kv::{
    Answer, Failure, KeyValue, Op, OpResult, Order, Range, Request, Response, Revision, TxnAnswer,
};
use crate::name::LockName;
use crate::protocol::{self, CurrentHolder};
use crate::store::Store;

/// Of the contenders behind a holder, those of its own session do not count: they are about to be deleted, and few.
const NEWEST: u32 = 8;

/// The holder of a lock as of a revision.
#[derive(Clone, Debug)]
pub(crate) struct HolderRead {
    pub(crate) revision: Revision,
    pub(crate) holder: Option<CurrentHolder>,
    /// The contenders that were asked for, without their values.
    pub(crate) contenders: Vec<KeyValue>,
}

/// Which contenders to read with the holder, at the same revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contenders {
    None,
    /// A few of the newest.
    Newest,
    All,
}

/// Reads the holder, and these contenders.
pub(crate) async fn read_holder<S: Store>(
    store: &S,
    name: &LockName,
    contenders: Contenders,
    timeout: Duration,
) -> Result<HolderRead, Failure> {
    let mut txn = protocol::holder(name);
    if contenders != Contenders::None {
        txn.then.push(Op::Range(Range {
            span: name.contenders(),
            order: Order::NewestFirst,
            limit: if contenders == Contenders::All { 0 } else { NEWEST },
            max_create_revision: 0,
            at_revision: 0,
            keys_only: true,
        }));
    }
    let Response { revision, answer, .. } = Asker::new(store, timeout).ask(Request::Txn(txn)).await.0?;
    let Answer::Txn(TxnAnswer { succeeded, mut results }) = answer else {
        return Err(Failure::malformed());
    };
    let asked = contenders != Contenders::None;
    let contenders = match if asked { results.pop() } else { None } {
        Some(OpResult::Range(range)) => range.kvs,
        Some(_) => return Err(Failure::malformed()),
        None => Vec::new(),
    };
    let holder = protocol::holder_answer(Answer::Txn(TxnAnswer { succeeded, results }))?;
    Ok(HolderRead { revision, holder, contenders })
}
