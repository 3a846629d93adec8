//! The CSI socket. It listens where `CSI_ENDPOINT` says and is the only file the driver creates in that directory.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use crate::host::{effect, files};

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process answers there.
    #[error("{path} is in use: another process listens on it; stop that one, or give another --endpoint")]
    InUse { path: PathBuf },
    #[error("{path} exists and is not a socket; remove it, or give another --endpoint")]
    NotASocket { path: PathBuf },
    #[error("{what} {path}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Listens on a socket. Replaces one that a dead process left, but not one that a living process answers on.
///
/// # Errors
/// See [`SocketError`].
pub async fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let fail = |what| move |source| SocketError::Io { what, path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fail("cannot look at")(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket { path: path.to_owned() }),
        Ok(_) => match UnixStream::connect(path).await {
            Ok(_) => return Err(SocketError::InUse { path: path.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                files::remove_file(path).map_err(fail("cannot remove the stale socket"))?;
            }
            Err(error) => return Err(fail("cannot find out who listens on")(error)),
        },
    }
    let listener = effect("listen", &path.display(), || UnixListener::bind(path)).map_err(fail("cannot listen on"))?;
    // Anyone who can connect can delete volumes, so only root may.
    files::set_permissions(path, 0o600).map_err(fail("cannot set the mode of"))?;
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
