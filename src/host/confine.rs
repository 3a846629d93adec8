//! Confines children that parse bytes written by tenants, so that crafted bytes that take over such a child gain little.
//!
//! | | [`for_parsing`], the driver's own child | [`run_confined`], a program that repairs |
//! |---|---|---|
//! | device | the descriptor that it has, read-only | opened again, for writing |
//! | user | one that nothing else runs as | root, the owner of the device's node |
//! | capabilities | none | none |
//! | new privileges by exec | never | never |
//! | time, memory, files | limited | not limited: a check needs more of each on a larger filesystem |
//! | system calls | those for reading | none that reaches other processes, networks or the kernel's insides |

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use caps::CapSet;
use nix::libc;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, alarm, geteuid, setgroups, setresgid, setresuid};
use seccompiler::{BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule};

/// A user and a group that nothing else is likely to use. `nobody` is shared by many containers, whose processes it could signal
/// and read.
const OWN: u32 = 0x6c76_6d63;
/// Bytes of address space for a child that parses. The driver's program takes about 50 MiB of it, libblkid a few.
const MEMORY: u64 = 256 << 20;
/// Bytes that the child may write to a file: the size limit of its answer.
const ANSWER: u64 = 1 << 20;

/// The system calls for reading an open descriptor and writing an answer. `openat` is allowed too, for reading only: libblkid
/// checks in sysfs whether a device is a whole disk.
const READING: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_readv,
    libc::SYS_lseek,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    libc::SYS_fadvise64,
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];
/// The ioctls allowed on a block device: `BLKROGET`, `BLKSSZGET`, `BLKPBSZGET`, `BLKGETSIZE64`, `BLKGETZONESZ` (linux/fs.h,
/// linux/blkzoned.h).
const QUESTIONS: [u64; 5] = [0x125e, 0x1268, 0x127b, 0x8008_1272, 0x8004_1284];

/// The system calls that a program working on one device never needs.
///
/// Root can signal all processes of root without a capability, and a user namespace would give capabilities back.
const NEVER: &[libc::c_long] = &[
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_ptrace,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
];

/// The `clone` flags that make namespaces (linux/sched.h).
const NAMESPACES: [u64; 8] = [0x80, 0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];

/// Confines this process, which must have one thread, to parsing what it has open, for at most `seconds`. A root process becomes a
/// user of its own.
///
/// # Errors
/// The kernel refused a measure; the process must not parse anything then. A missing seccomp is no error: the other measures hold.
pub fn for_parsing(seconds: u32) -> io::Result<()> {
    // SIGALRM ends the process by default.
    alarm::set(seconds);
    for (resource, limit) in [
        (Resource::RLIMIT_AS, MEMORY),
        (Resource::RLIMIT_CPU, seconds.into()),
        (Resource::RLIMIT_FSIZE, ANSWER),
        (Resource::RLIMIT_NOFILE, 16),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_NPROC, 0),
    ] {
        setrlimit(resource, limit, limit)?;
    }
    if geteuid().is_root() {
        setgroups(&[])?;
        let (user, group) = (Uid::from_raw(OWN), Gid::from_raw(OWN));
        setresgid(group, group, group)?;
        // The kernel then drops all capabilities.
        setresuid(user, user, user)?;
    }
    prctl::set_dumpable(false)?;
    prctl::set_no_new_privs()?;
    let mut allowed: BTreeMap<i64, Vec<SeccompRule>> = READING.iter().map(|call| (*call, Vec::new())).collect();
    let changes = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC).unsigned_abs().into();
    allowed.insert(libc::SYS_openat, vec![rule(2, SeccompCmpOp::MaskedEq(changes), 0)?]);
    let question = |number| rule(1, SeccompCmpOp::Eq, number);
    allowed.insert(libc::SYS_ioctl, QUESTIONS.into_iter().map(question).collect::<io::Result<_>>()?);
    // A program ends itself with this call.
    allowed.insert(libc::SYS_tgkill, vec![rule(0, SeccompCmpOp::Eq, std::process::id().into())?]);
    filter(allowed, refuse(), SeccompAction::Allow)
}

/// Becomes a program without capabilities, which finds its device as its standard input.
///
/// # Errors
/// The kernel refused a measure or the program, which then does not run.
pub fn run_confined(program: &Path, args: &[OsString]) -> io::Error {
    let confined = || {
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        for capability in caps::all() {
            // The kernel may know fewer capabilities than the crate.
            let _ = caps::drop(None, CapSet::Bounding, capability);
        }
        for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
            caps::clear(None, set).map_err(io::Error::other)?;
        }
        // Root then gains nothing by an exec.
        prctl::set_no_new_privs()?;
        let mut refused: BTreeMap<i64, Vec<SeccompRule>> = NEVER.iter().map(|call| (*call, Vec::new())).collect();
        refused.insert(libc::SYS_tgkill, vec![rule(0, SeccompCmpOp::Ne, std::process::id().into())?]);
        refused.insert(libc::SYS_prlimit64, vec![rule(0, SeccompCmpOp::Ne, 0)?]);
        let namespace = |flag| rule(0, SeccompCmpOp::MaskedEq(flag), flag);
        refused.insert(libc::SYS_clone, NAMESPACES.into_iter().map(namespace).collect::<io::Result<_>>()?);
        filter(refused, SeccompAction::Allow, refuse())?;
        // A filter cannot see the flags of `clone3`. On ENOSYS the C library uses `clone` instead.
        let unknown = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
        filter([(libc::SYS_clone3, Vec::new())].into(), SeccompAction::Allow, unknown)
    };
    match confined() {
        #[expect(clippy::disallowed_methods, reason = "this process, which host::run started, becomes the program")]
        Ok(()) => Command::new(program).args(args).exec(),
        Err(error) => error,
    }
}

