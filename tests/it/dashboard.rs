//! The page about all features: what a browser makes of it.

use std::sync::OnceLock;

use serde_json::Value;

use crate::browser::{browser, open, with_reader};
use crate::fixture::{Cli, trained};

/// What a reader does, as a script: search, open what was found, follow a neighbour, step through the list.
const READER: &str = r##"
addEventListener("load", async () => {
  const sleep = (ms) => new Promise((done) => setTimeout(done, ms)), $ = (id) => document.getElementById(id);
  const until = async (test) => { for (let i = 0; i < 400 && !test(); i++) await sleep(10); return test(); };
  const seen = { ready: Boolean(await until(() => document.documentElement.dataset.ready)) };
  const heading = () => document.querySelector("#page h2")?.textContent;
  const search = async (text) => {
    const before = $("found").textContent;
    $("search").value = text; $("search").dispatchEvent(new Event("input"));
    await until(() => $("found").textContent !== before); await sleep(30);
  };
  const key = async (key) => { document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true })); await sleep(60); };
  seen.listed = Number($("found").textContent.split(" ")[0].replace(",", ""));
  seen.rows = document.querySelectorAll(".item").length;
  seen.height = parseInt($("space").style.height);
  seen.first = heading();
  await search(WORD);
  seen.found = $("found").textContent;
  const item = document.querySelector(".item"), id = item.id.replace("item-", "");
  item.click();
  await until(() => heading() === "Feature " + id); await sleep(30);
  seen.opened = [id, heading(), location.hash];
  seen.marks = document.querySelectorAll("#page mark").length;
  seen.shaded = document.querySelectorAll(".ex .t span[style]").length;
  seen.examples = document.querySelectorAll(".ex").length;
  seen.tables = [...document.querySelectorAll("#page caption")].map((node) => node.textContent);
  seen.histograms = document.querySelectorAll("#page svg rect").length;
  const link = document.querySelector("#page a[href^='#']");
  link.click(); await until(() => heading() === "Feature " + link.textContent);
  seen.followed = heading() === "Feature " + link.textContent;
  await search("qzxv");
  seen.nothing = $("found").textContent;
  await search("");
  $("sort").value = "max"; $("sort").dispatchEvent(new Event("change"));
  await key("j"); const one = heading(); await key("j"); seen.stepped = one !== heading(); await key("k"); seen.back = one === heading();
  $("show").value = "all"; $("show").dispatchEvent(new Event("change"));
  seen.all = $("found").textContent;
  const pre = document.createElement("pre"); pre.id = "seen"; pre.textContent = JSON.stringify(seen); document.body.append(pre);
});
"##;

/// An index `index` of 160 features.
pub(crate) fn indexed() -> &'static Cli {
    static INDEXED: OnceLock<Cli> = OnceLock::new();
    INDEXED.get_or_init(|| {
        let cli = Cli::new();
        let (acts, sae) = (trained().path("acts"), trained().path("sae"));
        cli.run(&format!("features --sae {} --cache {} --model demo --out index", sae.display(), acts.display())).ok();
        cli.run("features --index index --html page.html").ok();
        cli
    })
}

#[test]
fn the_page_opens_and_fetches_nothing() {
    let Some(browser) = browser() else { return };
    let cli = indexed();
    let seen = open(browser, cli, &cli.path("page.html"));
    seen.is_quiet("page.html");
    assert!(seen.document.contains("data-ready=") && seen.document.contains("<h2>Feature "), "{}", seen.document.len());
}

#[test]
fn a_reader_searches_opens_and_steps() {
    let Some(browser) = browser() else { return };
    let cli = indexed();
    let page = std::fs::read_to_string(cli.path("page.html")).unwrap();
    cli.write("driven.html", with_reader(&page, &READER.replace("WORD", "\"capital\"")));
    let seen = open(browser, cli, &cli.path("driven.html"));
    seen.is_quiet("driven.html");
    let notes: Value = serde_json::from_str(&seen.note("seen")).unwrap();
    let is = |key: &str| notes[key].as_bool() == Some(true);
    let at_least = |key: &str, least: u64| assert!(notes[key].as_u64() >= Some(least), "{key}: {notes}");
    assert!(is("ready") && is("followed") && is("stepped") && is("back"), "{notes}");
    at_least("listed", 20);
    at_least("rows", 5);
    assert_eq!(notes["height"].as_u64().unwrap(), 48 * notes["listed"].as_u64().unwrap());
    assert!(notes["found"].as_str().unwrap().contains(" ms"), "{notes}");
    let id = notes["opened"][0].as_str().unwrap();
    assert_eq!(notes["opened"][1], format!("Feature {id}"));
    assert_eq!(notes["opened"][2], format!("#{id}"));
    for key in ["marks", "shaded", "examples", "histograms"] {
        at_least(key, 1);
    }
    assert!(notes["nothing"].as_str().unwrap().starts_with("0 features"), "{notes}");
    assert!(notes["all"].as_str().unwrap().starts_with("160 features"), "{notes}");
    assert!(notes["tables"].as_array().unwrap().len() >= 4, "{notes}");
}
