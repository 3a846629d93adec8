//! The host's udevd: whether it answers, what it learns of the driver's devices, and which of its rules leave tenants' bytes alone.
//!
//! LVM and the driver wait until udevd has handled a device's event. They wait on a semaphore (the *cookie*) that udevd's last rule
//! for device-mapper lowers. A udevd without these rules or without `dmsetup` never lowers it, nor does one in another IPC
//! namespace. So the driver asks once, with a time limit, by a device of its own. If udevd does not answer, nobody waits for it:
//! LVM and the kernel make the nodes.
//!
//! LVM has no limit for this wait. Where an lvm hangs and udevd does not answer, the driver removes the semaphore. libdm takes that for
//! the answer, and LVM makes the node itself.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use devicemapper::{DM, DevId, DmName, DmOptions, DmUuid};
use devicemapper_sys::{
    DM_COOKIE_MAGIC, DM_UDEV_DISABLE_DISK_RULES_FLAG, DM_UDEV_DISABLE_DM_RULES_FLAG, DM_UDEV_DISABLE_OTHER_RULES_FLAG,
    DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG, DM_UDEV_FLAGS_SHIFT, DM_UDEV_PRIMARY_SOURCE_FLAG,
};

use super::super::kernel::Udev;
use super::super::{effect, files};
use super::dm::failed;
use super::raw::{Change, Semaphore, change as change_device};

const CONTROL: &str = "/run/udev/control";
/// udevd's data, one file per device.
const DATA: &str = "/run/udev/data";
/// Rules that last until the next boot.
const RULES: &str = "/run/udev/rules.d";
/// Order of the driver's rules among udev's: right after those of device-mapper and LVM, which begin with 10 and 11 (on Debian 55
/// and 56), and before those that look at the device.
const ORDER: [&str; 2] = ["12", "57"];
/// Time limit for one event.
const LIMIT: Duration = Duration::from_secs(10);
/// Time limit for a udevd that did not answer before.
const LIMIT_AGAIN: Duration = Duration::from_secs(2);
/// How long to retry with an open device: udevd may be taking a short look.
const CLOSE: Duration = Duration::from_secs(1);
/// Interval for asking again meanwhile.
const AGAIN: Duration = Duration::from_millis(250);
/// Age at which a device made for asking udevd counts as left over.
const OVER: Duration = Duration::from_secs(60);
/// Prefix of the names of such devices, before the time they were made.
const NAME_PREFIX: &str = "lvm-csi:udev:";
/// Prefix of their UUIDs.
const UUID_PREFIX: &str = "LVM-lvmcsiUdev";
/// A mark that no rule sets.
const NO_MARK: &str = "-";
/// The kernel's System V semaphores.
const SEMAPHORES: &str = "/proc/sysvipc/sem";
/// Interval for polling a state.
const STEP: Duration = Duration::from_millis(5);

/// udevd's last answer.
static STATE: Mutex<Option<Udev>> = Mutex::new(None);

fn state() -> MutexGuard<'static, Option<Udev>> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// udevd's answer; the first call asks.
pub(super) fn answer() -> Udev {
    let last = *state();
    last.unwrap_or_else(|| ask(NO_MARK, Duration::ZERO))
}

/// Asks udevd, and repeats that for up to `patience` until it follows rules that set a property beginning with `mark`. All of this
/// is one effect: a driver that dies within leaves a device that means nothing, and the next driver removes it.
pub(super) fn ask(mark: &str, patience: Duration) -> Udev {
    effect("udev.ask", &UUID_PREFIX, || Ok::<_, io::Error>(ask_until(mark, patience))).unwrap_or(Udev::Silent)
}

fn ask_until(mark: &str, patience: Duration) -> Udev {
    let begin = Instant::now();
    loop {
        let limit = if *state() == Some(Udev::Silent) { LIMIT_AGAIN } else { LIMIT };
        let answer = ask_within(mark, limit);
        *state() = Some(answer);
        if answer != (Udev::Answers { hides: false }) || begin.elapsed() >= patience {
            return answer;
        }
        pause(AGAIN);
    }
}

fn rule_files(name: &str) -> impl Iterator<Item = PathBuf> {
    ORDER.iter().map(move |order| PathBuf::from(format!("{RULES}/{order}-{name}.rules")))
}

/// The rules written under this name.
pub(super) fn rules(name: &str) -> Option<String> {
    rule_files(name).find_map(|path| fs::read_to_string(path).ok())
}

