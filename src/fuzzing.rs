//! The parsers of untrusted bytes, for the fuzzer (`fuzz/`). Each accepts any bytes and panics if an invariant is broken. Compiled only for
//! the fuzzer and for tests; the unit tests run each target on the corpus in the tree.

use crate::{agent, attach, config, device, filesystem, host, lvm, rpc, types, volume};

/// LVM's label, header and metadata text on a PV, and the driver's view of the group. The inventory is total: it counts no LV twice.
pub fn metadata(data: &[u8]) {
    if let Some(vg) = lvm::metadata::fuzz(data) {
        let count = vg.lvs.len();
        let inventory =
            volume::inventory::Inventory::from(vg.into(), types::Bytes(1 << 20), &volume::inventory::DriverIdentity::default());
        assert!(inventory.volumes().count() + inventory.snapshots().count() <= count);
    }
}

/// The output of LVM commands.
pub fn report(data: &[u8]) {
    lvm::report::fuzz(data);
    let _ = lvm::version::Version::parse(data);
}

/// The kernel's mount table.
pub fn mountinfo(data: &[u8]) {
    host::fuzz_mountinfo(data);
}

/// A block of the attach ledger.
pub fn ledger(data: &[u8]) {
    attach::fuzz_block(data);
}

/// The configuration file.
pub fn config(data: &[u8]) {
    config::fuzz(data);
}

/// A message of each call, from its wire bytes to a checked request.
pub fn request(data: &[u8]) {
    rpc::fuzz_request(data);
}

/// Messages between controller and agent, as the receiver reads them.
pub fn agent(data: &[u8]) {
    agent::fuzz_message(data);
}

/// Superblocks on a tenant's device, and the kernel's status of a thin pool.
pub fn device(data: &[u8]) {
    filesystem::fuzz_superblock(data);
    device::fuzz_answers(data);
}

/// Ids, names, sizes, tags and mount options. Whatever parses must read the same when written out.
pub fn words(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(id) = types::VolumeId::parse(text) {
        assert_eq!(types::VolumeId::parse(&id.to_string()), Some(id));
    }
    if let Some(life) = types::Life::parse(text) {
        assert_eq!(types::Life::parse(&life.to_string()), Some(life));
    }
    if let Ok(name) = types::LvName::new(text) {
        assert_eq!(name.as_str(), text);
    }
    // Any name from the orchestrator must become one that LVM accepts.
    assert!(volume::name::of_volume(text).as_str().len() <= 127 && volume::name::of_snapshot(text).as_str().len() <= 127);
    let tags: Vec<String> = text.split(' ').map(str::to_owned).collect();
    if let Ok(Some(marks)) = volume::tag::Marks::read(&tags) {
        let written: Vec<String> = marks.tags().iter().map(ToString::to_string).collect();
        assert_eq!(volume::tag::Marks::read(&written), Ok(Some(marks)));
    }
    for kind in types::FsKind::ALL {
        let flags: Vec<&str> = text.split('\n').collect();
        if let Ok(options) = filesystem::MountOptions::parse(kind, &flags) {
            assert!(!options.data().contains(['\n', '\0']), "{options:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A target, with the name of its program and its corpus.
    type Target = (&'static str, fn(&[u8]));
    const TARGETS: [Target; 9] = [
        ("metadata", metadata),
        ("report", report),
        ("mountinfo", mountinfo),
        ("ledger", ledger),
        ("config", config),
        ("request", request),
        ("agent", agent),
        ("device", device),
        ("words", words),
    ];

    #[test]
    fn every_target_has_a_program_and_a_corpus_that_it_survives() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        for (name, target) in TARGETS {
            assert!(fuzz.join(format!("fuzz_targets/{name}.rs")).exists(), "{name}");
            let corpus: Vec<_> = std::fs::read_dir(fuzz.join("corpus").join(name)).unwrap().collect();
            assert!(!corpus.is_empty(), "{name}");
            for file in corpus {
                target(&std::fs::read(file.unwrap().path()).unwrap());
            }
            target(b"");
        }
    }
}
