//! The words of etcd or of the network, for an error's text and for the end of its source chain.

use std::fmt;
use std::sync::Arc;

/// The cause of an error in words: the endpoint, its answer, and a hint where there is one.
///
/// `Display` is the end of the text of its [`LockError`](crate::LockError). If that shortens the words of etcd or of
/// the network, [`source`](std::error::Error::source) has them in full.
#[derive(Clone, PartialEq, Eq)]
pub struct Cause(Arc<Words>);

#[derive(PartialEq, Eq)]
struct Words {
    text: Box<str>,
    /// `None` if nothing was cut.
    verbatim: Option<Verbatim>,
}

/// The message as it arrived.
#[derive(Debug, PartialEq, Eq)]
struct Verbatim(Box<str>);

/// Prefixes that name only the layers through which a message passed.
const LAYERS: [&str; 4] = ["tcp connect error: ", "etcdserver: ", "mvcc: ", "transport error: "];

impl Cause {
    pub(crate) fn new(message: impl AsRef<str>) -> Self {
        let message = message.as_ref();
        let text = abridged(message);
        let verbatim = (text != message).then(|| Verbatim(message.into()));
        Self(Arc::new(Words { text: text.into(), verbatim }))
    }

    pub(super) fn verbatim(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.verbatim.as_ref().map(|verbatim| verbatim as _)
    }
}

/// The message without the prefixes in [`LAYERS`] and without `(os error 111)`, which repeats the text before it.
fn abridged(message: &str) -> String {
    let mut text = LAYERS.iter().fold(message.to_owned(), |text, layer| text.replace(layer, ""));
    while let Some(from) = text.find(" (os error ")
        && let Some(length) = text[from..].find(')')
    {
        text.replace_range(from..=from + length, "");
    }
    text
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.text)
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0.text, f)
    }
}

impl std::error::Error for Cause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.verbatim()
    }
}

impl fmt::Display for Verbatim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Verbatim {}
