//! Logs go to stderr, one line per event. `LVM_CSI_LOG` sets their level (`info` without it).

use tracing_subscriber::EnvFilter;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    /// One JSON object per line.
    Json,
}

pub fn init(format: LogFormat) {
    let wanted = std::env::var("LVM_CSI_LOG").unwrap_or_default();
    let filter = EnvFilter::try_new(directives(&wanted)).unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
}

/// The filter without `LVM_CSI_LOG`.
const DEFAULT: &str = "info";

/// The filter, in the syntax of `tracing_subscriber::EnvFilter`. A bare `debug` or `trace` applies to this driver only: the frames that its
/// libraries log would hide what it does.
fn directives(wanted: &str) -> String {
    match wanted {
        "" => DEFAULT.to_owned(),
        "debug" | "trace" => format!("{DEFAULT},lvm_csi={wanted}"),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::directives;

    #[test]
    fn a_level_alone_is_that_of_the_driver() {
        let found = ["", "warn", "debug", "h2=debug"].map(directives);
        assert_eq!(found, ["info", "warn", "info,lvm_csi=debug", "h2=debug"]);
    }
}
