//! Samples and their statistics.

use std::fs;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use testkit::error::{Result, Trouble};

/// Statistics of samples, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Times {
    /// Number of samples.
    pub(crate) n: usize,
    /// The least: the time when nothing else runs on the machine.
    pub(crate) min: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
}

impl Times {
    /// Without samples, all figures are 0.
    pub(crate) fn of(samples: &[Duration]) -> Self {
        let mut ms: Vec<f64> = samples.iter().map(|sample| sample.as_secs_f64() * 1e3).collect();
        ms.sort_by(f64::total_cmp);
        let at = |tenths: usize| ms.get((ms.len() * tenths / 10).min(ms.len().saturating_sub(1))).copied().unwrap_or_default();
        Self { n: ms.len(), min: at(0), p50: at(5), p90: at(9) }
    }
}

/// The bound of a figure.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// The figure is for information only.
    None,
}

/// How many times longer the driver takes than the other side, and by which samples: the smaller of the quotient of the minima and that of
/// the medians.
///
/// Either alone misses its bound by chance. One lucky sample of the other side spoils the minima: one `lvremove` of eleven took 29 ms
/// where both medians were 69 ms. Other load during half of the run spoils the medians. Work that is added to each call raises both
/// quotients, so a regression of that kind is found. Work that is added to some calls raises neither; the table shows p90 for that.
fn quotient(driver: Times, other: Times) -> (f64, &'static str) {
    let (least, median) = (driver.min / other.min, driver.p50 / other.p50);
    if least < median || median.is_nan() { (least, "× min") } else { (median, "× p50") }
}

/// A line of the table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    /// `native`, `lab` or `k8s`.
    pub(crate) place: String,
    pub(crate) what: String,
    pub(crate) driver: Times,
    /// What the driver is compared with, or empty.
    pub(crate) against: String,
    pub(crate) other: Option<Times>,
    /// The result, which the bound is about.
    pub(crate) figure: f64,
    pub(crate) unit: String,
    pub(crate) bound: Bound,
}

impl Row {
    /// The row of the [`quotient`] of two sides.
    fn of_sides(place: &str, what: &str, driver: Times, against: &str, other: Times, bound: Bound) -> Self {
        let (figure, unit) = quotient(driver, other);
        Self {
            place: place.to_owned(),
            what: what.to_owned(),
            driver,
            against: against.to_owned(),
            other: Some(other),
            figure,
            unit: unit.to_owned(),
            bound,
        }
    }

    /// Whether the figure keeps its bound.
    pub(crate) fn holds(&self) -> bool {
        match self.bound {
            Bound::AtMost(most) => self.figure <= most,
            Bound::AtLeast(least) => self.figure >= least,
            Bound::None => true,
        }
    }
}

/// Samples of both sides, taken alternately so that noise of the machine hits both.
#[derive(Debug, Default)]
pub(crate) struct Pairs {
    driver: Vec<Duration>,
    other: Vec<Duration>,
}

impl Pairs {
    pub(crate) fn add(&mut self, driver: Duration, other: Duration) {
        self.driver.push(driver);
        self.other.push(other);
    }

    /// The row of the [`quotient`], without the first pair, which finds caches cold.
    pub(crate) fn ratio(&self, place: &str, what: &str, against: &str, bound: Bound) -> Row {
        let (driver, other) = self.times();
        Row::of_sides(place, what, driver, against, other, bound)
    }

    /// The row of the difference of the medians in seconds, without the first pair, as in [`Pairs::ratio`].
    pub(crate) fn difference(&self, place: &str, what: &str, against: &str, bound: Bound) -> Row {
        let row = self.ratio(place, what, against, bound);
        let figure = row.other.map_or(f64::NAN, |other| (row.driver.p50 - other.p50) / 1e3);
        Row { figure, unit: "s".to_owned(), ..row }
    }

    fn times(&self) -> (Times, Times) {
        let warm = |samples: &[Duration]| Times::of(samples.get(1..).unwrap_or_default());
        (warm(&self.driver), warm(&self.other))
    }
}

/// Samples of three sides, taken in turns: the driver, LVM alone with the driver's configuration, and stock LVM.
///
/// The driver has a bound against LVM alone, which does the same work. A stock command mostly waits for the kernel, where the driver
/// works, so their quotient depends on the load of the machine: it is for information only. Against stock LVM only processor time has a
/// bound.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    driver: Vec<Duration>,
    alone: Vec<Duration>,
    stock: Vec<Duration>,
    /// Processor time of the driver with its children, and of the stock commands. Each sample adds two entries, one for each side.
    processor: Vec<(Duration, Duration)>,
    /// Runs before each sample.
    before: Option<fn() -> Result<()>>,
}

