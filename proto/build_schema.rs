//! Writes the descriptor set as Rust constants of the types in src/schema.rs: one static per
//! message and enum, and the sorted lists `MESSAGES` and `ENUMS`.

use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind,
    MessageDescriptor, Value,
};
use std::fmt::Write;

/// The whole table as source text.
pub fn schema_source(pool: &DescriptorPool) -> Result<String, std::fmt::Error> {
    let mut source = String::new();
    let ours = |package: &str| !package.starts_with("google");
    let mut enums: Vec<_> = pool.all_enums().filter(|e| ours(e.full_name())).collect();
    enums.sort_by(|a, b| a.full_name().cmp(b.full_name()));
    for description in &enums {
        write_enum(&mut source, description)?;
    }
    let mut messages: Vec<_> = pool
        .all_messages()
        .filter(|m| ours(m.full_name()))
        .collect();
    messages.sort_by(|a, b| a.full_name().cmp(b.full_name()));
    for message in &messages {
        write_message(&mut source, pool, message)?;
    }
    let messages = messages.iter().map(|m| static_name("M", m.full_name()));
    write_list(
        &mut source,
        "Every message type",
        "MESSAGES: &[&MessageDef]",
        messages,
    )?;
    let enums = enums.iter().map(|e| static_name("E", e.full_name()));
    write_list(&mut source, "Every enum", "ENUMS: &[&EnumDef]", enums)?;
    Ok(source)
}

fn write_list(
    source: &mut String,
    what: &str,
    declaration: &str,
    names: impl Iterator<Item = String>,
) -> std::fmt::Result {
    writeln!(source, "/// {what}, sorted by name.")?;
    writeln!(source, "pub static {declaration} = &[")?;
    for name in names {
        writeln!(source, "    &{name},")?;
    }
    writeln!(source, "];")
}

fn static_name(prefix: &str, full_name: &str) -> String {
    let plain: String = full_name
        .chars()
        .map(|c| if c == '.' { '_' } else { c })
        .collect();
    // CRIU_Opts and criu_opts are two types: their names must differ in more than case.
    let case = if plain.starts_with("CRIU_") {
        "OPTION_"
    } else {
        ""
    };
    format!("{prefix}_{case}{}", plain.to_uppercase())
}

fn write_enum(source: &mut String, description: &EnumDescriptor) -> std::fmt::Result {
    let name = static_name("E", description.full_name());
    writeln!(source, "static {name}: EnumDef = EnumDef {{")?;
    writeln!(source, "    name: {:?},", description.full_name())?;
    write!(source, "    values: &[")?;
    for value in description.values() {
        write!(source, "({:?}, {}), ", value.name(), value.number())?;
    }
    writeln!(source, "],\n}};")
}

fn write_message(
    source: &mut String,
    pool: &DescriptorPool,
    message: &MessageDescriptor,
) -> std::fmt::Result {
    let name = static_name("M", message.full_name());
    writeln!(source, "static {name}: MessageDef = MessageDef {{")?;
    writeln!(source, "    name: {:?},", message.full_name())?;
    writeln!(source, "    fields: &[")?;
    let mut fields: Vec<_> = message.fields().collect();
    fields.sort_by_key(FieldDescriptor::number);
    for field in fields {
        let label = match field.cardinality() {
            Cardinality::Required => "Required",
            Cardinality::Optional => "Optional",
            Cardinality::Repeated => "Repeated",
        };
        writeln!(
            source,
            "        FieldDef {{ name: {:?}, number: {}, label: Label::{label}, kind: {}, show: {} }},",
            field.name(),
            field.number(),
            field_kind(&field),
            show(pool, &field),
        )?;
    }
    writeln!(source, "    ],\n}};")
}

fn field_kind(field: &FieldDescriptor) -> String {
    let kind = match field.kind() {
        Kind::Int32 => "Int32",
        Kind::Int64 => "Int64",
        Kind::Uint32 => "Uint32",
        Kind::Uint64 => "Uint64",
        Kind::Sint32 => "Sint32",
        Kind::Sint64 => "Sint64",
        Kind::Fixed32 => "Fixed32",
        Kind::Fixed64 => "Fixed64",
        Kind::Sfixed32 => "Sfixed32",
        Kind::Sfixed64 => "Sfixed64",
        Kind::Bool => "Bool",
        Kind::String => "String",
        Kind::Bytes => "Bytes",
        Kind::Enum(e) => return format!("FieldKind::Enum(&{})", static_name("E", e.full_name())),
        Kind::Message(m) => {
            return format!("FieldKind::Message(&{})", static_name("M", m.full_name()));
        }
        Kind::Float | Kind::Double => {
            panic!(
                "{}: no image field is a floating point number",
                field.full_name()
            )
        }
    };
    format!("FieldKind::{kind}")
}

fn show(pool: &DescriptorPool, field: &FieldDescriptor) -> String {
    let extension = pool
        .get_message_by_name("google.protobuf.FieldOptions")
        .and_then(|options| options.get_extension_by_full_name("criu"))
        .expect("opts.proto extends FieldOptions with `criu`");
    let options = field.options();
    if !options.has_extension(&extension) {
        return "Show::PLAIN".into();
    }
    let value = options.get_extension(&extension);
    let Value::Message(criu) = value.as_ref() else {
        panic!("the `criu` option is a message");
    };
    format!(
        "Show {{ hex: {}, ipadd: {}, dev: {}, odev: {}, flags: {:?}, dict: {:?}, conv: {:?} }}",
        flag(criu, "hex"),
        flag(criu, "ipadd"),
        flag(criu, "dev"),
        flag(criu, "odev"),
        text(criu, "flags"),
        text(criu, "dict"),
        text(criu, "conv"),
    )
}

fn flag(criu: &DynamicMessage, name: &str) -> bool {
    criu.get_field_by_name(name)
        .and_then(|value| value.as_bool())
        .unwrap_or(false)
}

fn text(criu: &DynamicMessage, name: &str) -> Option<String> {
    let value = criu.get_field_by_name(name)?;
    value
        .as_str()
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
}
