//! Ports for servers that must be able to restart on the same port.

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};

/// Below the range that systems use for outgoing connections (32768 on Linux, 49152 elsewhere), so the port of a
/// stopped server is still free when it restarts.
const RANGE: std::ops::Range<u16> = 12_000..32_000;

/// A free port of 127.0.0.1, which this process never returns twice. Another process may bind it first; a server that
/// fails to bind must request another one.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let given = given.get_or_insert_default();
    for _ in 0..1_000 {
        let port = fastrand::u16(RANGE);
        if given.insert(port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port on 127.0.0.1 in {RANGE:?}");
}
