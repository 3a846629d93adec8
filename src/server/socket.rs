//! The CSI socket: listened on where `CSI_ENDPOINT` says, and the only file made in its directory.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use crate::host::{effect, files};

/// Why the socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A process answers there.
    #[error("{path} is in use: another process listens on it; stop that one, or give another --endpoint")]
    InUse { path: PathBuf },
    /// Something that is not a socket.
    #[error("{path} exists and is not a socket; it is left alone")]
    NotASocket { path: PathBuf },
    /// The kernel refused.
    #[error("{what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Listens on a socket. One that a dead process left is replaced; one that a living process answers on is not.
///
/// # Errors
/// See [`SocketError`].
pub async fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let fail = |what| move |source| SocketError::Io { what, path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fail("looking at")(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket { path: path.to_owned() }),
        Ok(_) => match UnixStream::connect(path).await {
            Ok(_) => return Err(SocketError::InUse { path: path.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                files::remove_file(path).map_err(fail("removing the stale socket"))?;
            }
            Err(error) => return Err(fail("asking who listens on")(error)),
        },
    }
    let listener = effect("listen", &path.display(), || UnixListener::bind(path)).map_err(fail("listening on"))?;
    // Whoever can connect can delete volumes: root alone.
    files::set_permissions(path, 0o600).map_err(fail("protecting"))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.sock");
        let first = bind(&path).await.unwrap();
        assert!(matches!(bind(&path).await, Err(SocketError::InUse { .. })));
        drop(first);
        bind(&path).await.unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(matches!(bind(&file).await, Err(SocketError::NotASocket { .. })));
        assert_eq!(std::fs::read(&file).unwrap(), b"x");
        assert!(matches!(bind(&dir.path().join("none/csi.sock")).await, Err(SocketError::Io { .. })));
    }
}
