//! Runs the binary in a directory of its own, with nothing of the user's environment.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use mechinterp::demo::World;

/// What every cache and dictionary of these tests is about.
pub(crate) const HOOK: &str = "blocks.1.hook_resid_post";

/// A command that runs longer than this hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// A directory to run commands in.
pub(crate) struct Cli {
    dir: tempfile::TempDir,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) code: Option<i32>,
}

impl Ended {
    /// The output of a command that must succeed.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout
    }

    /// The output of a command that must succeed, as JSON.
    #[track_caller]
    pub(crate) fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.ok()).unwrap()
    }

    /// Fails unless the command ended with one clear error that contains all `needles`. The message is what the
    /// program printed, with line breaks as spaces.
    #[track_caller]
    pub(crate) fn error(&self, needles: &[&str]) {
        let Self { stdout, stderr, code } = self;
        assert_eq!(*code, Some(2), "exit code; stdout: {stdout}\nstderr: {stderr}");
        assert_eq!(stderr.matches("error: ").count(), 1, "one error: {stderr}");
        for alien in ["panicked", "RUST_BACKTRACE", "unwrap", "WithBacktrace"] {
            assert!(!stderr.contains(alien), "'{alien}' in {stderr}");
        }
        assert!(stdout.is_empty(), "results beside an error: {stdout}");
        let message = stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        for needle in needles {
            assert!(message.contains(needle), "'{needle}' is not in: {message}");
        }
        // The parser's errors and lists of known names say what to do without the word.
        let advises = ["remedy: ", "to go on: ", "known and near: ", "try '--help'"];
        assert!(advises.iter().any(|advice| message.contains(advice)), "no advice in: {message}");
    }
}

impl Cli {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), contents).unwrap();
    }

    /// `program` in this directory with a clean environment.
    pub(crate) fn program(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("HF_") || text.starts_with("RUST_") || text.starts_with("RAYON_") {
                command.env_remove(&name);
            }
        }
        command
            .current_dir(self.dir.path())
            .env("HOME", self.dir.path())
            .env("XDG_CACHE_HOME", self.path(".cache"))
            .env("HF_HUB_OFFLINE", "1")
            .env("RUST_BACKTRACE", "0")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// The binary with arguments that are separated by spaces.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = self.program(env!("CARGO_BIN_EXE_mechinterp"));
        command.args(line.split_whitespace());
        command
    }

    /// Runs the binary with arguments that are separated by spaces.
    pub(crate) fn run(&self, line: &str) -> Ended {
        end(self.command(line))
    }

    /// Runs the binary with one more argument that may hold spaces, such as a prompt.
    pub(crate) fn run_with(&self, line: &str, last: &str) -> Ended {
        let mut command = self.command(line);
        command.arg(last);
        end(command)
    }

    /// Runs a line of shell in which `$M` is the binary.
    pub(crate) fn shell(&self, script: &str) -> Ended {
        let mut command = self.program("bash");
        command.args(["-c", script]).env("M", env!("CARGO_BIN_EXE_mechinterp"));
        end(command)
    }

    /// Text of the built-in world in `world.jsonl`.
    pub(crate) fn write_world(&self, documents: usize) {
        let lines = World::new(World::BUILT_IN_SEED).corpus(documents, 3).into_iter();
        let lines = lines.map(|text| serde_json::json!({ "text": text }).to_string() + "\n");
        self.write("world.jsonl", lines.collect::<String>());
    }

    /// Copies the directory `from` of another fixture to `to` of this one.
    pub(crate) fn copy(&self, from: &Path, to: &str) -> PathBuf {
        let target = self.path(to);
        copy_tree(from, &target);
        target
    }

    /// The directory of the built-in model, unpacked.
    pub(crate) fn demo_dir(&self) -> PathBuf {
        let info = self.run("info demo --json").json();
        PathBuf::from(info["weight_files"][0].as_str().unwrap()).parent().unwrap().to_owned()
    }
}

/// Runs a command to its end, and fails if there is none.
pub(crate) fn end(mut command: Command) -> Ended {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (out, err) = (drain(child.stdout.take().unwrap()), drain(child.stderr.take().unwrap()));
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("{command:?} hangs");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    Ended { stdout: out.join().unwrap(), stderr: err.join().unwrap(), code: status.code() }
}

fn drain(mut pipe: impl std::io::Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

pub(crate) fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A finished cache `acts` of two hooks (6 shards of f32), and a dictionary `sae` trained on it; made once.
pub(crate) fn trained() -> &'static Cli {
    static TRAINED: OnceLock<Cli> = OnceLock::new();
    TRAINED.get_or_init(|| {
        let cli = Cli::new();
        cli.write_world(400);
        cli.run(&format!(
            "cache --model demo --data world.jsonl --hook {HOOK} --hook blocks.2.hook_mlp_out --context-size 32 \
             --tokens 8k --shard-tokens 1536 --dtype f32 --out acts"
        ))
        .ok();
        cli.run(&format!(
            "train-sae --cache acts --hook {HOOK} --d-sae 160 --steps 60 --batch-size 128 --log-every 5 \
             --checkpoint-every 20 --out sae"
        ))
        .ok();
        cli
    })
}

/// Every file under `dir` with its contents, by relative path, but for locks and what tells how long things took.
pub(crate) fn contents(dir: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    fn walk(dir: &Path, root: &Path, files: &mut std::collections::BTreeMap<PathBuf, Vec<u8>>) {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, root, files);
            } else if ![".lock", "sessions.json", "report.html"].iter().any(|name| entry.file_name() == *name) {
                files.insert(path.strip_prefix(root).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    let mut files = std::collections::BTreeMap::new();
    walk(dir, dir, &mut files);
    files
}
