//! Importance matrices, as llama.cpp's `imatrix` writes them: for each tensor and column the sum of
//! the squares of what the column was multiplied with, over the tokens of a text.
//!
//! There are two formats. The older one (`.dat`) is a list:
//!
//! ```text
//! entries i32 | each: name length i32, name, calls i32, values i32, values x F32
//! then, or nothing: calls of the whole i32 | length of the text's name i32, its name
//! ```
//!
//! Its values are means over tokens times the number of calls, and 1 for each call in experts that
//! no token reached. The newer one is a GGUF file: a tensor `NAME.in_sum2` of `[matrices, columns]`
//! and `NAME.counts` of `[matrices, 1]`, both F32, where a stack of experts has a matrix each.
//!
//! Source: `save_imatrix` and `save_imatrix_legacy` in tools/imatrix/imatrix.cpp, `load_imatrix` in
//! tools/quantize/quantize.cpp.

use std::collections::BTreeMap;
use std::path::Path;

use super::error::wrong;
use super::header::{Header, TensorInfo, TensorSpec, TensorType};
use super::read::read_header;
use super::value::{Array, Value};
use crate::io::{InputFile, ReadAt, to_usize};
use crate::{FormatError, Result};

/// What follows the name of a tensor in a GGUF file.
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";
const TYPE: &str = "general.type";
const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";

/// Bytes of a name in the older format.
const MAX_NAME_BYTES: u32 = 1024;
/// Values of one entry: experts times columns of a layer, of any model.
const MAX_VALUES: u64 = 1 << 28;

/// How much each column of each tensor counts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImportanceMatrix {
    entries: BTreeMap<String, Vec<f32>>,
    /// The texts that it was computed with.
    pub datasets: Vec<String>,
    /// Pieces of text that it was computed with.
    pub chunks: u32,
}

impl ImportanceMatrix {
    /// Reads either format, by what the file begins with.
    ///
    /// # Errors
    /// `Io`; `Malformed` and `Gguf` where it breaks its format, or a value is not finite or
    /// negative.
    pub fn read(path: &Path) -> Result<Self> {
        let file = InputFile::open(path)?;
        let mut magic = [0; 4];
        if file.length() >= 4 {
            ReadAt::read_at(&file, &mut magic, 0)?;
        }
        let matrix = match &magic {
            b"GGUF" => of_gguf(&file)?,
            _ => of_list(&file)?,
        };
        if matrix.entries.is_empty() {
            return Err(FormatError::malformed(
                path,
                "is an importance matrix of nothing",
            ));
        }
        Ok(matrix)
    }

