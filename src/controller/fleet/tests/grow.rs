//! Claims that grow by themselves.

use std::collections::BTreeMap;

use super::*;
use crate::controller::grow::{Claims, Grower};
use crate::types::notification::About;
use crate::types::{Asked, Claim};

/// Claims of volumes in group `a`, and the requests to enlarge them.
struct Cluster {
    claims: Mutex<Vec<Claim>>,
    asked: Mutex<Vec<(String, u64)>>,
    answer: Mutex<Result<Asked, Error>>,
}

#[tonic::async_trait]
impl Claims for Cluster {
    fn all(&self) -> Vec<(Claim, VolumeId)> {
        self.claims.lock().unwrap().iter().map(|claim| (claim.clone(), volume(&claim.name))).collect()
    }

    async fn enlarge(&self, claim: &Claim, size: Bytes) -> Result<Asked, Error> {
        self.asked.lock().unwrap().push((claim.version.clone(), size.0 >> 20));
        self.answer.lock().unwrap().clone()
    }
}

fn volume(name: &str) -> VolumeId {
    VolumeId { vg: vg('a'), lv: name::of_volume(&format!("pvc-{name}")) }
}

/// A claim of 64 MiB that grows up to 100 MiB in steps of 32 MiB.
fn claim(name: &str) -> Claim {
    let words = [("to", "100Mi"), ("by", "32Mi")].map(|(word, value)| (word.to_owned(), value.to_owned()));
    Claim {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        version: "7".to_owned(),
        volume: format!("pv-{name}"),
        block: false,
        request: "64Mi".to_owned(),
        capacity: "64Mi".to_owned(),
        words: BTreeMap::from(words),
    }
}

struct Scene {
    node: Arc<Fake>,
    cluster: Arc<Cluster>,
    grower: Grower,
    notifications: mpsc::Receiver<Notification>,
}

impl Scene {
    /// A node with a volume of this fill, and its claim.
    fn new(percent: u64, claim: Claim) -> Self {
        let node = Arc::new(node("a", Some('a')));
        let (sender, notifications) = mpsc::channel(10);
        let cluster = Arc::new(Cluster {
            claims: Mutex::new(vec![claim.clone()]),
            asked: Mutex::default(),
            answer: Mutex::new(Ok(Asked::Taken)),
        });
        let other = Arc::new(super::node("b", Some('b')));
        let agents: Vec<Arc<dyn Agent>> = vec![Arc::new(Arc::clone(&node)), Arc::new(other)];
        let grower = Grower::new(Fleet::new(agents), Arc::clone(&cluster) as Arc<dyn Claims>, "lvm-csi.dev", sender);
        let scene = Self { node, cluster, grower, notifications };
        scene.fill(&claim.name, percent);
        scene
    }

    fn fill(&self, name: &str, percent: u64) {
        let usage = Usage { used: Bytes(percent), available: Bytes(100 - percent) };
        *self.node.usage.lock().unwrap() = vec![(volume(name), usage)];
    }

    fn change(&self, change: impl Fn(&mut Claim)) {
        change(&mut self.cluster.claims.lock().unwrap()[0]);
    }

    fn answer(&self, answer: Result<Asked, Error>) {
        *self.cluster.answer.lock().unwrap() = answer;
    }

    /// Checks once; returns the requested sizes in MiB and the notifications.
    async fn look(&mut self) -> (Vec<u64>, Vec<Notification>) {
        self.grower.look().await;
        let sent = std::iter::from_fn(|| self.notifications.try_recv().ok()).collect();
        let asked = std::mem::take(&mut *self.cluster.asked.lock().unwrap());
        (asked.into_iter().map(|(_, size)| size).collect(), sent)
    }

    /// Checks once and expects no request; returns the reasons and texts of the notifications.
    async fn notices(&mut self) -> Vec<String> {
        let (asked, sent) = self.look().await;
        assert_eq!(asked, [0; 0]);
        sent.into_iter().map(|notification| format!("{}: {}", notification.reason, notification.text)).collect()
    }
}

