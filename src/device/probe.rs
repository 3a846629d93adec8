//! Probes what is on a device: every signature that libblkid knows, from a child process of ours, `lvm-csi probe DEVICE`.
//!
//! It is a child because it parses bytes that tenants wrote. It is confined (`host::confine`): it has the device open for reading
//! and may do nothing else. Before that the driver itself reads all areas of signatures, past the page cache: a device that
//! cannot be read there must never count as blank. If they hold nothing but zeroes, as in a new thin volume, there is nothing to
//! parse and no child starts: with many pods at once the child took longer than the reading.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use libblkid_rs::{BlkidErr, BlkidProbe, BlkidProbeRet, BlkidSublks, BlkidSublksFlags};
use nix::libc;
use serde::{Deserialize, Serialize};

use crate::host::{Kernel, Tool, ToolError, VolumeTools};
use crate::types::{Bytes, Signature, SignatureUsage};

use super::error::DeviceError;

/// The content of a device, from all of its superblock areas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// The size of the device in bytes.
    pub size: u64,
    /// Whether the superblock areas hold nothing but zeroes.
    pub blank_bytes: bool,
    /// Every signature, including contradictory ones. An empty list with bytes that are not blank may still be the remains of
    /// something: a btrfs without its first superblock shows no signature.
    pub signatures: Vec<Signature>,
}

/// The child's answer, one line of JSON.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Answer {
    Failed { error: String },
    Probed { signatures: Vec<Signature> },
}

/// A part of a device that may have signatures, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// A multiple of 4096.
    pub offset: u64,
    /// A multiple of 4096, unless the size of the device is not.
    pub length: u64,
}

/// Nearly every signature is in the first 2 MiB; the last copy of a LUKS2 header begins at 4 MiB.
const HEAD: u64 = 5 << 20;
/// MD 0.90 and 1.0, firmware RAID, the second GPT and two of four ZFS labels are here.
const TAIL: u64 = 2 << 20;
/// The other superblocks of btrfs, 4 KiB each.
const BTRFS_COPIES: [u64; 2] = [64 << 20, 256 << 30];
/// The granularity of areas.
const BLOCK: u64 = 4096;
/// Bytes per read. Far less than an area, so that the same memory serves all of it: fresh pages for each byte took longer than
/// the reading, and the driver kept the memory that its many threads once used.
const PIECE: u64 = 64 << 10;

/// All areas of a device of this size that may have signatures, in order and not overlapping.
pub fn superblock_areas(size: Bytes) -> Vec<Area> {
    let size = size.0;
    let tail = size.saturating_sub(TAIL) / BLOCK * BLOCK;
    let mut wanted = vec![(0, HEAD), (tail, size)];
    wanted.extend(BTRFS_COPIES.map(|copy| (copy, copy + BLOCK)));
    wanted.sort_unstable();
    let mut areas: Vec<Area> = Vec::new();
    let mut covered = 0;
    for (begin, end) in wanted {
        let (begin, end) = (begin.max(covered), end.min(size));
        if begin < end {
            areas.push(Area { offset: begin, length: end - begin });
            covered = end;
        }
    }
    areas
}

/// Splits an area into single reads.
fn pieces(area: Area) -> impl Iterator<Item = Area> {
    let end = area.offset + area.length;
    let starts = (area.offset..end).step_by(usize::try_from(PIECE).unwrap_or(usize::MAX));
    starts.map(move |offset| Area { offset, length: PIECE.min(end - offset) })
}

/// Runs in the child: opens a device, calls `confine`, and returns the answer, one line of JSON, with its exit status.
pub fn probe_child(device: &Path, confine: impl FnOnce() -> io::Result<()>) -> (String, u8) {
    let look = || {
        let file = File::open(device).map_err(|error| format!("opening it: {error}"))?;
        confine().map_err(|error| format!("confining the child that looks at it: {error}"))?;
        signatures(&file).map_err(|error| format!("its signatures: {error}"))
    };
    let (answer, status) = match look() {
        Ok(signatures) => (Answer::Probed { signatures }, 0),
        Err(error) => (Answer::Failed { error }, 1),
    };
    // The parent would reject an empty line; it cannot occur, since a report has no map with keys that are not strings.
    (serde_json::to_string(&answer).unwrap_or_default(), status)
}

/// The size of a device, and whether its superblock areas, all of which it reads, hold nothing but zeroes.
fn read(kernel: &dyn Kernel, device: &Path) -> Result<(Bytes, bool), String> {
    let (size, mut blank) = (size_of(kernel, device)?, true);
    for piece in superblock_areas(size).into_iter().flat_map(pieces) {
        blank &= is_zero(kernel, device, piece)?;
    }
    Ok((size, blank))
}