    /// The mean square of each column of a tensor, of one matrix after the other where it is a stack
    /// of them. `None`: nothing is known of it.
    pub fn get(&self, tensor: &str) -> Option<&[f32]> {
        self.entries.get(tensor).map(Vec::as_slice)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn insert(&mut self, file: &dyn ReadAt, name: &str, values: Vec<f32>) -> Result<()> {
        let wrong = values.iter().position(|x| !x.is_finite() || *x < 0.0);
        if let Some(index) = wrong {
            let what = format!(
                "entry {name:?} has {} for value {index}; wanted a mean of squares",
                values[index]
            );
            return Err(FormatError::malformed(file.name(), what));
        }
        match self.entries.insert(name.to_owned(), values) {
            None => Ok(()),
            Some(_) => {
                let what = format!("entry {name:?} is there twice");
                Err(FormatError::malformed(file.name(), what))
            }
        }
    }
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
}

fn of_gguf(file: &InputFile) -> Result<ImportanceMatrix> {
    let header = read_header(file)?;
    let malformed = |what: String| FormatError::malformed(ReadAt::name(file), what);
    let mut matrix = ImportanceMatrix::default();
    if let Some(Value::Array(Array::Text(names))) = header.get(DATASETS) {
        matrix.datasets.clone_from(names);
    }
    match (
        header.get(DATASETS),
        header.get(CHUNK_COUNT),
        header.get(CHUNK_SIZE),
    ) {
        (Some(_), Some(Value::U32(chunks)), Some(_)) => matrix.chunks = *chunks,
        _ => {
            let what = format!(
                "has no {DATASETS}, {CHUNK_COUNT} and {CHUNK_SIZE}: it is no importance matrix"
            );
            return Err(malformed(what));
        }
    }
    let by_name: BTreeMap<&str, &TensorInfo> = header
        .tensors
        .iter()
        .map(|t| (t.name.as_str(), t))
        .collect();
    for sums in &header.tensors {
        if let Some(name) = sums.name.strip_suffix(COUNTS) {
            if !by_name.contains_key(&*format!("{name}{SUMS}")) {
                return Err(malformed(format!("has counts of {name:?} and no sums")));
            }
            continue;
        }
        let Some(name) = sums.name.strip_suffix(SUMS) else {
            return Err(malformed(format!(
                "has a tensor {:?}, which is neither sums nor counts",
                sums.name
            )));
        };
        let counts = by_name.get(&*format!("{name}{COUNTS}"));
        let counts =
            counts.ok_or_else(|| malformed(format!("has sums of {name:?} and no counts")))?;
        let values = means(file, &header, (sums, counts)).map_err(|e| match e {
            Mean::Format(e) => e,
            Mean::Wrong(what) => malformed(format!("entry {name:?}: {what}")),
        })?;
        matrix.insert(file, name, values)?;
    }
    Ok(matrix)
}

/// Why sums and counts give no means.
enum Mean {
    Format(FormatError),
    Wrong(String),
}

impl From<FormatError> for Mean {
    fn from(error: FormatError) -> Self {
        Self::Format(error)
    }
}

/// Each sum over its matrix's count; 1 in matrices that no token reached.
fn means(
    file: &InputFile,
    header: &Header,
    (sums, counts): (&TensorInfo, &TensorInfo),
) -> std::result::Result<Vec<f32>, Mean> {
    if (sums.kind, counts.kind) != (TensorType::F32, TensorType::F32) {
        let what = format!("sums are {}, counts {}; wanted F32", sums.kind, counts.kind);
        return Err(Mean::Wrong(what));
    }
    let read = |tensor: &TensorInfo| {
        let start = header.data_start + tensor.offset;
        file.read_range(start..start + tensor.length)
    };
    let counts: Vec<f32> = floats(&read(counts)?).collect();
    let mut values: Vec<f32> = floats(&read(sums)?).collect();
    if counts.is_empty() || values.is_empty() || !values.len().is_multiple_of(counts.len()) {
        let what = format!("{} sums and {} counts", values.len(), counts.len());
        return Err(Mean::Wrong(what));
    }
    let columns = values.len() / counts.len();
    for (values, count) in values.chunks_exact_mut(columns).zip(counts) {
        match count.round() > 0.0 {
            true => values.iter_mut().for_each(|x| *x /= count.round()),
            false => values.fill(1.0),
        }
    }
    Ok(values)
}

/// Reads the older format from its first byte to its last.
struct List<'a> {
    file: &'a InputFile,
    at: u64,
}

impl List<'_> {
    fn malformed(&self, what: &str) -> FormatError {
        let what = format!("is no importance matrix: {what} at byte {}", self.at);
        FormatError::malformed(ReadAt::name(self.file), what)
    }

    fn bytes(&mut self, count: u64) -> Result<Vec<u8>> {
        let end = self
            .at
            .checked_add(count)
            .filter(|end| *end <= self.file.length());
        let end = end.ok_or_else(|| self.malformed("it ends too early"))?;
        let bytes = self.file.read_range(self.at..end)?;
        self.at = end;
        Ok(bytes)
    }

    fn number(&mut self, what: &str) -> Result<u32> {
        let bytes = self.bytes(4)?;
        let number = bytes.first_chunk().map(|b| i32::from_le_bytes(*b));
        let number = number.and_then(|n| u32::try_from(n).ok());
        number.ok_or_else(|| self.malformed(what))
    }

    fn text(&mut self) -> Result<String> {
        let length = self.number("a negative length")?;
        if length > MAX_NAME_BYTES {
            return Err(self.malformed("a name that is too long"));
        }
        let bytes = self.bytes(u64::from(length))?;
        String::from_utf8(bytes).map_err(|_| self.malformed("a name that is not UTF-8"))
    }
}

fn of_list(file: &InputFile) -> Result<ImportanceMatrix> {
    let mut list = List { file, at: 0 };
    let mut matrix = ImportanceMatrix::default();
    let entries = list.number("a negative number of entries")?;
    for _ in 0..entries {
        let name = list.text()?;
        let calls = list.number("a negative number of calls")?;
        let count = u64::from(list.number("a negative number of values")?);
        if count == 0 || count > MAX_VALUES {
            return Err(list.malformed("an entry without values, or with too many"));
        }
        let bytes = list.bytes(4 * count)?;
        #[expect(clippy::cast_precision_loss, reason = "as llama.cpp divides")]
        let calls = if calls == 0 { 1.0 } else { calls as f32 };
        let mut values = Vec::with_capacity(to_usize(count));
        values.extend(floats(&bytes).map(|x| x / calls));
        matrix.insert(file, &name, values)?;
    }
    if list.at < file.length() {
        matrix.chunks = list.number("a negative number of calls")?;
        if list.at < file.length() {
            matrix.datasets.push(list.text()?);
        }
    }
    match list.at == file.length() {
        true => Ok(matrix),
        false => Err(list.malformed("it goes on")),
    }
}

