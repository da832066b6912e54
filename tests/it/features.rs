//! The feature index on the command line: made, cut off and resumed, asked, labelled.

use serde_json::Value;

use crate::fixture::{Cli, HOOK, contents, trained};

/// A directory with the shared cache and dictionary and an index `index` of them.
fn indexed() -> Cli {
    let cli = Cli::new();
    for dir in ["acts", "sae"] {
        cli.copy(&trained().path(dir), dir);
    }
    cli.run("features --sae sae --cache acts --top-k 8 --out index -q").ok();
    cli
}

fn features(json: &Value) -> &Vec<Value> {
    json["features"].as_array().unwrap()
}

fn ids(json: &Value) -> Vec<u64> {
    features(json).iter().map(|f| f["index"].as_u64().unwrap()).collect()
}

#[test]
fn every_part_of_a_record_agrees_with_the_others() {
    let cli = indexed();
    let json = cli.run("features --index index --live --limit 40 --json").json();
    assert!(features(&json).len() > 20);
    let (mut shown, mut most) = (0, 0);
    for f in features(&json) {
        let number = |key: &str| f[key].as_f64().unwrap();
        let sum = |list: &Value, key: &str| -> f64 {
            list.as_array().unwrap().iter().map(|x| if key.is_empty() { x } else { &x[key] }.as_f64().unwrap()).sum()
        };
        assert_eq!(sum(&f["histogram"]["counts"], "") as u64, f["count"].as_u64().unwrap());
        assert_eq!(sum(&f["intervals"], "count") as u64, f["count"].as_u64().unwrap());
        assert!((sum(&f["intervals"], "share") - 1.0).abs() < 1e-9);
        assert!(number("min") <= number("mean") && number("mean") <= number("max") && number("std") >= 0.0);
        for interval in f["intervals"].as_array().unwrap() {
            let examples = interval["examples"].as_array().unwrap();
            shown += examples.len() as u64;
            most += interval["count"].as_u64().unwrap().min(5);
            assert!(examples.len() as u64 <= interval["count"].as_u64().unwrap().min(5));
            for example in examples {
                let value = example["value"].as_f64().unwrap();
                assert!(value >= interval["from"].as_f64().unwrap() && value < interval["to"].as_f64().unwrap());
                assert_eq!(example["values"][example["peak"].as_u64().unwrap() as usize], example["value"]);
            }
        }
        for list in ["promoted", "suppressed", "promoted_through_norm", "suppressed_through_norm", "nearest"] {
            assert_eq!(f[list].as_array().unwrap().len(), 10, "{list}");
        }
        assert_eq!(f["neurons"].as_array().unwrap().len(), 5);
        assert!(f["logit_histogram"]["counts"].as_array().unwrap().len() > 4);
        let jaccards: Vec<f64> =
            f["coactive"].as_array().unwrap().iter().map(|c| c["jaccard"].as_f64().unwrap()).collect();
        assert!(jaccards.is_sorted_by(|a, b| a >= b) && jaccards.iter().all(|j| *j > 0.0 && *j <= 1.0));
    }
    // Intervals that moved may have lost examples, but not many.
    assert!(shown * 100 >= most * 95, "{shown} of {most}");
    // Alike works in both directions.
    let first = &features(&json)[0];
    let nearest = first["nearest"][0].clone();
    let line = format!("features --index index --feature {} --json", nearest["feature"]);
    let back = cli.run(&line).json();
    let listed = features(&back)[0]["nearest"].as_array().unwrap();
    let same = listed.iter().find(|n| n["feature"] == first["index"]);
    assert!(same.is_none_or(|n| (n["cosine"].as_f64().unwrap() - nearest["cosine"].as_f64().unwrap()).abs() < 1e-6));
}

#[test]
fn labels_are_given_taken_exchanged_and_shown_everywhere() {
    let cli = indexed();
    let label = |line: &str, text: &str| cli.run_with(&format!("features label --index index {line}"), text);
    label("3", "capital cities").ok();
    label("5 --author me", "names of animals").ok();
    label("160", "beyond").error(&["160", "0 to 159"]);
    cli.run("features label --index index 3").error(&["TEXT"]);
    let page = cli.run("features --index index --feature 3").ok();
    assert!(page.lines().next().unwrap().contains("capital cities"), "{page}");
    let json = cli.run("features --index index --feature 5 --json").json();
    assert_eq!(
        (&features(&json)[0]["labels"][0]["text"], &features(&json)[0]["labels"][0]["author"]),
        (&"names of animals".into(), &"me".into())
    );
    assert_eq!(ids(&cli.run("features --index index --labelled --json").json()), [3, 5]);
    let overview = cli.run("features --index index --labelled").ok();
    assert!(overview.contains("2 with a label") && overview.contains("capital cities"), "{overview}");
    let found = cli.run_with("features --index index --json --search", "Capital CITIES").json();
    assert_eq!((ids(&found)[0], features(&found)[0]["found"]["label"].as_f64()), (3, Some(1.0)));
    cli.run("features labels export --index index all.jsonl").ok();
    cli.run("features labels export --index index np.jsonl.gz --neuronpedia demo/1-res").ok();
    let other = indexed();
    for file in ["all.jsonl", "np.jsonl.gz"] {
        std::fs::copy(cli.path(file), other.path(file)).unwrap();
    }
    other.run("features labels import --index index np.jsonl.gz").ok();
    let listed = other.run("features labels list --index index --json").json();
    assert_eq!(listed["labels"].as_array().unwrap().len(), 2);
    let imported = other.run("features labels import --index index all.jsonl --json").json();
    assert_eq!((&imported["added"], &imported["replaced"]), (&0.into(), &2.into()));
    assert_eq!(contents(&other.path("index")), contents(&cli.path("index")));
    cli.run("features label --index index 3 --remove").ok();
    assert!(!cli.run("features labels list --index index").ok().contains("capital"));
    other.write("bad.jsonl", "{\"feature\": 1}\n");
    other.run("features labels import --index index bad.jsonl").error(&["bad.jsonl", "line 1"]);
}

