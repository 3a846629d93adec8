//! Whether a volume is so full that its claim should request more, and how much. Nothing ever shrinks.

use std::collections::BTreeMap;

use crate::types::{Bytes, Usage, parse_size};

/// Default for `at`: fill of the filesystem, in percent.
const AT: u64 = 80;
/// Default for `by`.
const BY: Step = Step::Percent(10);
/// Range of `at`, in percent: at 0 the claim would always grow, at 100 it is too late.
const LEAST_AT: u64 = 1;
const MOST_AT: u64 = 99;
/// Range of a `by` in percent of the claim's size; the largest doubles it.
const LEAST_BY: u64 = 1;
const MOST_BY: u64 = 100;

/// By how much a claim grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Bytes(Bytes),
    /// Of its present size.
    Percent(u64),
}

/// The growth rule of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Least fill of the filesystem, in percent, at which the claim grows.
    at: u64,
    by: Step,
    /// Largest size.
    to: Bytes,
}

/// A wrong word in a claim's growth rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub word: String,
    pub reason: String,
}

/// What to do with a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// Nothing: it has room.
    Roomy,
    /// Grow it to this size.
    To(Bytes),
    /// Nothing: it is full enough to grow, but has reached its limit, which is this.
    AtLimit(Bytes),
}

impl Rule {
    /// Reads the words of a claim: `to`, the limit, a size; `at`, a percentage; `by`, a size or a percentage.
    ///
    /// # Errors
    /// The first word that is unknown, missing or wrong.
    pub fn read(words: &BTreeMap<String, String>) -> Result<Self, Wrong> {
        let wrong = |word: &str, reason: String| Wrong { word: word.to_owned(), reason };
        if let Some((word, text)) = words.iter().find(|(word, _)| !["at", "by", "to"].contains(&word.as_str())) {
            return Err(wrong(word, format!("{text:?}: this word is not known; known: at, by, to")));
        }
        let Some(limit) = words.get("to") else {
            return Err(wrong("to", "is missing: a claim grows only up to a limit".to_owned()));
        };
        Ok(Self {
            at: words.get("at").map_or(Ok(AT), |text| share(text, LEAST_AT, MOST_AT)).map_err(|why| wrong("at", why))?,
            by: words.get("by").map_or(Ok(BY), |text| step(text)).map_err(|why| wrong("by", why))?,
            to: parse_size(limit).map_err(|why| wrong("to", format!("{limit:?} {why}")))?,
        })
    }

    /// Decides for a claim of this size.
    pub fn decide(&self, size: Bytes, usage: Usage) -> Growth {
        if usage.percent() < self.at {
            return Growth::Roomy;
        }
        if size >= self.to {
            return Growth::AtLimit(self.to);
        }
        let step = match self.by {
            Step::Bytes(step) => step.0,
            Step::Percent(percent) => u64::try_from(u128::from(size.0) * u128::from(percent) / 100).unwrap_or(u64::MAX),
        };
        // Rounded up to a whole MiB, and at least one byte larger even if the percentage comes to less than a byte.
        let next = size.0.saturating_add(step.max(1)).div_ceil(Bytes::MIB.0).saturating_mul(Bytes::MIB.0);
        Growth::To(Bytes(next).min(self.to))
    }
}

/// A percentage such as `80%`.
fn share(text: &str, least: u64, most: u64) -> Result<u64, String> {
    let digits = text.strip_suffix('%').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    match digits.and_then(|digits| digits.parse().ok()) {
        Some(percent) if (least..=most).contains(&percent) => Ok(percent),
        _ => Err(format!("{text:?} must be a percentage from {least}% to {most}%")),
    }
}

