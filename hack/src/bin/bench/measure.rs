//! Samples, and what they come to.

use std::time::{Duration, Instant};

use lvm_csi_hack::error::Result;
use serde::{Deserialize, Serialize};

/// What many samples of one thing come to, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Times {
    /// How many samples.
    pub(crate) n: usize,
    /// The least: what is left of it when nothing else runs on the machine.
    pub(crate) min: f64,
    /// The median.
    pub(crate) p50: f64,
    /// Nine of ten are not above this.
    pub(crate) p90: f64,
}

impl Times {
    /// Sums samples up; of none all is 0.
    pub(crate) fn of(samples: &[Duration]) -> Self {
        let mut ms: Vec<f64> = samples.iter().map(|sample| sample.as_secs_f64() * 1e3).collect();
        ms.sort_by(f64::total_cmp);
        let at = |tenths: usize| ms.get((ms.len() * tenths / 10).min(ms.len().saturating_sub(1))).copied().unwrap_or_default();
        Self { n: ms.len(), min: at(0), p50: at(5), p90: at(9) }
    }
}

/// What is promised of a figure.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    /// It is not above this.
    AtMost(f64),
    /// It is not below this.
    AtLeast(f64),
    /// Nothing; it is told for its own sake.
    None,
}

/// One line of the table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    /// Where it was measured.
    pub(crate) place: String,
    /// What was measured.
    pub(crate) what: String,
    /// The driver's times.
    pub(crate) driver: Times,
    /// What they are compared with.
    pub(crate) against: String,
    /// The times of that.
    pub(crate) other: Option<Times>,
    /// What came out.
    pub(crate) figure: f64,
    /// In which unit.
    pub(crate) unit: String,
    /// What is promised of it.
    pub(crate) bound: Bound,
}

impl Row {
    /// Whether what is promised holds.
    pub(crate) fn holds(&self) -> bool {
        match self.bound {
            Bound::AtMost(most) => self.figure <= most,
            Bound::AtLeast(least) => self.figure >= least,
            Bound::None => true,
        }
    }
}

/// Samples of both sides, taken in turns: noise of the machine hits both.
#[derive(Debug, Default)]
pub(crate) struct Pairs {
    driver: Vec<Duration>,
    other: Vec<Duration>,
    before: Option<fn() -> Result<()>>,
}

impl Pairs {
    /// Samples before each of which something is waited for.
    pub(crate) fn after(before: fn() -> Result<()>) -> Self {
        Self { before: Some(before), ..Self::default() }
    }

    /// Takes one sample of each side; who begins changes each time.
    pub(crate) fn take(&mut self, driver: impl FnOnce() -> Result<()>, other: impl FnOnce() -> Result<()>) -> Result<()> {
        let before = self.before;
        let wait = || before.map_or(Ok(()), |before| before());
        if self.driver.len().is_multiple_of(2) {
            wait()?;
            self.driver.push(time(driver)?);
            wait()?;
            self.other.push(time(other)?);
        } else {
            wait()?;
            self.other.push(time(other)?);
            wait()?;
            self.driver.push(time(driver)?);
        }
        Ok(())
    }

    /// Adds one sample of each side that was taken elsewhere.
    pub(crate) fn add(&mut self, driver: Duration, other: Duration) {
        self.driver.push(driver);
        self.other.push(other);
    }

    /// The row of the quotient of the medians. The first pair is left out: it finds caches cold.
    pub(crate) fn ratio(&self, place: &str, what: &str, against: &str, bound: Bound) -> Row {
        let (driver, other) = self.times();
        Row {
            place: place.to_owned(),
            what: what.to_owned(),
            driver,
            against: against.to_owned(),
            other: Some(other),
            figure: driver.p50 / other.p50,
            unit: "×".to_owned(),
            bound,
        }
    }

    /// The row of the difference of the medians in seconds. The first pair is left out, as in [`Pairs::ratio`].
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

/// How long something takes that must go well.
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
    fn a_bound_is_kept_or_missed() {
        let row = |figure, bound| Row { figure, bound, ..Pairs::default().ratio("", "", "", Bound::None) };
        assert!(row(0.2, Bound::AtMost(0.2)).holds() && !row(0.21, Bound::AtMost(0.2)).holds());
        assert!(row(4.0, Bound::AtLeast(4.0)).holds() && !row(3.9, Bound::AtLeast(4.0)).holds());
        assert!(!row(f64::NAN, Bound::AtMost(1.0)).holds());
    }
}
