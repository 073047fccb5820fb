//! The number that orders the holders of a lock.

use std::fmt;
use std::str::FromStr;

/// Orders the holders of one lock: each holder's token is greater than that of every earlier holder, in any process.
///
/// It is the create revision of the holder's key in etcd. Send it with every write that the lock protects, and let the
/// receiver refuse a token smaller than the greatest it has seen.
///
/// A receiver can build a token from a `u64`, an `i64` (SQL's `BIGINT`) or text; with the feature `serde` also from
/// JSON, where it is a plain number.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), etcd_lock::LockError> {
/// # let manager = etcd_lock::LockManager::in_memory(&Default::default(), "/app", Default::default())?;
/// use etcd_lock::FencingToken;
///
/// /// The receiver of the writes: here a row in memory, in practice a column of the table.
/// struct Row {
///     text: String,
///     token: FencingToken,
/// }
///
/// impl Row {
///     /// `token` comes as text, for example in a header of the request.
///     fn write(&mut self, text: &str, token: &str) -> bool {
///         let Ok(token) = token.parse::<FencingToken>() else { return false };
///         let fresh = token >= self.token;
///         if fresh {
///             (self.text, self.token) = (text.into(), token);
///         }
///         fresh
///     }
/// }
///
/// let lock = manager.new_lock("row")?;
/// let mut row = Row { text: String::new(), token: FencingToken::from(0) };
/// let old = lock.lock()?.token(); // held and released: this one is late
/// let new = lock.lock()?.token();
/// assert!(row.write("new", &new.to_string()));
/// assert!(!row.write("late", &old.to_string()));
/// assert_eq!(row.text, "new");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct FencingToken(u64);

impl FencingToken {
    pub(crate) fn new(revision: i64) -> Self {
        // etcd's revisions start at 1 and only grow.
        Self(u64::try_from(revision).unwrap_or(0))
    }

    /// Returns the token as a plain number, for a request header.
    pub fn as_u64(&self) -> u64 {
        self.0
    }

    /// Returns the token as a signed number, for a database column of SQL's `BIGINT`. etcd's revisions always fit; a
    /// greater number from elsewhere becomes `i64::MAX`.
    ///
    /// # Examples
    ///
    /// ```
    /// use etcd_lock::FencingToken;
    ///
    /// let token = FencingToken::from(7);
    /// assert_eq!(token.as_i64(), 7);
    /// assert_eq!(FencingToken::try_from(7_i64), Ok(token));
    /// ```
    pub fn as_i64(&self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The error for text or a number that is not a [`FencingToken`]: tokens are whole numbers from 0 to `u64::MAX`, in
/// decimal digits.
///
/// # Examples
///
/// ```
/// use etcd_lock::FencingToken;
///
/// let error = "seven".parse::<FencingToken>().unwrap_err();
/// assert_eq!(error.to_string(), "not a fencing token: \"seven\"");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a fencing token: {what:?}")]
pub struct InvalidToken {
    /// The first 32 characters of the input.
    what: String,
}

impl InvalidToken {
    fn new(what: &str) -> Self {
        // Enough to recognise the input, which comes from outside and may be of any length.
        Self { what: what.chars().take(32).collect() }
    }
}

impl From<u64> for FencingToken {
    fn from(token: u64) -> Self {
        Self(token)
    }
}

impl From<FencingToken> for u64 {
    fn from(token: FencingToken) -> Self {
        token.0
    }
}

impl TryFrom<i64> for FencingToken {
    type Error = InvalidToken;

    fn try_from(token: i64) -> Result<Self, InvalidToken> {
        u64::try_from(token).map(Self).map_err(|_| InvalidToken::new(&token.to_string()))
    }
}

impl FromStr for FencingToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        // `parse` alone would accept a leading `+`.
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|_| digits).map(Self).ok_or_else(|| InvalidToken::new(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_a_round_trip_through_every_form() {
        for number in [0, 1, 1 << 40, u64::MAX] {
            let token = FencingToken::from(number);
            assert_eq!((u64::from(token), token.as_u64()), (number, number));
            assert_eq!(token.to_string().parse(), Ok(token));
        }
        let largest = FencingToken::new(i64::MAX);
        assert_eq!(FencingToken::try_from(largest.as_i64()), Ok(largest));
        assert_eq!(FencingToken::from(u64::MAX).as_i64(), i64::MAX, "the order of tokens survives");
    }

    #[test]
    fn invalid_tokens_are_refused_with_a_shortened_quote() {
        for odd in ["", " 7", "+7", "-7", "7.0", "0x7", "seven", "18446744073709551616"] {
            assert!(odd.parse::<FencingToken>().is_err(), "{odd:?}");
        }
        assert_eq!(FencingToken::try_from(-7_i64).unwrap_err().to_string(), "not a fencing token: \"-7\"");
        assert!("x".repeat(10_000).parse::<FencingToken>().unwrap_err().to_string().len() < 100);
    }
}
