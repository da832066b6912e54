//! Path patching (Wang et al. 2022, "Interpretability in the Wild", appendix B): what a sender does to the metric
//! through its direct path to a receiver, and through nothing else.
//!
//! 1. Both runs are recorded. The base is the run that is changed, the source the one whose values are put in.
//! 2. The base runs again with the sender's output taken from the source and every other head's `z` frozen at its base
//!    value. MLPs and norms compute anew, so paths through MLPs count as direct, as in the paper; with
//!    [`PathSettings::freeze_mlps`] MLPs are frozen too. The receiver's input is recorded.
//! 3. The base runs once more with that input of the receiver, and nothing else changed. The metric is read.

use serde::Serialize;

use crate::analysis::stop_if_cancelled;
use crate::base::{Error, Progress, Result, Unit};
use crate::model::{Edit, EditOp, HookPlan, HookPoint, ModelConfig, Site};

use super::sweep::{Axis, Sweep, check_below};
use super::trace::{Patcher, Trace, captured_rows};

/// What a receiver reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "input", rename_all = "snake_case")]
pub enum ReceiverInput {
    /// The queries of a head.
    Query {
        /// The head.
        head: usize,
    },
    /// The keys of a head; in models where heads share keys, those of its group.
    Key {
        /// The head.
        head: usize,
    },
    /// The values of a head; in models where heads share values, those of its group.
    Value {
        /// The head.
        head: usize,
    },
    /// The input of the MLP.
    Mlp,
    /// The residual stream at a site of the layer.
    Residual {
        /// `hook_resid_pre`, `hook_resid_mid` or `hook_resid_post`.
        #[serde(serialize_with = "site_name")]
        site: Site,
    },
}

/// Where a path ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Receiver {
    /// The layer.
    pub layer: usize,
    /// What it reads.
    #[serde(flatten)]
    pub input: ReceiverInput,
}

/// What to sweep.
#[derive(Debug, Clone)]
pub struct PathSettings {
    /// Layers of senders.
    pub layers: Vec<usize>,
    /// Heads that send; all when empty.
    pub heads: Vec<usize>,
    /// Whether the MLP of each layer sends too.
    pub mlps: bool,
    /// Positions at which senders are patched.
    pub positions: Vec<usize>,
    /// Where the paths end; several are patched together.
    pub receivers: Vec<Receiver>,
    /// Whether MLPs between sender and receiver stay as they are in the base run.
    pub freeze_mlps: bool,
}

#[derive(Debug, Clone, Copy)]
enum Sender {
    Head(usize),
    Mlp,
}

impl Receiver {
    /// The point whose value is recorded and put in.
    pub fn point(self) -> HookPoint {
        let site = match self.input {
            ReceiverInput::Query { .. } => Site::Q,
            ReceiverInput::Key { .. } => Site::K,
            ReceiverInput::Value { .. } => Site::V,
            ReceiverInput::Mlp => Site::MlpHookIn,
            ReceiverInput::Residual { site } => site,
        };
        HookPoint::block(self.layer, site)
    }

    /// The head on the head axis of its point.
    fn head(self, config: &ModelConfig) -> Option<usize> {
        let group = config.n_heads / config.n_key_value_heads.max(1);
        match self.input {
            ReceiverInput::Query { head } => Some(head),
            ReceiverInput::Key { head } | ReceiverInput::Value { head } => Some(head / group.max(1)),
            ReceiverInput::Mlp | ReceiverInput::Residual { .. } => None,
        }
    }

    fn check(self, config: &ModelConfig) -> Result<()> {
        check_below("--path-to", "layer of the model", &[self.layer], config.n_layers)?;
        if let ReceiverInput::Query { head } | ReceiverInput::Key { head } | ReceiverInput::Value { head } = self.input
        {
            check_below("--path-to", "head of the model", &[head], config.n_heads)?;
        }
        self.point().check(config).map(drop)
    }

    /// Whether what a sender of `layer` writes reaches it.
    fn is_after(self, layer: usize, sender: Sender, config: &ModelConfig) -> bool {
        let end = matches!(self.input, ReceiverInput::Residual { site: Site::ResidPost });
        let middle = matches!(self.input, ReceiverInput::Mlp | ReceiverInput::Residual { site: Site::ResidMid });
        let within = end || (middle && matches!(sender, Sender::Head(_)) && !config.layout.is_parallel());
        self.layer > layer || (self.layer == layer && within)
    }
}

