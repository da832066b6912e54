//! The settings of one architecture, with blanks filled in and those of others refused.

use serde::{Deserialize, Serialize};

use super::super::method::SparsityLoss;
use super::{DeadFeatures, TrainArchitecture, TrainSettings};
use crate::base::{Error, Result};

/// What one architecture is told, and nothing that belongs to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "lowercase")]
pub enum Method {
    /// Standard.
    Relu {
        /// Exponent of the penalty's norm.
        lp_norm: f64,
        /// Exponent that the penalty is annealed to.
        p_anneal: Option<f64>,
    },
    /// Gated.
    Gated,
    /// TopK.
    TopK {
        /// Choice.
        #[serde(flatten)]
        top: Competition,
    },
    /// BatchTopK.
    BatchTopK {
        /// Choice.
        #[serde(flatten)]
        top: Competition,
        /// Rate of the running threshold.
        topk_threshold_lr: f64,
    },
    /// JumpReLU.
    JumpRelu {
        /// Width of the estimators.
        bandwidth: f64,
        /// Thresholds at the start.
        init_threshold: f64,
        /// The penalty.
        loss: SparsityLoss,
        /// Scale inside the tanh.
        tanh_scale: f64,
        /// Aim of the quadratic penalty.
        target_l0: Option<f64>,
        /// Whether estimators reach the encoder.
        ste_to_input: bool,
        /// Weight of the dead features' loss.
        pre_act_loss_coefficient: Option<f64>,
    },
    /// Matryoshka BatchTopK.
    Matryoshka {
        /// Choice.
        #[serde(flatten)]
        top: Competition,
        /// Rate of the running threshold.
        topk_threshold_lr: f64,
        /// Widths, the last being all features.
        widths: Vec<usize>,
    },
}

/// How features compete for a place.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Competition {
    /// Active features a row.
    pub k: f64,
    /// Weight of the dead features' reconstruction.
    pub aux_loss_coefficient: f64,
    /// Dead features a row in it.
    pub k_aux: usize,
    /// Whether they compete multiplied by their decoder norms.
    pub rescale_acts_by_decoder_norm: bool,
}

/// [`Competition`] with what tells its three architectures apart.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Top {
    /// Active features a row.
    pub(in super::super) k: f64,
    /// Whether rows compete with each other.
    pub(in super::super) whole_batch: bool,
    /// Whether features compete multiplied by their decoder norms.
    pub(in super::super) rescale: bool,
    /// Weight of the dead features' reconstruction.
    pub(in super::super) aux_coefficient: f64,
    /// Dead features a row in it.
    pub(in super::super) k_aux: usize,
    /// Widths that reconstruct on their own; empty where only all do.
    pub(in super::super) levels: Vec<usize>,
}

impl Method {
    /// Fills the blanks of `settings` for rows of width `d_in`.
    pub(super) fn resolve(settings: &TrainSettings, d_in: usize, d_sae: usize) -> Result<Self> {
        settings.refuse_foreign()?;
        let competition = || settings.competition(d_in, d_sae);
        let rate = || within("--topk-threshold-lr", settings.topk_threshold_lr.unwrap_or(0.01), 0.0, 1.0);
        Ok(match settings.arch {
            TrainArchitecture::Relu => {
                let lp_norm = settings.lp_norm.unwrap_or(1.0);
                if let Some(p) = settings.p_end {
                    within("--p-end", p, 0.0, 1.0)?;
                    if (lp_norm - 1.0).abs() > f64::EPSILON {
                        return Err(Error::flag("--lp-norm", "1 with --p-end", lp_norm, "leave one of them out"));
                    }
                }
                Self::Relu { lp_norm: within("--lp-norm", lp_norm, 0.0, 16.0)?, p_anneal: settings.p_end }
            }
            TrainArchitecture::Gated => Self::Gated,
            TrainArchitecture::TopK => {
                let top = competition()?;
                if top.k.fract() != 0.0 {
                    return Err(Error::flag("--k", "a whole number with topk", top.k, "batchtopk takes fractions"));
                }
                Self::TopK { top }
            }
            TrainArchitecture::BatchTopK => Self::BatchTopK { top: competition()?, topk_threshold_lr: rate()? },
            TrainArchitecture::Matryoshka => {
                Self::Matryoshka { top: competition()?, topk_threshold_lr: rate()?, widths: settings.widths(d_sae)? }
            }
            TrainArchitecture::JumpRelu => settings.jump_relu()?,
        })
    }

