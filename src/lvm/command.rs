//! Every change the driver asks of LVM, as a value, with the arguments of the one process that makes it.

use std::fmt;

use crate::types::{Bytes, Extents, LvName, LvUuid, NewThinPool, SECTOR, Tag, VgName, VgUuid};

/// A change of one volume group. Each runs one `lvm` process and, if the metadata change, makes one or a few commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Creates a linear LV, inactive, with whatever its extents held before: the caller zeroes them before it shows them.
    CreateLinear {
        vg: VgName,
        lv: LvName,
        extents: Extents,
        /// Set in the same commit.
        tags: Vec<Tag>,
    },
    /// Creates an empty thin volume, inactive.
    CreateThin {
        vg: VgName,
        pool: LvName,
        lv: LvName,
        /// The virtual size; LVM rounds it up to extents.
        size: Bytes,
        /// Set in the same commit.
        tags: Vec<Tag>,
    },
    /// Creates a thin snapshot, inactive.
    SnapshotThin {
        vg: VgName,
        /// A thin volume, which may itself be a snapshot.
        origin: LvName,
        lv: LvName,
        /// Set in the same commit; none are inherited.
        tags: Vec<Tag>,
        /// Read-only for a snapshot, writable for a clone.
        read_only: bool,
    },
    /// Creates a thin pool that zeroes new chunks, and leaves it active.
    CreateThinPool {
        vg: VgName,
        lv: LvName,
        /// The size of the data. The mappings come on top, twice (LVM keeps a spare for repair).
        size: Bytes,
        shape: PoolShape,
        /// LVM commits the tags with the plain LV that it first creates under this name and then converts to the pool.
        tags: Vec<Tag>,
    },
    /// Extends the mappings of a thin pool, and if necessary the group's spare.
    ExtendMetadata {
        vg: VgName,
        lv: LvName,
        /// The size of the mappings afterwards.
        size: Bytes,
    },
    /// Sets what a thin pool without a free block does with writes that need one. LVM refuses if the pool is already set so.
    ErrorWhenFull {
        vg: VgName,
        lv: LvName,
        /// Writes fail at once; else they wait until the pool is extended or the kernel gives up (a minute).
        error: bool,
    },
    /// Extends an LV and its device.
    Extend {
        vg: VgName,
        lv: LvName,
        /// The size afterwards.
        extents: Extents,
    },
    /// Loads the table of the metadata into the kernel.
    Refresh { vg: VgName, lv: LvName },
    /// Activates LVs, including those flagged to be skipped. If LVM fails with one, it goes on with the others and exits with 5.
    Activate { vg: VgName, lvs: Vec<LvName> },
    /// Deactivates LVs. LVM refuses each that is open, and goes on as above.
    Deactivate { vg: VgName, lvs: Vec<LvName> },
    /// Changes the same tags on each LV, in one commit for each, and disables autoactivation, so that no boot of the host
    /// activates them.
    Retag { vg: VgName, lvs: Vec<LvName>, remove: Vec<Tag>, add: Vec<Tag> },
    /// Adds tags to an LV that has no owner yet: one with this UUID that is not active and that nothing depends on. Also disables
    /// its autoactivation at boot.
    Adopt { vg: VgName, lv: LvName, uuid: LvUuid, tags: Vec<Tag> },
    /// Changes tags of the group itself, in one commit. **Guarded**: LVM silently skips a group that has this name but another
    /// UUID.
    RetagGroup { vg: VgName, uuid: VgUuid, remove: Vec<Tag>, add: Vec<Tag> },
    /// Removes inactive LVs that nothing depends on, in one commit if they are linear. **Guarded**: LVM silently skips (exit 0)
    /// an LV that has another UUID, is active, or has dependents. A name that does not exist makes it exit with 5, but it removes
    /// all others. So the caller reads again to see what is gone.
    Remove { vg: VgName, targets: Vec<(LvName, LvUuid)> },
}

/// The host's LVM skips the LV when it activates what it finds at boot: the host must not read a tenant's bytes.
const NO_AUTOACTIVATION: &[&str] = &["--setautoactivation", "n"];
/// The same for `lvcreate` of thin LVs, which rejects that option before LVM 2.03.34: any activation without `-K` skips them.
const ACTIVATION_SKIP: &str = "-ky";

/// What a guarded removal requires besides the UUID. Without it `lvremove -y` would remove active LVs that are not open, and with
/// an origin all that depends on it: COW snapshots, users of an external origin, and with a pool (role "private") every volume in
/// it.
const GUARD: &str = "lv_active!=active && lv_role!=thickorigin && lv_role!=extthinorigin && lv_role=public";

