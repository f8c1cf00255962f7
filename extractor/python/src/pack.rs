//! Packs: what is in them, and the bytes of their tensors.

use std::collections::HashSet;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyTuple};
use segpack::steps::info::info;
use segpack::steps::open::open_pack;
use segpack::work::{Job, Silent};
use segpack_formats::codec::Codec;
use segpack_formats::digest::Sha256;
use segpack_formats::io::{CancelToken, to_usize};
use segpack_formats::numeric::Dtype;
use segpack_formats::{FormatError, Result};
use segpack_manifests::documents::{SourceFile, TensorEntry};
use segpack_manifests::folder::{shard_header, source_file};
use segpack_manifests::{Pack as OpenPack, PackReader};

use crate::error::{exception, parsed, usage};
use crate::interrupt::interruptible;

/// An open pack.
#[pyclass(module = "segpack._native", frozen)]
pub(crate) struct Pack {
    pub(crate) pack: Arc<OpenPack>,
}

/// What the manifest says of a tensor.
#[pyclass(module = "segpack._native", frozen)]
#[derive(Clone)]
pub(crate) struct TensorInfo(TensorFacts);

#[derive(Clone)]
struct TensorFacts {
    entry: TensorEntry,
    codec: Codec,
    /// The file that holds it, relative to the pack.
    file: String,
}

/// The names of all dtypes.
#[pyfunction]
pub(crate) fn dtypes() -> Vec<&'static str> {
    Dtype::ALL.into_iter().map(Dtype::name).collect()
}

/// A SHA-256 that was given as 64 hex digits.
pub(crate) fn digest(py: Python<'_>, text: Option<&str>) -> PyResult<Option<Sha256>> {
    let parsed = text
        .map(|text| text.to_ascii_lowercase().parse())
        .transpose();
    parsed.map_err(|_| {
        let message = format!(
            "{:?} is not the SHA-256 of a manifest: wanted 64 hex digits",
            text.unwrap_or_default()
        );
        usage(py, &message, None)
    })
}

/// Work on one thread that an own token stops. Packs of servers ask it as long as they are used, so it
/// is never freed: one byte for each.
pub(crate) fn lasting_job() -> Job<'static> {
    Job {
        threads: 1,
        stop: Box::leak(Box::new(CancelToken::new())),
        progress: &Silent,
    }
}

#[pymethods]
impl Pack {
    #[new]
    #[pyo3(signature = (place, manifest_sha256=None))]
    fn new(py: Python<'_>, place: PathBuf, manifest_sha256: Option<&str>) -> PyResult<Self> {
        let wanted = digest(py, manifest_sha256)?;
        let job = lasting_job();
        let opened = interruptible(py, job.stop, move || open_pack(&place, wanted, job))?;
        let pack = opened.map_err(|e| exception(py, &e, None))?;
        Ok(Self {
            pack: Arc::new(pack),
        })
    }

    /// The folder, where it is one of this machine.
    #[getter]
    fn folder(&self) -> Option<PathBuf> {
        self.pack.local().map(ToOwned::to_owned)
    }

    #[getter]
    fn manifest_sha256(&self) -> String {
        self.pack.manifest_sha256().to_string()
    }

