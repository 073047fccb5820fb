use std::sync::Arc;
use std::thread;

use crate::shared::message_queue::MessageQueue;

#[test]
fn messages_come_out_in_their_order_and_none_after_the_close() {
    let queue = MessageQueue::new();
    assert!((0..1000).all(|n| queue.push(n)));
    assert!((0..500).all(|n| queue.pop() == Some(n)));
    queue.close();
    assert!(queue.is_closed() && queue.is_empty());
    assert_eq!(queue.pop(), None);
    assert!(!queue.push(1));
    assert_eq!(queue.pop(), None);
}

/// A caller must not wait for the answer to a message that is never read.
#[test]
fn nothing_gets_into_a_queue_behind_its_close() {
    for _ in 0..2000 {
        let (queue, kept) = (MessageQueue::new(), Arc::new(()));
        thread::scope(|scope| {
            scope.spawn(|| while queue.push(Arc::clone(&kept)) {});
            scope.spawn(|| queue.close());
        });
        assert_eq!(Arc::strong_count(&kept), 1);
    }
}
