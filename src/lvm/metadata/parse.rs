//! Builds the model from the tree of a metadata text.

use std::collections::HashSet;

use crate::types::{Extents, LvUuid, NameError, PvUuid, Sectors, VgName, VgUuid};

use super::model::{Lv, Pv, Segment, SegmentKind, Stripe, Vg};
use super::text::{self, Section, TextError, Value};

/// Why a text cannot be trusted as the metadata of a volume group.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// The text is not in LVM's format.
    #[error("cannot parse the metadata text")]
    Text(#[from] TextError),
    /// The text has another kind or version.
    #[error("the text is not LVM metadata of version 1: {0}")]
    Kind(&'static str),
    /// A required value is missing or malformed.
    #[error("{object} in the metadata: {key} is missing or malformed")]
    Key {
        /// As `volume group x` or `logical volume y`.
        object: String,
        key: &'static str,
    },
    /// The driver cannot use the group's name.
    #[error("volume group {name:?} has a name that cannot be used")]
    Name { name: String, source: NameError },
    /// Two objects share a UUID.
    #[error("{object} in the metadata: its UUID is used twice")]
    Twice {
        /// The second of the two.
        object: String,
    },
    /// The segments of an LV do not form one volume.
    #[error("{object} in the metadata: {fault}")]
    Segments { object: String, fault: &'static str },
}

/// A section with the name that errors use for it.
struct Object<'s, 'a> {
    kind: &'static str,
    name: &'s str,
    section: &'s Section<'a>,
}

impl<'s, 'a> Object<'s, 'a> {
    fn title(&self) -> String {
        format!("{} {}", self.kind, self.name)
    }

    fn error(&self, key: &'static str) -> MetadataError {
        MetadataError::Key { object: self.title(), key }
    }

    fn fault(&self, fault: &'static str) -> MetadataError {
        MetadataError::Segments { object: self.title(), fault }
    }

    /// A number that is not negative; `None` if the key is missing.
    fn maybe_number(&self, key: &'static str) -> Result<Option<u64>, MetadataError> {
        match self.section.get(key) {
            None => Ok(None),
            Some(text::Node::Value(Value::Int(number))) => u64::try_from(*number).map(Some).map_err(|_| self.error(key)),
            Some(_) => Err(self.error(key)),
        }
    }

    fn number(&self, key: &'static str) -> Result<u64, MetadataError> {
        self.maybe_number(key)?.ok_or_else(|| self.error(key))
    }

    /// A string; `None` if the key is missing.
    fn maybe_text(&self, key: &'static str) -> Result<Option<String>, MetadataError> {
        match self.section.get(key) {
            None => Ok(None),
            Some(text::Node::Value(Value::Text(text))) => Ok(Some(text.clone().into_owned())),
            Some(_) => Err(self.error(key)),
        }
    }

    fn text(&self, key: &'static str) -> Result<String, MetadataError> {
        self.maybe_text(key)?.ok_or_else(|| self.error(key))
    }

    fn uuid<T>(&self, make: impl Fn(&str) -> Option<T>) -> Result<T, MetadataError> {
        make(&self.text("id")?).ok_or_else(|| self.error("id"))
    }

    /// The strings of an array; none if the key is missing.
    fn words(&self, key: &'static str) -> Result<Vec<&'s str>, MetadataError> {
        match self.section.get(key) {
            None => Ok(Vec::new()),
            Some(text::Node::Value(Value::Text(text))) => Ok(vec![text.as_ref()]),
            Some(text::Node::Value(Value::List(items))) => items
                .iter()
                .map(|item| match item {
                    Value::Text(text) => Ok(text.as_ref()),
                    _ => Err(self.error(key)),
                })
                .collect(),
            Some(_) => Err(self.error(key)),
        }
    }

    /// The same, owned.
    fn texts(&self, key: &'static str) -> Result<Vec<String>, MetadataError> {
        Ok(self.words(key)?.into_iter().map(str::to_owned).collect())
    }

    /// The status flags, including those in `flags`, which LVM separates so that older versions ignore them.
    fn flags(&self) -> Result<Flags<'s>, MetadataError> {
        if self.section.get("status").is_none() {
            return Err(self.error("status"));
        }
        let mut flags = self.words("status")?;
        flags.extend(self.words("flags")?);
        Ok(Flags(flags))
    }

    /// The subsections of a section; none if the key is missing.
    fn children(&self, key: &'static str, kind: &'static str) -> Result<Vec<Object<'s, 'a>>, MetadataError> {
        match self.section.get(key) {
            None => Ok(Vec::new()),
            Some(text::Node::Section(all)) => Ok(all.sections().map(|(name, section)| Object { kind, name, section }).collect()),
            Some(text::Node::Value(_)) => Err(self.error(key)),
        }
    }
}

struct Flags<'s>(Vec<&'s str>);

impl Flags<'_> {
    fn contains(&self, flag: &str) -> bool {
        self.0.contains(&flag)
    }
}

