//! The binary: everything is in the library's [`segpack::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    segpack::cli::main()
}
