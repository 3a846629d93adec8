//! Reads the driver's calls from its log, with their times.

use std::time::Duration;

use serde_json::Value;
use testkit::error::{Result, Trouble};

/// In seconds.
const DAY: f64 = 86_400.0;

/// A call that succeeded.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub(crate) name: String,
    /// The id of its volume, or the name in CreateVolume; empty for other calls.
    pub(crate) about: String,
    /// In seconds since midnight.
    end: f64,
    pub(crate) took: Duration,
}

impl Call {
    /// The time from the end of this call to the start of another; 0 if that started before.
    pub(crate) fn until(&self, next: &Self) -> Duration {
        let between = (next.end - next.took.as_secs_f64() - self.end).rem_euclid(DAY);
        if between < DAY / 2.0 { Duration::from_secs_f64(between) } else { Duration::ZERO }
    }
}

/// The calls in a log (`lvm_csi::rpc` at level debug, in JSON), in its order.
///
/// # Errors
/// A call's line has a malformed time.
pub(crate) fn read(log: &str) -> Result<Vec<Call>> {
    log.lines().filter_map(|line| of_line(line).transpose()).collect()
}

fn of_line(line: &str) -> Result<Option<Call>> {
    let Ok(event) = serde_json::from_str::<Value>(line) else { return Ok(None) };
    let text = |pointer| event.pointer(pointer).and_then(Value::as_str);
    // An agent logs the same call too, but without a time.
    let (Some("OK"), Some(name), Some(ms)) = (text("/fields/message"), text("/span/rpc"), text("/fields/ms")) else {
        return Ok(None);
    };
    let strange = || Trouble::wrong(format!("malformed line of the driver's log: {line}"));
    let end = text("/timestamp").and_then(since_midnight).ok_or_else(strange)?;
    let ms = ms.parse().map_err(|_| strange())?;
    let about = text("/span/about").unwrap_or_default().to_owned();
    Ok(Some(Call { name: name.to_owned(), about, end, took: Duration::from_millis(ms) }))
}

/// Seconds since midnight of a time such as `2026-01-31T12:00:00.000001Z`.
fn since_midnight(time: &str) -> Option<f64> {
    let mut parts = time.split_once('T')?.1.strip_suffix('Z')?.splitn(3, ':').map(str::parse::<f64>);
    let mut next = || parts.next()?.ok();
    Some(next()? * 3600.0 + next()? * 60.0 + next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_went_well_are_found_among_other_lines() {
        let log = r#"a text
{"timestamp":"2026-11-21T23:59:59.5Z","level":"DEBUG","fields":{"message":"OK","ms":"20"},"target":"x","span":{"about":"v","id":1,"rpc":"One","name":"call"}}
{"timestamp":"2026-11-21T23:59:59.6Z","level":"DEBUG","fields":{"message":"done","ms":"1"},"span":{"id":2,"rpc":"Two","name":"call"}}
{"timestamp":"2026-11-22T00:00:00.9Z","level":"DEBUG","fields":{"message":"OK"},"span":{"id":2,"rpc":"Create","name":"call"}}
{"timestamp":"2026-11-22T00:00:01.0Z","level":"DEBUG","fields":{"message":"OK","ms":"500"},"span":{"id":2,"rpc":"Two","name":"call"}}"#;
        let calls = read(log).unwrap();
        assert_eq!(calls.iter().map(|call| call.name.as_str()).collect::<Vec<_>>(), ["One", "Two"]);
        assert_eq!((calls[0].about.as_str(), calls[1].about.as_str()), ("v", ""));
        assert_eq!(calls[0].took, Duration::from_millis(20));
        assert_eq!(calls[0].until(&calls[1]), Duration::from_secs(1));
        assert_eq!(calls[1].until(&calls[0]), Duration::ZERO);
    }
}
