//! Users, passwords and tokens: refusals are reported at once and with their reason, and recoverable ones are not
//! noticed.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use etcd_client::{Permission, PermissionType};
use etcd_lock::{LockError, LockManager, LossReason};
use tempfile::TempDir;

use crate::faults::ground::{REQUEST_TIMEOUT, assert_nothing_left, connect, options};
use crate::support::etcdctl::Etcdctl;
use crate::support::hold_end::HoldEnd;
use crate::support::setup::User;
use crate::support::stalls::{self, assert_within};
use crate::support::wait::{eventually, eventually_some};
use crate::support::witness::Witness;
use crate::support::{Access, Etcd, Raw, Referee, Setup, fresh_root};

const SOON: Duration = Duration::from_secs(20);
/// The time limit of a refusal.
const REFUSED: Duration = Duration::from_secs(2);

/// Connects and locks; returns the error of either.
fn first_error(access: &Access, root: &str) -> LockError {
    let start = Instant::now();
    let outcome = LockManager::connect(&access.endpoints, root, options(access, Duration::from_secs(5)))
        .and_then(|manager| manager.new_lock("x")?.lock_timeout(SOON));
    let took = assert_within(start, REFUSED, "a refusal");
    println!("row 17: {:?} after {took:?}", outcome.as_ref().map(drop));
    outcome.expect_err("refused")
}

/// A client that is not authenticated, or lacks the permissions for locks, learns it in less than two seconds.
#[test]
fn refusals_are_reported_at_once_with_their_reason() {
    let root = fresh_root("refused");
    let etcd = Setup::default().user("locker", "secret", &root).start();
    let raw = Raw::connect(etcd.access());
    for (name, kind, prefix) in [
        ("reader", PermissionType::Read, root.clone()),
        ("writer", PermissionType::Write, root.clone()),
        ("only-sessions", PermissionType::Readwrite, format!("{root}/~session")),
        ("elsewhere", PermissionType::Readwrite, "/elsewhere".to_owned()),
    ] {
        raw.call(move |mut client| async move {
            client.user_add(name, "secret", None).await?;
            client.role_add(name).await?;
            let permission = Permission::new(kind, prefix).with_prefix();
            client.role_grant_permission(name, permission).await?;
            client.user_grant_role(name, name).await
        })
        .unwrap();
    }
    for (name, password) in [("locker", "wrong"), ("nobody", "secret")] {
        let error = first_error(&etcd.access().as_user(name, password), &root);
        assert!(matches!(error, LockError::Unauthenticated { .. }), "{name}: {error:?}");
        assert!(!error.is_retryable());
    }
    let error = first_error(&Access { user: None, ..etcd.access().clone() }, &root);
    assert!(matches!(error, LockError::Unauthenticated { .. }), "{error:?}");
    for name in ["reader", "writer", "only-sessions", "elsewhere"] {
        let error = first_error(&etcd.access().as_user(name, "secret"), &root);
        assert!(matches!(error, LockError::PermissionDenied { .. }), "{name}: {error:?}");
    }
}

/// An etcd whose tokens expire after two seconds.
struct Short {
    etcd: Etcd,
    access: Access,
    root: String,
    _key: TempDir,
}

fn short_lived(kind: &str) -> Short {
    let root = fresh_root("tokens");
    let key = TempDir::new().unwrap();
    let file = key.path().join("key");
    fs::write(&file, "a key for the signatures").unwrap();
    let arg = match kind {
        "jwt" => format!("--auth-token=jwt,sign-method=HS256,priv-key={},ttl=2s", file.display()),
        _ => "--auth-token-ttl=2".to_owned(),
    };
    let setup = Setup::default().arg(arg).user("locker", "secret", &root).user("other", "secret", "/other");
    let etcd = setup.start();
    let access = etcd.access().as_user("locker", "secret");
    Short { etcd, access, root, _key: key }
}

