use std::collections::HashMap;
use std::path::PathBuf;

use super::*;

type Files = HashMap<String, Vec<u8>>;

/// `[text, ids by the tiny tokenizer, ids by Qwen3-Omni's]`, made with
/// `Tokenizer.from_file(…).encode(text).ids` of the Python package tokenizers 0.23.3, whose regular
/// expressions are Oniguruma's.
const ENCODINGS: &str = include_str!("../../../../../tests/fixtures/tokenizer/encodings.json");

/// The tokenizer of the tiny checkpoint that the command-line tool's demo packs.
fn tiny() -> Files {
    let file = |name: &str, bytes: &[u8]| (name.to_owned(), bytes.to_vec());
    HashMap::from([
        file(
            "tokenizer.json",
            include_bytes!("../../../../../extractor/demo/tiny-full/tokenizer.json"),
        ),
        file(
            "vocab.json",
            include_bytes!("../../../../../extractor/demo/tiny-full/vocab.json"),
        ),
        file(
            "merges.txt",
            include_bytes!("../../../../../extractor/demo/tiny-full/merges.txt"),
        ),
        file(
            "tokenizer_config.json",
            include_bytes!("../../../../../extractor/demo/tiny-full/tokenizer_config.json"),
        ),
        file(
            "generation_config.json",
            include_bytes!("../../../../../extractor/demo/tiny-full/generation_config.json"),
        ),
    ])
}

fn load(files: &Files) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::load(&|name| Ok::<_, std::io::Error>(files.get(name).cloned()))
}

fn without(files: &Files, name: &str) -> Files {
    files
        .iter()
        .filter(|(key, _)| *key != name)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn with(files: &Files, name: &str, text: impl Into<String>) -> Files {
    let mut files = files.clone();
    files.insert(name.to_owned(), text.into().into_bytes());
    files
}

fn edited(files: &Files, name: &str, from: &str, to: &str) -> Files {
    let text = String::from_utf8(files[name].clone()).unwrap();
    assert!(text.contains(from), "{name} does not hold {from:?}");
    with(files, name, text.replacen(from, to, 1))
}

fn refusal(files: &Files) -> String {
    load(files).map(|_| ()).unwrap_err().to_string()
}

fn cases(text: &str) -> Vec<(String, Vec<u32>, Vec<u32>)> {
    serde_json::from_str(text).unwrap()
}

fn decoded_by_the_crate(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    tokenizer.inner.decode(ids, false).unwrap()
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32], special: SpecialTokens) -> String {
    let mut stream = tokenizer.stream(special);
    let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
    text.push_str(&stream.finish());
    text
}

#[test]
fn both_ways_of_loading_encode_as_the_python_package_does() {
    let files = tiny();
    let (stored, built) = (
        load(&files).unwrap(),
        load(&without(&files, "tokenizer.json")).unwrap(),
    );
    for (text, tiny, _) in cases(ENCODINGS) {
        assert_eq!(
            stored.encode(&text).unwrap(),
            tiny,
            "tokenizer.json, {text:?}"
        );
        assert_eq!(
            built.encode(&text).unwrap(),
            tiny,
            "vocab.json and merges.txt, {text:?}"
        );
        assert_eq!(built.encode_bare(&text).unwrap(), tiny, "{text:?}");
    }
    assert_eq!((stored.vocab_size(), built.vocab_size()), (299, 299));
}

