use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use segpack_formats::numeric::FloatDtype;
use segpack_manifests::Pack;
use segpack_manifests::documents::ExportTarget;

use super::Context;
use super::args::values::{expert_parallel, shard_size, tokenizer_pre};
use super::args::{INPUT, Jobs, OUTPUT, PackArg, ReadingArgs};
use super::error::CliError;
use crate::render::text;
use crate::steps::Exit;
use crate::steps::export::{
    Encoders, ExpertParallel, ExportSettings, Importance, Quantization, check_share, export, stream,
};

/// Write the weights in a format that other runtimes read
///
/// Streams from raw and coded packs, and compares the SHA-256 of every tensor. The output is then
/// read back and compared with the pack: by digest, or by value where --dtype changed it. Files
/// appear under their names only after that, all or none: they are built in .OUT.partial beside OUT.
/// An interrupted run leaves there what it has finished, and --resume continues it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack export omni.segpack --to hf -o thinker --component thinker
  segpack export omni.segpack --to qwen3-moe -o text --max-shard-size 2GB
  segpack export omni.segpack --to qwen3-moe -o rank0 --expert-parallel 0/4
  segpack export omni.segpack --to gguf -o thinker.gguf --dtype q8_0
  segpack export omni.segpack --to gguf -o omni.gguf --mmproj image   # and mmproj-omni.gguf
  segpack export omni.segpack --to safetensors -o - 'thinker.model.layers.0.*' | other-program
  segpack export omni.segpack --to npy -o arrays --component code2wav --dtype f32
  segpack export omni.segpack --to gguf -o thinker.gguf --max-shard-size 5GB --resume
  segpack export --check-share rank0 --rank 0/4   # before it is served
  segpack export omni.segpack --check-share rank0 --rank 0/4   # every byte, too")]
#[command(mut_arg("pack", |pack| pack.index(1).required(false).required_unless_present("check_share")))]
pub(super) struct Args {
    #[command(flatten)]
    pack: Option<PackArg>,
    #[command(flatten)]
    reading: ReadingArgs,
    /// Export only tensors whose names match one of these patterns (safetensors and npy)
    #[arg(value_name = "GLOB", index = 2)]
    names: Vec<String>,
    /// Export only this component and those below it, such as thinker; may be repeated
    #[arg(long, value_name = "COMPONENT", help_heading = INPUT)]
    component: Vec<String>,
    /// Export only the experts of rank R of N, counted from 0, and everything that all ranks need
    #[arg(long, value_name = "R/N", value_parser = expert_parallel, help_heading = INPUT)]
    expert_parallel: Option<ExpertParallel>,
    /// Check a folder that --expert-parallel wrote instead of exporting: whether it holds the experts
    /// of --rank, no other and none less, and its files say so; with PACK also whether every tensor
    /// has the pack's bytes
    #[arg(
        long,
        value_name = "DIR",
        requires = "rank",
        conflicts_with_all = ["to", "output", "names", "component", "expert_parallel"],
        help_heading = INPUT
    )]
    check_share: Option<PathBuf>,
    /// The rank that --check-share is for
    #[arg(
        long,
        value_name = "R/N",
        value_parser = expert_parallel,
        requires = "check_share",
        help_heading = INPUT
    )]
    rank: Option<ExpertParallel>,
    #[command(flatten)]
    jobs: Jobs,
    /// Output format
    #[arg(
        long,
        value_name = "FORMAT",
        value_enum,
        required_unless_present = "check_share",
        help_heading = OUTPUT
    )]
    to: Option<Format>,
    /// Folder to write; for gguf a file named *.gguf; for safetensors a file, or - for standard
    /// output
    #[arg(
        long,
        short,
        value_name = "OUT",
        required_unless_present = "check_share",
        help_heading = OUTPUT
    )]
    output: Option<PathBuf>,
    /// Type of floating-point tensors; conversion to a wider type is exact, to a narrower one
    /// rounds to nearest
    #[arg(long, value_name = "DTYPE", value_enum, default_value_t = DtypeName::Keep, help_heading = OUTPUT)]
    dtype: DtypeName,
    /// Maximum size of a weight file, such as 5GB or 2GiB [default: 5GB; gguf: one file]
    #[arg(long, value_name = "SIZE", value_parser = shard_size, help_heading = OUTPUT)]
    max_shard_size: Option<ByteSize>,
    /// Importance matrix of llama.cpp's `imatrix`, GGUF or .dat: errors count more in columns that
    /// it says are large (gguf, q4_k_s to q6_k)
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    imatrix: Option<PathBuf>,
    /// Write encoders, too, as mmproj-OUT beside OUT, and the text as llama.cpp's `qwen3vlmoe`, which
    /// takes what they give (gguf, of Qwen3-Omni)
    #[arg(long, value_name = "ENCODERS", value_enum, help_heading = OUTPUT)]
    mmproj: Option<EncodersName>,
    /// Name of the pre-tokenizer in llama.cpp, if segpack does not recognise it; `none` omits the
    /// tokenizer (gguf)
    #[arg(long, value_name = "NAME", value_parser = tokenizer_pre, help_heading = OUTPUT)]
    tokenizer_pre: Option<String>,
    /// Continue an interrupted run, or write files that OUT lacks; files that are there are compared
    /// with the pack
    #[arg(long, help_heading = OUTPUT)]
    resume: bool,
    /// Replace OUT, if it holds nothing but what such an export writes; it stays whole until the new
    /// one is complete. Without --resume, what an interrupted run left is removed
    #[arg(long, help_heading = OUTPUT)]
    force: bool,
    /// Do not read the output back
    #[arg(long, help_heading = OUTPUT)]
    no_check: bool,
    /// Print the summary or, with --check-share, the report as JSON (schemas/export-summary.schema.json,
    /// share-report.schema.json)
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

