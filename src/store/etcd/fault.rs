//! Errors of etcd and of the transport, and what they mean for a request.
//!
//! The text takes precedence over the gRPC code: etcd sends several errors under the code `Unknown`, and the transport
//! uses some of etcd's codes. In case of doubt the outcome is unknown.

use std::error::Error;
use std::fmt;

use crate::kv::{Failure, FailureClass};

/// Why one attempt at one endpoint has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EtcdFault {
    pub(super) kind: FaultKind,
    /// For people. Never holds a secret.
    pub(super) message: String,
}

/// What a [`EtcdFault`] means for the attempt and for the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FaultKind {
    /// Not carried out, and the endpoint is to blame: retry at another one immediately.
    Elsewhere,
    /// Not carried out, as the member knows no leader. The endpoint is to blame only if another one knows a leader: during
    /// an election none does, and moving the pin would reopen all watches for nothing.
    Leaderless,
    /// Not carried out: the endpoint belongs to another cluster.
    Foreign,
    /// Not carried out, and retrying cannot help: the endpoint's scheme or the certificates do not match the server.
    Misconfigured,
    /// Not carried out: the token was refused. Authenticate, and send the same again.
    Token,
    /// The attempt was abandoned and its outcome is unknown. This says nothing new about the endpoint: it had too little
    /// time to answer, or has already been reported as failed.
    Abandoned,
    /// Means the same at every endpoint.
    Class(FailureClass),
}

/// Parts of etcd's error messages (3.3 to 3.6), each with its meaning. The first match wins.
const WORDS: &[(&str, FaultKind)] = &[
    ("invalid auth token", FaultKind::Token),
    ("revision of auth store is old", FaultKind::Token),
    // etcd up to 3.4 lets this one through as its internal text, under the code Unknown.
    ("revision in header is old", FaultKind::Token),
    ("user name is empty", FaultKind::Token),
    ("authentication failed", FaultKind::Class(FailureClass::Unauthenticated)),
    // A user who was deleted, while its token was still good.
    ("user name not found", FaultKind::Class(FailureClass::Unauthenticated)),
    ("permission denied", FaultKind::Class(FailureClass::PermissionDenied)),
    ("requested lease not found", FaultKind::Class(FailureClass::LeaseGone)),
    ("has been compacted", FaultKind::Class(FailureClass::Compacted)),
    ("is a future revision", FaultKind::Class(FailureClass::Compacted)),
    ("too many operations", FaultKind::Class(FailureClass::TooManyOperations)),
    ("request is too large", FaultKind::Class(FailureClass::TooLarge)),
    ("database space exceeded", FaultKind::Class(FailureClass::NoSpace)),
    ("no leader", FaultKind::Leaderless),
    ("not leader", FaultKind::Leaderless),
    ("leader changed", FaultKind::Leaderless),
    ("not capable", FaultKind::Elsewhere),
    ("unhealthy cluster", FaultKind::Elsewhere),
    ("not supported for learner", FaultKind::Elsewhere),
    ("too many requests", FaultKind::Class(FailureClass::NotDone)),
    ("request timed out", FaultKind::Class(FailureClass::Unknown)),
    ("server stopped", FaultKind::Class(FailureClass::Unknown)),
    ("corrupt", FaultKind::Class(FailureClass::Refused)),
];

impl EtcdFault {
    pub(super) fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(super) fn class(class: FailureClass, message: impl Into<String>) -> Self {
        Self::new(FaultKind::Class(class), message)
    }

    /// An answer that etcd would not send: the outcome is unknown.
    pub(super) fn malformed(what: &str) -> Self {
        Self::class(FailureClass::Unknown, format!("malformed answer: {what}"))
    }

    /// Certainly not carried out here, but another endpoint may accept it.
    pub(super) fn is_elsewhere(&self) -> bool {
        matches!(self.kind, FaultKind::Elsewhere | FaultKind::Leaderless | FaultKind::Foreign)
    }

    /// Whether this endpoint should no longer be used.
    pub(super) fn blames_endpoint(&self) -> bool {
        matches!(self.kind, FaultKind::Elsewhere | FaultKind::Foreign)
            || self.kind == FaultKind::Class(FailureClass::Unknown)
    }

    /// The same fault, with the endpoint's name in front.
    pub(super) fn at(mut self, url: &str) -> Self {
        self.message = format!("{url}: {}", self.message);
        self
    }

    /// Adds the refused user and the subject of the request to the message. Must not be given secrets.
    pub(super) fn about(mut self, user: Option<&str>, subject: impl FnOnce() -> Option<String>) -> Self {
        let kind = self.kind;
        let refused = kind == FaultKind::Token || kind == FaultKind::Class(FailureClass::Unauthenticated);
        match user {
            None if refused => {
                self.message =
                    format!("no credentials were given, and etcd requires a user ({})", self.message);
            }
            Some(user) if refused => self.message += &format!(" (user {user:?})"),
            Some(user) if kind == FaultKind::Class(FailureClass::PermissionDenied) => {
                let subject = subject().map(|subject| format!(", {subject}")).unwrap_or_default();
                self.message += &format!(" (user {user:?}{subject})");
            }
            _ => {}
        }
        self
    }

