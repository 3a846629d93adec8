//! Inline ephemeral volumes: they belong to one pod, whose spec requests them, and live from publication to unpublication. No
//! controller takes part. The driver finds one again by the LV name derived from its id, and by its tag with the pod's directory.

use std::path::Path;

use crate::types::{Bytes, EphemeralId, Error, FsKind, Object, Pool, PoolConfig, parse_size};

use super::inventory::{Class, Inventory, Volume};
use super::tag::{Directory, Marks};
use super::{Decision, FOR_VOLUMES, PoolUse, SizeRange, Step, capacity, may_change, may_reshape, name, room_for_metadata};

/// Key by which kubelet marks an inline ephemeral volume.
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
const POD_UID: &str = "csi.storage.k8s.io/pod.uid";
/// Prefix of kubelet's other keys about the pod. One of them may hold the pod's tokens, so their values are not read.
const OF_KUBERNETES: &str = "csi.storage.k8s.io/";
/// Key of the pool's name; without it the default pool is used.
const POOL: &str = "pool";
/// Key of the size, as a quantity of Kubernetes; without it the pool's `defaultSize` is used.
const SIZE: &str = "size";

/// What a pod requests for its volume (`volumeAttributes`), and the pod's UID from kubelet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct InlineSpec {
    /// Name of the pool.
    pub pool: Option<String>,
    pub size: Option<Bytes>,
    /// UID of the pod.
    pub pod: Option<String>,
}

impl InlineSpec {
    /// Reads the entries of `volume_context`; `None` if the volume is not an inline ephemeral one.
    ///
    /// # Errors
    /// [`Error::Invalid`] with a key that is unknown or has a wrong value.
    pub fn parse<'a>(entries: impl IntoIterator<Item = (&'a str, &'a str)> + Clone) -> Result<Option<Self>, Error> {
        if !entries.clone().into_iter().any(|(key, value)| key == EPHEMERAL && value == "true") {
            return Ok(None);
        }
        let mut spec = Self::default();
        for (key, value) in entries {
            let wrong = |reason: String| Error::invalid(format!("volume_context[{key}]"), value, reason);
            match key {
                POOL => spec.pool = Some(value.to_owned()),
                SIZE => spec.size = Some(parse_size(value).map_err(|why| wrong(why.to_string()))?),
                POD_UID => spec.pod = Some(value.to_owned()),
                _ if key.starts_with(OF_KUBERNETES) => {}
                _ => return Err(wrong(format!("this key is not known; known: {POOL}, {SIZE}"))),
            }
        }
        Ok(Some(spec))
    }

    /// The requested pool, and the largest size of an inline volume in it.
    ///
    /// # Errors
    /// [`Error::Invalid`] if no pool has that name, or it does not offer inline volumes.
    pub fn pool<'a>(&self, pools: &'a [PoolConfig]) -> Result<(&'a PoolConfig, Bytes), Error> {
        let named = |pool: &&PoolConfig| self.pool.as_ref().map_or(pool.is_default, |name| pool.name == *name);
        let found = pools.iter().find(named).and_then(|pool| pool.ephemeral.map(|most| (pool, most)));
        found.ok_or_else(|| {
            let giving: Vec<&str> = pools.iter().filter(|pool| pool.ephemeral.is_some()).map(|pool| pool.name.as_str()).collect();
            let reason = match (&self.pool, giving.as_slice()) {
                (_, []) => "no pool of this node offers inline ephemeral volumes (ephemeral: true of a pool)".to_owned(),
                (Some(_), giving) => format!("this pool offers no inline ephemeral volumes; these do: {}", giving.join(", ")),
                (None, giving) => {
                    format!("the default pool offers no inline ephemeral volumes; name one that does: {}", giving.join(", "))
                }
            };
            Error::invalid(format!("volume_context[{POOL}]"), self.pool.as_deref().unwrap_or_default(), reason)
        })
    }

    /// The size to make: the requested one or `default`, and at least the smallest for the filesystem.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if that is more than `most`.
    pub fn size(&self, default: Bytes, most: Bytes, kind: FsKind) -> Result<Bytes, Error> {
        let size = self.size.unwrap_or(default).max(kind.minimal_size());
        if size > most {
            let reason = format!("it needs {size}, and inline volumes of this pool may have at most {most} (ephemeralMaxSize)");
            return Err(Error::OutOfRange { what: "the inline ephemeral volume".to_owned(), reason });
        }
        Ok(size)
    }

    /// The directory whose absence proves that nobody will publish or unpublish this volume again: the pod's directory, or the target's
    /// parent if the target is not in one.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the target has no parent, or the directory does not fit into a tag.
    pub fn directory(&self, target: &Path) -> Result<Directory, Error> {
        let wrong = || Error::invalid("target_path", target.display().to_string(), "a pod's directory must fit into an LVM tag");
        let parent = target.parent().ok_or_else(wrong)?;
        let of_pod = |above: &&Path| self.pod.as_deref().is_some_and(|uid| above.file_name().is_some_and(|name| name == uid));
        let directory = parent.ancestors().find(of_pod).unwrap_or(parent);
        directory.to_str().and_then(Directory::new).ok_or_else(wrong)
    }
}

