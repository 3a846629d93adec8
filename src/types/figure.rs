//! Figures that are read when somebody asks for them; those that are counted are where they happen.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

/// Tells one figure, where there is one.
///
/// # Errors
/// The text cannot be written.
pub fn gauge<N: EncodeGaugeValue>(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, figure: Option<N>) -> fmt::Result {
    let Some(value) = figure else { return Ok(()) };
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

/// Tells one figure of every object that has it: what it is called, what it is, and its labels with its value.
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
