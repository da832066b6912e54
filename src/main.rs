//! The `mechinterp` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    mechinterp::cli::main(std::env::args_os())
}
