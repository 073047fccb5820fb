//! Finds out whether a server speaks TLS, to distinguish a wrong URL scheme from an outage.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// Time limit for the server's answer. It accepted a connection a moment ago, so it should answer quickly.
const LIMIT: Duration = Duration::from_millis(500);

/// A minimal TLS record with an invalid ClientHello. A TLS server answers with an alert.
const CLIENT_HELLO: &[u8] = &[0x16, 0x03, 0x01, 0x00, 0x05, 0x01, 0x00, 0x00, 0x01, 0x00];
const ALERT: u8 = 0x15;
const HANDSHAKE: u8 = 0x16;

/// etcd's client port also answers HTTP/1 requests.
const HTTP_REQUEST: &[u8] = b"GET /version HTTP/1.0\r\n\r\n";

/// Whether the server behind this `http://` URL speaks TLS.
pub(super) async fn is_tls(url: &str, deadline: Instant) -> bool {
    let answer = first_bytes(url, CLIENT_HELLO, deadline).await;
    answer.is_some_and(|answer| matches!(answer.first(), Some(&(ALERT | HANDSHAKE))))
}

/// Whether the server behind this `https://` URL speaks HTTP without TLS. A TLS server answers 400 or not at all.
pub(super) async fn is_plain(url: &str, deadline: Instant) -> bool {
    let answer = first_bytes(url, HTTP_REQUEST, deadline).await;
    answer.is_some_and(|answer| {
        answer.starts_with(b"HTTP/1.") && answer.get(9..12).is_some_and(|code| code != b"400")
    })
}

/// Sends this request and returns the first bytes of the answer.
async fn first_bytes(url: &str, request: &[u8], deadline: Instant) -> Option<Vec<u8>> {
    let (_, address) = url.split_once("://")?;
    let deadline = deadline.min(Instant::now() + LIMIT);
    timeout_at(deadline, exchange(address, request)).await.ok()?.ok()
}

async fn exchange(address: &str, request: &[u8]) -> std::io::Result<Vec<u8>> {
    /// The length of an HTTP status line up to the status code.
    const STATUS_LENGTH: usize = 12;
    let stream = TcpStream::connect(address).await?;
    stream.writable().await?;
    stream.try_write(request)?;
    let mut bytes = vec![0; STATUS_LENGTH];
    let mut length = 0;
    while let Some(space) = bytes.get_mut(length..).filter(|space| !space.is_empty()) {
        stream.readable().await?;
        match stream.try_read(space) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            // The answer is complete enough even if the connection is reset after it.
            Err(_) if length > 0 => break,
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}
