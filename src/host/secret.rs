//! Hands a secret to a program without an argument, an environment variable or a file on a disk.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::types::Secret;

/// An anonymous file in memory with a secret. Programs inherit no descriptor of it: one opens it by [`SecretFile::path`], which works
/// only for root and only until this value is dropped. It is sealed, so nobody can change what the program reads.
pub struct SecretFile(File);

impl SecretFile {
    /// # Errors
    /// The kernel has no memory for it.
    pub fn new(secret: &Secret) -> io::Result<Self> {
        let mut file = File::from(memfd_create(c"secret", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
        file.write_all(secret.reveal())?;
        let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(Self(file))
    }

    /// A path for the arguments of a program. Each open reads from the beginning.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Invocation, run};

    #[test]
    fn a_program_reads_the_secret_by_its_path_and_nobody_changes_it() {
        let file = SecretFile::new(&Secret::from("open sesame".to_owned())).unwrap();
        let cat = Invocation::new("/bin/cat", [file.path()]);
        assert!(!format!("{cat} {cat:?}").contains("sesame"));
        for _ in 0..2 {
            assert_eq!(run(&cat).unwrap().stdout, b"open sesame");
        }
        let write = Invocation::new("/bin/sh", ["-c".into(), format!("echo other >> {}", file.path().display())]);
        assert!(!run(&write).unwrap().ok());
        let inherited = run(&Invocation::new("/bin/ls", ["-l", "/proc/self/fd"])).unwrap();
        assert!(!String::from_utf8_lossy(&inherited.stdout).contains("memfd:secret"));
        drop(file);
        // Another test may have opened a file with this number.
        assert_ne!(run(&cat).unwrap().stdout, b"open sesame");
    }
}
