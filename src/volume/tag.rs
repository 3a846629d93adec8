//! What the driver's tags mean. One writer ([`Marks::tags`]) and one reader ([`Marks::read`]); both sides of every tag are here.
//!
//! | tag | meaning |
//! |---|---|
//! | `lvm-csi=1` | the LV is ours, in format 1; an LV without it is never touched |
//! | `csi.fs=<life>` | what it holds ([`Life`]) |
//! | `csi.of=<lv>` | it is a snapshot of that volume |
//! | `csi.from=v:<lv>`, `csi.from=s:<lv>` | its content came from that volume or snapshot |
//! | `csi.min=<bytes>` | it was asked for in this size; while it is smaller, it is not finished |
//! | `csi.z=<bytes>` | a linear LV: no old bytes from its beginning up to here |
//! | `csi.e=<dir>` | an inline ephemeral volume, for the pod whose directory that is; other characters than LVM's as `&` and two digits |
//! | `csi.pool` | a thin pool that this driver made, or begins to make |
//! | `csi.n=<crc-32>` | a sum of the name it was made with: whether somebody renamed it, since handles hold names |
//! | `csi.d=<name>` | the CSI name of the driver whose it is; versions before that wrote none |
//!
//! A group has one too, `csi.machine=` ([`super::owner`]).
//!
//! All of them together stay under about 130 bytes: every LVM command reads and writes every byte. The name of the driver is not
//! shortened to a sum: that of most would save three bytes, and whoever finds the LV reads whose it is.

use crate::types::{Bytes, Life, LvName, Tag};

const OWNER: &str = "lvm-csi=";
const FORMAT: &str = "1";
const LIFE: &str = "csi.fs=";
const OF: &str = "csi.of=";
const FROM: &str = "csi.from=";
const MIN: &str = "csi.min=";
const ZEROED: &str = "csi.z=";
const POOL: &str = "csi.pool";
const NAMED: &str = "csi.n=";
const EPHEMERAL: &str = "csi.e=";
const DRIVER: &str = "csi.d=";

const SUM: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);

/// Where the content of a volume came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A clone of this volume.
    Volume(LvName),
    /// Restored from this snapshot.
    Snapshot(LvName),
}

/// The meaning of all tags of one LV of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marks {
    /// What it holds.
    pub life: Life,
    /// The volume it is a snapshot of.
    pub of: Option<LvName>,
    /// Where its content came from.
    pub from: Option<Origin>,
    /// The size it was asked for, where that takes a second step.
    pub min: Option<Bytes>,
    /// Zeroed and flushed from the beginning up to here.
    pub zeroed: Bytes,
    /// The name it was made with; `None` where an earlier version made it.
    pub named: Option<NameSum>,
    /// The directory of the pod whose inline volume it is; `None` for any other volume.
    pub ephemeral: Option<Directory>,
    /// The driver whose it is; `None` where an earlier version made it.
    pub driver: Option<String>,
}

/// A sum of an LV's name. It shall only tell that an LV was renamed, for which the whole name would be much to carry in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameSum(u32);

impl NameSum {
    /// The sum of a name.
    pub fn of(lv: &LvName) -> Self {
        Self(SUM.checksum(lv.as_str().as_bytes()))
    }
}

/// A directory that a tag can hold, with what must be escaped in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory(String);

