//! The figures of an evaluation, under SAEBench's names.

use serde::Serialize;

use super::FeatureDetail;
use super::language::LanguageSums;
use crate::dictionary::metrics::{DENSE_ABOVE, Metrics};

/// SAEBench's core categories. What was not measured is absent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CoreMetrics {
    /// KL divergences.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_behavior_preservation: Option<ModelBehaviorPreservation>,
    /// Cross-entropies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_performance_preservation: Option<ModelPerformancePreservation>,
    /// Errors.
    pub reconstruction_quality: ReconstructionQuality,
    /// Norms.
    pub shrinkage: Shrinkage,
    /// Active features.
    pub sparsity: Sparsity,
    /// Amounts.
    pub token_stats: TokenStats,
    /// Densities and directions.
    pub misc_metrics: MiscMetrics,
}

/// KL divergences of next-token distributions, in nats.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[expect(missing_docs, reason = "defined in `DEFINITIONS`")]
pub struct ModelBehaviorPreservation {
    pub kl_div_score: f64,
    pub kl_div_with_ablation: f64,
    pub kl_div_with_sae: f64,
}

/// Cross-entropies of the next token, in nats.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[expect(missing_docs, reason = "defined in `DEFINITIONS`")]
pub struct ModelPerformancePreservation {
    pub ce_loss_score: f64,
    pub ce_loss_with_ablation: f64,
    pub ce_loss_with_sae: f64,
    pub ce_loss_without_sae: f64,
}

/// Errors of reconstructions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[expect(missing_docs, reason = "defined in `DEFINITIONS`")]
pub struct ReconstructionQuality {
    pub explained_variance: f64,
    pub explained_variance_legacy: f64,
    pub mse: f64,
    pub cossim: f64,
}

/// Norms of reconstructions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[expect(missing_docs, reason = "defined in `DEFINITIONS`")]
pub struct Shrinkage {
    pub l2_norm_in: f64,
    pub l2_norm_out: f64,
    pub l2_ratio: f64,
    pub relative_reconstruction_bias: f64,
}

/// Active features a position.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[expect(missing_docs, reason = "defined in `DEFINITIONS`")]
pub struct Sparsity {
    pub l0: f64,
    pub l1: f64,
}

/// Positions measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[expect(missing_docs, reason = "defined in `DEFINITIONS`")]
pub struct TokenStats {
    pub total_tokens_eval_reconstruction: u64,
    pub total_tokens_eval_sparsity_variance: u64,
}

/// How densities and directions are spread.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[expect(missing_docs, reason = "defined in `DEFINITIONS`")]
pub struct MiscMetrics {
    pub freq_over_1_percent: f64,
    pub freq_over_10_percent: f64,
    pub normalized_freq_over_1_percent: f64,
    pub normalized_freq_over_10_percent: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub average_max_encoder_cosine_sim: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub average_max_decoder_cosine_sim: Option<f64>,
    pub frac_alive: f64,
    pub dead_features: usize,
    pub dense_features: usize,
}

impl CoreMetrics {
    /// The figures that need activations alone.
    pub fn new(sums: &Metrics) -> Self {
        let report = sums.report();
        Self {
            model_behavior_preservation: None,
            model_performance_preservation: None,
            reconstruction_quality: ReconstructionQuality {
                explained_variance: report.explained_variance,
                explained_variance_legacy: report.explained_variance_legacy,
                mse: report.mse,
                cossim: report.cossim,
            },
            shrinkage: Shrinkage {
                l2_norm_in: report.l2_norm_in,
                l2_norm_out: report.l2_norm_out,
                l2_ratio: report.l2_ratio,
                relative_reconstruction_bias: report.relative_reconstruction_bias,
            },
            sparsity: Sparsity { l0: report.l0, l1: report.l1 },
            token_stats: TokenStats {
                total_tokens_eval_reconstruction: 0,
                total_tokens_eval_sparsity_variance: report.rows,
            },
            misc_metrics: MiscMetrics::new(&sums.densities()),
        }
    }

    /// The figure called `name` in [`DEFINITIONS`], where it was measured.
    pub fn get(&self, name: &str) -> Option<f64> {
        if name == "total_tokens_eval_reconstruction" && self.token_stats.total_tokens_eval_reconstruction == 0 {
            return None;
        }
        let all = serde_json::to_value(self).ok()?;
        all.as_object()?.values().find_map(|category| category.get(name)).and_then(serde_json::Value::as_f64)
    }

