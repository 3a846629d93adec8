//! PersistentVolumes that a person wrote: their `volumeAttributes` must agree with the handle.

use std::collections::HashMap;

use lvm_csi_proto::csi;
use testkit::client::Accepted;
use testkit::error::Result;
use tonic::Code;

use crate::rig::Rig;

/// Attributes that Kubernetes adds to those of a PersistentVolume in its calls.
const POD: [(&str, &str); 4] = [
    ("storage.kubernetes.io/csiProvisionerIdentity", "1763722000000-8081-lvm-csi.dev"),
    ("csi.storage.k8s.io/pod.name", "web-0"),
    ("csi.storage.k8s.io/ephemeral", "false"),
    ("csi.storage.k8s.io/serviceAccount.tokens", r#"{"":{"token":"eyJhbGciOi-not-for-a-log"}}"#),
];

type Call<'a> = &'a dyn Fn(&HashMap<String, String>) -> std::result::Result<(), tonic::Status>;

fn attributes(entries: &[(&str, &str)]) -> HashMap<String, String> {
    entries.iter().chain(&POD).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn attributes_must_agree_with_the_handle_at_every_call() -> Result<()> {
    let rig = Rig::linear()?;
    let mut volume = rig.volume("linear", 64)?;
    let name = rig.vg.of_handle(&volume.id)?.name;
    let (vg, uuid, id) = (rig.vg.name.clone(), rig.vg.uuid.clone(), volume.id.clone());
    let wrong: [(&str, HashMap<String, String>); 5] = [
        ("volumegroup", attributes(&[("volumegroup", "vg-of-others"), ("volumeID", &name)])),
        ("volumegroup", attributes(&[("volumegroup", "AbCdEf-0123-4567-89ab-cdef-0123-456789")])),
        ("volumeID", attributes(&[("volumegroup", &vg), ("volumeID", "pvc-of-others")])),
        ("volumeid", attributes(&[("volumegroup", &vg), ("volumeid", &name)])),
        ("fsType", attributes(&[("fsType", "ext4")])),
    ];
    let refused = |what: &str, call: Call<'_>| -> Result<()> {
        for (key, context) in &wrong {
            let message = rig.rejects(&[Code::InvalidArgument], what, |_| call(context))?;
            assert!(message.contains(&format!("volume_context[{key}]")), "{what}: {message}");
            assert!(!message.contains("eyJ"), "{what}: {message}");
        }
        Ok(())
    };
    volume.make_staging()?;
    refused("attaching", &|context| {
        let request = csi::ControllerPublishVolumeRequest { volume_context: context.clone(), ..volume.attach_request() };
        rig.csi().controller_publish_volume(request).map(drop)
    })?;
    volume.attach()?;
    refused("staging", &|context| {
        let request = csi::NodeStageVolumeRequest { volume_context: context.clone(), ..volume.stage_request() };
        rig.csi().node_stage_volume(request).map(drop)
    })?;
    volume.context = attributes(&[("volumegroup", &uuid), ("volumeID", &id)]);
    volume.stage()?;
    volume.make_parent("pod")?;
    refused("publishing", &|context| {
        let request = csi::NodePublishVolumeRequest { volume_context: context.clone(), ..volume.publish_request("pod") };
        rig.csi().node_publish_volume(request).map(drop)
    })?;
    for (key, context) in &wrong {
        let request = csi::ValidateVolumeCapabilitiesRequest {
            volume_id: id.clone(),
            volume_capabilities: vec![volume.capability.clone()],
            volume_context: context.clone(),
            ..Default::default()
        };
        let answer = rig.csi().validate_volume_capabilities(request).accepted("ValidateVolumeCapabilities")?;
        assert!(answer.confirmed.is_none() && answer.message.contains(key), "{answer:?}");
    }
    volume.context = attributes(&[("volumegroup", &vg), ("volumeID", &name)]);
    volume.attach()?;
    volume.stage()?;
    volume.publish("pod")?;
    let log = rig.driver.log()?;
    assert!(!log.contains("eyJ"), "a pod's token is in the log");
    volume.down("pod")?;
    rig.finish()
}