impl Command {
    /// The LVM command that makes the change.
    pub fn name(&self) -> &'static str {
        match self {
            Command::CreateLinear { .. }
            | Command::CreateThin { .. }
            | Command::SnapshotThin { .. }
            | Command::CreateThinPool { .. } => "lvcreate",
            Command::Extend { .. } | Command::ExtendMetadata { .. } => "lvextend",
            Command::Refresh { .. }
            | Command::ErrorWhenFull { .. }
            | Command::Activate { .. }
            | Command::Deactivate { .. }
            | Command::Retag { .. }
            | Command::Adopt { .. } => "lvchange",
            Command::RetagGroup { .. } => "vgchange",
            Command::Remove { .. } => "lvremove",
        }
    }

    pub fn vg(&self) -> &VgName {
        match self {
            Command::CreateLinear { vg, .. }
            | Command::CreateThin { vg, .. }
            | Command::SnapshotThin { vg, .. }
            | Command::CreateThinPool { vg, .. }
            | Command::ExtendMetadata { vg, .. }
            | Command::ErrorWhenFull { vg, .. }
            | Command::Extend { vg, .. }
            | Command::Refresh { vg, .. }
            | Command::Activate { vg, .. }
            | Command::Deactivate { vg, .. }
            | Command::Retag { vg, .. }
            | Command::Adopt { vg, .. }
            | Command::RetagGroup { vg, .. }
            | Command::Remove { vg, .. } => vg,
        }
    }

    /// Whether it changes the metadata, not only the kernel's tables.
    pub fn commits(&self) -> bool {
        !matches!(self, Command::Refresh { .. } | Command::Activate { .. } | Command::Deactivate { .. })
    }

    /// The arguments of `lvm`, starting with the command name. The report format is not among them: lvcreate refuses
    /// `--reportformat` for anything thin, so [`super::conf::Conf`] sets it.
    pub fn argv(&self) -> Vec<String> {
        let mut argv = vec![self.name().to_owned(), "-y".to_owned()];
        let mut push = |args: &[&str]| argv.extend(args.iter().map(|&arg| arg.to_owned()));
        match self {
            Command::CreateLinear { vg, lv, extents, tags } => {
                // No wiping by LVM: it would have to activate the LV, and wipes known signatures only.
                push(&["-an", "-Wn", "-Zn", "--type", "linear", "-l", &extents.0.to_string(), "-n", lv.as_str()]);
                push(NO_AUTOACTIVATION);
                push_each(&mut argv, "--addtag", tags);
                argv.push(vg.to_string());
            }
            Command::CreateThin { vg, pool, lv, size, tags } => {
                push(&["-an", ACTIVATION_SKIP, "-Wn", "-V", &size_arg(*size), "--thinpool", pool.as_str(), "-n", lv.as_str()]);
                push_each(&mut argv, "--addtag", tags);
                argv.push(vg.to_string());
            }
            Command::SnapshotThin { vg, origin, lv, tags, read_only } => {
                push(&["-s", "-an", if *read_only { "-pr" } else { "-prw" }, ACTIVATION_SKIP, "-n", lv.as_str()]);
                push_each(&mut argv, "--addtag", tags);
                argv.push(format!("{vg}/{origin}"));
            }
            Command::CreateThinPool { vg, lv, size, shape, tags } => {
                let (size, metadata, chunk) = (size_arg(*size), size_arg(shape.metadata), size_arg(shape.chunk));
                push(&["--type", "thin-pool", "-L", &size, "--poolmetadatasize", &metadata, "--poolmetadataspare", "y"]);
                push(&["-c", &chunk, "-Zy", "--discards", "passdown", "-n", lv.as_str()]);
                push_each(&mut argv, "--addtag", tags);
                argv.push(vg.to_string());
            }
            Command::ExtendMetadata { vg, lv, size } => {
                push(&["--poolmetadatasize", &size_arg(*size), &format!("{vg}/{lv}")]);
            }
            Command::ErrorWhenFull { vg, lv, error } => {
                push(&["--errorwhenfull", if *error { "y" } else { "n" }, &format!("{vg}/{lv}")]);
            }
            Command::Extend { vg, lv, extents } => push(&["-l", &extents.0.to_string(), &format!("{vg}/{lv}")]),
            Command::Refresh { vg, lv } => push(&["--refresh", &format!("{vg}/{lv}")]),
            // Without `--poll n` LVM starts a daemon to continue somebody's pvmove, which would die with our container.
            Command::Activate { vg, lvs } => {
                push(&["-ay", "-K", "--poll", "n"]);
                argv.extend(paths(vg, lvs));
            }
            Command::Deactivate { vg, lvs } => {
                push(&["-an"]);
                argv.extend(paths(vg, lvs));
            }
            Command::Retag { vg, lvs, remove, add } => {
                push(NO_AUTOACTIVATION);
                push_tags(&mut argv, remove, add);
                argv.extend(paths(vg, lvs));
            }
            Command::Adopt { vg, lv, uuid, tags } => {
                push(&["-S", &format!("lv_uuid={uuid} && {GUARD}")]);
                push(NO_AUTOACTIVATION);
                push_each(&mut argv, "--addtag", tags);
                argv.push(format!("{vg}/{lv}"));
            }
            Command::RetagGroup { vg, uuid, remove, add } => {
                push(&["-S", &format!("vg_uuid={uuid}")]);
                push_tags(&mut argv, remove, add);
                argv.push(vg.to_string());
            }
            Command::Remove { vg, targets } => {
                // UUIDs contain letters, digits and hyphens only, so they cannot change the expression. A name matches if its LV
                // has any of the UUIDs: names are unique in the group, so at worst targets were renamed into one another.
                let uuids: Vec<String> = targets.iter().map(|(_, uuid)| format!("lv_uuid={uuid}")).collect();
                push(&["-S", &format!("({}) && {GUARD}", uuids.join(" || "))]);
                argv.extend(paths(vg, targets.iter().map(|(lv, _)| lv)));
            }
        }
        argv
    }
}

