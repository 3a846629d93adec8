//! Generates the Rust side of `csi.proto` and `agent.proto` into `OUT_DIR`, without protoc:
//!
//! - `csi.v1.rs`, `lvmcsi.agent.v1.rs`: messages, clients and services;
//! - `csi.debug.rs`: a `Debug` that shows only the name, for messages with confidential fields;
//! - `csi.descriptor`: the compiled `FileDescriptorSet`, for the tests.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use protox::Compiler;
use protox::prost_reflect::DescriptorPool;

const PROTOS: [&str; 2] = ["csi.proto", "agent.proto"];

/// Confidential without a marked field, since mount options may contain credentials; its `Debug` is in `src/lib.rs`.
const MOUNT_VOLUME: &str = ".csi.v1.VolumeCapability.MountVolume";

fn main() -> Result<(), Box<dyn Error>> {
    for proto in PROTOS {
        println!("cargo::rerun-if-changed={proto}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo has not set OUT_DIR")?);

    let mut compiler = Compiler::new(["."])?;
    compiler
        .include_source_info(true) // comments become documentation
        .include_imports(true)
        .open_files(PROTOS)?;
    let confidential = confidential(&compiler.descriptor_pool())?;

    tonic_prost_build::configure()
        .build_transport(false)
        .skip_debug([MOUNT_VOLUME])
        .skip_debug(confidential.iter().map(|name| format!(".csi.v1.{name}")))
        .compile_fds(compiler.file_descriptor_set())?;
    let debug: String = confidential.iter().map(|name| debug_impl(name)).collect();
    fs::write(out.join("csi.debug.rs"), debug)?;
    fs::write(out.join("csi.descriptor"), compiler.encode_file_descriptor_set())?;
    Ok(())
}

/// Names of the messages that have a field with the option `csi_secret`.
fn confidential(pool: &DescriptorPool) -> Result<Vec<String>, Box<dyn Error>> {
    let secret = pool.get_extension_by_name("csi.v1.csi_secret").ok_or("csi.proto does not declare the option csi_secret")?;
    let mut names = Vec::new();
    for message in pool.all_messages() {
        if !message.fields().any(|field| field.options().has_extension(&secret)) {
            continue;
        }
        if message.parent_message().is_some() {
            // The module path of a nested type is not computed here; the contract has no nested type with secrets.
            return Err(format!("{} is nested and has secrets", message.full_name()).into());
        }
        names.push(message.name().to_owned());
    }
    Ok(names)
}

/// Rust code of the `Debug` that replaces the derived one.
fn debug_impl(name: &str) -> String {
    format!(
        "impl ::core::fmt::Debug for {name} {{
    fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {{
        f.debug_struct({name:?}).finish_non_exhaustive()
    }}
}}
"
    )
}