/// The real vocabulary is 4.4 MB (0.7 MB compressed), too much for the repository. Run with
/// `SEGPACK_QWEN_TOKENIZER=FOLDER cargo test -- --ignored qwen`, FOLDER holding `vocab.json`,
/// `merges.txt`, `tokenizer_config.json` and, if there is one, `tokenizer.json` of Qwen3-Omni;
/// `SEGPACK_TOKENIZER_CASES` names more cases of the same form.
#[test]
#[ignore = "needs Qwen3-Omni's vocabulary: SEGPACK_QWEN_TOKENIZER=FOLDER"]
fn qwen_vocabulary_encodes_as_the_python_package_does() {
    let folder = PathBuf::from(std::env::var("SEGPACK_QWEN_TOKENIZER").unwrap());
    let read = |name: &str| Ok::<_, std::io::Error>(std::fs::read(folder.join(name)).ok());
    let stored = Tokenizer::load(&read).unwrap();
    let built = Tokenizer::load(&|name| {
        if name == "tokenizer.json" {
            Ok(None)
        } else {
            read(name)
        }
    })
    .unwrap();
    assert_eq!(
        built.encode("The capital of France is").unwrap(),
        [785, 6722, 315, 9625, 374]
    );
    assert_eq!(
        (stored.vocab_size(), built.vocab_size()),
        (151_676, 151_676)
    );
    assert!(built.check_against_embedding(152_064).is_ok());
    let more =
        std::env::var("SEGPACK_TOKENIZER_CASES").map(|path| std::fs::read_to_string(path).unwrap());
    for (text, _, qwen) in [
        cases(ENCODINGS),
        more.map(|text| cases(&text)).unwrap_or_default(),
    ]
    .concat()
    {
        let shown: String = text.chars().take(200).collect();
        assert!(
            stored.encode(&text).unwrap() == qwen,
            "tokenizer.json, {shown:?}"
        );
        assert!(
            built.encode(&text).unwrap() == qwen,
            "vocab.json and merges.txt, {shown:?}"
        );
        assert_eq!(
            built.decode(&qwen, SpecialTokens::Keep),
            decoded_by_the_crate(&stored, &qwen)
        );
        assert_eq!(
            streamed(&built, &qwen, SpecialTokens::Skip),
            built.decode(&qwen, SpecialTokens::Skip)
        );
    }
}

#[test]
fn decoding_is_that_of_the_tokenizers_crate_for_any_ids() {
    let tokenizer = load(&tiny()).unwrap();
    let mut state = 1_u32;
    for length in 0..200 {
        let ids: Vec<u32> = (0..length)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 16) % 310
            })
            .collect();
        for (special, skip) in [(SpecialTokens::Keep, false), (SpecialTokens::Skip, true)] {
            let want = tokenizer.inner.decode(&ids, skip).unwrap();
            assert_eq!(tokenizer.decode(&ids, special), want);
            assert_eq!(streamed(&tokenizer, &ids, special), want);
        }
    }
}

#[test]
fn streams_never_show_half_a_character() {
    let tokenizer = load(&tiny()).unwrap();
    for text in ["né", "日本", "👍🏽x", "<|im_end|>é"] {
        let mut stream = tokenizer.stream(SpecialTokens::Keep);
        let mut shown = String::new();
        for id in tokenizer.encode(text).unwrap() {
            shown.push_str(&stream.push(id));
            assert!(text.starts_with(&shown), "{shown:?} of {text:?}");
        }
        assert_eq!(shown + &stream.finish(), text);
    }
}

fn id_of(tokenizer: &Tokenizer, byte: u8) -> u32 {
    let mut ids = 0..tokenizer.vocab_size();
    ids.find(|&id| tokenizer.token_bytes(id).as_deref() == Some(&[byte]))
        .unwrap()
}

#[test]
fn streams_replace_bytes_as_soon_as_they_are_proven_wrong() {
    let tokenizer = load(&tiny()).unwrap();
    let byte = |byte| id_of(&tokenizer, byte);
    let mut stream = tokenizer.stream(SpecialTokens::Keep);
    assert_eq!(stream.push(byte(0xf0)), "");
    assert_eq!(stream.push(byte(0x9f)), "");
    assert_eq!(stream.push(byte(b'a')), "\u{fffd}a");
    assert_eq!(stream.push(byte(0xff)), "\u{fffd}");
    assert_eq!(stream.push(byte(0xe2)), "");
    assert_eq!(stream.finish(), "\u{fffd}");
}

#[test]
fn every_byte_has_a_token_and_no_token_stands_for_two() {
    let tokenizer = load(&tiny()).unwrap();
    let single = (0..tokenizer.vocab_size())
        .filter_map(|id| tokenizer.token_bytes(id))
        .filter(|bytes| bytes.len() == 1);
    let mut seen: Vec<u8> = single.flatten().collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..=255).collect::<Vec<u8>>());
}

#[test]
fn tokens_have_texts_and_flags() {
    let tokenizer = load(&tiny()).unwrap();
    assert_eq!(tokenizer.token(287).as_deref(), Some("<|im_end|>"));
    assert_eq!(
        (tokenizer.is_special(287), tokenizer.is_special(65)),
        (true, false)
    );
    assert_eq!(tokenizer.token(299), None);
    assert_eq!(
        tokenizer
            .id_of("Ġthe")
            .and_then(|id| tokenizer.token_bytes(id))
            .unwrap(),
        b" the"
    );
    assert_eq!(tokenizer.decode(&[287, 299], SpecialTokens::Skip), "");
}

