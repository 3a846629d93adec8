//! Making what is on a device zero, so that no volume shows old bytes.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use crate::host::Kernel;
use crate::types::Bytes;

use super::error::DeviceError;
use super::probe::{Area, superblock_areas};

/// What is zeroed in one call to the kernel: small enough that a look at the clock comes often also on a slow disk.
const STEP: u64 = 64 << 20;

/// Zeroes `from..to` of a device (multiples of its logical block) in steps, each flushed before `step_done` is told how far
/// the zeroes reach. Ends early, after a whole step, when that says so or the deadline has passed; one step is always made, so
/// that repeated calls come to an end. Gives how far the zeroes reach now; what lies beyond is as before or partly zero.
///
/// # Errors
/// When zeroing or flushing fails; what `step_done` was told stays true.
pub fn zero(
    kernel: &dyn Kernel,
    device: &Path,
    from: Bytes,
    to: Bytes,
    deadline: Instant,
    step_done: &mut dyn FnMut(Bytes) -> ControlFlow<()>,
) -> Result<Bytes, DeviceError> {
    let mut at = from.0;
    while at < to.0 {
        let length = STEP.min(to.0 - at);
        zero_flushed(kernel, device, &[Area { offset: at, length }])?;
        at += length;
        if step_done(Bytes(at)).is_break() || Instant::now() >= deadline {
            break;
        }
    }
    Ok(Bytes(at))
}

/// Zeroes and flushes all areas of a device where a signature may lie, so that the first look finds it blank.
///
/// # Errors
/// When the size cannot be told, or zeroing or flushing fails.
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
    use std::time::Duration;

    use super::super::fake::{DISK, Fake};
    use super::*;

    const MIB: u64 = 1 << 20;

    fn run(from: u64, to: u64, deadline: Duration, stop_after: usize) -> (u64, Vec<u64>, Vec<String>) {
        let kernel = Fake::default();
        let mut told = Vec::new();
        let mut step_done = |at: Bytes| {
            told.push(at.0 / MIB);
            if told.len() == stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let deadline = Instant::now() + deadline;
        let at = zero(&kernel, Path::new("/dev/x"), Bytes(from * MIB), Bytes(to * MIB), deadline, &mut step_done).unwrap();
        (at.0 / MIB, told, kernel.effects())
    }

    #[test]
    fn every_step_is_flushed_before_it_is_told() {
        let (at, told, done) = run(4, 140, Duration::from_secs(60), usize::MAX);
        assert_eq!((at, told), (140, vec![68, 132, 140]));
        let step = |from: u64, length: u64| format!("zero {}+{}", from * MIB, length * MIB);
        assert_eq!(done, [step(4, 64), "flush".into(), step(68, 64), "flush".into(), step(132, 8), "flush".into()]);
    }

    #[test]
    fn it_ends_after_a_whole_step_and_always_makes_one() {
        assert_eq!(run(0, 200, Duration::ZERO, usize::MAX).0, 64);
        assert_eq!(run(0, 200, Duration::from_secs(60), 2).0, 128);
        assert_eq!(run(7, 7, Duration::ZERO, 1), (7, vec![], vec![]));
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