#[test]
fn a_search_finds_what_fires_on_the_words() {
    let cli = indexed();
    let all = cli.run("features --index index --live --json").json();
    // A word that some feature fires on most strongly must lead to that feature.
    let feature = &features(&all)[0];
    let peak = feature["examples"][0]["peak"].as_u64().unwrap() as usize;
    let word = feature["examples"][0]["tokens"][peak].as_str().unwrap().trim().to_owned();
    let found = cli.run_with("features --index index --limit 200 --json --search", &word).json();
    assert_eq!(found["matching"].as_u64().unwrap() as usize, features(&found).len());
    assert!(ids(&found).contains(&feature["index"].as_u64().unwrap()), "{word}");
    let scores: Vec<f64> = features(&found).iter().map(|f| f["found"]["score"].as_f64().unwrap()).collect();
    assert!(scores.is_sorted_by(|a, b| a >= b) && scores[scores.len() - 1] > 0.0);
    for f in features(&found).iter().filter(|f| f["found"]["best_example"].is_u64()) {
        let best = f["found"]["best_example"].as_u64().unwrap() as usize;
        let tokens = f["examples"][best]["tokens"].as_array().unwrap();
        let text: String = tokens.iter().map(|t| t.as_str().unwrap()).collect();
        assert!(text.to_lowercase().contains(&word.to_lowercase()), "'{word}' in '{text}'");
    }
    let none = cli.run_with("features --index index --search", "xylophone quark").ok();
    assert!(none.contains("no feature"), "{none}");
    cli.run_with("features --index index --search", " ").error(&["--search"]);
}

#[test]
fn features_on_a_text_are_those_that_the_model_gives() {
    let cli = indexed();
    let text = "The capital of France is Paris .";
    let on = |line: &str| cli.run_with(&format!("{line} --json --limit 500 --on"), text).json();
    let with_index = on("features --index index");
    let alone = on("features --sae sae --model demo");
    let values = |json: &Value| -> std::collections::BTreeMap<u64, Value> {
        features(json).iter().map(|f| (f["feature"].as_u64().unwrap(), f["values"].clone())).collect()
    };
    assert_eq!(values(&with_index), values(&alone));
    assert_eq!(with_index["firing"].as_u64().unwrap() as usize, values(&alone).len());
    let shares: Vec<f64> = features(&with_index).iter().map(|f| f["share_of_max"].as_f64().unwrap()).collect();
    assert!(shares.is_sorted_by(|a, b| a >= b) && shares[0] > 0.0);
    assert_eq!(with_index["counted"][0], false, "the first position does not count");
    let of_index = values(&with_index);
    for token in with_index["by_token"].as_array().unwrap() {
        for f in token["features"].as_array().unwrap() {
            let values = &of_index[&f["feature"].as_u64().unwrap()];
            assert_eq!(values[token["position"].as_u64().unwrap() as usize], f["value"]);
        }
    }
    let table = cli.run_with("features --index index --limit 3 --on", text).ok();
    assert!(
        table.contains("features fire on") && table.contains("France") && table.contains("does not count"),
        "{table}"
    );
}

#[test]
fn neighbours_of_a_feature_are_those_of_its_record() {
    let cli = indexed();
    let json = cli.run("features --index index --live --limit 1 --json").json();
    let feature = &features(&json)[0];
    let like = cli.run(&format!("features --index index --like {} --json", feature["index"])).json();
    for (list, key) in [("nearest", "cosine"), ("coactive", "jaccard")] {
        for neighbour in feature[list].as_array().unwrap() {
            let found = like["like"].as_array().unwrap().iter().find(|n| n["feature"] == neighbour["feature"]).unwrap();
            assert_eq!(found[key], neighbour[key]);
        }
    }
    let table = cli.run(&format!("features --index index --like {}", feature["index"])).ok();
    assert!(table.contains("cosine") && table.contains("fires with"), "{table}");
    cli.run("features --index index --like 160").error(&["160", "0 to 159"]);
}

