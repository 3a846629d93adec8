//! Passphrases, tokens and private keys.

use zeroize::Zeroizing;

/// A text that only its user may see. Its memory is zeroed on drop, and it cannot be printed, copied or serialized by accident. Share it
/// by reference or `Arc`; hand it to a program by `host::SecretFile`.
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// The text itself, for the one call that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
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
        assert_eq!(Secret::from("passphrase".to_owned()).reveal(), "passphrase");
    }
}