impl Patcher<'_> {
    /// The points that the base must have kept for path patching.
    pub fn path_points(config: &ModelConfig, receivers: &[Receiver]) -> Vec<HookPoint> {
        let blocks = (0..config.n_layers).flat_map(|layer| [Site::Z, Site::MlpOut].map(|s| HookPoint::block(layer, s)));
        blocks.chain(receivers.iter().map(|receiver| receiver.point())).filter(|p| p.exists_in(config)).collect()
    }

    /// The metric for every sender: rows are layers, columns heads and at the end "mlp".
    ///
    /// # Errors
    /// `Flag` for a node that does not exist or when nothing sends; `Unknown` when the model lacks a receiver's input;
    /// as the forward pass.
    pub fn paths(&self, settings: &PathSettings, source: &Trace, progress: &dyn Progress) -> Result<Sweep> {
        let config = self.model.config();
        for receiver in &settings.receivers {
            receiver.check(config)?;
        }
        check_below("--path-from", "layer of the model", &settings.layers, config.n_layers)?;
        check_below("--path-from", "head of the model", &settings.heads, config.n_heads)?;
        check_below("--position", "position of the prompt", &settings.positions, self.base.tokens.len())?;
        let heads: Vec<usize> = match settings.heads.as_slice() {
            [] => (0..config.n_heads).collect(),
            heads => heads.to_vec(),
        };
        let senders: Vec<Sender> =
            heads.iter().map(|&head| Sender::Head(head)).chain(settings.mlps.then_some(Sender::Mlp)).collect();
        progress.begin("paths", (settings.layers.len() * senders.len()) as u64, Unit::Items);
        let mut metric = Vec::new();
        for &layer in &settings.layers {
            let mut row = vec![None; senders.len()];
            let reaches = |sender: Sender| settings.receivers.iter().any(|r| r.is_after(layer, sender, config));
            // An MLP that sends is set, which heads of its layer must not find; so it runs by itself.
            let able = (0..senders.len()).filter(|&i| reaches(senders[i]));
            let (able, mlp): (Vec<usize>, Vec<usize>) = able.partition(|&i| matches!(senders[i], Sender::Head(_)));
            for group in able.chunks(self.rows_at_once()).chain(mlp.chunks(1)) {
                stop_if_cancelled(progress)?;
                let chosen: Vec<Sender> = group.iter().map(|&i| senders[i]).collect();
                let found = self.paths_of(layer, &chosen, settings, source)?;
                group.iter().zip(found).for_each(|(&i, metric)| row[i] = Some(metric));
            }
            progress.advance(senders.len() as u64);
            metric.push(row);
        }
        progress.end();
        let mut names: Vec<String> = heads.iter().map(ToString::to_string).collect();
        names.extend(settings.mlps.then(|| "mlp".to_owned()));
        Ok(Sweep { rows: Axis::Layer(settings.layers.clone()), columns: Axis::Name(names), metric })
    }

    /// Steps 2 and 3 for senders of one layer.
    fn paths_of(&self, layer: usize, senders: &[Sender], settings: &PathSettings, source: &Trace) -> Result<Vec<f64>> {
        let b = senders.len();
        let config = self.model.config();
        let reached: Vec<Receiver> = settings
            .receivers
            .iter()
            .copied()
            .filter(|r| senders.iter().any(|&s| r.is_after(layer, s, config)))
            .collect();
        let last = reached.iter().map(|receiver| receiver.layer).max().unwrap_or(layer);
        let mut plan = self.frozen(layer, last, senders, settings, source)?;
        for receiver in &reached {
            plan = plan.capture(receiver.point());
        }
        let run = self.model.forward_from(layer, &self.stream(layer, b)?, &plan)?;
        let first = reached.iter().map(|receiver| receiver.layer).min().unwrap_or(layer);
        let mut plan = HookPlan::new();
        for receiver in &reached {
            let point = receiver.point();
            let rows = captured_rows(&run, point)?;
            let edit = Edit::new(point, EditOp::Set(self.batch(point, &rows)?));
            plan = plan.edit(Edit { head: receiver.head(config), ..edit });
        }
        self.continued(first, &self.stream(first, b)?, plan)
    }

    /// Heads of layers `first..=last` frozen at the base's values, but for each sequence's sender.
    fn frozen(
        &self,
        first: usize,
        last: usize,
        senders: &[Sender],
        settings: &PathSettings,
        source: &Trace,
    ) -> Result<HookPlan> {
        let config = self.model.config();
        let h = config.d_head;
        let mut plan = HookPlan::new();
        for layer in first..=last {
            let (z, mlp) = (HookPoint::block(layer, Site::Z), HookPoint::block(layer, Site::MlpOut));
            let sends = layer == first;
            let rows = senders.iter().map(|sender| {
                let mut row = self.base.at(z)?.data.clone();
                if let (Sender::Head(head), true) = (sender, sends) {
                    let places = settings.positions.iter().map(|p| (p * config.n_heads + head) * h);
                    copy(&mut row, &source.at(z)?.data, places, h);
                }
                Ok(row)
            });
            plan = plan.edit(Edit::new(z, EditOp::Set(self.batch(z, &rows.collect::<Result<Vec<_>>>()?)?)));
            let mlp_sends = sends && senders.iter().any(|sender| matches!(sender, Sender::Mlp));
            if !settings.freeze_mlps && !mlp_sends {
                continue;
            }
            plan = self.frozen_mlp(plan, mlp, (sends, senders), settings, source)?;
        }
        Ok(plan)
    }

    /// The MLP's output as each sequence has it: the source's where it sends, else the base's.
    fn frozen_mlp(
        &self,
        plan: HookPlan,
        mlp: HookPoint,
        (sends, senders): (bool, &[Sender]),
        settings: &PathSettings,
        source: &Trace,
    ) -> Result<HookPlan> {
        let d = self.model.config().d_model;
        let base = &self.base.at(mlp)?.data;
        let rows = senders.iter().map(|sender| {
            let mut row = base.clone();
            if let (Sender::Mlp, true) = (sender, sends) {
                copy(&mut row, &source.at(mlp)?.data, settings.positions.iter().map(|p| p * d), d);
            }
            Ok(row)
        });
        let rows = rows.collect::<Result<Vec<_>>>()?;
        Ok(plan.edit(Edit::new(mlp, EditOp::Set(self.batch(mlp, &rows)?))))
    }
}

