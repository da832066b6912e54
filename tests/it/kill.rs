//! Runs that are killed or stopped, and resumed, against runs that were left alone.
#![cfg(unix)]

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};

use crate::fixture::{Cli, Ended, HOOK, contents, end, trained};

/// Runs `line` with `--resume` again and again, killing it when `progress` has grown by a random amount and a random
/// time has passed, until it ends by itself. Returns how often it was killed at work, with the progress at each.
fn kill_until_done(cli: &Cli, line: &str, seed: u64, kills: usize, progress: impl Fn() -> usize) -> Vec<usize> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut killed_at = Vec::new();
    for _ in 0..kills {
        let goal = progress() + rng.random_range(0..4);
        let pause = Duration::from_micros(rng.random_range(0..20_000));
        let mut child = spawn(cli, &format!("{line} --resume"));
        let ended = wait_for(&mut child, || progress() >= goal);
        std::thread::sleep(pause);
        if ended || child.try_wait().unwrap().is_some() {
            let ended = end_of(child);
            assert_eq!(ended.code, Some(0), "{ended:?}");
            return killed_at;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        killed_at.push(progress());
    }
    cli.run(&format!("{line} --resume")).ok();
    killed_at
}

fn spawn(cli: &Cli, line: &str) -> Child {
    cli.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until `reached`, or until the process ends, which it says.
fn wait_for(child: &mut Child, reached: impl Fn() -> bool) -> bool {
    let started = Instant::now();
    while !reached() {
        if child.try_wait().unwrap().is_some() {
            return true;
        }
        assert!(started.elapsed() < Duration::from_secs(120), "no progress");
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

fn end_of(child: Child) -> Ended {
    let output = child.wait_with_output().unwrap();
    Ended {
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
        code: output.status.code(),
    }
}

/// Compares everything but times.
#[track_caller]
pub(crate) fn assert_same_files(ours: &Path, reference: &Path) {
    let untimed = |dir| {
        let mut files = contents(dir);
        files.retain(|name, _| !name.ends_with("sessions.json") && !name.ends_with("report.html"));
        files
    };
    let (ours, reference) = (untimed(ours), untimed(reference));
    assert_eq!(ours.keys().collect::<Vec<_>>(), reference.keys().collect::<Vec<_>>());
    for (name, bytes) in &reference {
        assert!(ours[name] == *bytes, "{} differs", name.display());
    }
}

fn shards(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| e.file_name().to_string_lossy().ends_with(".safetensors")).count()
}

fn cache_line() -> String {
    format!(
        "cache --model demo --data world.jsonl --hook {HOOK} --hook blocks.3.hook_resid_post --context-size 64 \
         --tokens 20k --shard-tokens 1k --batch-size 4 --out acts"
    )
}

#[test]
fn a_cache_killed_at_any_moment_and_resumed_equals_an_uninterrupted_one() {
    let whole = Cli::new();
    whole.write_world(700);
    whole.run(&cache_line()).ok();
    let total = shards(&whole.path("acts"));
    assert!(total >= 20, "only {total} shards");
    for seed in 0..2 {
        let cut = Cli::new();
        cut.write_world(700);
        let partial = cut.path("acts.partial");
        let killed = kill_until_done(&cut, &cache_line(), seed, 8, || shards(&partial));
        let at_work = killed.iter().filter(|&&n| n > 0 && n < total).count();
        assert!(at_work >= 3, "seed {seed}: killed after {killed:?} shards");
        assert_same_files(&cut.path("acts"), &whole.path("acts"));
        assert!(!partial.exists());
    }
}

fn train_line() -> String {
    format!(
        "train-sae --cache acts --hook {HOOK} --d-sae 384 --steps 80 --batch-size 256 --log-every 1 \
         --checkpoint-every 6 --dead-feature-window 12 --out sae"
    )
}

/// Rows of the built-in model while it runs, through a buffer of an eighth of them.
fn stream_line() -> String {
    let cached = train_line();
    let flags = cached.split_once("--d-sae").unwrap().1.replace("--batch-size 256", "--batch-size 128");
    format!(
        "train-sae --model demo --data world.jsonl --hook {HOOK} --context-size 32 --model-batch-size 4 \
         --buffer-rows 2k --d-sae{flags}"
    )
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

/// Runs `line` with `--resume`, on one thread and on two by turns, and kills it ten times, a random time after it has
/// logged a random number of steps of the file `log`; then lets it end. Gives the lines of the log at each kill.
pub(crate) fn kill_ten_times(cli: &Cli, line: &str, seed: u64, log: &Path) -> Vec<usize> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut killed_at = Vec::new();
    for attempt in 0..10 {
        let before = lines(log);
        let (more, pause) = (rng.random_range(0..10), Duration::from_micros(rng.random_range(0..20_000)));
        let mut child = spawn(cli, &format!("{line} --resume --threads {}", 1 + attempt % 2));
        // The log is first cut to the last checkpoint, and then grows.
        let ended = wait_for(&mut child, || lines(log) != before && lines(log) >= more || lines(log) > before + more);
        std::thread::sleep(pause);
        if ended || child.try_wait().unwrap().is_some() {
            let ended = end_of(child);
            assert_eq!(ended.code, Some(0), "{ended:?}");
            return killed_at;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        killed_at.push(lines(log));
    }
    cli.run(&format!("{line} --resume --threads 2")).ok();
    killed_at
}

#[test]
fn a_training_killed_ten_times_on_one_and_two_threads_equals_an_uninterrupted_one() {
    let (whole, acts) = (Cli::new(), trained().path("acts"));
    whole.copy(&acts, "acts");
    whole.run(&format!("{} --threads 2", train_line())).ok();
    let cut = Cli::new();
    cut.copy(&acts, "acts");
    let killed = kill_ten_times(&cut, &train_line(), 5, &cut.path("sae.partial/metrics.jsonl"));
    assert!(killed.iter().filter(|&&n| n > 0 && n < 80).count() >= 5, "killed after {killed:?} of 80 steps");
    assert_same_files(&cut.path("sae"), &whole.path("sae"));
    // A cut-off run that is taken up with other settings would be neither run.
    let other = Cli::new();
    other.copy(&acts, "acts");
    let mut child = spawn(&other, &train_line());
    let ended = wait_for(&mut child, || lines(&other.path("sae.partial/metrics.jsonl")) > 8);
    assert!(!ended, "it ended before it was killed");
    child.kill().unwrap();
    child.wait().unwrap();
    other.run(&format!("{} --resume --lr 0.5", train_line())).error(&["settings", "lr", "0.5"]);
    other.run(&train_line()).error(&["sae.partial", "--resume"]);
}

#[test]
fn a_streamed_training_killed_ten_times_equals_an_uninterrupted_one() {
    let (whole, cut) = (Cli::new(), Cli::new());
    whole.write_world(700);
    cut.write_world(700);
    whole.run(&format!("{} --threads 1", stream_line())).ok();
    let killed = kill_ten_times(&cut, &stream_line(), 6, &cut.path("sae.partial/metrics.jsonl"));
    assert!(killed.iter().filter(|&&n| n > 0 && n < 80).count() >= 5, "killed after {killed:?} of 80 steps");
    assert_same_files(&cut.path("sae"), &whole.path("sae"));
    let mut child = spawn(&cut, &stream_line().replace("--out sae", "--out more"));
    assert!(!wait_for(&mut child, || lines(&cut.path("more.partial/metrics.jsonl")) > 8));
    child.kill().unwrap();
    child.wait().unwrap();
    // Other text and other order are another run.
    let resumed = stream_line().replace("--out sae", "--out more --resume");
    cut.run(&resumed.replace("2k", "3k")).error(&["live.buffer_rows 3000", "2000"]);
    cut.write_world(600);
    cut.run(&resumed).error(&["data world.jsonl", "with other contents"]);
}

#[test]
fn a_sweep_killed_anywhere_equals_an_uninterrupted_one_and_runs_of_their_own() {
    let (whole, cut, acts) = (Cli::new(), Cli::new(), trained().path("acts"));
    let line = "train-sae --cache acts --sweep sweep.toml --out sae";
    for cli in [&whole, &cut] {
        cli.copy(&acts, "acts");
        cli.write(
            "sweep.toml",
            format!(
                "[defaults]\nhook = '{HOOK}'\nd_sae = 200\nsteps = 80\nbatch_size = 256\nlog_every = 1\n\
                 checkpoint_every = 6\ndead_feature_window = 12\n\
                 [[run]]\nname = 'relu'\ngrid = {{ l1_coefficient = [2, 9.5] }}\n\
                 [[run]]\nname = 'topk'\narch = 'topk'\nk = 8\nseed = 3\n"
            ),
        );
    }
    let table = whole.run(&format!("{line} --threads 2")).ok();
    for expected in ["relu-l1_coefficient=2 ", "relu-l1_coefficient=9.5 ", "topk ", "explained variance", "wrote 3"] {
        assert!(table.contains(expected), "{expected}: {table}");
    }
    let killed = kill_ten_times(&cut, line, 7, &cut.path("sae.partial/topk/metrics.jsonl"));
    assert!(killed.iter().filter(|&&n| n > 0 && n < 80).count() >= 5, "killed after {killed:?} of 80 steps");
    assert_same_files(&cut.path("sae"), &whole.path("sae"));
    whole
        .run(&format!(
            "train-sae --cache acts --hook {HOOK} --d-sae 200 --steps 80 --batch-size 256 --log-every 1 \
             --checkpoint-every 6 --dead-feature-window 12 --l1-coefficient 2 --out alone"
        ))
        .ok();
    assert_same_files(&whole.path("sae/relu-l1_coefficient=2"), &whole.path("alone"));
    cut.run(&format!("{line} --resume")).error(&["sae", "already exists"]);
    cut.run("train-sae --cache acts --sweep sweep.toml --k 4 --out new").error(&["--sweep", "--k"]);
    cut.run("train-sae --cache acts --sweep sweep.toml --steps 4 --out new").error(&["--sweep", "--steps"]);
    cut.write("bad.toml", "[defaults]\nd_say = 4\n[grid]\nlr = [1e-3]\n");
    cut.run("train-sae --cache acts --sweep bad.toml --out new").error(&["bad.toml", "d_say", "d_sae"]);
    assert!(!cut.path("new.partial").exists());
}

/// Sends a signal by its name, `INT` for Ctrl-C.
fn send(signal: &str, child: &Child) {
    let mut kill = std::process::Command::new("bash");
    assert!(kill.args(["-c", &format!("kill -{signal} {}", child.id())]).status().unwrap().success());
}

#[test]
fn ctrl_c_and_sigterm_save_what_there_is_and_say_how_to_go_on() {
    let acts = trained().path("acts");
    let (whole, cut) = (Cli::new(), Cli::new());
    for cli in [&whole, &cut] {
        cli.copy(&acts, "acts");
        cli.write_world(700);
    }
    // Checkpoints so rare that only the interruption can have made one.
    let train = train_line().replace("--checkpoint-every 6", "--checkpoint-every 1000");
    let log = cut.path("sae.partial/metrics.jsonl");
    let cache = cache_line().replace("--out acts", "--out more");
    let more = cut.path("more.partial");
    let stream = stream_line().replace("--checkpoint-every 6", "--checkpoint-every 1000");
    let stream = stream.replace("--out sae", "--out streamed");
    let streamed = cut.path("streamed.partial/metrics.jsonl");
    let jobs: [(&str, &str, &str, &dyn Fn() -> bool); 3] = [
        (&train, "sae", "INT", &|| lines(&log) > 10),
        (&cache, "more", "INT", &|| shards(&more) > 2),
        (&stream, "streamed", "TERM", &|| lines(&streamed) > 10),
    ];
    for (line, out, signal, working) in jobs {
        whole.run(line).ok();
        let mut child = spawn(&cut, line);
        assert!(!wait_for(&mut child, working), "{out}: it ended before it was stopped");
        send(signal, &child);
        let ended = end_of(child);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{}", ended.stderr);
        assert!(ended.stderr.contains("stopped; ") && ended.stderr.contains("--resume"), "{}", ended.stderr);
        assert!(!cut.path(out).exists() && cut.path(&format!("{out}.partial")).exists());
        cut.run(&format!("{line} --resume")).ok();
    }
    assert_same_files(&cut.path("more"), &whole.path("more"));
    for dir in ["sae", "streamed"] {
        for file in ["sae_weights.safetensors", "sparsity.safetensors", "metrics.jsonl", "cfg.json", "run.json"] {
            let read = |cli: &Cli| std::fs::read(cli.path(dir).join(file)).unwrap();
            assert!(read(&cut) == read(&whole), "{dir}/{file} differs");
        }
    }
}

#[test]
fn two_processes_cannot_write_one_directory() {
    let cli = Cli::new();
    cli.write_world(700);
    let mut first = spawn(&cli, &cache_line());
    assert!(!wait_for(&mut first, || shards(&cli.path("acts.partial")) > 0));
    let second = end(cli.command(&format!("{} --resume", cache_line())));
    second.error(&["acts", "is being written by another process", "choose another --out"]);
    assert_eq!(end_of(first).code, Some(0), "the first goes on");
    assert_eq!(cli.run("eval --sae nothing --cache acts").code, Some(2));
}
