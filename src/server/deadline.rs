//! The caller's deadline. A caller that would only see "deadline exceeded" gets an answer just before it that names the running operation.

use std::time::Duration;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;

use crate::inflight;

/// The longest time an answer takes to reach the caller.
const WAY_BACK: Duration = Duration::from_secs(1);

/// Answers a call within its caller's deadline, which gRPC sends as `grpc-timeout`. The work goes on after it.
pub(super) async fn keep(request: Request, next: Next) -> Response {
    let limit = request.headers().get("grpc-timeout").and_then(|value| parse(value.to_str().ok()?));
    match limit {
        Some(limit) => inflight::within(limit - WAY_BACK.min(limit / 10), next.run(request)).await,
        None => next.run(request).await,
    }
}

/// Reads `grpc-timeout`: at most eight digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let count: u32 = text.strip_suffix(unit).filter(|digits| digits.len() <= 8)?.parse().ok()?;
    let one = match unit {
        'H' => Duration::from_secs(3600),
        'M' => Duration::from_secs(60),
        'S' => Duration::from_secs(1),
        'm' => Duration::from_millis(1),
        'u' => Duration::from_micros(1),
        'n' => Duration::from_nanos(1),
        _ => return None,
    };
    one.checked_mul(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_units_of_grpc_are_read() {
        assert_eq!(parse("120S"), Some(Duration::from_secs(120)));
        assert_eq!(parse("50000u"), Some(Duration::from_millis(50)));
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for odd in ["", "S", "1", "1s", "-1S", "123456789S", "1.5S", "1é"] {
            assert_eq!(parse(odd), None, "{odd}");
        }
    }
}