impl Directory {
    /// `None` for one that is too long.
    pub fn new(text: &str) -> Option<Self> {
        Tag::new(format!("{EPHEMERAL}{}", escape(text))).is_ok().then(|| Self(text.to_owned()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why the tags of an LV of ours make no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TagError {
    /// Made by another version of the driver.
    #[error("its format is {0:?}, this driver knows {FORMAT:?}")]
    Format(String),
    /// A tag of ours whose value cannot be read.
    #[error("tag {0:?} cannot be read")]
    Value(String),
    /// A tag of ours that must be there is not.
    #[error("tag {0}… is missing")]
    Absent(&'static str),
    /// A tag of ours stands twice.
    #[error("tag {0}… stands twice")]
    Twice(&'static str),
}

impl Marks {
    /// The marks of a volume in which nothing was ever written.
    pub fn blank() -> Self {
        Self { life: Life::Blank, of: None, from: None, min: None, zeroed: Bytes(0), named: None, ephemeral: None, driver: None }
    }

    /// The same for an LV that is made with this name.
    #[must_use]
    pub fn named(self, lv: &LvName) -> Self {
        Self { named: Some(NameSum::of(lv)), ..self }
    }

    /// The same for an LV of the driver with this name.
    #[must_use]
    pub fn of_driver(self, name: &str) -> Self {
        Self { driver: Some(name.to_owned()), ..self }
    }

    /// Reads the tags of an LV: `None` for one that is not ours.
    ///
    /// # Errors
    /// Tags of ours that make no sense: the LV is ours and damaged.
    pub fn read(tags: &[String]) -> Result<Option<Self>, TagError> {
        let Some(format) = one(tags, OWNER)? else { return Ok(None) };
        if format != FORMAT {
            return Err(TagError::Format(format.to_owned()));
        }
        let life = one(tags, LIFE)?.ok_or(TagError::Absent(LIFE))?;
        let number = |prefix: &'static str| -> Result<Option<Bytes>, TagError> {
            let Some(text) = one(tags, prefix)? else { return Ok(None) };
            text.parse().map(|bytes| Some(Bytes(bytes))).map_err(|_| TagError::Value(format!("{prefix}{text}")))
        };
        let lv = |prefix: &str, text: &str| LvName::new(text).map_err(|_| TagError::Value(format!("{prefix}{text}")));
        let from = match one(tags, FROM)? {
            None => None,
            Some(text) => Some(match text.split_once(':') {
                Some(("v", name)) => Origin::Volume(lv(FROM, name)?),
                Some(("s", name)) => Origin::Snapshot(lv(FROM, name)?),
                _ => return Err(TagError::Value(format!("{FROM}{text}"))),
            }),
        };
        let sum = |text: &str| u32::from_str_radix(text, 16).map(NameSum).map_err(|_| TagError::Value(format!("{NAMED}{text}")));
        Ok(Some(Self {
            life: Life::parse(life).ok_or_else(|| TagError::Value(format!("{LIFE}{life}")))?,
            of: one(tags, OF)?.map(|name| lv(OF, name)).transpose()?,
            from,
            min: number(MIN)?,
            zeroed: number(ZEROED)?.unwrap_or_default(),
            named: one(tags, NAMED)?.map(sum).transpose()?,
            ephemeral: one(tags, EPHEMERAL)?
                .map(|text| {
                    unescape(text)
                        .as_deref()
                        .and_then(Directory::new)
                        .ok_or_else(|| TagError::Value(format!("{EPHEMERAL}{text}")))
                })
                .transpose()?,
            driver: one(tags, DRIVER)?
                .map(|name| match Tag::new(format!("{DRIVER}{name}")) {
                    Ok(_) if !name.is_empty() => Ok(name.to_owned()),
                    _ => Err(TagError::Value(format!("{DRIVER}{name}"))),
                })
                .transpose()?,
        }))
    }

    /// The tags that say this.
    pub fn tags(&self) -> Vec<Tag> {
        let mut texts = vec![format!("{OWNER}{FORMAT}"), format!("{LIFE}{}", self.life)];
        texts.extend(self.of.as_ref().map(|lv| format!("{OF}{lv}")));
        texts.extend(self.from.as_ref().map(|from| match from {
            Origin::Volume(lv) => format!("{FROM}v:{lv}"),
            Origin::Snapshot(lv) => format!("{FROM}s:{lv}"),
        }));
        texts.extend(self.min.map(|bytes| format!("{MIN}{}", bytes.0)));
        texts.extend((self.zeroed.0 > 0).then(|| format!("{ZEROED}{}", self.zeroed.0)));
        texts.extend(self.named.map(|NameSum(sum)| format!("{NAMED}{sum:08x}")));
        texts.extend(self.ephemeral.as_ref().map(|directory| format!("{EPHEMERAL}{}", escape(&directory.0))));
        texts.extend(self.driver.as_ref().map(|name| format!("{DRIVER}{name}")));
        texts
            .into_iter()
            .map(|text| Tag::new(text).expect("a prefix of ours and a checked name or number are always a tag"))
            .collect()
    }

    /// The tags to take away and to give so that `self` becomes `next`.
    pub fn change(&self, next: &Marks) -> (Vec<Tag>, Vec<Tag>) {
        let (old, new) = (self.tags(), next.tags());
        let remove = old.iter().filter(|tag| !new.contains(tag)).cloned().collect();
        let add = new.into_iter().filter(|tag| !old.contains(tag)).collect();
        (remove, add)
    }
}

/// Whether a tag means something to this driver, on an LV that is its own.
pub fn is_ours(tag: &str) -> bool {
    tag.starts_with(OWNER) || tag.starts_with("csi.")
}

/// Whether an LV with these tags is one of a driver of this kind, whatever its name.
pub fn is_marked(tags: &[String]) -> bool {
    tags.iter().any(|tag| tag.starts_with(OWNER))
}

/// The name of the driver whose an LV with these tags is; `None` where none is written, or several are.
pub fn driver_of(tags: &[String]) -> Option<&str> {
    one(tags, DRIVER).ok().flatten()
}

/// Whether no driver's name is written.
pub fn is_nameless(tags: &[String]) -> bool {
    !tags.iter().any(|tag| tag.starts_with(DRIVER))
}

/// The tag that says whose an LV is.
///
/// # Panics
/// The name is none that the configuration allows.
pub fn of_driver(name: &str) -> Tag {
    Tag::new(format!("{DRIVER}{name}")).expect("the name of a driver is letters, digits, '-' and '.'")
}

/// The tags of a thin pool that the driver makes.
pub fn of_pool(driver: &str) -> Vec<Tag> {
    let mut tags: Vec<Tag> = of_any_pool().into();
    tags.push(of_driver(driver));
    tags
}

fn of_any_pool() -> [Tag; 2] {
    [format!("{OWNER}{FORMAT}"), POOL.to_owned()].map(|text| Tag::new(text).expect("our own words are tags"))
}

/// Whether an LV with these tags is a thin pool that this driver made or began to make.
pub fn is_pool(tags: &[String], driver: &str) -> bool {
    let ours = is_nameless(tags) || driver_of(tags) == Some(driver);
    ours && of_any_pool().iter().all(|tag| tags.iter().any(|there| there == tag.as_str()))
}

/// A text in LVM's characters.
fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_+.-/=!:#".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("&{b:02x}") }).collect()
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut pieces = text.split('&');
    bytes.extend_from_slice(pieces.next()?.as_bytes());
    for piece in pieces {
        bytes.push(u8::from_str_radix(piece.get(..2)?, 16).ok()?);
        bytes.extend_from_slice(&piece.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok()
}

fn one<'a>(tags: &'a [String], prefix: &'static str) -> Result<Option<&'a str>, TagError> {
    let mut values = tags.iter().filter_map(|tag| tag.strip_prefix(prefix));
    let first = values.next();
    if values.next().is_some() { Err(TagError::Twice(prefix)) } else { Ok(first) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(marks: &Marks) -> Vec<String> {
        marks.tags().iter().map(|tag| tag.as_str().to_owned()).collect()
    }

    #[test]
    fn marks_round_trip_and_stay_short() {
        let name = LvName::new("snap-0b6c6a0e-1111-4222-8333-444455556666").unwrap();
        let all = [
            Marks::blank(),
            Marks { life: Life::Raw, zeroed: Bytes(1 << 40), ..Marks::blank() },
            Marks { of: Some(name.clone()), ..Marks::blank() },
            Marks {
                from: Some(Origin::Snapshot(name.clone())),
                min: Some(Bytes(1 << 40)),
                ..Marks::blank().named(&name).of_driver("lvm-csi.dev")
            },
            Marks { from: Some(Origin::Volume(name)), ..Marks::blank() },
        ];
        for marks in all {
            let tags = texts(&marks);
            assert!(tags.concat().len() <= 130, "{tags:?}");
            assert_eq!(Marks::read(&tags).unwrap(), Some(marks));
        }
    }

    #[test]
    fn what_is_not_ours_is_nothing_and_what_makes_no_sense_is_damaged() {
        let read = |tags: &[&str]| Marks::read(&tags.iter().map(|&tag| tag.to_owned()).collect::<Vec<_>>());
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&["csi.fs=raw", "backup"]), Ok(None));
        assert_eq!(read(&["lvm-csi=2", "csi.fs=raw"]), Err(TagError::Format("2".into())));
        assert_eq!(read(&["lvm-csi=1"]), Err(TagError::Absent("csi.fs=")));
        assert_eq!(read(&["lvm-csi=1", "csi.fs=ntfs"]), Err(TagError::Value("csi.fs=ntfs".into())));
        assert_eq!(read(&["lvm-csi=1", "csi.fs=raw", "csi.fs=ext4"]), Err(TagError::Twice("csi.fs=")));
        assert_eq!(read(&["lvm-csi=1", "csi.fs=raw", "csi.z=-1"]), Err(TagError::Value("csi.z=-1".into())));
        assert_eq!(read(&["lvm-csi=1", "csi.fs=raw", "csi.from=x"]), Err(TagError::Value("csi.from=x".into())));
        for bad in ["csi.d=", "csi.d=a b"] {
            assert_eq!(read(&["lvm-csi=1", "csi.fs=raw", bad]), Err(TagError::Value(bad.into())));
        }
        assert_eq!(read(&["lvm-csi=1", "csi.fs=raw", "csi.d=a", "csi.d=b"]), Err(TagError::Twice("csi.d=")));
        assert_eq!(read(&["lvm-csi=1", "csi.fs=raw", "csi.n=xyz"]), Err(TagError::Value("csi.n=xyz".into())));
    }

    #[test]
    fn a_directory_of_any_characters_is_a_tag_as_far_as_it_fits() {
        for directory in ["/var/lib/kubelet/pods/0f0e0d0c-0b0a-4000-8000-000000000001", "/a b/käse~&=26", "/"] {
            let marks = Marks { ephemeral: Directory::new(directory), ..Marks::blank() };
            assert!(marks.ephemeral.is_some());
            assert_eq!(Marks::read(&texts(&marks)).unwrap(), Some(marks));
        }
        for long in ["a".repeat(255), "~".repeat(90)] {
            assert_eq!(Directory::new(&long), None);
        }
        for bad in ["csi.e=&", "csi.e=&2", "csi.e=&zz", "csi.e=&ff", "csi.e=a&é"] {
            let tags = ["lvm-csi=1", "csi.fs=raw", bad].map(str::to_owned);
            assert_eq!(Marks::read(&tags), Err(TagError::Value(bad.into())));
        }
    }

    #[test]
    fn a_pool_that_was_begun_is_ours_and_no_volume() {
        let tags: Vec<String> = of_pool("a").iter().map(|tag| tag.as_str().to_owned()).collect();
        assert!(is_pool(&tags, "a") && Marks::read(&tags).is_err());
        assert!(!is_pool(&tags, "b"), "another driver may be making it");
        assert!(is_pool(&tags[..2], "a") && is_pool(&tags[..2], "b"));
        assert!(!is_pool(&tags[..1], "a") && !is_pool(&tags[1..], "a") && !is_pool(&[], "a"));
    }

    #[test]
    fn a_change_touches_only_what_differs() {
        let before = Marks::blank();
        let after = Marks { life: Life::Raw, zeroed: Bytes(4096), ..Marks::blank() };
        let (remove, add) = before.change(&after);
        assert_eq!(remove, [Tag::new("csi.fs=blank").unwrap()]);
        assert_eq!(add, [Tag::new("csi.fs=raw").unwrap(), Tag::new("csi.z=4096").unwrap()]);
    }
}
