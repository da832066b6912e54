//! Directions that are alike: decoder rows among themselves, and decoder rows against the output rows of MLP neurons.

use candle_core::Device;
use rayon::prelude::*;

use crate::analysis::{Placement, stop_if_cancelled};
use crate::base::progress::Unit;
use crate::base::{Context, Progress, Result};
use crate::dictionary::Dictionary;
use crate::model::{HookPoint, Model, Site};
use crate::ops::{Matrix, gemm};

/// Rows of one tile on the left.
const TILE_LEFT: usize = 1024;
/// Rows of one tile on the right: with [`TILE_LEFT`] the product of two tiles is 32 MiB.
const TILE_RIGHT: usize = 8192;

/// A row of the other side, with the cosine to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alike {
    /// Number of the row: a feature or a neuron.
    pub row: u32,
    /// From -1 to 1.
    pub cosine: f32,
}

/// An entry of a decoder row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Aligned {
    /// The coordinate.
    pub coordinate: u32,
    /// Its value.
    pub value: f32,
    /// Its share of the row's sum of absolute values.
    pub share: f32,
}

/// The neurons of one MLP and how features lean on them.
#[derive(Debug, Clone, PartialEq)]
pub struct NeuronAlignment {
    /// Where the neurons' activations are.
    pub point: HookPoint,
    /// For each feature the neurons that write most alike, by absolute cosine.
    pub neurons: Vec<Vec<Alike>>,
}

/// For every feature the `n` others with the largest cosine of decoder rows; none for a feature that writes nothing.
/// Memory: one tile of products, and `n` neighbours a feature.
///
/// # Errors
/// `Interrupted` when the user stopped the work.
pub fn nearest_features(dictionary: &Dictionary, n: usize, progress: &dyn Progress) -> Result<Vec<Vec<Alike>>> {
    let rows = Rows { values: &dictionary.w_dec, d: dictionary.d_out() };
    most_alike("nearest features", (rows, rows), n, By::Cosine, progress)
}

/// The `n` largest entries of every decoder row by absolute value, as `sae_vis` shows alignment with neurons.
pub fn alignment(dictionary: &Dictionary, n: usize) -> Vec<Vec<Aligned>> {
    let largest = |row: &[f32]| {
        let total: f32 = row.iter().map(|x| x.abs()).sum();
        let mut order: Vec<u32> = (0..row.len() as u32).collect();
        let by_size = |a: &u32, b: &u32| row[*b as usize].abs().total_cmp(&row[*a as usize].abs()).then(a.cmp(b));
        if order.len() > n {
            order.select_nth_unstable_by(n, by_size);
            order.truncate(n);
        }
        order.sort_unstable_by(by_size);
        let entry = |coordinate: u32| {
            let value = row[coordinate as usize];
            Aligned { coordinate, value, share: if total > 0.0 { value.abs() / total } else { 0.0 } }
        };
        order.into_iter().map(entry).collect()
    };
    dictionary.w_dec.par_chunks_exact(dictionary.d_out().max(1)).map(largest).collect()
}

/// The neurons that features lean on: those of the last MLP that writes to what the dictionary decodes, by absolute
/// cosine of their output row with the decoder row. `None` where there is no such MLP or it is a mixture.
///
/// # Errors
/// As [`Placement::of_output`]; `Interrupted` when the user stopped the work.
pub fn neuron_alignment(
    dictionary: &Dictionary,
    model: &Model,
    n: usize,
    progress: &dyn Progress,
) -> Result<Option<NeuronAlignment>> {
    let point = Placement::of_output(dictionary, model.config())?.point;
    let Some(layer) = last_mlp_before(point) else { return Ok(None) };
    let Some(outputs) = model.neuron_outputs(layer)? else { return Ok(None) };
    let values = outputs.to_device(&Device::Cpu).and_then(|t| t.flatten_all()?.to_vec1::<f32>());
    let values = values.during(|| format!("reading the output weights of layer {layer}'s MLP"))?;
    let decoder = Rows { values: &dictionary.w_dec, d: dictionary.d_out() };
    let neurons = Rows { values: &values, d: dictionary.d_out() };
    let neurons = most_alike("neurons", (decoder, neurons), n, By::Size, progress)?;
    Ok(Some(NeuronAlignment { point: HookPoint::block(layer, Site::MlpPost), neurons }))
}

/// The layer of the MLP whose output is the last that was added to what `point` shows.
fn last_mlp_before(point: HookPoint) -> Option<usize> {
    let layer = point.layer?;
    match point.site {
        Site::ResidPost | Site::MlpHookOut | Site::MlpOut | Site::MlpAdded => Some(layer),
        Site::ResidPre | Site::ResidMid => layer.checked_sub(1),
        _ => None,
    }
}

/// Rows `[n, d]`.
#[derive(Clone, Copy)]
struct Rows<'a> {
    values: &'a [f32],
    d: usize,
}

impl<'a> Rows<'a> {
    fn len(self) -> usize {
        self.values.len() / self.d.max(1)
    }

    fn part(self, first: usize, n: usize) -> Matrix<'a> {
        Matrix::new(&self.values[first * self.d..(first + n) * self.d], n, self.d)
    }

    /// One over the norm of each row, zero for rows of zeros.
    fn inverse_norms(self) -> Vec<f32> {
        let inverse = |row: &[f32]| {
            let squares: f64 = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
            if squares > 0.0 { (1.0 / squares.sqrt()) as f32 } else { 0.0 }
        };
        self.values.par_chunks_exact(self.d.max(1)).map(inverse).collect()
    }
}

