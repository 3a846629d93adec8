//! A node that is lost together with its controller, while a volume is made there.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use super::absent::{DRIVER, off, request, volume, waits};
use super::*;
use crate::controller::Book;
use crate::types::ClaimName;

/// What is written down, also where the API server does not answer.
#[derive(Default)]
struct Written {
    nodes: Mutex<BTreeMap<ClaimName, NodeId>>,
    away: Mutex<bool>,
    calls: Mutex<usize>,
}

impl Written {
    fn asked(&self) -> Result<(), Error> {
        *self.calls.lock().unwrap() += 1;
        if *self.away.lock().unwrap() { Err(Error::unavailable("claim", "the API server is away")) } else { Ok(()) }
    }
}

#[tonic::async_trait]
impl Book for Arc<Written> {
    async fn read(&self, claim: &ClaimName) -> Result<Option<NodeId>, Error> {
        self.asked()?;
        Ok(self.nodes.lock().unwrap().get(claim).cloned())
    }

    async fn write(&self, claim: &ClaimName, node: Option<&NodeId>) -> Result<(), Error> {
        self.asked()?;
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
    // Its node makes it, and neither it nor the controller lives to say so.
    *x.answer.lock().unwrap() = Err(Error::unavailable("node x", "the connection broke"));
    controller(&[&x, &y], &book).create(request(1, &[])).await.unwrap_err();
    assert_eq!((x.count(), y.count()), (1, 0));
    let lost = off("x");
    let next = controller(&[&lost, &y], &book);
    for _ in 0..2 {
        waits(next.create(request(1, &[])).await, "x");
    }
    assert_eq!(y.count(), 0);
    // What was never begun waits for nobody.
    assert_eq!(next.create(request(2, &[])).await.unwrap().0.as_str(), "y");
    // Where it cannot be told what was begun, nothing is.
    *book.away.lock().unwrap() = true;
    next.create(request(3, &[])).await.unwrap_err();
    *book.away.lock().unwrap() = false;
    assert_eq!(y.count(), 1);
    // The node comes back with it.
    let back = Arc::new(Fake { volumes: vec![volume('x', "pvc-1")], ..node("x", Some('x')) });
    assert_eq!(controller(&[&back, &y], &book).create(request(1, &[])).await.unwrap().0.as_str(), "x");
    // Or it never will, and is no node any more.
    let z = off("z");
    assert_eq!(controller(&[&z, &y], &book).create(request(1, &[])).await.unwrap().0.as_str(), "y");
}

#[tokio::test]
async fn it_is_written_down_only_where_there_is_a_choice() {
    let book = Arc::new(Written::default());
    let (x, y) = (Arc::new(node("x", Some('x'))), Arc::new(Fake { room: 1 << 20, ..node("y", Some('y')) }));
    let calls = || std::mem::take(&mut *book.calls.lock().unwrap_or_else(PoisonError::into_inner));
    let both = controller(&[&x, &y], &book);
    assert_eq!(both.create(request(1, &["y"])).await.unwrap().0.as_str(), "y");
    controller(&[&x], &book).create(request(1, &[])).await.unwrap();
    assert_eq!(calls(), 0);
    assert_eq!(both.create(request(2, &[])).await.unwrap().0.as_str(), "x");
    assert_eq!((calls(), book.nodes.lock().unwrap().len()), (1, 1));
    // An end that leaves nothing behind takes it back.
    *x.answer.lock().unwrap() = Err(Error::Exhausted { what: "volume".to_owned(), reason: "full".to_owned() });
    both.create(request(3, &[])).await.unwrap_err();
    assert_eq!((calls(), book.nodes.lock().unwrap().len()), (2, 1));
    // While all are heard, nobody waits for the API server.
    *book.away.lock().unwrap() = true;
    *x.answer.lock().unwrap() = Ok(());
    both.create(request(4, &[])).await.unwrap();
}

#[tokio::test]
async fn what_a_tenant_writes_down_opens_no_node_that_the_request_does_not() {
    let book = Arc::new(Written::default());
    let (x, y) = (Arc::new(node("x", Some('x'))), Arc::new(node("y", Some('y'))));
    let lost = off("lost");
    let controller = controller(&[&x, &y, &lost], &book);
    let on = |node: &str| crate::controller::Segments::from([(crate::controller::topology_key(DRIVER), node.to_owned())]);
    for (number, written) in [(1, "x"), (2, "y")] {
        let request = CreateRequest { requisite: vec![on("y"), on("lost")], ..request(number, &[]) };
        let claim = crate::controller::notifications::claim_of(request.spec.name.csi(), &request.parameters).unwrap();
        book.nodes.lock().unwrap().insert(claim, NodeId::new(written).unwrap());
        assert_eq!(controller.create(request).await.unwrap().0.as_str(), "y");
        assert_eq!((x.count(), y.count()), (0, 1));
    }
}