fn size_of(kernel: &dyn Kernel, device: &Path) -> Result<Bytes, String> {
    kernel.device_size(device).map_err(|error| format!("its size: {error}"))
}

fn is_zero(kernel: &dyn Kernel, device: &Path, Area { offset, length }: Area) -> Result<bool, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{length} bytes at {offset}: {error}");
    let length = usize::try_from(length).map_err(|error| failed(&error))?;
    let bytes = kernel.read_at(device, offset, length).map_err(|error| failed(&error))?;
    Ok(bytes.iter().all(|byte| *byte == 0))
}

/// Steps through all of libblkid's probers. It avoids the "safe" probing, which reduces an ambivalent device to one word, and
/// sets flags that report superblocks with a wrong checksum instead of skipping them.
fn signatures(file: &File) -> Result<Vec<Signature>, BlkidErr> {
    use BlkidSublks::{Badcsum, Label, Magic, Type, Usage, Uuid};
    let mut probe = BlkidProbe::new()?;
    probe.set_device(file.as_raw_fd(), 0, 0)?;
    probe.enable_superblocks(true)?;
    probe.set_superblock_flags(BlkidSublksFlags::new(vec![Badcsum, Label, Magic, Type, Usage, Uuid]))?;
    probe.enable_partitions(true)?;
    let mut signatures = Vec::new();
    while let BlkidProbeRet::Success = probe.do_probe()? {
        // The binding reports a missing value as an error; one that is not text is skipped.
        let value = |name: &str| probe.lookup_value(name).ok();
        if let Some(kind) = value("TYPE") {
            let usage = SignatureUsage::of(&value("USAGE").unwrap_or_default());
            signatures.push(Signature {
                kind,
                usage,
                uuid: value("UUID"),
                label: value("LABEL"),
                damaged: value("SBBADCSUM").is_some(),
                offset: value("SBMAGIC_OFFSET").and_then(|offset| offset.parse().ok()),
            });
        } else {
            let kind = value("PTTYPE").unwrap_or_else(|| "unknown".to_owned());
            let usage = SignatureUsage::PartitionTable;
            signatures.push(Signature { kind, usage, uuid: value("PTUUID"), label: None, damaged: false, offset: None });
        }
    }
    Ok(signatures)
}

/// Probes a device, in a child unless it is blank.
///
/// # Errors
/// [`DeviceError::Unreadable`] if any superblock area cannot be read: the content is unknown and nothing may be written.
/// [`DeviceError::Probe`], [`DeviceError::ProbeEnded`] and [`DeviceError::ProbeAnswer`] if the child failed.
pub fn probe(kernel: &dyn Kernel, tools: VolumeTools<'_>, device: &Path) -> Result<ProbeReport, DeviceError> {
    let name = || device.display().to_string();
    let unreadable = |reason| DeviceError::Unreadable { device: name(), reason };
    let (Bytes(size), blank_bytes) = read(kernel, device).map_err(unreadable)?;
    if blank_bytes {
        return Ok(ProbeReport { size, blank_bytes, signatures: Vec::new() });
    }
    let output = tools.run(&Tool::Probe { device: device.to_owned() }).map_err(|source| match source {
        ToolError::Failed { status, said, .. } if status.signal().is_some() => {
            DeviceError::ProbeEnded { device: name(), reason: ended(status, &said) }
        }
        source => DeviceError::Probe { device: name(), source },
    })?;
    match serde_json::from_slice(&output.stdout) {
        Ok(Answer::Probed { signatures }) => Ok(ProbeReport { size, blank_bytes, signatures }),
        Ok(Answer::Failed { error }) => Err(unreadable(error)),
        Err(source) => {
            let answer = String::from_utf8_lossy(&output.stdout).chars().take(200).collect();
            Err(DeviceError::ProbeAnswer { device: name(), answer, source })
        }
    }
}