    pub(super) fn into_failure(self) -> Failure {
        let class = match self.kind {
            FaultKind::Elsewhere | FaultKind::Leaderless => FailureClass::NotDone,
            FaultKind::Foreign => FailureClass::ClusterChanged,
            FaultKind::Misconfigured => FailureClass::Refused,
            FaultKind::Token => FailureClass::Unauthenticated,
            FaultKind::Abandoned => FailureClass::Unknown,
            FaultKind::Class(class) => class,
        };
        Failure::new(class, self.message)
    }
}

impl fmt::Display for EtcdFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<etcd_client::Error> for EtcdFault {
    fn from(error: etcd_client::Error) -> Self {
        use etcd_client::Error as E;
        match &error {
            E::GRpcStatus(status) => {
                let message = describe(Some(status.message()), status.source());
                let message = if message.is_empty() { status.code().to_string() } else { message };
                Self::new(kind_of(status.code() as i32, status.message(), status.source()), message)
            }
            E::TransportError(transport) => {
                let kind = kind_of(code::UNKNOWN, "", Some(transport));
                Self::new(kind, describe(None, Some(transport)))
            }
            // `keep_alive` returns this for an answer with ttl <= 0.
            E::LeaseKeepAliveError(text) if text == "lease not found" => {
                Self::class(FailureClass::LeaseGone, "the lease does not exist")
            }
            E::InvalidArgs(_) | E::InvalidUri(_) | E::InvalidMetadataValue(_) => {
                Self::class(FailureClass::Refused, error.to_string())
            }
            _ => Self::class(FailureClass::Unknown, error.to_string()),
        }
    }
}

