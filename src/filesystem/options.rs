//! Mount options: which ones a volume may be mounted with, checked before anything is touched.
//!
//! The tables below are complete: any other option is refused, since the kernel would report it only at the mount, after the
//! volume was attached and formatted.

use super::Kind;
use crate::host::{MountEntry, MountFlag};

/// The options of one mount in canonical form: equal meanings are equal values, whatever their order and spelling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    flags: Vec<MountFlag>,
    data: String,
}

/// A mount option that is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("mount option {option:?} {reason}")]
pub struct OptionError {
    pub option: String,
    /// The reason, as the rest of a sentence.
    pub reason: String,
}

/// The value that an option takes.
#[derive(Clone, Copy)]
enum Takes {
    Nothing,
    Number,
    /// A number in bytes, optionally with `k`, `m` or `g`.
    Size,
    OneOf(&'static [&'static str]),
    MaybeNumber,
    MaybeOneOf(&'static [&'static str]),
}

/// The most bytes of option text that mount(2) accepts: one page less its closing NUL.
const LONGEST_DATA: usize = 4095;

/// Options of every filesystem that are flags of the kernel: name, flags it clears, flag it sets. Options for the default
/// (`relatime` too), or only for programs that read fstab, set nothing.
const GENERIC: &[(&str, &[MountFlag], Option<MountFlag>)] = {
    use MountFlag::{
        DirSync, LazyTime, NoAtime, NoDev, NoDirAtime, NoExec, NoSuid, ReadOnly, RelAtime, StrictAtime, Synchronous,
    };
    &[
        ("defaults", &[], None),
        ("auto", &[], None),
        ("noauto", &[], None),
        ("nofail", &[], None),
        ("nouser", &[], None),
        ("_netdev", &[], None),
        ("ro", &[], Some(ReadOnly)),
        ("rw", &[ReadOnly], None),
        ("nodev", &[], Some(NoDev)),
        ("dev", &[NoDev], None),
        ("nosuid", &[], Some(NoSuid)),
        ("suid", &[NoSuid], None),
        ("noexec", &[], Some(NoExec)),
        ("exec", &[NoExec], None),
        ("noatime", &[RelAtime, StrictAtime], Some(NoAtime)),
        ("atime", &[NoAtime], None),
        ("nodiratime", &[], Some(NoDirAtime)),
        ("diratime", &[NoDirAtime], None),
        ("relatime", &[NoAtime, StrictAtime], None),
        ("strictatime", &[NoAtime, RelAtime], Some(StrictAtime)),
        ("nostrictatime", &[StrictAtime], None),
        ("lazytime", &[], Some(LazyTime)),
        ("nolazytime", &[LazyTime], None),
        ("sync", &[], Some(Synchronous)),
        ("async", &[Synchronous], None),
        ("dirsync", &[], Some(DirSync)),
    ]
};

/// SELinux labels, which the kernel accepts for every filesystem. Their values may contain commas inside quotation marks.
const CONTEXTS: [&str; 4] = ["context", "fscontext", "defcontext", "rootcontext"];

const MOVES: &str = "is not allowed: only the driver decides which mounts exist and how they propagate";
const ELSEWHERE: &str = "is not allowed: it would use another device, or another part of it, than the volume";
const FSTAB: &str = "is not allowed: it says who may mount by hand, and nobody does";
const NO_REPLAY: &str = "is not allowed: without its journal the filesystem shows, and keeps, an inconsistent state";
const NO_BARRIER: &str = "is not allowed: without write barriers a power cut loses data that was synced";