    /// How dead features are revived where nothing else is asked for: the losses of the others do it.
    pub(super) fn revival(&self) -> DeadFeatures {
        match self {
            Self::TopK { top } | Self::BatchTopK { top, .. } | Self::Matryoshka { top, .. }
                if top.aux_loss_coefficient > 0.0 =>
            {
                DeadFeatures::Ignore
            }
            Self::JumpRelu { pre_act_loss_coefficient: Some(_), .. } => DeadFeatures::Ignore,
            _ => DeadFeatures::Resample,
        }
    }

    /// Whether a loss of its own needs to know which features are dead.
    pub(in super::super) fn uses_dead(&self) -> bool {
        match self {
            Self::TopK { top } | Self::BatchTopK { top, .. } | Self::Matryoshka { top, .. } => {
                top.aux_loss_coefficient > 0.0
            }
            Self::JumpRelu { pre_act_loss_coefficient, .. } => pre_act_loss_coefficient.is_some(),
            Self::Relu { .. } | Self::Gated => false,
        }
    }

    /// The competition, where features compete.
    pub(in super::super) fn top(&self) -> Option<Top> {
        let (top, whole_batch, levels) = match self {
            Self::TopK { top } => (top, false, Vec::new()),
            Self::BatchTopK { top, .. } => (top, true, Vec::new()),
            Self::Matryoshka { top, widths, .. } => (top, true, widths.clone()),
            Self::Relu { .. } | Self::Gated | Self::JumpRelu { .. } => return None,
        };
        Some(Top {
            k: top.k,
            whole_batch,
            rescale: top.rescale_acts_by_decoder_norm,
            aux_coefficient: top.aux_loss_coefficient,
            k_aux: top.k_aux,
            levels,
        })
    }

    /// Rate of the running threshold, where there is one.
    pub(in super::super) fn threshold_rate(&self) -> Option<f64> {
        match self {
            Self::BatchTopK { topk_threshold_lr, .. } | Self::Matryoshka { topk_threshold_lr, .. } => {
                Some(*topk_threshold_lr)
            }
            Self::Relu { .. } | Self::Gated | Self::TopK { .. } | Self::JumpRelu { .. } => None,
        }
    }
}

