//! Shutdown while calls wait for an operation on a hanging volume group.

use std::sync::mpsc;
use std::time::SystemTime;

use lvm_csi_proto::csi::CreateVolumeRequest;
use lvm_csi_proto::csi::VolumeCapability;
use lvm_csi_proto::csi::controller_client::ControllerClient;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode as Access;
use lvm_csi_proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume};
use prometheus_client::registry::Registry;
use tokio::sync::Notify;
use tonic::transport::Endpoint;

use super::*;
use crate::controller::{Controller, Fleet};
use crate::rpc::{ControllerService, IdentityService};
use crate::server::{Services, bind, serve};
use crate::types::{GroupQueue, Wedge, step};

const PATIENCE: Duration = Duration::from_secs(20);

/// Starts an operation that hangs in a wedged group until the sender is dropped.
async fn hanging() -> (Inflight, Groups, mpsc::Sender<()>) {
    let group = VgName::new("sick").unwrap();
    let wedge = || Wedge { since: SystemTime::now(), text: "it hangs".to_owned(), pid: None };
    let queue = move |_: &VgName| GroupQueue { length: 1, wedge: Some(wedge()) };
    let groups = Groups { names: vec![group.clone()], queue: Arc::new(queue), ..Groups::none() };
    let inflight = Inflight::default();
    let (release, wait) = mpsc::channel::<()>();
    let work = move |_: &Reservation| {
        step::in_group(&group);
        wait.recv().ok();
        Ok(())
    };
    let running = inflight.clone();
    tokio::spawn(async move { running.run(Operation::new("CreateVolume", "endless", ()), work).await });
    until("it runs", async || !inflight.running().is_empty()).await;
    (inflight, groups, release)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_end_a_call_to_the_agent_that_hangs_in_a_wedged_group_is_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    let agent = Arc::new(Fake::new("a"));
    let (inflight, groups, release) = hanging().await;
    let authority = Authority::new().unwrap();
    let door = credentials(&authority, directory.path(), "a.node.lvm-csi.dev");
    let caller = credentials(&authority, directory.path(), "controller.lvm-csi.dev");
    let (address, stopping, task) = served(([127, 0, 0, 1], 0).into(), &door, &agent, (inflight, groups)).await;
    let remote = Arc::new(Remote::new(agent.node.clone(), Some(&address.to_string()), caller).unwrap());
    // A first call, so that the next one uses an established connection.
    remote.create("fast".to_owned(), spec("pvc-1")).await.unwrap();
    let calling = Arc::clone(&remote);
    let called = tokio::spawn(async move { calling.create("fast".to_owned(), spec("endless")).await });
    until("the call has come", async || agent.endless.load(Ordering::SeqCst) == 1).await;
    stopping.send_replace(true);
    tokio::time::timeout(PATIENCE, task).await.expect("the end waits for the call").unwrap();
    let error = tokio::time::timeout(PATIENCE, called).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    drop(release);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_end_a_call_of_csi_that_hangs_in_a_wedged_group_is_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("csi.sock");
    let agent = Arc::new(Fake::new("a"));
    let (inflight, groups, release) = hanging().await;
    let fleet = Fleet::new(vec![Arc::clone(&agent) as Arc<dyn Agent>]);
    let services = Services {
        identity: IdentityService::new(DRIVER.to_owned(), Box::new(|| Ok(true))),
        controller: Some(ControllerService::new(Arc::new(Controller::new(fleet, DRIVER)), false, true)),
        node: None,
        groups,
        health: None,
        metrics: None,
        registry: Registry::with_prefix("lvm_csi"),
    };
    let stop = Arc::new(Notify::new());
    let stopped = Arc::clone(&stop);
    let listener = bind(&path).await.unwrap();
    let serving = tokio::spawn(serve(listener, services, inflight, || (), async move { stopped.notified().await }));
    let channel = Endpoint::from_shared(format!("unix://{}", path.display())).unwrap().connect().await.unwrap();
    let capability = VolumeCapability {
        access_mode: Some(AccessMode { mode: Access::SingleNodeWriter.into() }),
        access_type: Some(AccessType::Block(BlockVolume {})),
    };
    let request = CreateVolumeRequest {
        name: "endless".to_owned(),
        volume_capabilities: vec![capability],
        ..CreateVolumeRequest::default()
    };
    let called = tokio::spawn(async move { ControllerClient::new(channel).create_volume(request).await });
    until("the call has come", async || agent.endless.load(Ordering::SeqCst) == 1).await;
    stop.notify_one();
    tokio::time::timeout(PATIENCE, serving).await.expect("the end waits for the call").unwrap().unwrap();
    let error = tokio::time::timeout(PATIENCE, called).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error.code(), tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled), "{error}");
    drop(release);
}
