//! Parses the kernel's mount table, `/proc/self/mountinfo` (proc(5)).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::kernel::MountEntry;

/// Parses the whole table, in the kernel's order: a later entry with the same target covers an earlier one.
///
/// # Errors
/// `InvalidData` with the line that cannot be read. A line is never skipped: a mount that the driver misses could be that of a
/// volume, which would then count as unused.
pub(super) fn parse(table: &[u8]) -> io::Result<Vec<MountEntry>> {
    table
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            entry(line).ok_or_else(|| {
                let line = String::from_utf8_lossy(line);
                io::Error::new(io::ErrorKind::InvalidData, format!("unreadable line in the mount table: {line:?}"))
            })
        })
        .collect()
}

/// `id parent major:minor root target options [optional…] - fstype source super-options`
fn entry(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut next = || fields.next().filter(|field| !field.is_empty());
    let id = number(next()?)?;
    let parent = number(next()?)?;
    let mut device = next()?.split(|byte| *byte == b':');
    let (major, minor) = (number(device.next()?)?, number(device.next()?)?);
    let root = path(next()?)?;
    let target = path(next()?)?;
    let options = list(next()?)?;
    // Optional fields (propagation) vary with the kernel; a lone hyphen ends them.
    while next()? != b"-" {}
    let fstype = text(next()?)?;
    // The source is the text that the caller of mount(2) gave, and may be empty.
    let source = text(fields.next()?)?;
    let super_options = list(fields.next()?)?;
    Some(MountEntry { id, parent, major, minor, root, target, options, fstype, source, super_options })
}

fn number<N: std::str::FromStr>(field: &[u8]) -> Option<N> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn path(field: &[u8]) -> Option<PathBuf> {
    unescape(field).map(|bytes| PathBuf::from(OsString::from_vec(bytes)))
}

fn text(field: &[u8]) -> Option<String> {
    unescape(field).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn list(field: &[u8]) -> Option<Vec<String>> {
    text(field).map(|options| options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect())
}

/// Undoes the kernel's escapes: a backslash and three octal digits, for space, tab, newline, backslash and `#`.
fn unescape(field: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        if *first != b'\\' {
            out.push(*first);
            rest = after;
            continue;
        }
        let digits = after.get(..3)?;
        if !digits.iter().all(|digit| (b'0'..=b'7').contains(digit)) {
            return None;
        }
        let value = digits.iter().fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0'));
        out.push(u8::try_from(value).ok()?);
        rest = &after[3..];
    }
    Some(out)
}

/// Checks that no line is skipped, whatever it contains; for the fuzzer.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(table: &[u8]) {
    if let Ok(entries) = parse(table) {
        assert_eq!(entries.len(), table.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count());
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const TABLE: &str = "\
36 35 98:0 / /mnt rw,noatime shared:1 master:2 - ext4 /dev/dm-3 rw,errors=continue
40 36 0:6 /dm-3 /pods/a\\040b/vol ro,nosuid - devtmpfs udev rw,size=1024k
";

    #[test]
    fn every_field_is_read() {
        let table = parse(TABLE.as_bytes()).unwrap();
        assert_eq!(table.len(), 2);
        let first = &table[0];
        assert_eq!((first.id, first.parent, first.major, first.minor), (36, 35, 98, 0));
        assert_eq!((first.root.as_path(), first.target.as_path()), (Path::new("/"), Path::new("/mnt")));
        assert_eq!(first.options, ["rw", "noatime"]);
        assert_eq!((first.fstype.as_str(), first.source.as_str()), ("ext4", "/dev/dm-3"));
        assert_eq!(first.super_options, ["rw", "errors=continue"]);
        assert_eq!(table[1].root, Path::new("/dm-3"));
        assert_eq!(table[1].target, Path::new("/pods/a b/vol"));
    }

    #[test]
    fn escapes_stand_for_bytes() {
        assert_eq!(unescape(b"a\\040b\\134\\011").unwrap(), b"a b\\\t");
        assert_eq!(unescape(b"\\377").unwrap(), [0xff]);
        for bad in [&b"\\"[..], b"\\04", b"\\089", b"\\777"] {
            assert_eq!(unescape(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn an_empty_source_is_read() {
        let table = parse(b"41 36 0:41 / /x rw - tmpfs  rw,size=1k\n").unwrap();
        assert_eq!((table[0].fstype.as_str(), table[0].source.as_str()), ("tmpfs", ""));
        assert_eq!(table[0].super_options, ["rw", "size=1k"]);
    }

    #[test]
    fn a_path_that_is_not_utf8_stays_as_it_is() {
        let table = parse(b"41 36 0:41 / /\xff rw - tmpfs t rw\n").unwrap();
        assert_eq!(table[0].target.as_os_str().len(), 2);
    }

    #[test]
    fn a_malformed_line_is_an_error_and_never_skipped() {
        for line in [
            "x 35 98:0 / /mnt rw - ext4 /dev/a rw",
            "36 35 98 / /mnt rw - ext4 /dev/a rw",
            "36 35 98:0 / /mnt rw shared:1",
            "36 35 98:0 / /mnt rw - ext4",
            "36 35 98:0 / /mnt rw - ext4 /dev/a",
            "36 35 98:0 / /m\\0 rw - ext4 /dev/a rw",
            "36",
            " ",
        ] {
            let table = format!("{}\n{line}\n", TABLE.lines().next().unwrap());
            let error = parse(table.as_bytes()).unwrap_err();
            assert!(error.to_string().contains("mount table"), "{line}: {error}");
        }
    }

    #[test]
    fn the_table_of_this_machine_is_read() {
        let table = parse(&std::fs::read("/proc/self/mountinfo").unwrap()).unwrap();
        assert!(table.iter().any(|mount| mount.target == Path::new("/proc") && mount.fstype == "proc"));
    }
}
