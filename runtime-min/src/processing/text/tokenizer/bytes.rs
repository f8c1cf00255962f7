//! GPT-2's alphabet: 256 printable characters, one for each byte.

/// The bytes that a token of a byte-level vocabulary stands for. A token with a character outside
/// the alphabet (an added token) stands for its own UTF-8, as in the `tokenizers` crate's ByteLevel
/// decoder.
pub(super) fn of_token(token: String) -> Vec<u8> {
    token
        .chars()
        .map(byte_of)
        .collect::<Option<Vec<u8>>>()
        .unwrap_or_else(|| token.into_bytes())
}

/// Bytes without a printable Latin-1 character take U+0100 and up, in order.
fn byte_of(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}