fn paths<'a>(vg: &VgName, lvs: impl IntoIterator<Item = &'a LvName>) -> impl Iterator<Item = String> {
    lvs.into_iter().map(move |lv| format!("{vg}/{lv}"))
}

/// The chunk and metadata sizes of a thin pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShape {
    /// The unit of allocation. Each first write to a chunk zeroes or copies it.
    pub chunk: Bytes,
    /// The size of the mappings.
    pub metadata: Bytes,
}

impl PoolShape {
    /// The shape for a pool with `size` bytes of data: chunks of 64 KiB, larger beyond 1 TiB so that there are at most 16 Mi of
    /// them. A mapping takes about 64 bytes; twice that leaves room for snapshots that diverge. So metadata stop at 2 GiB, while
    /// LVM's own limit is [`NewThinPool::LARGEST_METADATA`].
    pub fn of(size: Bytes) -> PoolShape {
        const MOST_CHUNKS: u64 = 16 << 20;
        let mut chunk = NewThinPool::SMALLEST_CHUNK;
        while chunk < NewThinPool::LARGEST_CHUNK && size.0 / chunk.0 > MOST_CHUNKS {
            chunk.0 *= 2;
        }
        Self::with_chunk(size, chunk)
    }

    /// The shape for a pool with `size` bytes of data and chunks of `chunk` bytes, which must not be 0.
    pub fn with_chunk(size: Bytes, chunk: Bytes) -> PoolShape {
        let metadata = Bytes((size.0 / chunk.0).saturating_mul(128)).clamp(Bytes(8 << 20), NewThinPool::LARGEST_METADATA);
        PoolShape { chunk, metadata: Bytes(metadata.0.next_multiple_of(1 << 20)) }
    }
}

/// A size as LVM accepts it: bytes, rounded up to whole sectors. LVM rounds up further to extents.
fn size_arg(size: Bytes) -> String {
    format!("{}b", u128::from(size.0).next_multiple_of(u128::from(SECTOR)))
}

fn push_each<'a>(argv: &mut Vec<String>, option: &str, tags: impl IntoIterator<Item = &'a Tag>) {
    for tag in tags {
        argv.extend([option.to_owned(), tag.to_string()]);
    }
}

/// LVM removes a tag that is both added and removed, whatever the order; so such a tag is only added.
fn push_tags(argv: &mut Vec<String>, remove: &[Tag], add: &[Tag]) {
    push_each(argv, "--deltag", remove.iter().filter(|tag| !add.contains(tag)));
    push_each(argv, "--addtag", add);
}

