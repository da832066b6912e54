//! Pages and result files that commands write, and what a browser makes of the pages.

use serde_json::Value;

use crate::browser::{browser, open};
use crate::fixture::{Cli, HOOK, trained};

/// Two dictionaries, `relu` and `topk`, on the cache `acts`.
fn two() -> Cli {
    let cli = Cli::new();
    cli.copy(&trained().path("acts"), "acts");
    cli.copy(&trained().path("sae"), "relu");
    cli.run(&format!(
        "train-sae --cache acts --hook {HOOK} --arch topk --k 8 --d-sae 96 --steps 40 --batch-size 128 --log-every 5 \
         --out topk"
    ))
    .ok();
    cli
}

#[test]
fn a_trained_dictionary_comes_with_a_report() {
    let cli = trained();
    let page = std::fs::read_to_string(cli.path("sae/report.html")).unwrap();
    for expected in
        ["Explained variance", "Dead features", "tokens a second", "Density", "train-sae --cache acts", HOOK]
    {
        assert!(page.contains(expected), "'{expected}' is not in the report");
    }
    let sessions: Value = serde_json::from_slice(&std::fs::read(cli.path("sae/sessions.json")).unwrap()).unwrap();
    assert_eq!((&sessions[0]["from_step"], &sessions[0]["to_step"]), (&0.into(), &60.into()));
    assert_eq!(sessions[0]["tokens"], 60 * 128);
    // Made again from the finished directory it is the same page.
    cli.run("report sae --html again.html").ok();
    assert!(std::fs::read_to_string(cli.path("again.html")).unwrap() == page);
    cli.run("report sae sae").error(&["--html"]);
    cli.run("report acts").error(&["acts", "cfg.json"]);
}

#[test]
fn evaluations_are_compared_and_written_for_others() {
    let cli = two();
    let line = "eval --sae relu topk --cache acts --held-out 1";
    let shown = cli.run(&format!("{line} --html both.html")).ok();
    for expected in ["A  relu", "B  topk", "TopK", "R²", "↖ better", "L0 (logarithmic)"] {
        assert!(shown.contains(expected), "'{expected}' is not in {shown}");
    }
    let page = std::fs::read_to_string(cli.path("both.html")).unwrap();
    assert!(page.contains("2 dictionaries") && page.contains("number best") && page.contains("% dead"));
    cli.run("eval --sae topk --cache acts --held-out 1 --no-directions --html one.svg").ok();
    assert!(std::fs::read_to_string(cli.path("one.svg")).unwrap().starts_with("<?xml"));

    let model = "--model --model-sequences 4";
    cli.run(&format!("{line} {model} --saebench results")).ok();
    for (name, features) in [("relu", 160), ("topk", 96)] {
        let file = cli.path("results").join(format!("{name}_custom_sae_eval_results.json"));
        let result: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        assert_eq!((&result["eval_type_id"], &result["sae_lens_release_id"]), (&"core".into(), &name.into()));
        assert_eq!(result["sae_cfg_dict"]["d_sae"], features);
        assert_eq!(result["eval_result_details"].as_array().unwrap().len(), features);
        assert_eq!(result["eval_config"]["n_eval_reconstruction_batches"], 4);
        assert!(result["eval_result_metrics"]["model_behavior_preservation"]["kl_div_score"].is_f64());
        assert!(result["eval_result_metrics"]["misc_metrics"]["dead_features"].is_null(), "a key of ours");
    }
    cli.run(&format!("{line} {model} --saebench one.json")).error(&["--saebench", "directory"]);
    cli.run(&format!("{line} --saebench results")).error(&["--model"]);
}

#[test]
fn a_browser_shows_every_page_and_fetches_nothing() {
    let Some(browser) = browser() else { return };
    let cli = two();
    cli.write(
        "control.html",
        "<!doctype html><script>missing()</script><img src=\"http://127.0.0.1:9/x.png\">".as_bytes(),
    );
    let control = open(browser, &cli, &cli.path("control.html"));
    let asked = ["http://127.0.0.1:9/x.png".to_owned()].into();
    assert_eq!((control.console.len(), control.asked), (1, asked), "the test sees");
    cli.run("eval --sae relu topk --cache acts --held-out 1 --html both.html -q").ok();
    cli.run("eval --sae topk --cache acts --held-out 1 --html one.html -q").ok();
    cli.run("report relu topk --html curves.html").ok();
    for (page, figures) in
        [("relu/report.html", 10), ("topk/report.html", 9), ("both.html", 3), ("one.html", 6), ("curves.html", 5)]
    {
        let seen = open(browser, &cli, &cli.path(page));
        seen.is_quiet(page);
        let drawn = seen.document.matches("<figure").count();
        assert!(drawn >= figures && drawn == seen.document.matches("role=\"img\"").count(), "{page}: {drawn} figures");
        // The browser closes what a page leaves open, so the last words tell.
        assert!(seen.document.contains("This page loads nothing.</footer>"), "{page} is cut off");
    }
}
