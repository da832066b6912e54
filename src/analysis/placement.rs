//! Where in a model a dictionary sits.

use crate::base::{Error, Result};
use crate::dictionary::Dictionary;
use crate::model::{Edit, EditOp, HookPoint, ModelConfig, Site};

/// A hook point, and one of its heads where the dictionary encodes a single head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// The point that the dictionary reads and writes.
    pub point: HookPoint,
    /// `metadata.hook_head_index`.
    pub head: Option<usize>,
}

impl Placement {
    /// Resolves `metadata.hook_name` of `dictionary` in a model and compares the widths.
    ///
    /// # Errors
    /// `Unsupported` for a dictionary that names no hook or writes to another one than it reads; `Unknown` when the
    /// model lacks the hook; `Mismatch` when the widths differ.
    pub fn of(dictionary: &Dictionary, config: &ModelConfig) -> Result<Self> {
        check_in_place(dictionary, "evaluation and steering replace values at the point that the dictionary reads")?;
        let metadata = &dictionary.config.metadata;
        Self::resolve(metadata.hook_name.as_deref(), metadata.hook_head_index, dictionary, dictionary.d_in(), config)
    }

    /// Where the dictionary's input comes from, whatever it writes to.
    ///
    /// # Errors
    /// As [`Placement::of`], but for transcoders.
    pub fn of_input(dictionary: &Dictionary, config: &ModelConfig) -> Result<Self> {
        let metadata = &dictionary.config.metadata;
        Self::resolve(metadata.hook_name.as_deref(), metadata.hook_head_index, dictionary, dictionary.d_in(), config)
    }

    /// Where the dictionary's output belongs: for a transcoder `metadata.hook_name_out`, else as [`Placement::of`].
    ///
    /// # Errors
    /// As [`Placement::of`], but for transcoders only when they do not say where they write.
    pub fn of_output(dictionary: &Dictionary, config: &ModelConfig) -> Result<Self> {
        let metadata = &dictionary.config.metadata;
        let Some(out) = output_hook(dictionary) else { return Self::of(dictionary, config) };
        let head = metadata.extra.get("hook_head_index_out").and_then(serde_json::Value::as_u64);
        Self::resolve(Some(out), head.map(|head| head as usize), dictionary, dictionary.d_out(), config)
    }

    fn resolve(
        name: Option<&str>,
        head: Option<usize>,
        dictionary: &Dictionary,
        d: usize,
        config: &ModelConfig,
    ) -> Result<Self> {
        let Some(name) = name else {
            return Err(Error::Unsupported {
                what: "using this dictionary with a model".into(),
                why: "its cfg.json names no hook point".into(),
                remedy: "set metadata.hook_name in cfg.json".into(),
            });
        };
        let placement = Self { point: HookPoint::resolve(name, config)?, head };
        let width = placement.width(config);
        if width == Some(d) {
            return Ok(placement);
        }
        Err(Error::Mismatch {
            what: "dictionary and model widths",
            left: format!("{dictionary} has d_in {} and d_out {}", dictionary.d_in(), dictionary.d_out()),
            right: match width {
                Some(width) => format!("{placement} of the model has width {width}"),
                None => format!("{placement} of the model has no fixed width"),
            },
            remedy: "use a dictionary that was trained on this hook of this model".into(),
        })
    }

    /// A whole point.
    pub fn at(point: HookPoint) -> Self {
        Self { point, head: None }
    }

    /// An edit here.
    pub fn edit(self, op: EditOp) -> Edit {
        Edit { head: self.head, ..Edit::new(self.point, op) }
    }

    /// Whether what is added here is added to the residual stream as it is, so that `W_dec W_U` means something.
    pub fn writes_to_residual_stream(self) -> bool {
        matches!(
            self.point.site,
            Site::Embed
                | Site::PosEmbed
                | Site::ResidPre
                | Site::ResidMid
                | Site::ResidPost
                | Site::AttnOut
                | Site::AttnAdded
                | Site::MlpHookOut
                | Site::MlpOut
                | Site::MlpAdded
        )
    }

    /// Number of values a position has here, where that is fixed.
    pub fn width(self, config: &ModelConfig) -> Option<usize> {
        let full = self.point.site.width(config)?;
        let Some(heads) = self.point.site.heads(config) else { return Some(full) };
        Some(if self.head.is_some() { full / heads.max(1) } else { full })
    }
}

/// The hook that a transcoder writes to, where it is another than it reads.
fn output_hook(dictionary: &Dictionary) -> Option<&str> {
    let metadata = &dictionary.config.metadata;
    let out = metadata.extra.get("hook_name_out").and_then(serde_json::Value::as_str);
    out.filter(|out| Some(*out) != metadata.hook_name.as_deref())
}

/// Checks that a dictionary writes what it reads, `why` that is needed.
///
/// # Errors
/// `Unsupported` for a transcoder.
pub(super) fn check_in_place(dictionary: &Dictionary, why: &str) -> Result<()> {
    let out = output_hook(dictionary);
    if out.is_none() && !dictionary.config.transcoder {
        return Ok(());
    }
    let name = dictionary.config.metadata.hook_name.as_deref().unwrap_or("an unnamed hook");
    Err(Error::Unsupported {
        what: format!("a transcoder from {name} to {}", out.unwrap_or("an unnamed hook")),
        why: why.into(),
        remedy: "use an autoencoder".into(),
    })
}

impl std::fmt::Display for Placement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.head {
            Some(head) => write!(f, "head {head} of {}", self.point),
            None => self.point.fmt(f),
        }
    }
}
