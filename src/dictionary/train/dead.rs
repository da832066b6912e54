//! Which features fire, how often, and what becomes of those that stopped.
//!
//! A feature that has not fired for a window of steps gets no gradient and would stay dead. It is started again at
//! rows that the dictionary reconstructs badly, drawn with probability proportional to their squared error: its
//! decoder row points along the row's residual, its encoder row too, and its Adam moments are zero (after Bricken et
//! al. 2023, appendix "Neuron resampling", which uses the row itself). In a transcoder the encoder row points along
//! the row that is encoded.

use rand::Rng;

use super::parameters::{Shape, State};
use super::settings::{Method, TrainPlan};
use crate::base::rng;
use crate::dictionary::metrics::column_sums;
use crate::ops::{dot, squared_norm};

/// Encoder rows start again at this share of the mean encoder norm of living features (Bricken et al. 2023).
const ENCODER_SHARE: f32 = 0.2;
/// The encoder bias starts again at minus this share of what the chosen row excites, so that a revived feature fires
/// on rows like its own and not on half of all rows.
const BIAS_SHARE: f32 = 0.5;
/// At most one in so many features starts again at once. Residuals of different rows resemble each other, because an
/// L1 penalty shrinks all reconstructions: hundreds of features along them overshoot together, and most die again.
const MOST_REVIVED: usize = 64;
/// Rows over which firing frequencies are counted before the count starts anew.
const FREQUENCY_ROWS: u64 = 1 << 20;

/// How features have fired so far.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Activity {
    /// Steps since each feature last fired, `[f]`.
    pub(super) since_fired: Vec<u32>,
    /// Rows on which each fired in the last whole counting period, `[f]`.
    pub(super) previous: Vec<u32>,
    /// Rows on which each fired in this period, `[f]`.
    pub(super) current: Vec<u32>,
    /// Rows of the last whole period.
    pub(super) previous_rows: u64,
    /// Rows of this period.
    pub(super) current_rows: u64,
}

impl Activity {
    /// Nothing has happened to `f` features yet.
    pub(super) fn new(f: usize) -> Self {
        let zeros = vec![0; f];
        Self { since_fired: zeros.clone(), previous: zeros.clone(), current: zeros, previous_rows: 0, current_rows: 0 }
    }

    /// Counts a batch of `rows` rows, on `fired[f]` of which feature `f` fired.
    pub(super) fn record(&mut self, fired: &[u32], rows: u64) {
        if self.current_rows >= FREQUENCY_ROWS {
            std::mem::swap(&mut self.previous, &mut self.current);
            self.current.fill(0);
            self.previous_rows = std::mem::take(&mut self.current_rows);
        }
        self.current_rows += rows;
        for ((since, current), fired) in self.since_fired.iter_mut().zip(&mut self.current).zip(fired) {
            *since = if *fired > 0 { 0 } else { since.saturating_add(1) };
            *current += fired;
        }
    }

    /// Features silent for more than `window` steps, ascending.
    pub(super) fn dead(&self, window: u64) -> Vec<u32> {
        (0..).zip(&self.since_fired).filter(|(_, since)| u64::from(**since) >= window).map(|(f, _)| f).collect()
    }

    /// Share of the last one to two million rows on which each feature fired, `[f]`.
    pub(super) fn frequencies(&self) -> Vec<f64> {
        let rows = (self.previous_rows + self.current_rows).max(1) as f64;
        self.previous.iter().zip(&self.current).map(|(a, b)| (f64::from(*a) + f64::from(*b)) / rows).collect()
    }
}

/// What a batch says to features that start again.
pub(super) struct Rows<'a> {
    /// Scaled rows, `[n, d_in]`.
    pub(super) x: &'a [f32],
    /// What the dictionary leaves over of its target, `[n, decoder]`.
    pub(super) residuals: &'a [f32],
}

/// Starts some of the `dead` features again at rows of a batch; gives those it started, at most one a row.
pub(super) fn resample(state: &mut State, plan: &TrainPlan, dead: &[u32], batch: &Rows<'_>) -> Vec<u32> {
    let Shape { d_in, decoder, transcoder, .. } = state.weights.shape;
    let center = if transcoder { mean_row(batch.x, d_in) } else { state.weights.b_dec.clone() };
    let errors: Vec<f32> = batch.residuals.chunks_exact(decoder).map(squared_norm).collect();
    let most = (state.weights.b_enc.len() / MOST_REVIVED).max(1);
    let rows = draw(&errors, dead.len().min(most), plan.seed, state.step);
    let encoder_norm = ENCODER_SHARE * mean_norm(&state.weights.w_enc, d_in, dead);
    let decoder_norm = mean_norm(&state.weights.w_dec, decoder, dead);
    let revived: Vec<u32> = dead.iter().copied().take(rows.len()).collect();
    for (&feature, row) in revived.iter().zip(rows) {
        let feature = feature as usize;
        let residual = &batch.residuals[row * decoder..][..decoder];
        let centered: Vec<f32> = batch.x[row * d_in..][..d_in].iter().zip(&center).map(|(x, c)| x - c).collect();
        // What a transcoder's feature reads and what it writes are different spaces.
        let read = if transcoder { &centered } else { residual };
        let (w_enc, w_dec) = (feature * d_in..(feature + 1) * d_in, feature * decoder..(feature + 1) * decoder);
        let State { weights, first, second, .. } = state;
        point(&mut weights.w_enc[w_enc.clone()], read, encoder_norm);
        point(&mut weights.w_dec[w_dec.clone()], residual, decoder_norm);
        let excitation = dot(&weights.w_enc[w_enc.clone()], &centered);
        weights.b_enc[feature] = -BIAS_SHARE * excitation.max(0.0);
        if transcoder {
            weights.b_enc[feature] -= dot(&weights.w_enc[w_enc.clone()], &center);
        }
        for (name, own) in &mut weights.own {
            own[feature] = match (*name, &plan.method) {
                ("threshold", Method::JumpRelu { init_threshold, .. }) => *init_threshold as f32,
                ("b_mag", _) => weights.b_enc[feature],
                _ => 0.0,
            };
        }
        for moments in [first, second] {
            moments.own.iter_mut().for_each(|(_, own)| own[feature] = 0.0);
            moments.w_enc[w_enc.clone()].fill(0.0);
            moments.w_dec[w_dec.clone()].fill(0.0);
            moments.b_enc[feature] = 0.0;
        }
    }
    revived
}

