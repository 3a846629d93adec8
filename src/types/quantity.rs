//! Sizes as Kubernetes writes them: `10Gi`, `500M`, `1073741824`.

use super::size::Bytes;

/// Why a text is not a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a whole number with a known unit.
    #[error("is not a size; write whole bytes or a unit, such as 64Mi, 10Gi or 1T")]
    Form,
    #[error("must be more than 0")]
    Zero,
    /// More than 2^63 - 1 bytes.
    #[error("is more than any volume group can hold")]
    TooLarge,
}

/// Reads a size: a whole number of bytes with an optional unit of Kubernetes' quantities (`Ki`…`Ei`, `k`…`E`) or exponent (`1e9`).
///
/// # Errors
/// What is wrong with the text.
pub fn parse(text: &str) -> Result<Bytes, SizeError> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let end = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, unit) = text.split_at(end);
    let unit: u64 = match unit {
        "" => 1,
        "k" => 1000,
        "M" => 1000_u64.pow(2),
        "G" => 1000_u64.pow(3),
        "T" => 1000_u64.pow(4),
        "P" => 1000_u64.pow(5),
        "E" => 1000_u64.pow(6),
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        "Ei" => 1 << 60,
        other => match other.strip_prefix(['e', 'E']) {
            Some(exponent) if is_number(exponent) => {
                exponent.parse().ok().and_then(|exponent| 10_u64.checked_pow(exponent)).ok_or(SizeError::TooLarge)?
            }
            _ => return Err(SizeError::Form),
        },
    };
    if digits.is_empty() {
        return Err(SizeError::Form);
    }
    let number: u64 = digits.parse().map_err(|_| SizeError::TooLarge)?;
    let bytes = number.checked_mul(unit).filter(|bytes| *bytes <= i64::MAX as u64).ok_or(SizeError::TooLarge)?;
    if bytes == 0 { Err(SizeError::Zero) } else { Ok(Bytes(bytes)) }
}

/// Writes a size as [`parse`] reads it, in the largest binary unit that divides it.
pub fn write(size: Bytes) -> String {
    let units = [("Ei", 60), ("Pi", 50), ("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
    let unit = units.into_iter().find(|(_, shift)| size.0 > 0 && size.0.is_multiple_of(1 << shift));
    unit.map_or_else(|| size.0.to_string(), |(unit, shift)| format!("{}{unit}", size.0 >> shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_exact() {
        assert_eq!(parse("1"), Ok(Bytes(1)));
        assert_eq!(parse("64Mi"), Ok(Bytes(64 << 20)));
        assert_eq!(parse("3k"), Ok(Bytes(3000)));
        // The API server returns some sizes in this form.
        assert_eq!((parse("1e9"), parse("15E2"), parse("2E")), (parse("1G"), Ok(Bytes(1500)), Ok(Bytes(2 * 10_u64.pow(18)))));
        for text in ["1", "1023", "1Ki", "1025Mi", "3Gi", "7Ei"] {
            assert_eq!(write(parse(text).unwrap()), text);
        }
        assert_eq!(write(parse("2048Mi").unwrap()), "2Gi");
        for odd in ["", "Gi", "-1", "1.5Gi", "1 Gi", "1gi", "1Gib", "+1", "0x1", "1é", "1e", "1e-3", "1e+3", "e3", "1e3k"] {
            assert_eq!(parse(odd), Err(SizeError::Form), "{odd}");
        }
        assert_eq!(parse("0"), Err(SizeError::Zero));
        assert_eq!(parse("8Ei"), Err(SizeError::TooLarge));
        for large in ["99999999999999999999", "1e20", "1e99999999999"] {
            assert_eq!(parse(large), Err(SizeError::TooLarge), "{large}");
        }
    }
}
