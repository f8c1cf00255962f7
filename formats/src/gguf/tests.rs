use super::value::Field;
use super::*;
use crate::error::chain;
use crate::numeric::ggml::BlockType;

fn metadata() -> Vec<(String, Value)> {
    let texts = ["a", "", "é"].map(str::to_owned).to_vec();
    [
        ("general.architecture", Value::from("qwen3moe")),
        ("u8", Value::U8(200)),
        ("i8", Value::I8(-2)),
        ("u16", Value::U16(60_000)),
        ("i16", Value::I16(-3)),
        ("u32", Value::U32(7)),
        ("i32", Value::I32(-7)),
        ("f32", Value::F32(1e-6)),
        ("yes", Value::Bool(true)),
        ("u64", Value::U64(u64::MAX)),
        ("i64", Value::I64(i64::MIN)),
        ("f64", Value::F64(0.1)),
        ("texts", Value::Array(Array::Text(texts))),
        ("numbers", Value::Array(Array::I32(vec![1, -1, 3]))),
        ("none", Value::Array(Array::Bool(Vec::new()))),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec()
}

fn spec(name: &str, kind: TensorType, shape: &[u64]) -> TensorSpec {
    TensorSpec {
        name: name.to_owned(),
        kind,
        shape: shape.to_vec(),
    }
}

fn tensors() -> Vec<TensorSpec> {
    vec![
        spec("norm.weight", TensorType::F32, &[3]),
        spec(
            "blk.0.exps.weight",
            TensorType::Blocks(BlockType::Q8_0),
            &[2, 3, 64],
        ),
        spec("half", TensorType::F16, &[5, 1]),
        spec("brain", TensorType::Bf16, &[1, 1, 1, 7]),
    ]
}

/// A whole file with zeros for data.
fn file(header: &Header) -> Vec<u8> {
    let mut bytes = header.to_bytes();
    bytes.resize(usize::try_from(header.file_length()).unwrap(), 0);
    bytes
}

fn read(bytes: &[u8]) -> Result<Header, GgufError> {
    Header::read(&mut &bytes[..], bytes.len() as u64)
}

fn refusal(bytes: &[u8]) -> String {
    chain(&read(bytes).unwrap_err())
}

#[test]
fn what_is_written_is_read_again() {
    let header = Header::place(metadata(), tensors()).unwrap();
    assert_eq!(header.data_start % 32, 0);
    let places: Vec<_> = header
        .tensors
        .iter()
        .map(|t| (t.offset, t.length))
        .collect();
    assert_eq!(
        places,
        [(0, 12), (32, 2 * 3 * 2 * 34), (448, 10), (480, 14)]
    );
    let bytes = file(&header);
    assert_eq!(read(&bytes).unwrap(), header);
    assert_eq!(
        read(&bytes[..bytes.len() - 18]).unwrap(),
        header,
        "the last padding may be missing"
    );
    assert_eq!(header.get("u16"), Some(&Value::U16(60_000)));
    assert_eq!(header.tensor("half").unwrap().shape, [5, 1]);
}

#[test]
fn bytes_are_those_of_the_specification() {
    let header = Header::place(
        vec![("k".to_owned(), Value::U32(5))],
        vec![spec("t", TensorType::Bf16, &[2, 3])],
    )
    .unwrap();
    let mut wanted = b"GGUF\x03\0\0\0".to_vec();
    wanted.extend([1_u64, 1, 1].map(u64::to_le_bytes).concat()); // tensors, entries, length of the key
    wanted.extend(b"k\x04\0\0\0\x05\0\0\0");
    wanted.extend(b"\x01\0\0\0\0\0\0\0t\x02\0\0\0");
    wanted.extend([3_u64, 2].map(u64::to_le_bytes).concat()); // innermost side first
    wanted.extend(b"\x1e\0\0\0\0\0\0\0\0\0\0\0"); // BF16 is 30, offset 0
    wanted.resize(wanted.len().next_multiple_of(32), 0);
    assert_eq!(header.to_bytes(), wanted);
}

#[test]
fn another_alignment_is_obeyed() {
    let with = |n| vec![("general.alignment".to_owned(), Value::U32(n))];
    let header = Header::place(with(256), tensors()).unwrap();
    assert_eq!(header.data_start % 256, 0);
    assert_eq!(header.tensors[1].offset, 256);
    assert_eq!(read(&file(&header)).unwrap(), header);
    let error = chain(&Header::place(with(48), tensors()).unwrap_err());
    assert!(error.contains("power of two"), "{error}");
}

#[test]
fn headers_that_llama_cpp_would_refuse_are_not_made() {
    let refuse = |metadata, tensors| chain(&Header::place(metadata, tensors).unwrap_err());
    let twice = vec![
        ("k".to_owned(), Value::U8(1)),
        ("k".to_owned(), Value::U8(2)),
    ];
    assert!(refuse(twice, vec![]).contains("\"k\" appears twice"));
    let tensor = |name: &str, kind, shape: &[u64]| refuse(vec![], vec![spec(name, kind, shape)]);
    assert!(
        tensor("t", TensorType::Blocks(BlockType::Q8_0), &[4, 48])
            .contains("rows of 48 values, but Q8_0 comes in blocks of 32")
    );
    assert!(tensor("t", TensorType::F32, &[]).contains("0 dimensions"));
    assert!(tensor("t", TensorType::F32, &[1, 1, 1, 1, 1]).contains("5 dimensions"));
    assert!(tensor("t", TensorType::F32, &[4, 0]).contains("a side of 0"));
    assert!(tensor("t", TensorType::F32, &[1 << 33, 1 << 33]).contains("2^63"));
    assert!(tensor(&"n".repeat(64), TensorType::F32, &[1]).contains("64 bytes"));
    let double = vec![
        spec("t", TensorType::F32, &[1]),
        spec("t", TensorType::F32, &[1]),
    ];
    assert!(refuse(vec![], double).contains("\"t\" appears twice"));
}

/// A file of one metadata entry and one tensor, each in the words of the caller.
fn handmade(entry: &[u8], tensor: &[u8], data: usize) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend([1_u64, 1].map(u64::to_le_bytes).concat());
    bytes.extend(entry);
    bytes.extend(tensor);
    bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
    bytes
}

