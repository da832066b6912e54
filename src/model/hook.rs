//! Hook points: every place in the forward pass that can be read or changed, under its TransformerLens name.
//!
//! A point is a layer and a [`Site`]; global sites have no layer. Names, shapes and meanings are those of
//! TransformerLens' `HookedTransformer` (`transformer_lens/components`), so a name always denotes the same tensor
//! there and here. `hook_attn_added` and `hook_mlp_added` are ours: what is really added to the residual stream,
//! which differs from `hook_attn_out` and `hook_mlp_out` in models that normalise a block's output afterwards.

use std::fmt;
use std::str::FromStr;

use crate::base::nearest::nearest;
use crate::base::{Error, Result};

use super::config::ModelConfig;
use super::module_name;
pub use super::shape::Axes;
pub use super::site::{Scope, Site};

/// One place in one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HookPoint {
    /// The block, for block sites.
    pub layer: Option<usize>,
    /// The place in it.
    pub site: Site,
}

impl HookPoint {
    /// A site of block `layer`.
    pub const fn block(layer: usize, site: Site) -> Self {
        Self { layer: Some(layer), site }
    }

    /// A site outside the blocks.
    pub const fn global(site: Site) -> Self {
        Self { layer: None, site }
    }

    /// Every point of a model, in firing order.
    pub fn all(config: &ModelConfig) -> Vec<Self> {
        let of = |scope| Site::ALL.iter().copied().filter(move |s| s.scope() == scope);
        let layers = (0..config.n_layers).flat_map(|layer| of(Scope::Block).map(move |s| Self::block(layer, s)));
        let points = of(Scope::Embedding).map(Self::global).chain(layers).chain(of(Scope::Final).map(Self::global));
        points.filter(|point| point.exists_in(config)).collect()
    }

    /// Whether a model of this configuration computes the point.
    pub fn exists_in(self, config: &ModelConfig) -> bool {
        let fires_in = |layer| {
            let rotated = matches!(self.site, Site::RotQ | Site::RotK);
            layer < config.n_layers && (!rotated || config.rotation(layer).is_some())
        };
        self.site.exists_in(config) && self.layer.is_none_or(fires_in)
    }

    /// Checks that the point exists in a model.
    ///
    /// # Errors
    /// `Unknown` with the nearest points that do exist.
    pub fn check(self, config: &ModelConfig) -> Result<Self> {
        if self.exists_in(config) {
            return Ok(self);
        }
        Err(unknown("hook point of this model", &self.to_string(), config))
    }

    /// Parses `name` and checks it against a model. Hugging Face module names (`model.layers.6`,
    /// `transformer.h.6.mlp`, `model.layers.3.self_attn.o_proj.input`) are spellings of the points whose values those
    /// modules output or, with `.input`, take.
    ///
    /// # Errors
    /// `Unknown` with the nearest points of the model.
    pub fn resolve(name: &str, config: &ModelConfig) -> Result<Self> {
        match name.parse::<Self>().ok().or_else(|| module_name::point(name, config)) {
            Some(point) => point.check(config),
            None => Err(unknown("hook point", name, config)),
        }
    }
}

fn unknown(kind: &'static str, found: &str, config: &ModelConfig) -> Error {
    let known = HookPoint::all(config);
    Error::Unknown { kind, found: found.into(), nearest: nearest(found, known.iter().map(ToString::to_string), 4) }
}

impl fmt::Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(layer) = self.layer {
            write!(f, "blocks.{layer}.")?;
        }
        f.write_str(self.site.name())
    }
}

impl FromStr for HookPoint {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let unknown = || Error::Unknown {
            kind: "hook point",
            found: s.into(),
            nearest: nearest(s, Site::ALL.iter().map(|&site| example_name(site)), 4),
        };
        if let Some((layer, rest)) = s.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) {
            let layer = layer.parse().map_err(|_| unknown())?;
            let site = find(Scope::Block, rest).ok_or_else(unknown)?;
            return Ok(Self::block(layer, site));
        }
        if let Some(site) = find(Scope::Embedding, s).or_else(|| find(Scope::Final, s)) {
            return Ok(Self::global(site));
        }
        module_name::block_output(s).ok_or_else(unknown)
    }
}

impl serde::Serialize for HookPoint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for HookPoint {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

fn find(scope: Scope, name: &str) -> Option<Site> {
    Site::ALL.iter().copied().find(|s| s.name() == name && (s.scope() == Scope::Block) == (scope == Scope::Block))
}

fn example_name(site: Site) -> String {
    match site.scope() {
        Scope::Block => HookPoint::block(0, site).to_string(),
        _ => HookPoint::global(site).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_print_as_they_parse() {
        for &site in Site::ALL {
            let point = match site.scope() {
                Scope::Block => HookPoint::block(11, site),
                _ => HookPoint::global(site),
            };
            assert_eq!(point.to_string().parse::<HookPoint>().unwrap(), point);
        }
    }

    #[test]
    fn a_typo_lists_the_nearest_names() {
        let error = "blocks.3.hook_resid_pots".parse::<HookPoint>().unwrap_err().to_string();
        assert!(error.contains("hook_resid_post"), "{error}");
    }
}
