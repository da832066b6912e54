//! Replacement-model metrics on a terminal, and the text that they are measured on.

use crate::analysis::eval::replacement::{Effect, LayerReplacement, ReplacementReport, ReplacementText};
use crate::base::Result;
use crate::data::{Corpus, PackSettings, Packer, Sequence, Tokenizer};

use super::render::{Table, Ui, thousands};

/// Sequences number `sequences` of a corpus, with first positions and special tokens left out of what counts.
pub(super) fn text(
    tokenizer: &Tokenizer,
    corpus: &Corpus,
    pack: PackSettings,
    sequences: std::ops::Range<u64>,
) -> Result<ReplacementText> {
    let mut packer = Packer::new(tokenizer, corpus.documents(), pack)?;
    packer.skip_sequences(sequences.start)?;
    let count = sequences.end.saturating_sub(sequences.start) as usize;
    let all = packer.take(count).collect::<Result<Vec<Sequence>>>()?;
    let special = tokenizer.special_ids();
    let kept = |sequence: &Sequence| {
        let tokens = sequence.tokens.iter().enumerate();
        tokens.map(|(position, token)| position > 0 && !special.contains(token)).collect()
    };
    Ok(ReplacementText {
        kept: all.iter().map(kept).collect(),
        sequences: all.into_iter().map(|sequence| sequence.tokens).collect(),
        ignored_targets: tokenizer.bos_id().into_iter().collect(),
    })
}

/// A row a layer, and what all layers together do.
pub(super) fn print(report: &ReplacementReport, ui: &Ui) -> Result<()> {
    let ReplacementReport { positions, targets: _, clean_ce_loss, replaced, ablated, ce_loss_score, layers } = report;
    let mut table = Table::new(&[
        ">layer",
        ">explained variance",
        ">normalised error",
        ">L0",
        ">dead",
        ">loss",
        ">KL",
        ">same top token",
        ">loss ablated",
    ]);
    for layer in layers {
        let LayerReplacement { layer, explained_variance, normalized_mse, l0, dead_features, replaced, ablated } =
            layer;
        let mut row = vec![
            layer.to_string(),
            format!("{explained_variance:.4}"),
            format!("{normalized_mse:.4}"),
            format!("{l0:.1}"),
            thousands(*dead_features as u64),
        ];
        row.extend(effect(replaced));
        row.push(format!("{:.4}", ablated.ce_loss));
        table.row(row);
    }
    ui.out(table)?;
    let mut all = Table::new(&["model", ">loss", ">KL", ">same top token"]);
    all.row(vec!["as it is".into(), format!("{clean_ce_loss:.4}"), String::new(), String::new()]);
    for (name, change) in [("all layers replaced", replaced), ("all layers at their means", ablated)] {
        all.row([vec![name.to_owned()], effect(change).into()].concat());
    }
    ui.out(format!("\n{all}"))?;
    ui.out(format!(
        "all layers replaced keep {:.1} % of the loss between means and the model; {} positions, nats a token",
        100.0 * ce_loss_score,
        thousands(*positions),
    ))
}

fn effect(effect: &Effect) -> [String; 3] {
    let Effect { ce_loss, kl_divergence, top1_agreement } = effect;
    [format!("{ce_loss:.4}"), format!("{kl_divergence:.4}"), format!("{:.1} %", 100.0 * top1_agreement)]
}