#[test]
fn a_live_model_gives_nearly_the_index_of_a_cache() {
    let cli = Cli::new();
    cli.copy(&trained().path("sae"), "sae");
    cli.write_world(300);
    let cache = format!(
        "cache --model demo --data world.jsonl --hook {HOOK} --context-size 32 --tokens 4k --dtype f32 --model-dtype f32 --out acts -q"
    );
    cli.run(&cache).ok();
    cli.run("features --sae sae --cache acts --out cached -q").ok();
    let live = "features --sae sae --model demo --data world.jsonl --tokens 4k --model-dtype f32 --out live -q";
    cli.run(live).ok();
    let read = |dir: &str| cli.run(&format!("features --index {dir} --json")).json();
    let (cached, live) = (read("cached"), read("live"));
    let sum = |json: &Value| features(json).iter().map(|f| f["count"].as_f64().unwrap()).sum::<f64>();
    assert!((sum(&cached) / sum(&live) - 1.0).abs() < 0.01, "{} against {}", sum(&cached), sum(&live));
    for (a, b) in features(&cached).iter().zip(features(&live)) {
        assert_eq!(a["promoted"], b["promoted"]);
        let (a, b) = (a["max"].as_f64().unwrap(), b["max"].as_f64().unwrap());
        assert!((a - b).abs() <= 1e-3 * a.max(0.1), "{a} against {b}");
    }
}

#[cfg(unix)]
mod cut_off {
    use std::process::{Child, Stdio};
    use std::time::{Duration, Instant, SystemTime};

    use super::*;
    use crate::fixture::{Ended, end};

    const LINE: &str = "features --sae sae --cache acts --checkpoint-every 0 --out index";

    /// Enough text for many batches.
    fn set_up() -> Cli {
        let cli = Cli::new();
        cli.copy(&trained().path("sae"), "sae");
        cli.write_world(2000);
        let cache =
            format!("cache --model demo --data world.jsonl --hook {HOOK} --context-size 32 --tokens 80k --out acts -q");
        cli.run(&cache).ok();
        cli
    }

    fn spawn(cli: &Cli, line: &str) -> Child {
        cli.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn saved(cli: &Cli) -> Option<SystemTime> {
        std::fs::metadata(cli.path("index.partial/checkpoint")).and_then(|found| found.modified()).ok()
    }

    /// Waits until another checkpoint than the one of `before` is there; false when the run ended first.
    fn wait(cli: &Cli, child: &mut Child, before: Option<SystemTime>) -> bool {
        let started = Instant::now();
        while saved(cli).is_none() || saved(cli) == before {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            assert!(started.elapsed() < Duration::from_secs(120), "no checkpoint");
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    #[test]
    fn an_index_that_is_killed_again_and_again_equals_one_that_was_left_alone() {
        let (cut, whole) = (set_up(), Cli::new());
        for dir in ["acts", "sae"] {
            whole.copy(&cut.path(dir), dir);
        }
        whole.run("features --sae sae --cache acts --out index -q").ok();
        let mut killed = 0;
        for attempt in 0..12u64 {
            let before = saved(&cut);
            let mut child = spawn(&cut, &format!("{LINE} --resume --threads {}", 1 + attempt % 2));
            if !wait(&cut, &mut child, before) {
                child.wait().unwrap();
                break;
            }
            std::thread::sleep(Duration::from_micros(attempt * 7919 % 20_000));
            killed += u32::from(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(killed >= 4, "killed {killed} times");
        if !cut.path("index").exists() {
            cut.run(LINE).error(&["index.partial", "--resume"]);
            cut.run(&format!("{LINE} --resume --top-k 3")).error(&["cut-off index", "\"top_k\":3", "index.partial"]);
            cut.run(&format!("{LINE} --resume")).ok();
        }
        assert!(contents(&cut.path("index")) == contents(&whole.path("index")));
        assert!(!cut.path("index.partial").exists());
    }

    #[test]
    fn ctrl_c_keeps_what_was_counted_and_says_how_to_go_on() {
        let cut = set_up();
        let mut child = spawn(&cut, LINE);
        assert!(wait(&cut, &mut child, None), "it ended before it was stopped");
        let mut kill = std::process::Command::new("bash");
        assert!(kill.args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        let ended = Ended {
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
            code: output.status.code(),
        };
        ended.error(&["stopped", "index.partial", "--resume"]);
        assert!(!cut.path("index").exists() && cut.path("index.partial/checkpoint").exists());
        end(cut.command(&format!("{LINE} --resume"))).ok();
        let resumed = contents(&cut.path("index"));
        cut.run(&LINE.replace("--out index", "--out again")).ok();
        assert!(resumed == contents(&cut.path("again")));
    }
}