impl Turns {
    /// Turns that run `before` ahead of each sample, to wait for the machine to settle.
    pub(crate) fn after(before: fn() -> Result<()>) -> Self {
        Self { before: Some(before), ..Self::default() }
    }

    /// Takes one sample of each side. Which side begins rotates. `pid` is the driver's process.
    pub(crate) fn take<'a>(
        &mut self,
        pid: u32,
        driver: impl FnOnce() -> Result<()> + 'a,
        alone: impl FnOnce() -> Result<()> + 'a,
        stock: impl FnOnce() -> Result<()> + 'a,
    ) -> Result<()> {
        let mut sides: [Side<'a>; 3] = [Some(Box::new(driver)), Some(Box::new(alone)), Some(Box::new(stock))];
        let mut spent = [Duration::ZERO; 3];
        for turn in 0..sides.len() {
            let at = (self.driver.len() + turn) % sides.len();
            let Some(work) = sides[at].take() else { continue };
            self.before.map_or(Ok(()), |before| before())?;
            let begun = used(pid)?;
            spent[at] = time(work)?;
            let (of_driver, of_commands) = used(pid)?;
            match at {
                0 => self.processor.push((of_driver.saturating_sub(begun.0), Duration::ZERO)),
                1 => {}
                _ => self.processor.push((Duration::ZERO, of_commands.saturating_sub(begun.1))),
            }
        }
        let [driver, alone, stock] = spent;
        self.add(driver, alone, stock);
        Ok(())
    }

    /// Adds samples that the caller has taken.
    pub(crate) fn add(&mut self, driver: Duration, alone: Duration, stock: Duration) {
        self.driver.push(driver);
        self.alone.push(alone);
        self.stock.push(stock);
    }

    /// The rows of a call: against LVM alone, with a bound, and against the stock command. The first turn does not count, since it finds
    /// caches cold.
    pub(crate) fn rows(&self, place: &str, what: &str, command: &str, bound: Bound) -> Vec<Row> {
        let warm = |samples: &[Duration]| Times::of(samples.get(1..).unwrap_or_default());
        let (driver, configured) = (warm(&self.driver), format!("{command}, our lvm.conf"));
        vec![
            Row::of_sides(place, what, driver, &configured, warm(&self.alone), bound),
            Row::of_sides(place, "  and stock LVM", driver, command, warm(&self.stock), Bound::None),
        ]
    }

    /// The row of the mean processor times. The kernel counts hundredths of a second; the mean of many samples evens out the rounding.
    pub(crate) fn processor(&self, place: &str, command: &str, bound: Bound) -> Row {
        let warm = self.processor.get(2..).unwrap_or_default();
        let mean = |side: fn(&(Duration, Duration)) -> Duration| {
            let whole: Duration = warm.iter().map(side).sum();
            Times::of(&[whole / u32::try_from(warm.len() / 2).unwrap_or(1).max(1)])
        };
        let (driver, other) = (mean(|sample| sample.0), mean(|sample| sample.1));
        let row = Row::of_sides(place, "  processor time, mean", driver, command, other, bound);
        Row { driver: Times { n: warm.len() / 2, ..driver }, unit: "×".to_owned(), ..row }
    }
}

/// The work of one side, until it has run.
type Side<'a> = Option<Box<dyn FnOnce() -> Result<()> + 'a>>;

/// Processor time of a driver with its finished children, and of this process's finished children.
fn used(driver: u32) -> Result<(Duration, Duration)> {
    let ticks = |pid: &str, fields: std::ops::Range<usize>| {
        let path = format!("/proc/{pid}/stat");
        let text = fs::read_to_string(&path).map_err(Trouble::io(format!("reading {path}")))?;
        // The process name before the last parenthesis may contain anything.
        let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
        let sum =
            rest.split_whitespace().skip(fields.start).take(fields.len()).filter_map(|field| field.parse::<u64>().ok()).sum();
        Ok(Duration::from_millis(10 * u64::min(sum, u64::MAX / 10)))
    };
    // After the name proc(5) has the state and ten numbers, then utime, stime, cutime and cstime.
    Ok((ticks(&driver.to_string(), 11..15)?, ticks("self", 13..15)?))
}

