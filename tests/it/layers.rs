//! A module may use only modules to its left in the layer order.

use std::fs;
use std::path::Path;

const ORDER: [&str; 11] =
    ["base", "ops", "data", "model", "store", "dictionary", "analysis", "interop", "demo", "web", "cli"];

#[test]
fn no_module_uses_one_to_its_right() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut checked = 0;
    for (rank, layer) in ORDER.iter().enumerate() {
        let dir = src.join(layer);
        if !dir.exists() {
            continue;
        }
        for file in rust_files(&dir) {
            let text = fs::read_to_string(&file).unwrap();
            for (number, line) in text.lines().enumerate() {
                for used in uses(line) {
                    let Some(used_rank) = ORDER.iter().position(|l| *l == used) else { continue };
                    checked += 1;
                    assert!(
                        used_rank <= rank,
                        "{}:{}: `{layer}` may not use `{used}`, which stands right of it\n  {line}",
                        file.display(),
                        number + 1
                    );
                }
            }
        }
    }
    assert!(checked > 20, "the test found only {checked} uses, so it does not read the code any more");
}

#[test]
fn every_top_level_module_has_its_place_in_the_order() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in fs::read_dir(src).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let known = ["main.rs", "lib.rs"].contains(&name.as_str()) || ORDER.contains(&name.as_str());
        assert!(known, "src/{name} is in no layer; add it to the order here and in ARCHITECTURE.md");
    }
}

/// The top-level modules a line names after `crate::`, grouped imports included.
fn uses(line: &str) -> Vec<&str> {
    let code = line.split("//").next().unwrap_or_default();
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        if let Some(group) = rest.strip_prefix('{') {
            found.extend(group.split(',').map(|part| ident(part.trim())));
        } else {
            found.push(ident(rest));
        }
    }
    found
}

fn ident(text: &str) -> &str {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    &text[..end]
}

fn rust_files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files
}
