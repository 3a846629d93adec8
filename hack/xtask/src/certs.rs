//! Certificates for the tests of the two roles, as files that the driver's flags name.

use std::path::PathBuf;

use testkit::certs::{self, Authority};
use testkit::error::Result;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Receives ca.pem, cert.pem and key.pem of each party, in its subdirectories controller and node-NODE
    directory: PathBuf,
    /// The driver's CSI name
    driver: String,
    /// Names of nodes
    nodes: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let Options { directory, driver, nodes } = options;
    let authority = Authority::new()?;
    authority.issue(&directory.join("controller"), &certs::controller(driver))?;
    for node in nodes {
        authority.issue(&directory.join(format!("node-{node}")), &certs::agent(driver, node))?;
    }
    Ok(())
}
