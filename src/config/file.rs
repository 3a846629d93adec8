//! The YAML file, key by key. Unknown and doubled keys are refused with line and column.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::types::{LayoutConfig, PoolConfig, VgName, Zeroing};

use super::{ConfigError, DEFAULT_SIZE, lv_name, parse_size, value};

/// Without a word in the configuration a thin pool promises what it has, and no more.
pub(super) const OVERPROVISION_PERCENT: u32 = 100;

/// Less of a disk's time than this and zeroing would not come to an end.
const LEAST_ZERO_PERCENT: u32 = 10;
/// One call must end within the two minutes that kubelet waits, LVM's commands included.
const LONGEST_ZERO_CALL: u64 = 100;

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct File {
    pub(super) driver_name: Option<String>,
    pub(super) node_id: Option<String>,
    pub(super) endpoint: Option<String>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) run_dir: Option<PathBuf>,
    pub(super) max_volumes_per_node: Option<usize>,
    #[serde(default)]
    pub(super) zeroing: FileZeroing,
    #[serde(default)]
    pub(super) pools: Vec<FilePool>,
}

/// How volumes are zeroed.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct FileZeroing {
    percent: Option<u32>,
    call_seconds: Option<u64>,
}

/// One pool of the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct FilePool {
    name: String,
    volume_group: String,
    layout: FileLayout,
    thin_pool: Option<String>,
    create_thin_pool: Option<String>,
    overprovision_percent: Option<u32>,
    default_size: Option<String>,
    #[serde(default)]
    default: bool,
}

/// How the volumes of a pool lie on its disks.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FileLayout {
    Linear,
    Thin,
}

impl File {
    /// Reads the text; the error is what the parser says, with line and column.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        serde_saphyr::from_str(text).map_err(|error| error.to_string())
    }
}

impl FileZeroing {
    /// Checks it and fills in what is not given.
    pub(super) fn check(&self) -> Result<Zeroing, ConfigError> {
        let default = Zeroing::default();
        let percent = self.percent.unwrap_or(default.percent);
        if !(LEAST_ZERO_PERCENT..=100).contains(&percent) {
            let reason = format!("must be {LEAST_ZERO_PERCENT} to 100");
            return Err(value("zeroing.percent", percent.to_string(), reason));
        }
        let call = self.call_seconds.map_or(default.call, Duration::from_secs);
        if call.as_secs() > LONGEST_ZERO_CALL {
            return Err(value("zeroing.callSeconds", call.as_secs().to_string(), format!("must be at most {LONGEST_ZERO_CALL}")));
        }
        Ok(Zeroing { percent, call })
    }
}

impl FilePool {
    /// Checks the pool at this place of the list.
    pub(super) fn check(&self, at: usize) -> Result<PoolConfig, ConfigError> {
        let key = |name: &str| format!("pools[{at}].{name}");
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if self.name.is_empty() || self.name.len() > 63 || !self.name.bytes().all(plain) {
            return Err(value(key("name"), &self.name, "must be 1 to 63 letters, digits, '-', '_' and '.'"));
        }
        let vg = VgName::new(&self.volume_group).map_err(|why| value(key("volumeGroup"), &self.volume_group, why.to_string()))?;
        let size = |name: &str, text: &str| parse_size(text).map_err(|why| value(key(name), text, why.to_string()));
        let layout = match self.layout {
            FileLayout::Linear => self.linear(key)?,
            FileLayout::Thin => LayoutConfig::Thin {
                pool: self.thin_pool.as_deref().map(|name| lv_name(key("thinPool"), name)).transpose()?,
                create: self.create_thin_pool.as_deref().map(|text| size("createThinPool", text)).transpose()?,
                overprovision_percent: match self.overprovision_percent {
                    Some(0) => return Err(value(key("overprovisionPercent"), "0", "must be at least 1")),
                    other => other.unwrap_or(OVERPROVISION_PERCENT),
                },
                if_present: false,
            },
        };
        let default_size = self.default_size.as_deref().map_or(Ok(DEFAULT_SIZE), |text| size("defaultSize", text))?;
        Ok(PoolConfig { name: self.name.clone(), vg, layout, default_size, is_default: self.default })
    }

    fn linear(&self, key: impl Fn(&str) -> String) -> Result<LayoutConfig, ConfigError> {
        let overprovision = self.overprovision_percent.map(|percent| percent.to_string());
        for (name, given) in
            [("thinPool", &self.thin_pool), ("createThinPool", &self.create_thin_pool), ("overprovisionPercent", &overprovision)]
        {
            if let Some(text) = given {
                return Err(value(key(name), text, "goes with layout thin only"));
            }
        }
        Ok(LayoutConfig::Linear)
    }
}