/// The time of work that must succeed.
pub(crate) fn time<T>(work: impl FnOnce() -> Result<T>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_and_the_ninth_tenth_below_the_worst() {
        let samples: Vec<Duration> = (1..=10).rev().map(Duration::from_millis).collect();
        let times = Times::of(&samples);
        assert_eq!((times.n, times.min.round(), times.p50.round(), times.p90.round()), (10, 1.0, 6.0, 10.0));
        assert_eq!(Times::of(&[]).n, 0);
    }

    #[test]
    fn the_first_pair_is_left_out() {
        let mut pairs = Pairs::default();
        for (driver, other) in [(900, 1), (2, 10), (2, 10), (2, 10)] {
            pairs.add(Duration::from_millis(driver), Duration::from_millis(other));
        }
        let row = pairs.ratio("here", "this", "that", Bound::AtMost(0.2));
        assert!((row.figure - 0.2).abs() < 1e-9 && row.driver.n == 3);
        let row = pairs.difference("here", "this", "that", Bound::AtMost(0.0));
        assert!((row.figure + 0.008).abs() < 1e-9 && row.unit == "s");
    }

    #[test]
    fn the_driver_is_held_to_lvm_alone_and_shown_beside_stock_lvm() {
        let mut turns = Turns::default();
        for (driver, alone, stock) in [(900, 1, 1), (6, 5, 10), (9, 6, 10), (9, 6, 10)] {
            turns.add(Duration::from_millis(driver), Duration::from_millis(alone), Duration::from_millis(stock));
        }
        turns.processor = [(90, 0), (0, 1), (20, 0), (0, 40), (40, 0), (0, 80)].map(|(a, b)| (ms(a), ms(b))).to_vec();
        let rows = turns.rows("here", "this", "that", Bound::AtMost(1.3));
        assert!((rows[0].figure - 1.2).abs() < 1e-9 && rows[0].unit == "× min" && rows[0].holds() && rows[0].driver.n == 3);
        assert!((rows[1].figure - 0.6).abs() < 1e-9 && matches!(rows[1].bound, Bound::None));
        let row = turns.processor("here", "that", Bound::AtMost(0.4));
        assert!((row.figure - 0.5).abs() < 1e-9 && !row.holds());
        assert_eq!((row.driver.n, row.driver.p50.round()), (2, 30.0));
    }

    #[test]
    fn each_side_has_a_turn_and_work_takes_processor_time() {
        let pid = std::process::id();
        let before = used(pid).unwrap().0;
        let begun = Instant::now();
        while used(pid).unwrap().0 == before {
            assert!(begun.elapsed() < Duration::from_secs(20), "no processor time for this process");
        }
        let (count, mut turns) = (std::cell::Cell::new(0), Turns::default());
        let one = || {
            count.set(count.get() + 1);
            Ok(())
        };
        for _ in 0..4 {
            turns.take(pid, one, one, one).unwrap();
        }
        assert_eq!((count.get(), turns.driver.len(), turns.processor.len()), (12, 4, 8));
    }

    /// For samples of a call and of its command in milliseconds, whether a bound of 2.2 is kept, and by which samples.
    fn is_kept(samples: impl IntoIterator<Item = (u64, u64)>) -> (bool, &'static str) {
        let (driver, other): (Vec<_>, Vec<_>) = samples.into_iter().map(|(driver, other)| (ms(driver), ms(other))).unzip();
        let (figure, by) = quotient(Times::of(&driver), Times::of(&other));
        (figure <= 2.2, by)
    }

    #[test]
    fn one_lucky_sample_or_a_busy_half_misses_nothing_and_work_in_each_call_does() {
        // One lucky sample of the command: 64 / 29 ms by the minima, 69 / 69 by the medians.
        assert_eq!(is_kept((0..11).map(|n| (64 + n, if n == 0 { 29 } else { 64 + n }))), (true, "× p50"));
        // Other load during most of the driver's samples, and none of the command's.
        assert_eq!(is_kept((0..11).map(|n| (if n < 4 { 80 } else { 300 }, 70))), (true, "× min"));
        // A third and a fourth command in each call, with the same lucky sample and the same load.
        assert!(!is_kept((0..11).map(|n| (160 + n, if n == 0 { 29 } else { 64 + n }))).0);
        assert!(!is_kept((0..11).map(|n| (if n < 4 { 160 } else { 300 }, 70))).0);
        // Work that more than half of the calls have and one lacks: this check cannot find that.
        assert_eq!(is_kept((0..11).map(|n| (if n == 0 { 70 } else { 300 }, 70))), (true, "× min"));
        assert!(!is_kept([]).0);
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_bound_is_kept_or_missed() {
        let row = |figure, bound| Row { figure, bound, ..Pairs::default().ratio("", "", "", Bound::None) };
        assert!(row(0.2, Bound::AtMost(0.2)).holds() && !row(0.21, Bound::AtMost(0.2)).holds());
        assert!(row(4.0, Bound::AtLeast(4.0)).holds() && !row(3.9, Bound::AtLeast(4.0)).holds());
        assert!(!row(f64::NAN, Bound::AtMost(1.0)).holds());
    }
}
