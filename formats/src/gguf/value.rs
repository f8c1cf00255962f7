//! Values of metadata.

/// Defines [`Value`] and [`Array`] from one table: variant, Rust type, the specification's number.
macro_rules! values {
    ($($variant:ident($kind:ty) = $number:literal,)+) => {
        /// A metadata value.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs, reason = "the variants are the specification's types")]
        pub enum Value {
            $($variant($kind),)+
            /// Many values of one type, type 9 in files. Arrays of arrays are refused, as by
            /// llama.cpp.
            Array(Array),
        }

        /// Many values of one type.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs, reason = "the variants are the specification's types")]
        pub enum Array {
            $($variant(Vec<$kind>),)+
        }

        impl Value {
            /// The type's number in files (`gguf_metadata_value_type`).
            pub fn type_number(&self) -> u32 {
                match self {
                    $(Self::$variant(_) => $number,)+
                    Self::Array(_) => ARRAY,
                }
            }

            pub(super) fn write(&self, to: &mut Vec<u8>) {
                match self {
                    $(Self::$variant(value) => value.write(to),)+
                    Self::Array(array) => array.write(to),
                }
            }

            pub(super) fn read(number: u32, from: &mut Cursor<'_>) -> Result<Self, GgufError> {
                match number {
                    $($number => Ok(Self::$variant(<$kind>::read(from)?)),)+
                    ARRAY => Ok(Self::Array(Array::read(from)?)),
                    _ => wrong(format!("has type {number}; the types are 0 to 12")),
                }
            }
        }

        impl Array {
            /// Number of values.
            pub fn len(&self) -> usize {
                match self {
                    $(Self::$variant(values) => values.len(),)+
                }
            }

            /// Whether there are none.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            fn write(&self, to: &mut Vec<u8>) {
                match self {
                    $(Self::$variant(values) => {
                        let number: u32 = $number;
                        number.write(to);
                        (values.len() as u64).write(to);
                        values.iter().for_each(|value| value.write(to));
                    })+
                }
            }

            fn read(from: &mut Cursor<'_>) -> Result<Self, GgufError> {
                let number = u32::read(from)?;
                let count = u64::read(from)?;
                match number {
                    $($number => Ok(Self::$variant(read_many(count, from)?)),)+
                    _ => wrong(format!("is an array of type {number}; arrays hold types 0 to 8 and 10 to 12")),
                }
            }
        }
    };
}

use super::cursor::Cursor;
use super::error::{GgufError, wrong};

const ARRAY: u32 = 9;

values! {
    U8(u8) = 0,
    I8(i8) = 1,
    U16(u16) = 2,
    I16(i16) = 3,
    U32(u32) = 4,
    I32(i32) = 5,
    F32(f32) = 6,
    Bool(bool) = 7,
    Text(String) = 8,
    U64(u64) = 10,
    I64(i64) = 11,
    F64(f64) = 12,
}

/// How one value lies in a file.
pub(super) trait Field: Sized {
    /// Bytes of the shortest one.
    const MIN_BYTES: u64;
    fn write(&self, to: &mut Vec<u8>);
    fn read(from: &mut Cursor<'_>) -> Result<Self, GgufError>;
}

macro_rules! numbers {
    ($($kind:ty),+) => {
        $(impl Field for $kind {
            const MIN_BYTES: u64 = size_of::<$kind>() as u64;

            fn write(&self, to: &mut Vec<u8>) {
                to.extend(self.to_le_bytes());
            }

            fn read(from: &mut Cursor<'_>) -> Result<Self, GgufError> {
                Ok(Self::from_le_bytes(from.take()?))
            }
        })+
    };
}
numbers!(u8, i8, u16, i16, u32, i32, f32, u64, i64, f64);

impl Field for bool {
    const MIN_BYTES: u64 = 1;

    fn write(&self, to: &mut Vec<u8>) {
        to.push(u8::from(*self));
    }

    fn read(from: &mut Cursor<'_>) -> Result<Self, GgufError> {
        match u8::read(from)? {
            0 => Ok(false),
            1 => Ok(true),
            other => wrong(format!("is a bool of {other}, wanted 0 or 1")),
        }
    }
}

impl Field for String {
    const MIN_BYTES: u64 = 8;

    fn write(&self, to: &mut Vec<u8>) {
        (self.len() as u64).write(to);
        to.extend(self.as_bytes());
    }

    fn read(from: &mut Cursor<'_>) -> Result<Self, GgufError> {
        let length = u64::read(from)?;
        let bytes = from.bytes(length)?;
        Self::from_utf8(bytes).map_err(|e| {
            let source = e.utf8_error();
            let at = from.at() - length + source.valid_up_to() as u64;
            GgufError::NotUtf8 { at, source }
        })
    }
}

/// An array's values, once it is known that the file can hold so many.
fn read_many<T: Field>(count: u64, from: &mut Cursor<'_>) -> Result<Vec<T>, GgufError> {
    let max = from.remaining() / T::MIN_BYTES;
    if count > max {
        return wrong(format!(
            "is an array of {count} values, but only {max} can follow"
        ));
    }
    (0..count).map(|_| T::read(from)).collect()
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::U32(number)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Bool(flag)
    }
}
