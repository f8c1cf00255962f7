use super::Context;
use super::terminal::{bytes, table};
use crate::steps::Exit;
use crate::steps::device::list;

/// List the GPUs that a model can run on, and which device `--device auto` takes
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack devices
  segpack devices --json | jq -r .auto")]
pub struct Args {
    /// Print one JSON document (schemas/devices-report.schema.json)
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let report = list()?;
    if args.json {
        context.terminal.document(&report)?;
        return Ok(Exit::Ok);
    }
    context.terminal.stdout(|out| {
        let rows = report.devices.iter().map(|d| {
            vec![
                format!("cuda:{}", d.number),
                d.name.clone(),
                d.compute_capability.clone(),
                d.multiprocessors.to_string(),
                bytes(d.memory),
                if d.supported {
                    "yes"
                } else {
                    "no, needs Ampere and CUDA 11.8 or later"
                }
                .to_owned(),
            ]
        });
        let rows: Vec<Vec<String>> = rows.collect();
        if !rows.is_empty() {
            let header = [
                "device",
                "name",
                "compute capability",
                "multiprocessors",
                "memory",
                "can be used",
            ];
            writeln!(out, "{}\n", table(2, &header, rows))?;
        }
        if let Some(version) = &report.driver_cuda_version {
            writeln!(out, "driver: CUDA {version}")?;
        }
        if let Some(problem) = &report.problem {
            writeln!(out, "{problem}")?;
        }
        writeln!(out, "--device auto takes {}", report.auto)
    })?;
    Ok(Exit::Ok)
}