/// Known and dangerous options; for all others `is not known` says enough.
const REFUSED: &[(&str, &str)] = &[
    ("remount", MOVES),
    ("bind", MOVES),
    ("rbind", MOVES),
    ("move", MOVES),
    ("shared", MOVES),
    ("rshared", MOVES),
    ("private", MOVES),
    ("rprivate", MOVES),
    ("slave", MOVES),
    ("rslave", MOVES),
    ("unbindable", MOVES),
    ("runbindable", MOVES),
    ("loop", ELSEWHERE),
    ("offset", ELSEWHERE),
    ("sizelimit", ELSEWHERE),
    ("sb", ELSEWHERE),
    ("journal_dev", ELSEWHERE),
    ("journal_path", ELSEWHERE),
    ("logdev", ELSEWHERE),
    ("rtdev", ELSEWHERE),
    ("user", FSTAB),
    ("users", FSTAB),
    ("owner", FSTAB),
    ("group", FSTAB),
    ("uid", "is not allowed: files of this filesystem have owners of their own; use fsGroup"),
    ("gid", "is not allowed: files of this filesystem have groups of their own; use fsGroup"),
    ("noload", NO_REPLAY),
    ("norecovery", NO_REPLAY),
    ("nobarrier", NO_BARRIER),
    ("abort", "is not allowed: it declares the filesystem broken"),
];

/// Options of ext4 (ext4(5)). Deliberately missing: `data=writeback`, which after a crash shows what an earlier volume left in
/// the blocks of a file; `errors=panic`, which lets one broken volume take the node down; `barrier=0`; `prjquota`, which mkfs
/// would have to prepare; and what newer kernels dropped (`noacl`, `nouser_xattr`).
const EXT4: &[(&str, Takes)] = &[
    ("acl", Takes::Nothing),
    ("user_xattr", Takes::Nothing),
    ("auto_da_alloc", Takes::Nothing),
    ("noauto_da_alloc", Takes::Nothing),
    ("barrier", Takes::MaybeOneOf(&["1"])),
    ("block_validity", Takes::Nothing),
    ("noblock_validity", Takes::Nothing),
    ("bsddf", Takes::Nothing),
    ("minixdf", Takes::Nothing),
    ("commit", Takes::Number),
    ("data", Takes::OneOf(&["ordered", "journal"])),
    ("data_err", Takes::OneOf(&["ignore", "abort"])),
    ("delalloc", Takes::Nothing),
    ("nodelalloc", Takes::Nothing),
    ("dioread_lock", Takes::Nothing),
    ("dioread_nolock", Takes::Nothing),
    ("discard", Takes::Nothing),
    ("nodiscard", Takes::Nothing),
    ("errors", Takes::OneOf(&["remount-ro", "continue"])),
    ("grpid", Takes::Nothing),
    ("nogrpid", Takes::Nothing),
    ("bsdgroups", Takes::Nothing),
    ("sysvgroups", Takes::Nothing),
    ("grpquota", Takes::Nothing),
    ("usrquota", Takes::Nothing),
    ("quota", Takes::Nothing),
    ("noquota", Takes::Nothing),
    ("init_itable", Takes::MaybeNumber),
    ("noinit_itable", Takes::Nothing),
    ("inlinecrypt", Takes::Nothing),
    ("inode_readahead_blks", Takes::Number),
    ("journal_checksum", Takes::Nothing),
    ("nojournal_checksum", Takes::Nothing),
    ("journal_ioprio", Takes::Number),
    ("max_batch_time", Takes::Number),
    ("min_batch_time", Takes::Number),
    ("max_dir_size_kb", Takes::Number),
    ("nombcache", Takes::Nothing),
    ("prefetch_block_bitmaps", Takes::Nothing),
    ("no_prefetch_block_bitmaps", Takes::Nothing),
    ("stripe", Takes::Number),
];

