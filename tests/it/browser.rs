//! What a browser makes of the pages that commands write.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::fixture::Cli;

/// Whom the browser calls on its own account.
const OWN_CALLS: [&str; 2] = [".google.com/", ".googleapis.com/"];

/// The browser of this machine. A test that is skipped for want of one says so.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
pub(crate) fn browser() -> Option<&'static str> {
    let found = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|name| {
        let mut command = Command::new(name);
        command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
    });
    if found.is_none() {
        eprintln!("SKIPPED: no chromium on this machine to open pages with");
    }
    found
}

/// What a browser says about a page: its document, messages on the console, and addresses that were asked for.
pub(crate) struct Seen {
    pub(crate) document: String,
    pub(crate) console: Vec<String>,
    pub(crate) asked: BTreeSet<String>,
}

impl Seen {
    /// The text that a script left in `<pre id="{id}">`.
    pub(crate) fn note(&self, id: &str) -> String {
        let start = format!("<pre id=\"{id}\">");
        let (_, inner) = self.document.split_once(&start).expect("the reader's notes");
        let (inner, _) = inner.split_once("</pre>").unwrap();
        inner.replace("&lt;", "<").replace("&gt;", ">").replace("&nbsp;", "\u{a0}").replace("&amp;", "&")
    }

    /// Asserts that nothing went wrong and nothing was loaded.
    #[track_caller]
    pub(crate) fn is_quiet(&self, page: &str) {
        assert!(self.console.is_empty() && self.asked.is_empty(), "{page}: {:?} {:?}", self.console, self.asked);
    }
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
    // The log names an address again at every stage of its request.
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

/// The page with what a reader does, as a script at its end, and without its policy, which forbids that.
pub(crate) fn with_reader(page: &str, script: &str) -> String {
    let (before, after) = page.split_once("<meta http-equiv").unwrap();
    let (_, after) = after.split_once("/>").unwrap();
    format!("{before}{}", after.replace("</body>", &format!("<script>\n{script}</script></body>")))
}
