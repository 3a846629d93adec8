//! What the other end of the connection between controller and agent sends, for the fuzzer: as bytes, since nobody has checked them
//! before.

use std::fmt::Debug;
use std::sync::Arc;

use lvm_csi_proto::agent as wire;
use lvm_csi_proto::csi::Message;

use super::convert::{self, Malformed};
use super::remote::Heard;
use super::serve::NodeSnapshot;

/// Reads the bytes as the message that the first byte selects.
pub(crate) fn message(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else { return };
    match which % 9 {
        0 => updates(bytes),
        1 => same(bytes, convert::volume, convert::of_volume),
        2 => same(bytes, convert::snapshot, convert::of_snapshot),
        3 => same(bytes, |message| convert::context(&message), convert::of_context),
        4 => same(bytes, convert::offer, convert::of_offer),
        5 => same(bytes, |message| convert::error(message).map(|error| convert::of_error(&error)), wire::Error::clone),
        6 => same(bytes, convert::create, |(pool, spec)| convert::of_create(pool.clone(), spec.clone())),
        7 => same(bytes, convert::snapshot_wish, |wish| wire::SnapshotRequest {
            name: wish.name.clone(),
            volume_id: wish.source.to_string(),
        }),
        _ => same(
            bytes,
            |message| convert::grant_wish(&message),
            |(id, node, mode)| wire::GrantRequest { volume_id: id.to_string(), node: node.to_string(), mode: mode.to_text() },
        ),
    }
}

/// A message that can be read survives the round trip; one that cannot names its field.
fn same<M: Message + Default, T: PartialEq + Debug>(
    bytes: &[u8],
    read: impl Fn(M) -> Result<T, Malformed>,
    write: impl Fn(&T) -> M,
) {
    let Ok(message) = M::decode(bytes) else { return };
    match read(message) {
        Ok(value) => assert_eq!(read(write(&value)), Ok(value)),
        Err(error) => assert!(!error.to_string().starts_with(' '), "{error}"),
    }
}

/// Receives one update after the other. The controller then has what it would receive from an agent in that state.
fn updates(mut bytes: &[u8]) {
    let mut heard = Heard::default();
    while let Ok(update) = wire::Update::decode_length_delimited(&mut bytes) {
        if heard.add(update).is_err() {
            return;
        }
    }
    let Some((_, holdings)) = heard.holdings else { return };
    let update = NodeSnapshot::next(None, Arc::clone(&holdings)).map(|update| update.since(0)).unwrap_or_default();
    let mut again = Heard::default();
    assert_eq!(again.add(update), Ok(()));
    assert_eq!(again.holdings.map(|(_, holdings)| holdings), Some(holdings));
}