/// Options of XFS (xfs(5)). Deliberately missing: the geometry that mkfs wrote (`sunit`, `swidth`), and what newer kernels
/// dropped (`attr2`, `ikeep`).
const XFS: &[(&str, Takes)] = &[
    ("allocsize", Takes::Size),
    ("discard", Takes::Nothing),
    ("nodiscard", Takes::Nothing),
    ("filestreams", Takes::Nothing),
    ("grpid", Takes::Nothing),
    ("nogrpid", Takes::Nothing),
    ("bsdgroups", Takes::Nothing),
    ("sysvgroups", Takes::Nothing),
    ("inode32", Takes::Nothing),
    ("inode64", Takes::Nothing),
    ("largeio", Takes::Nothing),
    ("nolargeio", Takes::Nothing),
    ("logbsize", Takes::Size),
    ("logbufs", Takes::Number),
    ("noalign", Takes::Nothing),
    ("nouuid", Takes::Nothing),
    ("swalloc", Takes::Nothing),
    ("wsync", Takes::Nothing),
    ("noquota", Takes::Nothing),
    ("quota", Takes::Nothing),
    ("uquota", Takes::Nothing),
    ("usrquota", Takes::Nothing),
    ("uqnoenforce", Takes::Nothing),
    ("qnoenforce", Takes::Nothing),
    ("gquota", Takes::Nothing),
    ("grpquota", Takes::Nothing),
    ("gqnoenforce", Takes::Nothing),
    ("pquota", Takes::Nothing),
    ("prjquota", Takes::Nothing),
    ("pqnoenforce", Takes::Nothing),
];

impl MountOptions {
    /// Checks the `mount_flags` of a volume capability. Each string may hold several options, separated by commas. The last of
    /// mutually exclusive options counts, as in mount(8).
    ///
    /// The driver adds one option to each kind. ext4 gets `errors=remount-ro` unless `errors` is given: mke2fs writes `continue`,
    /// which keeps writing through broken metadata. XFS always gets `nouuid`: a volume and its clone have the same UUID, and the
    /// kernel would refuse the second mount on a node. That check prevents mounting one filesystem through two devices, which
    /// cannot happen to a device found by its dm UUID. A new UUID instead would need a clean log, that is, a mount and unmount of
    /// every clone before its first use.
    ///
    /// # Errors
    /// The first option that is unknown, has a wrong value, or is not allowed.
    pub fn parse<S: AsRef<str>>(kind: Kind, given: &[S]) -> Result<Self, OptionError> {
        let mut flags = Vec::new();
        let mut data = vec![added(kind).to_owned()];
        for text in given {
            let text = text.as_ref();
            for option in split(text).ok_or_else(|| refused(text, "has an unclosed quotation mark"))? {
                if let Some((_, clears, sets)) = GENERIC.iter().find(|(name, ..)| *name == option) {
                    flags.retain(|flag| !clears.contains(flag) && Some(*flag) != *sets);
                    flags.extend(*sets);
                } else {
                    let checked = check(kind, option)?;
                    data.retain(|other| subject(other) != subject(&checked));
                    data.push(checked);
                }
            }
        }
        flags.sort_by_key(|flag| GENERIC.iter().position(|(.., sets)| *sets == Some(*flag)));
        data.sort();
        let data = data.join(",");
        if data.len() > LONGEST_DATA {
            return Err(refused(data.get(..40).unwrap_or_default(), "and what follows it are longer than the kernel accepts"));
        }
        Ok(Self { flags, data })
    }

    /// The flags, in a fixed order, without the kernel's defaults.
    pub fn flags(&self) -> &[MountFlag] {
        &self.flags
    }

    /// The filesystem's options, comma-separated and sorted.
    pub fn data(&self) -> &str {
        &self.data
    }

    /// The filesystem's options without the one that the driver adds.
    pub fn asked(&self, kind: Kind) -> Vec<&str> {
        split(&self.data).unwrap_or_default().into_iter().filter(|option| *option != added(kind)).collect()
    }

    /// Whether an option is an SELinux label.
    pub fn is_label(option: &str) -> bool {
        option.split_once('=').is_some_and(|(name, _)| CONTEXTS.contains(&name))
    }

    pub fn is_read_only(&self) -> bool {
        self.flags.contains(&MountFlag::ReadOnly)
    }

