//! Feeds damaged files to every parser: `cargo run --release --example fuzz -- TARGET|all SECONDS [SEED]`.
//!
//! Files are the goldens of `tests/golden` and a few small ones made here, changed at random by [`mutate`], which knows
//! how each is built: it edits the text inside of headers, the members inside of archives and the opcodes inside of
//! pickles, and then repairs lengths and checksums, so that damage gets past the first check. A parser may refuse or
//! read whatever comes out, in bounded time and memory. It may not panic, and it may not allocate more than a few
//! times what the file has bytes. The first input that makes it do so is kept, its path printed, and the exit code
//! is 1. The same seed gives the same inputs.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic, reason = "a program for developers")]

mod allocation;
mod mutate;
mod targets;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use mechinterp::base::rng::stream;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use allocation::Counting;
use targets::{Seed, Target};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What reading may allocate beside the multiple of the file's length: libraries' own buffers.
const ALLOWANCE: usize = 48 << 20;
/// What reading may allocate for each byte: a copy, its conversion and its transpose, of numbers half as wide, inside of
/// an archive that may shrink by [`mechinterp::base::zip::MOST_INFLATION`].
const PER_BYTE: usize = 128;
/// A file of kilobytes that takes longer to refuse hangs.
const LONGEST: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let names: Vec<&str> = Target::ALL.iter().map(|target| target.name()).collect();
    let (Some(name), Some(seconds)) = (arguments.first(), arguments.get(1).and_then(|s| s.parse().ok())) else {
        println!("usage: fuzz TARGET|all SECONDS [SEED]\ntargets: {}", names.join(", "));
        return ExitCode::from(2);
    };
    let chosen: Vec<Target> = Target::ALL.into_iter().filter(|target| name == "all" || name == target.name()).collect();
    if chosen.is_empty() {
        println!("no target '{name}'; there are {}", names.join(", "));
        return ExitCode::from(2);
    }
    let seed = arguments.get(2).and_then(|s| s.parse().ok()).unwrap_or(0);
    std::panic::set_hook(Box::new(|_| {}));
    let work = tempfile::tempdir().unwrap();
    for target in chosen {
        if let Err(failure) = run(target, Duration::from_secs(seconds), seed, work.path()) {
            println!("FAILED {}: {failure}", target.name());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn run(target: Target, time: Duration, seed: u64, work: &Path) -> Result<(), String> {
    let seeds = target.seeds(&work.join(target.name()));
    assert!(!seeds.is_empty(), "no files for {}", target.name());
    for seed in &seeds {
        assert!(target.read(&seed.open), "the undamaged {} does not open", seed.open.display());
    }
    let mut rng = stream(seed, target.name());
    let (start, mut slowest, mut largest) = (Instant::now(), Duration::ZERO, 0);
    let (mut runs, mut opened, mut replies) = (0u64, 0u64, BTreeSet::new());
    while start.elapsed() < time {
        let chosen = &seeds[rng.random_range(0..seeds.len())];
        let input = mutate::mutate(chosen, &seeds, &mut rng);
        std::fs::write(&chosen.file, &input).unwrap();
        allocation::reset();
        let began = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| target.read(&chosen.open)));
        let (took, allocated) = (began.elapsed(), allocation::peak());
        std::fs::write(&chosen.file, &chosen.whole).unwrap();
        let fail = |why: String| Err(format!("{why}\n  input: {}", keep(target, &input, chosen).display()));
        match outcome {
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
                return fail(format!("panicked: {}", text.unwrap_or_default()));
            }
            Ok(read) => opened += u64::from(read),
        }
        if allocated > ALLOWANCE + PER_BYTE * input.len() {
            return fail(format!("allocated {} MiB for {} bytes", allocated >> 20, input.len()));
        }
        if took > LONGEST {
            return fail(format!("took {} s for {} bytes", took.as_secs(), input.len()));
        }
        replies.insert(targets::last_reply());
        (runs, slowest, largest) = (runs + 1, slowest.max(took), largest.max(allocated));
    }
    println!(
        "{}: {runs} files in {} s, {opened} of them read, {} kinds of refusal; at most {:.1} MiB and {} ms",
        target.name(),
        start.elapsed().as_secs(),
        replies.len(),
        largest as f64 / f64::from(1 << 20),
        slowest.as_millis()
    );
    Ok(())
}

/// Leaves a failing input in the temporary directory.
fn keep(target: Target, input: &[u8], seed: &Seed) -> PathBuf {
    let name = seed.file.file_name().unwrap_or_default().to_string_lossy();
    let path = std::env::temp_dir().join(format!("fuzz-{}-{name}", target.name()));
    drop(std::fs::write(&path, input));
    path
}

/// A choice among `items`.
fn pick<'a, T>(items: &'a [T], rng: &mut ChaCha8Rng) -> &'a T {
    &items[rng.random_range(0..items.len())]
}
