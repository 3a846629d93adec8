//! The host programs that the driver runs besides LVM: the arguments of each and the meaning of its exit status.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use nix::sys::stat::makedev;

use super::run::{INPUT, Invocation, Output, RunError, run_guarded};
use super::{DmDevice, Guard, effect, linux};

/// One run of a host program, described by its purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tool {
    /// Makes an ext4 filesystem with this UUID over whatever the device holds. The program refuses a mounted device.
    MakeExt4 {
        device: PathBuf,
        /// UUID of the filesystem, in text form.
        uuid: String,
    },
    /// Makes an XFS filesystem with this UUID over whatever the device holds. The device must be 300 MiB or larger. The program
    /// refuses a mounted device.
    MakeXfs {
        device: PathBuf,
        /// UUID of the filesystem, in text form.
        uuid: String,
    },
    /// Repairs an unmounted ext4 filesystem as far as no decision is needed (`e2fsck -p`).
    CheckExt4 { device: PathBuf },
    /// Grows a mounted ext4 filesystem, in a child of the driver (`lvm-csi grow-ext4`). resize2fs opens the mounted device for
    /// writing, which not every kernel allows. A driver that waited in the kernel itself could not end while its disk hangs.
    GrowExt4 {
        mount_point: PathBuf,
        /// Target size, in blocks of the filesystem.
        blocks: u64,
    },
    /// Grows a mounted XFS filesystem to the size of its device.
    GrowXfs { mount_point: PathBuf },
    /// Lists the signatures on a device, in a child of the driver (`lvm-csi probe`).
    Probe { device: PathBuf },
}

impl Tool {
    /// The name for logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Tool::MakeExt4 { .. } => "mkfs.ext4",
            Tool::MakeXfs { .. } => "mkfs.xfs",
            Tool::CheckExt4 { .. } => "e2fsck",
            Tool::GrowExt4 { .. } => "grow-ext4",
            Tool::GrowXfs { .. } => "xfs_growfs",
            Tool::Probe { .. } => "probe",
        }
    }

    /// The object of the run: a device or a mount point.
    fn subject(&self) -> &Path {
        match self {
            Tool::MakeExt4 { device, .. }
            | Tool::MakeXfs { device, .. }
            | Tool::CheckExt4 { device }
            | Tool::Probe { device } => device,
            Tool::GrowExt4 { mount_point, .. } | Tool::GrowXfs { mount_point } => mount_point,
        }
    }

    /// The arguments. The object of the run comes last, as the program's standard input: a name may lead to another device by the
    /// time the program opens it.
    fn args(&self) -> Vec<OsString> {
        let options: Vec<&str> = match self {
            // -F: without it mke2fs asks when it finds anything on the device, and nobody can answer.
            // -m 0: blocks reserved for root are for system disks; a volume belongs to its user in full.
            // -b: mke2fs chooses 1 KiB for small devices. The journal is then too short for a device that grows, and a device with
            // larger blocks cannot be read.
            // nodiscard: a new thin LV has nothing to discard, and discards on a thick LV go to a disk that others use.
            // lazy_itable_init=1: inode tables are zeroed after the first mount (zeroing at once would write 1.6 % of the volume).
            // lazy_journal_init=0: after a crash, old bytes in the journal could pass for transactions.
            // -O: the features of e2fsprogs 1.43, whatever mke2fs.conf says: after a crash Linux 5.10 cannot mount a filesystem
            // with orphan_file.
            Tool::MakeExt4 { uuid, .. } => {
                const LAZY: &str = "nodiscard,lazy_itable_init=1,lazy_journal_init=0";
                vec!["-q", "-F", "-b", "4096", "-O", EXT4_FEATURES, "-U", uuid, "-m", "0", "-E", LAZY]
            }
            // -f: overwrite what is on the device, as above. -K: no discards, as above.
            Tool::MakeXfs { uuid, .. } => return self.with_options(["-q", "-f", "-K", "-m", &format!("uuid={uuid}")]),
            // -p: repair what needs no decision; leave anything else to a person.
            Tool::CheckExt4 { .. } => vec!["-p"],
            Tool::GrowExt4 { blocks, .. } => return self.with_options(["grow-ext4", &blocks.to_string()]),
            // -d: the data section, to the end of the device.
            Tool::GrowXfs { .. } => vec!["-d"],
            Tool::Probe { .. } => vec!["probe"],
        };
        self.with_options(options)
    }

    fn with_options<'a>(&'a self, options: impl IntoIterator<Item = &'a str>) -> Vec<OsString> {
        options.into_iter().map(OsString::from).chain([OsString::from(INPUT)]).collect()
    }

    /// Whether the program did its work.
    fn succeeded(&self, output: &Output) -> bool {
        let code = output.status.code();
        match self {
            // 1: errors were found and repaired. From 2 on: reboot, unrepaired, could not run.
            Tool::CheckExt4 { .. } => matches!(code, Some(0 | 1)),
            // 1: the answer says why there is no result.
            Tool::Probe { .. } => matches!(code, Some(0 | 1)),
            _ => output.ok(),
        }
    }
}