    /// The same options for a read-only mount.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        if !self.is_read_only() {
            self.flags.insert(0, MountFlag::ReadOnly);
        }
        self
    }

    /// How a live mount differs from these options, as far as the kernel's mount table shows: flags and security labels. The
    /// table shows the filesystem's own options only if they are not its default.
    pub fn difference(&self, mounted: &MountEntry) -> Option<String> {
        // The table was split at commas, including those inside a context.
        let shown = mounted.super_options.join(",");
        let shown = split(&shown).unwrap_or_default();
        let on = |name: &str| mounted.options.iter().any(|option| option == name);
        let super_on = |name: &str| shown.contains(&name);
        let strict = !on("noatime") && !on("relatime");
        for (flag, name, is) in [
            (MountFlag::ReadOnly, "ro", on("ro")),
            (MountFlag::NoDev, "nodev", on("nodev")),
            (MountFlag::NoSuid, "nosuid", on("nosuid")),
            (MountFlag::NoExec, "noexec", on("noexec")),
            (MountFlag::NoAtime, "noatime", on("noatime")),
            (MountFlag::StrictAtime, "strictatime", strict),
            (MountFlag::NoDirAtime, "nodiratime", on("nodiratime")),
            (MountFlag::LazyTime, "lazytime", super_on("lazytime")),
            (MountFlag::Synchronous, "sync", super_on("sync")),
            (MountFlag::DirSync, "dirsync", super_on("dirsync")),
        ] {
            match (self.flags.contains(&flag), is) {
                (true, false) => return Some(format!("it is mounted without {name:?}")),
                (false, true) => return Some(format!("it is mounted with {name:?}")),
                _ => {}
            }
        }
        let wanted = split(&self.data).unwrap_or_default();
        for name in CONTEXTS {
            let (wanted, is) = (label(&wanted, name), label(&shown, name));
            if wanted != is {
                let text = |label: Option<String>| label.unwrap_or_else(|| "none".to_owned());
                return Some(format!("its {name} is {}, not {}", text(is), text(wanted)));
            }
        }
        None
    }
}

/// The option that the driver adds; see [`MountOptions::parse`].
fn added(kind: Kind) -> &'static str {
    match kind {
        Kind::Ext4 => "errors=remount-ro",
        Kind::Xfs => "nouuid",
    }
}

/// Splits at commas outside quotation marks and drops empty parts; `None` if a quotation mark is not closed.
fn split(text: &str) -> Option<Vec<&str>> {
    let mut quoted = false;
    let mut parts: Vec<&str> = text
        .split(|c| {
            quoted ^= c == '"';
            c == ',' && !quoted
        })
        .collect();
    parts.retain(|part| !part.is_empty());
    (!quoted).then_some(parts)
}

/// The value of a security label among options, without quotation marks.
fn label(options: &[&str], name: &str) -> Option<String> {
    let value = options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.trim_matches('"').to_owned())
}

/// The subject of an option: options with the same subject replace each other.
fn subject(option: &str) -> &str {
    let name = option.split_once('=').map_or(option, |(name, _)| name);
    // `noalign` and `nouuid` have no opposite, so nothing else has their subject.
    name.strip_prefix("no_").or_else(|| name.strip_prefix("no")).unwrap_or(name)
}

fn refused(option: &str, reason: &str) -> OptionError {
    OptionError { option: option.to_owned(), reason: reason.to_owned() }
}

/// Checks an option that is not a kernel flag, and returns its canonical form.
fn check(kind: Kind, option: &str) -> Result<String, OptionError> {
    let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
    if CONTEXTS.contains(&name) {
        let bare = value.unwrap_or_default();
        let bare = bare.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(bare);
        let whole = !bare.is_empty() && bare.bytes().all(|b| b.is_ascii_graphic() && !b"\"\\".contains(&b));
        return match whole {
            // Always quoted, for one form; the kernel removes the marks.
            true => Ok(format!("{name}=\"{bare}\"")),
            false => Err(refused(option, "needs a security label, in quotation marks if it contains a comma")),
        };
    }
    if let Some((_, reason)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
        return Err(refused(option, reason));
    }
    let table = match kind {
        Kind::Ext4 => EXT4,
        Kind::Xfs => XFS,
    };
    let Some((_, takes)) = table.iter().find(|(known, _)| *known == name) else {
        return Err(refused(option, &format!("is not known for {kind}")));
    };
    match takes.wrong(value) {
        None => Ok(option.to_owned()),
        Some(reason) => Err(refused(option, &reason)),
    }
}