/// Gives `row` the direction of `direction` and the norm `norm`.
fn point(row: &mut [f32], direction: &[f32], norm: f32) {
    let length = squared_norm(direction).sqrt().max(f32::MIN_POSITIVE);
    row.iter_mut().zip(direction).for_each(|(w, x)| *w = x / length * norm);
}

fn mean_row(x: &[f32], d: usize) -> Vec<f32> {
    let n = (x.len() / d).max(1) as f64;
    column_sums(x, d).into_iter().map(|sum| (sum / n) as f32).collect()
}

/// At most `count` distinct rows with positive error, drawn with probability proportional to it: the rows with the
/// largest `ln(u) / error` (Efraimidis and Spirakis 2006).
fn draw(errors: &[f32], count: usize, seed: u64, step: u64) -> Vec<usize> {
    let mut random = rng::stream(seed, &format!("resampling at step {step}"));
    let mut keys: Vec<(f64, usize)> = errors
        .iter()
        .enumerate()
        .map(|(row, error)| (random.random_range(f64::MIN_POSITIVE..1.0).ln() / f64::from(*error), row))
        .filter(|(key, _)| key.is_finite())
        .collect();
    keys.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    keys.truncate(count);
    keys.into_iter().map(|(_, row)| row).collect()
}

/// Mean norm of the rows of living features; 1 when none lives. `dead` ascends.
fn mean_norm(rows: &[f32], d: usize, dead: &[u32]) -> f32 {
    let living = (0u32..).zip(rows.chunks_exact(d)).filter(|(feature, _)| dead.binary_search(feature).is_err());
    let (sum, count) =
        living.fold((0.0f64, 0u32), |(sum, n), (_, row)| (sum + f64::from(squared_norm(row)).sqrt(), n + 1));
    if count == 0 { 1.0 } else { (sum / f64::from(count)) as f32 }
}

#[cfg(test)]
mod tests {
    use super::super::finish::{self, Scales};
    use super::super::method::L1;
    use super::super::parameters::Parameters;
    use super::super::step::active_pairs;
    use super::*;
    use crate::dictionary::Metadata;
    use crate::dictionary::train::TrainSettings;
    use crate::ops::gemm::tests::numbers;

    #[test]
    fn features_die_after_a_silent_window_and_frequencies_are_shares() {
        let mut activity = Activity::new(3);
        activity.record(&[2, 0, 1], 4);
        activity.record(&[2, 0, 0], 4);
        activity.record(&[0, 0, 0], 4);
        assert_eq!(activity.dead(3), [1]);
        assert_eq!(activity.dead(2), [1, 2]);
        assert_eq!(activity.frequencies(), [4.0 / 12.0, 0.0, 1.0 / 12.0]);
    }

    #[test]
    fn some_dead_features_fire_again_on_the_rows_they_were_given() {
        let (d, f) = (6, 2 * MOST_REVIVED);
        let settings = TrainSettings { d_sae: Some(f), ..TrainSettings::default() };
        let plan = settings.plan(d, 8).unwrap();
        let mut state = State::new(Parameters::initial(plan.arch, plan.shape(), 0.1, vec![0.0; d], 3));
        for dead in [2, 4, 9] {
            state.weights.b_enc[dead] = -100.0;
        }
        state.first.w_enc.fill(1.0);
        let x = numbers(8 * d, "x");
        let before = state.clone();
        let now = finish::dictionary(&state, &plan, &Scales::unit(0), Metadata::default()).unwrap();
        let residuals: Vec<f32> = x.iter().zip(now.reconstruct(&x).unwrap()).map(|(x, y)| x - y).collect();
        let rows = Rows { x: &x, residuals: &residuals };
        assert_eq!(resample(&mut state, &plan, &[2, 4, 9], &rows), [2, 4], "one in {MOST_REVIVED} at once");
        let norms = state.weights.decoder_norms();
        let codes = active_pairs(&state.weights, &L1 { norms: &norms }, &x);
        for feature in [2, 4] {
            assert!(codes.features.contains(&feature), "{feature}");
        }
        assert!(!codes.features.contains(&9));
        assert_eq!(state.weights.w_enc[..2 * d], before.weights.w_enc[..2 * d]);
        assert_eq!((state.first.w_enc[2 * d], state.first.w_enc[d]), (0.0, 1.0));
        let mut again = before.clone();
        resample(&mut again, &plan, &[2, 4, 9], &rows);
        assert_eq!(again, state, "the same seed and step");
    }
}
