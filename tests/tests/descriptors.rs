//! The descriptors that the build made of proto/criu equal the tables of the wire format
//! (data/format/messages.tsv and enums.tsv), in both directions: every message, field, number,
//! label, type, default, packing and `criu` option, every enum value; nothing missing, nothing
//! more.

use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind,
    MessageDescriptor, Value,
};
use std::{collections::BTreeSet, fmt::Write, fs, path::PathBuf};

/// The rows of a table, header left out.
fn table(name: &str) -> BTreeSet<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("data/format")
        .join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

fn criu_pool() -> DescriptorPool {
    DescriptorPool::decode(crust_proto::DESCRIPTOR_SET).expect("the embedded set is a valid pool")
}

fn type_name(kind: &Kind) -> (&'static str, String) {
    match kind {
        Kind::Double => ("double", String::new()),
        Kind::Float => ("float", String::new()),
        Kind::Int32 => ("int32", String::new()),
        Kind::Int64 => ("int64", String::new()),
        Kind::Uint32 => ("uint32", String::new()),
        Kind::Uint64 => ("uint64", String::new()),
        Kind::Sint32 => ("sint32", String::new()),
        Kind::Sint64 => ("sint64", String::new()),
        Kind::Fixed32 => ("fixed32", String::new()),
        Kind::Fixed64 => ("fixed64", String::new()),
        Kind::Sfixed32 => ("sfixed32", String::new()),
        Kind::Sfixed64 => ("sfixed64", String::new()),
        Kind::Bool => ("bool", String::new()),
        Kind::String => ("string", String::new()),
        Kind::Bytes => ("bytes", String::new()),
        Kind::Message(message) => ("message", message.full_name().to_owned()),
        Kind::Enum(values) => ("enum", values.full_name().to_owned()),
    }
}

fn label(cardinality: Cardinality) -> &'static str {
    match cardinality {
        Cardinality::Optional => "optional",
        Cardinality::Required => "required",
        Cardinality::Repeated => "repeated",
    }
}

fn plain(value: &Value, kind: &Kind) -> String {
    match value {
        Value::Bool(v) => v.to_string(),
        Value::I32(v) => v.to_string(),
        Value::I64(v) => v.to_string(),
        Value::U32(v) => v.to_string(),
        Value::U64(v) => v.to_string(),
        Value::String(v) => v.clone(),
        Value::EnumNumber(number) => match kind {
            Kind::Enum(values) => values
                .get_value(*number)
                .map_or_else(|| number.to_string(), |value| value.name().to_owned()),
            _ => number.to_string(),
        },
        other => format!("{other:?}"),
    }
}

/// The default that the .proto states, empty when it states none.
fn stated_default(field: &FieldDescriptor) -> String {
    match field.field_descriptor_proto().default_value {
        Some(_) => plain(&field.default_value(), &field.kind()),
        None => String::new(),
    }
}

/// `packed` means something only where packing is possible: repeated fields of scalar type.
fn packing(field: &FieldDescriptor) -> &'static str {
    let scalar = !matches!(field.kind(), Kind::Message(_) | Kind::String | Kind::Bytes);
    match (field.is_list() && scalar, field.is_packed()) {
        (true, true) => "true",
        (true, false) => "false",
        (false, _) => "",
    }
}

/// `name=value` of each option in the `criu` extension, ascending by number.
fn criu_options(pool: &DescriptorPool, field: &FieldDescriptor) -> String {
    let criu = pool
        .get_extension_by_name("criu")
        .expect("opts.proto defines the extension criu");
    let options: DynamicMessage = field.options();
    if !options.has_extension(&criu) {
        return String::new();
    }
    let value = options.get_extension(&criu);
    let message = value
        .as_message()
        .expect("the extension criu is of a message type");
    let mut out = String::new();
    for (option, value) in message.fields() {
        let comma = if out.is_empty() { "" } else { "," };
        write!(
            out,
            "{comma}{}={}",
            option.name(),
            plain(value, &option.kind())
        )
        .expect("String");
    }
    out
}

fn is_criu_file(name: &str) -> bool {
    !name.starts_with("google/")
}

