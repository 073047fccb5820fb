//! The proxy injects the faults that it is asked for, and no others.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::SOON;
use crate::support::proxy::{Loss, Way};
use crate::support::{Access, Etcd, Proxy, Raw, eventually, fresh_root, shared, within};

/// Long enough for an answer that is possible to arrive.
const A_WHILE: Duration = Duration::from_millis(300);

/// A proxy in front of the shared server, a client through it, and one that bypasses it.
fn set_up() -> (Proxy, Access, Raw, Raw) {
    let proxy = Proxy::of(shared());
    let access = shared().access().at([proxy.endpoint()]);
    let (through, around) = (Raw::connect(&access), Raw::connect(shared().access()));
    (proxy, access, through, around)
}

/// Puts a key through the client; `None` if no answer arrived in time.
fn put(raw: &Raw, key: &str) -> Option<Result<(), etcd_client::Error>> {
    let key = key.to_owned();
    raw.call(|mut client| async move {
        Ok(tokio::time::timeout(A_WHILE, client.put(key, "", None)).await.ok().map(|answer| answer.map(drop)))
    })
    .unwrap()
}

#[test]
fn a_proxy_forwards() {
    let (proxy, _access, through, around) = set_up();
    let key = fresh_root("proxy");
    through.put(&key, "value", 0);
    assert_eq!(around.get(&key).unwrap().value, b"value");
    assert!(proxy.connections() == 1 && proxy.accepted() == 1);
    drop(through);
    eventually(SOON, "the connection ends with its client", || proxy.connections() == 0);
}

#[test]
fn a_black_hole_delivers_its_data_once_it_heals() {
    let (proxy, access, through, around) = set_up();
    let key = fresh_root("proxy");
    proxy.blackhole();
    assert!(put(&through, &key).is_none());
    assert!(around.get(&key).is_none());
    assert!(TcpStream::connect(proxy.address()).is_ok(), "a black hole accepts connections");
    proxy.pass();
    through.put(&key, "", 0);
    assert!(Raw::try_connect(&access).is_ok());
}

#[test]
fn a_black_hole_can_affect_one_direction() {
    let (proxy, _access, through, around) = set_up();
    let key = fresh_root("proxy");
    proxy.hold(Way::ToClient);
    assert!(put(&through, &key).is_none());
    assert!(around.get(&key).is_some(), "the request was delivered");
    proxy.pass();
    let other = fresh_root("proxy");
    proxy.hold(Way::ToServer);
    assert!(put(&through, &other).is_none());
    assert!(around.get(&other).is_none(), "the request was not delivered");
}

#[test]
fn a_reset_ends_the_open_connections_and_no_later_one() {
    let (proxy, access, through, _around) = set_up();
    let second = Raw::connect(&access);
    assert_eq!(proxy.connections(), 2);
    proxy.reset_all();
    assert_eq!(proxy.connections(), 0);
    // The clients reconnect by themselves.
    let key = fresh_root("proxy");
    eventually(SOON, "both clients are connected again", || {
        put(&through, &key).is_some_and(|put| put.is_ok())
            && put(&second, &key).is_some_and(|put| put.is_ok())
    });
}

#[test]
fn a_refusing_proxy_accepts_no_connection() {
    let (proxy, _access, through, _around) = set_up();
    proxy.refuse();
    assert_eq!(proxy.connections(), 0);
    let refused = TcpStream::connect(proxy.address()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    proxy.pass();
    let key = fresh_root("proxy");
    eventually(SOON, "the client is connected again", || put(&through, &key).is_some_and(|put| put.is_ok()));
}

#[test]
fn a_delay_applies_in_both_directions() {
    let (proxy, _access, through, _around) = set_up();
    let delay = Duration::from_millis(50);
    proxy.delay(delay);
    let start = Instant::now();
    through.revision();
    assert!(start.elapsed() >= 2 * delay, "{:?}", start.elapsed());
}

#[test]
fn the_request_of_a_lost_answer_was_executed() {
    let (proxy, _access, through, around) = set_up();
    let key = fresh_root("proxy");
    proxy.lose_next_answer(Loss::Reset);
    assert!(put(&through, &key).expect("an end").is_err());
    assert!(around.get(&key).is_some() && proxy.lost_answers() == 1);

    let key = fresh_root("proxy");
    eventually(SOON, "the client is connected again", || put(&through, &key).is_some_and(|put| put.is_ok()));
    let key = fresh_root("proxy");
    proxy.lose_next_answer(Loss::Silence);
    assert!(put(&through, &key).is_none());
    assert!(around.get(&key).is_some() && proxy.lost_answers() == 2);
}

#[test]
fn messages_of_streams_are_not_lost_as_answers() {
    let (proxy, access, through, around) = set_up();
    let key = fresh_root("proxy");
    let witness = crate::support::witness::Witness::of(&access, &key);
    proxy.lose_next_answer(Loss::Reset);
    around.put(&key, "", 0);
    witness.wait_for(SOON, "the put", |seen| seen.key == key);
    assert_eq!(proxy.lost_answers(), 0);
    assert!(put(&through, &key).expect("an end").is_err());
    assert_eq!(proxy.lost_answers(), 1);
}

#[test]
fn a_proxy_of_a_stopped_server_ends_at_once() {
    let etcd = Etcd::start();
    let proxy = Proxy::of(&etcd);
    let _through = Raw::connect(&etcd.access().at([proxy.endpoint()]));
    etcd.stop();
    proxy.blackhole();
    let _another = TcpStream::connect(proxy.address()).unwrap();
    within(SOON, "the proxy is dropped", || drop(proxy));
}