/// Sums of squares of what columns are multiplied with, and of how many tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ActivationSums {
    /// Of one matrix after the other.
    pub sums: Vec<f32>,
    /// Tokens that reached each matrix.
    pub counts: Vec<u64>,
}

/// A GGUF file of sums as llama.cpp's `imatrix` writes it: its bytes.
///
/// # Errors
/// Where a name is too long.
pub fn write_imatrix(
    sums: &BTreeMap<String, ActivationSums>,
    datasets: &[String],
    (chunks, chunk_size): (u32, u32),
) -> std::result::Result<Vec<u8>, super::GgufError> {
    let metadata = vec![
        (TYPE.to_owned(), Value::Text("imatrix".to_owned())),
        (
            DATASETS.to_owned(),
            Value::Array(Array::Text(datasets.to_vec())),
        ),
        (CHUNK_COUNT.to_owned(), Value::U32(chunks)),
        (CHUNK_SIZE.to_owned(), Value::U32(chunk_size)),
    ];
    let spec = |name: String, matrices: usize, columns: usize| TensorSpec {
        name,
        kind: TensorType::F32,
        shape: vec![matrices as u64, columns as u64],
    };
    let mut tensors = Vec::new();
    for (name, of) in sums {
        let matrices = of.counts.len();
        tensors.push(spec(
            format!("{name}{SUMS}"),
            matrices,
            of.sums.len() / matrices.max(1),
        ));
        tensors.push(spec(format!("{name}{COUNTS}"), matrices, 1));
    }
    let header = Header::place(metadata, tensors)?;
    let mut bytes = header.to_bytes();
    for of in sums.values() {
        #[expect(clippy::cast_precision_loss, reason = "as llama.cpp stores counts")]
        let counts = of.counts.iter().map(|count| *count as f32);
        let sums = of.sums.clone();
        for values in [sums, counts.collect()] {
            bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
            let end = bytes.len().next_multiple_of(to_usize(header.alignment));
            bytes.resize(end, 0);
        }
    }
    Ok(bytes)
}

/// The same in the older format, for the name of one text.
///
/// # Errors
/// Where a number is beyond 31 bits.
pub fn write_imatrix_list(
    sums: &BTreeMap<String, ActivationSums>,
    dataset: &str,
    (chunks, chunk_size): (u32, u32),
) -> std::result::Result<Vec<u8>, super::GgufError> {
    let is_reached = |of: &&ActivationSums| of.counts.iter().any(|count| *count > 0);
    let mut bytes = Vec::new();
    number(sums.values().filter(is_reached).count(), &mut bytes)?;
    for (name, of) in sums.iter().filter(|(_, of)| is_reached(of)) {
        let most = of.counts.iter().copied().max().unwrap_or_default();
        let calls = most.div_ceil(u64::from(chunk_size.max(1)));
        text(name, &mut bytes)?;
        number(to_usize(calls), &mut bytes)?;
        number(of.sums.len(), &mut bytes)?;
        let columns = of.sums.len() / of.counts.len().max(1);
        for (sums, count) in of.sums.chunks(columns.max(1)).zip(&of.counts) {
            let values = sums.iter().map(|sum| in_calls(*sum, *count, calls));
            bytes.extend(values.flat_map(f32::to_le_bytes));
        }
    }
    number(chunks as usize, &mut bytes)?;
    text(dataset, &mut bytes)?;
    Ok(bytes)
}

/// A mean times the number of calls; that of a matrix that no token reached is 1.
#[expect(clippy::cast_precision_loss, reason = "as llama.cpp multiplies")]
fn in_calls(sum: f32, count: u64, calls: u64) -> f32 {
    match count {
        0 => calls as f32,
        count => sum / count as f32 * calls as f32,
    }
}

fn number(number: usize, to: &mut Vec<u8>) -> std::result::Result<(), super::GgufError> {
    let Ok(number) = i32::try_from(number) else {
        return wrong(format!("has a number beyond 31 bits: {number}"));
    };
    to.extend(number.to_le_bytes());
    Ok(())
}

