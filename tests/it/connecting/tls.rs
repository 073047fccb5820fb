//! TLS, and client certificates.

use etcd_lock::TlsOptions;

use super::*;
use crate::support::manager::tls_options;
use crate::support::pki::{ClientTls, Pki};

fn with(access: &Access, tls: Option<ClientTls>) -> Access {
    Access { tls, ..access.clone() }
}

#[test]
fn a_server_with_tls_is_accepted_only_by_clients_that_trust_its_authority() {
    let pki = Pki::new();
    let etcd = Setup::default().tls(&pki).start();
    let manager = connect(etcd.access(), "/locks");
    assert!(lock(&manager, "a").is_held());
    manager.close().unwrap();

    let stranger = with(etcd.access(), Some(Pki::new().client(false)));
    let text = misconfigured(&refused(&stranger, "/locks"));
    assert!(text.contains("`ca_certificate_pem`"), "an untrusted authority: {text}");
    // The system's authorities did not sign its certificate either.
    let text = misconfigured(&refused(&with(etcd.access(), None), "/locks"));
    assert!(text.contains("`ca_certificate_pem`"), "no authority given: {text}");
    let misnamed = options(etcd.access()).tls(tls_options(&pki.client(false)).domain_name("another.example"));
    let text = misconfigured(&refused_at(etcd.endpoints(), "/locks", misnamed));
    assert!(text.contains("\"another.example\""), "another name: {text}");
}

#[test]
fn the_wrong_scheme_is_reported_differently_from_an_outage() {
    let pki = Pki::new();
    let secure = Setup::default().tls(&pki).start();
    let plain = with(&secure.access().at([secure.endpoint().replace("https", "http")]), None);
    let text = misconfigured(&refused(&plain, "/locks"));
    assert!(text.contains("the server speaks TLS; use https://"), "{text}");

    let to_plain = shared().access().at([shared().endpoint().replace("http", "https")]);
    let to_plain = with(&to_plain, Some(pki.client(false)));
    let text = misconfigured(&refused(&to_plain, "/locks"));
    assert!(text.contains("the server does not speak TLS; use http://"), "{text}");

    // A server that is down may have the right scheme, so retrying may help.
    for access in [&plain, &to_plain] {
        let scheme = if access.tls.is_some() { "https" } else { "http" };
        let dead = nobody().replace("http", scheme);
        let some = access.at(access.endpoints.iter().cloned().chain([dead]));
        let text = unavailable(&refused(&some, "/locks"));
        assert!(text.contains("; use http"), "{text}");
    }
}

/// Checks that retrying cannot help.
#[track_caller]
fn misconfigured(error: &LockError) -> String {
    let LockError::InvalidOptions { why, .. } = error else { panic!("{error:?}") };
    assert!(!error.is_retryable());
    why.clone()
}

#[test]
fn mutual_tls_accepts_clients_with_a_certificate_that_the_server_trusts() {
    let pki = Pki::new();
    let etcd = Setup::default().mutual_tls(&pki).start();
    let (manager, other) = (connect(etcd.access(), "/locks"), connect(etcd.access(), "/locks"));
    let guard = lock(&manager, "a");
    let waiting = enqueue(&other, "a");
    guard.unlock().unwrap();
    assert!(granted(waiting).is_held());

    let text = unavailable(&refused(&with(etcd.access(), Some(pki.client(false))), "/locks"));
    assert!(text.contains("certificate"), "no certificate: {text}");
    let forged = ClientTls { identity: Some(Pki::new().client), ..pki.client(true) };
    let text = unavailable(&refused(&with(etcd.access(), Some(forged)), "/locks"));
    assert!(text.contains("certificate"), "another authority's certificate: {text}");
}

#[test]
fn a_private_key_appears_in_no_debug_output_and_no_error() {
    let pki = Pki::new();
    let etcd = Setup::default().mutual_tls(&pki).start();
    // Any line of the key; the first one is only a heading.
    let secret = pki.client.key.lines().nth(1).unwrap().to_owned();
    let logs = Logs::with(&secret);
    let manager = connect(etcd.access(), "/locks");
    let mut shown = format!("{:#?} {manager:?}", options(etcd.access()));
    shown += &everything(&refused_at(
        etcd.endpoints(),
        "/locks",
        options(&with(etcd.access(), Some(Pki::new().client(false)))),
    ));
    // The key in place of the certificate, in place of the authority, and truncated.
    let key = pki.client.key.clone();
    for tls in [
        TlsOptions::default().identity_pem(key.clone(), pki.client.certificate.clone()),
        TlsOptions::default().ca_certificate_pem(key.clone()),
        TlsOptions::default().identity_pem(pki.client.certificate.clone(), &key.as_bytes()[..key.len() / 2]),
    ] {
        let error = refused_at(etcd.endpoints(), "/locks", LockManagerOptions::default().tls(tls));
        assert!(matches!(error, LockError::InvalidOptions { .. }), "{error:?}");
        shown += &everything(&error);
    }
    assert!(!shown.contains(&secret), "{shown}");
    let bytes = format!("{:?}", secret.as_bytes()).trim_matches(['[', ']']).to_owned();
    assert!(!shown.contains(&bytes), "{shown}");
    assert_eq!(logs.lines(), []);
}
