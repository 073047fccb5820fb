//! How an endpoint's connection is made.

use std::time::Duration;

use etcd_client::Channel;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tonic::transport::Endpoint;
use tower::ServiceExt;

use super::coalesced::Coalesced;
use super::fault::EtcdFault;
use crate::options::LockManagerOptions;

/// How often a connection is pinged, to detect one that is silently dead. etcd closes a connection (GOAWAY) that is pinged
/// more often than every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long a ping may be unanswered before the connection counts as dead.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// The interval of the kernel's keep-alive probes: a connection without a stream is not pinged.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

const _: () = assert!(PING_INTERVAL.as_secs() > 5, "etcd allows one ping in 5 s");

/// Makes the connections to one endpoint.
pub(super) struct Transport {
    endpoint: Endpoint,
    connect_timeout: Duration,
}

impl Transport {
    /// Contacts nothing. An error means that the URL or the TLS options are invalid.
    pub(super) fn new(url: &str, options: &LockManagerOptions) -> Result<Self, EtcdFault> {
        // At most half of the request timeout: if this endpoint does not answer, the rest is for another one.
        let connect_timeout = options.connect_timeout.min(options.request_timeout / 2);
        let endpoint = endpoint(url, options, connect_timeout).map_err(etcd_client::Error::from)?;
        Ok(Self { endpoint, connect_timeout })
    }

    /// A channel that connects when it is first used, and again when its connection is lost.
    pub(super) fn channel(&self) -> Channel {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_keepalive(Some(TCP_KEEPALIVE));
        // Not the endpoint's own timeout, which would include the TLS handshake.
        connector.set_connect_timeout(Some(self.connect_timeout));
        // TLS is on top of this stream.
        let connector = connector.map_response(|socket| TokioIo::new(Coalesced::new(socket.into_inner())));
        Channel::Tonic(self.endpoint.connect_with_connector_lazy(connector))
    }
}

fn endpoint(
    url: &str,
    options: &LockManagerOptions,
    handshake: Duration,
) -> Result<Endpoint, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(url.to_owned())?
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(false);
    #[cfg(feature = "tls")]
    if url.starts_with("https://") {
        return endpoint.tls_config(tls_options(options.tls.as_ref(), handshake));
    }
    let _ = (options, handshake);
    Ok(endpoint)
}

#[cfg(feature = "tls")]
fn tls_options(tls: Option<&crate::tls::TlsOptions>, handshake: Duration) -> etcd_client::TlsOptions {
    use etcd_client::{Certificate, Identity};
    let mut options = etcd_client::TlsOptions::new().timeout(handshake);
    options = match tls.and_then(|tls| tls.ca_certificate.as_ref()) {
        Some(pem) => options.ca_certificate(Certificate::from_pem(pem)),
        None => options.with_enabled_roots(),
    };
    if let Some((certificate, key)) = tls.and_then(|tls| tls.identity.as_ref()) {
        options = options.identity(Identity::from_pem(certificate, key));
    }
    if let Some(name) = tls.and_then(|tls| tls.domain_name.as_ref()) {
        options = options.domain_name(name);
    }
    options
}