fn entry(kind: u32, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    "key".to_owned().write(&mut bytes);
    kind.write(&mut bytes);
    bytes.extend(value);
    bytes
}

fn tensor(kind: u32, sides: &[u64], offset: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    "t".to_owned().write(&mut bytes);
    u32::try_from(sides.len()).unwrap().write(&mut bytes);
    sides.iter().for_each(|side| side.write(&mut bytes));
    kind.write(&mut bytes);
    offset.write(&mut bytes);
    bytes
}

#[test]
fn lies_are_refused_by_name() {
    let (good_entry, good_tensor) = (entry(4, &[1, 0, 0, 0]), tensor(0, &[4], 0));
    assert!(read(&handmade(&good_entry, &good_tensor, 16)).is_ok());
    let with_entry = |e: &[u8]| refusal(&handmade(e, &good_tensor, 16));
    let with_tensor = |t: &[u8], data| refusal(&handmade(&good_entry, t, data));
    assert!(with_entry(&entry(13, &[0; 8])).contains("\"key\": has type 13"));
    assert!(with_entry(&entry(7, &[2])).contains("a bool of 2"));
    let array = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
    assert!(with_entry(&entry(9, &array(9, 1))).contains("an array of type 9"));
    assert!(
        with_entry(&entry(9, &array(4, 1 << 60)))
            .contains("an array of 1152921504606846976 values")
    );
    assert!(with_entry(&entry(8, &(1_u64 << 50).to_le_bytes())).contains("cut off?"));
    assert!(with_entry(&entry(8, b"\x02\0\0\0\0\0\0\0\xc3\x28")).contains("not UTF-8 at byte"));
    assert!(with_tensor(&tensor(4, &[32], 0), 18).contains("has type 4"));
    assert!(with_tensor(&tensor(0, &[4], 32), 48).contains("offset 32 of the data, wanted 0"));
    assert!(with_tensor(&tensor(0, &[u64::MAX, 2], 0), 16).contains("2^63"));
    assert!(with_tensor(&tensor(8, &[31], 0), 34).contains("blocks of 32"));
    assert!(with_tensor(&tensor(0, &[4; 5], 0), 16).contains("5 dimensions"));
    assert!(with_tensor(&tensor(0, &[4], 0), 15).contains("its tensors end at byte"));
    assert!(with_tensor(&tensor(0, &[4], 0), 33).contains("something follows"));
    let mut padded = handmade(&good_entry, &good_tensor, 16);
    let last = padded.len() - 17;
    padded[last] = 1;
    assert!(refusal(&padded).contains("is not zero"));
}

#[test]
fn the_first_bytes_tell_what_a_file_is() {
    assert!(refusal(b"").contains("ends at byte 0"));
    assert!(refusal(b"\x08\0\0\0\0\0\0\0{}      ").contains("begins with"));
    let mut bytes = file(&Header::place(metadata(), tensors()).unwrap());
    bytes[4] = 2;
    assert!(refusal(&bytes).contains("version 2"));
    bytes[4] = 3;
    bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(refusal(&bytes).contains("18446744073709551615 tensors"));
}

#[test]
fn a_header_cut_anywhere_is_an_error() {
    let header = Header::place(metadata(), tensors()).unwrap();
    let bytes = file(&header);
    for end in 0..usize::try_from(header.data_start).unwrap() {
        assert!(read(&bytes[..end]).is_err(), "{end} bytes were accepted");
    }
}

#[test]
fn a_file_is_read_by_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let header = Header::place(metadata(), tensors()).unwrap();
    std::fs::write(&path, file(&header)).unwrap();
    let open = || crate::io::InputFile::open(&path).unwrap();
    assert_eq!(read_header(&open()).unwrap(), header);
    std::fs::write(&path, b"<html>").unwrap();
    let error = chain(&read_header(&open()).unwrap_err());
    assert!(
        error.contains("m.gguf: malformed header: begins with \"<htm\""),
        "{error}"
    );
}

#[test]
fn files_of_a_split_model_are_named_and_numbered() {
    assert_eq!(split_name("model", 0, 3), "model-00001-of-00003.gguf");
    let [no, count, tensors] = split_metadata(2, 3, 40).unwrap();
    assert_eq!(no, ("split.no".to_owned(), Value::U16(2)));
    assert_eq!(count, ("split.count".to_owned(), Value::U16(3)));
    assert_eq!(tensors, ("split.tensors.count".to_owned(), Value::I32(40)));
    assert!(split_metadata(70_000, 70_001, 1).is_none());
}