/// The names that segments may mention.
struct Names<'s> {
    pvs: HashSet<&'s str>,
    lvs: HashSet<&'s str>,
}

/// Parses the metadata of one volume group.
pub(super) fn vg(bytes: &[u8]) -> Result<Vg, MetadataError> {
    let root = text::parse(bytes)?;
    match root.value("contents") {
        Some(Value::Text(text)) if text == "Text Format Volume Group" => {}
        _ => return Err(MetadataError::Kind("it has other contents")),
    }
    if root.value("version") != Some(&Value::Int(1)) {
        return Err(MetadataError::Kind("it has another version"));
    }
    let mut groups = root.sections();
    let (name, section) = groups.next().ok_or(MetadataError::Kind("it has no volume group"))?;
    if groups.next().is_some() {
        return Err(MetadataError::Kind("it has more than one volume group"));
    }
    let group = Object { kind: "volume group", name, section };
    let flags = group.flags()?;
    let extent_size = Sectors(group.number("extent_size")?);
    if extent_size.0 == 0 || extent_size.to_bytes().0 == u64::MAX {
        return Err(group.error("extent_size"));
    }

    let pv_objects = group.children("physical_volumes", "physical volume")?;
    let lv_objects = group.children("logical_volumes", "logical volume")?;
    let names = Names { pvs: pv_objects.iter().map(|o| o.name).collect(), lvs: lv_objects.iter().map(|o| o.name).collect() };
    let pvs = unique(&pv_objects, |object| pv(object, extent_size), |pv| pv.uuid.as_str())?;
    let lvs = unique(&lv_objects, |object| lv(object, &names), |lv| lv.uuid.as_str())?;
    for (object, lv) in lv_objects.iter().zip(&lvs) {
        within(object, lv, &pvs)?;
    }

    Ok(Vg {
        uuid: group.uuid(VgUuid::new)?,
        name: VgName::new(name).map_err(|source| MetadataError::Name { name: name.to_owned(), source })?,
        seqno: group.number("seqno")?,
        extent_size,
        writable: flags.contains("WRITE") || flags.contains("WRITE_LOCKED"),
        exported: flags.contains("EXPORTED"),
        autoactivation: !flags.contains("NOAUTOACTIVATE"),
        partial: pvs.iter().any(|pv| pv.missing),
        system_id: group.maybe_text("system_id")?.filter(|id| !id.is_empty()),
        lock_type: group.maybe_text("lock_type")?.filter(|kind| kind != "none"),
        tags: group.texts("tags")?,
        max_lv: group.maybe_number("max_lv")?.unwrap_or(0),
        pvs,
        lvs,
        metadata_bytes: bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1),
    })
}

/// Reads all objects of a kind and checks that no UUID occurs twice.
fn unique<T>(
    objects: &[Object<'_, '_>],
    read: impl Fn(&Object<'_, '_>) -> Result<T, MetadataError>,
    uuid: impl Fn(&T) -> &str,
) -> Result<Vec<T>, MetadataError> {
    let all: Vec<T> = objects.iter().map(read).collect::<Result<_, _>>()?;
    let mut uuids = HashSet::new();
    for (object, item) in objects.iter().zip(&all) {
        if !uuids.insert(uuid(item)) {
            return Err(MetadataError::Twice { object: object.title() });
        }
    }
    Ok(all)
}