fn step(text: &str) -> Result<Step, String> {
    if text.ends_with('%') {
        return share(text, LEAST_BY, MOST_BY).map(Step::Percent);
    }
    let size = parse_size(text).map(Step::Bytes);
    size.map_err(|why| format!("{text:?} {why}; or a percentage such as 10%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(words: &[(&str, &str)]) -> Result<Rule, Wrong> {
        Rule::read(&words.iter().map(|(word, text)| ((*word).to_owned(), (*text).to_owned())).collect())
    }

    fn full(percent: u64) -> Usage {
        Usage { used: Bytes(percent), available: Bytes(100 - percent) }
    }

    #[test]
    fn a_limit_alone_is_a_rule() {
        let (given, usual) = (rule(&[("to", "10Gi"), ("at", "80%"), ("by", "10%")]), rule(&[("to", "10Gi")]));
        assert_eq!(usual.unwrap(), given.unwrap());
    }

    #[test]
    fn a_wrong_word_is_named_with_its_value() {
        let to = ("to", "1Gi");
        for (words, word, part) in [
            (&[][..], "to", "missing"),
            (&[("at", "80%"), ("by", "1Gi")], "to", "missing"),
            (&[("to", "10")], "", ""),
            (&[("to", "")], "to", "\"\""),
            (&[("to", "1.5Gi")], "to", "\"1.5Gi\""),
            (&[("to", "0")], "to", "\"0\""),
            (&[("to", "10%")], "to", "\"10%\""),
            (&[to, ("at", "80")], "at", "\"80\""),
            (&[to, ("at", "0%")], "at", "1% to 99%"),
            (&[to, ("at", "100%")], "at", "1% to 99%"),
            (&[to, ("at", "+8%")], "at", "\"+8%\""),
            (&[to, ("at", "%")], "at", "\"%\""),
            (&[to, ("at", "99999999999999999999%")], "at", "1% to 99%"),
            (&[to, ("by", "0%")], "by", "1% to 100%"),
            (&[to, ("by", "101%")], "by", "1% to 100%"),
            (&[to, ("by", "0")], "by", "\"0\""),
            (&[to, ("by", "ten")], "by", "\"ten\""),
            (&[to, ("by", "-1Gi")], "by", "\"-1Gi\""),
            (&[to, ("till", "2Gi")], "till", "\"2Gi\""),
        ] {
            match rule(words) {
                Ok(_) => assert_eq!(word, "", "{words:?}"),
                Err(wrong) => assert!(wrong.word == word && wrong.reason.contains(part), "{words:?}: {wrong:?}"),
            }
        }
    }

    #[test]
    fn a_claim_grows_by_its_step_when_it_is_full_enough() {
        let mib = |count: u64| Bytes(count << 20);
        for (words, size, used, expected) in [
            (&[("to", "1Gi")][..], mib(100), 79, Growth::Roomy),
            (&[("to", "1Gi")], mib(100), 80, Growth::To(mib(110))),
            // Rounded up to a whole MiB.
            (&[("to", "1Gi")], mib(64), 80, Growth::To(mib(71))),
            (&[("to", "1Gi"), ("by", "1")], mib(64), 99, Growth::To(mib(65))),
            (&[("to", "1Gi"), ("by", "1%")], Bytes(10), 99, Growth::To(mib(1))),
            (&[("to", "1Gi"), ("by", "64Mi"), ("at", "50%")], mib(64), 50, Growth::To(mib(128))),
            // The last step ends at the limit, to the byte.
            (&[("to", "100Mi"), ("by", "64Mi")], mib(64), 90, Growth::To(mib(100))),
            (&[("to", "100000000")], mib(95), 90, Growth::To(Bytes(100_000_000))),
            (&[("to", "100Mi")], mib(100), 100, Growth::AtLimit(mib(100))),
            (&[("to", "100Mi")], mib(100), 79, Growth::Roomy),
            // A limit below the present size: nothing shrinks.
            (&[("to", "10Mi")], mib(100), 90, Growth::AtLimit(mib(10))),
            (&[("to", "7Ei"), ("by", "100%")], Bytes(6 << 60), 90, Growth::To(Bytes(7 << 60))),
        ] {
            assert_eq!(rule(words).unwrap().decide(size, full(used)), expected, "{words:?} {size} {used} %");
        }
    }
}
