use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;

use bytesize::ByteSize;
use segpack_formats::numeric::Dtype;
use segpack_manifests::documents::ExportTarget;

use super::Context;
use super::pack::jobs;
use super::terminal::{bytes, counted};
use crate::steps::export::{ExpertParallel, ExportSettings, Quantization, export, stream};
use crate::steps::{Exit, StepError, default_jobs};

/// Write the files that other runtimes read
///
/// In a stream, from raw and coded packs. Every tensor is compared with its SHA-256. In the end
/// what was written is read back and compared with the pack: by digest, or by value where --dtype
/// changed it. Files appear under their names only after that.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack export omni.segpack --to hf -o thinker --component thinker
  segpack export omni.segpack --to qwen3-moe -o text --max-shard-size 2GB
  segpack export omni.segpack --to qwen3-moe -o rank0 --expert-parallel 0/4
  segpack export omni.segpack --to gguf -o thinker.gguf --dtype q8_0
  segpack export omni.segpack --to safetensors -o - 'thinker.model.layers.0.*' | other-program
  segpack export omni.segpack --to npy -o arrays --component code2wav --dtype f32")]
pub struct Args {
    /// The pack folder
    #[arg(value_name = "PACK")]
    pack: PathBuf,
    /// Only tensors whose names match (safetensors, npy)
    #[arg(value_name = "GLOB")]
    names: Vec<String>,
    /// For whom
    #[arg(long, value_name = "FORMAT", value_enum)]
    to: Format,
    /// The folder to write; for gguf the file, whose name ends in .gguf; for safetensors the file,
    /// or - for standard output
    #[arg(long, short, value_name = "OUT")]
    output: PathBuf,
    /// Only this component and what is below it, such as thinker; may be repeated
    #[arg(long, value_name = "COMPONENT")]
    component: Vec<String>,
    /// What floating-point tensors become: wider ones are exact, narrower ones rounded to the
    /// nearest
    #[arg(long, value_name = "DTYPE", value_enum, default_value_t = DtypeName::Keep)]
    dtype: DtypeName,
    /// How large a weight file may get, such as 5GB or 2GiB [default: 5GB; gguf: one file]
    #[arg(long, value_name = "SIZE", value_parser = shard_size)]
    max_shard_size: Option<ByteSize>,
    /// llama.cpp's name of the tokenizer's pre-tokenizer, where segpack does not know it, or none
    /// to leave the tokenizer out (gguf)
    #[arg(long, value_name = "NAME", value_parser = tokenizer_pre)]
    tokenizer_pre: Option<String>,
    /// Only rank R's share of the experts (of N ranks, R from 0), and all that every rank needs
    #[arg(long, value_name = "R/N", value_parser = expert_parallel)]
    expert_parallel: Option<ExpertParallel>,
    /// Do not read back what was written
    #[arg(long)]
    no_check: bool,
    /// Threads [default: one per core, at most 16]
    #[arg(long, short, value_name = "N", value_parser = jobs)]
    jobs: Option<usize>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// What can be written.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    /// The checkpoint's own layout, or that of a component
    Hf,
    /// The text decoder as a plain Qwen3MoeForCausalLM
    Qwen3Moe,
    /// The text decoder for llama.cpp, architecture qwen3moe
    Gguf,
    /// One safetensors file of tensors
    Safetensors,
    /// A folder of .npy files, one for each tensor
    Npy,
}

impl From<Format> for ExportTarget {
    fn from(format: Format) -> Self {
        match format {
            Format::Hf => Self::Hf,
            Format::Qwen3Moe => Self::Qwen3Moe,
            Format::Gguf => Self::Gguf,
            Format::Safetensors => Self::Safetensors,
            Format::Npy => Self::Npy,
        }
    }
}

/// What floating-point tensors become.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum DtypeName {
    /// Unchanged
    Keep,
    /// bfloat16
    Bf16,
    /// IEEE half precision; what it cannot hold is an error
    F16,
    /// IEEE single precision
    F32,
    /// Blocks of 32 signed bytes with a scale (gguf); norms and routers stay f32
    #[value(name = "q8_0")]
    Q8_0,
}

impl DtypeName {
    fn dtype(self) -> Option<Dtype> {
        match self {
            Self::Keep | Self::Q8_0 => None,
            Self::Bf16 => Some(Dtype::BF16),
            Self::F16 => Some(Dtype::F16),
            Self::F32 => Some(Dtype::F32),
        }
    }

    fn quantize(self) -> Option<Quantization> {
        matches!(self, Self::Q8_0).then_some(Quantization::Q8_0)
    }
}

fn shard_size(text: &str) -> Result<ByteSize, String> {
    text.parse::<ByteSize>()
        .ok()
        .filter(|size| size.0 > 0)
        .ok_or_else(|| {
            format!("{text:?} is not a size such as 5GB (decimal), 2GiB (binary) or 500000 (bytes)")
        })
}

fn tokenizer_pre(text: &str) -> Result<String, String> {
    let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !text.is_empty() && text.len() <= 64 && text.chars().all(known) {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is not a name such as qwen2 or gpt-4o"))
}

fn expert_parallel(text: &str) -> Result<ExpertParallel, String> {
    let parsed = text
        .split_once('/')
        .and_then(|(r, n)| Some((r.parse().ok()?, n.parse().ok()?)));
    match parsed {
        Some((rank, ranks)) if rank < ranks => Ok(ExpertParallel { rank, ranks }),
        _ => Err(format!("{text:?} is not R/N with R from 0 to N-1")),
    }
}

pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let settings = ExportSettings {
        target: args.to.into(),
        components: args.component,
        names: args.names,
        dtype: args.dtype.dtype(),
        quantize: args.dtype.quantize(),
        tokenizer_pre: args.tokenizer_pre,
        max_shard_size: args.max_shard_size.map(|size| size.0),
        expert_parallel: args.expert_parallel,
        check: !args.no_check,
        jobs: args.jobs.unwrap_or_else(default_jobs),
    };
    if args.output.as_os_str() == "-" {
        return to_stdout(&args.pack, &settings, args.json, context);
    }
    let summary = export(
        &args.pack,
        &args.output,
        &settings,
        context.stop,
        &context.progress,
    )?;
    if args.json {
        context.terminal.document(&summary)?;
        return Ok(Exit::Ok);
    }
    for note in &summary.notes {
        context.terminal.line(format_args!("note: {note}"))?;
    }
    context.terminal.line(format_args!(
        "{}: {}, {}, {}; {}",
        args.output.display(),
        counted(summary.files, "file"),
        bytes(summary.bytes),
        counted(summary.tensors, "tensor"),
        if summary.checked {
            "read back and equal to the pack"
        } else {
            "not read back"
        }
    ))?;
    Ok(Exit::Ok)
}

fn to_stdout(
    pack: &std::path::Path,
    settings: &ExportSettings,
    json: bool,
    context: &Context,
) -> anyhow::Result<Exit> {
    if json {
        return Err(
            StepError::Usage("--json and -o - both want standard output".to_owned()).into(),
        );
    }
    if io::stdout().is_terminal() {
        let what =
            "tensors are binary, and standard output is a terminal; send them to a file or a pipe";
        return Err(StepError::Refused(what.to_owned()).into());
    }
    let mut out = BufWriter::with_capacity(0, io::stdout().lock()); // pieces are large already
    stream(pack, &mut out, settings, context.stop, &context.progress)?;
    out.flush().map_err(StepError::Stdout)?;
    Ok(Exit::Ok)
}