#[test]
fn eos_ids_come_from_the_generation_config_or_say_that_they_do_not() {
    let files = tiny();
    let stated = EosIds {
        ids: vec![287],
        source: EosSource::GenerationConfig,
    };
    assert_eq!(*load(&files).unwrap().eos_ids(), stated);
    assert_eq!(stated.notice(), None);
    let many = with(
        &files,
        "generation_config.json",
        r#"{"eos_token_id": [287, 285]}"#,
    );
    assert_eq!(load(&many).unwrap().eos_ids().ids, [287, 285]);
    for none in [
        without(&files, "generation_config.json"),
        with(&files, "generation_config.json", "{}"),
    ] {
        let tokenizer = load(&none).unwrap();
        assert_eq!(
            *tokenizer.eos_ids(),
            EosIds {
                ids: vec![287, 285],
                source: EosSource::Customary
            }
        );
        assert!(
            tokenizer
                .eos_ids()
                .notice()
                .unwrap()
                .contains("names no eos_token_id")
        );
    }
    let wrong = refusal(&with(
        &files,
        "generation_config.json",
        r#"{"eos_token_id": "<|im_end|>"}"#,
    ));
    assert!(
        wrong.contains("generation_config.json: eos_token_id is neither"),
        "{wrong}"
    );
}

#[test]
fn ids_outside_the_embedding_are_refused() {
    let files = tiny();
    let tokenizer = load(&files).unwrap();
    assert!(tokenizer.check_against_embedding(299).is_ok());
    let error = tokenizer
        .check_against_embedding(298)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("ids up to 298")
            && error.contains("298 rows")
            && error.contains("<|audio_pad|>"),
        "{error}"
    );
    assert!(check_ids(&[0, 297], 298, "the prompt").is_ok());
    let error = check_ids(&[0, 298], 298, "the prompt")
        .unwrap_err()
        .to_string();
    assert!(error.contains("id 298 (number 1 of the prompt)"), "{error}");
    let eos = load(&with(
        &files,
        "generation_config.json",
        r#"{"eos_token_id": 400}"#,
    ))
    .unwrap();
    assert!(
        eos.check_against_embedding(320)
            .unwrap_err()
            .to_string()
            .contains("eos_token_id")
    );
}

#[test]
fn added_tokens_keep_their_ids_and_flags() {
    let files = without(&tiny(), "tokenizer.json");
    let gap = edited(&files, "tokenizer_config.json", "\"298\": {", "\"310\": {");
    let gap = load(&gap).unwrap();
    assert_eq!(
        (gap.encode("<|audio_pad|>").unwrap(), gap.vocab_size()),
        (vec![310], 311)
    );
    let stripping = edited(
        &files,
        "tokenizer_config.json",
        "\"lstrip\": false",
        "\"lstrip\": true",
    );
    let plain = load(&files).unwrap().encode("a  <|endoftext|>").unwrap();
    let stripped = load(&stripping)
        .unwrap()
        .encode("a  <|endoftext|>")
        .unwrap();
    assert_eq!(
        (stripped.first(), stripped.last(), stripped.len()),
        (plain.first(), plain.last(), 2)
    );
}

#[test]
fn a_configuration_that_contradicts_the_vocabulary_is_refused() {
    let files = tiny();
    let moved = refusal(&edited(
        &files,
        "tokenizer_config.json",
        "\"298\": {",
        "\"310\": {",
    ));
    assert!(
        moved.contains("<|audio_pad|>") && moved.contains("310") && moved.contains("298"),
        "{moved}"
    );
    let taken = edited(
        &without(&files, "tokenizer.json"),
        "tokenizer_config.json",
        "\"298\": {",
        "\"7\": {",
    );
    assert!(
        refusal(&taken).contains("the vocabulary gives that id to"),
        "{}",
        refusal(&taken)
    );
    let odd = edited(&files, "tokenizer_config.json", "\"298\": {", "\"many\": {");
    assert!(refusal(&odd).contains("\"many\""));
}

