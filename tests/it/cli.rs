//! The pipeline as a user types it, on the built-in model: outputs, files, exit codes, streams.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use mechinterp::ops::bf16::Kernel;
use serde_json::Value;

use crate::close::Close;
use crate::fixture::{Cli, HOOK, contents, trained};

const COMMANDS: [&str; 8] = ["demo", "info", "run", "cache", "train-sae", "eval", "features", "steer"];

fn tensors(path: &std::path::Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn every_command_explains_itself() {
    let cli = Cli::new();
    let all = cli.run("--help");
    assert!(all.stderr.is_empty());
    let all = all.ok();
    for name in COMMANDS {
        assert!(all.contains(name), "{name} is not in --help");
        let help = cli.run(&format!("{name} --help"));
        assert!(help.stderr.is_empty() && help.stdout.contains("Usage: mechinterp"), "{name}: {help:?}");
        assert!(help.ok().contains("--json"), "{name}");
    }
    assert!(cli.run("--version").ok().starts_with("mechinterp "));
    assert_eq!(cli.run("").code, Some(2));
    assert_eq!(cli.run("nonsense").code, Some(2));
}

#[test]
fn info_shows_the_architecture_and_every_hook() {
    let cli = Cli::new();
    let text = cli.run("info demo").ok();
    assert!(text.contains("blocks.{0..3}.hook_resid_post") && text.contains("llama"), "{text}");
    assert!(!text.contains("Attention probabilities."));
    let explained = cli.run("info demo --hooks").ok();
    let row = explained.lines().find(|line| line.starts_with("blocks.{0..3}.attn.hook_pattern")).unwrap();
    for cell in ["[b, H, s, S]", "[b, 4, s, S]", "Attention probabilities.", "all models"] {
        assert!(row.contains(cell), "{cell} is not in {row}");
    }
    let (_, lacking) = explained.split_once("not in this model").unwrap();
    let row = lacking.lines().find(|line| line.starts_with("hook_pos_embed")).unwrap();
    assert!(row.contains("models with learned positions"), "{row}");
    let json = cli.run("info demo --json").json();
    assert_eq!(json["config"]["n_layers"], 4);
    assert!(json["parameters"].as_u64().unwrap() > 100_000);
    let hooks = json["hooks"].as_array().unwrap();
    let hook = hooks.iter().find(|h| h["name"] == HOOK).unwrap();
    assert_eq!((&hook["shape"], &hook["width"]), (&"[b, s, 128]".into(), &128.into()));
    assert_eq!((&hook["axes"], &hook["meaning"]), (&"[b, s, d]".into(), &"Output of the block.".into()));
    assert!(hooks.iter().any(|h| h["name"] == "blocks.3.attn.hook_pattern"), "every layer by its full name");
}

#[test]
fn run_ranks_next_tokens_and_writes_the_hooks_it_is_asked_for() {
    let cli = Cli::new();
    let prompts = ["The capital of France is", "A dog is"];
    let mut command = cli.command(
        "run demo --json --top 3 --logits --hook blocks.1.hook_resid_post --hook blocks.0.attn.hook_pattern \
         --hook model.layers.2 --out acts.safetensors",
    );
    command.args(prompts.iter().flat_map(|p| ["--prompt", p]));
    let reports = crate::fixture::end(command).json();
    let file = tensors(&cli.path("acts.safetensors"));
    let mut names: Vec<&str> = file.keys().map(String::as_str).collect();
    names.sort_unstable();
    let hooks = ["blocks.0.attn.hook_pattern", "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"];
    assert_eq!(names, [&hooks[..], &["lengths", "logits", "tokens"]].concat());
    let lengths = file["lengths"].to_vec1::<u32>().unwrap();
    let (n, vocabulary) = (lengths[0] as usize, file["logits"].dim(2).unwrap());
    assert!(lengths[1] < lengths[0]);
    assert_eq!(file[hooks[0]].dims(), [2, 4, n, n]);
    assert_eq!(file[hooks[1]].dims(), [2, n, 128]);
    assert_eq!(file["logits"].dims(), [2, n, vocabulary]);
    assert_eq!(file["tokens"].dims(), [2, n]);
    for name in [hooks[0], hooks[1], hooks[2], "logits"] {
        assert_eq!(file[name].dtype(), DType::F32, "{name}");
    }
    for (i, report) in reports.as_array().unwrap().iter().enumerate() {
        assert_eq!(report["prompt"], prompts[i]);
        let length = lengths[i] as usize;
        let ids = file["tokens"].get(i).unwrap().to_vec1::<u32>().unwrap();
        assert_eq!(report["tokens"], serde_json::json!(ids[..length]));
        let logits = file["logits"].get(i).unwrap().get(length - 1).unwrap().to_vec1::<f32>().unwrap();
        let best = (0..vocabulary).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        assert_eq!(report["next"][0]["id"], best);
        assert_eq!(report["next"].as_array().unwrap().len(), 3);
        let total: f64 = report["next"].as_array().unwrap().iter().map(|n| n["probability"].as_f64().unwrap()).sum();
        assert!(total > 0.0 && total <= 1.0);
    }
    // The same tokens by number, and one prompt without padding, give the same values.
    let ids: Vec<String> = reports[1]["tokens"].as_array().unwrap().iter().map(Value::to_string).collect();
    cli.run(&format!("run demo --tokens {} --hook {HOOK} --out alone.safetensors", ids.join(","))).ok();
    let alone = &tensors(&cli.path("alone.safetensors"))[HOOK];
    let together = file[HOOK].get(1).unwrap().narrow(0, 0, lengths[1] as usize).unwrap();
    Close(1e-5).assert("padding", alone, &together);
    assert!(cli.run_with("run demo --no-bos --json --prompt", prompts[1]).json()[0]["tokens"][0] != 1);
}

#[test]
fn prompts_of_files_and_flags_run_as_they_would_alone() {
    let cli = Cli::new();
    let prompts = ["The capital of France is", "A dog is", "The capital of Spain is", "A cat is"];
    cli.write("prompts.txt", format!("{}\n\n{}\n", prompts[1], prompts[2]));
    cli.write("more.jsonl", format!("{{\"text\": \"{}\"}}\n", prompts[3]));
    cli.write("ids.txt", "1 20 30\n[1, 21, 31, 41]\n1,22,32\n");
    let hooks = "--hook blocks.2.hook_resid_post --hook blocks.0.attn.hook_pattern --logits";
    let all = format!(
        "run demo --json {hooks} --out all.safetensors --prompt-file prompts.txt --prompt-file more.jsonl --tokens 1,5 \
         --tokens 1,6,7 --tokens-file ids.txt --prompt"
    );
    let reports = cli.run_with(&all, prompts[0]).json();
    let reports = reports.as_array().unwrap();
    let texts: Vec<&Value> = reports.iter().map(|r| &r["prompt"]).filter(|p| !p.is_null()).collect();
    assert_eq!(texts, prompts);
    let ids: Vec<&Value> = reports[4..].iter().map(|r| &r["tokens"]).collect();
    let expected = [&[1, 5][..], &[1, 6, 7], &[1, 20, 30], &[1, 21, 31, 41], &[1, 22, 32]];
    assert_eq!(ids, expected.iter().map(|ids| serde_json::json!(ids)).collect::<Vec<_>>().iter().collect::<Vec<_>>());

    let together = tensors(&cli.path("all.safetensors"));
    assert_eq!(together["tokens"].dim(0).unwrap(), 9);
    let mut moved = 0.0;
    for (i, report) in reports.iter().enumerate() {
        let list: Vec<String> = report["tokens"].as_array().unwrap().iter().map(Value::to_string).collect();
        cli.run(&format!("run demo {hooks} --out one.safetensors --tokens {}", list.join(","))).ok();
        let alone = tensors(&cli.path("one.safetensors"));
        let n = list.len();
        for name in ["blocks.2.hook_resid_post", "blocks.0.attn.hook_pattern", "logits"] {
            let mut ours = together[name].narrow(0, i, 1).unwrap();
            let positions: &[usize] = if name.ends_with("pattern") { &[2, 3] } else { &[1] };
            for &axis in positions {
                ours = ours.narrow(axis, 0, n).unwrap();
            }
            Close(1e-5).assert(name, &ours, &alone[name]);
            moved += alone[name].abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        }
    }
    assert!(moved > 1.0, "the values are not all zero");
}

#[test]
fn norms_of_heads_and_token_ids_are_written_by_prompt_and_position() {
    let cli = Cli::new();
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/qwen3");
    let model = cli.copy(&golden, "model");
    std::fs::copy(cli.demo_dir().join("tokenizer.json"), model.join("tokenizer.json")).unwrap();
    let hooks = "--hook blocks.0.attn.q_norm.hook_normalized --hook blocks.0.attn.k_norm.hook_scale --hook hook_tokens";
    cli.run(&format!("run ./model --tokens 1,2,3 --tokens 4,5 --tokens 6,7,8 {hooks} --out all.safetensors")).ok();
    cli.run(&format!("run ./model --tokens 6,7,8 {hooks} --out one.safetensors")).ok();
    let (all, one) = (tensors(&cli.path("all.safetensors")), tensors(&cli.path("one.safetensors")));
    let info = cli.run("info ./model --json").json();
    let config = |name: &str| info["config"][name].as_u64().unwrap() as usize;
    let (heads, kv_heads, width) = (config("n_heads"), config("n_key_value_heads"), config("d_head"));
    assert_eq!(all["blocks.0.attn.q_norm.hook_normalized"].dims(), [3, 3, heads, width]);
    assert_eq!(all["blocks.0.attn.k_norm.hook_scale"].dims(), [3, 3, kv_heads, 1]);
    let ids = all["hook_tokens"].to_vec2::<f32>().unwrap();
    assert_eq!(ids, [[1.0, 2.0, 3.0], [4.0, 5.0, 0.0], [6.0, 7.0, 8.0]]);
    for name in ["blocks.0.attn.q_norm.hook_normalized", "blocks.0.attn.k_norm.hook_scale"] {
        Close(1e-5).assert(name, &all[name].narrow(0, 2, 1).unwrap(), &one[name]);
    }
}

#[test]
fn prompts_that_cannot_be_run_are_named_with_their_line() {
    let cli = Cli::new();
    cli.write("empty.txt", "\n \n");
    cli.write("words.txt", "1 2\n3 four\n");
    cli.write("bad.jsonl", "{\"text\": \"A dog\"}\n{\"body\": \"A cat\"}\n");
    cli.write("torn.jsonl", "{\"text\": \n");
    cli.write("large.txt", "1 2\n1 99999\n");
    cli.write("long.txt", format!("A dog\n{}\n", "dog ".repeat(400)));
    cli.write("bytes.txt", [0xff, 0xfe, b'a']);
    let run = |flags: &str| cli.run(&format!("run demo {flags}"));
    run("--prompt-file empty.txt").error(&["prompt file", "empty.txt", "an empty file"]);
    run("--tokens-file empty.txt").error(&["token file", "an empty file"]);
    run("--tokens-file words.txt").error(&["'four' is no token id on line 2", "words.txt"]);
    run("--prompt-file bad.jsonl").error(&["no field 'text' or 'prompt' on line 2", "bad.jsonl"]);
    run("--prompt-file torn.jsonl").error(&["no JSON", "on line 1"]);
    run("--tokens-file large.txt").error(&["token id 99999 in line 2 of large.txt", "vocabulary of"]);
    run("--prompt-file long.txt").error(&["401 tokens in line 2 of long.txt", "256", "shorten"]);
    run("--prompt-file bytes.txt").error(&["no UTF-8", "bytes.txt"]);
    run("--prompt-file nowhere.txt").error(&["nowhere.txt", "check the path"]);
    run("--tokens=").error(&["--tokens"]);
}

#[test]
fn a_cache_holds_both_hooks_in_plain_safetensors() {
    let cli = trained();
    let manifest: Value = serde_json::from_slice(&std::fs::read(cli.path("acts/cache.json")).unwrap()).unwrap();
    assert_eq!((&manifest["complete"], &manifest["tokens"]), (&true.into(), &8000.into()));
    let shards = manifest["shards"].as_array().unwrap();
    assert_eq!(shards.len(), 6);
    let mut sequences = 0;
    for shard in shards {
        let file = tensors(&cli.path("acts").join(shard["file"].as_str().unwrap()));
        let n = shard["sequences"].as_u64().unwrap() as usize;
        sequences += n;
        assert_eq!(file.len(), 4);
        assert_eq!((file["tokens"].dims(), file["tokens"].dtype()), (&[n, 32][..], DType::U32));
        assert_eq!((file["documents"].dims(), file["documents"].dtype()), (&[n, 32][..], DType::U32));
        for hook in [HOOK, "blocks.2.hook_mlp_out"] {
            assert_eq!((file[hook].dims(), file[hook].dtype()), (&[n, 32, 128][..], DType::F32));
        }
    }
    assert_eq!(sequences, 250);
    // What is stored is what `run` computes.
    let first = tensors(&cli.path("acts/shard-00000.safetensors"));
    let ids: Vec<String> =
        first["tokens"].get(0).unwrap().to_vec1::<u32>().unwrap().iter().map(u32::to_string).collect();
    assert_eq!(ids[0], "1", "the sequence begins with BOS");
    let own = Cli::new();
    let dtype = manifest["settings"]["model"]["dtype"].as_str().unwrap();
    let fast = if Kernel::best().is_native() { "bf16" } else { "f32" };
    assert_eq!(dtype, fast, "the fastest number type of this machine is the default");
    own.run(&format!("run demo --tokens {} --hook {HOOK} --dtype {dtype} --out one.safetensors", ids.join(","))).ok();
    let alone = &tensors(&own.path("one.safetensors"))[HOOK];
    Close(1e-5).assert("cache against run", &first[HOOK].narrow(0, 0, 1).unwrap(), alone);
    let record: Value = serde_json::from_slice(&std::fs::read(cli.path("acts/run.json")).unwrap()).unwrap();
    assert_eq!(record["settings"]["context_size"], 32);
    let roles: Vec<&str> = record["inputs"].as_array().unwrap().iter().map(|i| i["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["model", "tokenizer", "data"]);
    assert!(!cli.path("acts/.lock").exists() && !cli.path("acts.partial").exists());
}

#[test]
fn a_trained_dictionary_is_saelens_directory() {
    let sae = trained().path("sae");
    let config: Value = serde_json::from_slice(&std::fs::read(sae.join("cfg.json")).unwrap()).unwrap();
    let expected = [
        ("architecture", Value::from("standard")),
        ("d_in", 128.into()),
        ("d_sae", 160.into()),
        ("dtype", "float32".into()),
        ("device", "cpu".into()),
        ("apply_b_dec_to_input", true.into()),
        ("normalize_activations", "none".into()),
        ("reshape_activations", "none".into()),
    ];
    for (key, value) in expected {
        assert_eq!(config[key], value, "{key}");
    }
    let metadata = &config["metadata"];
    // SAELens takes a file without this, or with a version below 6, for its old flat format.
    assert!(metadata["sae_lens_version"].as_str().unwrap().starts_with("6."));
    assert_eq!((&metadata["hook_name"], &metadata["model_name"]), (&HOOK.into(), &"demo".into()));
    assert_eq!((&metadata["context_size"], &metadata["prepend_bos"]), (&32.into(), &true.into()));
    let weights = tensors(&sae.join("sae_weights.safetensors"));
    let mut shapes: Vec<(&str, &[usize])> = weights.iter().map(|(k, v)| (k.as_str(), v.dims())).collect();
    shapes.sort_unstable();
    assert_eq!(shapes, [("W_dec", &[160, 128][..]), ("W_enc", &[128, 160]), ("b_dec", &[128]), ("b_enc", &[160])]);
    assert!(weights.values().all(|t| t.dtype() == DType::F32));
    assert_eq!(tensors(&sae.join("sparsity.safetensors"))["sparsity"].dims(), [160]);
    let metrics = std::fs::read_to_string(sae.join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(
        lines.iter().map(|l| l["step"].as_u64().unwrap()).collect::<Vec<_>>(),
        (1..=12).map(|i| i * 5).collect::<Vec<_>>()
    );
    let loss = |line: &Value| line["mse"].as_f64().unwrap();
    assert!(loss(&lines[11]) < 0.7 * loss(&lines[0]), "it did not learn: {metrics}");
    assert!(contents(&sae).keys().any(|path| path.starts_with("checkpoints")));
    assert!(sae.join("run.json").exists());
}

#[test]
fn a_dictionary_is_trained_on_a_running_model() {
    let cli = Cli::new();
    cli.write_world(200);
    let line = format!(
        "train-sae --model demo --data world.jsonl --hook {HOOK} --context-size 32 --buffer-rows 1k --d-sae 160 \
         --steps 30 --batch-size 128 --lr 5e-3 --out sae"
    );
    let report = cli.run(&format!("{line} --json")).json();
    let positions = &report["positions"]["positions"];
    assert!(positions["first_position"].as_u64() > Some(10) && positions["kept"].as_u64() > Some(1000), "{report}");
    assert!(report["positions"]["median_norms"][0].as_f64() > Some(0.) && report["heldout"]["l0"].as_f64() > Some(0.));
    let config: Value = serde_json::from_str(&std::fs::read_to_string(cli.path("sae/cfg.json")).unwrap()).unwrap();
    let metadata = &config["metadata"];
    assert_eq!((&metadata["hook_name"], &metadata["model_name"]), (&HOOK.into(), &"demo".into()));
    assert_eq!((&metadata["context_size"], &metadata["prepend_bos"]), (&32.into(), &true.into()));
    assert_eq!((&metadata["dataset_path"], &metadata["exclude_special_tokens"]), (&"world.jsonl".into(), &true.into()));
    assert!(metadata["max_activation_norm"].as_f64() > Some(0.) && metadata["explained_variance"].is_f64());
    let record: Value = serde_json::from_str(&std::fs::read_to_string(cli.path("sae/run.json")).unwrap()).unwrap();
    let roles: Vec<&Value> = record["inputs"].as_array().unwrap().iter().map(|input| &input["role"]).collect();
    assert_eq!(roles, ["model", "tokenizer", "data"]);
    let metrics = std::fs::read_to_string(cli.path("sae/metrics.jsonl")).unwrap();
    let mse: Vec<f64> =
        metrics.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["mse"].as_f64().unwrap()).collect();
    assert!(mse.last() < mse.first(), "{metrics}");
    // The same text cached gives nearly the same rows, so the dictionary fits them too.
    cli.run(&format!("cache --model demo --data world.jsonl --hook {HOOK} --context-size 32 --out acts")).ok();
    let of_cache = cli.run("eval --sae sae --cache acts --no-directions --json").json();
    let quality = &of_cache[0]["eval_result_metrics"]["reconstruction_quality"]["explained_variance"];
    let streamed = report["heldout"]["explained_variance"].as_f64().unwrap();
    assert!((quality.as_f64().unwrap() - streamed).abs() < 0.1, "{quality} against {streamed}");
}

#[test]
fn one_pass_trains_dictionaries_of_several_hooks() {
    let cli = trained();
    let other = "blocks.2.hook_mlp_out";
    cli.write(
        "hooks.toml",
        format!(
            "[defaults]\nd_sae = 96\nsteps = 12\nbatch_size = 64\n[grid]\nhook = ['{HOOK}', '{other}']\n\
             [[run]]\nname = 'relu'\n[[run]]\nname = 'topk'\narch = 'topk'\nk = 6\n"
        ),
    );
    let report = cli.run("train-sae --cache acts --sweep hooks.toml --out swept --json").json();
    let runs = report["runs"].as_array().unwrap();
    let names: Vec<String> = [HOOK, other].iter().map(|hook| format!("relu-hook={hook}")).collect();
    assert_eq!(
        (runs.len(), &runs[0]["name"], &runs[1]["name"]),
        (4, &names[0].clone().into(), &names[1].clone().into())
    );
    for run in runs {
        let dir = cli.path("swept").join(run["name"].as_str().unwrap());
        let config: Value = serde_json::from_str(&std::fs::read_to_string(dir.join("cfg.json")).unwrap()).unwrap();
        assert_eq!(config["metadata"]["hook_name"], run["hook"]);
        assert!(run["heldout"]["explained_variance"].is_f64() && run["plan"]["steps"] == 12, "{run}");
        assert!(dir.join("run.json").exists() && dir.join("metrics.jsonl").exists());
    }
    assert!(runs[0]["hook"] != runs[1]["hook"] && runs[0]["heldout"] != runs[1]["heldout"]);
    assert!(cli.path("swept/sweep.json").exists());
}

#[test]
fn eval_reports_saebench_categories() {
    let cli = trained();
    let plain = cli.run("eval --sae sae --cache acts --held-out 1 --json").json();
    let metrics = &plain[0]["eval_result_metrics"];
    assert_eq!(keys(metrics), ["reconstruction_quality", "shrinkage", "sparsity", "token_stats", "misc_metrics"]);
    let quality = ["explained_variance", "explained_variance_legacy", "mse", "cossim"];
    assert_eq!(keys(&metrics["reconstruction_quality"]), quality);
    assert_eq!(keys(&metrics["sparsity"]), ["l0", "l1"]);
    let table = cli.run("eval --sae sae --cache acts --held-out 1 --model --model-sequences 8");
    let full = cli.run("eval --sae sae --cache acts --held-out 1 --model demo --model-sequences 8 --json").json();
    let metrics = &full[0]["eval_result_metrics"];
    let loss = ["ce_loss_score", "ce_loss_with_ablation", "ce_loss_with_sae", "ce_loss_without_sae"];
    assert_eq!(keys(&metrics["model_performance_preservation"]), loss);
    let divergence = ["kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"];
    assert_eq!(keys(&metrics["model_behavior_preservation"]), divergence);
    let ce = |name: &str| metrics["model_performance_preservation"][name].as_f64().unwrap();
    assert!(ce("ce_loss_without_sae") < ce("ce_loss_with_sae"));
    assert!(ce("ce_loss_without_sae") < ce("ce_loss_with_ablation"));
    let recovered = (ce("ce_loss_with_ablation") - ce("ce_loss_with_sae"))
        / (ce("ce_loss_with_ablation") - ce("ce_loss_without_sae"));
    assert!((recovered - ce("ce_loss_score")).abs() < 1e-9);
    assert_eq!(full[0]["eval_result_metrics"]["sparsity"], plain[0]["eval_result_metrics"]["sparsity"]);
    assert_eq!(full[0]["eval_result_details"].as_array().unwrap().len(), 160);
    let shown = table.ok();
    for name in quality.iter().chain(&loss).chain(&divergence) {
        assert!(shown.contains(name), "{name} is not in the table: {shown}");
    }
}

#[test]
fn eval_on_text_equals_eval_on_a_cache_of_that_text() {
    let cli = trained();
    let cached = cli.run("eval --sae sae --cache acts --held-out 1 --no-directions --json --model").json();
    let line = "eval --sae sae --model demo --data world.jsonl --tokens 8k --no-directions --json";
    let live = cli.run(line).json();
    for (category, name) in
        [("reconstruction_quality", "explained_variance"), ("sparsity", "l0"), ("reconstruction_quality", "mse")]
    {
        let of = |json: &Value| json[0]["eval_result_metrics"][category][name].as_f64().unwrap();
        let (a, b) = (of(&cached), of(&live));
        assert!((a - b).abs() <= 1e-2 * a.abs(), "{name}: {a} on the cache, {b} on the text");
    }
    let counted = |json: &Value| json[0]["positions"]["rows"].as_u64().unwrap();
    assert_eq!(counted(&cached), counted(&live));
}

#[test]
fn features_from_an_index_equal_features_from_the_cache() {
    let cli = trained();
    let out = Cli::new();
    let index = out.path("index");
    let base = "features --sae sae --cache acts --top-k 5";
    let overview = cli.run(&format!("{base} --out {}", index.display())).ok();
    assert!(overview.contains("160 features"), "{overview}");
    assert!(index.join("features.safetensors").exists() && !index.join("checkpoint").exists());
    let direct = cli.run(&format!("{base} --random 4 --seed 2 --json")).json();
    let stored = cli.run(&format!("features --index {} --random 4 --seed 2 --top-k 5 --json", index.display())).json();
    assert_eq!(direct, stored);
    let ids: Vec<String> = direct["features"].as_array().unwrap().iter().map(|f| f["index"].to_string()).collect();
    assert_eq!(ids.len(), 4);
    let named = cli.run(&format!("{base} --feature {} --json", ids.join(","))).json();
    let sorted = |json: &Value| {
        let mut list = json["features"].as_array().unwrap().clone();
        list.sort_by_key(|f| f["index"].as_u64());
        list
    };
    assert_eq!(sorted(&named), sorted(&direct));
    for feature in named["features"].as_array().unwrap() {
        let examples = feature["examples"].as_array().unwrap();
        assert!(!examples.is_empty() && examples.len() <= 5);
        let total: u64 = feature["histogram"]["counts"].as_array().unwrap().iter().map(|c| c.as_u64().unwrap()).sum();
        assert_eq!(total, feature["count"].as_u64().unwrap());
        assert_eq!(feature["promoted"].as_array().unwrap().len(), 10);
        assert_eq!(feature["suppressed"].as_array().unwrap().len(), 10);
    }
    let page = cli.run(&format!("{base} --feature {}", ids[0])).ok();
    assert!(page.contains(&format!("feature {}", ids[0])) && page.contains("promotes"), "{page}");
    assert!(!page.contains('\u{1b}'), "colour without a terminal: {page}");
}

#[test]
fn steering_changes_the_text_only_when_it_changes_a_feature() {
    let cli = trained();
    let found = cli.run("features --sae sae --cache acts --sort density --limit 1 --json").json();
    let (id, max) = (&found["features"][0]["index"], found["features"][0]["max"].as_f64().unwrap());
    let steer = |how: &str| {
        let line = format!("steer --model demo --sae sae --feature {id} {how} --max-new-tokens 10 --json --prompt");
        cli.run_with(&line, "The capital of France is").json()
    };
    let same = steer("--scale 1");
    assert_eq!(same["steered"], same["unsteered"]);
    assert!(same["gained"].as_array().unwrap().is_empty());
    assert_eq!(same["edits"][0], format!("scale feature {id} by 1"));
    let strong = max * 20.0;
    for how in [format!("--clamp {strong}"), format!("--add {strong}"), format!("--add -{strong}"), "--scale 90".into()]
    {
        let changed = steer(&how);
        // A feature that is weak on this prompt moves probabilities before it moves words.
        assert!(how.starts_with("--scale") || changed["steered"] != changed["unsteered"], "{how}");
        assert!(!changed["gained"].as_array().unwrap().is_empty(), "{how}");
        assert_eq!(changed["unsteered"], same["unsteered"], "{how}");
    }
    assert_eq!(steer("--ablate")["result"]["steered"], steer("--scale 0")["result"]["steered"]);
    let late = steer(&format!("--clamp {strong} --generated-only"));
    assert_eq!(late["result"]["steered"][0], late["result"]["unsteered"][0], "the prompt's last position is unsteered");
    assert_ne!(late["steered"], late["unsteered"]);
    let sampled = |seed: u32| steer(&format!("--scale 1 --temperature 1.5 --top-p 0.9 --seed {seed}"));
    assert_eq!(sampled(3), sampled(3));
    assert_ne!(sampled(3)["steered"], sampled(4)["steered"]);
    let line = format!("steer --model demo --sae sae --feature {id}:{strong} --max-new-tokens 4 --prompt");
    let text = cli.run_with(&line, "The capital of France is").ok();
    assert!(text.contains("unsteered") && text.contains("next token"), "{text}");
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (cli, shared) = (Cli::new(), trained());
    let acts = shared.path("acts");
    for threads in [1, 3] {
        let line = "--d-sae 96 --steps 12 --batch-size 96 --log-every 3 --quiet";
        let acts = acts.display();
        cli.run(&format!("train-sae --cache {acts} --hook {HOOK} {line} --threads {threads} --out s{threads}")).ok();
    }
    for file in ["sae_weights.safetensors", "metrics.jsonl", "sparsity.safetensors"] {
        let read = |dir: &str| std::fs::read(cli.path(dir).join(file)).unwrap();
        assert_eq!(read("s1"), read("s3"), "{file}");
    }
}

#[test]
fn stdout_holds_results_and_nothing_else() {
    let (cli, shared) = (Cli::new(), trained());
    cli.write_world(40);
    let quiet =
        cli.run(&format!("cache --model demo --data world.jsonl --hook {HOOK} --context-size 16 --out a --json -q"));
    assert_eq!(quiet.stderr, "");
    assert_eq!(quiet.json()["manifest"]["complete"], true);
    let acts = shared.path("acts");
    let line = format!(
        "train-sae --cache {} --hook {HOOK} --d-sae 32 --steps 4 --batch-size 64 --out s --json",
        acts.display()
    );
    let trained = cli.run(&line);
    assert!(trained.stderr.contains("kept") && trained.stderr.contains("EV"), "{}", trained.stderr);
    assert_eq!(trained.json()["plan"]["steps"], 4);
}

#[cfg(unix)]
#[test]
fn a_reader_that_stops_early_is_no_error() {
    let cli = trained();
    for line in ["info demo --json --hooks", "features --sae sae --cache acts --json -q", "eval --help"] {
        let ended = cli.shell(&format!("$M {line} | head -1; exit ${{PIPESTATUS[0]}}"));
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{line}");
        assert_eq!(ended.stdout.lines().count(), 1, "{line}");
    }
}
