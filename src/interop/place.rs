//! Which model and hook a dictionary belongs to, where the format says it by the names of its folders.

use std::path::{Path, PathBuf};

use crate::dictionary::{DictionaryConfig, Metadata};
use crate::model::HookPoint;

/// The parts of a path that name things, from the root on. A hub cache spells `org/name` as `models--org--name`.
pub(super) fn parts(path: &Path) -> Vec<String> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| PathBuf::from(path));
    let part = |part: std::path::Component<'_>| match part {
        std::path::Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
        _ => None,
    };
    absolute.components().filter_map(part).collect()
}

/// The number after `prefix` in a part of the path, the last such part first: `layer_20` in `layer_20/width_16k`.
pub(super) fn number_after(parts: &[String], prefix: &str) -> Option<usize> {
    parts.iter().rev().find_map(|part| {
        let (_, after) = part.split_once(prefix)?;
        let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        after[..digits].parse().ok()
    })
}

/// Writes a hook of TransformerLens.
pub(super) fn set_hook(metadata: &mut Metadata, hook: String) {
    metadata.model_class_name = Some("HookedTransformer".into());
    metadata.hook_name = Some(hook);
}

/// Makes `config` a transcoder that writes to `hook`.
pub(super) fn set_output(config: &mut DictionaryConfig, hook: &str) {
    config.transcoder = true;
    config.apply_b_dec_to_input = false;
    config.metadata.extra.insert("hook_name_out".into(), hook.into());
}

/// A Hugging Face module as a hook: the block's own output has a name that is the same in every model, everything else
/// depends on the model and stays a module.
pub(super) fn set_module(metadata: &mut Metadata, module: &str) {
    if let Ok(point) = module.parse::<HookPoint>() {
        return set_hook(metadata, point.to_string());
    }
    metadata.model_class_name = Some("AutoModelForCausalLM".into());
    metadata.hook_name = Some(module.into());
}

/// Whether a folder's name is that of a module: `layers.10.mlp`, `h.3`, `embed_tokens`.
pub(super) fn is_module(name: &str) -> bool {
    let known = ["layers", "h", "model", "transformer", "gpt_neox", "embed_tokens", "wte", "embed_in", "decoder"];
    let mut parts = name.split('.');
    parts.next().is_some_and(|first| known.contains(&first)) && parts.all(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_from_the_end_of_a_path() {
        let parts = parts(Path::new("/x/layer_3_old/models--google--gemma/layer_20/width_16k/params.npz"));
        assert_eq!(number_after(&parts, "layer_"), Some(20));
        assert_eq!(number_after(&parts, "width_"), Some(16));
        assert_eq!(number_after(&parts, "depth_"), None);
    }

    #[test]
    fn blocks_get_their_hook_and_other_modules_keep_their_name() {
        let mut metadata = Metadata::default();
        set_module(&mut metadata, "gpt_neox.layers.4");
        assert_eq!(metadata.hook_name.as_deref(), Some("blocks.4.hook_resid_post"));
        set_module(&mut metadata, "layers.4.mlp");
        assert_eq!(metadata.hook_name.as_deref(), Some("layers.4.mlp"));
        assert!(is_module("layers.10.mlp") && is_module("h.3") && !is_module("out") && !is_module("layers..3"));
    }
}
