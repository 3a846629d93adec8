//! The YAML file, key by key. Unknown and duplicate keys are errors with line and column.

use std::path::{Component, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::types::{
    Bytes, LayoutConfig, NewThinPool, PoolCare, PoolConfig, Reserve, ThinPoolConfig, VgName, Zeroing, parse_size,
};

use super::{ConfigError, DEFAULT_SIZE, EPHEMERAL_SIZE, lv_name, value};

/// By default a thin pool promises no more than its size.
pub(super) const OVERPROVISION_PERCENT: u32 = 100;
/// Default limit. Snapshots take space in the group's LVM metadata, which all its volumes share: about 700 of them fill an area of
/// the size that `vgcreate` makes by default.
pub(super) const MAX_SNAPSHOTS: usize = 64;

/// With a smaller share of a disk's time, zeroing would never finish.
const LEAST_ZERO_PERCENT: u32 = 10;
/// A call must end within kubelet's two minutes, including LVM's commands.
const LONGEST_ZERO_CALL: u64 = 100;
/// The longest configurable interval for polling a thin pool, in seconds.
const LONGEST_POLL: u64 = 3600;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct File {
    pub(super) driver_name: Option<String>,
    pub(super) node_id: Option<String>,
    pub(super) machine_id: Option<String>,
    pub(super) endpoint: Option<String>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) run_dir: Option<PathBuf>,
    pub(super) lock_wait_seconds: Option<u64>,
    pub(super) max_volumes_per_node: Option<usize>,
    pub(super) attach_required: Option<bool>,
    pub(super) metrics_address: Option<String>,
    pub(super) health_address: Option<String>,
    pub(super) agent_address: Option<String>,
    pub(super) tls: Option<FileTls>,
    #[serde(default)]
    pub(super) agents: Vec<FileAgent>,
    pub(super) kubernetes: Option<FileKubernetes>,
    pub(super) wedged_after_seconds: Option<u64>,
    pub(super) housekeeping_seconds: Option<u64>,
    #[serde(default)]
    pub(super) zeroing: FileZeroing,
    #[serde(default)]
    pub(super) metadata_copies: FileCopies,
    pub(super) devices: Option<Vec<PathBuf>>,
    #[serde(default)]
    pub(super) pools: Vec<FilePool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct FileTls {
    pub(super) ca: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct FileKubernetes {
    pub(super) agent_selector: String,
    pub(super) authority_secret: String,
    pub(super) node_service_account: String,
    pub(super) certificate_minutes: Option<u32>,
    pub(super) grow_seconds: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct FileAgent {
    pub(super) node: String,
    pub(super) address: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct FileZeroing {
    percent: Option<u32>,
    call_seconds: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct FileCopies {
    pub(super) dir: Option<PathBuf>,
    pub(super) minutes: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct FilePool {
    name: String,
    volume_group: String,
    layout: FileLayout,
    thin_pool: Option<String>,
    create_thin_pool: Option<String>,
    thin_pool_metadata: Option<String>,
    thin_pool_chunk: Option<String>,
    overprovision_percent: Option<u32>,
    max_snapshots_per_volume: Option<usize>,
    thin_pool_full_percent: Option<u64>,
    thin_pool_reserve: Option<String>,
    thin_pool_poll_seconds: Option<u64>,
    auto_extend: Option<bool>,
    default_size: Option<String>,
    #[serde(default)]
    default: bool,
    #[serde(default)]
    ephemeral: bool,
    ephemeral_max_size: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FileLayout {
    Linear,
    Thin,
}

impl File {
    /// Parses the text. The error is the parser's message, with line and column.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        serde_saphyr::from_str(text).map_err(|error| error.to_string())
    }
}

pub(super) fn devices(given: Option<Vec<PathBuf>>) -> Result<Option<Vec<PathBuf>>, ConfigError> {
    let Some(paths) = given else { return Ok(None) };
    if paths.is_empty() {
        return Err(value("devices", "[]", "must name at least one device, or be left out"));
    }
    match paths.iter().find(|path| !path.starts_with("/dev/") || path.components().any(|part| part == Component::ParentDir)) {
        Some(wrong) => Err(value("devices", wrong.display().to_string(), "must be a path under /dev, such as /dev/disk/by-id/…")),
        None => Ok(Some(paths)),
    }
}

impl FileZeroing {
    /// Checks the values and fills in defaults.
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
    /// Checks the pool at this index.
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
            FileLayout::Thin => LayoutConfig::Thin(ThinPoolConfig {
                pool: self.thin_pool.as_deref().map(|name| lv_name(key("thinPool"), name)).transpose()?,
                create: self.new_thin_pool(key)?,
                overprovision_percent: match self.overprovision_percent {
                    Some(0) => return Err(value(key("overprovisionPercent"), "0", "must be at least 1")),
                    other => other.unwrap_or(OVERPROVISION_PERCENT),
                },
                max_snapshots: self.max_snapshots_per_volume.unwrap_or(MAX_SNAPSHOTS),
                care: self.care(key)?,
                if_present: false,
            }),
        };
        let default_size = self.default_size.as_deref().map_or(Ok(DEFAULT_SIZE), |text| size("defaultSize", text))?;
        let ephemeral = self.ephemeral(key, default_size)?;
        Ok(PoolConfig { name: self.name.clone(), vg, layout, default_size, is_default: self.default, ephemeral })
    }

    /// The largest inline ephemeral volume. By default none is allowed, because anyone who may create a pod could fill the disks.
    fn ephemeral(&self, key: impl Fn(&str) -> String, default_size: Bytes) -> Result<Option<Bytes>, ConfigError> {
        let wrong = |text: &str, why: String| Err(value(key("ephemeralMaxSize"), text, why));
        match self.ephemeral_max_size.as_deref() {
            None => Ok(self.ephemeral.then_some(EPHEMERAL_SIZE.max(default_size))),
            Some(text) if !self.ephemeral => wrong(text, "needs ephemeral: true".to_owned()),
            Some(text) => match parse_size(text) {
                Err(why) => wrong(text, why.to_string()),
                Ok(most) if most < default_size => wrong(text, format!("must not be less than defaultSize, {default_size}")),
                Ok(most) => Ok(Some(most)),
            },
        }
    }

    fn linear(&self, key: impl Fn(&str) -> String) -> Result<LayoutConfig, ConfigError> {
        let number = |number: Option<u64>| number.map(|number| number.to_string());
        for (name, given) in [
            ("thinPool", self.thin_pool.clone()),
            ("createThinPool", self.create_thin_pool.clone()),
            ("thinPoolMetadata", self.thin_pool_metadata.clone()),
            ("thinPoolChunk", self.thin_pool_chunk.clone()),
            ("overprovisionPercent", number(self.overprovision_percent.map(u64::from))),
            ("maxSnapshotsPerVolume", self.max_snapshots_per_volume.map(|most| most.to_string())),
            ("thinPoolFullPercent", number(self.thin_pool_full_percent)),
            ("thinPoolReserve", self.thin_pool_reserve.clone()),
            ("thinPoolPollSeconds", number(self.thin_pool_poll_seconds)),
            ("autoExtend", self.auto_extend.map(|extend| extend.to_string())),
        ] {
            if let Some(text) = given {
                return Err(value(key(name), text, "is only for layout thin"));
            }
        }
        Ok(LayoutConfig::LINEAR)
    }

    fn new_thin_pool(&self, key: impl Fn(&str) -> String) -> Result<Option<NewThinPool>, ConfigError> {
        let size = |name: &str, text: &Option<String>| {
            let read = |text: &String| parse_size(text).map_err(|why| value(key(name), text, why.to_string()));
            text.as_ref().map(read).transpose()
        };
        let (metadata, chunk) =
            (size("thinPoolMetadata", &self.thin_pool_metadata)?, size("thinPoolChunk", &self.thin_pool_chunk)?);
        let wrong = |name: &str, text: &Option<String>, why: String| Err(value(key(name), text.clone().unwrap_or_default(), why));
        if let Some(bytes) = metadata
            && !(NewThinPool::SMALLEST_METADATA..=NewThinPool::LARGEST_METADATA).contains(&bytes)
        {
            let (least, most) = (NewThinPool::SMALLEST_METADATA, NewThinPool::LARGEST_METADATA);
            return wrong("thinPoolMetadata", &self.thin_pool_metadata, format!("must be between {least} and {most}"));
        }
        if let Some(bytes) = chunk
            && (bytes > NewThinPool::LARGEST_CHUNK || !bytes.0.is_multiple_of(NewThinPool::SMALLEST_CHUNK.0))
        {
            let (unit, most) = (NewThinPool::SMALLEST_CHUNK, NewThinPool::LARGEST_CHUNK);
            return wrong("thinPoolChunk", &self.thin_pool_chunk, format!("must be a multiple of {unit}, at most {most}"));
        }
        match size("createThinPool", &self.create_thin_pool)? {
            Some(size) => Ok(Some(NewThinPool { size, metadata, chunk })),
            None if metadata.is_some() => {
                wrong("thinPoolMetadata", &self.thin_pool_metadata, "goes with createThinPool only".to_owned())
            }
            None if chunk.is_some() => wrong("thinPoolChunk", &self.thin_pool_chunk, "goes with createThinPool only".to_owned()),
            None => Ok(None),
        }
    }

    fn care(&self, key: impl Fn(&str) -> String) -> Result<PoolCare, ConfigError> {
        let usual = PoolCare::default();
        let within = |name: &str, given: Option<u64>, usual: u64, least: u64, most: u64| match given {
            Some(number) if !(least..=most).contains(&number) => {
                Err(value(key(name), number.to_string(), format!("must be between {least} and {most}")))
            }
            other => Ok(other.unwrap_or(usual)),
        };
        let reserve = match self.thin_pool_reserve.as_deref() {
            None => usual.reserve,
            Some(text) => reserve(text).map_err(|why| value(key("thinPoolReserve"), text, why))?,
        };
        Ok(PoolCare {
            reserve,
            full_percent: within("thinPoolFullPercent", self.thin_pool_full_percent, usual.full_percent, 1, 100)?,
            auto_extend: self.auto_extend.unwrap_or(usual.auto_extend),
            poll: Duration::from_secs(within(
                "thinPoolPollSeconds",
                self.thin_pool_poll_seconds,
                usual.poll.as_secs(),
                1,
                LONGEST_POLL,
            )?),
        })
    }
}

fn reserve(text: &str) -> Result<Reserve, String> {
    let Some(number) = text.strip_suffix('%') else {
        return parse_size(text).map(Reserve::Bytes).map_err(|why| format!("{why}; or a percentage such as 10%"));
    };
    match number.parse() {
        Ok(percent) if (1..=99).contains(&percent) => Ok(Reserve::Percent(percent)),
        _ => Err("must be a size, or a percentage from 1% to 99%".to_owned()),
    }
}
