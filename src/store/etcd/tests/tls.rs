//! TLS and mutual TLS, and each way in which client and server can disagree about it.

use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use tempfile::TempDir;

use crate::error::LockError;
use crate::options::LockManagerOptions;
use crate::store::etcd::tests::cluster::{TestCluster, connect, connect_with, options, patient, put_key};
use crate::tls::TlsOptions;

type Pem = Vec<u8>;

/// An authority, a server's certificate for 127.0.0.1 and `etcd.test`, and a client's.
struct Certificates {
    ca: Pem,
    client: (Pem, Pem),
    folder: TempDir,
}

impl Certificates {
    fn make() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let signed = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&name| name.into()).collect();
            let mut params = CertificateParams::new(names).unwrap();
            params.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate().unwrap();
            (params.signed_by(&key, &ca).unwrap().pem().into_bytes(), key.serialize_pem().into_bytes())
        };
        let server = signed(&["127.0.0.1", "etcd.test"]);
        let folder = tempfile::tempdir().unwrap();
        for (file, pem) in [("ca", ca.pem().as_bytes()), ("cert", &server.0), ("key", &server.1)] {
            std::fs::write(folder.path().join(file), pem).unwrap();
        }
        Self { ca: ca.pem().into_bytes(), client: signed(&["client"]), folder }
    }

    fn start_etcd(&self, mutual: bool) -> TestCluster {
        let path = |file: &str| self.folder.path().join(file).display().to_string();
        let mut flags = vec![format!("--cert-file={}", path("cert")), format!("--key-file={}", path("key"))];
        if mutual {
            flags.extend([format!("--trusted-ca-file={}", path("ca")), "--client-cert-auth=true".into()]);
        }
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        TestCluster::start_with(1, "https", &flags)
    }

    fn options(&self, mutual: bool) -> TlsOptions {
        TlsOptions {
            ca_certificate: Some(self.ca.clone()),
            identity: mutual.then(|| self.client.clone()),
            domain_name: None,
        }
    }
}

fn with_tls(tls: TlsOptions) -> LockManagerOptions {
    LockManagerOptions { tls: Some(tls), connect_timeout: Duration::from_secs(2), ..options() }
}

async fn refused(endpoints: &[String], options: &LockManagerOptions) -> LockError {
    let begun = Instant::now();
    let error = connect_with(endpoints, options).await.err().expect("it connected");
    assert!(begun.elapsed() < options.connect_timeout + Duration::from_millis(500), "{:?}", begun.elapsed());
    error
}

/// Expects an error that may pass, and returns its text.
async fn unavailable(endpoints: &[String], options: &LockManagerOptions) -> String {
    let error = refused(endpoints, options).await;
    let LockError::Unavailable { source, .. } = error else { panic!("{error:?}") };
    source.to_string()
}

/// Expects an error that only another configuration mends, and returns its text.
async fn misconfigured(endpoints: &[String], options: &LockManagerOptions) -> String {
    let error = refused(endpoints, options).await;
    let LockError::InvalidOptions { why } = error else { panic!("{error:?}") };
    why
}

#[tokio::test]
async fn only_a_trusted_server_is_accepted() {
    let certificates = Certificates::make();
    let cluster = certificates.start_etcd(false);
    let etcd = connect_with(&cluster.urls(), &patient(with_tls(certificates.options(false)))).await.unwrap();
    put_key(&etcd, "/a", 0).await;
    let bare = cluster.urls()[0].replace("https://", "");
    connect_with(&[bare], &with_tls(certificates.options(false))).await.unwrap();

    let stranger = Certificates::make();
    let text = misconfigured(&cluster.urls(), &with_tls(stranger.options(false))).await;
    assert!(text.contains("`ca_certificate_pem`"), "{text}");
    for (name, fits) in [("etcd.test", true), ("other.test", false)] {
        let tls = TlsOptions { domain_name: Some(name.into()), ..certificates.options(false) };
        let result = connect_with(&cluster.urls(), &with_tls(tls)).await;
        assert_eq!(result.is_ok(), fits, "{name}");
    }
}

#[tokio::test]
async fn a_server_that_requires_a_client_certificate_gets_it() {
    let certificates = Certificates::make();
    let cluster = certificates.start_etcd(true);
    let etcd = connect_with(&cluster.urls(), &patient(with_tls(certificates.options(true)))).await.unwrap();
    put_key(&etcd, "/a", 0).await;
    let text = unavailable(&cluster.urls(), &with_tls(certificates.options(false))).await;
    assert!(text.contains("client certificate"), "{text}");
}

#[tokio::test]
async fn a_scheme_that_does_not_match_the_server_is_reported() {
    let certificates = Certificates::make();
    let (secure, plain) = (certificates.start_etcd(false), TestCluster::start(1));
    connect_with(&secure.urls(), &patient(with_tls(certificates.options(false)))).await.unwrap();
    connect(&plain.urls()).await;
    let quick = LockManagerOptions { connect_timeout: Duration::from_secs(2), ..options() };
    let to_secure = secure.urls()[0].replace("https", "http");
    let text = misconfigured(&[to_secure], &quick).await;
    assert!(text.contains("use https://"), "{text}");
    let to_plain = plain.urls()[0].replace("http", "https");
    let text = misconfigured(&[to_plain], &with_tls(certificates.options(false))).await;
    assert!(text.contains("use http://"), "{text}");
}

#[tokio::test]
async fn unusable_certificates_are_refused_without_contacting_anything() {
    let certificates = Certificates::make();
    let garbage = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec();
    let swapped = (certificates.client.1.clone(), certificates.client.0.clone());
    for tls in [
        TlsOptions { identity: Some((garbage.clone(), garbage)), ..certificates.options(true) },
        TlsOptions { identity: Some(swapped), ..certificates.options(true) },
        TlsOptions { domain_name: Some("not a name".into()), ..certificates.options(false) },
        TlsOptions { ca_certificate: Some(b"no PEM".to_vec()), ..TlsOptions::default() },
    ] {
        let error = connect_with(&["https://127.0.0.1:1".into()], &with_tls(tls)).await.err().unwrap();
        assert!(matches!(error, LockError::InvalidOptions { .. }), "{error:?}");
    }
}