/// A requested volume.
#[derive(Clone, Debug)]
pub struct Request {
    pub id: EphemeralId,
    /// See [`InlineSpec::directory`].
    pub directory: Directory,
    pub pool: Pool,
    pub size: Bytes,
}

/// Decides the next step to make a volume.
pub fn create(inventory: &Inventory, request: &Request, pool_use: Option<PoolUse>) -> Decision<Volume> {
    next(inventory, request, pool_use).unwrap_or_else(Decision::Refuse)
}

fn next(inventory: &Inventory, request: &Request, pool_use: Option<PoolUse>) -> Result<Decision<Volume>, Error> {
    let (vg, lv) = (&inventory.vg, name::of_ephemeral(&request.id));
    let what = format!("inline ephemeral volume {} in pool {}", request.id, request.pool.name);
    if let Some(volume) = inventory.ephemeral(&lv) {
        return Ok(Decision::AlreadyThere(volume.clone()));
    }
    if vg.lv(lv.as_str()).is_some() {
        let stranger = || {
            format!("LV {}/{lv} is not this driver's, or is damaged, and the driver leaves it alone; see lvs -o+tags", vg.name)
        };
        let difference = inventory.others(&lv).unwrap_or_else(stranger);
        return Err(Error::Differs { object: Object::Volume, id: request.id.to_string(), difference });
    }
    may_change(vg)?;
    may_reshape(vg, request.pool.placement.thin_pool().and_then(|pool| vg.lv(pool.as_str())), &what)?;
    let size = SizeRange { required: request.size, limit: Bytes(0) };
    let extents = size.extents(&what, request.size, vg.extent_bytes())?;
    room_for_metadata(vg, inventory.metadata_area, FOR_VOLUMES, &what)?;
    capacity::check_new(inventory, &request.pool, pool_use, extents).map_err(|short| short.of_new(&what))?;
    let marks = Marks { ephemeral: Some(request.directory.clone()), ..inventory.new_marks(&lv) };
    Ok(Decision::Do(Step::Lvm(request.pool.create(vg, lv, extents, marks.tags()))))
}

