//! Scores of attention heads against TransformerLens (`tests/golden/make_circuits.py`), and `heads` as a command.

use mechinterp::analysis::heads::{HeadScores, Score, head_scores};
use mechinterp::base::Silent;

use crate::fixture::{Cli, end};
use crate::golden::open;
use crate::lens::{CIRCUITS, Circuits, assert_near};

type Kind = fn(&HeadScores) -> Score;

#[test]
fn head_scores_equal_transformerlens() {
    for name in CIRCUITS {
        let (model, golden) = (open(name), Circuits::open(name));
        let tokens = golden.ids("heads.tokens");
        let scores = head_scores(&model, &[tokens], 6, &Silent).unwrap();
        let kinds: [(&str, Kind); 3] = [
            ("induction_head", |head| head.induction),
            ("previous_token_head", |head| head.previous),
            ("duplicate_token_head", |head| head.duplicate),
        ];
        for (kind, of) in kinds {
            let stripes = golden.rows(&format!("heads.stripe.{kind}"));
            let shares = golden.rows(&format!("heads.share.{kind}"));
            for head in &scores {
                let what = format!("{name} {kind} {}.{}", head.layer, head.head);
                assert_near(of(head).stripe, stripes[head.layer][head.head], &what);
                assert_near(of(head).share, shares[head.layer][head.head], &what);
            }
        }
    }
}

#[test]
fn heads_are_listed_with_their_scores() {
    let cli = Cli::new();
    let shown = cli.run("heads demo --length 20 --texts 2 --html heads.html").ok();
    for expected in ["induction heads", "previous token heads", "duplicate token heads", "kind", "attends"] {
        assert!(shown.contains(expected), "'{expected}' is not in {shown}");
    }
    assert!(std::fs::read_to_string(cli.path("heads.html")).unwrap().matches("role=\"img\"").count() == 3);
    let json = cli.run("heads demo --length 20 --texts 2 --json").json();
    let heads = json["heads"].as_array().unwrap();
    let info = cli.run("info demo --json").json();
    let n = info["config"]["n_layers"].as_u64().unwrap() * info["config"]["n_heads"].as_u64().unwrap();
    assert_eq!((heads.len() as u64, json["texts"].as_array().unwrap().len()), (n, 2));
    assert_eq!(json, cli.run("heads demo --length 20 --texts 2 --json").json(), "a seed makes one result");
    assert_ne!(json, cli.run("heads demo --length 20 --texts 2 --seed 1 --json").json());
    let all = cli.run("heads demo --length 20 --texts 1 --all --share").ok();
    assert!(all.contains("3.3") && all.contains("duplicate token"), "{all}");
    cli.run("heads demo --length 1").error(&["--length", "2 to"]);
    cli.run("heads demo --length 100000").error(&["--length", "context"]);
    cli.run("heads demo --texts 0").error(&["--texts"]);
    end(cli.command("heads demo --html nowhere/x.html")).error(&["nowhere"]);
}

#[test]
fn a_browser_shows_heatmaps_and_fetches_nothing() {
    let Some(browser) = crate::browser::browser() else { return };
    let cli = Cli::new();
    cli.run("heads demo --length 20 --texts 1 --html heads.html -q").ok();
    cli.run_with("lens demo --target Paris --html lens.html -q --prompt", "the capital of France is").ok();
    let mut patch = cli.command("patch --model demo --target Paris --site resid_pre,z --html patch.html -q");
    patch.args(["--clean", "the capital of France is", "--corrupt", "the capital of Japan is"]);
    end(patch).ok();
    for (page, figures) in [("heads.html", 3), ("lens.html", 3), ("patch.html", 2)] {
        let seen = crate::browser::open(browser, &cli, &cli.path(page));
        seen.is_quiet(page);
        assert_eq!(seen.document.matches("role=\"img\"").count(), figures, "{page}");
        assert!(seen.document.contains("This page loads nothing.</footer>"), "{page} is cut off");
    }
}
