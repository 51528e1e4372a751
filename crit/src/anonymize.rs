//! `crit anonymize`: a copy of a dump without its secrets, to hand to others for a bug report.
//!
//! The sizes of memory, data and text stay what they were. Pages, queued data, file contents and raw images (of networks, of a tmpfs) become zeros; text (paths by
//! component, names, hosts) and addresses become other ones, the same for the same, different for
//! different; floating point and general registers but those that say where a thread stands become
//! zero. Ids, numbers of processes, areas and flags stay: the set still fits together.

mod names;

use crate::cli;
use crate::dump::Dump;
use crate::output::open_regular;
use crate::raw::explain;
use crate::transaction::{Transaction, digest_as};
use anyhow::{Context, Result, bail};
use crust_image::Kind;
use crust_image::dynamic::{Message, Value};
use crust_image::json::FrameReader;
use crust_image::json::frame::{PayloadPlan, put_framed, put_head};
use crust_image::kind::{Framing, Payload};
use crust_proto::schema::{FieldDef, FieldKind};
use names::Names;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};

pub fn anonymize(arguments: &cli::Anonymize) -> Result<()> {
    let dump = Dump::open(&arguments.dir)?;
    let out = &arguments.out;
    fs::create_dir(out).with_context(|| format!("{}: create", out.display()))?;
    let filled = fill(&dump, out);
    if filled.is_err() {
        fs::remove_dir_all(out)
            .with_context(|| format!("{}: remove what was written", out.display()))?;
    }
    filled
}

fn fill(dump: &Dump, out: &std::path::Path) -> Result<()> {
    let mut names = Names::default();
    let mut transaction = Transaction::begin(out)?;
    if dump.path().join("parent").symlink_metadata().is_ok() {
        bail!(
            "{}: it needs its parent dump: `crit flatten` first",
            dump.shown()
        );
    }
    for name in dump.names()? {
        let Some((kind, _)) = Kind::of_file_name(OsStr::new(&name)) else {
            continue;
        };
        if matches!(kind, Kind::Digest | Kind::DigestPages) {
            continue;
        }
        if kind.spec().framing == Framing::Raw || kind == Kind::PagesShmemOld {
            // Pages, and what other tools made of a network or a tmpfs.
            let file =
                open_regular(&dump.path().join(&name)).with_context(|| format!("{name}: open"))?;
            let length = file.metadata()?.len();
            transaction.put(&name, |out| zeros(out, length))?;
        } else {
            let Some(from) = dump.read_file(&name)? else {
                continue;
            };
            let shown = dump.shown_file(&name);
            transaction.put(&name, |out| image(from, &shown, &mut names, out))?;
        }
    }
    transaction.commit()?;
    digest_as(dump.path(), out)
}

fn zeros(out: &mut dyn Write, length: u64) -> Result<()> {
    io::copy(&mut io::repeat(0).take(length), out)?;
    Ok(())
}

/// One image, its payloads as zeros of their length.
fn image(from: impl Read, shown: &str, names: &mut Names, out: &mut dyn Write) -> Result<()> {
    let mut reader = FrameReader::open(from).map_err(|error| explain(error, shown))?;
    let kind = reader.kind();
    put_head(out, kind, reader.version())?;
    while let Some(mut entry) = reader.next_entry().map_err(|error| explain(error, shown))? {
        message(&mut entry.message, names);
        let content = match reader.payload_of(&entry) {
            PayloadPlan::Bytes(length) => Content::Zeros(pass_over(&mut reader, length, shown)?),
            PayloadPlan::Rest => Content::Zeros(pass_over(&mut reader, u64::MAX, shown)?),
            _ => Content::Held(
                reader
                    .raw_payload(&entry)
                    .map_err(|error| explain(error, shown))?,
            ),
        };
        put_framed(out, &entry.message.encode())?;
        match (content, kind.spec().payload) {
            (Content::Zeros(length), _) => zeros(out, length)?,
            // The values of semaphores are state, not data.
            (Content::Held(payload), Payload::IpcSem) => out.write_all(&payload)?,
            (Content::Held(payload), Payload::IpcMsg) => {
                out.write_all(&queue_of_zeros(&payload))?
            }
            (Content::Held(payload), _) => zeros(out, payload.len() as u64)?,
        }
    }
    Ok(())
}

