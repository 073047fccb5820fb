//! A connection to one endpoint, for requests that are not about locks and that the library does not make.

use etcd_client::{Client, ConnectOptions, Error};

use crate::settings::Settings;

/// Connects as the library does with these settings.
pub(crate) async fn connect(settings: &Settings, endpoint: &str) -> Result<Client, Error> {
    let mut options = ConnectOptions::new().with_connect_timeout(settings.timeout);
    if let Some((user, password)) = &settings.user {
        options = options.with_user(user, password);
    }
    let scheme = if settings.tls.is_some() { "https" } else { "http" };
    let url = if endpoint.contains("://") { endpoint.to_owned() } else { format!("{scheme}://{endpoint}") };
    #[cfg(feature = "tls")]
    if url.starts_with("https://") {
        options = options.with_tls(tls(settings));
    }
    Client::connect([url], Some(options)).await
}

#[cfg(feature = "tls")]
fn tls(settings: &Settings) -> etcd_client::TlsOptions {
    use etcd_client::{Certificate, Identity, TlsOptions};
    let Some(given) = &settings.tls else { return TlsOptions::new().with_native_roots() };
    let mut options = match &given.cacert {
        Some(cacert) => TlsOptions::new().ca_certificate(Certificate::from_pem(cacert)),
        None => TlsOptions::new().with_native_roots(),
    };
    if let Some((certificate, key)) = &given.identity {
        options = options.identity(Identity::from_pem(certificate, key));
    }
    options
}
