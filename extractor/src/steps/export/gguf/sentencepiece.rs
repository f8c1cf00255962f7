//! `tokenizer.model`: the pieces of a SentencePiece vocabulary, as llama.cpp's `llama` has them.
//!
//! Source: `ModelProto` in sentencepiece_model.proto of google/sentencepiece, and
//! `TextModel._create_vocab_sentencepiece` in llama.cpp's `conversion/base.py`. Of the file's protocol
//! buffers three fields are read; a crate for all of them would be the larger part of this.

use serde_json::Value as Json;

use crate::steps::export::GgufExportError;

/// `gguf.TokenType`, which has the numbers of `ModelProto.SentencePiece.Type` but for one.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// `TrainerSpec.ModelType` of vocabularies that are merged by their scores.
const BPE: u64 = 2;

/// Scores of rows without a piece, and of tokens that were added.
const ABSENT: f32 = -10_000.0;
const ADDED: f32 = -1000.0;

/// What a row of the embedding stands for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: i32,
}

/// The pieces of a file, one for each row of the embedding.
///
/// # Errors
/// `SentencePiece` where the file is cut off or no such file, has more pieces than there are rows, or
/// is not of the kind that llama.cpp computes.
pub(super) fn pieces(file: &[u8], rows: u64) -> Result<Vec<Piece>, GgufExportError> {
    let rows = usize::try_from(rows).unwrap_or(usize::MAX);
    let (mut pieces, mut kind) = (Vec::new(), None);
    for field in fields(file) {
        match field.map_err(wrong)? {
            (1, Field::Bytes(piece)) => pieces.push(piece_of(piece).map_err(wrong)?),
            (2, Field::Bytes(trainer)) => kind = model_type(trainer).map_err(wrong)?,
            _ => {}
        }
    }
    if kind != Some(BPE) {
        return Err(wrong(
            "is not a vocabulary of merges (BPE), which llama.cpp takes it for",
        ));
    }
    if pieces.is_empty() || pieces.len() > rows {
        return Err(GgufExportError::SentencePiece {
            why: format!("has {} pieces, the embedding {rows} rows", pieces.len()),
        });
    }
    for row in pieces.len()..rows {
        pieces.push(Piece {
            text: format!("[PAD{row}]"),
            score: ABSENT,
            kind: UNUSED,
        });
    }
    Ok(pieces)
}

/// Tokens of `added_tokens.json` and those of `tokenizer_config.json` in the place of pieces.
pub(super) fn add_tokens(pieces: &mut [Piece], added: &Json, tokenizer_config: &Json) {
    let id = |id: &Json| usize::try_from(id.as_u64()?).ok();
    for (text, number) in added.as_object().into_iter().flatten() {
        if let Some(piece) = id(number).and_then(|id| pieces.get_mut(id)) {
            *piece = Piece {
                text: text.clone(),
                score: ADDED,
                kind: USER_DEFINED,
            };
        }
    }
    let decoder = tokenizer_config["added_tokens_decoder"].as_object();
    for (number, token) in decoder.into_iter().flatten() {
        let place = number.parse().ok().and_then(|id: usize| pieces.get_mut(id));
        let (Some(piece), Some(text)) = (place, token["content"].as_str()) else {
            continue;
        };
        let is_special = token["special"].as_bool() == Some(true) || looks_special(text);
        *piece = match is_special {
            true => Piece {
                text: text.to_owned(),
                score: ADDED,
                kind: CONTROL,
            },
            false => Piece {
                text: text.replace('\u{2581}', " "),
                score: ADDED,
                kind: USER_DEFINED,
            },
        };
    }
}

/// `TextModel.does_token_look_special`: added tokens that some models do not mark.
pub(super) fn looks_special(token: &str) -> bool {
    let between = |start: &str, end: &str| token.starts_with(start) && token.ends_with(end);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&token)
        || between("<|", "|>")
        || between("<\u{ff5c}", "\u{ff5c}>")
        || between("<unused", ">")
}

fn wrong(why: &'static str) -> GgufExportError {
    GgufExportError::SentencePiece {
        why: why.to_owned(),
    }
}