fn pv(object: &Object<'_, '_>, extent_size: Sectors) -> Result<Pv, MetadataError> {
    let flags = object.flags()?;
    let pe_start = Sectors(object.number("pe_start")?);
    let pe_count = Extents(object.number("pe_count")?);
    let end = pe_count.0.checked_mul(extent_size.0).and_then(|length| length.checked_add(pe_start.0));
    if end.is_none_or(|sectors| Sectors(sectors).to_bytes().0 == u64::MAX) {
        return Err(object.error("pe_count"));
    }
    Ok(Pv {
        uuid: object.uuid(PvUuid::new)?,
        key: object.name.to_owned(),
        device: object.maybe_text("device")?,
        missing: flags.contains("MISSING"),
        allocatable: flags.contains("ALLOCATABLE"),
        dev_size: Sectors(object.maybe_number("dev_size")?.unwrap_or(0)),
        pe_start,
        pe_count,
    })
}

/// Checks that an LV's extents are on its PVs: a write through its map must not land elsewhere.
fn within(object: &Object<'_, '_>, lv: &Lv, pvs: &[Pv]) -> Result<(), MetadataError> {
    for segment in &lv.segments {
        let (places, length) = segment.places();
        for place in places {
            let Stripe::Pv { key, start } = place else { continue };
            let size = pvs.iter().find(|pv| pv.key == *key).map_or(0, |pv| pv.pe_count.0);
            if start.0.checked_add(length.0).is_none_or(|end| end > size) {
                return Err(object.fault("a segment is outside its PV"));
            }
        }
    }
    Ok(())
}

fn lv(object: &Object<'_, '_>, names: &Names<'_>) -> Result<Lv, MetadataError> {
    let flags = object.flags()?;
    let mut segments = object
        .section
        .sections()
        .map(|(name, section)| segment(object, &Object { kind: object.kind, name, section }, names))
        .collect::<Result<Vec<_>, _>>()?;
    if object.number("segment_count")? != segments.len() as u64 {
        return Err(object.fault("segment_count is not the number of its segments"));
    }
    segments.sort_by_key(|segment| segment.start);
    let mut end = 0;
    for segment in &segments {
        if segment.start.0 != end {
            return Err(object.fault("its segments leave a gap or overlap"));
        }
        end = end.checked_add(segment.count.0).ok_or_else(|| object.fault("it is impossibly large"))?;
    }
    Ok(Lv {
        uuid: object.uuid(LvUuid::new)?,
        name: object.name.to_owned(),
        visible: flags.contains("VISIBLE"),
        writable: flags.contains("WRITE") || flags.contains("WRITE_LOCKED"),
        activation_skip: flags.contains("ACTIVATION_SKIP"),
        autoactivation: !flags.contains("NOAUTOACTIVATE"),
        error_when_full: flags.contains("ERROR_WHEN_FULL"),
        tags: object.texts("tags")?,
        // Old 32-bit builds of LVM wrote nonsense here; nothing relies on it.
        created: object.maybe_number("creation_time").unwrap_or(None),
        segments,
    })
}

