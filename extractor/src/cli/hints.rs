//! Advice for errors: what to change on the command line. Errors themselves name no options, since
//! libraries do not know them.

use std::path::Path;

use segpack_manifests::folder::PARTIAL;
use segpack_runtime_min::RunError;

use crate::steps::{Exit, StepError};

/// What to try after `error`, if anything. `output` is the folder that the command was writing.
pub fn hint(error: &StepError, output: Option<&Path>) -> Option<String> {
    if output.is_some_and(|output| can_be_resumed(error, output)) {
        return Some("the same command with --resume continues".to_owned());
    }
    match error {
        StepError::Run(e) => of_run(e),
        _ => None,
    }
}

/// Whether an interruption or the environment ended a command that had begun to write.
fn can_be_resumed(error: &StepError, output: &Path) -> bool {
    let unfinished = output.join(PARTIAL).exists();
    let refused = matches!(error, StepError::Refused(_));
    unfinished && !refused && matches!(error.exit(), Exit::Interrupted | Exit::Failed)
}

fn of_run(error: &RunError) -> Option<String> {
    match error {
        RunError::Memory { least, .. } => Some(format!("--memory {}", size(*least))),
        RunError::DeviceMemory { least, .. } => Some(format!("--device-memory {}", size(*least))),
        RunError::OutOfMemory { .. } => Some("a smaller --memory needs less".to_owned()),
        _ => None,
    }
}

/// A size as the command line takes it, rounded up to at most four digits: `68MB`.
fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    let (unit, name) = UNITS
        .into_iter()
        .find(|(unit, _)| bytes > 10 * unit)
        .unwrap_or((1, "B"));
    format!("{}{name}", bytes.div_ceil(unit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::values;

    #[test]
    fn a_size_is_enough_and_the_command_line_takes_it() {
        assert_eq!(
            [999, 67_266_232, 9_999_999_999, 70_519_637_090].map(size),
            ["999B", "68MB", "10000MB", "71GB"]
        );
        for bytes in [1, 999, 12_345, 67_266_232, 70_519_637_090] {
            assert!(values::size(&size(bytes)).unwrap() >= bytes);
        }
    }
}
