//! Logs go to stderr, one line an event; their level is set by `LVM_CSI_LOG` (`info` without it).

use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging.
pub fn init(format: LogFormat) {
    let wanted = std::env::var("LVM_CSI_LOG").unwrap_or_default();
    let filter = EnvFilter::try_new(directives(&wanted)).unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
}

/// What is shown where nothing is asked for.
const DEFAULT: &str = "info";

/// What is to be shown, in the words of `tracing_subscriber::EnvFilter`: with one level only it is that of this driver. The frames that
/// its libraries send would hide what it does.
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
