//! Zeroes devices, so that no volume shows old bytes.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::host::Kernel;
use crate::types::Bytes;

use super::error::DeviceError;
use super::probe::{Area, superblock_areas};

/// In bytes: the first step, and the least of any step. On a disk with a fixed time per request smaller steps take as long and
/// zero less.
const LEAST: u64 = 16 << 20;
/// The largest step, in bytes.
const MOST: u64 = 1 << 30;
/// How long a step should take: others wait that long for the disk, and the deadline is checked that often.
const GOAL: Duration = Duration::from_millis(100);
/// Bytes per second that no disk writes: a faster one only records where the zeroes are, and needs no rest.
const OFFLOADED: u128 = 16 << 30;

/// Zeroes pieces of a device in steps, and leaves part of the disk's time to others. The step size adapts to the disk's speed.
pub struct Zeroer<'a> {
    kernel: &'a dyn Kernel,
    percent: u32,
    step: u64,
}

impl<'a> Zeroer<'a> {
    /// Uses at most `percent` (1 to 100) of the disk's time.
    pub fn new(kernel: &'a dyn Kernel, percent: u32) -> Self {
        Self { kernel, percent, step: LEAST }
    }

    /// Zeroes `from..to` of a device (multiples of its logical block) in steps. Flushes each step before it passes the reached
    /// offset to `step_done`. Ends early, after a whole step, when `until` has passed or `step_done` breaks; it always makes one
    /// step, so that repeated calls finish. Returns the reached offset; beyond it the bytes are as before or partly zero.
    ///
    /// # Errors
    /// Zeroing or flushing failed; the offsets already passed to `step_done` stay true.
    pub fn zero(
        &mut self,
        device: &Path,
        from: Bytes,
        to: Bytes,
        until: Instant,
        step_done: &mut dyn FnMut(Bytes) -> ControlFlow<()>,
    ) -> Result<Bytes, DeviceError> {
        let mut at = from.0;
        while at < to.0 {
            let length = self.step.min(to.0 - at);
            let begin = Instant::now();
            zero_flushed(self.kernel, device, &[Area { offset: at, length }])?;
            let (next, rest) = pace(length, begin.elapsed(), self.percent);
            self.step = next;
            at += length;
            if step_done(Bytes(at)).is_break() {
                break;
            }
            let left = until.saturating_duration_since(Instant::now());
            pause(rest.min(left));
            if rest >= left {
                break;
            }
        }
        Ok(Bytes(at))
    }
}

/// Computes the size of the next step and the rest before it, from a step of `length` bytes that took `took`.
fn pace(length: u64, took: Duration, percent: u32) -> (u64, Duration) {
    let next = match took {
        took if took > GOAL * 2 => length / 2,
        took if took < GOAL / 2 => length * 2,
        _ => length,
    };
    let offloaded = u128::from(length) * 1_000_000 > OFFLOADED * took.as_micros();
    let rest = if offloaded { Duration::ZERO } else { took * (100 - percent.min(100)) / percent.max(1) };
    (next.clamp(LEAST, MOST), rest)
}

#[expect(clippy::disallowed_methods, reason = "this is no wait: it leaves the disk to others for a while")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Zeroes and flushes all areas of a device where a signature may be, so that the first probe finds it blank.
///
/// # Errors
/// The device's size is unknown, or zeroing or flushing failed.
pub fn zero_superblock_areas(kernel: &dyn Kernel, device: &Path) -> Result<(), DeviceError> {
    let size = kernel.device_size(device).map_err(DeviceError::kernel("reading the size of", device.display().to_string()))?;
    zero_flushed(kernel, device, &superblock_areas(size))
}

fn zero_flushed(kernel: &dyn Kernel, device: &Path, areas: &[Area]) -> Result<(), DeviceError> {
    let failed = |action| DeviceError::kernel(action, device.display().to_string());
    for area in areas {
        kernel.zero(device, Bytes(area.offset), Bytes(area.length)).map_err(failed("zeroing"))?;
    }
    kernel.flush(device).map_err(failed("flushing"))
}

#[cfg(test)]
mod tests {
    use super::super::fake::{DISK, Fake};
    use super::*;

    const MIB: u64 = 1 << 20;

    fn run(from: u64, to: u64, time: Duration) -> (Bytes, Vec<u64>, Vec<String>) {
        let kernel = Fake::default();
        let mut reported = Vec::new();
        let mut zeroer = Zeroer::new(&kernel, 50);
        let until = Instant::now() + time;
        let reached = zeroer.zero(Path::new("/dev/x"), Bytes(from), Bytes(to), until, &mut |at| {
            reported.push(at.0);
            ControlFlow::Continue(())
        });
        let reached = reached.unwrap();
        (reached, reported, kernel.effects())
    }

    #[test]
    fn every_step_is_flushed_before_it_is_reported_and_the_next_continues() {
        let (reached, reported, done) = run(4 * MIB, 140 * MIB + 4096, Duration::from_secs(60));
        assert_eq!((reached, reported.last()), (Bytes(140 * MIB + 4096), Some(&(140 * MIB + 4096))));
        let starts = [4 * MIB].into_iter().chain(reported.iter().copied());
        let steps = starts.zip(&reported).flat_map(|(at, end)| [format!("zero {at}+{}", end - at), "flush".to_owned()]);
        assert_eq!(done, steps.collect::<Vec<_>>());
    }

    #[test]
    fn it_ends_after_a_whole_step_and_always_makes_one() {
        assert_eq!(run(0, 200 * MIB, Duration::ZERO).0, Bytes(LEAST));
        assert_eq!(run(7, 7, Duration::ZERO), (Bytes(7), vec![], vec![]));
    }

    #[test]
    fn the_disk_rests_and_the_steps_fit_its_speed() {
        let ms = Duration::from_millis;
        assert_eq!(pace(16 * MIB, ms(100), 50), (16 * MIB, ms(100)));
        assert_eq!(pace(64 * MIB, ms(400), 20), (32 * MIB, ms(1600)));
        assert_eq!(pace(16 * MIB, ms(20), 100), (32 * MIB, Duration::ZERO));
        assert_eq!((pace(LEAST, ms(9000), 50).0, pace(MOST, ms(40), 50)), (LEAST, (MOST, Duration::ZERO)));
    }

    #[test]
    fn all_areas_are_zeroed_and_flushed_once() {
        let kernel = Fake::default();
        zero_superblock_areas(&kernel, Path::new("/dev/x")).unwrap();
        let done = kernel.effects();
        assert_eq!(done.len(), superblock_areas(DISK).len() + 1);
        assert_eq!(done.last().unwrap(), "flush");
    }
}
