//! The one error type. Every variant names the file or flag, what was expected, what was found, and the remedy.

use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, in the terms of the person at the terminal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("cannot {action}: {source}\n  file: {}{}", path.display(), io_remedy(source))]
    Io {
        /// What was being done, as a verb phrase: "read the corpus".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file's contents are not what its format promises.
    #[error("{what} is damaged or not what it should be: expected {expected}, found {found}\n  remedy: {remedy}\n  file: {}", path.display())]
    Malformed {
        /// What the file is to the user: "activation cache shard".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What a good file holds.
        expected: String,
        /// What this one holds.
        found: String,
        /// What to do about it.
        remedy: String,
    },
    /// A file or directory that must exist does not.
    #[error("{what} not found: {expected}\n  remedy: {remedy}\n  looked at: {}", path.display())]
    Missing {
        /// What was looked for: "model weights".
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What a complete one would have there.
        expected: String,
        /// What to do about it.
        remedy: String,
    },
    /// A flag has a value that makes no sense.
    #[error("{flag}: expected {expected}, found {found}\n  remedy: {remedy}")]
    Flag {
        /// The flag as typed, with dashes.
        flag: &'static str,
        /// The values that make sense.
        expected: String,
        /// The value given.
        found: String,
        /// What to do about it.
        remedy: String,
    },
    /// Two inputs do not belong together.
    #[error("{what} do not match: {left} against {right}\n  remedy: {remedy}")]
    Mismatch {
        /// The two things: "dictionary and cache widths".
        what: &'static str,
        /// The first input by name, with its value.
        left: String,
        /// The second input by name, with its value.
        right: String,
        /// What to do about it.
        remedy: String,
    },
    /// A name is not in a closed list.
    #[error("unknown {kind} '{found}'\n  {}", nearest_line(nearest))]
    Unknown {
        /// What the name should have been: "hook point", "`model_type`".
        kind: &'static str,
        /// The name given.
        found: String,
        /// The closest known names, or all of them when they are few.
        nearest: Vec<String>,
    },
    /// An output already exists, or another process writes it.
    #[error("output {} {state}\n  remedy: {remedy}", path.display())]
    OutputInUse {
        /// The directory or file.
        path: PathBuf,
        /// "already exists", "is being written by another process".
        state: &'static str,
        /// What to do about it.
        remedy: String,
    },
    /// NaN or infinity where numbers must be finite.
    #[error("{what} holds {count} NaN or infinite values, first at {at}\n  remedy: {remedy}")]
    NonFinite {
        /// The data: "activations of `blocks.3.hook_resid_post`".
        what: String,
        /// How many values.
        count: usize,
        /// Where the first one is.
        at: String,
        /// What to do about it.
        remedy: String,
    },
    /// The user stopped the work; what was finished is kept.
    #[error("stopped; {kept}\n  to go on: {resume}")]
    Interrupted {
        /// What is on disk now.
        kept: String,
        /// The command that continues.
        resume: String,
    },
    /// A request the program knows but does not serve.
    #[error("{what} is not supported: {why}\n  remedy: {remedy}")]
    Unsupported {
        /// The thing asked for.
        what: String,
        /// The reason.
        why: String,
        /// What to use in its place.
        remedy: String,
    },
    /// The hub or the network failed.
    #[error("cannot fetch {what}: {why}\n  remedy: {remedy}")]
    Hub {
        /// Repository and file.
        what: String,
        /// The reason.
        why: String,
        /// What to do about it.
        remedy: String,
    },
    /// The tokenizer failed.
    #[error("tokenizer failed to {action}: {why}\n  remedy: {}\n  file: {}", tokenizer_remedy(action), path.display())]
    Tokenizer {
        /// "load", "encode", "decode".
        action: &'static str,
        /// The tokenizer file.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// A tensor operation failed: out of memory, or a defect of this program.
    #[error("tensor operation failed while {action}: {source}")]
    Tensor {
        /// What was being computed.
        action: String,
        /// candle's reason, with operation and shapes.
        source: Box<candle_core::Error>,
    },
}

impl Error {
    /// An I/O failure of `action` at `path`.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// A file whose contents break its format.
    pub fn malformed(
        what: &'static str,
        path: impl AsRef<Path>,
        expected: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Malformed {
            what,
            path: path.as_ref().into(),
            expected: expected.into(),
            found: found.into(),
            remedy: remedy.into(),
        }
    }

    /// A flag value out of range.
    pub fn flag(
        flag: &'static str,
        expected: impl Into<String>,
        found: impl ToString,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Flag { flag, expected: expected.into(), found: found.to_string(), remedy: remedy.into() }
    }
}

impl From<candle_core::Error> for Error {
    fn from(source: candle_core::Error) -> Self {
        Self::Tensor { action: "computing".into(), source: Box::new(bare(source)) }
    }
}

/// Says what was being computed when a tensor operation failed.
pub trait Context<T> {
    /// Replaces the generic action of a tensor error by `action`.
    ///
    /// # Errors
    /// The same failure, with `action` in its message.
    fn during(self, action: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for candle_core::Result<T> {
    fn during(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Tensor { action: action(), source: Box::new(bare(source)) })
    }
}

/// Without the backtrace that candle adds to its message when `RUST_BACKTRACE` is set.
fn bare(error: candle_core::Error) -> candle_core::Error {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => bare(*inner),
        other => other,
    }
}

fn io_remedy(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind as K;
    match source.kind() {
        K::StorageFull | K::QuotaExceeded => {
            "\n  remedy: free some disk space, then run the same command again, with --resume where it has that flag; \
             finished parts are kept"
        }
        K::FileTooLarge => {
            "\n  remedy: raise the limit on file sizes (`ulimit -f`, or the file system's), then run the same command \
             again, with --resume where it has that flag; finished parts are kept"
        }
        K::PermissionDenied => "\n  remedy: check the permissions of the file and its directory",
        K::NotFound | K::NotADirectory | K::IsADirectory => "\n  remedy: check the path",
        _ => "",
    }
}

fn tokenizer_remedy(action: &str) -> &'static str {
    match action {
        "load" => "the file is damaged or not a Hugging Face tokenizer.json; download it again",
        _ => "check that the tokenizer belongs to the model; download both again",
    }
}

fn nearest_line(nearest: &[String]) -> String {
    if nearest.is_empty() {
        "nothing similar is known".into()
    } else {
        format!("known and near: {}", nearest.join(", "))
    }
}