impl fmt::Display for Tool {
    /// `mkfs.ext4 /dev/dm-3`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name(), self.subject().display())
    }
}

/// The object that a tool works on.
#[derive(Clone, Copy)]
pub struct Use<'a> {
    /// The device, or the device of the filesystem at the mount point. The tool keeps it open, so it stays the same device while
    /// the tool runs.
    pub device: &'a DmDevice,
    /// The volume's guard, held while the tool runs.
    pub guard: &'a Guard,
}

/// The tools bound to one volume.
#[derive(Clone, Copy)]
pub struct VolumeTools<'a> {
    pub tools: &'a dyn Tools,
    pub on: Use<'a>,
}

impl VolumeTools<'_> {
    /// Like [`Tools::run`].
    ///
    /// # Errors
    /// See [`Tools::run`].
    pub fn run(&self, tool: &Tool) -> Result<Output, ToolError> {
        self.tools.run(tool, self.on)
    }
}

/// Runs host programs.
pub trait Tools: Send + Sync {
    /// Runs a tool to its end; blocks until then.
    ///
    /// # Errors
    /// The program is missing, its object is not on the device, it could not be run, or it reports a failure.
    fn run(&self, tool: &Tool, on: Use<'_>) -> Result<Output, ToolError>;
}

/// Why a host program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// The program is not installed; nothing happened.
    #[error("{program} is not installed in {SEARCHED:?} (Debian package {package})")]
    Absent {
        program: &'static str,
        /// The Debian package that brings it.
        package: &'static str,
    },
    /// The object of the tool cannot be opened, or is another one by now; nothing happened.
    #[error("opening {subject} for {program}")]
    Open {
        program: &'static str,
        /// A device or a mount point.
        subject: PathBuf,
        source: io::Error,
    },
    /// The program could not be run.
    #[error("running {command}")]
    Run { command: String, source: RunError },
    /// The program ended without doing its work.
    #[error("{command} failed ({status}): {said}")]
    Failed {
        command: String,
        status: ExitStatus,
        /// The end of its output.
        said: String,
    },
}

/// The only features of the ext4 filesystems that the driver makes.
const EXT4_FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,\
                             huge_file,dir_nlink,extra_isize,metadata_csum";
/// The mkfs.xfs defaults at the time of Linux 5.10, a file of xfsprogs itself. Versions before 5.16 lack this file, and use no
/// feature that Linux 5.10 lacks.
const XFS_FEATURES: &str = "/usr/share/xfsprogs/mkfs/lts_5.10.conf";

/// Directories searched for programs; never `PATH`, which belongs to whoever started the driver.
const SEARCHED: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// The program that runs now, even if its file was replaced.
const OURSELVES: &str = "/proc/self/exe";

/// Programs that an ext4 volume needs, with the Debian package of each.
const EXT4: [(&str, &str); 2] = [("mkfs.ext4", "e2fsprogs"), ("e2fsck", "e2fsprogs")];
/// Programs that an XFS volume needs, with the Debian package of each.
const XFS: [(&str, &str); 2] = [("mkfs.xfs", "xfsprogs"), ("xfs_growfs", "xfsprogs")];

/// The programs of this machine, looked up once.
#[derive(Clone, Debug)]
pub struct HostTools {
    found: Vec<(&'static str, PathBuf)>,
    ourselves: PathBuf,
    /// The file [`XFS_FEATURES`], if it exists.
    xfs_features: Option<PathBuf>,
}

impl HostTools {
    /// Looks for every program. A missing program makes only its filesystem unavailable.
    pub fn find() -> Self {
        Self::find_in(&SEARCHED.map(Path::new))
    }

    fn find_in(directories: &[&Path]) -> Self {
        let programs = EXT4.iter().chain(&XFS);
        let found = programs.filter_map(|(program, _)| {
            let path = directories.iter().map(|directory| directory.join(program)).find(|path| path.is_file())?;
            Some((*program, path))
        });
        let xfs_features = Some(PathBuf::from(XFS_FEATURES)).filter(|path| path.is_file());
        Self { found: found.collect(), ourselves: PathBuf::from(OURSELVES), xfs_features }
    }

