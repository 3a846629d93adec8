//! A volume that was detached without a call to its node, which comes back without a reboot: its ledger still has the grant.

use super::*;
use crate::attach::{Ack, AckState};

/// A controller in a cluster, where a node that is away is out of service.
fn replica(nodes: &[&Arc<Fake>]) -> Controller {
    let agents: Agents = nodes.iter().map(|node| Arc::new(Arc::clone(node)) as Arc<dyn Agent>).collect();
    let (_, agents) = watch::channel(Some(agents));
    Controller::new(Fleet::following(agents, Arc::new(Said(Ok(Fate::OutOfService)))), "lvm-csi.dev")
}

/// The ledger's record of a volume with this acknowledgement in the present boot.
fn held(said: Option<AckState>) -> State {
    let uuid = LvUuid::new(vg('b').as_str()).unwrap();
    let (mode, holder) = (Mode::parse("rw,mount,SINGLE_NODE_WRITER").unwrap(), NodeId::new("b").unwrap());
    let grant = Grant { vg: vg('b'), lv: uuid, name: Some(id('b').lv), epoch: 1, mode, holder };
    let ack = said.map(|state| Ack { epoch: 1, boot: BOOT.to_owned(), state, at: Default::default() });
    State { grant: Some(grant), given_in: Some(BOOT.to_owned()), ack }
}

#[tokio::test]
async fn any_replica_deletes_a_volume_that_another_detached_without_a_call() {
    let a = Arc::new(node("a", Some('a')));
    for said in [None, Some(AckState::Released)] {
        let b = Arc::new(Fake { state: Mutex::new(held(said)), ..node("b", Some('b')) });
        *b.away.lock().unwrap() = Some("it is off".to_owned());
        replica(&[&a, &b]).unpublish(id('b'), "b").await.unwrap();
        assert_eq!((a.count(), b.count()), (0, 0));
        *b.away.lock().unwrap() = None;
        replica(&[&a, &b]).delete(&id('b')).await.unwrap();
        assert_eq!((b.state.lock().unwrap().clone(), a.count()), (State::default(), 0), "{said:?}");
    }
}

#[tokio::test]
async fn a_staged_volume_is_not_deleted() {
    let b = Arc::new(Fake { state: Mutex::new(held(Some(AckState::Staged))), ..node("b", Some('b')) });
    let error = replica(&[&b]).delete(&id('b')).await.unwrap_err();
    assert!(matches!(&error, Error::Precondition { reason, .. } if reason.contains("NodeUnstageVolume")), "{error:?}");
    assert_eq!(*b.state.lock().unwrap(), held(Some(AckState::Staged)));
}

#[tokio::test]
async fn a_deletion_releases_nothing_if_every_detach_calls_the_node() {
    let b = Arc::new(Fake { state: Mutex::new(held(Some(AckState::Released))), ..node("b", Some('b')) });
    let error = Controller::new(fleet(&[&b]), "lvm-csi.dev").delete(&id('b')).await.unwrap_err();
    assert!(matches!(&error, Error::Precondition { .. }), "{error:?}");
    assert_eq!(*b.state.lock().unwrap(), held(Some(AckState::Released)));
}