/// The gRPC codes with a meaning of their own here.
mod code {
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const NOT_FOUND: i32 = 5;
    pub(super) const ALREADY_EXISTS: i32 = 6;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const FAILED_PRECONDITION: i32 = 9;
    pub(super) const OUT_OF_RANGE: i32 = 11;
    pub(super) const UNIMPLEMENTED: i32 = 12;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

/// What a gRPC status means.
fn kind_of(code: i32, message: &str, source: Option<&(dyn Error + 'static)>) -> FaultKind {
    // All texts of etcd's error tables have these prefixes; other texts are internal errors passed through unchanged.
    if message.starts_with("etcdserver:") || message.starts_with("auth:") {
        return kind_of_words(message).unwrap_or_else(|| kind_of_other_words(code));
    }
    if message.starts_with("raft proposal dropped") {
        return FaultKind::Leaderless;
    }
    // gRPC rejected the request for its size before etcd received it.
    if message.contains("received message larger than max") {
        return FaultKind::Class(FailureClass::TooLarge);
    }
    if chain(source).any(is_connect_error) {
        return FaultKind::Elsewhere;
    }
    match code {
        code::UNAUTHENTICATED => FaultKind::Token,
        // No etcd, or one too old for the call.
        code::UNIMPLEMENTED => FaultKind::Class(FailureClass::Refused),
        // Anything else may have happened after the request was sent: a reset, a timeout, a proxy's error.
        _ => FaultKind::Class(FailureClass::Unknown),
    }
}

/// What one of etcd's texts means; `None`: it is not in [`WORDS`].
pub(super) fn kind_of_words(text: &str) -> Option<FaultKind> {
    WORDS.iter().find(|(words, _)| text.contains(words)).map(|&(_, kind)| kind)
}

/// The meaning of an etcd error that is not in [`WORDS`]: with these codes, the request was rejected.
fn kind_of_other_words(code: i32) -> FaultKind {
    FaultKind::Class(match code {
        code::PERMISSION_DENIED => FailureClass::PermissionDenied,
        code::INVALID_ARGUMENT
        | code::NOT_FOUND
        | code::ALREADY_EXISTS
        | code::FAILED_PRECONDITION
        | code::OUT_OF_RANGE
        | code::UNIMPLEMENTED => FailureClass::Refused,
        _ => FailureClass::Unknown,
    })
}

/// An error and its sources.
fn chain<'a>(error: Option<&'a (dyn Error + 'static)>) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(error, |&error| error.source())
}

/// Whether this is tonic's `ConnectError`: the connection could not be established, so nothing was sent. Its type is not
/// reachable through etcd-client, but its derived `Debug` names it. (If that ever changed, a refused connection would
/// count as an unknown outcome: slower, not wrong. A test checks it.)
fn is_connect_error(error: &(dyn Error + 'static)) -> bool {
    format!("{error:?}").starts_with("ConnectError(")
}

/// The texts of an error and its sources, each once.
pub(super) fn describe(message: Option<&str>, source: Option<&(dyn Error + 'static)>) -> String {
    let mut text = String::new();
    for part in message.map(str::to_owned).into_iter().chain(chain(source).map(ToString::to_string)) {
        if part == "transport error" || part.is_empty() || text.contains(&part) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&part);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stands in for tonic's, by its name.
    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct ConnectError(#[source] std::io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("transport error")]
    struct Transport(#[source] ConnectError);

    fn class(code: i32, message: &str) -> FailureClass {
        EtcdFault::new(kind_of(code, message, None), message).into_failure().class
    }

    #[test]
    fn the_text_of_etcd_decides_before_the_code() {
        use FailureClass as C;
        let table = [
            (14, "etcdserver: no leader", C::NotDone),
            (14, "etcdserver: leader changed", C::NotDone),
            (9, "etcdserver: not leader", C::NotDone),
            (14, "etcdserver: not capable", C::NotDone),
            (14, "etcdserver: unhealthy cluster", C::NotDone),
            (14, "etcdserver: rpc not supported for learner", C::NotDone),
            (8, "etcdserver: too many requests", C::NotDone),
            (2, "etcdserver: too many requests", C::NotDone),
            (2, "raft proposal dropped", C::NotDone),
            (14, "etcdserver: request timed out", C::Unknown),
            (14, "etcdserver: request timed out, possibly due to previous leader failure", C::Unknown),
            (14, "etcdserver: request timed out, possibly due to connection lost", C::Unknown),
            (14, "etcdserver: server stopped", C::Unknown),
            (5, "etcdserver: requested lease not found", C::LeaseGone),
            (11, "etcdserver: mvcc: required revision has been compacted", C::Compacted),
            (11, "etcdserver: mvcc: required revision is a future revision", C::Compacted),
            (8, "etcdserver: mvcc: database space exceeded", C::NoSpace),
            (3, "etcdserver: authentication failed, invalid user ID or password", C::Unauthenticated),
            (9, "etcdserver: user name not found", C::Unauthenticated),
            (7, "etcdserver: permission denied", C::PermissionDenied),
            (3, "etcdserver: request is too large", C::TooLarge),
            (3, "etcdserver: too many operations in txn request", C::TooManyOperations),
            (3, "etcdserver: duplicate key given in txn request", C::Refused),
            (11, "etcdserver: too large lease TTL", C::Refused),
            (15, "etcdserver: corrupt cluster", C::Refused),
            (9, "etcdserver: authentication is not enabled", C::Refused),
            (2, "etcdserver: something of the future", C::Unknown),
            (14, "etcdserver: something of the future", C::Unknown),
            (8, "grpc: received message larger than max (4194305 vs. 2097152)", C::TooLarge),
        ];
        for (code, message, expected) in table {
            assert_eq!(class(code, message), expected, "{code} {message}");
        }
    }

    #[test]
    fn a_refused_token_is_a_reason_to_authenticate_again() {
        let table = [
            (16, "etcdserver: invalid auth token"),
            (2, "etcdserver: invalid auth token"),
            (16, ""),
            (3, "etcdserver: revision of auth store is old"),
            (2, "auth: revision in header is old"),
            (3, "etcdserver: user name is empty"),
        ];
        for (code, message) in table {
            assert_eq!(kind_of(code, message, None), FaultKind::Token, "{code} {message}");
        }
    }

    #[test]
    fn what_may_have_been_sent_has_an_unknown_outcome() {
        let table = [
            (1, "Timeout expired"),
            (1, "operation was canceled"),
            (4, "context deadline exceeded"),
            (2, "h2 protocol error: error reading a body from connection"),
            (8, "h2 protocol error: http2 error"),
            (7, "h2 protocol error: http2 error"),
            (13, "h2 protocol error: http2 error"),
            (14, "keep-alive timed out"),
            (14, "grpc-status header missing, mapped from HTTP status code 503"),
            (7, "grpc-status header missing, mapped from HTTP status code 403"),
            (11, "Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes"),
            (8, "grpc: trying to send message larger than max (9 vs. 8)"),
            (15, ""),
        ];
        for (code, message) in table {
            assert_eq!(class(code, message), FailureClass::Unknown, "{code} {message}");
        }
    }

    #[test]
    fn a_connection_that_never_came_about_carried_nothing() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let transport = Transport(ConnectError(refused));
        assert_eq!(kind_of(14, "connection refused", Some(&transport)), FaultKind::Elsewhere);
        assert_eq!(
            describe(Some("tcp connect error"), Some(&transport)),
            "tcp connect error: connection refused"
        );
    }
}
