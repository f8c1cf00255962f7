use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use segpack_manifests::documents::ServeStarted;

use super::Context;
use super::args::values::{count, size};
use super::args::{DEVICE, ModelArgs, OUTPUT, PackArg, ReadingArgs, SERVER};
use super::error::CliError;
use crate::render::text;
use crate::steps::serve::{ApiKey, ServeOptions, serve};
use crate::steps::{Exit, StepError};
use crate::work::Progress;

/// Serve the model in a pack through OpenAI's interface, on this machine
///
/// Answers /v1/completions, /v1/chat/completions, /v1/models, /health and /metrics over HTTP, one
/// request after the other; others wait in a queue. Weights stay loaded between requests. Ctrl-C
/// ends it. What is supported and what is not: docs/serve.md.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack serve omni.segpack --memory 8GiB
  segpack serve omni.segpack --port 0 --json          # prints the port that was free
  SEGPACK_API_KEY=secret segpack serve omni.segpack --host 0.0.0.0 --allow-remote
  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
    -d '{\"prompt\": \"The capital of France is\", \"max_tokens\": 8, \"temperature\": 0}'")]
pub(super) struct Args {
    #[command(flatten)]
    pack: PackArg,
    #[command(flatten)]
    reading: ReadingArgs,
    /// Address to listen at
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", help_heading = SERVER)]
    host: IpAddr,
    /// Port to listen at; 0 is any that is free, which is printed
    #[arg(long, value_name = "N", default_value_t = 8000, help_heading = SERVER)]
    port: u16,
    /// Allow an address that other machines reach. What is sent is not encrypted
    #[arg(long, help_heading = SERVER)]
    allow_remote: bool,
    /// File with the key that requests have to show [default: that of the environment variable
    /// SEGPACK_API_KEY, if it is set]
    #[arg(long, value_name = "FILE", help_heading = SERVER)]
    api_key: Option<PathBuf>,
    /// What clients call the model [default: the name of the pack]
    #[arg(long, value_name = "NAME", value_parser = model_name, help_heading = SERVER)]
    model_name: Option<String>,
    /// Maximum number of requests that wait; more are refused
    #[arg(long, value_name = "N", default_value_t = 16, help_heading = SERVER)]
    queue: usize,
    /// Maximum size of a request; pictures and sounds are a part of it
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "16MiB", help_heading = SERVER)]
    max_body: u64,
    /// Seconds that the request that is answered may go on after Ctrl-C
    #[arg(long, value_name = "SECONDS", default_value_t = 10, help_heading = SERVER)]
    grace: u64,
    /// Positions of a prompt and its answer, for which memory is reserved [default: 4096, or what the
    /// model was made for]
    #[arg(long, value_name = "N", value_parser = count, help_heading = DEVICE)]
    context: Option<usize>,
    #[command(flatten)]
    model: ModelArgs,
    /// Load as many weights as fit before the first request instead of on first use
    #[arg(long, help_heading = DEVICE)]
    preload: bool,
    /// Print where it listens as JSON (schemas/serve-started.schema.json)
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

/// A name that a line of text and a path can have.
fn model_name(text: &str) -> Result<String, String> {
    let is_name = (1..=256).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    let wrong = || "expected 1 to 256 visible ASCII characters".to_owned();
    is_name.then(|| text.to_owned()).ok_or_else(wrong)
}

impl Args {
    fn options(&self) -> Result<ServeOptions, StepError> {
        let key = match &self.api_key {
            Some(file) => Some(ApiKey::read(file)?),
            None => ApiKey::of_environment()?,
        };
        Ok(ServeOptions {
            address: SocketAddr::new(self.host, self.port),
            allow_remote: self.allow_remote,
            key,
            model: match &self.model_name {
                Some(name) => name.clone(),
                None => name_of(&self.pack.place()),
            },
            context: self.context,
            queue: self.queue,
            max_body: self.max_body,
            grace: Duration::from_secs(self.grace),
            session: self.model.session(),
            preload: self.preload,
        })
    }
}

/// The last part of a pack's address, without what says that it is one.
fn name_of(place: &str) -> String {
    let last = place
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default();
    let name: String = last
        .chars()
        .filter(char::is_ascii_graphic)
        .take(256)
        .collect();
    let name = name.strip_suffix(".segpack").unwrap_or(&name);
    match name {
        "" | "." | ".." => "segpack".to_owned(),
        name => name.to_owned(),
    }
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, CliError> {
    args.reading
        .refuse_unchecked(args.model.leaves_unchecked(), "check")?;
    let options = args.options()?;
    let pack = args.reading.open(&args.pack, context)?;
    if args.allow_remote && !args.host.is_loopback() && options.key.is_none() {
        let note = "note: there is no key: whoever reaches this address can use the model";
        context.progress.note(note);
    }
    let mut announce = |started: &ServeStarted| tell(started, args.json);
    serve(
        &pack,
        options,
        context.stop,
        context.progress,
        &mut announce,
    )?;
    Ok(Exit::Ok)
}

/// One line, at once: whoever started the server may wait for it.
fn tell(started: &ServeStarted, json: bool) -> Result<(), StepError> {
    write_line(started, json).map_err(StepError::Stdout)
}

fn write_line(started: &ServeStarted, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match json {
        true => {
            serde_json::to_writer(&mut out, started)?;
            writeln!(out)?;
        }
        false => write!(out, "{}", text::serve(started))?,
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_called_as_its_pack() {
        for (place, name) in [
            ("omni.segpack", "omni"),
            ("/a/omni.segpack/", "omni"),
            ("hf://Qwen/Omni", "Omni"),
            ("..", "segpack"),
            ("/", "segpack"),
        ] {
            assert_eq!(name_of(place), name);
        }
        assert!(model_name("").is_err() && model_name("a b").is_err());
    }
}
