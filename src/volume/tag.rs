//! The driver's tags. [`Marks::tags`] alone writes them and [`Marks::read`] alone reads them.
//!
//! | tag | meaning |
//! |---|---|
//! | `lvm-csi=1` | the LV is ours, in format 1. Of LVs without it the driver changes only configured thin pools, which people make |
//! | `csi.fs=<life>` | what it holds ([`Life`]) |
//! | `csi.of=<lv>` | it is a snapshot of that volume |
//! | `csi.from=v:<lv>`, `csi.from=s:<lv>` | its content came from that volume or snapshot |
//! | `csi.min=<bytes>` | its requested size; the LV is unfinished while it is smaller |
//! | `csi.z=<bytes>` | linear LVs: no old bytes from the beginning up to this offset |
//! | `csi.e=<dir>` | an inline ephemeral volume of the pod with this directory; characters that LVM refuses are `&` and two hex digits |
//! | `csi.pool` | a thin pool that this driver made or began to make |
//! | `csi.n=<crc-32>` | checksum of the name it was made with; detects a rename, since handles contain names |
//! | `csi.c=<namespace>/<name>` | the claim that a volume was made for; only people read it, for instance after a loss of etcd |
//! | `csi.d=<name>` | the CSI name of the driver that owns it; earlier versions wrote none |
//!
//! A group has one tag, `csi.machine=` ([`super::owner`]).
//!
//! The tags of an LV but for its claim stay under about 130 bytes: every LVM command reads and writes every byte. The driver's name is not
//! shortened to a checksum: for most names that would save three bytes, and a person who finds the LV can read the owner.

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
const CLAIM: &str = "csi.c=";

const SUM: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);

/// Source of a volume's content.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A clone of this volume.
    Volume(LvName),
    /// Restored from this snapshot.
    Snapshot(LvName),
}

/// The meaning of all tags of one of the driver's LVs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marks {
    pub life: Life,
    /// The volume that it is a snapshot of.
    pub of: Option<LvName>,
    /// Source of its content.
    pub from: Option<Origin>,
    /// The requested size, if reaching it takes a second step.
    pub min: Option<Bytes>,
    /// Zeroed and flushed from the beginning up to this offset.
    pub zeroed: Bytes,
    /// The name it was made with; `None` if an earlier version made it.
    pub named: Option<NameSum>,
    /// The pod directory of an inline volume; `None` for any other volume.
    pub ephemeral: Option<Directory>,
    /// The claim that it was made for, if that is known.
    pub claim: Option<ClaimTag>,
    /// The driver that owns it; `None` if an earlier version made it.
    pub driver: Option<String>,
}

/// A checksum of an LV's name. It only has to detect a rename; the whole name in every LV's tags would be too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameSum(u32);

impl NameSum {
    pub fn of(lv: &LvName) -> Self {
        Self(SUM.checksum(lv.as_str().as_bytes()))
    }
}

/// A directory that fits into a tag when escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory(String);

impl Directory {
    /// `None` if the escaped text is too long for a tag.
    pub fn new(text: &str) -> Option<Self> {
        Tag::new(format!("{EPHEMERAL}{}", escape(text))).is_ok().then(|| Self(text.to_owned()))
    }

