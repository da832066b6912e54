//! The page about all features: what a browser makes of it.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use crate::fixture::{Cli, trained};
use crate::pages::OWN_CALLS;

/// What a reader does, as a script: search, open what was found, follow a neighbour, step through the list.
const READER: &str = r##"<script>
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
</script>"##;

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

pub(crate) fn browser() -> Option<&'static str> {
    ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|name| {
        let mut command = Command::new(name);
        command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
    })
}

/// What a browser says about a page: its document, messages on the console, and addresses that were asked for.
pub(crate) struct Seen {
    pub(crate) document: String,
    pub(crate) console: Vec<String>,
    pub(crate) asked: BTreeSet<String>,
}

pub(crate) fn open(browser: &str, cli: &Cli, page: &Path) -> Seen {
    // Browsers that run at once need a profile each.
    let name = page.file_stem().unwrap().to_string_lossy();
    let log = cli.path(&format!("{name}.net.json"));
    let flags = "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking \
                 --disable-component-update --disable-sync --disable-extensions --enable-logging=stderr --v=0 \
                 --virtual-time-budget=20000 --dump-dom";
    let mut command = cli.program(browser);
    command.args(flags.split_whitespace());
    command.arg(format!("--user-data-dir={}", cli.path(&format!("{name}.profile")).display()));
    command.arg(format!("--log-net-log={}", log.display()));
    let output = command.arg(format!("file://{}", page.display())).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let log = std::fs::read_to_string(log).unwrap();
    let urls = log.split("\"url\":\"").skip(1).filter_map(|rest| rest.split('"').next());
    Seen {
        document: String::from_utf8_lossy(&output.stdout).into_owned(),
        console: stderr.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect(),
        asked: urls
            .filter(|url| url.starts_with("http") && !OWN_CALLS.iter().any(|maker| url.contains(maker)))
            .map(str::to_owned)
            .collect(),
    }
}

#[test]
fn the_page_opens_and_fetches_nothing() {
    let Some(browser) = browser() else {
        eprintln!("SKIPPED: no chromium on this machine to open pages with");
        return;
    };
    let cli = indexed();
    let seen = open(browser, cli, &cli.path("page.html"));
    assert_eq!(seen.console, [""; 0]);
    assert_eq!(seen.asked, BTreeSet::new());
    assert!(seen.document.contains("data-ready=") && seen.document.contains("<h2>Feature "), "{}", seen.document.len());
}

#[test]
fn a_reader_searches_opens_and_steps() {
    let Some(browser) = browser() else {
        eprintln!("SKIPPED: no chromium on this machine to open pages with");
        return;
    };
    let cli = indexed();
    let page = std::fs::read_to_string(cli.path("page.html")).unwrap();
    // The page's own policy forbids the reader.
    let (before, after) = page.split_once("<meta http-equiv").unwrap();
    let (_, after) = after.split_once("/>").unwrap();
    let word = "capital";
    let reader = READER.replace("WORD", &format!("{word:?}"));
    let driven = format!("{before}{}", after.replace("</body>", &format!("{reader}</body>")));
    cli.write("driven.html", driven);
    let seen = open(browser, cli, &cli.path("driven.html"));
    assert_eq!(seen.console, [""; 0]);
    let json =
        seen.document.split_once("<pre id=\"seen\">").expect("the reader's notes").1.split_once("</pre>").unwrap().0;
    let notes: Value =
        serde_json::from_str(&json.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")).unwrap();
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