/// A holder idles through several lifetimes of its token, then twenty threads want a lock each: one new token serves
/// them all, the hold stays valid, and the watches still report events.
fn an_expired_token_is_not_noticed(kind: &str) {
    let ttl = Duration::from_secs(3);
    let Short { etcd, access, root, .. } = &short_lived(kind);
    let (manager, other) = (connect(access, root, ttl), connect(access, root, ttl));
    let guard = manager.new_lock("held").unwrap().lock().unwrap();
    let waiting = other.new_lock("held").unwrap().enqueue().unwrap();
    let ended = HoldEnd::of(&guard);
    let referee = Referee::new();
    let inside = referee.inside(&guard);
    std::thread::sleep(Duration::from_secs(7));
    let before = etcd.requests("Authenticate");
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..20)
            .map(|n| {
                let lock = manager.new_lock(&format!("x{n}")).unwrap();
                scope.spawn(move || referee.use_and_unlock(lock.lock()?, REQUEST_TIMEOUT))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap().expect("no error"));
    });
    let tokens = etcd.requests("Authenticate") - before;
    println!("row 17: {kind} tokens of 2 s: {tokens} new token(s) for a burst of 20 locks");
    // The other manager, and the streams of either, may need a token of their own at that time.
    assert!(tokens <= 4, "{tokens} authentications for one burst");
    assert!(ended.not_yet() && guard.is_held());
    drop(inside);
    guard.unlock().unwrap();
    let next = waiting.wait().unwrap();
    assert!(referee.write(&next));
    // A forced unlock is reported through a stream that was opened with a token that has long expired.
    std::thread::sleep(Duration::from_secs(4));
    let root_raw = Raw::connect(etcd.access());
    let ended = HoldEnd::of(&next);
    let start = Instant::now();
    assert!(root_raw.delete(next.etcd_key()));
    let took = ended.wait(SOON).saturating_duration_since(start);
    assert!(took <= Duration::from_millis(300) + stalls::since(start), "reported after {took:?}");
    assert_eq!(next.loss(), Some(LossReason::ForceUnlocked));
    for manager in [&manager, &other] {
        assert_eq!(manager.stats().sessions, 1);
    }
    referee.judge();
    drop((next, manager, other));
    assert_nothing_left(etcd.access(), root, ttl);
}

#[test]
fn an_expired_simple_token_is_not_noticed() {
    an_expired_token_is_not_noticed("simple");
}

#[test]
fn an_expired_jwt_is_not_noticed() {
    an_expired_token_is_not_noticed("jwt");
}

/// Locks and unlocks until `stop` is set; returns the first error.
fn churn(manager: &LockManager, referee: &Referee, stop: &AtomicBool) -> Result<u64, LockError> {
    let lock = manager.new_lock("churn")?;
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        referee.use_and_unlock(lock.lock()?, REQUEST_TIMEOUT)?;
        rounds += 1;
    }
    Ok(rounds)
}

/// As `root`, with a token of its own: every change invalidates the earlier ones.
fn change_password(etcd: &Etcd, user: &'static str, password: &'static str) {
    let raw = Raw::connect(etcd.access());
    raw.call(move |mut client| async move { client.user_change_password(user, password).await }).unwrap();
}

/// A change of another user's password advances the auth store's revision, after which etcd refuses every JWT. No
/// caller notices.
#[test]
fn somebody_else_s_new_password_is_not_noticed() {
    for kind in ["simple", "jwt"] {
        let Short { etcd, access, root, .. } = &short_lived(kind);
        let manager = connect(access, root, Duration::from_secs(3));
        let guard = manager.new_lock("held").unwrap().lock().unwrap();
        let (referee, stop) = (Referee::new(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let churning = scope.spawn(|| churn(&manager, referee, &stop));
            for password in ["one", "two", "three", "four"] {
                std::thread::sleep(Duration::from_millis(400));
                change_password(etcd, "other", password);
            }
            stop.store(true, Ordering::Relaxed);
            let rounds = churning.join().unwrap().expect("no error");
            println!("row 17: {kind}: 4 password changes of another user, {rounds} rounds without an error");
        });
        referee.use_and_unlock(guard, REQUEST_TIMEOUT).unwrap();
        assert_eq!(manager.stats().sessions, 1);
        referee.judge();
        drop(manager);
        assert_nothing_left(etcd.access(), root, Duration::from_secs(3));
    }
}

/// The manager's own password is changed: calls fail at once. Once the old one is restored, calls succeed again, and
/// the hold was not lost.
#[test]
fn a_changed_password_is_reported_and_recovered_from() {
    for kind in ["simple", "jwt"] {
        let Short { etcd, access, root, .. } = &short_lived(kind);
        let ttl = Duration::from_secs(10);
        let manager = connect(access, root, ttl);
        let guard = manager.new_lock("held").unwrap().lock().unwrap();
        change_password(etcd, "locker", "changed");
        let lock = manager.new_lock("x").unwrap();
        let start = Instant::now();
        let refused = lock.lock_timeout(SOON);
        assert!(matches!(refused, Err(LockError::Unauthenticated { .. })), "{kind}: {refused:?}");
        println!("row 17: {kind}: own password changed: reported after {:?}", start.elapsed());
        assert_within(start, REFUSED, "a refusal");
        change_password(etcd, "locker", "secret");
        let again = eventually_some(SOON, "the password is valid again", || lock.lock_timeout(SOON).ok());
        again.unlock().unwrap();
        assert!(guard.is_held());
        guard.unlock().unwrap();
        assert_eq!(manager.stats().sessions, 1);
        drop((lock, manager));
        assert_nothing_left(etcd.access(), root, ttl);
    }
}