impl fmt::Display for Command {
    /// For logs and errors: `create linear vg/x (25 extents)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::CreateLinear { vg, lv, extents, .. } => write!(f, "create linear {vg}/{lv} ({extents})"),
            Command::CreateThin { vg, pool, lv, size, .. } => write!(f, "create thin {vg}/{lv} in {pool} ({size})"),
            Command::SnapshotThin { vg, origin, lv, read_only: true, .. } => write!(f, "snapshot {vg}/{origin} as {lv}"),
            Command::SnapshotThin { vg, origin, lv, read_only: false, .. } => write!(f, "clone {vg}/{origin} as {lv}"),
            Command::CreateThinPool { vg, lv, size, .. } => write!(f, "create thin pool {vg}/{lv} ({size})"),
            Command::ExtendMetadata { vg, lv, size } => write!(f, "extend the metadata of thin pool {vg}/{lv} to {size}"),
            Command::ErrorWhenFull { vg, lv, error: true } => write!(f, "let full thin pool {vg}/{lv} refuse writes"),
            Command::ErrorWhenFull { vg, lv, error: false } => write!(f, "let full thin pool {vg}/{lv} hold back writes"),
            Command::Extend { vg, lv, extents } => write!(f, "extend {vg}/{lv} to {extents}"),
            Command::Refresh { vg, lv } => write!(f, "refresh {vg}/{lv}"),
            Command::Activate { vg, lvs } => write_all(f, "activate", vg, lvs),
            Command::Deactivate { vg, lvs } => write_all(f, "deactivate", vg, lvs),
            Command::Retag { vg, lvs, remove, add } => {
                write_all(f, "retag", vg, lvs)?;
                write_tags(f, remove, add)
            }
            Command::Adopt { vg, lv, tags, .. } => {
                write!(f, "adopt {vg}/{lv}")?;
                write_tags(f, &[], tags)
            }
            Command::RetagGroup { vg, remove, add, .. } => {
                write!(f, "retag volume group {vg}")?;
                write_tags(f, remove, add)
            }
            Command::Remove { vg, targets } => write_all(f, "remove", vg, targets.iter().map(|(lv, _)| lv)),
        }
    }
}

fn write_all<'a>(f: &mut fmt::Formatter<'_>, verb: &str, vg: &VgName, lvs: impl IntoIterator<Item = &'a LvName>) -> fmt::Result {
    f.write_str(verb)?;
    paths(vg, lvs).try_for_each(|path| write!(f, " {path}"))
}