/// `SentencePiece`: text, score, type.
fn piece_of(bytes: &[u8]) -> Result<Piece, &'static str> {
    let mut piece = Piece {
        text: String::new(),
        score: 0.0,
        kind: NORMAL,
    };
    for field in fields(bytes) {
        match field? {
            (1, Field::Bytes(text)) => {
                let text =
                    std::str::from_utf8(text).map_err(|_| "has a piece that is not UTF-8")?;
                text.clone_into(&mut piece.text);
            }
            (2, Field::Four(bits)) => piece.score = f32::from_le_bytes(bits),
            (3, Field::Number(kind)) => {
                let kind = i32::try_from(kind)
                    .ok()
                    .filter(|kind| (1..=6).contains(kind));
                let kind = kind.ok_or("has a piece of an unknown type")?;
                // what users defined is text like any other to the converter
                piece.kind = if kind == USER_DEFINED { NORMAL } else { kind };
            }
            _ => {}
        }
    }
    Ok(piece)
}

/// `TrainerSpec.model_type`.
fn model_type(bytes: &[u8]) -> Result<Option<u64>, &'static str> {
    let mut kind = None;
    for field in fields(bytes) {
        if let (3, Field::Number(number)) = field? {
            kind = Some(number);
        }
    }
    Ok(kind)
}

/// A value of a protocol buffer.
enum Field<'a> {
    Number(u64),
    Four([u8; 4]),
    Eight,
    Bytes(&'a [u8]),
}

/// The fields of a message with their numbers; the first that is cut off ends them.
///
/// Source: <https://protobuf.dev/programming-guides/encoding/>
fn fields(bytes: &[u8]) -> impl Iterator<Item = Result<(u64, Field<'_>), &'static str>> {
    let mut left = bytes;
    std::iter::from_fn(move || {
        if left.is_empty() {
            return None;
        }
        let field = next_field(&mut left).ok_or("is cut off, or no SentencePiece model");
        if field.is_err() {
            left = &[];
        }
        Some(field)
    })
}

fn next_field<'a>(left: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let key = number(left)?;
    let field = match key & 7 {
        0 => Field::Number(number(left)?),
        1 => {
            left.split_off(..8)?;
            Field::Eight
        }
        2 => {
            let length = usize::try_from(number(left)?).ok()?;
            Field::Bytes(left.split_off(..length)?)
        }
        5 => Field::Four(left.split_off(..4)?.try_into().ok()?),
        _ => return None,
    };
    Some((key >> 3, field))
}

/// Seven bits to a byte, the lowest first; the highest bit says that more follow.
fn number(left: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = *left.split_off_first()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn length(bytes: &[u8]) -> u8 {
        u8::try_from(bytes.len()).unwrap()
    }

    /// A message of length-delimited field 1, a float 2 and a number 3, as far as they are given.
    fn message(text: &[u8], score: f32, kind: u8) -> Vec<u8> {
        let mut bytes = vec![0x0a, length(text)];
        bytes.extend(text);
        bytes.push(0x15);
        bytes.extend(score.to_le_bytes());
        bytes.extend([0x18, kind]);
        bytes
    }

    fn model(pieces: &[Vec<u8>], kind: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in pieces {
            bytes.extend([0x0a, length(piece)]);
            bytes.extend(piece);
        }
        bytes.extend([0x12, 2, 0x18, kind]);
        bytes
    }

    #[test]
    fn pieces_are_read_and_rows_without_one_are_unused() {
        let listed = [
            message(b"<unk>", 0.0, 2),
            message("\u{2581}a".as_bytes(), -1.5, 4),
        ];
        let read = pieces(&model(&listed, 2), 3).unwrap();
        let reported: Vec<_> = read
            .iter()
            .map(|p| (p.text.as_str(), p.score, p.kind))
            .collect();
        assert_eq!(
            reported,
            [
                ("<unk>", 0.0, 2),
                ("\u{2581}a", -1.5, NORMAL),
                ("[PAD2]", ABSENT, UNUSED)
            ]
        );
    }

    #[test]
    fn what_is_no_such_model_is_refused() {
        let whole = model(&[message(b"a", 0.0, 1)], 2);
        let why = |bytes: &[u8], rows| pieces(bytes, rows).unwrap_err().to_string();
        for cut in 1..whole.len() {
            why(&whole[..cut], 9);
        }
        assert!(why(b"{\"model\": 1}", 9).contains("no SentencePiece model"));
        assert!(why(&[0xff; 40], 9).contains("cut off"));
        assert!(why(&model(&[message(b"a", 0.0, 1)], 1), 9).contains("merges"));
        assert!(why(&model(&[message(&[0xff], 0.0, 1)], 2), 9).contains("UTF-8"));
        assert!(why(&model(&[message(b"a", 0.0, 7)], 2), 9).contains("unknown type"));
        assert!(why(&whole, 0).contains("has 1 pieces, the embedding 0 rows"));
    }
}
