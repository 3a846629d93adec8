//! `volume_context` of a volume: the `volumeAttributes` of its PersistentVolume. Volumes that this driver made need none. Who writes a
//! PersistentVolume by hand may repeat the volume group and the LV in readable form. They must agree with the handle, so that a wrongly
//! copied handle gives nobody another's data.

use crate::types::{Error, VgName, VolumeId};

/// The volume group, by its name or UUID.
const GROUP: &str = "volumegroup";
/// The volume, by the name of its LV or by its whole handle.
const VOLUME: &str = "volumeID";

/// Prefixes of keys that Kubernetes adds: the provisioner's identity, and the pod of a volume. They do not describe the volume, and one
/// of them may hold a pod's tokens, so their values are not read.
const OF_KUBERNETES: [&str; 2] = ["storage.kubernetes.io/", "csi.storage.k8s.io/"];

/// What `volume_context` repeats of the handle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct VolumeContext {
    group: Option<String>,
    volume: Option<String>,
}

impl VolumeContext {
    /// Reads the entries of `volume_context`.
    ///
    /// # Errors
    /// [`Error::Invalid`] with an unknown key: a misspelt one would check nothing.
    pub fn parse<'a>(entries: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, Error> {
        let mut context = Self::default();
        for (key, value) in entries {
            match key {
                GROUP => context.group = Some(value.to_owned()),
                VOLUME => context.volume = Some(value.to_owned()),
                _ if OF_KUBERNETES.iter().any(|prefix| key.starts_with(prefix)) => {}
                _ => return Err(wrong(key, value, format!("this key is not known; known: {GROUP}, {VOLUME}"))),
            }
        }
        Ok(context)
    }

    /// Compares it with the handle. `names` are the names of the handle's volume group, the present one first. A renamed group has two,
    /// since a PersistentVolume cannot be changed. If `names` is empty, the group is unknown and not compared.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the key that disagrees.
    pub fn check(&self, id: &VolumeId, names: &[&VgName]) -> Result<(), Error> {
        if let Some(volume) = &self.volume
            && *volume != id.to_string()
            && *volume != id.lv.as_str()
        {
            return Err(wrong(VOLUME, volume, format!("volume_id names another volume, {}; its handle is {id}", id.lv)));
        }
        if let (Some(group), Some(now)) = (&self.group, names.first())
            && *group != id.vg.as_str()
            && !names.iter().any(|name| name.as_str() == group)
        {
            return Err(wrong(GROUP, group, format!("volume_id names another volume group, {now} with the UUID {}", id.vg)));
        }
        Ok(())
    }
}

fn wrong(key: &str, value: &str, reason: String) -> Error {
    Error::invalid(format!("volume_context[{key}]"), value, reason)
}

#[cfg(test)]
mod tests {
    use super::super::testing::vg_uuid;
    use super::*;
    use crate::types::LvName;

    fn said(entries: &[(&'static str, &str)]) -> Result<(), Error> {
        let id = VolumeId { vg: vg_uuid(), lv: LvName::new("data").unwrap() };
        let (now, before) = (VgName::new("vg0").unwrap(), VgName::new("old").unwrap());
        VolumeContext::parse(entries.iter().copied())?.check(&id, &[&now, &before])
    }

    #[test]
    fn the_context_must_agree_with_the_handle() {
        let (uuid, whole) = (vg_uuid().to_string(), format!("{}/data", vg_uuid()));
        for good in [
            &[][..],
            &[("volumegroup", "vg0"), ("volumeID", "data")],
            &[("volumegroup", "old"), ("volumeID", &whole)],
            &[("volumegroup", &uuid)],
            &[("storage.kubernetes.io/csiProvisionerIdentity", "1-x"), ("csi.storage.k8s.io/pod.name", "p")],
        ] {
            said(good).unwrap();
        }
        for (bad, word) in [
            (&[("volumegroup", "vg1")][..], "volume_context[volumegroup]"),
            (&[("volumegroup", "")], "volume_context[volumegroup]"),
            (&[("volumegroup", "vg0"), ("volumeID", "other")], "volume_context[volumeID]"),
            (&[("volumeID", "vg0/data")], "volume_context[volumeID]"),
            (&[("volumeGroup", "vg0")], "volume_context[volumeGroup]"),
        ] {
            let error = said(bad).unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }) && error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn a_token_is_in_no_error_and_no_debug_output() {
        let tokens = [("csi.storage.k8s.io/serviceAccount.tokens", "eyJ-secret"), ("volumeid", "x")];
        let error = VolumeContext::parse(tokens).unwrap_err();
        assert!(!format!("{error:?}{error}").contains("eyJ"), "{error}");
        assert!(!format!("{:?}", VolumeContext::parse([tokens[0]]).unwrap()).contains("eyJ"));
    }
}
