//! What the store has, for the checks and the faults.

use super::world::root;
use crate::kv::{Key, KeyValue, Order, Range, Span};
use crate::store::memory::model::Model;

/// The keys of a span without their values, oldest first.
pub(super) fn keys_within(model: &Model, span: Span) -> Vec<KeyValue> {
    oldest_of(model, span, 0)
}

/// The oldest key of a span.
pub(super) fn oldest_within(model: &Model, span: Span) -> Option<KeyValue> {
    oldest_of(model, span, 1).pop()
}

/// Every key of the library.
pub(super) fn everything() -> Span {
    Span::Prefix(Key::from(format!("{}/", root().as_str())))
}

/// The session keys.
pub(super) fn sessions() -> Span {
    Span::Prefix(Key::from(format!("{}/~session/", root().as_str())))
}

/// The first keys of a span; 0 is no limit.
fn oldest_of(model: &Model, span: Span, limit: u32) -> Vec<KeyValue> {
    let range = Range {
        span,
        order: Order::OldestFirst,
        limit,
        max_create_revision: 0,
        at_revision: 0,
        keys_only: true,
    };
    model.read(&range).map(|found| found.kvs).unwrap_or_default()
}
