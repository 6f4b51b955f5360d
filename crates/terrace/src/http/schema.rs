//! Shapes of JSON fields, and fields that know both their value and their schema.

use std::collections::BTreeMap;

use utoipa::openapi::schema::{
    ArrayBuilder, KnownFormat, ObjectBuilder, OneOfBuilder, Schema, SchemaFormat, SchemaType, Type,
};
use utoipa::openapi::{Ref, RefOr};

use terrace_core::Token;

use super::json::Object;
use super::path;

/// What a field can hold.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    /// `true` or `false`.
    Bool,
    /// Always `true`.
    True,
    /// A whole number from 0 on.
    Count,
    /// A whole number from 0 on, or null.
    MaybeCount,
    /// Texts in an order.
    Texts,
    /// A percentage with two decimals.
    Percent,
    /// A number from 0 on.
    Number,
    /// `true` or `false` under each of some names.
    Flags,
    /// A whole number from 0 on under each of some names.
    Counts,
    /// One of these words under each of some names.
    Words(&'static [&'static str]),
    /// Any text.
    Text,
    /// Any text, or null.
    MaybeText,
    /// One of these words.
    Word(&'static [&'static str]),
    /// UTC without an offset, six digits, or null.
    MaybePlainTime,
    /// RFC 3339 in UTC.
    Time,
    /// The name of a record.
    Key,
    /// The content of a record.
    Value,
    /// What a key may begin with.
    Prefix,
    /// Where a page ended.
    Cursor,
    /// What a client has seen.
    Token,
    /// A whole number from 1 on.
    UpTo(usize),
    /// Text in this form.
    Form(&'static str),
    /// Text in this form, of at most so many characters.
    Short(&'static str, usize),
    /// `*` or a list of entity tags.
    Tags,
    /// A document: any JSON object.
    Document,
}

impl Shape {
    /// The schema, with what the field means.
    pub(crate) fn schema(self, meaning: &str) -> Schema {
        let object = ObjectBuilder::new();
        let nullable = || SchemaType::from_iter([Type::String, Type::Null]);
        let format = |format| Some(SchemaFormat::KnownFormat(format));
        let object = match self {
            Self::Bool => object.schema_type(Type::Boolean),
            Self::True => object.schema_type(Type::Boolean).enum_values(Some([true])),
            Self::Count => object
                .schema_type(Type::Integer)
                .format(format(KnownFormat::Int64))
                .minimum(Some(0))
                .maximum(Some(i64::MAX)),
            Self::MaybeCount => object
                .schema_type(SchemaType::from_iter([Type::Integer, Type::Null]))
                .format(format(KnownFormat::Int64))
                .minimum(Some(0))
                .maximum(Some(i64::MAX)),
            Self::Tags => {
                let (any, tags) = (Self::Word(&["*"]).schema(""), Self::Form(TAGS).schema(""));
                return OneOfBuilder::new().item(any).item(tags).build().into();
            }
            Self::Texts => return array(Self::Text.schema(meaning), 0, 100),
            Self::Percent => object.schema_type(Type::Number).minimum(Some(0)).maximum(Some(100)),
            Self::Number => object.schema_type(Type::Number).minimum(Some(0)),
            Self::Flags => object.additional_properties(Some(RefOr::T(Self::Bool.schema("")))),
            Self::Counts => object.additional_properties(Some(RefOr::T(Self::Count.schema("")))),
            Self::Words(words) => {
                object.additional_properties(Some(RefOr::T(Self::Word(words).schema(""))))
            }
            Self::Text => object.schema_type(Type::String),
            Self::MaybeText => object.schema_type(nullable()),
            Self::Word(words) => object.schema_type(Type::String).enum_values(Some(words.to_vec())),
            Self::MaybePlainTime => object
                .schema_type(nullable())
                .pattern(Some(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}$")),
            Self::Time => object.schema_type(Type::String).format(format(KnownFormat::DateTime)),
            Self::Key => object
                .schema_type(Type::String)
                .min_length(Some(1))
                .max_length(Some(terrace_core::Key::MAX_CHARS))
                .pattern(Some(NO_NUL)),
            Self::Value => object
                .schema_type(Type::String)
                .max_length(Some(terrace_core::Value::MAX_BYTES))
                .pattern(Some(NO_NUL)),
            Self::Prefix => object
                .schema_type(Type::String)
                .max_length(Some(terrace_core::Key::MAX_CHARS))
                .pattern(Some(NO_NUL)),
            Self::Cursor => object.schema_type(Type::String).pattern(Some(path::cursors())),
            Self::Token => object.schema_type(Type::String).pattern(Some(Token::pattern())),
            Self::UpTo(most) => {
                object.schema_type(Type::Integer).minimum(Some(1)).maximum(Some(most))
            }
            Self::Form(pattern) => object.schema_type(Type::String).pattern(Some(pattern)),
            Self::Document => object
                .schema_type(Type::Object)
                .property_names(Some(Self::Form(NO_NUL).schema("")))
                .additional_properties(Some(Ref::from_schema_name(JSON))),
            Self::Short(pattern, most) => {
                object.schema_type(Type::String).pattern(Some(pattern)).max_length(Some(most))
            }
        };
        let meaning = (!meaning.is_empty()).then_some(meaning);
        object.description(meaning).build().into()
    }
}

const TAGS: &str = "^(W/)?\"[!#-~]*\"( ?, ?(W/)?\"[!#-~]*\"){0,99}$";

/// Text without the character that PostgreSQL cannot keep.
const NO_NUL: &str = "^[^\\u0000]*$";

/// The name of the schema of [`json`].
pub(crate) const JSON: &str = "Json";

/// Any value within a document. A float may lie beyond the bounds, an integer may not: in a schema the two
/// are one type.
pub(crate) fn json() -> Schema {
    let of = |kind| ObjectBuilder::new().schema_type(kind);
    let number = of(Type::Number).minimum(Some(i64::MIN)).maximum(Some(i64::MAX));
    let items = RefOr::Ref(Ref::from_schema_name(JSON));
    OneOfBuilder::new()
        .item(of(Type::Null).build())
        .item(Shape::Bool.schema(""))
        .item(number.build())
        .item(Shape::Text.schema(""))
        .item(ArrayBuilder::new().items(items).build())
        .item(Shape::Document.schema(""))
        .build()
        .into()
}

/// An object with these fields; a name that ends in `?` is optional.
pub(crate) fn object(fields: &[(&'static str, Schema)]) -> ObjectBuilder {
    let start = ObjectBuilder::new().schema_type(Type::Object);
    fields.iter().fold(start, |object, (name, schema)| match name.strip_suffix('?') {
        Some(name) => object.property(name, schema.clone()),
        None => object.property(*name, schema.clone()).required(*name),
    })
}

/// An array of `min` to `max` items.
pub(crate) fn array(items: Schema, min: usize, max: usize) -> Schema {
    let items = RefOr::T(items);
    ArrayBuilder::new().items(items).min_items(Some(min)).max_items(Some(max)).build().into()
}

/// One field of a body: its name, what it means, and how to get its value from `T`.
pub(crate) struct Field<T: 'static> {
    /// Its name on the wire.
    pub(crate) name: &'static str,
    /// What it means, for the documentation.
    pub(crate) meaning: &'static str,
    /// Its value.
    pub(crate) value: Getter<T>,
}

/// How to get the value of a field, and so what the field can hold.
pub(crate) enum Getter<T: 'static> {
    /// `true` or `false`.
    Bool(fn(&T) -> bool),
    /// A whole number.
    Count(fn(&T) -> u64),
    /// A percentage, rounded to two decimals.
    Percent(fn(&T) -> f64),
    /// One of these words.
    Word(&'static [&'static str], fn(&T) -> &'static str),
    /// Whole numbers by names.
    Counts(fn(&T) -> BTreeMap<String, u64>),
    /// `true` or `false` by names.
    Flags(fn(&T) -> BTreeMap<String, bool>),
    /// Some of these words by names.
    Words(&'static [&'static str], fn(&T) -> BTreeMap<String, &'static str>),
    /// Any text.
    Text(fn(&T) -> String),
    /// Texts in an order.
    Texts(fn(&T) -> Vec<String>),
}

impl<T> Field<T> {
    /// A field.
    pub(crate) const fn new(name: &'static str, meaning: &'static str, value: Getter<T>) -> Self {
        Self { name, meaning, value }
    }

    /// The field's name and schema, as [`object`] takes them.
    pub(crate) fn described(&self) -> (&'static str, Schema) {
        let shape = match self.value {
            Getter::Bool(_) => Shape::Bool,
            Getter::Count(_) => Shape::Count,
            Getter::Percent(_) => Shape::Percent,
            Getter::Word(words, _) => Shape::Word(words),
            Getter::Counts(_) => Shape::Counts,
            Getter::Flags(_) => Shape::Flags,
            Getter::Words(words, _) => Shape::Words(words),
            Getter::Text(_) => Shape::Text,
            Getter::Texts(_) => Shape::Texts,
        };
        (self.name, shape.schema(self.meaning))
    }

    /// Writes these fields.
    pub(crate) fn write_all(fields: &[Self], from: &T, into: Object) -> Object {
        fields.iter().fold(into, |object, field| match field.value {
            Getter::Bool(get) => object.field(field.name, &get(from)),
            Getter::Count(get) => object.field(field.name, &get(from)),
            Getter::Percent(get) => {
                object.field(field.name, &((get(from) * 100.0).round() / 100.0))
            }
            Getter::Word(_, get) => object.field(field.name, get(from)),
            Getter::Counts(get) => object.field(field.name, &get(from)),
            Getter::Flags(get) => object.field(field.name, &get(from)),
            Getter::Words(_, get) => object.field(field.name, &get(from)),
            Getter::Text(get) => object.field(field.name, &get(from)),
            Getter::Texts(get) => object.field(field.name, &get(from)),
        })
    }
}

impl<T> std::fmt::Debug for Field<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Field").field(&self.name).finish()
    }
}
