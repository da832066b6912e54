//! The page about hook points is what the program would write.

use mechinterp::model::hook_page::{COMMAND, markdown};

#[test]
fn the_page_about_hook_points_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/hooks.md");
    let committed = std::fs::read_to_string(path).unwrap().replace("\r\n", "\n");
    let current = markdown();
    let differing = committed.lines().zip(current.lines()).position(|(a, b)| a != b);
    assert!(
        committed == current,
        "docs/hooks.md is stale from line {} on; renew it with\n  {COMMAND}",
        differing.unwrap_or(committed.lines().count().min(current.lines().count())) + 1
    );
}