    /// The document of `segpack info --json`.
    fn info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let report = info(&self.pack, None).map_err(|e| exception(py, &e, None))?;
        parsed(py, &report)
    }

    fn names(&self) -> Vec<&str> {
        let tensors = self.pack.manifest().tensors.iter();
        tensors.map(|t| t.name.as_str()).collect()
    }

    /// Number of tensors.
    fn count(&self) -> usize {
        self.pack.manifest().tensors.len()
    }

    fn tensors(&self) -> Vec<TensorInfo> {
        let tensors = self.pack.manifest().tensors.iter();
        tensors
            .filter_map(|t| self.facts(t))
            .map(TensorInfo)
            .collect()
    }

    fn tensor(&self, name: &str) -> Option<TensorInfo> {
        let entry = self.pack.tensor(name)?;
        self.facts(entry).map(TensorInfo)
    }

    /// The file that holds a tensor as it is, that file's bytes, and the tensor's first byte in it; `None`
    /// where it is coded, or on a server.
    fn span(&self, name: &str) -> Option<(&str, u64, u64)> {
        self.pack.local()?;
        let tensor = self.pack.tensor(name)?;
        let segment = self.pack.segment(&tensor.segment)?;
        if segment.codec != Codec::Raw {
            return None;
        }
        let mut packs = self.pack.manifest().packs.iter();
        let pack = packs.find(|p| p.path == segment.pack)?;
        Some((&pack.path, pack.length, segment.offset + tensor.offset))
    }

    /// The bytes of a tensor, decoded: writable, and nobody else's.
    fn read<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        check: bool,
    ) -> PyResult<Bound<'py, PyByteArray>> {
        let tensor = self.find(py, name)?;
        let part = [Part::whole(tensor)];
        self.fill(py, tensor.length, &part, check)
    }

    /// Compares a tensor's SHA-256 with the manifest's.
    fn check(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        let tensor = self.find(py, name)?;
        let cancel = CancelToken::new();
        let checked = interruptible(py, &cancel, || {
            PackReader::new(&self.pack).check_tensor(tensor, &cancel)
        })?;
        checked.map_err(|e| exception(py, &e.into(), Some(name)))
    }

    /// The names of the checkpoint's own tensors, each once: a stacked one stands for its slices.
    fn source_names(&self) -> Vec<&str> {
        let mut seen = HashSet::new();
        let tensors = self.pack.manifest().tensors.iter();
        tensors
            .map(|t| t.source.tensor.as_str())
            .filter(|name| seen.insert(*name))
            .collect()
    }

    /// Dtype, shape and bytes of a tensor that the checkpoint stores stacked; `None` where there is
    /// none.
    fn stacked<'py>(
        &self,
        py: Python<'py>,
        name: &str,
    ) -> PyResult<Option<(&'static str, Bound<'py, PyTuple>, u64)>> {
        let Some(stack) = self.stack(py, name)? else {
            return Ok(None);
        };
        let shape = PyTuple::new(py, &stack.shape)?;
        Ok(Some((stack.dtype.name(), shape, stack.length)))
    }

    /// The bytes of a tensor that the checkpoint stores stacked, put together of its slices.
    fn read_stacked<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        check: bool,
    ) -> PyResult<Option<Bound<'py, PyByteArray>>> {
        let Some(stack) = self.stack(py, name)? else {
            return Ok(None);
        };
        let bytes = self.fill(py, stack.length, &stack.parts, check)?;
        Ok(Some(bytes))
    }

    /// A file of the checkpoint beside its shards, checked against its digest.
    fn file<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let read = py.detach(|| source_file(&self.pack, name));
        let bytes = read.map_err(|e| exception(py, &e.into(), None))?;
        Ok(bytes.map(|bytes| PyBytes::new(py, &bytes)))
    }
}

/// A tensor of the pack, and which bytes of what is read it fills.
struct Part<'p> {
    tensor: &'p TensorEntry,
    range: Range<u64>,
}

impl<'p> Part<'p> {
    fn whole(tensor: &'p TensorEntry) -> Self {
        Self {
            tensor,
            range: 0..tensor.length,
        }
    }
}

/// A tensor that the checkpoint stores stacked.
struct Stack<'p> {
    dtype: Dtype,
    shape: Vec<u64>,
    length: u64,
    parts: Vec<Part<'p>>,
}

impl Pack {
    fn facts(&self, entry: &TensorEntry) -> Option<TensorFacts> {
        let segment = self.pack.segment(&entry.segment)?;
        Some(TensorFacts {
            entry: entry.clone(),
            codec: segment.codec,
            file: segment.pack.clone(),
        })
    }

    fn find(&self, py: Python<'_>, name: &str) -> PyResult<&TensorEntry> {
        self.pack.tensor(name).ok_or_else(|| {
            let message = format!("the pack has no tensor {name:?}");
            usage(py, &message, None)
        })
    }