    /// The same tools, with another program for those that `lvm-csi` runs as itself; for processes that are not `lvm-csi`.
    #[must_use]
    pub fn with_ourselves(mut self, program: impl Into<PathBuf>) -> Self {
        self.ourselves = program.into();
        self
    }

    /// Whether ext4 volumes can be served.
    pub fn offers_ext4(&self) -> bool {
        EXT4.iter().all(|(program, _)| self.path(program).is_some())
    }

    /// Whether XFS volumes can be served.
    pub fn offers_xfs(&self) -> bool {
        XFS.iter().all(|(program, _)| self.path(program).is_some())
    }

    /// The missing programs, each with its Debian package; for the log at start.
    pub fn missing(&self) -> Vec<ToolError> {
        let absent = EXT4.iter().chain(&XFS).filter(|(program, _)| self.path(program).is_none());
        absent.map(|(program, package)| ToolError::Absent { program, package }).collect()
    }

    fn path(&self, program: &str) -> Option<&Path> {
        self.found.iter().find(|(name, _)| *name == program).map(|(_, path)| path.as_path())
    }

    fn program(&self, tool: &Tool) -> Result<&Path, ToolError> {
        if let Tool::Probe { .. } | Tool::GrowExt4 { .. } = tool {
            return Ok(&self.ourselves);
        }
        let program = tool.name();
        let package = EXT4.iter().chain(&XFS).find(|(name, _)| *name == program).map_or("", |(_, package)| *package);
        self.path(program).ok_or(ToolError::Absent { program, package })
    }

    fn execute(&self, tool: &Tool, on: Use<'_>) -> Result<Output, ToolError> {
        self.program(tool)?;
        let subject = tool.subject();
        let object = open(tool, on.device).map_err(|source| ToolError::Open {
            program: tool.name(),
            subject: subject.to_owned(),
            source,
        })?;
        self.execute_on(tool, object, on.guard)
    }

