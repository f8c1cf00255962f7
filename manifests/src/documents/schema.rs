//! JSON Schemas: of the documents, and of the values whose serde form is a string with rules of its
//! own.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema, schema_for};

use super::Document;

/// The schema of a document, its version in `$id`.
#[must_use]
pub fn schema_of<D: Document + JsonSchema>() -> Schema {
    let mut schema = schema_for!(D);
    let id = format!("urn:segpack:{}:{}", D::NAME, D::VERSION);
    schema.insert("$id".to_owned(), id.into());
    schema
}

macro_rules! string_schema {
    ($(#[$doc:meta])* $name:ident, $schema:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name;

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

string_schema! {
    /// 64 lower-case hex digits.
    HexDigest, json_schema!({ "type": "string", "pattern": "^[0-9a-f]{64}$" })
}
string_schema! {
    /// A dtype as safetensors names it.
    DtypeName, json_schema!({ "type": "string", "pattern": "^[A-Z][A-Z0-9_]*$" })
}
string_schema! {
    /// A codec.
    CodecName, json_schema!({ "enum": segpack_formats::codec::Codec::ALL.map(|c| c.name()) })
}
string_schema! {
    /// MAJOR.MINOR.
    VersionText, json_schema!({ "type": "string", "pattern": "^[1-9][0-9]*\\.(0|[1-9][0-9]*)$" })
}