impl Args {
    /// The folder or file to write; none where it is standard output.
    pub(super) fn output(&self) -> Option<&Path> {
        let output = self.output.as_deref();
        output.filter(|output| output.as_os_str() != "-")
    }
}

/// Formats of an export.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    /// Hugging Face: the checkpoint's own layout, or one of its components
    Hf,
    /// The text decoder as a Qwen3MoeForCausalLM checkpoint
    Qwen3Moe,
    /// The text decoder for llama.cpp: Qwen3-MoE, Qwen2-MoE, Mixtral, OLMoE, GLM-4.5, gpt-oss
    Gguf,
    /// One safetensors file
    Safetensors,
    /// A folder with one .npy file per tensor
    Npy,
}

/// Encoders of an export.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum EncodersName {
    /// That of images; the text's rows have room for what it gives to several layers
    Image,
    /// That of audio
    Audio,
    /// Both, as llama.cpp's converter has it; llama.cpp b11549 refuses such a file, as their rows
    /// differ in length
    Both,
}

impl From<EncodersName> for Encoders {
    fn from(name: EncodersName) -> Self {
        match name {
            EncodersName::Image => Self::Image,
            EncodersName::Audio => Self::Audio,
            EncodersName::Both => Self::Both,
        }
    }
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

/// Types of floating-point tensors in an export.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum DtypeName {
    /// Unchanged
    Keep,
    /// bfloat16
    Bf16,
    /// IEEE half precision; values out of its range are an error
    F16,
    /// IEEE single precision
    F32,
    /// 8-bit blocks of 32 with a scale (gguf); norms and routers are stored as f32
    #[value(name = "q8_0")]
    Q8_0,
    /// 6-bit blocks of 256 (gguf, as are those below)
    #[value(name = "q6_k")]
    Q6K,
    /// 5-bit blocks of 256, some tensors q6_k
    #[value(name = "q5_k_m")]
    Q5KM,
    /// 5-bit blocks of 256
    #[value(name = "q5_k_s")]
    Q5KS,
    /// 4-bit blocks of 256, some tensors q6_k
    #[value(name = "q4_k_m")]
    Q4KM,
    /// 4-bit blocks of 256, some tensors q5_k
    #[value(name = "q4_k_s")]
    Q4KS,
    /// 5-bit blocks of 32
    #[value(name = "q5_0")]
    Q5_0,
    /// 4-bit blocks of 32
    #[value(name = "q4_0")]
    Q4_0,
}