    pub(super) fn set_language(&mut self, sums: &LanguageSums) {
        self.token_stats.total_tokens_eval_reconstruction = sums.positions;
        self.model_behavior_preservation = Some(sums.behavior());
        self.model_performance_preservation = Some(sums.performance());
    }

    pub(super) fn set_directions(&mut self, details: &[FeatureDetail]) {
        let mean = |of: &dyn Fn(&FeatureDetail) -> Option<f32>| -> Option<f64> {
            let known: Vec<f64> = details.iter().filter_map(of).map(f64::from).collect();
            (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
        };
        self.misc_metrics.average_max_encoder_cosine_sim = mean(&|d| d.max_encoder_cosine_sim);
        self.misc_metrics.average_max_decoder_cosine_sim = mean(&|d| d.max_decoder_cosine_sim);
    }
}

impl MiscMetrics {
    fn new(densities: &[f64]) -> Self {
        let (n, total) = (densities.len().max(1) as f64, densities.iter().sum::<f64>());
        let share = |above: f64| densities.iter().filter(|d| **d > above).count() as f64 / n;
        let mass = |above: f64| {
            // The sum of nothing is −0 in Rust.
            let sum: f64 = densities.iter().filter(|d| **d > above).sum::<f64>() + 0.0;
            if total > 0.0 { sum / total } else { 0.0 }
        };
        Self {
            freq_over_1_percent: share(0.01),
            freq_over_10_percent: share(0.1),
            normalized_freq_over_1_percent: mass(0.01),
            normalized_freq_over_10_percent: mass(0.1),
            average_max_encoder_cosine_sim: None,
            average_max_decoder_cosine_sim: None,
            frac_alive: share(0.0),
            dead_features: densities.iter().filter(|d| **d == 0.0).count(),
            dense_features: densities.iter().filter(|d| **d > DENSE_ABOVE).count(),
        }
    }
}

/// When a figure of one dictionary is better than another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Larger.
    More,
    /// Smaller.
    Less,
    /// Nearer to one.
    NearOne,
    /// It describes and does not judge: sparsity is bought with error, and the data are the same for all.
    Neither,
}

impl Better {
    /// Places of the best of `values`, several when they are equal; none where all that are known are equal or nothing
    /// is better.
    pub fn best(self, values: &[Option<f64>]) -> Vec<usize> {
        let loss = |value: f64| match self {
            Self::More => Some(-value),
            Self::Less => Some(value),
            Self::NearOne => Some((value - 1.0).abs()),
            Self::Neither => None,
        };
        let losses: Vec<Option<f64>> = values.iter().map(|v| v.filter(|v| v.is_finite()).and_then(loss)).collect();
        let best = losses.iter().flatten().copied().fold(f64::INFINITY, f64::min);
        if losses.iter().flatten().all(|loss| *loss <= best) {
            return Vec::new();
        }
        (0..losses.len()).filter(|&i| losses[i] == Some(best)).collect()
    }
}

/// A figure's name, what it is in one line, and when it is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Definition {
    /// SAEBench's name, or ours for the last two.
    pub name: &'static str,
    /// The formula or the meaning.
    pub meaning: &'static str,
    /// How figures of two dictionaries compare.
    pub better: Better,
}

const fn define(name: &'static str, better: Better, meaning: &'static str) -> Definition {
    Definition { name, meaning, better }
}

