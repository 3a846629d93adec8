//! Passphrases, tokens and private keys.

use zeroize::Zeroizing;

/// Bytes that only their user may see. Its memory is zeroed on drop, and it cannot be printed, copied or serialized by accident. Share it
/// by reference or `Arc`; hand it to a program by `host::SecretFile`.
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// The bytes themselves, for the one call that needs them.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }

    /// The same as text; empty if it is none.
    pub fn reveal_text(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl From<Vec<u8>> for Secret {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self::from(text.into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::{Debug, Display};

    use super::*;

    /// Fails to compile, as ambiguous, if the type implements the trait.
    macro_rules! lacks {
        ($type:ty: $($bound:path),+) => {
            $({
                trait Probe<A> {
                    fn probe() {}
                }
                struct Implements;
                impl<T: ?Sized> Probe<()> for T {}
                impl<T: ?Sized + $bound> Probe<Implements> for T {}
                <$type as Probe<_>>::probe();
            })+
        };
    }

    #[test]
    fn a_secret_cannot_be_printed_copied_or_serialized() {
        lacks!(Secret: Debug, Display, Clone, serde::Serialize, AsRef<str>, ToString);
        assert_eq!(Secret::from("passphrase".to_owned()).reveal_text(), "passphrase");
    }
}
