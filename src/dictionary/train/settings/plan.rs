//! The plan that follows from settings and data.

use serde::{Deserialize, Serialize};

use super::super::parameters::Shape;
use super::{DeadFeatures, DecoderBias, Method, TrainArchitecture, TrainSettings};
use crate::base::{DtypeChoice, Error, Result};
use crate::ops::bf16::Kernel;

/// Settings with every blank filled in for one source of rows. Two runs with equal plans on equal data are equal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainPlan {
    /// The architecture.
    pub arch: TrainArchitecture,
    /// Its own settings.
    pub method: Method,
    /// Width of a row.
    pub d_in: usize,
    /// What it reconstructs, where that is not the row itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transcoder: Option<TranscoderPlan>,
    /// Number of features.
    pub d_sae: usize,
    /// Weight of the penalty, `λ`; 0 where there is none.
    pub coefficient: f64,
    /// Peak learning rate.
    pub lr: f64,
    /// Rows a step.
    pub batch_size: usize,
    /// Steps in all.
    pub steps: u64,
    /// Seed.
    pub seed: u64,
    /// Precision of products.
    pub dtype: DtypeChoice,
    /// Steps over which the penalty rises.
    pub coefficient_warm_up_steps: u64,
    /// Steps over which the learning rate rises.
    pub lr_warm_up_steps: u64,
    /// Steps over which the learning rate falls.
    pub lr_decay_steps: u64,
    /// Silent steps after which a feature is dead.
    pub dead_feature_window: u64,
    /// What happens to dead features.
    pub dead_features: DeadFeatures,
    /// Batches from which scale and mean are estimated.
    pub n_batches_for_norm: u64,
    /// Norm of a decoder row at the start.
    pub decoder_init_norm: f64,
    /// Where the decoder bias starts.
    pub decoder_bias: DecoderBias,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Steps between logged lines.
    pub log_every: u64,
    /// Held-out rows measured every `eval_every` steps.
    pub heldout_rows: u64,
    /// Steps between measurements on held-out rows.
    pub eval_every: u64,
}

/// What a transcoder reconstructs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TranscoderPlan {
    /// Width of the rows that it reconstructs.
    pub d_out: usize,
    /// Layers that its features write to: 1, or for a layer of a cross-layer transcoder all from its own on.
    pub layers: usize,
    /// Whether it has a skip connection.
    pub skip: bool,
}

impl TrainPlan {
    /// The sizes of its tensors.
    pub(in super::super) fn shape(&self) -> Shape {
        let autoencoder = Shape::autoencoder(self.d_in, self.d_sae);
        match self.transcoder {
            None => autoencoder,
            Some(TranscoderPlan { d_out, layers, skip }) => {
                Shape { d_out, decoder: d_out * layers, transcoder: true, skip, ..autoencoder }
            }
        }
    }
}

impl TrainSettings {
    /// Fills the blanks for `rows` rows of width `d_in` that are to be reconstructed.
    ///
    /// # Errors
    /// `Flag` for a value that makes no sense, alone or with the others.
    pub fn plan(&self, d_in: usize, rows: u64) -> Result<TrainPlan> {
        if self.skip {
            let remedy = "name another hook with --hook-out, or leave --skip out";
            return Err(Error::flag("--skip", "a transcoder, from one hook to another", "an autoencoder", remedy));
        }
        self.plan_for(d_in, None, rows)
    }

    /// Fills the blanks for `rows` rows of width `d_in` from which rows of width `d_out` of `layers` layers are to be
    /// reconstructed.
    ///
    /// # Errors
    /// As [`TrainSettings::plan`], and for architectures that no transcoder has.
    pub fn plan_transcoder(&self, d_in: usize, (d_out, layers): (usize, usize), rows: u64) -> Result<TrainPlan> {
        use TrainArchitecture::{BatchTopK, Gated, JumpRelu, Matryoshka, Relu, TopK};
        if let Gated | Matryoshka = self.arch {
            let names = [Relu, TopK, BatchTopK, JumpRelu].map(TrainArchitecture::name).join(", ");
            let remedy = "its formats have no place for another; batchtopk has no penalty to choose";
            return Err(Error::flag("--arch", format!("for transcoders {names}"), self.arch.name(), remedy));
        }
        self.plan_for(d_in, Some(TranscoderPlan { d_out, layers, skip: self.skip }), rows)
    }