    /// The directory, not escaped.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A claim that fits into a tag, as `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClaimTag(String);

impl ClaimTag {
    /// `None` if the text is too long for a tag or has other characters than LVM allows; Kubernetes' names have none.
    pub fn new(text: &str) -> Option<Self> {
        (!text.is_empty() && Tag::new(format!("{CLAIM}{text}")).is_ok()).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why the tags of one of the driver's LVs make no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TagError {
    /// Made by another version of the driver.
    #[error("its format is {0:?}, this driver knows {FORMAT:?}")]
    Format(String),
    #[error("tag {0:?} cannot be read")]
    Value(String),
    #[error("tag {0}… is missing")]
    Absent(&'static str),
    #[error("tag {0}… is there twice")]
    Twice(&'static str),
}

impl Marks {
    /// The marks of a volume that nobody ever wrote to.
    pub fn blank() -> Self {
        Self {
            life: Life::Blank,
            of: None,
            from: None,
            min: None,
            zeroed: Bytes(0),
            named: None,
            ephemeral: None,
            claim: None,
            driver: None,
        }
    }

    /// The same marks for an LV made with this name.
    #[must_use]
    pub fn named(self, lv: &LvName) -> Self {
        Self { named: Some(NameSum::of(lv)), ..self }
    }

    /// The same marks for an LV that this driver owns.
    #[must_use]
    pub fn of_driver(self, name: &str) -> Self {
        Self { driver: Some(name.to_owned()), ..self }
    }

    /// Reads the tags of an LV; `None` if no driver of this kind owns it.
    ///
    /// # Errors
    /// The LV has the owner tag, and its other tags make no sense: it is damaged.
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
            // It decides nothing, so no value of it makes the LV a damaged one.
            claim: tags.iter().find_map(|tag| tag.strip_prefix(CLAIM)).and_then(ClaimTag::new),
            driver: one(tags, DRIVER)?
                .map(|name| match Tag::new(format!("{DRIVER}{name}")) {
                    Ok(_) if !name.is_empty() => Ok(name.to_owned()),
                    _ => Err(TagError::Value(format!("{DRIVER}{name}"))),
                })
                .transpose()?,
        }))
    }

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
        texts.extend(self.claim.as_ref().map(|claim| format!("{CLAIM}{}", claim.0)));
        texts.extend(self.driver.as_ref().map(|name| format!("{DRIVER}{name}")));
        texts
            .into_iter()
            .map(|text| Tag::new(text).expect("our prefix and a checked name or number always make a valid tag"))
            .collect()
    }

    /// The tags to remove and the tags to add to get from `self` to `next`.
    pub fn change(&self, next: &Marks) -> (Vec<Tag>, Vec<Tag>) {
        let (old, new) = (self.tags(), next.tags());
        let remove = old.iter().filter(|tag| !new.contains(tag)).cloned().collect();
        let add = new.into_iter().filter(|tag| !old.contains(tag)).collect();
        (remove, add)
    }
}

/// Whether a tag means something to this driver on an LV that it owns.
pub fn is_ours(tag: &str) -> bool {
    tag.starts_with(OWNER) || tag.starts_with("csi.")
}

/// Whether a driver of this kind, with whatever name, owns an LV with these tags.
pub fn is_marked(tags: &[String]) -> bool {
    tags.iter().any(|tag| tag.starts_with(OWNER))
}

/// The name of the driver that owns an LV with these tags; `None` if the tags contain no name, or several.
pub fn driver_of(tags: &[String]) -> Option<&str> {
    one(tags, DRIVER).ok().flatten()
}

/// Whether the tags contain no driver's name.
pub fn is_nameless(tags: &[String]) -> bool {
    !tags.iter().any(|tag| tag.starts_with(DRIVER))
}

/// The tag with the name of the driver that owns an LV.
///
/// # Panics
/// If the configuration does not allow such a name.
pub fn of_driver(name: &str) -> Tag {
    Tag::new(format!("{DRIVER}{name}")).expect("a driver's name has only letters, digits, '-' and '.'")
}

/// The tags of a thin pool that the driver makes.
pub fn of_pool(driver: &str) -> Vec<Tag> {
    let mut tags: Vec<Tag> = of_any_pool().into();
    tags.push(of_driver(driver));
    tags
}

fn of_any_pool() -> [Tag; 2] {
    [format!("{OWNER}{FORMAT}"), POOL.to_owned()].map(|text| Tag::new(text).expect("our constants are valid tags"))
}

/// Whether an LV with these tags is a thin pool that this driver made or began to make.
pub fn is_pool(tags: &[String], driver: &str) -> bool {
    let ours = is_nameless(tags) || driver_of(tags) == Some(driver);
    ours && of_any_pool().iter().all(|tag| tags.iter().any(|there| there == tag.as_str()))
}

/// Writes each byte that LVM refuses in a tag, and `&` itself, as `&` and two hexadecimal digits.
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

/// The value of the tag with this prefix.
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
    fn an_lv_without_the_owner_tag_is_not_ours_and_one_whose_tags_make_no_sense_is_damaged() {
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
    fn a_claim_is_kept_as_far_as_it_fits_and_decides_nothing() {
        let claim = ClaimTag::new("shop/data-db-0").unwrap();
        let marks = Marks { claim: Some(claim), ..Marks::blank() };
        assert_eq!(Marks::read(&texts(&marks)).unwrap(), Some(marks));
        for bad in ["", "shop/däta", "shop/a b", &format!("{}/{}", "n".repeat(63), "c".repeat(253))] {
            assert_eq!(ClaimTag::new(bad), None, "{bad}");
        }
        let by_hand = ["lvm-csi=1", "csi.fs=raw", "csi.c=", "csi.c=a/b", "csi.c=c/d"].map(str::to_owned);
        assert_eq!(Marks::read(&by_hand).unwrap().unwrap().claim, None);
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
