//! Makes the certificates of a controller and of nodes: `certs DIRECTORY DRIVER NODE...` writes `ca.pem`, `cert.pem` and `key.pem`
//! into `DIRECTORY/controller` and into `DIRECTORY/node-NODE`.

use std::path::PathBuf;
use std::process::ExitCode;

use testkit::certs::{self, Authority};
use testkit::error::{Result, Trouble};

fn main() -> ExitCode {
    match make() {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            testkit::lab::say(&format!("certs: {trouble:?}"));
            ExitCode::FAILURE
        }
    }
}

fn make() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(directory), Some(driver)) = (arguments.next().map(PathBuf::from), arguments.next()) else {
        return Err(Trouble::wrong("usage: certs DIRECTORY DRIVER NODE..."));
    };
    let authority = Authority::new()?;
    authority.issue(&directory.join("controller"), &certs::controller(&driver))?;
    for node in arguments {
        authority.issue(&directory.join(format!("node-{node}")), &certs::agent(&driver, &node))?;
    }
    Ok(())
}
