//! `mechinterp steer vector`

use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::json;

use crate::analysis::Placement;
use crate::analysis::steer::{Difference, Pool, SteeringVector, VectorOrigin, difference_of_means};
use crate::base::Result;
use crate::cli::open::{self, Opened};
use crate::cli::prompts::{PromptArgs, ReadingArgs};
use crate::cli::render::{Table, Ui};
use crate::cli::{Common, Outcome};
use crate::data::BosPolicy;
use crate::model::{HookPlan, HookPoint};

use super::args::ChatArgs;
use super::chat;

pub(super) const ABOUT: &str =
    "Make a steering vector: the difference between what two sets of prompts leave at a hook point";

/// Arguments of `steer vector`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Hugging Face directory, hub id, `.gguf` file, or `demo`.
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Prompts that have what the vector should stand for, one a line; in a .jsonl file the field `text` or `prompt`.
    #[arg(long, value_name = "FILE")]
    positive: PathBuf,
    /// Prompts that lack it, best the same but for that.
    #[arg(long, value_name = "FILE")]
    negative: PathBuf,
    /// Hook point, such as `blocks.12.hook_resid_post`; `info` lists them.
    #[arg(long, value_name = "NAME")]
    hook: String,
    /// What stands for a prompt: the mean over its tokens without the first, or its last token.
    #[arg(long, value_name = "HOW", default_value = "mean")]
    pool: PoolArg,
    /// File to write: one tensor `vector`, with hook, model and norm in its metadata.
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
    #[command(flatten)]
    chat: ChatArgs,
    #[command(flatten)]
    reading: ReadingArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PoolArg {
    Mean,
    Last,
}

pub(super) fn run(args: &Args, common: &Common, ui: &Ui) -> Result<Outcome> {
    open::check_writable(&args.out)?;
    let prompts = [&args.positive, &args.negative].map(|file| PromptArgs::of_file(file).read());
    let files = open::locate(&args.model, ui)?;
    let at = Placement::at(HookPoint::resolve(&args.hook, &open::config(&files)?)?);
    let template = chat::template(&args.chat, &files)?;
    let opened = open::open_for(&HookPlan::new().capture(at.point), &files, args.reading.dtype, common.device)?;
    let bos = if template.is_some() { BosPolicy::Never } else { args.reading.bos() };
    let Opened { model, tokenizer } = &opened;
    let [positive, negative] = prompts.map(|given| -> Result<Vec<Vec<u32>>> {
        let given = match &template {
            Some(template) => given?.rendered(|text| template.render(text))?,
            None => given?,
        };
        Ok(given.encode(tokenizer, bos, model.config())?.into_iter().map(|prompt| prompt.tokens).collect())
    });
    let (positive, negative) = (positive?, negative?);
    let pool = match args.pool {
        PoolArg::Mean => Pool::Mean,
        PoolArg::Last => Pool::Last,
    };
    let found = difference_of_means(model, at, &positive, &negative, pool, ui.progress())?;
    let name = |value: &dyn std::fmt::Display| value.to_string();
    let extra = [
        ("pool", name(&if pool == Pool::Mean { "mean" } else { "last" })),
        ("positive_prompts", name(&positive.len())),
        ("negative_prompts", name(&negative.len())),
        ("typical_norm", name(&found.typical_norm)),
    ];
    let vector = SteeringVector {
        values: found.vector.clone(),
        origin: VectorOrigin {
            hook: Some(at.to_string()),
            model: Some(args.model.clone()),
            method: Some("difference_of_means".into()),
            extra: extra.map(|(key, value)| (key.to_owned(), value)).into(),
        },
    };
    vector.write(&args.out)?;
    print(args, &vector, &found, (positive.len(), negative.len()), ui)?;
    Ok(Outcome::Done)
}

fn print(args: &Args, vector: &SteeringVector, found: &Difference, n: (usize, usize), ui: &Ui) -> Result<()> {
    let Difference { positive, negative, separated, typical_norm, .. } = found;
    let (norm, hook) = (vector.norm(), vector.origin.hook.as_deref().unwrap_or_default());
    if ui.json() {
        return ui.out_json(&json!({
            "out": args.out, "hook": hook, "width": vector.values.len(), "norm": norm, "typical_norm": typical_norm,
            "prompts": {"positive": n.0, "negative": n.1}, "projection": {"positive": positive, "negative": negative},
            "separated": separated,
        }));
    }
    let mut table = Table::new(&["difference of means", ">"]);
    for (name, value) in [
        ("hook", hook.to_owned()),
        ("norm of the vector", format!("{norm:.3}")),
        ("norm of what stands for a prompt", format!("{typical_norm:.3}")),
        ("mean projection, positive", format!("{positive:.3}")),
        ("mean projection, negative", format!("{negative:.3}")),
        ("on their side of the middle", format!("{:.0} % of {} prompts", 100.0 * separated, n.0 + n.1)),
    ] {
        table.row(vec![name.into(), value]);
    }
    ui.out(table)?;
    ui.say(format!(
        "wrote {0}; try: mechinterp steer --model {1} --vector {0} --strength 1,2,4 --prompt …",
        args.out.display(),
        args.model
    ));
    Ok(())
}