impl DtypeName {
    fn dtype(self) -> Option<FloatDtype> {
        match self {
            Self::Bf16 => Some(FloatDtype::BF16),
            Self::F16 => Some(FloatDtype::F16),
            Self::F32 => Some(FloatDtype::F32),
            Self::Keep
            | Self::Q8_0
            | Self::Q6K
            | Self::Q5KM
            | Self::Q5KS
            | Self::Q4KM
            | Self::Q4KS
            | Self::Q5_0
            | Self::Q4_0 => None,
        }
    }

    fn quantize(self) -> Option<Quantization> {
        match self {
            Self::Keep | Self::Bf16 | Self::F16 | Self::F32 => None,
            Self::Q8_0 => Some(Quantization::Q8_0),
            Self::Q6K => Some(Quantization::Q6K),
            Self::Q5KM => Some(Quantization::Q5KM),
            Self::Q5KS => Some(Quantization::Q5KS),
            Self::Q4KM => Some(Quantization::Q4KM),
            Self::Q4KS => Some(Quantization::Q4KS),
            Self::Q5_0 => Some(Quantization::Q5_0),
            Self::Q4_0 => Some(Quantization::Q4_0),
        }
    }
}

pub(super) fn run(args: Args, context: &Context) -> Result<Exit, CliError> {
    if let (Some(folder), Some(rank)) = (&args.check_share, args.rank) {
        return run_check(&args, folder, rank, context);
    }
    let (Some(pack), Some(to), Some(output)) = (args.pack, args.to, args.output) else {
        return Err(CliError::NothingToExport); // the parser says so before
    };
    let settings = ExportSettings {
        target: to.into(),
        components: args.component,
        names: args.names,
        dtype: args.dtype.dtype(),
        quantize: args.dtype.quantize(),
        importance: args.imatrix.as_deref().map(Importance::read).transpose()?,
        tokenizer_pre: args.tokenizer_pre,
        mmproj: args.mmproj.map(Encoders::from),
        max_shard_size: args.max_shard_size.map(|size| size.0),
        expert_parallel: args.expert_parallel,
        check: !args.no_check,
        resume: args.resume,
        force: args.force,
        jobs: args.jobs.count(),
    };
    let pack = args.reading.open(&pack, context)?;
    if output.as_os_str() == "-" {
        return to_stdout(&pack, &settings, args.json, context);
    }
    let (stop, progress) = (context.stop, context.progress);
    let summary = export(&pack, &output, &settings, stop, progress)?;
    let place = output.display().to_string();
    context
        .terminal
        .document(&summary, args.json, |s| text::export(s, &place))?;
    Ok(Exit::Ok)
}

/// Checks a rank's share.
fn run_check(
    args: &Args,
    folder: &Path,
    rank: ExpertParallel,
    context: &Context,
) -> Result<Exit, CliError> {
    let pack = args.pack.as_ref();
    let pack = pack.map(|pack| args.reading.open(pack, context));
    let report = check_share(folder, rank, pack.transpose()?.as_ref(), context.job())?;
    let place = folder.display().to_string();
    context
        .terminal
        .document(&report, args.json, |r| text::share(r, &place))?;
    Ok(Exit::of(report.ok))
}

fn to_stdout(
    pack: &Pack,
    settings: &ExportSettings,
    json: bool,
    context: &Context,
) -> Result<Exit, CliError> {
    if json {
        return Err(CliError::TwoOutputs);
    }
    if io::stdout().is_terminal() {
        return Err(CliError::BinaryToTerminal);
    }
    let mut out = BufWriter::with_capacity(0, io::stdout().lock()); // pieces are large already
    stream(pack, &mut out, settings, context.stop, context.progress)?;
    out.flush().map_err(CliError::stdout)?;
    Ok(Exit::Ok)
}
