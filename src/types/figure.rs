//! Metrics that are read at the time of a scrape. Counters live where the counted events happen.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

/// Encodes one gauge, if it has a value.
///
/// # Errors
/// The text cannot be written.
pub fn gauge<N: EncodeGaugeValue>(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, figure: Option<N>) -> fmt::Result {
    let Some(value) = figure else { return Ok(()) };
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

/// Encodes one gauge with a value for each of several label sets.
///
/// # Errors
/// The text cannot be written.
pub fn gauges<L: EncodeLabelSet, N: EncodeGaugeValue>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    figures: impl IntoIterator<Item = (L, N)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    figures.into_iter().try_for_each(|(labels, value)| ConstGauge::new(value).encode(family.encode_family(&labels)?))
}
