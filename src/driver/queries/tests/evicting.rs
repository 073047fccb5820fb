//! Forced unlocks.

use super::*;

#[tokio::test]
async fn force_unlock_ends_exactly_the_lock_or_the_session() {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    let lock = |lock: &str| name(lock);
    let free = queries::force_unlock(&etcd, &lock("a"), None, ForceUnlock::Lock, LONG).await.unwrap_err();
    assert!(matches!(free, LockError::NotHeld { key } if key == "a"));

    let (one, two) = (grant(&etcd, 60).await, grant(&etcd, 60).await);
    let first = contend(&etcd, "a", one, 1, "one").await;
    contend(&etcd, "b", one, 2, "one").await;
    contend(&etcd, "a", two, 1, "two").await;
    let evicted = queries::force_unlock(&etcd, &lock("a"), None, ForceUnlock::Lock, LONG).await.unwrap();
    assert_eq!((evicted.owner.as_deref(), evicted.token.as_u64() as i64), (Some("one"), first));
    assert_eq!((evicted.lease_id, evicted.waiters), (Some(one), 1));
    assert_eq!(keys(&etcd, range(Span::Prefix(key("/app/")))).await.len(), 2, "b of one, a of two");

    contend(&etcd, "c", two, 2, "two").await;
    let evicted = queries::force_unlock(&etcd, &lock("a"), None, ForceUnlock::Session, LONG).await.unwrap();
    assert_eq!((evicted.owner.as_deref(), evicted.lease_id), (Some("two"), Some(two)));
    let left = queries::list_locks(&etcd, &root(), "", LONG).await.unwrap();
    assert_eq!(left.iter().map(|info| info.key.as_str()).collect::<Vec<_>>(), ["b"]);
}

#[tokio::test]
async fn force_unlock_follows_a_lock_that_changes_hands() {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    let (one, two) = (grant(&etcd, 60).await, grant(&etcd, 60).await);
    contend(&etcd, "a", one, 1, "one").await;
    contend(&etcd, "a", two, 1, "two").await;
    // After it was read (a range and a lease), the holder releases the lock and queues again under the same key.
    let holder = name("a").contender_key(Mode::Exclusive, one, 1);
    let again = always(vec![Op::Put { key: holder.clone(), value: Vec::new(), lease: one }]);
    let meddling = Meddling::Before(vec![Request::Delete { key: holder.clone() }, again]);
    let plan = [Meddling::Nothing, Meddling::Nothing, meddling];
    let meddled = Meddled::new(&etcd, plan);
    let evicted = queries::force_unlock(&meddled, &name("a"), None, ForceUnlock::Lock, LONG).await.unwrap();
    assert_eq!(evicted.owner.as_deref(), Some("two"), "the holder by then");
    assert_eq!(keys(&etcd, range(Span::Prefix(key("/app/")))).await, [holder.to_string()]);
}

#[tokio::test]
async fn a_hold_named_by_its_token_is_evicted_and_no_later_one() {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    for scope in [ForceUnlock::Lock, ForceUnlock::Session] {
        let (one, two) = (grant(&etcd, 60).await, grant(&etcd, 60).await);
        let token = FencingToken::from(contend(&etcd, "a", one, 1, "one").await.unsigned_abs());
        contend(&etcd, "a", two, 1, "two").await;
        // After the look the holder leaves, and its key is used again at the end of the queue.
        let holder = name("a").contender_key(Mode::Exclusive, one, 1);
        let again = always(vec![Op::Put { key: holder.clone(), value: Vec::new(), lease: one }]);
        let meddling = Meddling::Before(vec![Request::Delete { key: holder }, again]);
        let meddled = Meddled::new(&etcd, [Meddling::Nothing, Meddling::Nothing, meddling]);
        for store in [meddled, Meddled::new(&etcd, [])] {
            let late = queries::force_unlock(&store, &name("a"), Some(token), scope, LONG).await.unwrap_err();
            assert!(matches!(late, LockError::NotHeld { .. }), "{late:?}");
        }
        let queue = queries::queue(&etcd, &name("a"), LONG).await.unwrap();
        assert_eq!(queue.iter().map(|info| info.lease_id).collect::<Vec<_>>(), [Some(two), Some(one)]);
        let token = Some(queue[0].token);
        let evicted = queries::force_unlock(&etcd, &name("a"), token, scope, LONG).await.unwrap();
        assert_eq!((evicted.owner.as_deref(), Some(evicted.token)), (Some("two"), token));
        let left = queries::queue(&etcd, &name("a"), LONG).await.unwrap();
        assert_eq!(left.iter().map(|info| info.lease_id).collect::<Vec<_>>(), [Some(one)]);
        call(&etcd, Request::RevokeLease { lease: one }).await.unwrap();
    }
}

#[tokio::test]
async fn a_lost_answer_does_not_evict_the_next_holder_too() {
    let cluster = TestCluster::start(1);
    let etcd = connect(&cluster.urls()).await;
    for scope in [ForceUnlock::Lock, ForceUnlock::Session] {
        let (one, two) = (grant(&etcd, 60).await, grant(&etcd, 60).await);
        contend(&etcd, "a", one, 1, "one").await;
        contend(&etcd, "a", two, 1, "two").await;
        let plan = [Meddling::Nothing, Meddling::Nothing, Meddling::LoseAnswer];
        let meddled = Meddled::new(&etcd, plan);
        let evicted = queries::force_unlock(&meddled, &name("a"), None, scope, LONG).await.unwrap();
        assert_eq!(evicted.owner.as_deref(), Some("one"));
        let next = queries::lock_info(&etcd, &name("a"), LONG).await.unwrap().unwrap();
        assert_eq!(next.owner.as_deref(), Some("two"));
        call(&etcd, Request::RevokeLease { lease: two }).await.unwrap();
    }
}
