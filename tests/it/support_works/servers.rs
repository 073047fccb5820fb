//! Servers start, end, restart, and have the settings that were requested.

use std::path::PathBuf;

use rustix::process::{Pid, test_kill_process};

use super::SOON;
use crate::support::etcdctl::Etcdctl;
use crate::support::process::{Process, role};
use crate::support::{Cluster, Etcd, Raw, Setup, eventually, fresh_root, shared};

fn is_alive(pid: Pid) -> bool {
    test_kill_process(pid).is_ok()
}

#[test]
fn a_server_ends_when_its_owner_drops_it() {
    let etcd = Etcd::start();
    let (pid, dir) = (etcd.pid().unwrap(), etcd.dir().to_owned());
    assert!(etcd.is_healthy() && is_alive(pid) && dir.exists());
    drop(etcd);
    assert!(!is_alive(pid) && !dir.exists());
}

#[test]
fn a_server_ends_when_its_owner_is_killed() {
    if let Some(role) = role() {
        let etcd = Etcd::start();
        // A stopped server cannot end by itself.
        etcd.stop();
        role.say(&etcd.pid().unwrap().as_raw_nonzero().to_string());
        role.say(&etcd.dir().display().to_string());
        role.hear();
        return;
    }
    let mut owner = Process::spawn("support_works::servers::a_server_ends_when_its_owner_is_killed", "owner");
    let pid = Pid::from_raw(owner.hear(SOON).parse().unwrap()).unwrap();
    let dir = PathBuf::from(owner.hear(SOON));
    assert!(is_alive(pid) && dir.exists());
    owner.kill();
    eventually(SOON, "the server has ended", || !is_alive(pid));
    eventually(SOON, "its folder is deleted", || !dir.exists());
}

#[test]
fn a_server_restarts_with_its_data_on_its_ports() {
    let etcd = Etcd::start();
    let raw = Raw::connect(etcd.access());
    raw.put("/kept", "yes", 0);

    etcd.stop();
    assert!(!etcd.is_healthy());
    etcd.cont();
    eventually(SOON, "the server continues", || etcd.is_healthy());

    let before = etcd.endpoint();
    etcd.kill();
    assert!(!etcd.is_running() && !etcd.is_healthy());
    etcd.restart();
    assert_eq!(etcd.endpoint(), before);
    assert_eq!(Raw::connect(etcd.access()).get("/kept").unwrap().value, b"yes");
}

#[test]
fn a_cluster_outlives_its_leader() {
    let cluster = Cluster::start(3);
    let first = cluster.leader().unwrap();
    Raw::connect(cluster.access()).put("/kept", "yes", 0);
    cluster.member(first).kill();
    eventually(SOON, "another member leads", || cluster.leader().is_some_and(|leader| leader != first));
    cluster.member(first).restart();
    let returned = cluster.access().at([cluster.member(first).endpoint()]);
    assert_eq!(Raw::connect(&returned).get("/kept").unwrap().value, b"yes");
}

#[test]
fn a_server_authenticates_its_users() {
    let etcd = Setup::default().arg("--bcrypt-cost=4").user("worker", "secret", "/app/").start();
    let worker = Raw::connect(&etcd.access().as_user("worker", "secret"));
    worker.put("/app/key", "", 0);
    let elsewhere = worker.call(|mut client| async move { client.put("/other", "", None).await });
    assert!(elsewhere.unwrap_err().to_string().contains("permission denied"));
    let wrong = Raw::try_connect(&etcd.access().as_user("worker", "wrong"));
    assert!(wrong.unwrap_err().to_string().contains("authentication failed"));
    let root = Etcdctl::new(etcd.access());
    assert_eq!(root.get("/nothing"), None);
    assert_eq!(root.del("/app/key"), 1);
}

#[cfg(feature = "tls")]
#[test]
fn a_tls_server_serves_clients_that_trust_its_authority() {
    let pki = crate::support::pki::Pki::new();
    let etcd = Setup::default().tls(&pki).start();
    Raw::connect(etcd.access()).put("/key", "value", 0);
    assert_eq!(Etcdctl::new(etcd.access()).get("/key").as_deref(), Some("value"));

    let mut stranger = etcd.access().clone();
    stranger.tls = Some(crate::support::pki::Pki::new().client(false));
    assert!(Raw::try_connect(&stranger).is_err());
    let plain = etcd.access().at([etcd.endpoint().replace("https", "http")]);
    assert!(Raw::try_connect(&plain).is_err());
}

#[cfg(feature = "tls")]
#[test]
fn a_mutual_tls_server_serves_clients_with_a_certificate() {
    let pki = crate::support::pki::Pki::new();
    let etcd = Setup::default().mutual_tls(&pki).start();
    Raw::connect(etcd.access()).put("/key", "value", 0);
    assert_eq!(Etcdctl::new(etcd.access()).get("/key").as_deref(), Some("value"));

    let mut anonymous = etcd.access().clone();
    anonymous.tls = Some(pki.client(false));
    assert!(Raw::try_connect(&anonymous).is_err());
}

#[test]
fn flags_reach_the_server() {
    let etcd = Setup::default().max_txn_ops(1).quota_backend_bytes(64 * 1024).auto_compaction(10).start();
    let raw = Raw::connect(etcd.access());
    let two_gets = || vec![etcd_client::TxnOp::get("a", None), etcd_client::TxnOp::get("b", None)];
    let large =
        raw.call(|mut client| async move { client.txn(etcd_client::Txn::new().and_then(two_gets())).await });
    assert!(large.unwrap_err().to_string().contains("too many operations"));
    eventually(SOON, "the space is used up", || {
        let put = raw.call(|mut client| async move { client.put("/big", vec![0; 32 * 1024], None).await });
        put.is_err_and(|error| error.to_string().contains("space exceeded"))
    });
}

#[test]
fn etcdctl_executes_commands() {
    let ctl = Etcdctl::new(shared().access());
    let raw = Raw::connect(shared().access());
    let root = fresh_root("etcdctl");
    ctl.put(&root, "value");
    assert_eq!(ctl.get(&root).as_deref(), Some("value"));
    assert_eq!(ctl.del(&root), 1);
    assert_eq!(ctl.get(&root), None);

    let lease = ctl.lease_grant(60);
    let id = i64::from_str_radix(&lease, 16).unwrap();
    assert!(raw.ttl(id).is_some() && raw.leases().contains(&id));
    ctl.lease_revoke(&lease);
    assert!(raw.ttl(id).is_none());
}

#[test]
fn etcdctl_holds_a_lock_until_it_releases_it() {
    let ctl = Etcdctl::new(shared().access());
    let raw = Raw::connect(shared().access());
    let name = fresh_root("etcdctl-lock");

    let holder = ctl.lock_process(&name);
    assert!(raw.get(holder.key()).is_some_and(|kv| kv.lease != 0));
    let second = ctl.queue_for_lock(&name);
    eventually(SOON, "the second one is queued", || raw.count(&name) == 2);
    let second = second.wait(std::time::Duration::ZERO).expect_err("the lock is held");
    holder.release();
    let second = second.wait(SOON).expect("the lock is free");
    assert_eq!(raw.count(&name), 1);
    second.release();
    assert_eq!(raw.count(&name), 0);

    let key = ctl.lock_exec(&name, &["sh", "-c", "echo $ETCD_LOCK_KEY"]).unwrap();
    assert!(key.starts_with(&name), "{key}");
}
