use std::sync::Arc;
use std::thread;

use crate::shared::message_queue::MessageQueue;

#[test]
fn messages_come_out_in_order_and_none_after_close() {
    let queue = MessageQueue::new();
    assert!((0..1000).all(|n| queue.push(n)));
    assert!((0..500).all(|n| queue.pop() == Some(n)));
    queue.close();
    assert!(queue.is_closed() && queue.is_empty());
    assert_eq!(queue.pop(), None);
    assert!(!queue.push(1));
    assert_eq!(queue.pop(), None);
}

/// A message left in a closed queue would make its caller wait for ever.
#[test]
fn no_message_stays_in_a_closed_queue() {
    for _ in 0..2000 {
        let (queue, kept) = (MessageQueue::new(), Arc::new(()));
        thread::scope(|scope| {
            scope.spawn(|| while queue.push(Arc::clone(&kept)) {});
            scope.spawn(|| queue.close());
        });
        assert_eq!(Arc::strong_count(&kept), 1);
    }
}