/// A payload as it is treated.
enum Content {
    /// Of any size, never held.
    Zeros(u64),
    Held(Vec<u8>),
}

/// Reads a payload away; how long it was. All there is for `u64::MAX`.
fn pass_over<R: Read>(reader: &mut FrameReader<R>, length: u64, shown: &str) -> Result<u64> {
    let there = io::copy(&mut reader.payload().take(length), &mut io::sink())?;
    if there < length && length != u64::MAX {
        bail!("{shown}: the image ends inside a payload ({there} of {length} bytes)");
    }
    Ok(there)
}

/// The framed heads of a SysV queue's messages, with zeros for their data.
fn queue_of_zeros(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = payload;
    while let Some((size, behind)) = rest.split_first_chunk::<4>() {
        let size = u32::from_le_bytes(*size) as usize;
        let Some((head, behind)) = behind.split_at_checked(size) else {
            break;
        };
        out.extend_from_slice(&(size as u32).to_le_bytes());
        out.extend_from_slice(head);
        let def = crust_proto::schema::message("ipc_msg");
        let data = def
            .and_then(|def| Message::decode(def, head).ok())
            .and_then(|head| head.u64("msize"))
            .unwrap_or(0);
        let padded = (data as usize).next_multiple_of(8).min(behind.len());
        out.resize(out.len() + padded, 0);
        rest = behind.get(padded..).unwrap_or_default();
    }
    out
}

/// Fields that say where a thread stands, which the areas of the set explain.
const KEPT_REGISTERS: [&str; 10] = [
    "ip", "sp", "cs", "ss", "ds", "es", "fs", "gs", "flags", "mode",
];

/// Text that names a thing of the format or of the kernel, not of the user.
fn is_kept_text(message: &str, field: &str) -> bool {
    matches!(
        (message, field),
        ("mnt_entry", "fsname")
            | ("cg_controller_entry", "cnames")
            | ("cg_member_entry", "name")
            | ("cgroup_prop_entry", "name" | "value")
            | ("plugins_entry", "plugins")
            | ("cpuinfo_x86_entry", "model_id")
            | ("sysctl_entry", "sarg")
            | ("binfmt_misc_entry", "flags")
    )
}

fn message(message: &mut Message, names: &mut Names) {
    let name = message.def.name;
    let registers = name == "user_x86_regs_entry";
    let vector = matches!(name, "user_x86_fpregs_entry" | "user_x86_xsave_entry");
    addresses(message, names);
    for (def, value) in message.fields_mut() {
        match value {
            Value::Message(inner) => self::message(inner, names),
            Value::Bytes(bytes) if !is_kept_text(name, def.name) => {
                *bytes = text(def, bytes, names)
            }
            Value::Unsigned(number) if registers && !KEPT_REGISTERS.contains(&def.name) => {
                *number = 0
            }
            Value::Unsigned(number) if vector && def.name.ends_with("space") => *number = 0,
            Value::Unsigned(number)
                if vector && ["zmm_upper", "hi16_zmm", "opmask_reg"].contains(&def.name) =>
            {
                *number = 0
            }
            _ => {}
        }
    }
}

/// Text of the same length; bytes that are no text become zeros.
fn text(def: &FieldDef, bytes: &[u8], names: &mut Names) -> Box<[u8]> {
    match def.kind {
        FieldKind::String => names.path(bytes),
        _ if def.show.conv == Some("unix_name") => names.path(bytes),
        // A siginfo begins with the signal, its code and the sender.
        _ if def.name == "siginfo" => {
            let mut kept = bytes.to_vec();
            kept.get_mut(24..).unwrap_or_default().fill(0);
            kept.into()
        }
        // Instructions, not data: a filter of zeros would not load.
        _ if def.name == "filter" => bytes.into(),
        _ => vec![0; bytes.len()].into(),
    }
}

/// The addresses of an inet socket.
fn addresses(message: &mut Message, names: &mut Names) {
    for field in ["src_addr", "dst_addr"] {
        let words: Vec<u64> = message
            .all(field)
            .filter_map(|word| word.as_u64())
            .collect();
        let mut new = names.address(&words).into_iter();
        for (_, value) in message
            .fields_mut()
            .filter(|(def, _)| def.name == field && def.show.ipadd)
        {
            if let Some(word) = new.next() {
                *value = Value::Unsigned(word);
            }
        }
    }
}
