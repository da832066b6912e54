//! `steer` against other implementations, with goldens of `tests/golden/make_steer.py`, and what a user sees of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use mechinterp::analysis::steer::FeatureEdits;
use mechinterp::analysis::{FeatureEdit, FeatureOp, Intervention};
use mechinterp::dictionary::io;
use mechinterp::model::Positions;
use serde_json::{Value, json};

use crate::close::Close;
use crate::fixture::{Cli, Ended, copy_tree, trained};
use crate::golden::open;

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn golden(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(goldens().join("steer").join(name)).unwrap()).unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// A checkpoint of `tests/golden/models` in the fixture's directory, with a tokenizer of words `w0`, `w1`, ….
pub(crate) fn checkpoint(cli: &Cli, name: &str) {
    let target = cli.path(name);
    if target.exists() {
        return;
    }
    copy_tree(&goldens().join("models").join(name), &target);
    std::fs::remove_file(target.join("golden.safetensors")).unwrap();
    let config: Value = serde_json::from_slice(&std::fs::read(target.join("config.json")).unwrap()).unwrap();
    let words = config["vocab_size"].as_u64().unwrap();
    let vocab: serde_json::Map<String, Value> = (0..words).map(|i| (format!("w{i}"), i.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    });
    std::fs::write(target.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

fn prompt(golden: &Value) -> String {
    golden["prompt"].as_array().unwrap().iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[test]
fn neuronpedias_methods_write_what_transformers_writes_with_the_same_hooks() {
    let cli = Cli::new();
    let golden = golden("directions.json");
    let vectors = goldens().join("steer/vectors.safetensors");
    let (mut compared, mut changed, mut methods) = (0, 0, BTreeSet::new());
    let mut groups: Vec<(String, Vec<&Value>)> = Vec::new();
    for case in golden["cases"].as_array().unwrap() {
        let of = |key: &str| text(&case[key]).to_owned();
        let line = format!(
            "{} --tensor {} --hook {} --method {} --strength-multiplier {}",
            of("model"),
            of("model"),
            of("hook"),
            of("method"),
            case["multiplier"]
        );
        match groups.iter_mut().find(|(known, _)| *known == line) {
            Some((_, cases)) => cases.push(case),
            None => groups.push((line, vec![case])),
        }
        methods.insert(of("method"));
    }
    for (line, cases) in groups {
        checkpoint(&cli, line.split(' ').next().unwrap());
        let strengths: Vec<String> = cases.iter().map(|case| case["strength"].to_string()).collect();
        let ended = cli.run(&format!(
            "steer --model ./{line} --vector {} --strength {} --tokens {} --max-new-tokens {} --out texts.jsonl --json",
            vectors.display(),
            strengths.join(","),
            prompt(&golden),
            golden["new"],
        ));
        let found = ended.json();
        let texts = found["texts"].as_array().unwrap();
        assert_eq!(texts.len(), cases.len() + 1);
        for (case, found) in cases.iter().zip(&texts[1..]) {
            assert_eq!(found["tokens"], case["tokens"], "{line} --strength {}", case["strength"]);
            assert_eq!(texts[0]["tokens"], case["unsteered"], "{line}, unsteered");
            compared += 1;
            changed += usize::from(case["tokens"] != case["unsteered"]);
        }
        let lines = std::fs::read_to_string(cli.path("texts.jsonl")).unwrap();
        let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(&lines, texts, "the file holds what JSON output does");
    }
    assert!(compared > 60 && changed > 30, "{changed} of {compared} texts changed");
    assert_eq!(methods.len(), 3);
}

fn edits(case: &Value) -> Vec<FeatureEdit> {
    let edit = |edit: &Value| {
        let v = edit[2].as_f64().unwrap() as f32;
        let op = match text(&edit[1]) {
            "clamp" => FeatureOp::Clamp(v),
            "scale" => FeatureOp::Scale(v),
            "cap" => FeatureOp::Cap(v),
            _ => FeatureOp::Ablate,
        };
        FeatureEdit { feature: edit[0].as_u64().unwrap() as u32, op }
    };
    case["edits"].as_array().unwrap().iter().map(edit).collect()
}

#[test]
fn edited_features_give_saelens_logits_with_and_without_the_error_term() {
    let (golden, model) = (golden("features.json"), open("gpt2"));
    let file = candle_core::safetensors::load(goldens().join("steer/features.safetensors"), &Device::Cpu).unwrap();
    let prompt: Vec<u32> = golden["prompt"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect();
    let tokens = model.tokens(&[&prompt]).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(file["logits"].dim(0).unwrap(), cases.len());
    // TransformerLens may shift the logits of a position by a constant, which no probability sees.
    let relative = |logits: &Tensor| logits.broadcast_sub(&logits.mean_keepdim(1).unwrap()).unwrap();
    for (i, case) in cases.iter().enumerate() {
        let dictionary = Arc::new(io::read(&goldens().join("steer").join(text(&case["sae"]))).unwrap());
        let error_term = case["error_term"].as_bool().unwrap();
        let features = FeatureEdits { dictionary, edits: edits(case), error_term, max_norm: None };
        let change = Intervention { features: Some(features), ..Intervention::default() };
        let plan = change.plan(&model, Positions::All).unwrap().with_logits();
        let run = model.forward(&tokens, &plan).unwrap();
        let (ours, theirs) = (run.logits().unwrap().get(0).unwrap(), file["logits"].get(i).unwrap());
        let what = format!("{case}");
        Close(1e-4).assert(&what, &relative(&ours), &relative(&theirs));
        let moved = Close::distance(&what, &relative(&theirs), &relative(&file["unsteered"]));
        assert!(moved > 1e-3, "{what} changes something");
    }
}

#[test]
fn edited_features_write_the_tokens_of_saelens_from_the_command_line() {
    let cli = Cli::new();
    checkpoint(&cli, "gpt2");
    let golden = golden("features.json");
    let mut compared = 0;
    for case in golden["cases"].as_array().unwrap().iter().filter(|case| !case["tokens"].is_null()) {
        // One edit a command; several edits are compared by their logits.
        let [edit] = case["edits"].as_array().unwrap().as_slice() else { continue };
        let flag = match text(&edit[1]) {
            "ablate" => "--ablate".to_owned(),
            op => format!("--{op} {}", edit[2]),
        };
        let error_term = if case["error_term"].as_bool().unwrap() { "" } else { "--no-error-term" };
        let sae = goldens().join("steer").join(text(&case["sae"]));
        let found = cli.run(&format!(
            "steer --model ./gpt2 --sae {} --feature {} {flag} {error_term} --tokens {} --max-new-tokens {} --json",
            sae.display(),
            edit[0],
            prompt(&golden),
            golden["new"],
        ));
        assert_eq!(found.json()["result"]["steered"], case["tokens"], "{case}");
        compared += 1;
    }
    assert!(compared > 12, "{compared}");
}

/// `steer` on the built-in model with a trained dictionary.
fn demo(cli: &Cli, line: &str, prompt: &str) -> Ended {
    cli.run_with(&format!("steer --model demo --max-new-tokens 8 {line} --prompt"), prompt)
}

#[test]
fn a_sweep_tells_what_every_strength_does() {
    let cli = trained();
    let found = cli.run("features --sae sae --cache acts --sort density --limit 1 --json").json();
    let (id, max) = (&found["features"][0]["index"], found["features"][0]["max"].as_f64().unwrap());
    let dir = Cli::new();
    let (page, picture) = (dir.path("page.html"), dir.path("picture.svg"));
    let line = format!(
        "--sae sae --feature {id} --clamp 0,{},{} --html {} --svg {}",
        max,
        30.0 * max,
        page.display(),
        picture.display()
    );
    let json = demo(cli, &format!("{line} --json"), "The capital of France is").json();
    let strengths = json["strengths"].as_array().unwrap();
    assert_eq!(strengths.len(), 4, "unsteered and three");
    let of = |i: usize, key: &str| strengths[i][key].as_f64().unwrap();
    assert!(of(0, "kl").abs() < f64::MIN_POSITIVE, "the unsteered text is the reference");
    assert!(of(3, "kl") > of(2, "kl") && of(3, "kl") > 0.01, "{strengths:?}");
    assert!(of(0, "perplexity") >= 1.0 && of(3, "perplexity") > of(0, "perplexity"), "{strengths:?}");
    for step in strengths {
        let repetition = step["repetition"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&repetition) && step["concepts"][0].as_f64().unwrap() >= 0.0);
    }
    let text = demo(cli, &line, "The capital of France is").ok();
    for part in ["clamp", "unsteered", "KL", "perplexity", "repetition", &format!("feature {id}"), "prompt The capital"]
    {
        assert!(text.contains(part), "'{part}' in {text}");
    }
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("Concept in the text") && page.contains("The capital of France is"));
    assert!(std::fs::read_to_string(picture).unwrap().starts_with("<?xml"));
}

#[test]
fn only_the_named_positions_are_steered() {
    let cli = trained();
    let vector = cli.path("at.safetensors");
    let values: Vec<f32> = (0..128).map(|i| if i % 3 == 0 { 40.0 } else { -20.0 }).collect();
    let tensor = Tensor::from_slice(&values, 128, &Device::Cpu).unwrap();
    safetensors::serialize_to_file([("vector", &tensor)], None, &vector).unwrap();
    let hook = "blocks.1.hook_resid_post";
    let texts = |at: &str| {
        let line = format!("--vector {} --hook {hook} --strength 1 --json {at}", vector.display());
        let report = demo(cli, &line, "The capital of France is").json();
        (report["steered"].clone(), report["unsteered"].clone())
    };
    let (everywhere, unsteered) = texts("");
    // Tokens: beginning of sequence, The, capital, of, France, is.
    let (all, _) = texts("--at all");
    let (one, _) = texts("--at France");
    let (same, _) = texts("--at 4");
    println!("{unsteered}\n{everywhere}\n{all}\n{one}");
    assert!(one == same && one != everywhere, "{one} {same} {everywhere}");
}

#[test]
fn prompts_of_a_file_become_a_line_for_each_strength() {
    let (shared, cli) = (trained(), Cli::new());
    cli.write("prompts.jsonl", "{\"prompt\": \"The capital of France is\"}\n{\"text\": \"The capital of Peru is\"}\n");
    let line = format!(
        "steer --model demo --max-new-tokens 4 --sae {} --feature 3 --feature 5:2 --add=-4,4 --prompts prompts.jsonl \
         --out texts.jsonl",
        shared.path("sae").display()
    );
    let shown = cli.run(&line).ok();
    assert!(shown.contains("mean over 2 prompts"), "{shown}");
    let lines = std::fs::read_to_string(cli.path("texts.jsonl")).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let column = |key: &str| lines.iter().map(|line| line[key].clone()).collect::<Vec<_>>();
    assert_eq!(column("prompt_index"), [0, 0, 0, 1, 1, 1]);
    assert_eq!(column("strength"), [json!(null), json!(-4.0), json!(4.0), json!(null), json!(-4.0), json!(4.0)]);
    assert_eq!(column("prompt")[3], "The capital of Peru is");
    assert_eq!(lines[1]["edits"], json!(["add -4 of feature 3", "add 2 of feature 5"]));
    assert!(lines.iter().all(|line| line["text"].is_string() && line["perplexity"].is_number()));
}

#[test]
fn a_vector_out_of_two_sets_of_prompts_steers_between_them() {
    let cli = Cli::new();
    cli.write(
        "up.txt",
        "The capital of France is\nThe capital of Japan is\nThe capital of Peru is\nThe capital of Egypt is\n",
    );
    cli.write("down.txt", "The sky is blue\nTwo and two is four\nCats are animals\nThe sea is big\n");
    let hook = "blocks.1.hook_resid_post";
    let line =
        format!("steer vector --model demo --positive up.txt --negative down.txt --hook {hook} --out v.safetensors");
    let made = cli.run(&format!("{line} --json")).json();
    assert_eq!((text(&made["hook"]), made["prompts"]["positive"].as_u64()), (hook, Some(4)));
    let projection = |side: &str| made["projection"][side].as_f64().unwrap();
    let norm = made["norm"].as_f64().unwrap();
    assert!((projection("positive") - projection("negative") - norm).abs() < 1e-3 * norm, "{made}");
    assert!(made["separated"].as_f64().unwrap() > 0.9, "{made}");
    let file = std::fs::read(cli.path("v.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&file).unwrap();
    let metadata = header.metadata().clone().unwrap();
    assert_eq!((metadata["hook"].as_str(), metadata["model"].as_str()), (hook, "demo"));
    assert!((metadata["norm"].parse::<f64>().unwrap() - norm).abs() < 1e-4);

    let steer = |flags: &str| demo(&cli, &format!("--vector v.safetensors {flags} --json"), "The sky is").json();
    let sweep = steer("--strength -2,0,2");
    let concept = |i: usize| sweep["strengths"][i]["concepts"][0].as_f64().unwrap();
    assert_eq!(sweep["texts"][2]["tokens"], sweep["texts"][0]["tokens"], "strength 0 changes nothing");
    assert!(sweep["strengths"][1]["kl"].as_f64().unwrap() > 1e-3 && concept(0).is_finite());
    // The same vector as NumPy stores it, with its hook on the command line.
    let values = candle_core::safetensors::load(cli.path("v.safetensors"), &Device::Cpu).unwrap()["vector"].clone();
    values.write_npy(cli.path("v.npy")).unwrap();
    let again = demo(&cli, &format!("--vector v.npy --hook {hook} --strength -2,0,2 --json"), "The sky is").json();
    assert_eq!(again["texts"], sweep["texts"]);
    let (once, unit) = (steer("--strength 1"), steer(&format!("--normalize --strength {norm}")));
    assert_eq!(once["result"]["steered"], unit["result"]["steered"]);
    assert_eq!(
        steer("--project-out")["result"]["gained"],
        steer("--method orthogonal-decomp --strength 0")["result"]["gained"]
    );
}

#[test]
fn a_chat_template_is_put_around_the_prompt() {
    let cli = Cli::new();
    checkpoint(&cli, "gpt2");
    let template = "{% for m in messages %}w7 {% if m.role == 'system' %}w8{% else %}w9{% endif %} {{ m.content }} \
                    {% endfor %}{% if add_generation_prompt %}w10{% endif %}";
    let config = json!({"bos_token": "w1", "chat_template": template});
    cli.write("gpt2/tokenizer_config.json", config.to_string());
    let sae = goldens().join("steer/standard");
    let steer = |flags: &str| {
        let line =
            format!("steer --model ./gpt2 --sae {} --feature 3:4 --max-new-tokens 3 --json {flags}", sae.display());
        cli.run_with(&format!("{line} --prompt"), "w20 w21")
    };
    let chat = steer("--chat --system w30").json();
    assert_eq!(chat["result"]["compared"], json!([7, 8, 30, 7, 9, 20, 21, 10]));
    assert_eq!(chat["prompt"], "w20 w21");
    assert_eq!(steer("--chat").json()["result"]["compared"], json!([7, 9, 20, 21, 10]));
    assert_eq!(steer("").json()["result"]["compared"], json!([1, 20, 21]));
    cli.write("gpt2/tokenizer_config.json", json!({"bos_token": "w1"}).to_string());
    steer("--chat").error(&["chat template not found", "tokenizer_config.json", "leave out --chat"]);
    steer("--system w3").error(&["--chat"]);
}

#[test]
fn what_does_not_fit_is_said_with_what_to_do() {
    let (shared, cli) = (trained(), Cli::new());
    let sae = shared.path("sae").display().to_string();
    let write = |name: &str, values: &[f32]| {
        let tensor = Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap();
        safetensors::serialize_to_file([("vector", &tensor)], None, &cli.path(name)).unwrap();
    };
    write("short.safetensors", &[1.0, 2.0]);
    write("nan.safetensors", &[f32::NAN; 128]);
    write("zero.safetensors", &[0.0; 128]);
    cli.write("empty.txt", "\n\n");
    cli.write("no.safetensors", "nothing of the kind");
    cli.write("no.npy", "nothing of the kind");
    let vector = |file: &str, flags: &str| demo(&cli, &format!("--vector {file} {flags}"), "The");
    let hook = "--hook blocks.1.hook_resid_post";
    vector("short.safetensors", &format!("{hook} --strength 1")).error(&["2 values", "width 128", "--hook"]);
    vector("nan.safetensors", &format!("{hook} --strength 1")).error(&["NaN", "vector nan"]);
    vector("zero.safetensors", &format!("{hook} --strength 1")).error(&["zero", "no direction"]);
    vector("short.safetensors", "--strength 1").error(&["--hook", "none in short.safetensors"]);
    vector("short.safetensors", "--hook blocks.1.hook_resid --strength 1")
        .error(&["unknown hook point", "hook_resid_pre"]);
    vector("short.safetensors", hook).error(&["--strength", "a finite value"]);
    vector("gone.safetensors", &format!("{hook} --strength 1")).error(&["gone.safetensors", "check the path"]);
    vector("no.safetensors", &format!("{hook} --strength 1")).error(&["steering vector", "safetensors"]);
    vector("no.npy", &format!("{hook} --strength 1")).error(&["no.npy", "numpy.save"]);
    let feature = |flags: &str| demo(&cli, &format!("--sae {sae} --feature 1 {flags}"), "The");
    feature("--clamp 1,nan").error(&["--clamp", "finite"]);
    feature("--clamp 0,2 --method simple-additive").error(&["--method"]);
    feature("--clamp 1 --strength-multiplier 2").error(&["--strength-multiplier", "--method"]);
    feature("--strength 1 --no-error-term").error(&["--no-error-term"]);
    feature("--clamp 1 --normalize").error(&["--normalize", "--clamp"]);
    feature("--clamp 1 --at 99").error(&["--at", "0 to"]);
    feature("--clamp 1 --chat").error(&["chat template", "--chat"]);
    demo(&cli, &format!("--sae {sae} --feature 1:3 --clamp 0,2"), "The").error(&["--feature", "value of its own"]);
    demo(&cli, "--feature 1 --clamp 2", "The").error(&["--sae"]);
    cli.run(&format!("steer --model demo --sae {sae} --feature 1:2 --prompts empty.txt"))
        .error(&["empty.txt", "empty file"]);
    cli.run(&format!("steer --model demo --sae {sae} --feature 1:2")).error(&["--prompt"]);
    cli.run("steer").error(&["--model"]);
    cli.write("some.txt", "The sky\n");
    let make = |flags: &str| cli.run(&format!("steer vector --model demo --out v.safetensors {flags}"));
    let prompts = "--positive some.txt --negative some.txt";
    make(&format!("{prompts} --hook blocks.1.hook_resid_post")).error(&["the same mean", "differ"]);
    make(&format!("{prompts} --hook blocks.1.attn.hook_pattern")).error(&["no fixed number", "hook_resid_post"]);
    make(&format!("{prompts} --hook blocks.99.hook_resid_post")).error(&["unknown hook point"]);
    make("--positive some.txt --negative empty.txt --hook blocks.1.hook_resid_post")
        .error(&["empty.txt", "empty file"]);
    assert!(!cli.path("v.safetensors").exists());
}