impl Takes {
    /// What is wrong with a value; `None` if it fits.
    fn wrong(self, value: Option<&str>) -> Option<String> {
        let number = |text: &str| text.len() <= 9 && !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let fits = match (self, value) {
            (Takes::Nothing | Takes::MaybeNumber | Takes::MaybeOneOf(_), None) => true,
            (Takes::Nothing, Some(_)) | (Takes::Number | Takes::Size | Takes::OneOf(_), None) => false,
            (Takes::Number | Takes::MaybeNumber, Some(text)) => number(text),
            (Takes::Size, Some(text)) => number(text.strip_suffix(['k', 'K', 'm', 'M', 'g', 'G']).unwrap_or(text)),
            (Takes::OneOf(all) | Takes::MaybeOneOf(all), Some(text)) => all.contains(&text),
        };
        if fits {
            return None;
        }
        Some(match self {
            Takes::Nothing => "takes no value".to_owned(),
            Takes::Number | Takes::MaybeNumber => "takes a number".to_owned(),
            Takes::Size => "takes a size, such as 64k".to_owned(),
            Takes::OneOf(all) | Takes::MaybeOneOf(all) => format!("takes one of: {}", all.join(", ")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn parse(kind: Kind, given: &[&str]) -> MountOptions {
        MountOptions::parse(kind, given).unwrap()
    }

    fn reason(kind: Kind, option: &str) -> String {
        MountOptions::parse(kind, &["noatime", option]).unwrap_err().to_string()
    }

    #[test]
    fn nothing_given_is_the_default_of_the_driver() {
        let none: [&str; 0] = [];
        for given in [&none[..], &[""], &["defaults"], &["rw,async,exec,suid,dev,relatime", "nofail"]] {
            let ext4 = parse(Kind::Ext4, given);
            assert_eq!((ext4.flags(), ext4.data()), (&[][..], "errors=remount-ro"), "{given:?}");
            let xfs = parse(Kind::Xfs, given);
            assert_eq!((xfs.flags(), xfs.data()), (&[][..], "nouuid"), "{given:?}");
        }
    }

    #[test]
    fn order_and_spelling_do_not_matter_where_the_meaning_is_the_same() {
        let one = parse(Kind::Ext4, &["noatime,discard", "commit=30"]);
        assert_eq!(one, parse(Kind::Ext4, &["commit=5", "nodiscard", "atime", "discard,commit=30", "relatime,noatime"]));
        assert_eq!(one.flags(), [MountFlag::NoAtime]);
        assert_eq!(one.data(), "commit=30,discard,errors=remount-ro");
        assert_ne!(one, parse(Kind::Ext4, &["noatime", "discard"]));
        assert_eq!(parse(Kind::Xfs, &["nouuid", "ro", "nodev"]), parse(Kind::Xfs, &["nodev"]).read_only());
        assert_eq!(parse(Kind::Ext4, &["errors=continue"]).data(), "errors=continue");
        assert_eq!(parse(Kind::Ext4, &["ro", "rw"]).flags(), []);
        assert_eq!(one.asked(Kind::Ext4), ["commit=30", "discard"]);
    }

    #[test]
    fn a_security_label_keeps_its_commas_when_it_is_quoted() {
        let label = "context=\"system_u:object_r:container_file_t:s0:c0,c1\"";
        let options = parse(Kind::Xfs, &[&format!("noexec,{label},discard")]);
        assert_eq!(options.data(), format!("{label},discard,nouuid"));
        assert_eq!(options.asked(Kind::Xfs).into_iter().map(MountOptions::is_label).collect::<Vec<_>>(), [true, false]);
        assert_eq!(parse(Kind::Ext4, &["context=a:b:c:s0"]), parse(Kind::Ext4, &["context=\"a:b:c:s0\""]));
        assert!(reason(Kind::Xfs, "context=a:b:c:s0:c0,c1").contains("\"c1\" is not known for xfs"));
        assert!(reason(Kind::Xfs, "context=\"a:b").contains("unclosed quotation mark"));
        for bad in ["context", "context=", "context=\"\"", "context=a b", "context=a\"b\"c", "context=a\nb"] {
            assert!(reason(Kind::Xfs, bad).contains("security label"), "{bad}");
        }
    }

    #[test]
    fn what_is_unknown_or_dangerous_is_refused_by_name() {
        for kind in Kind::ALL {
            for (option, _) in REFUSED {
                assert!(reason(kind, option).contains("is not allowed"), "{option}");
                assert!(reason(kind, &format!("{option}=1")).contains("is not allowed"), "{option}");
            }
            for option in ["bogus", "X-mount.mkdir", "NOATIME", " discard", "discard ", "noatime=1", "=", "discard=1", "-o", "é"]
            {
                assert!(MountOptions::parse(kind, &[option]).is_err(), "{option:?}");
            }
        }
        for option in ["data=writeback", "errors=panic", "barrier=0", "commit=x", "commit=", "commit", "stripe=-1", "nouuid"] {
            assert!(MountOptions::parse(Kind::Ext4, &[option]).is_err(), "{option}");
        }
        for option in ["errors=continue", "allocsize=64q", "logbsize", "data=ordered"] {
            assert!(MountOptions::parse(Kind::Xfs, &[option]).is_err(), "{option}");
        }
        let long = vec![format!("context={}", "a".repeat(5000))];
        assert!(MountOptions::parse(Kind::Xfs, &long).unwrap_err().to_string().contains("longer"));
    }

    fn mounted(options: &str, super_options: &str) -> MountEntry {
        let list = |text: &str| text.split(',').map(str::to_owned).collect();
        MountEntry {
            id: 1,
            parent: 0,
            major: 253,
            minor: 0,
            root: PathBuf::from("/"),
            target: PathBuf::from("/t"),
            options: list(options),
            fstype: "xfs".to_owned(),
            source: "/dev/dm-0".to_owned(),
            super_options: list(super_options),
        }
    }

    #[test]
    fn a_live_mount_is_compared_by_its_flags_and_labels() {
        let plain = parse(Kind::Xfs, &["rw"]);
        assert_eq!(plain.difference(&mounted("rw,relatime", "rw,attr2,nouuid")), None);
        assert!(plain.difference(&mounted("ro,relatime", "ro")).unwrap().contains("with \"ro\""));
        assert!(plain.difference(&mounted("rw", "rw")).unwrap().contains("strictatime"));
        assert!(plain.difference(&mounted("rw,noatime", "rw")).unwrap().contains("with \"noatime\""));
        let strict = parse(Kind::Xfs, &["strictatime,noexec"]);
        assert_eq!(strict.difference(&mounted("rw,noexec", "rw")), None);
        assert!(strict.difference(&mounted("rw", "rw")).unwrap().contains("without \"noexec\""));
        let label = parse(Kind::Xfs, &["context=\"a:b:c:s0:c0,c1\""]);
        assert_eq!(label.difference(&mounted("rw,relatime", "rw,context=\"a:b:c:s0:c0,c1\",nouuid")), None);
        assert!(label.difference(&mounted("rw,relatime", "rw,context=a:b:c:s0")).is_some());
        assert!(plain.difference(&mounted("rw,relatime", "rw,context=a:b:c:s0")).is_some());
    }
}