/// How a child without an answer ended. The limits are those of `host::confine`.
fn ended(status: ExitStatus, said: &str) -> String {
    let how = match status.signal() {
        Some(libc::SIGALRM | libc::SIGXCPU) => "it exceeded its time limit",
        Some(libc::SIGABRT) if said.contains("memory allocation") => "it exceeded its memory limit",
        _ => "it died",
    };
    format!("{how} ({status}{}{said})", if said.is_empty() { "" } else { ": " })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    use std::os::unix::process::ExitStatusExt;
    use std::time::Duration;

    use super::*;
    use crate::host::fake::AnyVolume;
    use crate::host::{Linux, Output, ToolError, Tools, Use};

    const MIB: u64 = 1 << 20;

    fn areas(size: u64) -> Vec<(u64, u64)> {
        superblock_areas(Bytes(size)).into_iter().map(|area| (area.offset, area.length)).collect()
    }

    #[test]
    fn areas_cover_both_ends_and_the_copies_within() {
        assert_eq!(areas(0), []);
        assert_eq!(areas(512), [(0, 512)]);
        assert_eq!(areas(5 * MIB), [(0, 5 * MIB)]);
        assert_eq!(areas(6 * MIB), [(0, 5 * MIB), (5 * MIB, MIB)]);
        assert_eq!(areas(32 * MIB), [(0, 5 * MIB), (30 * MIB, 2 * MIB)]);
        assert_eq!(areas(200 * MIB), [(0, 5 * MIB), (64 * MIB, 4096), (198 * MIB, 2 * MIB)]);
        // A copy inside the tail is read once.
        assert_eq!(areas(65 * MIB), [(0, 5 * MIB), (63 * MIB, 2 * MIB)]);
        assert_eq!(areas(64 * MIB + 512), [(0, 5 * MIB), (62 * MIB, 2 * MIB + 512)]);
        assert_eq!(areas(1 << 40).iter().map(|(offset, _)| *offset / MIB).collect::<Vec<_>>(), [0, 64, 262_144, 1_048_574]);
    }

    #[test]
    fn pieces_make_up_their_area() {
        for (offset, length) in [(0, 5 * MIB), (62 * MIB, 2 * MIB + 512), (0, 512), (7 * BLOCK, PIECE + 1)] {
            let cut: Vec<Area> = pieces(Area { offset, length }).collect();
            let ends = cut.iter().map(|piece| piece.offset + piece.length);
            assert!(cut.iter().skip(1).map(|piece| piece.offset).eq(ends.clone().take(cut.len() - 1)), "{cut:?}");
            assert_eq!((cut[0].offset, ends.max()), (offset, Some(offset + length)));
            assert!(cut.iter().all(|piece| piece.length <= PIECE && piece.offset % BLOCK == 0));
        }
    }

    /// Answers every probe by probing a file in process.
    struct InProcess;

    impl Tools for InProcess {
        fn run(&self, tool: &Tool, _: Use<'_>) -> Result<Output, ToolError> {
            let Tool::Probe { device } = tool else { panic!("{tool} is no probe") };
            let (line, code) = probe_child(device, || Ok(()));
            let status = std::process::ExitStatus::from_raw(i32::from(code) << 8);
            Ok(Output { status, stdout: line.into_bytes(), stderr: vec![], cut: false, took: Duration::ZERO })
        }
    }

    /// A child that always gives the same answer.
    struct Says(&'static str);

    impl Tools for Says {
        fn run(&self, _: &Tool, _: Use<'_>) -> Result<Output, ToolError> {
            let status = std::process::ExitStatus::from_raw(0);
            Ok(Output { status, stdout: self.0.into(), stderr: vec![], cut: false, took: Duration::ZERO })
        }
    }

    fn disk(bytes: &[(u64, &[u8])]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[0]).unwrap();
        file.as_file().set_len(80 * MIB).unwrap();
        for (offset, bytes) in bytes {
            file.as_file().write_all_at(bytes, *offset).unwrap();
        }
        file
    }

    fn kinds(report: &ProbeReport) -> Vec<&str> {
        report.signatures.iter().map(|signature| signature.kind.as_str()).collect()
    }

    #[test]
    fn a_blank_disk_has_no_signature() {
        let (file, blank) = (disk(&[]), ProbeReport { size: 80 * MIB, blank_bytes: true, signatures: vec![] });
        // No child is started.
        assert_eq!(probe(&Linux, AnyVolume::new().tools(&Says("garbage")), file.path()).unwrap(), blank);
    }

    #[test]
    fn bytes_without_a_signature_are_not_blank() {
        for offset in [5 * MIB - 1, 64 * MIB, 80 * MIB - 1] {
            let report = probe(&Linux, AnyVolume::new().tools(&InProcess), disk(&[(offset, &[1])]).path()).unwrap();
            assert!(!report.blank_bytes && report.signatures.is_empty(), "{offset}");
        }
    }

    #[test]
    fn contradicting_signatures_are_all_reported() {
        // A LUKS1 header, a swap area, and a DOS partition table with one partition.
        let mut sector = [0u8; 512];
        sector[..8].copy_from_slice(b"LUKS\xba\xbe\x00\x01");
        sector[446 + 4] = 0x83;
        sector[446 + 9] = 8;
        sector[446 + 13] = 8;
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        let swap = [1u32, 99, 0].map(u32::to_ne_bytes).concat();
        let file = disk(&[(0, &sector), (1024, &swap), (4086, b"SWAPSPACE2")]);
        let report = probe(&Linux, AnyVolume::new().tools(&InProcess), file.path()).unwrap();
        let mut sorted = kinds(&report);
        sorted.sort_unstable();
        assert_eq!(sorted, ["crypto_LUKS", "dos", "swap"]);
        assert!(!report.blank_bytes);
    }

    /// One entry of a ZFS label: its name, type and value in XDR.
    fn zfs_pair(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap().to_be_bytes();
        let mut body = [&length(name.as_bytes())[..], name.as_bytes()].concat();
        body.resize(body.len().next_multiple_of(4), 0);
        body.extend([kind.to_be_bytes(), 1u32.to_be_bytes()].concat());
        body.extend(value);
        let size = (u32::try_from(body.len()).unwrap() + 8).to_be_bytes();
        [&size[..], &size, &body].concat()
    }

    #[test]
    fn a_member_of_a_zfs_pool_is_recognised() {
        let number = |value: u64| value.to_be_bytes();
        let label = [
            &[1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1][..],
            &zfs_pair("version", 8, &number(5000)),
            &zfs_pair("name", 9, b"\0\0\0\x04tank"),
            &zfs_pair("state", 8, &number(0)),
            &zfs_pair("txg", 8, &number(4)),
            &zfs_pair("pool_guid", 8, &number(1_234_567)),
            &zfs_pair("guid", 8, &number(77)),
            &[0; 8],
        ]
        .concat();
        let uberblock = 0x00ba_b10cu64.to_ne_bytes();
        let file = disk(&[(16 << 10, &label)]);
        for at in 128..136 {
            file.as_file().write_all_at(&uberblock, at << 10).unwrap();
        }
        let report = probe(&Linux, AnyVolume::new().tools(&InProcess), file.path()).unwrap();
        assert_eq!(kinds(&report), ["zfs_member"]);
        assert_eq!(report.signatures[0].label.as_deref(), Some("tank"));
        assert!(report.signatures[0].offset.is_some_and(|offset| offset < 256 << 10), "{report:?}");
    }

    /// A child that ends with this status.
    struct Ends(i32, &'static str);

    impl Tools for Ends {
        fn run(&self, tool: &Tool, _: Use<'_>) -> Result<Output, ToolError> {
            Err(ToolError::Failed { command: tool.to_string(), status: ExitStatus::from_raw(self.0), said: self.1.to_owned() })
        }
    }

    #[test]
    fn a_child_that_exceeds_a_limit_is_reported_with_it() {
        let file = disk(&[(0, &[1])]);
        for (raw, said, why) in [
            (14, "", "it exceeded its time limit (signal: 14 (SIGALRM))"),
            (24, "", "it exceeded its time limit (signal: 24 (SIGXCPU))"),
            (
                6,
                "memory allocation of 9 bytes failed",
                "it exceeded its memory limit (signal: 6 (SIGABRT): memory allocation of 9 bytes failed)",
            ),
            (11, "", "it died (signal: 11 (SIGSEGV))"),
        ] {
            let error = probe(&Linux, AnyVolume::new().tools(&Ends(raw, said)), file.path()).unwrap_err();
            assert!(matches!(error, DeviceError::ProbeEnded { .. }), "{error}");
            assert!(error.to_string().contains(why), "{error}");
        }
        let error = probe(&Linux, AnyVolume::new().tools(&Ends(2 << 8, "no")), file.path()).unwrap_err();
        assert!(matches!(error, DeviceError::Probe { .. }), "{error}");
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let error = probe(&Linux, AnyVolume::new().tools(&InProcess), Path::new("/nonexistent")).unwrap_err();
        assert!(matches!(error, DeviceError::Unreadable { .. }));
        assert_eq!(error.to_string(), "cannot tell what is on /nonexistent: its size: No such file or directory (os error 2)");
    }

    #[test]
    fn an_answer_that_does_not_parse_is_an_error() {
        let file = disk(&[(0, &[1])]);
        for answer in ["", "{}", "null", "{\"size\":1,\"blank_bytes\":true}", "garbage"] {
            let error = probe(&Linux, AnyVolume::new().tools(&Says(answer)), file.path()).unwrap_err();
            assert!(matches!(error, DeviceError::ProbeAnswer { .. }), "{answer}: {error}");
        }
    }
}
