//! etcd's own metrics, read over plain HTTP: an independent count of every request that a client sent.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A local server that does not answer within this time is stopped.
const PATIENCE: Duration = Duration::from_secs(1);

/// The body of an HTTP answer.
pub(crate) fn get(port: u16, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    Ok(body.to_owned())
}

/// The value of one series, in etcd's notation: `name` or `name{label="value"}`. 0 if it does not exist (yet).
pub(crate) fn value(port: u16, series: &str) -> f64 {
    lines(port, |name| name == series)
}

/// The number of started requests of one gRPC method, over all services.
pub(crate) fn requests(port: u16, method: &str) -> u64 {
    let label = format!("grpc_method=\"{method}\"");
    let count = lines(port, |name| name.starts_with("grpc_server_started_total{") && name.contains(&label));
    count as u64
}

/// The sum of all matching series.
fn lines(port: u16, fits: impl Fn(&str) -> bool) -> f64 {
    let text = get(port, "/metrics").expect("etcd serves its metrics");
    let values = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    values.filter(|(name, _)| fits(name)).map(|(_, value)| value.parse::<f64>().expect("a number")).sum()
}
