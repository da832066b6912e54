//! Prints the page about hook points, `docs/hooks.md`: `cargo run --example hook_page > docs/hooks.md`.
#![allow(clippy::print_stdout, reason = "the page goes to stdout")]

fn main() {
    print!("{}", mechinterp::model::hook_page::markdown());
}
