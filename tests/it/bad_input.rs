//! Bad input of every kind: one clear error that says what to do, exit code 2, and earlier results as they were.

use std::path::Path;

use serde_json::{Value, json};

use crate::fixture::{Cli, HOOK, contents, trained};

/// A command line that a flag is added to.
type Line<'a> = &'a dyn Fn(&str) -> String;

/// Changes one value of a JSON file; null removes it.
fn patch(path: &Path, pointer: &str, value: Value) {
    let mut json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let object = json.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    assert!(object.contains_key(key), "{pointer}");
    if value.is_null() {
        object.remove(key);
    } else {
        object.insert(key.into(), value);
    }
    std::fs::write(path, json.to_string()).unwrap();
}

fn truncate(path: &Path, bytes: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    assert!(file.metadata().unwrap().len() > bytes);
    file.set_len(bytes).unwrap();
}

fn overwrite(path: &Path, at: usize, bytes: &[u8]) {
    let mut all = std::fs::read(path).unwrap();
    all[at..at + bytes.len()].copy_from_slice(bytes);
    std::fs::write(path, all).unwrap();
}

/// A fixture with a damaged copy of the built-in model in `bad`.
fn bad_model(damage: impl FnOnce(&Path)) -> Cli {
    let cli = Cli::new();
    let model = cli.copy(&cli.demo_dir(), "bad");
    damage(&model);
    cli
}

#[test]
fn models_that_are_missing_or_half_downloaded() {
    let run = |cli: &Cli| cli.run("run ./bad --prompt The");
    Cli::new().run("run ./nowhere --prompt The").error(&["MODEL", "./nowhere", "check the path"]);
    Cli::new().run("info nobody/nothing").error(&["nobody/nothing", "HF_HUB_OFFLINE"]);
    let cut = bad_model(|m| truncate(&m.join("model.safetensors"), 100_000));
    for line in ["run ./bad --prompt The", "info ./bad"] {
        cut.run(line).error(&["model weights", "bad/model.safetensors", "download"]);
    }
    for file in ["model.safetensors", "config.json", "tokenizer.json"] {
        run(&bad_model(|m| truncate(&m.join(file), 0))).error(&[file, "empty", "download"]);
        run(&bad_model(|m| std::fs::remove_file(m.join(file)).unwrap())).error(&[file, "not found"]);
    }
    run(&bad_model(|m| std::fs::write(m.join("config.json"), "{\"model_type\":").unwrap())).error(&["config.json"]);
    run(&bad_model(|m| std::fs::write(m.join("tokenizer.json"), "{}").unwrap())).error(&["tokenizer.json"]);
    run(&bad_model(|m| overwrite(&m.join("model.safetensors"), 0, &[0xff; 8]))).error(&["model.safetensors"]);
    let shards = bad_model(|m| {
        std::fs::rename(m.join("model.safetensors"), m.join("model-00001-of-00002.safetensors")).unwrap();
        let map = json!({"weight_map": {"model.embed_tokens.weight": "model-00001-of-00002.safetensors",
                                        "model.norm.weight": "model-00002-of-00002.safetensors"}});
        std::fs::write(m.join("model.safetensors.index.json"), map.to_string()).unwrap();
    });
    run(&shards).error(&["model-00002-of-00002.safetensors", "not found", "download the missing file"]);
}

#[test]
fn models_whose_parts_do_not_fit() {
    let config = |pointer: &'static str, value: Value| bad_model(|m| patch(&m.join("config.json"), pointer, value));
    let run = |cli: &Cli| cli.run("run ./bad --prompt The");
    run(&config("/model_type", "mamba".into())).error(&["model_type", "mamba", "llama", "gpt2"]);
    run(&config("/model_type", Value::Null)).error(&["model_type", "config.json"]);
    run(&config("/hidden_size", Value::Null)).error(&["hidden_size", "config.json"]);
    run(&config("/hidden_size", 96.into())).error(&["model.embed_tokens.weight", "96", "128", "config.json"]);
    run(&config("/num_hidden_layers", 5.into())).error(&["model.layers.4.", "none", "model.safetensors"]);
    run(&config("/num_attention_heads", 0.into())).error(&["heads", "config.json"]);
    run(&config("/num_hidden_layers", 0.into())).error(&["layers", "config.json"]);
    run(&config("/hidden_act", "swish9".into())).error(&["swish9"]);
}

