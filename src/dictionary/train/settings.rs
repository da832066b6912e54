//! What a training run can be told, with defaults, and the plan that follows from it and the data.

use serde::{Deserialize, Serialize};

use super::method::SparsityLoss;
use crate::base::DtypeChoice;

mod plan;
mod resolve;

pub use plan::{TrainPlan, TranscoderPlan};
pub use resolve::Method;
pub(super) use resolve::Top;

/// Architectures that can be trained, by the names of `--arch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainArchitecture {
    /// ReLU with a decoder-norm-weighted penalty.
    #[default]
    Relu,
    /// A gate that decides and a magnitude that says how much.
    Gated,
    /// The `k` largest of each row.
    TopK,
    /// The `k · rows` largest of each batch.
    BatchTopK,
    /// A trained threshold a feature.
    JumpRelu,
    /// BatchTopK whose first features reconstruct on their own, at several widths.
    Matryoshka,
}

impl TrainArchitecture {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Relu, Self::Gated, Self::TopK, Self::BatchTopK, Self::JumpRelu, Self::Matryoshka];

    /// The name of `--arch`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Relu => "relu",
            Self::Gated => "gated",
            Self::TopK => "topk",
            Self::BatchTopK => "batchtopk",
            Self::JumpRelu => "jumprelu",
            Self::Matryoshka => "matryoshka",
        }
    }

    /// SAELens' name of the architecture in training.
    pub const fn sae_lens_name(self) -> &'static str {
        match self {
            Self::Relu => "standard",
            Self::Gated | Self::TopK | Self::BatchTopK | Self::JumpRelu => self.name(),
            Self::Matryoshka => "matryoshka_batchtopk",
        }
    }

    /// Trainable tensors beside the four that all have.
    pub(super) const fn own_tensors(self) -> &'static [&'static str] {
        match self {
            Self::Gated => &["r_mag", "b_mag"],
            Self::JumpRelu => &["threshold"],
            Self::Relu | Self::TopK | Self::BatchTopK | Self::Matryoshka => &[],
        }
    }
}

/// What happens to features that stay silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeadFeatures {
    /// They are pointed at badly reconstructed rows.
    #[default]
    Resample,
    /// They are counted and left alone.
    Ignore,
}

/// Where the decoder bias starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DecoderBias {
    /// At the mean of the rows that the scale is estimated from.
    #[default]
    Mean,
    /// At zero, as SAELens does.
    Zero,
}

/// Settings of a training run. `None` means "from the others", as each field says; a setting that another
/// architecture has is an error where it is given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSettings {
    /// The architecture.
    pub arch: TrainArchitecture,
    /// Number of features; `None`: `expansion_factor` times the width.
    pub d_sae: Option<usize>,
    /// Features a dimension, where `d_sae` is not given.
    pub expansion_factor: usize,
    /// relu, gated: weight of the penalty, for rows scaled to mean norm `√d`. Higher is sparser. `None`: 5 and 1.
    pub l1_coefficient: Option<f64>,
    /// relu: exponent of the penalty's norm (SAELens' `lp_norm`). `None`: 1.
    pub lp_norm: Option<f64>,
    /// relu: exponent that the penalty is annealed to from 1 (p-annealing). `None`: none.
    pub p_end: Option<f64>,
    /// topk, batchtopk, matryoshka: active features a row, on average over a batch but for topk. `None`: 64.
    pub k: Option<f64>,
    /// The same: weight of the dead features' reconstruction of what the others leave over. `None`: 1.
    pub aux_loss_coefficient: Option<f64>,
    /// The same: dead features a row in it. `None`: half the width.
    pub k_aux: Option<usize>,
    /// The same: whether pre-activations compete multiplied by their decoder norms. `None`: they do.
    pub rescale_acts_by_decoder_norm: Option<bool>,
    /// batchtopk, matryoshka: rate of the running threshold that replaces the batch after training. `None`: 0.01.
    pub topk_threshold_lr: Option<f64>,
    /// matryoshka: widths that reconstruct on their own, ascending; `d_sae` is always one. `None`: 1, 3, 7 and 15
    /// thirty-seconds of it.
    pub matryoshka_widths: Option<Vec<usize>>,
    /// jumprelu: weight of the penalty. `None`: 1, the published value for the step penalty's scale.
    pub l0_coefficient: Option<f64>,
    /// jumprelu: the penalty. `None`: step.
    pub jumprelu_sparsity_loss_mode: Option<SparsityLoss>,
    /// jumprelu: thresholds at the start. `None`: 0.8.
    pub jumprelu_init_threshold: Option<f64>,
    /// jumprelu: width of the straight-through estimators. `None`: 0.5.
    pub jumprelu_bandwidth: Option<f64>,
    /// jumprelu, tanh: the scale inside. `None`: 4.
    pub jumprelu_tanh_scale: Option<f64>,
    /// jumprelu: whether the estimators reach the encoder. `None`: they do not.
    pub jumprelu_ste_to_input: Option<bool>,
    /// jumprelu, quadratic: the number of active features aimed at.
    pub target_l0: Option<f64>,
    /// jumprelu: weight of the loss that pulls dead features towards their thresholds. `None`: none.
    pub pre_act_loss_coefficient: Option<f64>,
    /// Transcoders: whether rows also reach the output through a matrix of their own, trained from zero.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skip: bool,
    /// Peak learning rate.
    pub lr: f64,
    /// Rows a step.
    pub batch_size: usize,
    /// Rows to train on, over several passes if need be; the last step is a whole batch.
    pub tokens: Option<u64>,
    /// Steps, in place of `tokens`. With neither: one pass over the data.
    pub steps: Option<u64>,
    /// Seed of initialisation and resampling.
    pub seed: u64,
    /// Precision of products, of the weights and rows they read; weights and sums are f32. `None`: bf16 where the CPU
    /// multiplies it natively.
    pub dtype: Option<DtypeChoice>,
    /// Steps over which the penalty rises from zero; `None`: a twentieth of all steps.
    pub l1_warm_up_steps: Option<u64>,
    /// Steps over which the learning rate rises; `None`: a fiftieth of all steps, at most 1000.
    pub lr_warm_up_steps: Option<u64>,
    /// Last steps, over which the learning rate falls to a tenth; `None`: a fifth of all steps.
    pub lr_decay_steps: Option<u64>,
    /// Steps without firing after which a feature is dead; `None`: a tenth of all steps, from 50 to 1000.
    pub dead_feature_window: Option<u64>,
    /// What happens to dead features. `None`: resampled where no other loss revives them.
    pub dead_features: Option<DeadFeatures>,
    /// Batches from which the input scale and the mean are estimated.
    pub n_batches_for_norm: u64,
    /// Norm of a decoder row at the start, and of the encoder row that equals it. `None`: 0.1 for relu and gated, 0.5
    /// for the others.
    pub decoder_init_norm: Option<f64>,
    /// Where the decoder bias starts.
    pub decoder_bias: DecoderBias,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Steps between lines of `metrics.jsonl`.
    pub log_every: u64,
    /// Held-out rows that are measured every `eval_every` steps; at the end eight times as many.
    pub heldout_rows: u64,
    /// Steps between measurements on held-out rows; `None`: a twentieth of all steps, rounded up to a logged one.
    pub eval_every: Option<u64>,
}

impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            arch: TrainArchitecture::Relu,
            d_sae: None,
            expansion_factor: 8,
            l1_coefficient: None,
            lp_norm: None,
            p_end: None,
            k: None,
            aux_loss_coefficient: None,
            k_aux: None,
            rescale_acts_by_decoder_norm: None,
            topk_threshold_lr: None,
            matryoshka_widths: None,
            l0_coefficient: None,
            jumprelu_sparsity_loss_mode: None,
            jumprelu_init_threshold: None,
            jumprelu_bandwidth: None,
            jumprelu_tanh_scale: None,
            jumprelu_ste_to_input: None,
            target_l0: None,
            pre_act_loss_coefficient: None,
            skip: false,
            lr: 1e-3,
            batch_size: 4096,
            tokens: None,
            steps: None,
            seed: 42,
            dtype: None,
            l1_warm_up_steps: None,
            lr_warm_up_steps: None,
            lr_decay_steps: None,
            dead_feature_window: None,
            dead_features: None,
            n_batches_for_norm: 50,
            decoder_init_norm: None,
            decoder_bias: DecoderBias::Mean,
            checkpoint_every: 250,
            log_every: 10,
            heldout_rows: 8192,
            eval_every: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_follow_from_the_data() {
        let plan = TrainSettings::default().plan(576, 1_000_000).unwrap();
        assert_eq!((plan.d_sae, plan.steps, plan.lr_decay_steps, plan.dead_feature_window), (4608, 245, 49, 50));
        let settings = TrainSettings { tokens: Some(5_000_000), d_sae: Some(100), ..TrainSettings::default() };
        let plan = settings.plan(576, 10).unwrap();
        assert_eq!((plan.d_sae, plan.steps), (100, 1221));
    }

    #[test]
    fn nonsense_is_an_error_that_names_the_flag() {
        let base = TrainSettings::default;
        let wrong = [
            ("--lr", TrainSettings { lr: -1.0, ..base() }),
            ("--lr", TrainSettings { lr: 0.0, ..base() }),
            ("--l1-coefficient", TrainSettings { l1_coefficient: Some(f64::NAN), ..base() }),
            ("--batch-size", TrainSettings { batch_size: 0, ..base() }),
            ("--steps", TrainSettings { steps: Some(0), ..base() }),
            ("--steps", TrainSettings { steps: Some(1), tokens: Some(1), ..base() }),
            ("--d-sae", TrainSettings { d_sae: Some(0), ..base() }),
            ("--lr-decay-steps", TrainSettings { steps: Some(10), lr_decay_steps: Some(11), ..base() }),
        ];
        for (flag, settings) in wrong {
            let error = settings.plan(8, 100).unwrap_err().to_string();
            assert!(error.starts_with(flag), "{flag}: {error}");
        }
        assert!(base().plan(8, 0).is_err());
    }
}
