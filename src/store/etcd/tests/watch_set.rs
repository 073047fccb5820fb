//! The watches' state machine, without any stream.

use std::time::Duration;

use tokio::time::Instant;

use crate::kv::{Key, Revision, Span, WatchEvent, WatchId, WatchSpec};
use crate::store::WatchOrder;
use crate::store::etcd::convert::{Change, WatchMessage};
use crate::store::etcd::watch_set::{Trouble, WatchRequest, WatchSet};

fn open(watches: &mut WatchSet, id: u64, from_revision: Revision) {
    let spec = WatchSpec { span: Span::Key(Key::from(format!("k{id}"))), from_revision, puts: false };
    watches.apply(WatchOrder::Open { id: WatchId(id), spec });
}

fn close(watches: &mut WatchSet, id: u64) {
    watches.apply(WatchOrder::Close { id: WatchId(id) });
}

/// Sends all queued requests and returns them in a short notation: create k1@0 as 1 = "+1 k1@0", cancel 1 = "-1", progress = "?".
fn send_all(watches: &mut WatchSet) -> Vec<String> {
    let mut sent = Vec::new();
    while let Some(request) = watches.next() {
        watches.mark_sent();
        sent.push(match request {
            WatchRequest::Create { wire, spec: WatchSpec { span: Span::Key(key), from_revision, .. } } => {
                format!("+{wire} {key}@{from_revision}")
            }
            WatchRequest::Create { wire, .. } => format!("+{wire}"),
            WatchRequest::Cancel { wire } => format!("-{wire}"),
            WatchRequest::Progress => "?".into(),
        });
    }
    sent
}

fn handle(watches: &mut WatchSet, message: WatchMessage) -> (Vec<WatchEvent>, Option<Trouble>) {
    let mut events = Vec::new();
    let trouble = watches.handle_message(message, Instant::now(), |event| events.push(event));
    (events, trouble)
}

fn created(wire: i64, revision: Revision) -> WatchMessage {
    WatchMessage { wire, revision, created: true, ..WatchMessage::default() }
}

fn deleted(wire: i64, key: &str, revision: Revision) -> WatchMessage {
    WatchMessage {
        wire,
        revision,
        changes: vec![Change { key: Key::from(key), revision, deleted: true }],
        ..WatchMessage::default()
    }
}

fn refused(wire: i64, reason: &str) -> WatchMessage {
    WatchMessage { canceled: true, reason: reason.into(), ..created(wire, 1) }
}

#[test]
fn a_watch_reports_deletions_until_it_is_closed() {
    let mut watches = WatchSet::default();
    open(&mut watches, 7, 0);
    assert_eq!(send_all(&mut watches), ["+1 k7@0"]);
    let (events, _) = handle(&mut watches, created(1, 5));
    assert_eq!(events, [WatchEvent::Created { watch: WatchId(7), revision: 5 }]);
    let (events, _) = handle(&mut watches, deleted(1, "k7", 6));
    assert_eq!(events, [WatchEvent::Deleted { watch: WatchId(7), keys: vec![Key::from("k7")], revision: 6 }]);
    close(&mut watches, 7);
    assert_eq!(send_all(&mut watches), ["-1"]);
    assert_eq!(handle(&mut watches, deleted(1, "k7", 8)), (vec![], None));
    let gone = WatchMessage { wire: 1, canceled: true, ..WatchMessage::default() };
    assert_eq!(handle(&mut watches, gone), (vec![], None));
    assert!(watches.is_empty() && watches.next_retry().is_none());
}

#[test]
fn a_watch_that_is_closed_before_it_was_sent_is_never_sent() {
    let mut watches = WatchSet::default();
    open(&mut watches, 1, 0);
    open(&mut watches, 2, 0);
    close(&mut watches, 1);
    assert_eq!(send_all(&mut watches), ["+2 k2@0"]);
}

#[test]
fn a_new_stream_reopens_every_watch_from_its_original_start_revision() {
    let mut watches = WatchSet::default();
    open(&mut watches, 1, 0);
    open(&mut watches, 2, 40);
    send_all(&mut watches);
    handle(&mut watches, created(1, 50));
    open(&mut watches, 3, 0);
    watches.ask_progress();
    watches.restart();
    assert_eq!(send_all(&mut watches), ["+4 k1@0", "+5 k2@40", "+6 k3@0"]);
    assert_eq!(
        handle(&mut watches, deleted(1, "k1", 51)),
        (vec![], None),
        "the id belongs to the old stream"
    );
    let (events, _) = handle(&mut watches, created(4, 60));
    assert_eq!(events, [WatchEvent::Created { watch: WatchId(1), revision: 60 }]);
}

#[test]
fn a_compacted_watch_restarts_from_the_current_revision() {
    let mut watches = WatchSet::default();
    open(&mut watches, 1, 3);
    send_all(&mut watches);
    handle(&mut watches, created(1, 50));
    let compacted = WatchMessage { wire: 1, canceled: true, compact_revision: 40, ..WatchMessage::default() };
    assert_eq!(handle(&mut watches, compacted), (vec![], None));
    assert_eq!(send_all(&mut watches), ["+2 k1@0"]);
    watches.restart();
    assert_eq!(send_all(&mut watches), ["+3 k1@0"], "the compacted start revision is not used again");
}

#[test]
fn a_refusal_without_an_id_is_the_answer_to_the_oldest_create() {
    let mut watches = WatchSet::default();
    for id in 1..=3 {
        open(&mut watches, id, 0);
    }
    send_all(&mut watches);
    handle(&mut watches, created(1, 5));
    let (_, trouble) = handle(&mut watches, refused(-1, "etcdserver: permission denied"));
    assert_eq!(trouble, Some(Trouble::Permission));
    let (events, _) = handle(&mut watches, created(3, 5));
    assert_eq!(events, [WatchEvent::Created { watch: WatchId(3), revision: 5 }]);
    let retry = watches.next_retry().unwrap();
    watches.retry_due(retry - Duration::from_millis(1));
    assert_eq!(send_all(&mut watches), [""; 0]);
    watches.retry_due(retry);
    assert_eq!(send_all(&mut watches), ["+4 k2@0"]);
}

#[test]
fn a_refused_token_is_distinguished_from_a_missing_permission() {
    let mut watches = WatchSet::default();
    open(&mut watches, 1, 0);
    send_all(&mut watches);
    let (_, trouble) = handle(&mut watches, refused(1, "etcdserver: invalid auth token"));
    assert_eq!(trouble, Some(Trouble::Token));
    close(&mut watches, 1);
    watches.retry_due(Instant::now() + Duration::from_secs(10));
    assert_eq!(send_all(&mut watches), [""; 0], "the watch was closed during its back-off");
}

#[test]
fn a_progress_message_reports_no_event() {
    let mut watches = WatchSet::default();
    open(&mut watches, 1, 0);
    watches.ask_progress();
    assert_eq!(send_all(&mut watches), ["+1 k1@0", "?"]);
    let progress = WatchMessage { wire: -1, revision: 9, ..WatchMessage::default() };
    assert_eq!(handle(&mut watches, progress), (vec![], None));
}