#[test]
fn models_that_compute_no_numbers() {
    let shared = trained();
    // One weight of layer 1 becomes NaN in half precision.
    let cli = bad_model(|m| {
        let file = m.join("model.safetensors");
        let bytes = std::fs::read(&file).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let offset = header["model.layers.1.mlp.down_proj.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
        overwrite(&file, 8 + length + offset, &[0x00, 0x7e]);
    });
    cli.write_world(60);
    let cache = format!("cache --model ./bad --data world.jsonl --hook {HOOK} --context-size 32 --out acts");
    cli.run(&cache).error(&[HOOK, "NaN", "first at sequence 0", "remedy: "]);
    assert!(!cli.path("acts").exists());
    cli.run("run ./bad --prompt The").error(&["logits", "NaN", "prompt 'The'"]);
    cli.run(&format!("run ./bad --prompt The --hook {HOOK} --out out.safetensors")).error(&["NaN"]);
    assert!(!cli.path("out.safetensors").exists());
    let (sae, acts) = (shared.path("sae"), shared.path("acts"));
    cli.run(&format!("steer --model ./bad --sae {} --feature 1:2 --prompt The", sae.display()))
        .error(&["logits", "NaN"]);
    cli.run(&format!("eval --sae {} --cache {} --model ./bad", sae.display(), acts.display()))
        .error(&["logits", "NaN"]);
}

/// A fixture with a damaged copy of the cache in `acts`.
fn bad_cache(damage: impl FnOnce(&Path)) -> Cli {
    let cli = Cli::new();
    damage(&cli.copy(&trained().path("acts"), "acts"));
    cli
}

#[test]
fn caches_that_are_damaged() {
    let sae = trained().path("sae");
    let check = |cli: &Cli, needles: &[&str]| {
        cli.run(&format!("train-sae --cache acts --hook {HOOK} --d-sae 32 --steps 2 --out new")).error(needles);
        cli.run(&format!("eval --sae {} --cache acts", sae.display())).error(needles);
        cli.run(&format!("features --sae {} --cache acts", sae.display())).error(needles);
        assert!(!cli.path("new").exists() && !cli.path("new.partial").exists());
    };
    let (shard, manifest) = ("shard-00001.safetensors", "cache.json");
    check(&Cli::new(), &["activation cache not found", "acts", "make one with"]);
    check(&bad_cache(|c| truncate(&c.join(shard), 1000)), &[shard, "1000 bytes", "cache again"]);
    check(&bad_cache(|c| std::fs::remove_file(c.join(shard)).unwrap()), &[shard, "not found", "cache again"]);
    check(&bad_cache(|c| overwrite(&c.join(shard), 0, &[0xff; 8])), &[shard, "damaged"]);
    check(&bad_cache(|c| overwrite(&c.join(shard), 40, &[0; 12])), &[shard, "damaged"]);
    // Contents that changed but still parse are found by their checksum.
    check(&bad_cache(|c| overwrite(&c.join(shard), 500_000, &[0x55; 64])), &[shard, "BLAKE3", "cache again"]);
    check(&bad_cache(|c| std::fs::write(c.join(manifest), "garbage").unwrap()), &[manifest]);
    check(&bad_cache(|c| truncate(&c.join(manifest), 300)), &[manifest]);
    check(&bad_cache(|c| patch(&c.join(manifest), "/format_version", 9.into())), &[manifest, "9"]);
    check(&bad_cache(|c| patch(&c.join(manifest), "/complete", false.into())), &[manifest, "--resume"]);
    check(&bad_cache(|c| patch(&c.join(manifest), "/sequences", 999_999.into())), &[manifest, "999999"]);
    for zero in ["context_size", "shard_sequences"] {
        check(&bad_cache(|c| patch(&c.join(manifest), &format!("/settings/{zero}"), 0.into())), &[manifest]);
    }
    check(&bad_cache(|c| patch(&c.join(manifest), "/settings/hooks/0/width", 64.into())), &["64"]);
}

/// A fixture with a damaged copy of the dictionary in `sae`.
fn bad_sae(damage: impl FnOnce(&Path)) -> Cli {
    let cli = Cli::new();
    damage(&cli.copy(&trained().path("sae"), "sae"));
    cli
}

#[test]
fn dictionaries_that_are_damaged() {
    let acts = trained().path("acts");
    let check = |cli: &Cli, needles: &[&str]| {
        cli.run(&format!("eval --sae sae --cache {}", acts.display())).error(needles);
        cli.run(&format!("features --sae sae --cache {} --out index", acts.display())).error(needles);
        cli.run("steer --model demo --sae sae --feature 1:2 --prompt The").error(needles);
        assert!(!cli.path("index").exists());
    };
    let (weights, config) = ("sae_weights.safetensors", "cfg.json");
    check(&Cli::new(), &["looked at: sae", "train-sae"]);
    check(&bad_sae(|s| truncate(&s.join(weights), 1000)), &[weights, "truncated or corrupt"]);
    check(&bad_sae(|s| truncate(&s.join(weights), 0)), &[weights]);
    check(&bad_sae(|s| std::fs::remove_file(s.join(weights)).unwrap()), &[weights, "not found"]);
    check(&bad_sae(|s| std::fs::write(s.join(config), "garbage").unwrap()), &[config]);
    check(&bad_sae(|s| patch(&s.join(config), "/architecture", "temporal".into())), &["temporal", config, "standard"]);
    check(&bad_sae(|s| patch(&s.join(config), "/d_sae", 64.into())), &["W_enc", "[128, 64]", "[128, 160]", weights]);
    check(&bad_sae(|s| patch(&s.join(config), "/d_in", 64.into())), &["[64, 160]", weights]);
    check(
        &bad_sae(|s| patch(&s.join(config), "/metadata/hook_name", "blocks.9.hook_resid_post".into())),
        &["blocks.9.hook_resid_post"],
    );
}

#[test]
fn dictionaries_that_fit_neither_model_nor_cache() {
    let cli = Cli::new();
    cli.write_world(100);
    let wide = "blocks.1.mlp.hook_post";
    cli.run(&format!("cache --model demo --data world.jsonl --hook {wide} --context-size 32 --tokens 1k --out acts"))
        .ok();
    cli.run("train-sae --cache acts --d-sae 32 --steps 2 --batch-size 64 --out sae").ok();
    let shared = trained();
    let (narrow_sae, narrow_acts) = (shared.path("sae"), shared.path("acts"));
    let narrow_sae = narrow_sae.display();
    cli.run(&format!("eval --sae {narrow_sae} --cache acts --hook {wide}")).error(&["d_in 128", "width 352", "acts"]);
    cli.run(&format!("eval --sae {narrow_sae} --cache acts")).error(&[HOOK, wide]);
    cli.run(&format!("features --sae {narrow_sae} --cache acts --hook {wide}")).error(&["d_in 128", "width 352"]);
    patch(&cli.path("sae/cfg.json"), "/metadata/hook_name", HOOK.into());
    cli.run(&format!("eval --sae sae --cache {}", narrow_acts.display())).error(&["d_in 352", "width 128"]);
    cli.run("steer --model demo --sae sae --feature 1:2 --prompt The").error(&["352", "128", HOOK]);
}

#[test]
fn text_that_is_no_text() {
    let cli = Cli::new();
    cli.write_world(30);
    let world = std::fs::read_to_string(cli.path("world.jsonl")).unwrap();
    let bad: [(&str, Vec<u8>, &[&str]); 10] = [
        ("empty.txt", vec![], &["text not found", "--data"]),
        ("blank.txt", b" \n\n ".to_vec(), &["text not found", "--data"]),
        ("empty.jsonl", vec![], &["text not found", "--data"]),
        ("short.txt", b"A dog is".to_vec(), &["enough text", "--context-size"]),
        ("latin.txt", b"The caf\xe9 is".to_vec(), &["UTF-8", "line 1", "iconv"]),
        ("latin.jsonl", b"{\"text\": \"The caf\xe9\"}\n".to_vec(), &["UTF-8", "line 1", "iconv"]),
        ("field.jsonl", b"{\"body\": \"A dog\"}\n".to_vec(), &["line 1", "'text'", "body", "--text-field"]),
        ("late.jsonl", format!("{world}{{\"body\": 1}}\n").into(), &["line 31", "'text'", "--text-field"]),
        ("garbage.jsonl", b"a dog\n".to_vec(), &["line 1", "invalid JSON", "mend or remove"]),
        ("garbage.parquet", b"a dog".to_vec(), &["parquet", "download"]),
    ];
    for (name, bytes, needles) in bad {
        cli.write(name, bytes);
        let ended = cli.run(&format!("cache --model demo --data {name} --hook {HOOK} --context-size 32 --out acts"));
        ended.error(&[&[name], needles].concat());
        assert!(!cli.path("acts").exists(), "{name}");
        drop(std::fs::remove_dir_all(cli.path("acts.partial")));
    }
    cli.write("a.doc", "A dog");
    for (name, needle) in [("none.jsonl", "no such file"), ("a.doc", ".jsonl")] {
        cli.run(&format!("cache --model demo --data {name} --hook {HOOK} --out acts")).error(&[name, needle]);
    }
}

#[test]
fn names_and_prompts_that_do_not_exist() {
    let (cli, shared) = (Cli::new(), trained());
    cli.write_world(30);
    let hook = |name: &str| format!("run demo --prompt The --hook {name} --out out.safetensors");
    cli.run(&hook("blocks.1.hook_resid_pst")).error(&["blocks.1.hook_resid_pst", "known and near", HOOK]);
    cli.run(&hook("blocks.7.hook_resid_post")).error(&["blocks.7.hook_resid_post", "blocks.3.hook_resid_post"]);
    cli.run("cache --model demo --data world.jsonl --hook hook_emb --out acts").error(&["hook_emb", "hook_embed"]);
    cli.run("cache --model demo --data world.jsonl --hook blocks.0.attn.hook_pattern --out acts")
        .error(&["blocks.0.attn.hook_pattern", "mechinterp run --hook"]);
    shared
        .run("train-sae --cache acts --hook blocks.0.hook_resid_post --out new")
        .error(&["blocks.0.hook_resid_post", HOOK]);
    shared.run("train-sae --cache acts --out new").error(&["--hook", HOOK, "blocks.2.hook_mlp_out"]);
    cli.run("train-sae --model demo --data world.jsonl --out new").error(&["--hook", "mechinterp info demo"]);
    cli.run("train-sae --model demo --data world.jsonl --hook blocks.9.hook_resid_post --out new")
        .error(&["blocks.9.hook_resid_post", "blocks.3.hook_resid_post"]);
    cli.run("train-sae --model demo --out new").error(&["--data"]);
    cli.run("train-sae --out new").error(&["--cache"]);
    shared.run(&format!("train-sae --cache acts --hook {HOOK} --buffer-rows 5 --out new")).error(&["--model"]);
    shared.run("train-sae --cache acts --sweep none.toml --out new").error(&["none.toml"]);
    let long = "dog ".repeat(400);
    cli.run_with("run demo --prompt", &long).error(&["401 tokens", "256", "shorten"]);
    shared.run_with("steer --model demo --sae sae --feature 1:2 --prompt", &long).error(&["401 tokens", "256"]);
    cli.run_with("run demo --no-bos --prompt", "").error(&["--prompt"]);
    cli.run("run demo --tokens 1,1000000").error(&["1000000", "vocabulary"]);
    cli.run("run demo --tokens 1,x").error(&["--tokens", "x"]);
    shared.run("features --sae sae --cache acts --feature 160").error(&["160", "0 to 159"]);
    shared.run("features --sae sae --cache acts --feature dog").error(&["--feature", "dog"]);
    shared.run("steer --model demo --sae sae --feature 160:1 --prompt The").error(&["--feature", "160", "0 to 159"]);
    shared.run("features --index acts --feature 1").error(&["index.json"]);
    cli.run("run demo --prompt The --device cuda:x").error(&["--device", "cuda:x"]);
}

/// Fails unless each of `flags` is refused by name in the line that `line` makes of it, and nothing is left behind.
fn refused(cli: &Cli, line: impl Fn(&str) -> String, flags: &[&str]) {
    for flag in flags {
        // The flag at fault is the last one.
        let name = flag.split(' ').rfind(|word| word.starts_with("--")).unwrap();
        let ended = cli.run(&line(flag));
        assert!(ended.stderr.contains(name), "{flag}: {}", ended.stderr);
        ended.error(&[name]);
        assert!(!cli.path("new").exists() && !cli.path("new.partial").exists(), "{flag}");
    }
}

#[test]
fn flags_of_streams_that_make_no_sense() {
    let flags = [
        "--context-size 1",
        "--context-size 100000",
        "--model-batch-size 0",
        "--buffer-rows 0",
        "--buffer-dtype f7",
        "--model-dtype i8",
        "--held-out 1",
        "--held-out nan",
        "--text-field beauty",
        "--cache acts",
        "--steps 0",
        "--d-sae 0",
    ];
    let stream = |flag: &str| format!("train-sae --model demo --data world.jsonl --hook {HOOK} --out new {flag}");
    refused(trained(), stream, &flags);
}

#[test]
fn flags_that_make_no_sense() {
    let cli = trained();
    let cache = |flag: &str| format!("cache --model demo --data world.jsonl --hook {HOOK} --out new {flag}");
    let train = |flag: &str| format!("train-sae --cache acts --hook {HOOK} --out new {flag}");
    let eval = |flag: &str| format!("eval --sae sae --cache acts {flag}");
    let features = |flag: &str| format!("features --sae sae --cache acts {flag}");
    let steer = |flag: &str| format!("steer --model demo --sae sae --feature 1 --prompt The {flag}");
    let nonsense: [(Line<'_>, &[&str]); 5] = [
        (
            &cache,
            &[
                "--batch-size 0",
                "--context-size 0",
                "--context-size 1",
                "--context-size 100000",
                "--tokens 0",
                "--tokens -5",
                "--tokens many",
                "--shard-tokens 0",
                "--dtype f7",
                "--model-dtype i8",
                "--threads 0",
                "--threads -1",
                "--device tpu",
            ],
        ),
        (
            &train,
            &[
                "--l1-coefficient nan",
                "--l1-coefficient -1",
                "--d-sae 0",
                "--d-sae -4",
                "--d-sae 4000000000",
                "--held-out 2",
                "--held-out -1",
                "--held-out nan",
                "--held-out 1",
                "--lr 0",
                "--lr -1",
                "--lr inf",
                "--tokens 0",
                "--steps 0",
                "--batch-size 0",
                "--batch-size 1000000000000",
                "--checkpoint-every 0",
                "--log-every 0",
                "--arch resnet",
                "--max-norm-multiple 0",
                "--dead-feature-window 0",
                "--seed -1",
                "--eval-every 0",
            ],
        ),
        (&eval, &["--held-out 2", "--held-out 0", "--held-out nan", "--held-out -1", "--model-sequences 0"]),
        (
            &features,
            &[
                "--top-k 0",
                "--top-k -1",
                "--random 0",
                "--limit 0",
                "--min-density 2",
                "--min-density nan",
                "--max-density -1",
                "--sort beauty",
                "--context 5",
            ],
        ),
        (
            &steer,
            &[
                "--clamp nan",
                "--clamp inf",
                "--add",
                "--scale x",
                "--clamp 1 --temperature -1",
                "--clamp 1 --temperature nan",
                "--clamp 1 --top-p 2",
                "--clamp 1 --top-p 0",
                "--clamp 1 --top-p -1",
                "--clamp 1 --ablate",
                "--clamp 1 --max-new-tokens -3",
            ],
        ),
    ];
    for (line, flags) in nonsense {
        refused(cli, line, flags);
    }
    cli.run("run demo --prompt The --threads 0").error(&["--threads", "1 or more"]);
    cli.run(&steer("")).error(&["feature 1", "--feature ID:V"]);
    cli.run(&format!("run demo --prompt The --hook {HOOK}")).error(&["--out"]);
    cli.run("run demo").error(&["--prompt"]);
    cli.run("features").error(&["--sae"]);
}

#[test]
fn outputs_that_are_there_already_stay_as_they_are() {
    let cli = Cli::new();
    cli.write_world(60);
    for dir in ["acts", "sae"] {
        cli.copy(&trained().path(dir), dir);
    }
    let index = "features --sae sae --cache acts --top-k 2 --out index";
    cli.run(index).ok();
    let before: Vec<_> = ["acts", "sae", "index"].iter().map(|dir| contents(&cli.path(dir))).collect();
    let cache = format!("cache --model demo --data world.jsonl --hook {HOOK} --context-size 32 --out");
    cli.run(&format!("{cache} acts")).error(&["acts", "already exists", "choose another --out"]);
    cli.run(&format!("{cache} acts --resume")).error(&["acts", "already exists"]);
    cli.run(&format!("{cache} world.jsonl")).error(&["world.jsonl", "already exists"]);
    cli.run(&format!("{cache} world.jsonl/acts")).error(&["world.jsonl", "check the path"]);
    cli.run(&format!("train-sae --cache acts --hook {HOOK} --out sae")).error(&["sae", "already exists"]);
    cli.run(index).error(&["index", "already exists"]);
    cli.run("demo --out acts").error(&["acts", "not made by the demo", "choose another --out"]);
    let run = format!("run demo --prompt The --hook {HOOK} --out");
    cli.run(&format!("{run} nowhere/out.safetensors")).error(&["nowhere", "make the directory"]);
    cli.run(&format!("{run} acts")).error(&["acts", "directory"]);
    let after: Vec<_> = ["acts", "sae", "index"].iter().map(|dir| contents(&cli.path(dir))).collect();
    assert!(before == after);
}

/// A limit on the size of files stands for a full disk: both make a write fail in the middle.
#[cfg(unix)]
#[test]
fn a_disk_that_fills_up() {
    let cli = Cli::new();
    cli.write_world(200);
    for dir in ["acts", "sae"] {
        cli.copy(&trained().path(dir), dir);
    }
    cli.run("info demo -q").ok();
    let limited =
        |line: &str, kilobytes: u32| cli.shell(&format!("trap '' XFSZ; ulimit -f {kilobytes}; exec $M {line}"));
    let cache = format!(
        "cache --model demo --data world.jsonl --hook {HOOK} --context-size 32 --tokens 4k --shard-tokens 1024 \
         --dtype f32 --out new"
    );
    limited(&cache, 64).error(&["new.partial/shard-00000.safetensors", "File too large", "--resume"]);
    cli.run(&format!("{cache} --resume")).ok();
    let train = format!("train-sae --cache acts --hook {HOOK} --d-sae 64 --steps 4 --batch-size 64 -q --out dict");
    limited(&train, 20).error(&["dict.partial", "File too large", "--resume"]);
    cli.run(&format!("{train} --resume")).ok();
    let index = "features --sae sae --cache acts --out index -q";
    limited(index, 20).error(&["index.partial", "File too large"]);
    assert!(!cli.path("index").exists());
    cli.run(index).ok();
    let run = format!("run demo --prompt The --logits --hook {HOOK} --out out.safetensors -q");
    cli.run(&run).ok();
    let before = contents(&cli.path("acts"));
    let file = std::fs::read(cli.path("out.safetensors")).unwrap();
    limited(&run, 1).error(&["out.safetensors", "File too large"]);
    assert_eq!(std::fs::read(cli.path("out.safetensors")).unwrap(), file);
    assert!(contents(&cli.path("acts")) == before);
}

#[cfg(target_os = "linux")]
#[test]
fn devices_are_written_to_and_stay_devices() {
    use std::os::unix::fs::FileTypeExt;
    let cli = Cli::new();
    // Links, so that not even a defect of the program could replace a device of the machine.
    for name in ["full", "null"] {
        std::os::unix::fs::symlink(format!("/dev/{name}"), cli.path(name)).unwrap();
    }
    let run = format!("run demo --prompt The --hook {HOOK} --out");
    cli.run(&format!("{run} full")).error(&["full", "No space left", "free some disk space"]);
    cli.run(&format!("{run} null")).ok();
    for name in ["full", "null"] {
        assert!(std::fs::metadata(cli.path(name)).unwrap().file_type().is_char_device());
    }
    let ended = cli.shell("$M info demo > /dev/full");
    ended.error(&["standard output", "No space left"]);
}