    fn plan_for(&self, d_in: usize, transcoder: Option<TranscoderPlan>, rows: u64) -> Result<TrainPlan> {
        self.check()?;
        let rows = positive("--cache", rows, "it holds no rows to train on: cache more text")?;
        let batch = self.batch_size as u64;
        let steps = match (self.steps, self.tokens) {
            (Some(_), Some(_)) => {
                return Err(Error::flag("--steps", "either --steps or --tokens", "both", "leave one of them out"));
            }
            (Some(steps), None) => positive("--steps", steps, "give at least one step")?,
            (None, Some(tokens)) => positive("--tokens", tokens, "give at least one token")?.div_ceil(batch),
            (None, None) => rows.div_ceil(batch),
        };
        let d_sae = match self.d_sae {
            Some(d_sae) => d_sae,
            None => d_in.saturating_mul(self.expansion_factor),
        };
        if d_sae == 0 || u32::try_from(d_sae).is_err() {
            return Err(Error::flag("--d-sae", "1 to 4294967295 features", d_sae, "the usual size is 8 × the width"));
        }
        let decoder = transcoder.map_or(d_in, |to| to.d_out.saturating_mul(to.layers));
        self.check_memory(d_in, decoder, d_sae)?;
        let method = Method::resolve(self, d_in, d_sae)?;
        let decay = self.lr_decay_steps.unwrap_or(steps / 5);
        let warm_up = self.lr_warm_up_steps.unwrap_or((steps / 50).min(1000));
        if warm_up.saturating_add(decay) > steps {
            return Err(Error::flag(
                "--lr-decay-steps",
                format!("warm-up and decay within the {steps} steps"),
                format!("{warm_up} + {decay}"),
                "shorten them, or train longer",
            ));
        }
        Ok(TrainPlan {
            arch: self.arch,
            coefficient: self.coefficient(),
            dead_features: self.dead_features.unwrap_or(method.revival()),
            method,
            d_in,
            transcoder,
            d_sae,
            lr: self.lr,
            batch_size: self.batch_size,
            steps,
            seed: self.seed,
            dtype: match self.dtype {
                None if Kernel::best().is_native() => DtypeChoice::Bf16,
                Some(dtype) => dtype,
                None => DtypeChoice::F32,
            },
            coefficient_warm_up_steps: self.l1_warm_up_steps.unwrap_or(steps / 20),
            lr_warm_up_steps: warm_up,
            lr_decay_steps: decay,
            dead_feature_window: self.dead_feature_window.unwrap_or((steps / 10).clamp(50, 1000)),
            n_batches_for_norm: self.n_batches_for_norm,
            decoder_init_norm: self.decoder_init_norm(transcoder.is_some()),
            decoder_bias: self.decoder_bias,
            checkpoint_every: self.checkpoint_every,
            log_every: self.log_every,
            heldout_rows: self.heldout_rows,
            eval_every: self.eval_every.unwrap_or((steps / 20).max(1).next_multiple_of(self.log_every)),
        })
    }

    /// Norm of decoder and encoder rows at the start. A feature passes on the square of it. Where features compete or
    /// have a threshold to pass, those that win the first steps grow away from the others if that is small: with 16,384
    /// features on a real model 22 % of them were dead after 180 steps from 0.1, and none from 0.5, which also
    /// explained more (0.853 in place of 0.840 of the variance).
    ///
    /// The features of a transcoder begin as pairs of a row and its target, of which those of similar rows add up.
    fn decoder_init_norm(&self, transcoder: bool) -> f64 {
        self.decoder_init_norm.unwrap_or(match self.arch {
            TrainArchitecture::Relu | TrainArchitecture::Gated => 0.1,
            _ if transcoder => 0.2,
            _ => 0.5,
        })
    }

    /// Weight of the penalty.
    fn coefficient(&self) -> f64 {
        match self.arch {
            TrainArchitecture::Relu => self.l1_coefficient.unwrap_or(5.0),
            TrainArchitecture::Gated => self.l1_coefficient.unwrap_or(1.0),
            TrainArchitecture::JumpRelu => self.l0_coefficient.unwrap_or(1.0),
            TrainArchitecture::TopK | TrainArchitecture::BatchTopK | TrainArchitecture::Matryoshka => 0.0,
        }
    }

    /// Asks for the memory of a step once, because a failed allocation later would end the process without a word.
    fn check_memory(&self, d_in: usize, decoder: usize, d_sae: usize) -> Result<()> {
        const COPIES: usize = 4; // weights, gradients, two Adam moments
        let bytes = |rows: usize| rows.saturating_mul(d_in.saturating_add(decoder)).saturating_mul(size_of::<f32>());
        let fits = |n: usize| Vec::<u8>::new().try_reserve_exact(n).is_ok();
        let gigabytes = |n: usize| format!("a run that needs {:.0} GB, more than there is", n as f64 / 1e9);
        let (weights, batch) = (bytes(d_sae).saturating_mul(COPIES), bytes(self.batch_size).saturating_mul(2));
        if !fits(weights) {
            return Err(Error::flag(
                "--d-sae",
                "a size that fits into memory",
                gigabytes(weights),
                "train fewer features",
            ));
        }
        if !fits(weights.saturating_add(batch)) {
            return Err(Error::flag(
                "--batch-size",
                "a size that fits into memory",
                gigabytes(batch),
                "the default is 4096",
            ));
        }
        Ok(())
    }

    fn named_coefficient(&self) -> (&'static str, f64, bool) {
        let flag = if self.arch == TrainArchitecture::JumpRelu { "--l0-coefficient" } else { "--l1-coefficient" };
        (flag, self.coefficient(), true)
    }

    fn check(&self) -> Result<()> {
        let rates = [("--lr", self.lr, false), self.named_coefficient()];
        for (flag, value, zero) in rates {
            if !value.is_finite() || value < 0.0 || (value == 0.0 && !zero) {
                return Err(Error::flag(flag, "a positive number", value, "leave it out for the default"));
            }
        }
        let norm = self.decoder_init_norm(false);
        if !(norm.is_finite() && norm > 0.0) {
            return Err(Error::flag("--decoder-init-norm", "a positive number", norm, "leave it out for the default"));
        }
        if self.dtype == Some(DtypeChoice::F16) {
            let expected = "f32 or bf16, in which training computes";
            return Err(Error::flag("--dtype", expected, "f16", "leave it out for the faster one"));
        }
        positive("--batch-size", self.batch_size as u64, "the default is 4096")?;
        positive("--log-every", self.log_every, "the default is 10")?;
        positive("--checkpoint-every", self.checkpoint_every, "the default is 250")?;
        positive("--eval-every", self.eval_every.unwrap_or(1), "leave it out for a twentieth of the run")?;
        positive("--n-batches-for-norm", self.n_batches_for_norm, "the default is 50")?;
        positive("--dead-feature-window", self.dead_feature_window.unwrap_or(1), "leave it out for the default")?;
        Ok(())
    }
}

fn positive(flag: &'static str, value: u64, remedy: &str) -> Result<u64> {
    if value > 0 { Ok(value) } else { Err(Error::flag(flag, "a positive number", value, remedy)) }
}
