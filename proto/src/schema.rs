//! The schema as constants: what crit's lossless side reads and writes messages by.
//!
//! The build turns the descriptor set, `criu` field options included, into these tables, so a
//! program that needs to know one field's number or how it is shown pays nothing at start (a
//! descriptor pool with its options costs milliseconds, more than the rest of a short run).

/// One message type.
#[derive(Debug)]
pub struct MessageDef {
    /// The name in the .proto file, e.g. `file_entry`.
    pub name: &'static str,
    /// In ascending number.
    pub fields: &'static [FieldDef],
}

/// One field of a message.
#[derive(Debug)]
pub struct FieldDef {
    pub name: &'static str,
    pub number: u32,
    pub label: Label,
    pub kind: FieldKind,
    pub show: Show,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label {
    Required,
    Optional,
    Repeated,
}

/// The declared type; `String` says that the bytes are meant as text, not that they are UTF-8.
#[derive(Debug, Clone, Copy)]
pub enum FieldKind {
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Sint64,
    Fixed32,
    Fixed64,
    Sfixed32,
    Sfixed64,
    Bool,
    String,
    Bytes,
    Enum(&'static EnumDef),
    Message(&'static MessageDef),
}

/// The `criu` options of a field (extension 1018): how the pretty JSON shows it.
#[derive(Debug, Clone, Copy)]
pub struct Show {
    pub hex: bool,
    pub ipadd: bool,
    pub dev: bool,
    pub odev: bool,
    pub flags: Option<&'static str>,
    pub dict: Option<&'static str>,
    pub conv: Option<&'static str>,
}

impl Show {
    /// A field without options.
    pub const PLAIN: Show = Show {
        hex: false,
        ipadd: false,
        dev: false,
        odev: false,
        flags: None,
        dict: None,
        conv: None,
    };
}

/// One enum type with its values in the order of the .proto file.
#[derive(Debug)]
pub struct EnumDef {
    pub name: &'static str,
    pub values: &'static [(&'static str, i32)],
}

impl MessageDef {
    /// The field of that number.
    pub fn field(&self, number: u32) -> Option<&'static FieldDef> {
        let at = self
            .fields
            .binary_search_by_key(&number, |field| field.number);
        at.ok().and_then(|at| self.fields.get(at))
    }

    /// The field of that name.
    pub fn field_named(&self, name: &str) -> Option<&'static FieldDef> {
        self.fields.iter().find(|field| field.name == name)
    }
}

impl EnumDef {
    /// The name of a value, if it has one.
    pub fn name_of(&self, number: i64) -> Option<&'static str> {
        let mut values = self.values.iter();
        values
            .find(|(_, value)| i64::from(*value) == number)
            .map(|(name, _)| *name)
    }

    /// The number of a named value.
    pub fn number_of(&self, name: &str) -> Option<i32> {
        let mut values = self.values.iter();
        values
            .find(|(value, _)| *value == name)
            .map(|(_, number)| *number)
    }
}

/// The message type of that name, as written in the .proto files.
pub fn message(name: &str) -> Option<&'static MessageDef> {
    let at = MESSAGES.binary_search_by_key(&name, |message| message.name);
    at.ok().and_then(|at| MESSAGES.get(at)).copied()
}

/// The enum of that name; one inside a message is named `message.enum`.
pub fn enumeration(name: &str) -> Option<&'static EnumDef> {
    let at = ENUMS.binary_search_by_key(&name, |description| description.name);
    at.ok().and_then(|at| ENUMS.get(at)).copied()
}

include!(concat!(env!("OUT_DIR"), "/schema.rs"));
