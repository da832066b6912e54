//! Attention knock-out: some queries may not look at some keys any more (Geva et al. 2023, "Dissecting Recall of Factual
//! Associations in Auto-Regressive Language Models"). Scores become negative infinity before the softmax, so what is left
//! of a pattern still sums to one.

use candle_core::Tensor;

use crate::analysis::stop_if_cancelled;
use crate::base::{Context, Error, Progress, Result, Unit};
use crate::model::{Edit, EditOp, HookPlan, HookPoint, Site};

use super::sweep::{Axis, Sweep, check_below};
use super::trace::Patcher;

/// Which edges to cut.
#[derive(Debug, Clone)]
pub struct KnockOut {
    /// Layers to begin windows at.
    pub layers: Vec<usize>,
    /// Layers that are cut together, counted from the first; fewer at the model's end.
    pub window: usize,
    /// Heads to cut; all when empty.
    pub heads: Vec<usize>,
    /// Positions that attend.
    pub queries: Vec<usize>,
    /// Positions attended to. A key after its query is never seen and stays so.
    pub keys: Vec<usize>,
    /// What is cut one by one.
    pub columns: KnockOutColumns,
}

/// What the columns of a knock-out cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnockOutColumns {
    /// All edges at once, in one column.
    Together,
    /// Each key by itself. A query that sees no other key keeps it.
    Keys,
    /// Each head by itself.
    Heads,
}

/// The edges of one cell.
struct Cut {
    heads: Vec<usize>,
    keys: Vec<usize>,
}

impl Patcher<'_> {
    /// The metric with edges cut, window by window.
    ///
    /// # Errors
    /// `Flag` for a layer, head or position that does not exist, for a window of zero, and where a query would be left
    /// without any key.
    pub fn knock_out(&self, settings: &KnockOut, progress: &dyn Progress) -> Result<Sweep> {
        let config = self.model.config();
        let s = self.base.tokens.len();
        check_below("--layer", "layer of the model", &settings.layers, config.n_layers)?;
        check_below("--head", "head of the model", &settings.heads, config.n_heads)?;
        check_below("--from", "position of the prompt", &settings.queries, s)?;
        check_below("--to", "position of the prompt", &settings.keys, s)?;
        if settings.window == 0 {
            return Err(Error::flag("--window", "1 or more", 0, "1 cuts one layer at a time"));
        }
        let heads: Vec<usize> =
            if settings.heads.is_empty() { (0..config.n_heads).collect() } else { settings.heads.clone() };
        let (cuts, columns) = settings.cuts(&heads);
        let windows: Vec<(usize, usize)> =
            settings.layers.iter().map(|&first| (first, (first + settings.window).min(config.n_layers) - 1)).collect();
        progress.begin("knock-out", (windows.len() * cuts.len()) as u64, Unit::Items);
        let mut metric = Vec::new();
        for &(first, last) in &windows {
            let mut row = Vec::new();
            for group in cuts.chunks(self.rows_at_once()) {
                stop_if_cancelled(progress)?;
                row.extend(self.cut(group, settings, (first, last))?.into_iter().map(Some));
                progress.advance(group.len() as u64);
            }
            metric.push(row);
        }
        progress.end();
        let rows = if settings.window == 1 { Axis::Layer(settings.layers.clone()) } else { Axis::Window(windows) };
        Ok(Sweep { rows, columns, metric })
    }

    /// The metric of each of `cuts` in the layers of a window.
    fn cut(&self, cuts: &[Cut], settings: &KnockOut, (first, last): (usize, usize)) -> Result<Vec<f64>> {
        let config = self.model.config();
        let (heads, s) = (config.n_heads, self.base.tokens.len());
        let mut masks = vec![0f32; cuts.len() * heads * s * s];
        for (cut, mask) in cuts.iter().zip(masks.chunks_exact_mut(heads * s * s)) {
            for &query in &settings.queries {
                let windows = config.windows.iter().skip(first).take(last - first + 1);
                let blind = windows.copied().find(|&window| !cut.leaves_a_key(query, window));
                match blind {
                    Some(_) if settings.columns == KnockOutColumns::Keys => continue,
                    Some(window) => return Err(no_key_left(query, window)),
                    None => {}
                }
                for &key in cut.keys.iter().filter(|&&key| key <= query) {
                    cut.heads.iter().for_each(|head| mask[(head * s + query) * s + key] = f32::NEG_INFINITY);
                }
            }
        }
        let mask = Tensor::from_vec(masks, (cuts.len(), heads, s, s), self.model.device());
        let mask = mask.during(|| "masking attention".into())?;
        let plan = (first..=last).fold(HookPlan::new(), |plan, layer| {
            plan.edit(Edit::new(HookPoint::block(layer, Site::AttnScores), EditOp::Add(mask.clone())))
        });
        self.continued(first, &self.stream(first, cuts.len())?, plan)
    }
}

impl KnockOut {
    fn cuts(&self, heads: &[usize]) -> (Vec<Cut>, Axis) {
        let cut = |heads: &[usize], keys: &[usize]| Cut { heads: heads.to_vec(), keys: keys.to_vec() };
        match self.columns {
            KnockOutColumns::Together => (vec![cut(heads, &self.keys)], Axis::Name(vec!["knocked out".into()])),
            KnockOutColumns::Keys => {
                (self.keys.iter().map(|&key| cut(heads, &[key])).collect(), Axis::Position(self.keys.clone()))
            }
            KnockOutColumns::Heads => {
                (heads.iter().map(|&head| cut(&[head], &self.keys)).collect(), Axis::Head(heads.to_vec()))
            }
        }
    }
}

impl Cut {
    /// Whether a query that sees `window` positions still sees one.
    fn leaves_a_key(&self, query: usize, window: Option<usize>) -> bool {
        (oldest(query, window)..=query).any(|key| !self.keys.contains(&key))
    }
}

fn oldest(query: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (query + 1).saturating_sub(window))
}

fn no_key_left(query: usize, window: Option<usize>) -> Error {
    Error::flag(
        "--to",
        format!("at least one key left to position {query}"),
        format!("all of its keys, {} to {query}, cut", oldest(query, window)),
        "leave some key out of --to, or attend from later positions",
    )
}