fn copy(to: &mut [f32], from: &[f32], places: impl Iterator<Item = usize>, n: usize) {
    for start in places {
        if let (Some(to), Some(from)) = (to.get_mut(start..start + n), from.get(start..start + n)) {
            to.copy_from_slice(from);
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn site_name<S: serde::Serializer>(site: &Site, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(site.name())
}

/// A receiver as it is written: `5.3.q`, `5.3.k`, `5.3.v`, `5.mlp`, `5.resid_pre`, or `logits` in a model of
/// `n_layers`.
///
/// # Errors
/// `Flag` saying what a node looks like.
pub fn parse_receiver(text: &str, n_layers: usize) -> Result<Receiver> {
    let bad = || {
        Error::flag(
            "--path-to",
            "a node such as 5.3.q, 5.3.k, 5.3.v (layer, head, input), 5.mlp, 5.resid_pre or logits",
            format!("'{text}'"),
            "layers and heads count from 0",
        )
    };
    if text == "logits" {
        let input = ReceiverInput::Residual { site: Site::ResidPost };
        return Ok(Receiver { layer: n_layers.saturating_sub(1), input });
    }
    let parts: Vec<&str> = text.split('.').collect();
    let number = |text: &str| text.parse::<usize>().map_err(|_| bad());
    let (layer, input) = match parts.as_slice() {
        [layer, "mlp"] => (layer, ReceiverInput::Mlp),
        [layer, "resid_pre"] => (layer, ReceiverInput::Residual { site: Site::ResidPre }),
        [layer, "resid_mid"] => (layer, ReceiverInput::Residual { site: Site::ResidMid }),
        [layer, "resid_post"] => (layer, ReceiverInput::Residual { site: Site::ResidPost }),
        [layer, head, "q"] => (layer, ReceiverInput::Query { head: number(head)? }),
        [layer, head, "k"] => (layer, ReceiverInput::Key { head: number(head)? }),
        [layer, head, "v"] => (layer, ReceiverInput::Value { head: number(head)? }),
        _ => return Err(bad()),
    };
    Ok(Receiver { layer: number(layer)?, input })
}
