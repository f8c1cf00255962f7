use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use segpack_formats::numeric::Dtype;
use segpack_manifests::documents::ExportTarget;

use super::Context;
use super::args::Jobs;
use super::args::values::{expert_parallel, shard_size, tokenizer_pre};
use crate::render::text;
use crate::steps::export::{ExpertParallel, ExportSettings, Quantization, export, stream};
use crate::steps::{Exit, StepError};

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
    #[command(flatten)]
    jobs: Jobs,
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
        jobs: args.jobs.count(),
    };
    if args.output.as_os_str() == "-" {
        return to_stdout(&args.pack, &settings, args.json, context);
    }
    let (stop, progress) = (context.stop, &context.progress);
    let summary = export(&args.pack, &args.output, &settings, stop, progress)?;
    let place = args.output.display().to_string();
    context
        .terminal
        .document(&summary, args.json, |s| text::export(s, &place))?;
    Ok(Exit::Ok)
}

fn to_stdout(
    pack: &Path,
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