/// Fields for state that the format has no place for: CRIU skips them, and so does its table. They
/// have a name and a number that no field of CRIU will have.
fn is_ours(field: &FieldDescriptor) -> bool {
    const FIRST_OF_OURS: u32 = 1001;
    let (named, numbered) = (
        field.name().starts_with("crust_"),
        field.number() >= FIRST_OF_OURS,
    );
    assert_eq!(named, numbered, "{}", field.full_name());
    named
}

fn message_rows(pool: &DescriptorPool, message: &MessageDescriptor, rows: &mut BTreeSet<String>) {
    let file = message.parent_file().name().to_owned();
    for field in message.fields().filter(|field| !is_ours(field)) {
        let (type_, referred) = type_name(&field.kind());
        rows.insert(format!(
            "{file}\t{}\t{}\t{}\t{}\t{type_}\t{referred}\t{}\t{}\t{}",
            message.full_name(),
            field.name(),
            field.number(),
            label(field.cardinality()),
            stated_default(&field),
            packing(&field),
            criu_options(pool, &field),
        ));
    }
}

fn extension_rows(pool: &DescriptorPool, rows: &mut BTreeSet<String>) {
    for extension in pool.all_extensions() {
        let (type_, referred) = type_name(&extension.kind());
        rows.insert(format!(
            "{}\textend {}\t{}\t{}\t{}\t{type_}\t{referred}\t\t\textension",
            extension.parent_file().name(),
            extension.containing_message().full_name(),
            extension.name(),
            extension.number(),
            label(extension.cardinality()),
        ));
    }
}

fn enum_rows(values: &EnumDescriptor, rows: &mut BTreeSet<String>) {
    for value in values.values() {
        rows.insert(format!(
            "{}\t{}\t{}\t{}",
            values.parent_file().name(),
            values.full_name(),
            value.name(),
            value.number()
        ));
    }
}

fn assert_same(table: &BTreeSet<String>, built: &BTreeSet<String>, what: &str) {
    let missing: Vec<_> = table.difference(built).collect();
    let more: Vec<_> = built.difference(table).collect();
    assert!(
        missing.is_empty() && more.is_empty(),
        "{what}: {} rows of the table are not in the descriptors, {} are only in the descriptors\n\
         only in the table:\n{missing:#?}\nonly in the descriptors:\n{more:#?}",
        missing.len(),
        more.len()
    );
    assert!(!table.is_empty(), "{what}: the table is empty");
}

#[test]
fn messages_equal_the_table() {
    let pool = criu_pool();
    let mut rows = BTreeSet::new();
    for message in pool
        .all_messages()
        .filter(|m| is_criu_file(m.parent_file().name()))
    {
        if !message.full_name().starts_with("crust_") {
            message_rows(&pool, &message, &mut rows);
        }
    }
    extension_rows(&pool, &mut rows);
    assert_same(&table("messages.tsv"), &rows, "messages");
}

#[test]
fn enums_equal_the_table() {
    let pool = criu_pool();
    let mut rows = BTreeSet::new();
    for values in pool
        .all_enums()
        .filter(|e| is_criu_file(e.parent_file().name()))
    {
        enum_rows(&values, &mut rows);
    }
    // Values of our own, as fields of our own.
    rows.retain(|row| !row.contains("\tCRUST_"));
    assert_same(&table("enums.tsv"), &rows, "enums");
}

/// The wire set is the same set with `string` read as `bytes`, and nothing else changed.
#[test]
fn wire_set_differs_in_strings_only() {
    let criu = criu_pool();
    let wire = DescriptorPool::decode(crust_proto::WIRE_DESCRIPTOR_SET).expect("a valid pool");
    let signature = |pool: &DescriptorPool, text: &str| -> BTreeSet<String> {
        pool.all_messages()
            .filter(|m| is_criu_file(m.parent_file().name()))
            .flat_map(|message| message.fields().collect::<Vec<_>>())
            .map(|field| {
                let (type_, referred) = type_name(&field.kind());
                let type_ = if type_ == "string" { text } else { type_ };
                format!(
                    "{} {} {} {type_} {referred} {} {}",
                    field.full_name(),
                    field.number(),
                    label(field.cardinality()),
                    stated_default(&field),
                    packing(&field)
                )
            })
            .collect()
    };
    let (criu, wire) = (
        signature(&criu, "bytes"),
        signature(&wire, "string is not wire"),
    );
    assert_same(&criu, &wire, "wire descriptors");
}