impl TrainSettings {
    /// Refuses a setting that `arch` has no use for: it was given for a reason.
    fn refuse_foreign(&self) -> Result<()> {
        use TrainArchitecture::{BatchTopK, Gated, JumpRelu, Matryoshka, Relu, TopK};
        let compete: &[TrainArchitecture] = &[TopK, BatchTopK, Matryoshka];
        let given: [(&'static str, bool, &[TrainArchitecture]); 17] = [
            ("--l1-coefficient", self.l1_coefficient.is_some(), &[Relu, Gated]),
            ("--lp-norm", self.lp_norm.is_some(), &[Relu]),
            ("--p-end", self.p_end.is_some(), &[Relu]),
            ("--k", self.k.is_some(), compete),
            ("--aux-loss-coefficient", self.aux_loss_coefficient.is_some(), compete),
            ("--k-aux", self.k_aux.is_some(), compete),
            ("--rescale-acts-by-decoder-norm", self.rescale_acts_by_decoder_norm.is_some(), compete),
            ("--topk-threshold-lr", self.topk_threshold_lr.is_some(), &[BatchTopK, Matryoshka]),
            ("--matryoshka-widths", self.matryoshka_widths.is_some(), &[Matryoshka]),
            ("--l0-coefficient", self.l0_coefficient.is_some(), &[JumpRelu]),
            ("--jumprelu-sparsity-loss-mode", self.jumprelu_sparsity_loss_mode.is_some(), &[JumpRelu]),
            ("--jumprelu-init-threshold", self.jumprelu_init_threshold.is_some(), &[JumpRelu]),
            ("--jumprelu-bandwidth", self.jumprelu_bandwidth.is_some(), &[JumpRelu]),
            ("--jumprelu-tanh-scale", self.jumprelu_tanh_scale.is_some(), &[JumpRelu]),
            ("--jumprelu-ste-to-input", self.jumprelu_ste_to_input.is_some(), &[JumpRelu]),
            ("--target-l0", self.target_l0.is_some(), &[JumpRelu]),
            ("--pre-act-loss-coefficient", self.pre_act_loss_coefficient.is_some(), &[JumpRelu]),
        ];
        match given.iter().find(|(_, given, of)| *given && !of.contains(&self.arch)) {
            None => Ok(()),
            Some((flag, _, of)) => {
                let names: Vec<&str> = of.iter().map(|arch| arch.name()).collect();
                let expected = format!("--arch {}", names.join(", "));
                let found = format!("--arch {}", self.arch.name());
                Err(Error::flag(flag, expected, found, "leave it out, or train another architecture"))
            }
        }
    }

    fn competition(&self, d_in: usize, d_sae: usize) -> Result<Competition> {
        let k = self.k.unwrap_or(64.0);
        if !(k.is_finite() && k >= 1.0 && k <= d_sae as f64) {
            return Err(Error::flag(
                "--k",
                format!("1 to {d_sae} active features"),
                k,
                "the usual values are 16 to 128",
            ));
        }
        let aux_loss_coefficient = self.aux_loss_coefficient.unwrap_or(1.0);
        Ok(Competition {
            k,
            aux_loss_coefficient: within("--aux-loss-coefficient", aux_loss_coefficient, -f64::MIN_POSITIVE, 1e6)?,
            k_aux: self.k_aux.unwrap_or(d_in / 2),
            rescale_acts_by_decoder_norm: self.rescale_acts_by_decoder_norm.unwrap_or(true),
        })
    }

    fn widths(&self, d_sae: usize) -> Result<Vec<usize>> {
        let mut widths = match &self.matryoshka_widths {
            Some(widths) => widths.clone(),
            None => [1, 3, 7, 15].map(|share| d_sae * share / 32).into_iter().filter(|&width| width > 0).collect(),
        };
        if widths.last() != Some(&d_sae) {
            widths.push(d_sae);
        }
        if widths[0] == 0 || !widths.windows(2).all(|pair| pair[0] < pair[1]) {
            return Err(Error::flag(
                "--matryoshka-widths",
                format!("ascending widths from 1 to {d_sae}"),
                format!("{widths:?}"),
                "leave it out for the default",
            ));
        }
        Ok(widths)
    }

    /// JumpReLU's settings. SAELens starts thresholds at 0.01 with estimators 0.05 wide, from where half of all
    /// features are active and thousands of steps pass before few are: a threshold moves by the learning rate a step.
    /// These defaults start near the number of features that one wants, and the estimators reach as far as thresholds
    /// must go.
    fn jump_relu(&self) -> Result<Method> {
        let loss = self.jumprelu_sparsity_loss_mode.unwrap_or_default();
        if (loss == SparsityLoss::Quadratic) != self.target_l0.is_some() {
            let expected = "a target with the quadratic penalty, and only with it";
            let found = self.target_l0.map_or_else(|| "none".into(), |target| target.to_string());
            return Err(Error::flag("--target-l0", expected, found, "the usual targets are 20 to 100"));
        }
        if let Some(target) = self.target_l0 {
            within("--target-l0", target, 0.0, f64::MAX)?;
        }
        let init = self.jumprelu_init_threshold.unwrap_or(0.8);
        Ok(Method::JumpRelu {
            bandwidth: within("--jumprelu-bandwidth", self.jumprelu_bandwidth.unwrap_or(0.5), 0.0, 1e6)?,
            init_threshold: within("--jumprelu-init-threshold", init, -f64::MIN_POSITIVE, 1e6)?,
            loss,
            tanh_scale: within("--jumprelu-tanh-scale", self.jumprelu_tanh_scale.unwrap_or(4.0), 0.0, 1e6)?,
            target_l0: self.target_l0,
            ste_to_input: self.jumprelu_ste_to_input.unwrap_or(false),
            pre_act_loss_coefficient: match self.pre_act_loss_coefficient {
                Some(c) if c != 0.0 => Some(within("--pre-act-loss-coefficient", c, 0.0, 1e6)?),
                _ => None,
            },
        })
    }
}

/// `value` where it lies above `low` and not above `high`.
fn within(flag: &'static str, value: f64, low: f64, high: f64) -> Result<f64> {
    if value > low && value <= high {
        return Ok(value);
    }
    let expected = if high >= 1e6 {
        format!("a number {} {}", if low < 0.0 { "from" } else { "above" }, low.max(0.0))
    } else {
        format!("a number above {} and at most {high}", low.max(0.0))
    };
    Err(Error::flag(flag, expected, value, "leave it out for the default"))
}