    /// Reads parts that lie one after another and together have so many bytes.
    fn fill<'py>(
        &self,
        py: Python<'py>,
        length: u64,
        parts: &[Part<'_>],
        check: bool,
    ) -> PyResult<Bound<'py, PyByteArray>> {
        PyByteArray::new_with(py, to_usize(length), |buffer| {
            let cancel = CancelToken::new();
            let read = interruptible(py, &cancel, || {
                self.fill_parts(buffer, parts, check, &cancel)
            })?;
            read.map_err(|(e, tensor)| exception(py, &e.into(), Some(tensor)))
        })
    }

    /// # Errors
    /// With the tensor that could not be read.
    fn fill_parts<'n>(
        &self,
        buffer: &mut [u8],
        parts: &[Part<'n>],
        check: bool,
        cancel: &CancelToken,
    ) -> Result<(), (FormatError, &'n str)> {
        let reader = PackReader::new(&self.pack);
        for Part { tensor, range } in parts {
            let here = &mut buffer[to_usize(range.start)..to_usize(range.end)];
            let read = reader.read_into(tensor, here, cancel);
            let checked = read.and_then(|()| match check {
                true => reader.compare(tensor, Sha256::of(here)),
                false => Ok(()),
            });
            checked.map_err(|e| (e, tensor.name.as_str()))?;
        }
        Ok(())
    }

    /// The stacked tensor of this name.
    fn stack(&self, py: Python<'_>, name: &str) -> PyResult<Option<Stack<'_>>> {
        let found = py.detach(|| self.find_stack(name));
        found.map_err(|e| exception(py, &e.into(), Some(name)))
    }

    fn find_stack(&self, name: &str) -> Result<Option<Stack<'_>>> {
        let slices = self.pack.slices_of(name);
        let Some(first) = slices.first() else {
            return Ok(None);
        };
        let shard = self.shard(&first.source.file)?;
        let header = shard_header(&self.pack, shard)?;
        let listed = header.tensors.iter().find(|t| t.name == name);
        let listed = listed.ok_or_else(|| {
            let path = self.pack.path(&shard.stored_as);
            FormatError::malformed(&path, format!("does not list tensor {name:?}"))
        })?;
        let start = listed.offset;
        let mut end = start;
        let mut parts = Vec::with_capacity(slices.len());
        for tensor in slices {
            let range = tensor.source.offset..tensor.source.offset.saturating_add(tensor.length);
            if range.start != end {
                return Err(self.has_gap(name, end));
            }
            end = range.end;
            parts.push(Part {
                tensor,
                range: range.start - start..range.end - start,
            });
        }
        if end - start != listed.length {
            return Err(self.has_gap(name, end));
        }
        Ok(Some(Stack {
            dtype: listed.dtype,
            shape: listed.shape.clone(),
            length: listed.length,
            parts,
        }))
    }

    /// The shard of this name.
    fn shard(&self, file: &str) -> Result<&SourceFile> {
        let mut files = self.pack.manifest().source_files.iter();
        files.find(|f| f.path == file).ok_or_else(|| {
            let what = format!("shard {file:?} is not listed");
            FormatError::malformed(self.pack.folder(), what)
        })
    }

    fn has_gap(&self, name: &str, at: u64) -> FormatError {
        let what = format!("the slices of tensor {name:?} do not join at byte {at} of its shard");
        FormatError::malformed(self.pack.folder(), what)
    }
}

#[pymethods]
impl TensorInfo {
    /// Its name.
    #[getter]
    fn name(&self) -> &str {
        &self.0.entry.name
    }

    /// Element type, as safetensors names it.
    #[getter]
    fn dtype(&self) -> &'static str {
        self.0.entry.dtype.name()
    }

    /// Shape, outermost dimension first.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.0.entry.shape)
    }

    /// Bytes, decoded.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.0.entry.length
    }

    /// SHA-256 of these bytes, 64 hex digits.
    #[getter]
    fn sha256(&self) -> String {
        self.0.entry.sha256.to_string()
    }

    /// Part of the model, such as `thinker.text`.
    #[getter]
    fn component(&self) -> &'static str {
        self.0.entry.component.as_str()
    }

    /// What it does there, such as `expert_gate`.
    #[getter]
    fn role(&self) -> &'static str {
        self.0.entry.role.as_str()
    }

    /// Which tensor of its weight it is, such as `weight` or `scale`.
    #[getter]
    fn part(&self) -> &'static str {
        self.0.entry.part.as_str()
    }

    /// Layer, if it belongs to one.
    #[getter]
    fn layer(&self) -> Option<u32> {
        self.0.entry.layer
    }

    /// Expert, if it belongs to one.
    #[getter]
    fn expert(&self) -> Option<u32> {
        self.0.entry.expert
    }

    /// The segment that holds it.
    #[getter]
    fn segment(&self) -> &str {
        &self.0.entry.segment
    }

    /// How the segment is coded.
    #[getter]
    fn codec(&self) -> String {
        self.0.codec.to_string()
    }

    /// The file that holds it, relative to the pack.
    #[getter]
    fn file(&self) -> &str {
        &self.0.file
    }

    /// The checkpoint's file that it came from.
    #[getter]
    fn source_file(&self) -> &str {
        &self.0.entry.source.file
    }

    /// The tensor of that file; a stacked one holds many.
    #[getter]
    fn source_tensor(&self) -> &str {
        &self.0.entry.source.tensor
    }

    fn __repr__(&self) -> String {
        let TensorEntry {
            name, dtype, shape, ..
        } = &self.0.entry;
        format!("TensorInfo({name:?}, {dtype}, {shape:?}, {})", self.0.codec)
    }
}