/// The manager's own password is changed for longer than the TTL: an etcd that renews leases without a token keeps the
/// session alive. Where renewals need one (3.4.42, 3.5.28, 3.6.9 and later), the loss is reported in time.
#[test]
fn a_password_changed_for_good_costs_the_session_only_where_renewals_need_a_token() {
    let ttl = Duration::from_secs(3);
    for kind in ["simple", "jwt"] {
        let Short { etcd, access, root, .. } = &short_lived(kind);
        let witness = Witness::of(etcd.access(), root);
        let manager = connect(access, root, ttl);
        let guard = manager.new_lock("held").unwrap().lock().unwrap();
        let ended = HoldEnd::of(&guard);
        change_password(etcd, "locker", "changed");
        let lock = manager.new_lock("x").unwrap();
        let refused = lock.lock_timeout(SOON);
        assert!(matches!(refused, Err(LockError::Unauthenticated { .. })), "{kind}: {refused:?}");
        std::thread::sleep(ttl * 2);
        let kept = guard.is_held();
        println!("row 17: {kind}: etcd {}: own password changed for two TTLs: held: {kept}", etcd.version());
        assert_eq!(kept, etcd.version().renews_without_token());
        if kept {
            assert!(ended.not_yet() && manager.stats().sessions == 1);
        } else {
            assert_eq!(guard.loss(), Some(LossReason::SessionExpired));
            let deleted = witness.wait_for_delete(SOON, guard.etcd_key()).at;
            assert!(ended.wait(SOON) <= deleted, "reported late");
        }
        change_password(etcd, "locker", "secret");
        let again = eventually_some(SOON, "the password is valid again", || lock.lock_timeout(SOON).ok());
        again.unlock().unwrap();
        drop((guard, lock, manager));
        assert_nothing_left(etcd.access(), root, ttl);
    }
}

/// Authentication is enabled while a lock is held and waited for: clients with credentials do not notice, even in their
/// watches, and clients without get an error.
#[test]
fn clients_with_credentials_do_not_notice_that_authentication_is_enabled() {
    let etcd = Etcd::start();
    let root = fresh_root("turned-on");
    let ttl = Duration::from_secs(3);
    let access = etcd.access().as_user("locker", "secret");
    let (manager, other) = (connect(&access, &root, ttl), connect(&access, &root, ttl));
    let nobody = connect(etcd.access(), &root, ttl);
    let guard = manager.new_lock("held").unwrap().lock().unwrap();
    let waiting = other.new_lock("held").unwrap().enqueue().unwrap();
    let (referee, stop) = (Referee::new(), AtomicBool::new(false));
    let inside = referee.inside(&guard);
    std::thread::scope(|scope| {
        let churning = scope.spawn(|| churn(&manager, referee, &stop));
        eventually(SOON, "some rounds without authentication", || manager.stats().released > 5);
        let user = User { name: "locker".into(), password: "secret".into(), prefix: root.clone() };
        Raw::connect(etcd.access()).enable_auth(&[user]);
        std::thread::sleep(ttl * 2);
        stop.store(true, Ordering::Relaxed);
        churning.join().unwrap().expect("no error");
    });
    let start = Instant::now();
    let refused = nobody.new_lock("x").unwrap().lock_timeout(SOON);
    assert!(matches!(refused, Err(LockError::Unauthenticated { .. })), "{refused:?}");
    assert_within(start, REFUSED, "a refusal");
    assert!(guard.is_held());
    drop(inside);
    guard.unlock().unwrap();
    let next = waiting.wait().unwrap();
    assert!(referee.write(&next));
    std::thread::sleep(Duration::from_secs(2));
    let as_root = etcd.access().as_user("root", crate::support::setup::ROOT_PASSWORD);
    let (witness, ended) = (Witness::of(&as_root, &root), HoldEnd::of(&next));
    assert_eq!(Etcdctl::new(&as_root).del(next.etcd_key()), 1);
    let deleted = witness.wait_for_delete(SOON, next.etcd_key()).at;
    let took = ended.wait(SOON).saturating_duration_since(deleted);
    assert!(took <= Duration::from_millis(300) + stalls::since(deleted), "reported after {took:?}");
    println!("row 17: authentication turned on: a key deleted later is reported after {took:?}");
    for manager in [&manager, &other] {
        assert_eq!(manager.stats().sessions, 1);
    }
    drop((next, manager, other, nobody));
    referee.judge();
    assert_nothing_left(&as_root, &root, ttl);
}
