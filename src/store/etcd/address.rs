//! Where to connect and how, checked before anything is contacted.

use super::transport::Transport;
use crate::error::LockError;
use crate::options::{Credentials, LockManagerOptions};

/// One endpoint's address and the way to connect to it.
pub(super) struct Address {
    /// Scheme, host and port only, so it contains no secret and can be logged.
    pub(super) url: String,
    pub(super) transport: Transport,
    pub(super) credentials: Option<Credentials>,
}

impl Address {
    /// Parses the endpoints. Duplicates are dropped; the order is kept.
    pub(super) fn parse_all(
        endpoints: &[String],
        options: &LockManagerOptions,
    ) -> Result<Vec<Self>, LockError> {
        let wants_tls = wants_tls(options);
        check_ca(options)?;
        let mut addresses: Vec<Self> = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            let url = parse(endpoint, wants_tls).map_err(|why| LockError::InvalidOptions { why })?;
            if addresses.iter().all(|address| address.url != url) {
                let transport = Transport::new(&url, options)
                    .map_err(|fault| LockError::InvalidOptions { why: format!("endpoint {url}: {fault}") })?;
                addresses.push(Self { url, transport, credentials: options.credentials.clone() });
            }
        }
        if addresses.is_empty() {
            return Err(LockError::InvalidOptions { why: "there is no endpoint to connect to".into() });
        }
        Ok(addresses)
    }
}

#[cfg(feature = "tls")]
fn wants_tls(options: &LockManagerOptions) -> bool {
    options.tls.is_some()
}

/// Refuses a CA without a certificate: rustls would accept it and then trust no server.
#[cfg(feature = "tls")]
fn check_ca(options: &LockManagerOptions) -> Result<(), LockError> {
    let pem = options.tls.as_ref().and_then(|tls| tls.ca_certificate.as_deref());
    let begin = b"-----BEGIN CERTIFICATE-----";
    if pem.is_some_and(|pem| !pem.windows(begin.len()).any(|window| window == begin)) {
        return Err(LockError::InvalidOptions {
            why: "the CA certificate holds no certificate in PEM".into(),
        });
    }
    Ok(())
}

#[cfg(not(feature = "tls"))]
fn check_ca(_options: &LockManagerOptions) -> Result<(), LockError> {
    Ok(())
}

#[cfg(not(feature = "tls"))]
fn wants_tls(_options: &LockManagerOptions) -> bool {
    false
}

/// The URL of an endpoint, or what is wrong with it. Without a scheme it is `https` if TLS options are given, else `http`. The
/// error does not repeat an endpoint that contains a user, because a password may follow.
fn parse(endpoint: &str, wants_tls: bool) -> Result<String, String> {
    let endpoint = endpoint.trim();
    if endpoint.contains('@') {
        return Err("an endpoint has a user in it; give the user with `credentials`".into());
    }
    let wrong = |why: &str| Err(format!("endpoint {endpoint:?} {why}"));
    if endpoint.is_empty() {
        return Err("an endpoint is empty; give host and port, such as http://localhost:2379".into());
    }
    if endpoint.contains(',') {
        return wrong("is a list; give `connect` each endpoint as an element of its own");
    }
    let (scheme, rest) = match endpoint.split_once("://") {
        Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
        None => (if wants_tls { "https" } else { "http" }.to_owned(), endpoint),
    };
    match scheme.as_str() {
        "http" if wants_tls => return wrong("is http://, but TLS options are given; use https://"),
        "https" if !cfg!(feature = "tls") => {
            return wrong("is https://, but the feature `tls` is not enabled");
        }
        "http" | "https" => {}
        _ => return wrong("is neither http:// nor https://"),
    }
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if let Some((host, _)) = authority.split_once('/')
        && !host.is_empty()
        && !host.ends_with(':')
    {
        return wrong("has a path; an endpoint is scheme, host and port alone");
    }
    let Some((host, port)) = authority.rsplit_once(':') else {
        return wrong("has no port; etcd's is 2379");
    };
    let is_ipv6 = host.starts_with('[') && host.ends_with(']');
    let host_chars = if is_ipv6 { &host[1..host.len() - 1] } else { host };
    let allowed =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_') || (is_ipv6 && c == ':');
    if host_chars.is_empty() || !host_chars.chars().all(allowed) {
        return wrong("has no valid host");
    }
    let is_port =
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    if !is_port {
        return wrong("has no valid port");
    }
    Ok(format!("{scheme}://{authority}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::etcd::tests::cluster;

    fn refusal(endpoints: &[&str], options: &LockManagerOptions) -> String {
        let endpoints: Vec<String> = endpoints.iter().map(|&endpoint| endpoint.into()).collect();
        match Address::parse_all(&endpoints, options) {
            Err(LockError::InvalidOptions { why }) => why,
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("{endpoints:?} was accepted"),
        }
    }

    #[test]
    fn endpoints_are_urls_with_a_port_or_host_and_port() {
        let table = [
            ("http://10.0.0.1:2379", "http://10.0.0.1:2379"),
            (" HTTP://etcd-0.etcd:2379/ ", "http://etcd-0.etcd:2379"),
            ("localhost:2379", "http://localhost:2379"),
            ("http://[::1]:2379", "http://[::1]:2379"),
        ];
        for (endpoint, url) in table {
            assert_eq!(parse(endpoint, false).as_deref(), Ok(url));
        }
    }

    #[test]
    fn a_bad_endpoint_is_refused_before_anything_is_contacted() {
        let options = cluster::options();
        let bad = [
            "",
            " ",
            "http://",
            "http://:2379",
            "localhost",
            "http://localhost",
            "http://localhost:",
            "localhost:0",
            "localhost:65536",
            "localhost:+1",
            "ftp://localhost:2379",
            "http://http://localhost:2379",
            "http://localhost:2379/v3",
            "http://local host:2379",
            "http://a:2379?x",
            "unix:///run/etcd.sock",
        ];
        for endpoint in bad {
            refusal(&[endpoint], &options);
        }
        assert!(refusal(&["http://a:1,http://b:1"], &options).contains("list"));
        assert!(refusal(&["a:1,b:1"], &options).contains("list"));
        assert!(refusal(&["http://a:2379/v3"], &options).contains("path"));
        assert!(refusal(&["a:2379/v3/"], &options).contains("path"));
        assert!(refusal(&[], &options).contains("no endpoint"));
        assert!(refusal(&["localhost:2379", " "], &options).contains("an endpoint is empty"));
        assert!(refusal(&["localhost:2379", "http//x:1"], &options).contains("http//x:1"));
        assert!(!refusal(&["http://root:secret@localhost:2379"], &options).contains("secret"));
    }

    #[test]
    fn an_endpoint_given_twice_counts_once() {
        let endpoints = ["a:1", "http://a:1/", "b:1"].map(String::from);
        let addresses = Address::parse_all(&endpoints, &cluster::options()).unwrap();
        let urls: Vec<&str> = addresses.iter().map(|address| address.url.as_str()).collect();
        assert_eq!(urls, ["http://a:1", "http://b:1"]);
    }

    #[cfg(feature = "tls")]
    #[test]
    fn tls_options_and_http_do_not_go_together() {
        let mut options = cluster::options();
        options.tls = Some(crate::tls::TlsOptions::default());
        assert!(refusal(&["http://localhost:2379"], &options).contains("https://"));
        assert_eq!(parse("localhost:2379", true).as_deref(), Ok("https://localhost:2379"));
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn https_needs_the_feature() {
        assert!(refusal(&["https://localhost:2379"], &cluster::options()).contains("feature"));
    }
}