fn write_tags(f: &mut fmt::Formatter<'_>, remove: &[Tag], add: &[Tag]) -> fmt::Result {
    remove.iter().try_for_each(|tag| write!(f, " -{tag}"))?;
    add.iter().try_for_each(|tag| write!(f, " +{tag}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vg() -> VgName {
        VgName::new("vg").unwrap()
    }

    fn lv(name: &str) -> LvName {
        LvName::new(name).unwrap()
    }

    fn tags(names: &[&str]) -> Vec<Tag> {
        names.iter().map(|name| Tag::new(*name).unwrap()).collect()
    }

    fn uuid(digit: char) -> LvUuid {
        LvUuid::from_compact(&digit.to_string().repeat(32)).unwrap()
    }

    #[test]
    fn the_arguments_are_those_that_were_tried_on_lvm() {
        let cases = [
            (
                Command::CreateLinear { vg: vg(), lv: lv("v"), extents: Extents(4), tags: tags(&["a", "b=1"]) },
                "lvcreate -y -an -Wn -Zn --type linear -l 4 -n v --setautoactivation n --addtag a --addtag b=1 vg",
                "create linear vg/v (4 extents)",
            ),
            (
                Command::CreateThin { vg: vg(), pool: lv("p"), lv: lv("v"), size: Bytes(5_000_000), tags: tags(&["a"]) },
                "lvcreate -y -an -ky -Wn -V 5000192b --thinpool p -n v --addtag a vg",
                "create thin vg/v in p (5000000)",
            ),
            (
                Command::SnapshotThin { vg: vg(), origin: lv("v"), lv: lv("s"), tags: tags(&["a"]), read_only: true },
                "lvcreate -y -s -an -pr -ky -n s --addtag a vg/v",
                "snapshot vg/v as s",
            ),
            (
                Command::SnapshotThin { vg: vg(), origin: lv("s"), lv: lv("c"), tags: vec![], read_only: false },
                "lvcreate -y -s -an -prw -ky -n c vg/s",
                "clone vg/s as c",
            ),
            (
                Command::CreateThinPool {
                    vg: vg(),
                    lv: lv("p"),
                    size: Bytes(256 << 20),
                    shape: PoolShape::of(Bytes(256 << 20)),
                    tags: tags(&["a"]),
                },
                "lvcreate -y --type thin-pool -L 268435456b --poolmetadatasize 8388608b --poolmetadataspare y -c 65536b -Zy \
                 --discards passdown -n p --addtag a vg",
                "create thin pool vg/p (268435456 (256MiB))",
            ),
            (
                Command::ExtendMetadata { vg: vg(), lv: lv("p"), size: Bytes(12 << 20) },
                "lvextend -y --poolmetadatasize 12582912b vg/p",
                "extend the metadata of thin pool vg/p to 12582912 (12MiB)",
            ),
            (
                Command::ErrorWhenFull { vg: vg(), lv: lv("p"), error: true },
                "lvchange -y --errorwhenfull y vg/p",
                "let full thin pool vg/p refuse writes",
            ),
            (
                Command::ErrorWhenFull { vg: vg(), lv: lv("p"), error: false },
                "lvchange -y --errorwhenfull n vg/p",
                "let full thin pool vg/p hold back writes",
            ),
            (Command::Extend { vg: vg(), lv: lv("v"), extents: Extents(9) }, "lvextend -y -l 9 vg/v", "extend vg/v to 9 extents"),
            (Command::Refresh { vg: vg(), lv: lv("v") }, "lvchange -y --refresh vg/v", "refresh vg/v"),
            (
                Command::Activate { vg: vg(), lvs: vec![lv("v"), lv("w")] },
                "lvchange -y -ay -K --poll n vg/v vg/w",
                "activate vg/v vg/w",
            ),
            (Command::Deactivate { vg: vg(), lvs: vec![lv("v")] }, "lvchange -y -an vg/v", "deactivate vg/v"),
            (
                Command::Retag { vg: vg(), lvs: vec![lv("v")], remove: tags(&["a", "b"]), add: tags(&["b", "c"]) },
                "lvchange -y --setautoactivation n --deltag a --addtag b --addtag c vg/v",
                "retag vg/v -a -b +b +c",
            ),
            (
                Command::RetagGroup {
                    vg: vg(),
                    uuid: VgUuid::from_compact(&"v".repeat(32)).unwrap(),
                    remove: tags(&["a"]),
                    add: tags(&["b"]),
                },
                "vgchange -y -S vg_uuid=vvvvvv-vvvv-vvvv-vvvv-vvvv-vvvv-vvvvvv --deltag a --addtag b vg",
                "retag volume group vg -a +b",
            ),
        ];
        for (command, argv, text) in cases {
            assert_eq!(command.argv().join(" "), argv);
            assert_eq!(command.to_string(), text);
            assert_eq!(command.vg(), &vg());
        }
    }

    #[test]
    fn a_removal_is_guarded_as_one_argument() {
        let command = Command::Remove { vg: vg(), targets: vec![(lv("a"), uuid('a')), (lv("b"), uuid('b'))] };
        let argv = command.argv();
        assert_eq!(argv[..3], ["lvremove", "-y", "-S"]);
        assert_eq!(
            argv[3],
            "(lv_uuid=aaaaaa-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa || lv_uuid=bbbbbb-bbbb-bbbb-bbbb-bbbb-bbbb-bbbbbb) && \
             lv_active!=active && lv_role!=thickorigin && lv_role!=extthinorigin && lv_role=public"
        );
        assert_eq!(argv[4..], ["vg/a", "vg/b"]);
        assert_eq!(command.to_string(), "remove vg/a vg/b");
    }

    #[test]
    fn large_pools_get_large_chunks() {
        let shape = |size| PoolShape::of(Bytes(size));
        assert_eq!(shape(0), PoolShape { chunk: Bytes(64 << 10), metadata: Bytes(8 << 20) });
        assert_eq!(shape(1 << 40), PoolShape { chunk: Bytes(64 << 10), metadata: Bytes(2 << 30) });
        assert_eq!(shape((1 << 40) + (1 << 30)).chunk, Bytes(128 << 10));
        assert_eq!(shape(1 << 54).metadata, Bytes(2 << 30));
        assert_eq!(PoolShape::with_chunk(Bytes(1 << 40), Bytes(1 << 20)).metadata, Bytes(128 << 20));
        assert_eq!(PoolShape::with_chunk(Bytes(1 << 60), Bytes(64 << 10)).metadata, NewThinPool::LARGEST_METADATA);
    }
}