fn text(text: &str, to: &mut Vec<u8>) -> std::result::Result<(), super::GgufError> {
    number(text.len(), to)?;
    to.extend(text.bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_give_the_same_means() {
        let sums = sums();
        let list = read(&write_imatrix_list(&sums, "t", (2, 512)).unwrap()).unwrap();
        let newer = read(&write_imatrix(&sums, &["t".to_owned()], (2, 512)).unwrap()).unwrap();
        assert_eq!(list, newer);
        // a tensor that nothing reached is not there, as in llama.cpp's
        let nothing = ActivationSums {
            sums: vec![0.0; 2],
            counts: vec![0],
        };
        let with = sums.into_iter().chain([("n.w".to_owned(), nothing)]);
        let with = write_imatrix_list(&with.collect(), "t", (2, 512)).unwrap();
        assert_eq!(read(&with).unwrap(), list);
    }

    fn written(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("imatrix");
        std::fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    fn read(bytes: &[u8]) -> Result<ImportanceMatrix> {
        let (_folder, path) = written(bytes);
        ImportanceMatrix::read(&path)
    }

    fn list() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut number = |n: i32| bytes.extend(n.to_le_bytes());
        number(1);
        number(3);
        bytes.extend(b"a.w");
        let number = |bytes: &mut Vec<u8>, n: i32| bytes.extend(n.to_le_bytes());
        number(&mut bytes, 4);
        number(&mut bytes, 2);
        bytes.extend([8_f32, 2.0].iter().flat_map(|x| x.to_le_bytes()));
        number(&mut bytes, 7);
        number(&mut bytes, 5);
        bytes.extend(b"t.txt");
        bytes
    }

    fn sums() -> BTreeMap<String, ActivationSums> {
        let experts = ActivationSums {
            sums: vec![6.0, 3.0, 0.0, 0.0],
            counts: vec![3, 0],
        };
        [("e.w".to_owned(), experts)].into()
    }

    #[test]
    fn the_older_format_holds_means_times_calls() {
        let matrix = read(&list()).unwrap();
        assert_eq!(matrix.get("a.w"), Some(&[2.0, 0.5][..]));
        assert_eq!(
            (matrix.chunks, &matrix.datasets[..], matrix.len()),
            (7, &["t.txt".to_owned()][..], 1)
        );
        assert_eq!(matrix.get("b.w"), None);
        // what follows the entries is not always there
        let matrix = read(&list()[..list().len() - 13]).unwrap();
        assert_eq!((matrix.chunks, matrix.datasets.len()), (0, 0));
    }

    #[test]
    fn the_newer_format_holds_sums_and_counts_and_unreached_experts_count_evenly() {
        let bytes = write_imatrix(&sums(), &["t".to_owned()], (2, 512)).unwrap();
        let matrix = read(&bytes).unwrap();
        assert_eq!(matrix.get("e.w"), Some(&[2.0, 1.0, 1.0, 1.0][..]));
        assert_eq!(
            (matrix.chunks, &matrix.datasets[..]),
            (2, &["t".to_owned()][..])
        );
    }

    #[test]
    fn a_file_that_is_cut_or_bent_anywhere_is_refused_or_read_and_never_panics() {
        let newer = write_imatrix(&sums(), &[], (2, 512)).unwrap();
        // what may be missing: the number of calls and the text's name; padding
        for (whole, ends) in [(list(), &[27, 31][..]), (newer, &[])] {
            for end in 0..whole.len() - 25 * usize::from(ends.is_empty()) {
                assert_eq!(read(&whole[..end]).is_ok(), ends.contains(&end), "{end}");
            }
            for place in 0..whole.len() {
                let mut bent = whole.clone();
                bent[place] ^= 0xff;
                let _ = read(&bent);
            }
        }
        let mut endless = list();
        endless.push(0);
        assert!(
            read(&endless)
                .unwrap_err()
                .to_string()
                .contains("it goes on at byte")
        );
    }

    #[test]
    fn what_is_no_mean_of_squares_is_refused() {
        for value in [f32::NAN, f32::INFINITY, -1.0] {
            let mut bent = list();
            bent[19..23].copy_from_slice(&value.to_le_bytes());
            let error = read(&bent).unwrap_err().to_string();
            assert!(
                error.contains("entry \"a.w\"") && error.contains("value 0"),
                "{error}"
            );
        }
    }
}