/// Reads a segment; errors name the LV.
fn segment(lv: &Object<'_, '_>, own: &Object<'_, '_>, names: &Names<'_>) -> Result<Segment, MetadataError> {
    let here = Object { kind: lv.kind, name: lv.name, section: own.section };
    let count = Extents(here.number("extent_count")?);
    if count.0 == 0 {
        return Err(here.fault("a segment is empty"));
    }
    let type_name = here.maybe_text("type")?.unwrap_or_else(|| "striped".to_owned());
    // Flags after a plus keep older versions of LVM from touching the segment.
    let kind = match type_name.split('+').next().unwrap_or_default() {
        "striped" | "linear" => striped(&here, names, count)?,
        "thin-pool" => SegmentKind::ThinPool {
            data: here.text("pool")?,
            metadata: here.text("metadata")?,
            transaction_id: here.number("transaction_id")?,
            chunk_size: Sectors(here.number("chunk_size")?),
            zero_new_blocks: here.maybe_number("zero_new_blocks")?.unwrap_or(0) != 0,
            discards: here.maybe_text("discards")?.unwrap_or_else(|| "ignore".to_owned()),
            pending: here.section.sections().count(),
        },
        "thin" => SegmentKind::Thin {
            pool: here.text("thin_pool")?,
            device_id: here.number("device_id")?,
            transaction_id: here.number("transaction_id")?,
            origin: here.maybe_text("origin")?,
            external_origin: here.maybe_text("external_origin")?,
            merging: here.section.get("merge").is_some(),
        },
        "snapshot" => {
            let merging = here.maybe_text("merging_store")?;
            SegmentKind::Snapshot {
                origin: here.text("origin")?,
                chunk_size: Sectors(here.number("chunk_size")?),
                merging: merging.is_some(),
                cow: merging.map_or_else(|| here.text("cow_store"), Ok)?,
            }
        }
        other => SegmentKind::Other {
            type_name: other.to_owned(),
            refs: references(own.section, names),
            areas: own.section.values().flat_map(|(_, value)| areas(value, names)).collect(),
        },
    };
    Ok(Segment { start: Extents(here.number("start_extent")?), count, kind })
}

fn striped(here: &Object<'_, '_>, names: &Names<'_>, count: Extents) -> Result<SegmentKind, MetadataError> {
    let value = here.section.value("stripes").ok_or_else(|| here.error("stripes"))?;
    let stripes = areas(value, names);
    let stripe_count = here.number("stripe_count")?;
    let listed = matches!(value, Value::List(items) if items.len() == stripes.len() * 2);
    if !listed || stripes.len() as u64 != stripe_count || stripe_count == 0 {
        return Err(here.error("stripes"));
    }
    if !count.0.is_multiple_of(stripe_count) {
        return Err(here.fault("its extents do not divide evenly into its stripes"));
    }
    let stripe_size = if stripe_count == 1 { 0 } else { here.number("stripe_size")? };
    Ok(SegmentKind::Striped { stripes, stripe_size: Sectors(stripe_size) })
}

/// The pairs of a known name and a first extent in an array.
fn areas(value: &Value<'_>, names: &Names<'_>) -> Vec<Stripe> {
    let Value::List(items) = value else { return Vec::new() };
    items
        .windows(2)
        .filter_map(|pair| match pair {
            [Value::Text(name), Value::Int(start)] => {
                let start = Extents(u64::try_from(*start).ok()?);
                if names.pvs.contains(name.as_ref()) {
                    Some(Stripe::Pv { key: name.clone().into_owned(), start })
                } else if names.lvs.contains(name.as_ref()) {
                    Some(Stripe::Lv { name: name.clone().into_owned(), start })
                } else {
                    None
                }
            }
            _ => None,
        })
        .collect()
}

/// The LV names among all strings of a section and its subsections.
fn references(section: &Section<'_>, names: &Names<'_>) -> Vec<String> {
    fn walk(value: &Value<'_>, names: &Names<'_>, lvs: &mut Vec<String>) {
        match value {
            Value::Text(text) if names.lvs.contains(text.as_ref()) && !lvs.iter().any(|f| f == text) => {
                lvs.push(text.clone().into_owned());
            }
            Value::List(items) => items.iter().for_each(|item| walk(item, names, lvs)),
            _ => {}
        }
    }
    let mut lvs = Vec::new();
    for (name, value) in section.values() {
        // These are LVM's keywords, not names of LVs.
        if name != "type" && name != "tags" {
            walk(value, names, &mut lvs);
        }
    }
    for (_, inner) in section.sections() {
        for name in references(inner, names) {
            if !lvs.contains(&name) {
                lvs.push(name);
            }
        }
    }
    lvs
}