/// Every figure, in the order of the result.
pub const DEFINITIONS: &[Definition] = &[
    define("kl_div_score", Better::More, "(KL zero - KL sae) / KL zero; 1 = behaviour unchanged, 0 = as bad as zeros"),
    define(
        "kl_div_with_ablation",
        Better::Neither,
        "mean KL(clean || hook zeroed) of the next-token distribution, nats",
    ),
    define(
        "kl_div_with_sae",
        Better::Less,
        "mean KL(clean || through the dictionary) of the next-token distribution, nats",
    ),
    define("ce_loss_score", Better::More, "loss recovered: (CE zero - CE sae) / (CE zero - CE clean)"),
    define("ce_loss_with_ablation", Better::Neither, "cross-entropy with the hook zeroed everywhere, nats a token"),
    define("ce_loss_with_sae", Better::Less, "cross-entropy through the dictionary, no error term, nats a token"),
    define("ce_loss_without_sae", Better::Neither, "cross-entropy of the untouched model, nats a token"),
    define("explained_variance", Better::More, "R2: 1 - E|x - y|^2 / (E|x|^2 - |E x|^2), every position equal"),
    define("explained_variance_legacy", Better::More, "mean over positions of 1 - |x - y|^2 / |x - batch mean|^2"),
    define("mse", Better::Less, "mean over positions of |x - y|^2, summed over the width"),
    define("cossim", Better::More, "mean cosine of x and its reconstruction y"),
    define("l2_norm_in", Better::Neither, "mean |x|"),
    define("l2_norm_out", Better::Neither, "mean |y|"),
    define("l2_ratio", Better::NearOne, "mean |y| / |x|"),
    define("relative_reconstruction_bias", Better::NearOne, "E|y|^2 / E(x . y); below 1 = reconstructions too short"),
    define("l0", Better::Neither, "mean number of active features a position"),
    define("l1", Better::Neither, "mean sum of absolute activations a position"),
    define("total_tokens_eval_reconstruction", Better::Neither, "positions whose next-token loss was measured"),
    define("total_tokens_eval_sparsity_variance", Better::Neither, "positions whose reconstruction was measured"),
    define("freq_over_1_percent", Better::Neither, "share of features active on more than 1 % of positions"),
    define("freq_over_10_percent", Better::Neither, "share of features active on more than 10 % of positions"),
    define("normalized_freq_over_1_percent", Better::Neither, "share of all firings that come from features above 1 %"),
    define(
        "normalized_freq_over_10_percent",
        Better::Neither,
        "share of all firings that come from features above 10 %",
    ),
    define(
        "average_max_encoder_cosine_sim",
        Better::Neither,
        "mean over features of the largest cosine to another encoder column",
    ),
    define(
        "average_max_decoder_cosine_sim",
        Better::Less,
        "mean over features of the largest cosine to another decoder row",
    ),
    define("frac_alive", Better::More, "share of features active on at least one position"),
    define("dead_features", Better::Less, "features active on no position"),
    define("dense_features", Better::Neither, "features active on more than 10 % of positions"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn densities_are_summarised_as_saebench_does() {
        let misc = MiscMetrics::new(&[0.0, 0.005, 0.045, 0.45]);
        assert_eq!((misc.frac_alive, misc.freq_over_1_percent, misc.freq_over_10_percent), (0.75, 0.5, 0.25));
        assert!((misc.normalized_freq_over_1_percent - 0.99).abs() < 1e-12);
        assert!((misc.normalized_freq_over_10_percent - 0.9).abs() < 1e-12);
        assert_eq!((misc.dead_features, misc.dense_features), (1, 1));
    }

    #[test]
    fn the_best_figures_are_marked() {
        let values = [Some(0.9), None, Some(1.05), Some(f64::NAN), Some(0.9)];
        assert_eq!(Better::More.best(&values), [2]);
        assert_eq!(Better::Less.best(&values), [0, 4]);
        assert_eq!(Better::NearOne.best(&values), [2]);
        assert!(Better::Neither.best(&values).is_empty() && Better::More.best(&values[..2]).is_empty());
    }

    #[test]
    fn every_figure_has_a_definition() {
        let mut sums = Metrics::new(1, 1);
        let mut codes = crate::dictionary::SparseCodes::new(1);
        codes.push_row(&[0], &[1.0]);
        sums.add(&[1.0], &[1.0], &codes).unwrap();
        let mut metrics = CoreMetrics::new(&sums);
        metrics.set_language(&LanguageSums::default());
        metrics.misc_metrics.average_max_encoder_cosine_sim = Some(0.0);
        metrics.misc_metrics.average_max_decoder_cosine_sim = Some(0.0);
        let json = serde_json::to_value(metrics).unwrap();
        let names: Vec<&str> = json
            .as_object()
            .unwrap()
            .values()
            .flat_map(|c| c.as_object().unwrap().keys())
            .map(String::as_str)
            .collect();
        assert_eq!(names, DEFINITIONS.iter().map(|d| d.name).collect::<Vec<_>>());
    }
}