/// Writes missing rules. Returns whether it wrote any; it writes none if udevd does not run.
pub(super) fn put_rules(name: &str, text: &str) -> io::Result<bool> {
    if !Path::new(CONTROL).exists() {
        return Ok(false);
    }
    if !Path::new(RULES).is_dir() {
        files::make_directory(Path::new(RULES), 0o755)?;
    }
    let mut written = false;
    for path in rule_files(name) {
        if !fs::read_to_string(&path).is_ok_and(|there| there == text) {
            let new = path.with_extension("new");
            files::write(&new, text.as_bytes())?;
            files::rename(&new, &path)?;
            written = true;
        }
    }
    Ok(written)
}

/// Ends the waits for an unresponsive udevd of the processes whose LVM configuration is under `run_dir`. They wait only for the
/// node in /dev, which LVM then makes itself. Returns how many waits it ended.
pub(super) fn end_waits(run_dir: &Path) -> io::Result<usize> {
    let mut ours = OsString::from("LVM_SYSTEM_DIR=");
    ours.push(run_dir);
    ours.push("/");
    // A process that has vanished counts: it was the helper of a udevd that answered for some of several devices and then no more.
    // Pid 0 is a process that cannot be seen.
    let is_ours = |pid: i32| match fs::read(format!("/proc/{pid}/environ")) {
        Ok(environment) => environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(ours.as_bytes())),
        Err(error) => pid != 0 && error.kind() == io::ErrorKind::NotFound,
    };
    let mut ended = 0;
    for id in cookies(&fs::read_to_string(SEMAPHORES)?) {
        // A waiter has made the semaphore and was the last to change it.
        if Semaphore::last_user(id).is_ok_and(is_ours) && Semaphore::remove(id).is_ok() {
            ended += 1;
        }
    }
    Ok(ended)
}

/// The ids of semaphores by which processes wait for udevd, from the kernel's table: key, id and more on each line.
fn cookies(table: &str) -> Vec<i32> {
    let cookie = |line: &str| {
        let mut fields = line.split_whitespace();
        let key = fields.next()?.parse::<i32>().ok()?;
        let id = fields.next()?.parse().ok()?;
        (u32::from_ne_bytes(key.to_ne_bytes()) >> DM_UDEV_FLAGS_SHIFT == DM_COOKIE_MAGIC).then_some(id)
    };
    table.lines().filter_map(cookie).collect()
}

#[expect(clippy::disallowed_methods, reason = "polls a state, up to a limit; nothing reports it")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Flags of an event that tell device-mapper's rules that this device is private to the driver.
pub(super) const PRIVATE: u32 =
    DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG | DM_UDEV_DISABLE_DISK_RULES_FLAG | DM_UDEV_DISABLE_OTHER_RULES_FLAG;

/// Changes a dm device. If udevd answers, waits until it has handled the event. `flags` tell the rules what to do; `None` keeps the
/// former flags. Retries briefly if the device is open.
pub(super) fn change(control: &File, change: Change, name: &str, flags: Option<u32>) -> io::Result<()> {
    let waits = flags.is_some() && matches!(answer(), Udev::Answers { .. });
    let cookie = if waits { Cookie::make().inspect_err(log_missing_semaphore).ok() } else { None };
    let event = flags.map_or(0, |flags| event(flags, cookie.as_ref()));
    let has_event = once_closed(control, change, name, event)?;
    // The device is changed, whatever the wait brings.
    if let Some(cookie) = cookie.filter(|_| has_event)
        && !cookie.wait(LIMIT)
    {
        tracing::warn!(
            device = name,
            limit = LIMIT.as_secs(),
            "udevd has stopped answering; the driver does not wait for it until it answers again"
        );
        *state() = Some(Udev::Silent);
    }
    Ok(())
}

/// Changes a dm device; retries briefly if it is open. Returns whether there was an event.
fn once_closed(control: &File, change: Change, name: &str, event: u32) -> io::Result<bool> {
    let begin = Instant::now();
    loop {
        match change_device(control, change, name, event) {
            Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) && begin.elapsed() < CLOSE => pause(STEP),
            other => return other,
        }
    }
}

fn log_missing_semaphore(error: &io::Error) {
    tracing::debug!(%error, "cannot make a semaphore for udevd; not waiting for it this time");
}

/// The event number that the kernel passes on to udevd.
fn event(flags: u32, cookie: Option<&Cookie>) -> u32 {
    ((flags | DM_UDEV_PRIMARY_SOURCE_FLAG) << DM_UDEV_FLAGS_SHIFT) | cookie.map_or(0, |cookie| u32::from(cookie.number))
}

struct Cookie {
    number: u16,
    semaphore: Semaphore,
}

