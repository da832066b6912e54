//! Qwen Scope: `layer{n}.sae.pt`, a dict of torch with `W_enc` `[f, d]`, `W_dec` `[d, f]` (both the other way round
//! than SAELens'), `b_enc`, `b_dec`. TopK without `b_dec` at the input; `k` is in the name of the repository alone,
//! `SAE-Res-Qwen3-1.7B-Base-W32K-L0_50`.

use super::place;
use super::tensors::Tensors;
use crate::base::{Error, Result};
use crate::dictionary::{Activation, Architecture, Dictionary, DictionaryConfig};

pub(super) fn read(mut file: Tensors, k: Option<usize>, notes: &mut Vec<String>) -> Result<Dictionary> {
    let parts = place::parts(file.path());
    let release = parts.iter().rev().find_map(|part| part.split_once("SAE-Res-")?.1.rsplit_once("-L0_"));
    let named = release.and_then(|(_, l0)| l0.split(['.', '_', '-']).next()?.parse().ok());
    let Some(k) = k.or(named) else {
        return Err(Error::Unsupported {
            what: format!("the TopK dictionary {}", file.path().display()),
            why: "its k is in no file, only in the name of its repository (…-L0_50), which no folder here has".into(),
            remedy: "keep the repository's name as a folder, or convert the file with --k".into(),
        });
    };
    let [d_sae, d] = file.matrix("W_enc")?;
    if !(1..=d_sae).contains(&k) {
        return Err(Error::flag("--k", format!("1 to {d_sae}, the number of features"), k, "use the release's"));
    }
    let w_enc = file.take_transposed("W_enc", [d_sae, d])?;
    let b_enc = file.take("b_enc", &[d_sae])?;
    let w_dec = file.take_transposed("W_dec", [d, d_sae])?;
    let b_dec = file.take("b_dec", &[d])?;
    file.finish()?;
    let mut config = DictionaryConfig::new(Architecture::TopK { k, rescale_acts_by_decoder_norm: false }, d, d_sae);
    config.apply_b_dec_to_input = false;
    let metadata = &mut config.metadata;
    metadata.prepend_bos = Some(true);
    metadata.context_size = Some(1024);
    metadata.model_name = release.and_then(|(name, _)| Some(format!("Qwen/{}", name.rsplit_once("-W")?.0)));
    let layer =
        parts.last().and_then(|name| name.strip_prefix("layer")?.strip_suffix(".sae.pt")?.parse::<usize>().ok());
    match layer {
        Some(layer) => place::set_hook(metadata, format!("blocks.{layer}.hook_resid_post")),
        None => notes.push("its file is not called layer{n}.sae.pt, so its hook is not known".into()),
    }
    Dictionary::new(config, w_enc, b_enc, w_dec, b_dec, Activation::top_k(k, None, d))
}
