//! The `mechinterp` command.

fn main() {}