#[test]
fn older_checkpoints_list_added_tokens_in_files_of_their_own() {
    let files = without(&tiny(), "tokenizer.json");
    let files = with(
        &files,
        "tokenizer_config.json",
        r#"{"tokenizer_class": "Qwen2Tokenizer"}"#,
    );
    let files = with(
        &files,
        "added_tokens.json",
        r#"{"<|endoftext|>": 285, "<think>": 286}"#,
    );
    let files = with(
        &files,
        "special_tokens_map.json",
        r#"{"eos_token": {"content": "<|endoftext|>"}}"#,
    );
    let tokenizer = load(&files).unwrap();
    assert_eq!(
        tokenizer.encode("<think><|endoftext|>").unwrap(),
        [286, 285]
    );
    assert_eq!(
        (tokenizer.is_special(285), tokenizer.is_special(286)),
        (true, false)
    );
}

#[test]
fn split_special_tokens_leaves_them_text() {
    let files = edited(
        &tiny(),
        "tokenizer_config.json",
        "\"split_special_tokens\": false",
        "\"split_special_tokens\": true",
    );
    assert!(load(&files).unwrap().encode("<|im_end|>").unwrap().len() > 1);
}

#[test]
fn truncation_and_padding_of_tokenizer_json_do_not_apply() {
    let truncating = r#""truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}"#;
    let files = edited(
        &tiny(),
        "tokenizer.json",
        "\"truncation\": null",
        truncating,
    );
    assert!(
        load(&files)
            .unwrap()
            .encode("one two three four")
            .unwrap()
            .len()
            > 2
    );
}

#[test]
fn other_tokenizers_are_refused_by_name() {
    let files = tiny();
    let unigram = with(
        &files,
        "tokenizer.json",
        r#"{"version": "1.0", "model": {"type": "Unigram", "vocab": []}}"#,
    );
    assert!(
        refusal(&unigram).contains("model type \"Unigram\" is not supported"),
        "{}",
        refusal(&unigram)
    );
    let class = edited(
        &without(&files, "tokenizer.json"),
        "tokenizer_config.json",
        "Qwen2Tokenizer",
        "GPT2Tokenizer",
    );
    assert!(
        refusal(&class).contains("GPT2Tokenizer"),
        "{}",
        refusal(&class)
    );
    let text = String::from_utf8(files["tokenizer.json"].clone()).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["decoder"] = serde_json::json!({"type": "Fuse"});
    assert!(
        refusal(&with(&files, "tokenizer.json", json.to_string()))
            .contains("a decoder other than ByteLevel")
    );
    json["decoder"] = serde_json::Value::Null;
    assert!(
        refusal(&with(&files, "tokenizer.json", json.to_string())).contains("without a decoder")
    );
}

#[test]
fn damaged_files_are_named() {
    let files = without(&tiny(), "tokenizer.json");
    let missing = refusal(&without(&files, "merges.txt"));
    assert!(missing.contains("merges.txt is missing"), "{missing}");
    for (name, text, want) in [
        ("vocab.json", "[1]", "vocab.json: invalid type"),
        (
            "vocab.json",
            r#"{"a": 0, "b": 0}"#,
            r#"id 0 names two tokens: "a" and "b""#,
        ),
        ("vocab.json", r#"{"a": -1}"#, "vocab.json: invalid value"),
        ("merges.txt", "u s\nuse\n", r#"line 2: "use" is not a pair"#),
        (
            "merges.txt",
            "u s\nus zz\n",
            r#"merge 2 ("us" "zz") needs the token "zz""#,
        ),
        (
            "merges.txt",
            "assistant assistant\n",
            r#"needs the token "assistantassistant""#,
        ),
        ("tokenizer_config.json", "{", "tokenizer_config.json: EOF"),
    ] {
        let error = refusal(&with(&files, name, text));
        assert!(error.contains(want), "{name} {text:?}: {error}");
    }
    let failing = |_: &str| Err::<Option<Vec<u8>>, _>(std::io::Error::other("no such disk"));
    assert!(matches!(
        Tokenizer::load(&failing),
        Err(TokenizerError::Read { .. })
    ));
}

#[test]
fn spaces_beyond_the_regular_expression_engine_are_refused() {
    let tokenizer = load(&tiny()).unwrap();
    let text = |length| format!("ab{}c", " ".repeat(length));
    assert_eq!(
        tokenizer.encode(&text(LONGEST_SPACE)).unwrap().len(),
        tokenizer.encode("abc").unwrap().len() + LONGEST_SPACE
    );
    let error = tokenizer
        .encode(&text(LONGEST_SPACE + 1))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("200001 white-space characters in a row (from character 2)"),
        "{error}"
    );
}