    fn execute_on(&self, tool: &Tool, object: File, guard: &Guard) -> Result<Output, ToolError> {
        let mut args = tool.args();
        if let (Tool::MakeXfs { .. }, Some(features)) = (tool, &self.xfs_features) {
            args.splice(..0, ["-c".into(), format!("options={}", features.display()).into()]);
        }
        let mut program = self.program(tool)?;
        if let Tool::CheckExt4 { .. } = tool {
            // e2fsck parses what a tenant wrote and may write to the device.
            args.splice(..0, ["confined".into(), program.into()]);
            program = &self.ourselves;
        }
        let invocation = Invocation::new(program, args);
        let subject = tool.subject();
        // People know the object by its name, not by the path of a descriptor.
        let named = |text: String| text.replace(INPUT, &subject.to_string_lossy());
        let command = || named(invocation.to_string());
        let output = run_guarded(&invocation, object, guard).map_err(|source| ToolError::Run { command: command(), source })?;
        if tool.succeeded(&output) {
            return Ok(output);
        }
        Err(ToolError::Failed { command: command(), status: output.status, said: named(output.last_words()) })
    }
}

impl Tools for HostTools {
    fn run(&self, tool: &Tool, on: Use<'_>) -> Result<Output, ToolError> {
        match tool {
            Tool::Probe { .. } => self.execute(tool, on),
            _ => effect(tool.name(), &tool.subject().display(), || self.execute(tool, on)),
        }
    }
}

/// Opens the object of a tool and checks that it is on this device. While it is open, neither the device nor the filesystem can go
/// away, so the check stays true as long as the tool has it. The file is opened for reading only, because udevd scans a device
/// again when a writer closes it; the tool opens it again.
fn open(tool: &Tool, device: &DmDevice) -> io::Result<File> {
    let file = File::open(tool.subject())?;
    let is = file.metadata()?;
    let number = match tool {
        Tool::GrowExt4 { .. } | Tool::GrowXfs { .. } => is.dev(),
        _ if is.file_type().is_block_device() => is.rdev(),
        _ => return Err(io::Error::other("it is not a block device")),
    };
    let now = linux::dm_find(&device.uuid)?.map(|now| makedev(now.major.into(), now.minor.into()));
    if now != Some(number) {
        return Err(io::Error::other(format!("it is no longer on dm device {} with UUID {}", device.name, device.uuid)));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::time::Duration;

    use super::*;
    use crate::host::fake::AnyVolume;

    const UUID: &str = "0b6c6a0e-1111-4222-8333-444455556666";

    fn output(raw_status: i32, stdout: &str) -> Output {
        Output {
            status: ExitStatus::from_raw(raw_status),
            stdout: stdout.into(),
            stderr: Vec::new(),
            cut: false,
            took: Duration::ZERO,
        }
    }

    fn tools_in(programs: &[&str]) -> (tempfile::TempDir, HostTools) {
        let directory = tempfile::tempdir().unwrap();
        for program in programs {
            std::fs::write(directory.path().join(program), "").unwrap();
        }
        let tools = HostTools::find_in(&[Path::new("/nonexistent"), directory.path()]);
        (directory, tools)
    }

    #[test]
    fn the_object_comes_last_and_is_no_name() {
        let device = PathBuf::from("/dev/dm-3");
        let (uuid, mount_point) = (UUID.to_owned(), PathBuf::from("/mnt"));
        for (tool, line) in [
            (Tool::CheckExt4 { device: device.clone() }, "-p /proc/self/fd/0"),
            (Tool::GrowExt4 { mount_point: "/mnt".into(), blocks: 32768 }, "grow-ext4 32768 /proc/self/fd/0"),
            (Tool::GrowXfs { mount_point }, "-d /proc/self/fd/0"),
            (Tool::Probe { device: device.clone() }, "probe /proc/self/fd/0"),
            (Tool::MakeXfs { device, uuid }, "-q -f -K -m uuid=0b6c6a0e-1111-4222-8333-444455556666 /proc/self/fd/0"),
        ] {
            assert_eq!(tool.args().join(" ".as_ref()), line);
        }
    }

    #[test]
    fn statuses_mean_what_the_program_says() {
        let device = PathBuf::from("/dev/dm-3");
        let check = Tool::CheckExt4 { device: device.clone() };
        let exits = |code: i32| output(code << 8, "");
        assert!(check.succeeded(&exits(0)) && check.succeeded(&exits(1)));
        assert!(!check.succeeded(&exits(2)) && !check.succeeded(&exits(4)) && !check.succeeded(&output(9, "")));
        let make = Tool::MakeExt4 { device, uuid: UUID.into() };
        assert!(make.succeeded(&exits(0)) && !make.succeeded(&exits(1)));
    }

    #[test]
    fn a_missing_program_costs_its_filesystem_only() {
        let (_directory, tools) = tools_in(&["mkfs.ext4", "e2fsck", "mkfs.xfs"]);
        assert!(tools.offers_ext4() && !tools.offers_xfs());
        let missing: Vec<_> = tools.missing().iter().map(ToString::to_string).collect();
        assert_eq!(missing.len(), 1);
        assert!(missing[0].contains("xfs_growfs is not installed") && missing[0].contains("xfsprogs"), "{missing:?}");
        let (_directory, all) = tools_in(&["mkfs.ext4", "e2fsck", "mkfs.xfs", "xfs_growfs"]);
        assert!(all.offers_xfs() && all.missing().is_empty());
        let error = tools.run(&Tool::GrowXfs { mount_point: "/mnt".into() }, AnyVolume::new().on()).unwrap_err();
        assert!(matches!(error, ToolError::Absent { program: "xfs_growfs", package: "xfsprogs" }));
    }

    #[test]
    fn a_failure_tells_the_command_the_status_and_the_words() {
        let tools = HostTools::find().with_ourselves("/bin/ls");
        let volume = AnyVolume::new();
        let null = File::open("/dev/null").unwrap();
        let error =
            tools.execute_on(&Tool::Probe { device: "/dev/dm-3".into() }, null, volume.on().guard).unwrap_err().to_string();
        assert!(error.starts_with("/bin/ls probe /dev/dm-3 failed (exit status: 2): "), "{error}");
        assert!(error.contains("No such file"), "{error}");
    }

    #[test]
    fn what_is_not_the_device_is_not_touched() {
        let tools = HostTools::find().with_ourselves("/bin/false");
        let volume = AnyVolume::new();
        for (path, why) in [("/nonexistent", "No such file"), ("/dev/null", "not a block device")] {
            let error = tools.run(&Tool::Probe { device: path.into() }, volume.on()).unwrap_err();
            let text = crate::types::chain(&error);
            assert!(text.starts_with("opening /") && text.contains(" for probe: ") && text.contains(why), "{text}");
        }
    }
}
