//! Strangers who connect and say nothing.

use std::net::TcpStream;
use std::sync::atomic::AtomicBool;

use super::*;
use crate::server::tests::{allowed, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_controller_is_served_within_a_second_while_500_others_are_silent() {
    let directory = tempfile::tempdir().unwrap();
    let agent = Arc::new(Fake::new("a"));
    let Serving { address, stopping, task, caller, .. } = serving(directory.path(), &agent).await;
    let new = || Remote::new(agent.node.clone(), Some(&address.to_string()), Arc::clone(&caller)).unwrap();
    let life = async |remote: &Remote, name: &str| {
        remote.create("fast".to_owned(), spec(name)).await.unwrap();
        new().delete(VolumeId { vg: vg(), lv: name::of_volume(name) }).await.unwrap();
    };
    let limit = allowed(within(Duration::from_secs(20), "a first call", async || life(&new(), "pvc-1").await).await);
    let connect = move || TcpStream::connect(address).unwrap();
    let silent = tokio::task::spawn_blocking(move || (0..500).map(|_| connect()).collect::<Vec<_>>()).await.unwrap();
    within(limit, "a call on a new connection", async || life(&new(), "pvc-1").await).await;
    let remote = new();

    // The same while 20 more connect each second: a working connection stays, and new ones are accepted.
    let enough = Arc::new(AtomicBool::new(false));
    let stop_connecting = Arc::clone(&enough);
    let coming = tokio::task::spawn_blocking(move || {
        let mut more = Vec::new();
        while !stop_connecting.load(Ordering::Relaxed) {
            more.push(connect());
            #[expect(clippy::disallowed_methods, reason = "so many a second: that is the test")]
            std::thread::sleep(Duration::from_millis(50));
        }
        more
    });
    for number in 2..12 {
        within(limit, "a call on each connection", async || life(&remote, &format!("pvc-{number}")).await).await;
    }
    enough.store(true, Ordering::Relaxed);
    let more = coming.await.unwrap();
    drop(remote);
    // Silent connections do not delay shutdown.
    stopping.send_replace(true);
    tokio::time::timeout(Duration::from_secs(20), task).await.unwrap().unwrap();
    drop((silent, more));
}
