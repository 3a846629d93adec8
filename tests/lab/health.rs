//! What kubelet's probes get over the network.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use nix::sys::signal::Signal;
use testkit::client::{Accepted, Csi};
use testkit::driver::Start;
use testkit::error::Result;
use testkit::shim::{self, Fault};
use testkit::test_vg::TestVg;
use testkit::{lab, tool};

use crate::rig::{DRIVER, LIMIT, turn};
use crate::sick::{process, signal};

#[test]
fn a_driver_whose_first_look_hangs_is_alive_and_not_ready() -> Result<()> {
    let _turn = turn()?;
    tool::run("ip", &["link", "set", "lo", "up"])?;
    let home = lab::fresh("test")?;
    let vg = TestVg::make("labvg", &[lab::disk(0)?])?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 9810));
    let config = format!(
        "healthAddress: {address}\npools:\n- name: fast\n  volumeGroup: labvg\n  layout: thin\n  createThinPool: 512Mi\n"
    );
    shim::arm(Fault::Stop)?;
    let mut driver = Start::on_config(Path::new(DRIVER), &home, &config)?.spawn()?;
    // The thin pool is made before the driver is ready.
    let lvm = process("lvm", &['T'])?;
    let probe = Csi::over_network(address)?;
    assert!(probe.healthy("live").accepted("Check")?);
    assert!(!probe.healthy("").accepted("Check")?);
    signal(lvm, Signal::SIGCONT)?;
    tool::wait("the driver to be ready", LIMIT, || Ok(probe.healthy("").accepted("Check")?.then_some(())))?;
    driver.wait_ready()?;
    assert!(probe.healthy("live").accepted("Check")?);
    driver.stop()?;
    vg.destroy()?;
    covers!(81)
}