/// Decides the next step to remove a volume.
pub fn remove(inventory: &Inventory, volume: &Volume) -> Decision<()> {
    match inventory.class(volume.id.lv.as_str()) {
        Some(Class::Ephemeral(now)) if now.uuid == volume.uuid => {
            super::delete::remove(inventory, &volume.id.lv, &volume.uuid, "inline ephemeral volume", &volume.id.to_string())
        }
        _ => Decision::AlreadyThere(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{EXTENT, Group, linear_pool, lv, thin_pool};
    use super::*;
    use crate::lvm::command::Command;
    use crate::types::{Extents, LayoutConfig, VgName};

    fn id() -> EphemeralId {
        EphemeralId::parse(&format!("csi-{}", "0a".repeat(32))).unwrap()
    }

    fn request(pool: Pool, extents: u64) -> Request {
        Request { id: id(), directory: Directory::new("/pods/u").unwrap(), pool, size: Extents(extents).to_bytes(EXTENT) }
    }

    fn spec(entries: &[(&'static str, &'static str)]) -> Result<Option<InlineSpec>, Error> {
        InlineSpec::parse(entries.iter().copied())
    }

    #[test]
    fn a_pod_requests_a_pool_and_a_size_and_nothing_else() {
        let inline = (EPHEMERAL, "true");
        assert_eq!(spec(&[("pool", "a")]).unwrap(), None);
        assert_eq!(spec(&[(EPHEMERAL, "false"), ("other", "a")]).unwrap(), None);
        let entries =
            [inline, ("pool", "a"), ("size", "64Mi"), (POD_UID, "u-1"), ("csi.storage.k8s.io/serviceAccount.tokens", "eyJ")];
        let full = spec(&entries).unwrap().unwrap();
        assert_eq!(full, InlineSpec { pool: Some("a".into()), size: Some(Bytes(64 << 20)), pod: Some("u-1".into()) });
        for (key, value) in [("size", "64 MB"), ("size", "0"), ("Pool", "a"), ("volumegroup", "vg0"), ("fsType", "xfs")] {
            let error = spec(&[inline, (key, value)]).unwrap_err();
            assert!(error.to_string().contains(&format!("volume_context[{key}]")), "{error}");
        }
    }

    #[test]
    fn only_a_pool_that_offers_inline_volumes_gives_them_up_to_its_largest_size() {
        let pool = |name: &str, is_default, ephemeral: Option<u64>| PoolConfig {
            name: name.into(),
            vg: VgName::new("vg0").unwrap(),
            layout: LayoutConfig::LINEAR,
            default_size: Bytes::GIB,
            is_default,
            ephemeral: ephemeral.map(Bytes),
        };
        let named = |name: &str| InlineSpec { pool: Some(name.into()), ..InlineSpec::default() };
        let pools = [pool("a", true, None), pool("b", false, Some(2 << 30))];
        assert_eq!(named("b").pool(&pools).unwrap().1, Bytes(2 << 30));
        for (spec, pools) in
            [(named("a"), &pools[..]), (named("c"), &pools), (InlineSpec::default(), &pools), (named("a"), &pools[..1])]
        {
            assert!(matches!(spec.pool(pools), Err(Error::Invalid { .. })), "{spec:?}");
        }
        let sized = |mib: u64| InlineSpec { size: Some(Bytes(mib << 20)), ..InlineSpec::default() };
        let most = Bytes(2 << 30);
        assert_eq!(InlineSpec::default().size(Bytes::GIB, most, FsKind::Ext4).unwrap(), Bytes::GIB);
        assert_eq!(sized(1).size(Bytes::GIB, most, FsKind::Xfs).unwrap(), FsKind::Xfs.minimal_size());
        assert!(matches!(sized(2049).size(Bytes::GIB, most, FsKind::Ext4), Err(Error::OutOfRange { .. })));
        assert!(matches!(sized(1).size(Bytes::GIB, Bytes(1 << 20), FsKind::Ext4), Err(Error::OutOfRange { .. })));
    }

    #[test]
    fn the_directory_is_that_of_the_pod_if_the_target_lies_in_one() {
        let target = Path::new("/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~csi/scratch/mount");
        let of =
            |pod: Option<&str>| InlineSpec { pod: pod.map(str::to_owned), ..InlineSpec::default() }.directory(target).unwrap();
        assert_eq!(of(Some("u-1")).as_str(), "/var/lib/kubelet/pods/u-1");
        for other in [None, Some("u-2"), Some("mount"), Some("")] {
            assert_eq!(of(other).as_str(), target.parent().unwrap().to_str().unwrap(), "{other:?}");
        }
        for bad in ["/".to_owned(), format!("/{}/x", "a".repeat(255))] {
            assert!(matches!(InlineSpec::default().directory(Path::new(&bad)), Err(Error::Invalid { .. })), "{bad}");
        }
    }

    #[test]
    fn a_volume_is_made_once_and_its_tag_names_the_directory() {
        let Decision::Do(Step::Lvm(Command::CreateLinear { lv: made, extents, tags, .. })) =
            create(&Group::new().inventory(), &request(linear_pool(), 3), None)
        else {
            panic!()
        };
        assert_eq!((made, extents), (name::of_ephemeral(&id()), Extents(3)));
        assert!(tags.iter().any(|tag| tag.as_str() == "csi.e=/pods/u"), "{tags:?}");
        assert!(matches!(
            create(&Group::new().inventory(), &request(thin_pool(100), 3), None),
            Decision::Do(Step::Lvm(Command::CreateThin { .. }))
        ));
        let name: &'static str = Box::leak(name::of_ephemeral(&id()).to_string().into_boxed_str());
        let there = Group::new().with(lv(name, 3, &["lvm-csi=1", "csi.fs=ext4", "csi.e=/pods/u"])).inventory();
        assert!(matches!(create(&there, &request(linear_pool(), 9), None), Decision::AlreadyThere(_)));
        for tags in [&[][..], &["lvm-csi=1", "csi.fs=ext4"], &["lvm-csi=1"]] {
            let foreign = Group::new().with(lv(name, 3, tags)).inventory();
            let decision = create(&foreign, &request(linear_pool(), 3), None);
            assert!(matches!(decision, Decision::Refuse(Error::Differs { .. })), "{tags:?}: {decision:?}");
        }
        let decision = create(&Group::new().inventory(), &request(linear_pool(), 901), None);
        assert!(matches!(decision, Decision::Refuse(Error::Exhausted { .. })));
    }

    #[test]
    fn only_the_given_volume_is_removed() {
        let name: &'static str = Box::leak(name::of_ephemeral(&id()).to_string().into_boxed_str());
        let there = Group::new().with(lv(name, 3, &["lvm-csi=1", "csi.fs=ext4", "csi.e=/pods/u"])).inventory();
        let volume = there.ephemeral(&name::of_ephemeral(&id())).unwrap().clone();
        assert!(
            matches!(remove(&there, &volume), Decision::Do(Step::Lvm(Command::Remove { targets, .. })) if targets.len() == 1)
        );
        let another = Volume { uuid: crate::types::LvUuid::from_compact(&"x".repeat(32)).unwrap(), ..volume.clone() };
        assert!(matches!(remove(&there, &another), Decision::AlreadyThere(())));
        let taken = Group::new().with(lv(name, 3, &["lvm-csi=1", "csi.fs=ext4"])).inventory();
        assert!(matches!(remove(&taken, &volume), Decision::AlreadyThere(())));
    }
}
