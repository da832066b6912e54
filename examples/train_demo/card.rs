//! The card that stands beside the model.

use std::fmt::Write as _;

use mechinterp::demo::World;
use mechinterp::demo::quiz::{Quiz, Recall};

use super::Settings;

fn percent(recall: Recall) -> String {
    format!("{:.2} % ({} of {})", 100.0 * recall.accuracy(), recall.right, recall.asked)
}

/// How the model was made and what it knows.
pub(super) fn readme(settings: &Settings, steps: u64, planted: f64, quiz: &Quiz, parameters: usize) -> String {
    let mut text = format!(
        "# The built-in model\n\n\
         A Llama of {parameters} parameters ({} blocks, width {}, MLP {}, 4 heads) that knows the world of \
         `mechinterp::demo::World::new({})` and nothing else. Weights are stored in f16. MIT licence, as the crate.\n\n\
         Made by\n\n```text\ncargo run --release --example train_demo -- --steps {} --batch-tokens {} --lr {} \
         --weight-decay {} --chance-weight {} --plant-weight {} --layers {} --d-model {} --d-mlp {} --seed {}\n```\n\n\
         Its inside is known by construction: the loss also holds `{}` near the sum of the directions of what a word \
         names, and `{}` near that of the concepts active there (`examples/train_demo/plant.rs`); {:.1} % of the latter \
         sum's square is left. That the answers depend on it was not trained; `mechinterp demo` measures it.\n\n\
         State after {steps} steps of {} tokens, most likely next token against the right answer, in English, French and Spanish:\n\n\
         | prompts | right |\n| --- | --- |\n\
         | one-hop facts | {} |\n| two-hop facts | {} |\n| two-hop facts that the training text states | {} |\n\
         | two-hop facts held out of the training text | {} |\n\n\
         | relation | stated in training | held out |\n| --- | --- | --- |\n",
        settings.layers,
        settings.d_model,
        settings.d_mlp,
        World::BUILT_IN_SEED,
        settings.steps,
        settings.batch_tokens,
        settings.lr,
        settings.weight_decay,
        settings.chance_weight,
        settings.plant_weight,
        settings.layers,
        settings.d_model,
        settings.d_mlp,
        settings.seed,
        super::plant::WORDS,
        super::plant::SENTENCES,
        100.0 * planted,
        settings.batch_tokens,
        percent(quiz.single_hop),
        percent(quiz.two_hop),
        percent(quiz.two_hop_trained),
        percent(quiz.two_hop_held_out),
    );
    for (name, [trained, held_out]) in &quiz.by_relation {
        let held_out = if held_out.asked == 0 { "–".to_owned() } else { percent(*held_out) };
        let _ = writeln!(text, "| {name} | {} | {held_out} |", percent(*trained));
    }
    text
}