#[tokio::test]
async fn a_full_claim_grows_step_by_step_up_to_its_limit() {
    let mut scene = Scene::new(79, claim("data"));
    assert!(scene.notices().await.is_empty());
    scene.fill("data", 85);
    let (asked, sent) = scene.look().await;
    assert_eq!(asked, [96]);
    let [notification] = sent.as_slice() else { panic!("{sent:?}") };
    let about = About::Claim { namespace: "shop".into(), name: "data".into(), uid: "uid-data".into() };
    assert_eq!((&notification.about, notification.reason, notification.warning), (&about, "Grows", false));
    assert_eq!(notification.text, "it is 85 % full and grows from 64Mi to 96Mi");
    // It is growing.
    scene.change(|claim| claim.request = "96Mi".to_owned());
    assert!(scene.notices().await.is_empty());
    scene.change(|claim| claim.capacity = "96Mi".to_owned());
    assert_eq!(scene.look().await.0, [100]);
    scene.change(|claim| (claim.request, claim.capacity) = ("100Mi".to_owned(), "100Mi".to_owned()));
    let notices = scene.notices().await;
    assert_eq!(notices, ["GrowthLimit: it is 85 % full, has 100Mi and grows no further: lvm-csi.dev/grow-to is 100Mi"]);
    // No second notice when it fills up, or when its node is away for a moment.
    scene.fill("data", 99);
    assert!(scene.notices().await.is_empty());
    scene.node.usage.lock().unwrap().clear();
    assert!(scene.notices().await.is_empty());
    scene.fill("data", 99);
    assert!(scene.notices().await.is_empty());
    // Somebody made room, and it ran full again.
    scene.fill("data", 10);
    assert!(scene.notices().await.is_empty());
    scene.fill("data", 90);
    assert_eq!(scene.notices().await.len(), 1);
    scene.change(|claim| drop(claim.words.insert("to".to_owned(), "200Mi".to_owned())));
    assert_eq!(scene.look().await.0, [132]);
    let mut registry = prometheus_client::registry::Registry::default();
    scene.grower.growths().register_metrics(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("\nclaims_grown_total 3\n"), "{text}");
}

#[tokio::test]
async fn a_claim_that_another_replica_or_a_person_changed_is_left_alone() {
    let mut scene = Scene::new(85, claim("data"));
    scene.answer(Ok(Asked::Changed));
    let (asked, sent) = scene.look().await;
    assert_eq!((asked, sent), (vec![96], vec![]));
    scene.answer(Err(Error::unavailable("claim data", "the API server cannot be asked")));
    let (asked, sent) = scene.look().await;
    assert_eq!((asked, sent), (vec![96], vec![]));
    scene.answer(Ok(Asked::Taken));
    assert_eq!(scene.look().await.1[0].reason, "Grows");
}

#[tokio::test]
async fn a_refusal_is_reported_once_in_its_own_words() {
    let mut scene = Scene::new(85, claim("data"));
    scene.answer(Ok(Asked::Refused("exceeded quota: disks".to_owned())));
    let (asked, sent) = scene.look().await;
    assert_eq!((asked, sent.len()), (vec![96], 1));
    assert!(
        sent[0].reason == "GrowthRefused" && sent[0].warning && sent[0].text.ends_with(": exceeded quota: disks"),
        "{sent:?}"
    );
    // It is tried again, since nothing says when the request would be granted.
    let (asked, sent) = scene.look().await;
    assert_eq!((asked, sent), (vec![96], vec![]));
}

#[tokio::test]
async fn a_rule_that_cannot_be_followed_is_reported_once_and_no_agent_is_called() {
    for (change, reason, word) in [
        (
            Box::new(|claim: &mut Claim| drop(claim.words.insert("at".into(), "80".into()))) as Box<dyn Fn(&mut Claim)>,
            "GrowthMisconfigured",
            "lvm-csi.dev/grow-at \"80\" must be a percentage",
        ),
        (Box::new(|claim| drop(claim.words.remove("to"))), "GrowthMisconfigured", "lvm-csi.dev/grow-to is missing"),
        (Box::new(|claim| claim.request = "lots".into()), "GrowthMisconfigured", "requests.storage \"lots\""),
        (Box::new(|claim| claim.capacity = "lots".into()), "GrowthMisconfigured", "capacity.storage \"lots\""),
        (Box::new(|claim| claim.block = true), "GrowthImpossible", "raw block device"),
    ] {
        let mut scene = Scene::new(99, claim("data"));
        scene.change(change);
        let notices = scene.notices().await;
        assert!(notices.len() == 1 && notices[0].starts_with(reason) && notices[0].contains(word), "{word}: {notices:?}");
        assert!(scene.notices().await.is_empty());
        assert_eq!(scene.node.count(), 0);
        // Another mistake gives another notice.
        scene.change(|claim| drop(claim.words.insert("by".into(), "x".into())));
        scene.change(|claim| drop(claim.words.insert("to".into(), "1Gi".into())));
        scene.change(|claim| drop(claim.words.remove("at")));
        assert!(scene.notices().await[0].contains("lvm-csi.dev/grow-by \"x\""));
    }
}

#[tokio::test]
async fn only_the_node_that_has_a_volume_is_called() {
    let mut scene = Scene::new(85, claim("data"));
    scene.change(|claim| claim.name = "elsewhere".to_owned());
    assert!(scene.notices().await.is_empty());
    assert_eq!(scene.node.count(), 1);
    *scene.node.away.lock().unwrap() = Some("refused".to_owned());
    scene.change(|claim| claim.name = "data".to_owned());
    assert!(scene.notices().await.is_empty());
    *scene.node.away.lock().unwrap() = None;
    *scene.node.answer.lock().unwrap() = Err(Error::busy("its filesystems", "they are being measured"));
    assert!(scene.notices().await.is_empty());
    scene.cluster.claims.lock().unwrap().clear();
    assert!(scene.notices().await.is_empty());
    assert_eq!(scene.node.count(), 1);
}