impl Cookie {
    /// A new cookie, with an unused number in the range of device-mapper's rules.
    fn make() -> io::Result<Self> {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.subsec_nanos());
        let mut number = u16::try_from((clock ^ std::process::id()) & 0xffff).unwrap_or(1);
        loop {
            number = number.wrapping_add(1).max(1);
            match Semaphore::make((DM_COOKIE_MAGIC << DM_UDEV_FLAGS_SHIFT) | u32::from(number)) {
                Ok(semaphore) => return Ok(Self { number, semaphore }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until udevd has handled the event. Returns whether it has. Removing the semaphore (`dmsetup udevcomplete_all`) ends
    /// the wait too.
    fn wait(&self, limit: Duration) -> bool {
        let begin = Instant::now();
        while self.semaphore.value().is_ok_and(|value| value > 0) {
            if begin.elapsed() >= limit {
                return false;
            }
            pause(STEP);
        }
        true
    }
}

fn ask_within(mark: &str, limit: Duration) -> Udev {
    if !Path::new(CONTROL).exists() {
        return Udev::Absent;
    }
    match ask_by_device(mark, limit) {
        Err(error) => {
            tracing::debug!(%error, "cannot ask udevd whether it answers");
            Udev::Silent
        }
        Ok(None) => Udev::Silent,
        Ok(Some(properties)) => {
            let mark = format!("E:{mark}");
            Udev::Answers { hides: properties.lines().any(|line| line.starts_with(&mark)) }
        }
    }
}

/// Makes a device, lets udevd handle its event, and removes it. Returns udevd's data on the device, or `None` if it did not answer.
fn ask_by_device(mark: &str, limit: Duration) -> io::Result<Option<String>> {
    let dm = DM::new().map_err(failed)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // A mark that a driver sets has a value. Anyone else who asks, such as a person with the doctor, knows none.
    let asker = mark.split_once('=').filter(|(_, value)| !value.is_empty()).map_or("", |(property, _)| property);
    remove_left(&dm, now.as_secs(), asker);
    // Each asker uses a device of its own. LVM makes no such name.
    let number = now.subsec_nanos() ^ std::process::id().rotate_left(16);
    let name = format!("{NAME_PREFIX}{}:{number:08x}:{asker}", now.as_secs());
    let uuid = format!("{:0<68}", format!("{UUID_PREFIX}{number:08x}"));
    let (dm_name, dm_uuid) = (DmName::new(&name).map_err(failed)?, DmUuid::new(&uuid).map_err(failed)?);
    #[expect(clippy::disallowed_methods, reason = "within an effect")]
    let device = dm.device_create(dm_name, Some(dm_uuid), DmOptions::default()).map_err(failed)?.device();
    let answered = wait_for_event(&dm, dm_name, &name, limit);
    let properties = fs::read_to_string(format!("{DATA}/b{}:{}", device.major, device.minor)).unwrap_or_default();
    once_closed(dm.file(), Change::Remove, &name, event(PRIVATE | DM_UDEV_DISABLE_DM_RULES_FLAG, None))?;
    Ok(answered?.then_some(properties))
}

/// Removes devices of drivers that died while asking: those of this asker, which has one at a time, and old ones.
fn remove_left(dm: &DM, now: u64, asker: &str) {
    for (name, _, _) in dm.list_devices().unwrap_or_default() {
        let name = name.to_string();
        let Some(rest) = name.strip_prefix(NAME_PREFIX) else { continue };
        let begun = rest.split(':').next().and_then(|begun| begun.parse::<u64>().ok());
        let is_own = !asker.is_empty() && rest.rsplit(':').next() == Some(asker);
        if is_own || begun.is_some_and(|begun| begun.abs_diff(now) > OVER.as_secs()) {
            // The device means nothing, and the next asker tries again.
            let _ = once_closed(dm.file(), Change::Remove, &name, event(PRIVATE | DM_UDEV_DISABLE_DM_RULES_FLAG, None));
        }
    }
}

fn wait_for_event(dm: &DM, dm_name: &DmName, name: &str, limit: Duration) -> io::Result<bool> {
    let table = [(0, 8, "error".to_owned(), String::new())];
    #[expect(clippy::disallowed_methods, reason = "within an effect")]
    dm.table_load(&DevId::Name(dm_name), &table, DmOptions::default()).map_err(failed)?;
    let cookie = Cookie::make()?;
    let event = event(PRIVATE | DM_UDEV_DISABLE_DM_RULES_FLAG, Some(&cookie));
    let has_event = change_device(dm.file(), Change::Resume, name, event)?;
    Ok(has_event && cookie.wait(limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_semaphores_of_device_mapper_are_waits_for_udevd() {
        let table = "       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n \
                     223169303          3   600          1     0     0     0     0 1732900000 1732900000\n \
                     0          4   600          1     0     0     0     0          0 1732900000\n \
                     -1          5   600          1     0     0     0     0          0 1732900000\n";
        assert_eq!(0x0d4d_4b17_i32, 223_169_303);
        assert_eq!(cookies(table), [3]);
    }
}