/// Refuses a call as if this user lacked the right to it: libraries go on without it.
fn refuse() -> SeccompAction {
    SeccompAction::Errno(libc::EPERM.unsigned_abs())
}

fn rule(argument: u8, operator: SeccompCmpOp, value: u64) -> io::Result<SeccompRule> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value).map_err(io::Error::other)?;
    SeccompRule::new(vec![condition]).map_err(io::Error::other)
}

fn filter(rules: BTreeMap<i64, Vec<SeccompRule>>, otherwise: SeccompAction, matched: SeccompAction) -> io::Result<()> {
    let machine = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let filter = SeccompFilter::new(rules, otherwise, matched, machine).map_err(io::Error::other)?;
    let program: BpfProgram = filter.try_into().map_err(io::Error::other)?;
    // A kernel without seccomp does not have this line.
    if !fs::read_to_string("/proc/self/status")?.lines().any(|line| line.starts_with("Seccomp:")) {
        return Ok(());
    }
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::TcpListener;
    use std::time::Duration;

    use super::super::run::{Invocation, Output, run};
    use super::*;

    /// Runs one of the functions below in a process of its own.
    fn alone(name: &str) -> Output {
        let name = format!("host::confine::tests::{name}");
        let program = std::env::current_exe().unwrap();
        run(&Invocation::new(program, ["--exact", &name, "--ignored", "--nocapture"])).unwrap()
    }

    #[test]
    #[ignore = "ends its process: run by the tests below"]
    fn takes_memory_without_end() {
        for_parsing(60).unwrap();
        let mut taken = Vec::new();
        loop {
            taken.push(vec![1u8; 1 << 20]);
        }
    }

    #[test]
    #[ignore = "ends its process: run by the tests below"]
    fn parses_without_end() {
        for_parsing(1).unwrap();
        loop {
            std::hint::spin_loop();
        }
    }

    #[test]
    #[ignore = "confines its process: run by the tests below"]
    fn reaches_for_more() {
        for_parsing(60).unwrap();
        assert!(File::open("/proc/self/status").is_ok());
        let refused = |what: &str, error: io::Error| assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{what}: {error}");
        refused("a socket", TcpListener::bind("127.0.0.1:0").unwrap_err());
        refused("a file", File::options().append(true).open("/dev/null").unwrap_err());
        refused("another process", nix::sys::signal::kill(nix::unistd::getppid(), None).unwrap_err().into());
    }

    #[test]
    #[ignore = "confines its process: run by the tests below"]
    fn becomes_a_program_that_reaches_for_more() {
        let script = "sleep 0 & wait $! && echo it works
            kill -0 $PPID && echo a signal
            (exec 3<>/dev/tcp/127.0.0.1/1) 2>&1 | grep -v 'not permitted'
            prlimit --pid $PPID --core=0 && echo limits of others
            unshare --user true && echo a namespace
            kill -TERM $$";
        panic!("{}", run_confined(Path::new("/bin/bash"), &["-c".into(), script.into()]));
    }

    #[test]
    fn a_confined_program_reaches_no_other_process() {
        let output = alone("becomes_a_program_that_reaches_for_more");
        let said = String::from_utf8_lossy(&output.stdout);
        let said: Vec<&str> = said.lines().skip_while(|line| !line.contains("it works")).collect();
        assert!(matches!(said[..], [only] if only.ends_with("it works")), "{said:?} {}", output.last_words());
    }

    #[test]
    fn a_child_that_takes_memory_or_time_without_end_is_ended() {
        let output = alone("takes_memory_without_end");
        assert_eq!(output.died_by_signal(), Some(libc::SIGABRT), "{}", output.last_words());
        assert!(output.last_words().contains("memory allocation of 1048576 bytes failed"), "{}", output.last_words());
        let output = alone("parses_without_end");
        assert!(matches!(output.died_by_signal(), Some(libc::SIGALRM | libc::SIGXCPU | libc::SIGKILL)), "{:?}", output.status);
        assert!(output.took < Duration::from_secs(30));
    }

    #[test]
    fn a_confined_child_reaches_nothing_else() {
        let output = alone("reaches_for_more");
        assert!(output.ok() && String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{}", output.last_words());
    }
}
