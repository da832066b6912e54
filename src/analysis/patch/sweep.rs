//! Patches of one site over layers, positions and heads.

use serde::Serialize;

use crate::analysis::stop_if_cancelled;
use crate::base::{Error, Progress, Result, Unit};
use crate::model::{HookPoint, ModelConfig, Site};

use super::has_heads;
use super::replace::Replacement;
use super::trace::{Patcher, Values};

/// What rows and columns of a result stand for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "axis", content = "values", rename_all = "snake_case")]
pub enum Axis {
    /// Layers.
    Layer(Vec<usize>),
    /// Layers, first and last of a window.
    Window(Vec<(usize, usize)>),
    /// Positions of the prompt.
    Position(Vec<usize>),
    /// Heads of a layer.
    Head(Vec<usize>),
    /// Layer and head.
    LayerHead(Vec<(usize, usize)>),
    /// Named parts, such as "mlp".
    Name(Vec<String>),
}

impl Axis {
    /// How many rows or columns.
    pub fn len(&self) -> usize {
        match self {
            Self::Layer(list) | Self::Position(list) | Self::Head(list) => list.len(),
            Self::Window(list) | Self::LayerHead(list) => list.len(),
            Self::Name(list) => list.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How patches are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// A layer at one position, all heads together.
    Position,
    /// A head at all positions of the scope.
    Head,
    /// A head at one position.
    HeadPosition,
}

/// Where to patch.
#[derive(Debug, Clone, Serialize)]
pub struct Scope {
    /// Layers, from 0.
    pub layers: Vec<usize>,
    /// Heads, from 0; all when empty.
    pub heads: Vec<usize>,
    /// Positions, from 0.
    pub positions: Vec<usize>,
}

/// The metric under each patch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sweep {
    /// What each row stands for.
    pub rows: Axis,
    /// What each column stands for.
    pub columns: Axis,
    /// The metric, by row and column; none where no patch is possible.
    pub metric: Vec<Vec<Option<f64>>>,
}

/// The part of a value that one patch replaces.
struct Part {
    head: Option<usize>,
    /// Parallel to the scope's, or all of them.
    positions: Vec<usize>,
}

impl Patcher<'_> {
    /// Replaces the values at `site` part by part by those of `replacement`, averaged over its draws.
    ///
    /// # Errors
    /// `Unknown` when the model lacks the site; `Unsupported` when a site without heads is to be patched by head;
    /// `Flag` for a layer, head or position the run does not have; as the forward pass.
    pub fn sweep(
        &self,
        site: Site,
        by: By,
        scope: &Scope,
        replacement: &Replacement,
        progress: &dyn Progress,
    ) -> Result<Sweep> {
        let config = self.model.config();
        scope.check(site, config, self.base.tokens.len())?;
        if by != By::Position && !has_heads(site) {
            return Err(Error::Unsupported {
                what: format!("patching {} by head", site.name()),
                why: "the site has no heads".into(),
                remedy: "patch z, q, k, v or pattern by head, or this site by position".into(),
            });
        }
        let heads = scope.heads_of(site, config);
        let parts = parts(by, &heads, &scope.positions);
        progress.begin(site.name(), (scope.layers.len() * parts.len()) as u64, Unit::Items);
        let mut found = Vec::new();
        for &layer in &scope.layers {
            let point = HookPoint::block(layer, site).check(config)?;
            let base = self.base.at(point)?;
            let mut sums = vec![0.0; parts.len()];
            let draws = replacement.values(point, base)?;
            for draw in &draws {
                for (group, sums) in parts.chunks(self.rows_at_once()).zip(sums.chunks_mut(self.rows_at_once())) {
                    stop_if_cancelled(progress)?;
                    let rows: Vec<Vec<f32>> = group.iter().map(|part| part.patched(site, base, draw)).collect();
                    let metric = self.replaced(point, &rows)?;
                    sums.iter_mut().zip(metric).for_each(|(sum, metric)| *sum += metric);
                }
            }
            progress.advance(parts.len() as u64);
            found.push(sums.into_iter().map(|sum| Some(sum / draws.len() as f64)).collect::<Vec<_>>());
        }
        progress.end();
        Ok(arranged(by, scope, heads, found))
    }
}

