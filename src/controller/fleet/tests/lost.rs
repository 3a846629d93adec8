//! A node is lost together with the controller while a volume is made there.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use super::absent::{DRIVER, off, request, volume, waits};
use super::*;
use crate::controller::Book;
use crate::types::ClaimName;

/// A book in memory, whose API server may be away.
#[derive(Default)]
struct Written {
    nodes: Mutex<BTreeMap<ClaimName, NodeId>>,
    away: Mutex<bool>,
    calls: Mutex<usize>,
}

impl Written {
    fn called(&self) -> Result<(), Error> {
        *self.calls.lock().unwrap() += 1;
        if *self.away.lock().unwrap() { Err(Error::unavailable("claim", "the API server is away")) } else { Ok(()) }
    }
}

#[tonic::async_trait]
impl Book for Arc<Written> {
    async fn read(&self, claim: &ClaimName) -> Result<Option<NodeId>, Error> {
        self.called()?;
        Ok(self.nodes.lock().unwrap().get(claim).cloned())
    }

    async fn write(&self, claim: &ClaimName, node: Option<&NodeId>) -> Result<(), Error> {
        self.called()?;
        let mut nodes = self.nodes.lock().unwrap();
        match node {
            Some(node) => drop(nodes.insert(claim.clone(), node.clone())),
            None => drop(nodes.remove(claim)),
        }
        Ok(())
    }
}

fn controller(nodes: &[&Arc<Fake>], book: &Arc<Written>) -> Controller {
    Controller::new(fleet(nodes), DRIVER).keeping(Some(Arc::new(Arc::clone(book))))
}

#[tokio::test]
async fn a_volume_is_not_made_twice_when_its_node_and_its_controller_are_lost_together() {
    let book = Arc::new(Written::default());
    let (x, y) = (Arc::new(node("x", Some('x'))), Arc::new(Fake { room: 1 << 20, ..node("y", Some('y')) }));
    // Node x makes it, but neither x nor the controller survives to report it.
    *x.answer.lock().unwrap() = Err(Error::unavailable("node x", "the connection broke"));
    controller(&[&x, &y], &book).create(request(1, &[])).await.unwrap_err();
    assert_eq!((x.count(), y.count()), (1, 0));
    let lost = off("x");
    let next = controller(&[&lost, &y], &book);
    for _ in 0..2 {
        waits(next.create(request(1, &[])).await, "x");
    }
    assert_eq!(y.count(), 0);
    // A volume that was never begun waits for no node.
    assert_eq!(next.create(request(2, &[])).await.unwrap().0.as_str(), "y");
    // While the book cannot be read, no volume is begun.
    *book.away.lock().unwrap() = true;
    next.create(request(3, &[])).await.unwrap_err();
    *book.away.lock().unwrap() = false;
    assert_eq!(y.count(), 1);
    // The node comes back with the volume.
    let back = Arc::new(Fake { volumes: vec![volume('x', "pvc-1")], ..node("x", Some('x')) });
    assert_eq!(controller(&[&back, &y], &book).create(request(1, &[])).await.unwrap().0.as_str(), "x");
    // Or the node is gone for good and no longer a node.
    let z = off("z");
    assert_eq!(controller(&[&z, &y], &book).create(request(1, &[])).await.unwrap().0.as_str(), "y");
}

#[tokio::test]
async fn the_node_is_recorded_only_if_there_is_a_choice() {
    let book = Arc::new(Written::default());
    let (x, y) = (Arc::new(node("x", Some('x'))), Arc::new(Fake { room: 1 << 20, ..node("y", Some('y')) }));
    let calls = || std::mem::take(&mut *book.calls.lock().unwrap_or_else(PoisonError::into_inner));
    let both = controller(&[&x, &y], &book);
    assert_eq!(both.create(request(1, &["y"])).await.unwrap().0.as_str(), "y");
    controller(&[&x], &book).create(request(1, &[])).await.unwrap();
    assert_eq!(calls(), 0);
    assert_eq!(both.create(request(2, &[])).await.unwrap().0.as_str(), "x");
    assert_eq!((calls(), book.nodes.lock().unwrap().len()), (1, 1));
    // A final error removes the record.
    *x.answer.lock().unwrap() = Err(Error::Exhausted { what: "volume".to_owned(), reason: "full".to_owned() });
    both.create(request(3, &[])).await.unwrap_err();
    assert_eq!((calls(), book.nodes.lock().unwrap().len()), (2, 1));
    // While all nodes have reported, a creation does not depend on the API server.
    *book.away.lock().unwrap() = true;
    *x.answer.lock().unwrap() = Ok(());
    both.create(request(4, &[])).await.unwrap();
}

#[tokio::test]
async fn a_record_that_a_tenant_changed_allows_no_node_that_the_request_does_not() {
    let book = Arc::new(Written::default());
    let (x, y) = (Arc::new(node("x", Some('x'))), Arc::new(node("y", Some('y'))));
    let lost = off("lost");
    let controller = controller(&[&x, &y, &lost], &book);
    let on = |node: &str| crate::controller::Segments::from([(crate::controller::topology_key(DRIVER), node.to_owned())]);
    for (number, written) in [(1, "x"), (2, "y")] {
        let request = CreateRequest { requisite: vec![on("y"), on("lost")], ..request(number, &[]) };
        let claim = request.claim.clone().unwrap();
        book.nodes.lock().unwrap().insert(claim, NodeId::new(written).unwrap());
        assert_eq!(controller.create(request).await.unwrap().0.as_str(), "y");
        assert_eq!((x.count(), y.count()), (0, 1));
    }
}
