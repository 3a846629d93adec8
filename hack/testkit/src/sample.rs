//! Random samples for ordinary runs, which have no time for everything. A seed makes the choices repeatable.

use std::env;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::lab::say;

/// Whether to run everything instead of a sample: `LVM_CSI_LONG=1`, which `hack/test --long` sets.
pub fn long() -> bool {
    env::var_os("LVM_CSI_LONG").is_some_and(|value| value == "1")
}

/// The seed of this run: `LVM_CSI_SEED`, or else one from the clock, which this prints once.
pub fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        let given = env::var("LVM_CSI_SEED").ok().and_then(|text| text.parse().ok());
        given.unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let seed = now.as_secs() % 1_000_000_000;
            say(&format!("to repeat the choices of this run: LVM_CSI_SEED={seed}"));
            seed
        })
    })
}

/// An index below `count`, determined by the seed and by `about`.
pub fn choose(about: &str, count: usize) -> usize {
    of(seed(), about, count)
}

/// FNV-1a over the seed and the text, then a final mix: without it the lowest bits follow those of the last letter.
fn of(seed: u64, about: &str, count: usize) -> usize {
    let bytes = seed.to_le_bytes().into_iter().chain(about.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    usize::try_from(mixed).unwrap_or_default() % count.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_repeated_and_each_thing_is_chosen_by_some_seed() {
        for count in 1..6 {
            let mut chosen = vec![0; count];
            for seed in 0..600 {
                let one = of(seed, "lvcreate", count);
                assert_eq!(one, of(seed, "lvcreate", count));
                chosen[one] += 1;
            }
            assert!(chosen.iter().all(|times| *times > 300 / count), "{chosen:?}");
        }
    }

    #[test]
    fn what_is_chosen_of_one_thing_says_nothing_of_another() {
        let same = (0..600).filter(|seed| of(*seed, "0 lvcreate", 2) == of(*seed, "1 lvcreate", 2)).count();
        assert!((200..400).contains(&same), "{same}");
    }
}
