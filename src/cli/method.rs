//! The flags of `train-sae` that choose an architecture and set what only some architectures have.

use crate::base::DtypeChoice;
use crate::dictionary::train::{DeadFeatures, SparsityLoss, TrainArchitecture, TrainSettings};

/// Flags of architectures. A flag that the chosen one has no use for is an error.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct MethodArgs {
    /// Architecture: relu, gated, topk, batchtopk, jumprelu or matryoshka; transcoders are not gated or matryoshka. When
    /// absent, relu, and batchtopk for sets of transcoders.
    #[arg(long, value_parser = architecture)]
    arch: Option<TrainArchitecture>,
    /// Number of features; --expansion-factor times the width when absent.
    #[arg(long, value_name = "N")]
    d_sae: Option<usize>,
    /// Features a dimension of the activations.
    #[arg(long, value_name = "N", default_value_t = TrainSettings::default().expansion_factor, conflicts_with = "d_sae")]
    expansion_factor: usize,
    /// relu, gated: weight of the penalty, for rows scaled to mean norm √d. Higher is sparser. 5 for relu and 1 for
    /// gated when absent.
    #[arg(long, value_name = "X")]
    l1_coefficient: Option<f64>,
    /// relu: exponent of the penalty's norm; 1 when absent.
    #[arg(long, value_name = "P")]
    lp_norm: Option<f64>,
    /// relu: anneal the exponent of the penalty from 1 to this (p-annealing).
    #[arg(long, value_name = "P")]
    p_end: Option<f64>,
    /// topk, batchtopk, matryoshka: active features a row, for the latter two on average; 64 when absent.
    #[arg(long, value_name = "N")]
    k: Option<f64>,
    /// topk, batchtopk, matryoshka: weight of the loss in which dead features reconstruct what the others leave over
    /// (`AuxK`); 1 when absent, 0 for none.
    #[arg(long, value_name = "X")]
    aux_loss_coefficient: Option<f64>,
    /// topk, batchtopk, matryoshka: dead features a row in that loss; half the width when absent.
    #[arg(long, value_name = "N")]
    k_aux: Option<usize>,
    /// topk, batchtopk, matryoshka: whether features compete by activations times decoder norms; true when absent.
    #[arg(long, value_name = "BOOL")]
    rescale_acts_by_decoder_norm: Option<bool>,
    /// batchtopk, matryoshka: rate of the running threshold; 0.01 when absent, for sets of transcoders 0.05.
    #[arg(long, value_name = "X")]
    topk_threshold_lr: Option<f64>,
    /// matryoshka: widths that reconstruct on their own, such as 512,2048,8192; 1, 3, 7 and 15 thirty-seconds of all
    /// features when absent.
    #[arg(long, value_name = "N,N…", value_delimiter = ',')]
    matryoshka_widths: Option<Vec<usize>>,
    /// jumprelu: weight of the penalty; 1 when absent.
    #[arg(long, value_name = "X")]
    l0_coefficient: Option<f64>,
    /// jumprelu: penalty: step, tanh or quadratic; step when absent.
    #[arg(long, value_name = "MODE", value_parser = sparsity_loss)]
    jumprelu_sparsity_loss_mode: Option<SparsityLoss>,
    /// jumprelu: thresholds at the start; 0.8 when absent.
    #[arg(long, value_name = "X")]
    jumprelu_init_threshold: Option<f64>,
    /// jumprelu: width of the straight-through estimators; 0.5 when absent.
    #[arg(long, value_name = "X")]
    jumprelu_bandwidth: Option<f64>,
    /// jumprelu: scale inside the tanh; 4 when absent.
    #[arg(long, value_name = "X")]
    jumprelu_tanh_scale: Option<f64>,
    /// jumprelu: whether the estimators reach the encoder; false when absent.
    #[arg(long, value_name = "BOOL")]
    jumprelu_ste_to_input: Option<bool>,
    /// jumprelu: active features that the quadratic penalty aims at.
    #[arg(long, value_name = "N")]
    target_l0: Option<f64>,
    /// jumprelu: weight of the loss that pulls dead features towards their thresholds; none when absent.
    #[arg(long, value_name = "X")]
    pre_act_loss_coefficient: Option<f64>,
    /// Norm of decoder and encoder rows at the start; 0.1 for relu and gated, 0.5 for the others and
    /// 0.2 for these in transcoders when absent.
    #[arg(long, value_name = "X")]
    decoder_init_norm: Option<f64>,
    /// Steps over which the penalty rises from zero; a twentieth of all steps when absent.
    #[arg(long, value_name = "N", alias = "l0-warm-up-steps")]
    l1_warm_up_steps: Option<u64>,
    /// Count dead features but do not start them again.
    #[arg(long, conflicts_with = "resampling")]
    no_resampling: bool,
    /// Start dead features again at badly reconstructed rows, also where a loss revives them.
    #[arg(long)]
    resampling: bool,
    /// Precision of products in training, f32 or bf16; bf16 where the CPU multiplies it natively. Weights are f32.
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<DtypeChoice>,
}

impl MethodArgs {
    /// These settings over `rest`, whose architecture is the default.
    pub(super) fn settings(&self, rest: TrainSettings) -> TrainSettings {
        TrainSettings {
            arch: self.arch.unwrap_or(rest.arch),
            d_sae: self.d_sae,
            expansion_factor: self.expansion_factor,
            l1_coefficient: self.l1_coefficient,
            lp_norm: self.lp_norm,
            p_end: self.p_end,
            k: self.k,
            aux_loss_coefficient: self.aux_loss_coefficient,
            k_aux: self.k_aux,
            rescale_acts_by_decoder_norm: self.rescale_acts_by_decoder_norm,
            topk_threshold_lr: self.topk_threshold_lr,
            matryoshka_widths: self.matryoshka_widths.clone(),
            l0_coefficient: self.l0_coefficient,
            jumprelu_sparsity_loss_mode: self.jumprelu_sparsity_loss_mode,
            jumprelu_init_threshold: self.jumprelu_init_threshold,
            jumprelu_bandwidth: self.jumprelu_bandwidth,
            jumprelu_tanh_scale: self.jumprelu_tanh_scale,
            jumprelu_ste_to_input: self.jumprelu_ste_to_input,
            target_l0: self.target_l0,
            pre_act_loss_coefficient: self.pre_act_loss_coefficient,
            decoder_init_norm: self.decoder_init_norm,
            l1_warm_up_steps: self.l1_warm_up_steps,
            dead_features: match (self.no_resampling, self.resampling) {
                (true, _) => Some(DeadFeatures::Ignore),
                (false, true) => Some(DeadFeatures::Resample),
                (false, false) => None,
            },
            dtype: self.dtype,
            ..rest
        }
    }
}

fn architecture(text: &str) -> Result<TrainArchitecture, String> {
    let names = TrainArchitecture::ALL.map(TrainArchitecture::name);
    let found = TrainArchitecture::ALL.into_iter().find(|arch| arch.name() == text);
    found.ok_or_else(|| format!("expected one of {}", names.join(", ")))
}

fn sparsity_loss(text: &str) -> Result<SparsityLoss, String> {
    match text {
        "step" => Ok(SparsityLoss::Step),
        "tanh" => Ok(SparsityLoss::Tanh),
        "quadratic" => Ok(SparsityLoss::Quadratic),
        _ => Err("expected step, tanh or quadratic".into()),
    }
}