impl Scope {
    /// Everything in a run of `positions` tokens.
    pub fn all(config: &ModelConfig, positions: usize) -> Self {
        Self { layers: (0..config.n_layers).collect(), heads: Vec::new(), positions: (0..positions).collect() }
    }

    fn heads_of(&self, site: Site, config: &ModelConfig) -> Vec<usize> {
        if self.heads.is_empty() { (0..site.heads(config).unwrap_or(0)).collect() } else { self.heads.clone() }
    }

    /// Checks that layers, heads and positions exist.
    pub(super) fn check(&self, site: Site, config: &ModelConfig, positions: usize) -> Result<()> {
        let heads = site.heads(config).unwrap_or(usize::MAX);
        check_below("--layer", "layer of the model", &self.layers, config.n_layers)?;
        check_below("--head", "head of this site", &self.heads, heads)?;
        check_below("--position", "position of the prompt", &self.positions, positions)
    }
}

/// Checks that every number is below `limit`.
pub(super) fn check_below(flag: &'static str, what: &str, found: &[usize], limit: usize) -> Result<()> {
    match found.iter().find(|&&n| n >= limit) {
        None => Ok(()),
        Some(n) => {
            let expected = format!("a {what}, 0 to {}", limit.saturating_sub(1));
            Err(Error::flag(flag, expected, n, "layers, heads and positions count from 0"))
        }
    }
}

fn parts(by: By, heads: &[usize], positions: &[usize]) -> Vec<Part> {
    let one = |&p: &usize| vec![p];
    match by {
        By::Position => positions.iter().map(|p| Part { head: None, positions: one(p) }).collect(),
        By::Head => heads.iter().map(|&h| Part { head: Some(h), positions: positions.to_vec() }).collect(),
        By::HeadPosition => {
            let of = |&h: &usize| positions.iter().map(move |p| Part { head: Some(h), positions: one(p) });
            heads.iter().flat_map(of).collect()
        }
    }
}

/// Results of all parts, a layer a row, as rows and columns.
fn arranged(by: By, scope: &Scope, heads: Vec<usize>, found: Vec<Vec<Option<f64>>>) -> Sweep {
    let layers = Axis::Layer(scope.layers.clone());
    let positions = || Axis::Position(scope.positions.clone());
    match by {
        By::Position => Sweep { rows: layers, columns: positions(), metric: found },
        By::Head => Sweep { rows: layers, columns: Axis::Head(heads), metric: found },
        By::HeadPosition => {
            let pairs = scope.layers.iter().flat_map(|&layer| heads.iter().map(move |&head| (layer, head)));
            let width = scope.positions.len().max(1);
            Sweep {
                rows: Axis::LayerHead(pairs.collect()),
                columns: positions(),
                metric: found.iter().flat_map(|row| row.chunks(width).map(<[_]>::to_vec)).collect(),
            }
        }
    }
}

impl Part {
    /// `base` with the part's values from `other`.
    fn patched(&self, site: Site, base: &Values, other: &[f32]) -> Vec<f32> {
        let mut patched = base.data.clone();
        let mut copy = |start: usize, n: usize| {
            if let (Some(to), Some(from)) = (patched.get_mut(start..start + n), other.get(start..start + n)) {
                to.copy_from_slice(from);
            }
        };
        for &position in &self.positions {
            match (site, base.shape.as_slice(), self.head) {
                (Site::AttnPattern, &[_, _, s, keys], Some(head)) => copy((head * s + position) * keys, keys),
                (Site::AttnPattern, &[_, heads, s, keys], None) => {
                    (0..heads).for_each(|head| copy((head * s + position) * keys, keys));
                }
                (_, &[_, _, heads, h], Some(head)) => copy((position * heads + head) * h, h),
                (_, shape, _) => {
                    let width: usize = shape.iter().skip(2).product();
                    copy(position * width, width);
                }
            }
        }
        patched
    }
}
