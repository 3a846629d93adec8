//! The parameters of a StorageClass: the one list of keys for the controller, the agents, the chart and the documents.

use std::collections::BTreeMap;

use super::Error;

/// A key that the driver knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Parameter {
    /// Name of a configured pool.
    Pool,
}

/// Prefixes of keys that the sidecars add for a claim, a volume or a snapshot. They say nothing about the volume to make.
const OF_SIDECARS: [&str; 4] = [
    "csi.storage.k8s.io/pvc/",
    "csi.storage.k8s.io/pv/",
    "csi.storage.k8s.io/volumesnapshot/",
    "csi.storage.k8s.io/volumesnapshotcontent/",
];

impl Parameter {
    pub const ALL: [Self; 1] = [Self::Pool];

    /// The key, as a StorageClass has it.
    pub fn key(self) -> &'static str {
        match self {
            Self::Pool => "pool",
        }
    }

    /// What it means, as the documents say it.
    #[cfg(test)]
    fn meaning(self) -> &'static str {
        match self {
            Self::Pool => "the pool; the default one without it",
        }
    }

    fn of_key(key: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|parameter| parameter.key() == key)
    }
}

/// The parameters of a request, with keys that the driver knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Parameters(BTreeMap<Parameter, String>);

impl Parameters {
    /// Reads the map of a field. Keys of sidecars are left out.
    ///
    /// # Errors
    /// [`Error::Invalid`] with an unknown key: a misspelt one must not silently mean the default.
    pub fn read<'a>(field: &str, entries: impl IntoIterator<Item = (&'a String, &'a String)>) -> Result<Self, Error> {
        let mut known = BTreeMap::new();
        for (key, value) in entries {
            match Parameter::of_key(key) {
                Some(parameter) => {
                    known.insert(parameter, value.clone());
                }
                None if is_of_sidecars(key) => {}
                None => {
                    let keys = Parameter::ALL.map(Parameter::key).join(", ");
                    return Err(Error::invalid(
                        format!("{field}[{key}]"),
                        value,
                        format!("this key is not known; known: {keys}"),
                    ));
                }
            }
        }
        Ok(Self(known))
    }

    /// The value of a key, if it is there.
    pub fn get(&self, parameter: Parameter) -> Option<&str> {
        self.0.get(&parameter).map(String::as_str)
    }

    /// All keys with their values, in the order of the list.
    pub fn entries(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(parameter, value)| (parameter.key(), value.as_str()))
    }
}

/// Refuses every key of a field that has no parameters, except those of sidecars.
///
/// # Errors
/// [`Error::Invalid`] with the key.
pub fn refuse_parameters<'a>(field: &str, entries: impl IntoIterator<Item = (&'a String, &'a String)>) -> Result<(), Error> {
    match entries.into_iter().find(|(key, _)| !is_of_sidecars(key)) {
        Some((key, value)) => Err(Error::invalid(format!("{field}[{key}]"), value, "this key is not known; there is none")),
        None => Ok(()),
    }
}

fn is_of_sidecars(key: &str) -> bool {
    OF_SIDECARS.iter().any(|prefix| key.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn known_keys_are_read_and_all_others_are_refused_by_name() {
        let class = map(&[("pool", "fast"), ("csi.storage.k8s.io/pvc/name", "data")]);
        let parameters = Parameters::read("parameters", &class).unwrap();
        assert_eq!(parameters.get(Parameter::Pool), Some("fast"));
        assert_eq!(parameters.entries().collect::<Vec<_>>(), [("pool", "fast")]);
        for key in ["Pool", "colour", "csi.storage.k8s.io/fstyp", "csi.storage.k8s.io/pvc", ""] {
            let error = Parameters::read("parameters", &map(&[(key, "x")])).unwrap_err().to_string();
            assert!(error.contains(&format!("parameters[{key}]")) && error.contains("known: pool"), "{error}");
        }
        assert!(refuse_parameters("mutable_parameters", &map(&[("pool", "fast")])).is_err());
        assert!(refuse_parameters("parameters", &map(&[("csi.storage.k8s.io/volumesnapshot/name", "s")])).is_ok());
    }

    /// The rows of the documents' table of parameters, with the key that the provisioner itself takes.
    fn table() -> String {
        let mut table = "| parameter | meaning |\n|---|---|\n".to_owned();
        for parameter in Parameter::ALL {
            table += &format!("| `{}` | {} |\n", parameter.key(), parameter.meaning());
        }
        table + "| `csi.storage.k8s.io/fstype` | `ext4` (default, at least 16 MiB) or `xfs` (at least 300 MiB) |\n"
    }

    #[test]
    fn documents_and_chart_have_the_same_list() {
        let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/storageclass.md");
        let text = std::fs::read_to_string(page).unwrap();
        assert!(text.contains(&table()), "the table of parameters in docs/storageclass.md is not:\n{}", table());
        let template = include_str!("../../deploy/chart/templates/storageclasses.yaml");
        let of_template = template.split("parameters:").nth(1).unwrap().split("mountOptions").next().unwrap();
        let keys: Vec<&str> =
            of_template.lines().filter_map(|line| line.trim().split_once(": {{ . }}").map(|(key, _)| key)).collect();
        let expected: Vec<&str> = Parameter::ALL.map(Parameter::key).into_iter().chain(["csi.storage.k8s.io/fstype"]).collect();
        assert_eq!(keys, expected, "deploy/chart/templates/storageclasses.yaml");
        let schema: serde_json::Value = serde_json::from_str(include_str!("../../deploy/chart/values.schema.json")).unwrap();
        let properties = &schema["properties"]["storageClasses"]["items"]["properties"];
        for key in Parameter::ALL.map(Parameter::key).into_iter().chain(["fsType"]) {
            assert!(properties.get(key).is_some(), "storageClasses of deploy/chart/values.schema.json has no {key}");
        }
    }
}