/// What ranks rows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// The cosine; both sides are the same rows, and a row is no neighbour of itself.
    Cosine,
    /// The absolute value of the cosine.
    Size,
}

/// For every row on the left the `n` rows on the right that rank highest; of equal ones the lower number.
fn most_alike(
    label: &str,
    (left, right): (Rows<'_>, Rows<'_>),
    n: usize,
    by: By,
    progress: &dyn Progress,
) -> Result<Vec<Vec<Alike>>> {
    let size = |cosine: f32| if by == By::Size { cosine.abs() } else { cosine };
    let (left_inverse, right_inverse) = (left.inverse_norms(), right.inverse_norms());
    let mut best: Vec<Vec<Alike>> = vec![Vec::new(); left.len()];
    progress.begin(label, left.len() as u64, Unit::Items);
    for (tile, best) in best.chunks_mut(TILE_LEFT).enumerate() {
        let first = tile * TILE_LEFT;
        let rows = left.part(first, best.len());
        for other in (0..right.len()).step_by(TILE_RIGHT) {
            stop_if_cancelled(progress)?;
            let width = TILE_RIGHT.min(right.len() - other);
            let products = gemm::multiply(rows, right.part(other, width).t());
            best.par_iter_mut().zip(products.par_chunks_exact(width)).enumerate().for_each(|(i, (best, products))| {
                let scale = left_inverse[first + i];
                if scale == 0.0 {
                    return;
                }
                for (j, product) in products.iter().enumerate() {
                    let cosine = (product * scale * right_inverse[other + j]).clamp(-1.0, 1.0);
                    let beats = |kept: &Alike| size(cosine) > size(kept.cosine);
                    let beaten = best.len() >= n && !best.last().is_some_and(beats);
                    if beaten || (by == By::Cosine && other + j == first + i) {
                        continue;
                    }
                    let place = best.partition_point(|kept| !beats(kept));
                    best.insert(place, Alike { row: (other + j) as u32, cosine });
                    best.truncate(n);
                }
            });
        }
        progress.advance(best.len() as u64);
    }
    progress.end();
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::tests::{dictionary_at, open};
    use crate::base::Silent;

    fn cosine(a: &[f32], b: &[f32]) -> f32 {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    }

    fn assert_ranked(found: &[Alike], expected: impl Fn(usize) -> f32, candidates: Vec<usize>, absolute: bool) {
        let size = |i: usize| if absolute { expected(i).abs() } else { expected(i) };
        let mut order = candidates;
        order.sort_by(|&a, &b| size(b).total_cmp(&size(a)));
        for (found, expected_row) in found.iter().zip(order) {
            assert_eq!(found.row as usize, expected_row);
            assert!((found.cosine - expected(expected_row)).abs() < 1e-5);
        }
    }

    #[test]
    fn neighbours_equal_sorting_all_cosines() {
        let dictionary = dictionary_at("blocks.1.hook_resid_post", 24, 60);
        let row = |f: usize| dictionary.decoder_row(f as u32).unwrap();
        let nearest = nearest_features(&dictionary, 5, &Silent).unwrap();
        for (f, found) in nearest.iter().enumerate() {
            assert_eq!(found.len(), 5);
            assert_ranked(found, |g| cosine(row(f), row(g)), (0..60).filter(|&g| g != f).collect(), false);
        }
        for (f, entries) in alignment(&dictionary, 3).iter().enumerate() {
            let mut sizes: Vec<f32> = row(f).iter().map(|x| x.abs()).collect();
            sizes.sort_by(|a, b| b.total_cmp(a));
            assert_eq!(entries.iter().map(|e| e.value.abs()).collect::<Vec<_>>(), sizes[..3]);
            assert!(entries.iter().all(|e| e.value == row(f)[e.coordinate as usize]));
            assert!((entries[0].share - sizes[0] / sizes.iter().sum::<f32>()).abs() < 1e-6);
        }
    }

    #[test]
    fn neurons_are_those_of_the_last_mlp_before_the_hook() {
        let model = open("llama");
        for (hook, layer) in [
            ("blocks.1.hook_resid_post", Some(1)),
            ("blocks.1.hook_resid_pre", Some(0)),
            ("blocks.0.hook_mlp_out", Some(0)),
            ("blocks.0.hook_resid_pre", None),
            ("blocks.1.hook_attn_out", None),
        ] {
            let dictionary = dictionary_at(hook, 24, 40);
            let found = neuron_alignment(&dictionary, &model, 4, &Silent).unwrap();
            assert_eq!(found.as_ref().map(|f| f.point.layer), layer.map(Some), "{hook}");
            let (Some(found), Some(layer)) = (found, layer) else { continue };
            let outputs = model.neuron_outputs(layer).unwrap().unwrap().to_vec2::<f32>().unwrap();
            for (f, neurons) in found.neurons.iter().enumerate() {
                let row = dictionary.decoder_row(f as u32).unwrap();
                assert_ranked(neurons, |i| cosine(row, &outputs[i]), (0..outputs.len()).collect(), true);
            }
        }
    }

    #[test]
    fn a_feature_that_writes_nothing_has_no_neighbours() {
        let mut dictionary = dictionary_at("blocks.1.hook_resid_post", 24, 8);
        dictionary.w_dec[..24].fill(0.0);
        let nearest = nearest_features(&dictionary, 3, &Silent).unwrap();
        assert!(nearest[0].is_empty() && nearest[1].len() == 3);
    }
}
