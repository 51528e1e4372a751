//! Compiles criu/*.proto without protoc, once, into everything the workspace needs of the wire
//! format: the prost types, the descriptor set as written, the same set with every `string`
//! turned into `bytes`, and the schema as constants (build_schema.rs).
//!
//! The second set exists because a `string` of CRIU's images is a raw path or name that may hold
//! bytes which are not UTF-8 (proto2 does not check, prost and prost-reflect do). The typed
//! messages are generated from it, so a path is a `Vec<u8>`; crit decodes with it and asks the
//! first set which of those fields are text.

use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorSet, field_descriptor_proto::Type};
use std::{env, error::Error, fs, path::PathBuf};

mod build_schema;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=criu");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut names: Vec<String> = fs::read_dir("criu")?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_, std::io::Error>>()?;
    names.retain(|name| name.ends_with(".proto"));
    names.sort();

    let mut compiler = protox::Compiler::new(["criu"])?;
    compiler.include_imports(true).open_files(&names)?;
    // Encoded by the compiler itself: a FileDescriptorSet of prost-types would lose the `criu`
    // field options, which are an extension it does not know.
    fs::write(out.join("criu.fds"), compiler.encode_file_descriptor_set())?;
    fs::write(
        out.join("schema.rs"),
        build_schema::schema_source(&compiler.descriptor_pool())?,
    )?;

    let mut wire = compiler.file_descriptor_set();
    for file in &mut wire.file {
        if file.name().starts_with("google/") {
            continue;
        }
        file.message_type.iter_mut().for_each(strings_to_bytes);
    }
    fs::write(out.join("criu-wire.fds"), wire.encode_to_vec())?;

    let boxed = members_of(&wire, "file_entry");
    let criu_files = wire
        .file
        .into_iter()
        // The extension of FieldOptions steers crit's JSON only; no typed message needs it, and
        // the Rust name of its CRIU_Opts would be that of rpc.proto's criu_opts.
        .filter(|file| !file.name().starts_with("google/") && file.name() != "opts.proto")
        .collect();
    let mut config = prost_build::Config::new();
    // An entry of files.img has one of twenty members. Inline they would make it 1.5 KiB, of which
    // a process with ten thousand descriptors needs 15 MiB.
    for member in boxed {
        config.boxed(format!(".file_entry.{member}"));
    }
    config
        .default_package_filename("criu")
        .compile_fds(FileDescriptorSet { file: criu_files })?;
    Ok(())
}

/// The fields of a message that are messages themselves.
fn members_of(set: &FileDescriptorSet, name: &str) -> Vec<String> {
    let messages = set.file.iter().flat_map(|file| &file.message_type);
    messages
        .filter(|message| message.name() == name)
        .flat_map(|message| &message.field)
        .filter(|field| field.r#type() == Type::Message)
        .map(|field| field.name().to_owned())
        .collect()
}

fn strings_to_bytes(message: &mut DescriptorProto) {
    for field in &mut message.field {
        if field.r#type() == Type::String {
            field.set_type(Type::Bytes);
        }
    }
    message.nested_type.iter_mut().for_each(strings_to_bytes);
}
