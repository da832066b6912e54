//! Models and data sets from a hub on the loopback interface.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use mechinterp::base::{Progress, Unit};
use mechinterp::data::HubSettings;
use mechinterp::data::dataset::locate_dataset_with;
use mechinterp::data::hub::{ModelFiles, locate_model_with};

use crate::fixture::{Cli, end};
use crate::hub_server::{COMMIT, Fault, HubServer, Repo, hex};

const NEXT: &str = "89abcdef0123456789abcdef0123456789abcdef";
const INDEX: &[u8] = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;

/// Remembers warnings, and cancels when so many bytes have arrived.
#[derive(Default)]
struct Watch {
    warnings: Mutex<Vec<String>>,
    starts: Mutex<Vec<u64>>,
    arrived: AtomicU64,
    cancel_at: Option<u64>,
}

impl Watch {
    fn warnings(&self) -> String {
        self.warnings.lock().unwrap().join("\n")
    }
}

impl Progress for Watch {
    fn begin(&self, _label: &str, _total: u64, unit: Unit) {
        assert_eq!(unit, Unit::Bytes);
    }
    fn set(&self, done: u64) {
        self.starts.lock().unwrap().push(done);
    }
    fn advance(&self, n: u64) {
        self.arrived.fetch_add(n, Ordering::SeqCst);
    }
    fn note(&self, _text: &str) {}
    fn line(&self, _text: &str) {}
    fn warn(&self, text: &str) {
        self.warnings.lock().unwrap().push(text.into());
    }
    fn end(&self) {}
    fn cancelled(&self) -> bool {
        self.cancel_at.is_some_and(|limit| self.arrived.load(Ordering::SeqCst) >= limit)
    }
}

/// Contents that no two places of have in common.
fn shard(seed: u32, len: u32) -> Vec<u8> {
    (0..len).flat_map(|i| (i.wrapping_mul(2_654_435_761) ^ seed).to_le_bytes()).collect()
}

fn model() -> Repo {
    Repo::new(&[
        ("config.json", b"{\"model_type\": \"llama\"}"),
        ("tokenizer.json", b"{}"),
        ("README.md", b"not needed"),
        ("model.safetensors.index.json", INDEX),
        ("model-1.safetensors", &shard(1, 300_000)),
        ("model-2.safetensors", &shard(2, 1000)),
        ("model-3.safetensors", b"not in the index"),
    ])
}

fn settings(cache: &Path, endpoint: &str) -> HubSettings {
    HubSettings { cache: cache.into(), endpoint: endpoint.into(), token: None, certificates: None, offline: false }
}

fn locate(settings: &HubSettings, reference: &str) -> Result<ModelFiles, String> {
    locate_model_with(settings, reference, &Watch::default()).map_err(|error| error.to_string())
}

fn hashes(files: &ModelFiles) -> Vec<String> {
    files.weights.iter().map(|path| hex(&std::fs::read(path).unwrap())).collect()
}

fn expected() -> Vec<String> {
    vec![hex(&shard(1, 300_000)), hex(&shard(2, 1000))]
}

/// What of the download is on disk under the names of whole and of incomplete blobs.
fn blobs(cache: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let dir = std::fs::read_dir(cache.join("models--tiny--model/blobs")).unwrap();
    dir.flatten().map(|entry| entry.path()).partition(|path| path.extension().is_none())
}

#[test]
fn a_sharded_model_comes_whole_and_lies_where_python_looks_for_it() {
    for server in
        [HubServer::start(&[("tiny/model", model())]), HubServer::start(&[("tiny/model", model())]).without_listings()]
    {
        let cache = tempfile::tempdir().unwrap();
        let files = locate(&settings(cache.path(), &server.endpoint), "tiny/model").unwrap();
        assert_eq!(hashes(&files), expected());
        let fetched: Vec<String> = server.requests().iter().map(|r| r.path.clone()).collect();
        for unneeded in ["README.md", "model-3.safetensors"] {
            assert!(!fetched.iter().any(|path| path.ends_with(unneeded)), "{unneeded} in {fetched:?}");
        }
        let repo = cache.path().join("models--tiny--model");
        assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
        let snapshot = repo.join("snapshots").join(COMMIT);
        assert_eq!(files.config, snapshot.join("config.json"));
        let link = std::fs::read_link(snapshot.join("model-1.safetensors")).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(&expected()[0]));
        assert_eq!(blobs(cache.path()).1, Vec::<PathBuf>::new());
    }
}

#[test]
fn a_cached_model_needs_one_request_or_none() {
    let server = HubServer::start(&[("tiny/model", model())]);
    let cache = tempfile::tempdir().unwrap();
    let online = settings(cache.path(), &server.endpoint);
    let files = locate(&online, "tiny/model").unwrap();
    assert!(server.requests().len() > 5, "the server was asked");

    assert_eq!(locate(&online, "tiny/model").unwrap(), files);
    assert_eq!(server.requests().len(), 1, "one question whether main has moved");
    assert_eq!(locate(&online, &format!("tiny/model@{COMMIT}")).unwrap().weights, files.weights);
    let offline = HubSettings { offline: true, ..online.clone() };
    assert_eq!(locate(&offline, "tiny/model").unwrap(), files);
    assert_eq!(server.requests().len(), 0, "a commit never moves, and offline means no request");

    std::fs::remove_file(&files.weights[1]).unwrap();
    let error = locate(&offline, "tiny/model").unwrap_err();
    assert!(error.contains("model-2.safetensors") && error.contains("hf download tiny/model"), "{error}");
    assert_eq!(server.requests().len(), 0);
    assert_eq!(locate(&online, "tiny/model").unwrap(), files);
    let gets = server.requests().iter().filter(|r| r.method == "GET" && r.cdn).count();
    assert_eq!(gets, 0, "the blob is still there, only its link is made again");
}

#[test]
fn without_a_network_the_cached_copy_is_used_with_a_warning() {
    let server = HubServer::start(&[("tiny/model", model())]);
    let cache = tempfile::tempdir().unwrap();
    let files = locate(&settings(cache.path(), &server.endpoint), "tiny/model").unwrap();
    let unreachable = settings(cache.path(), "http://127.0.0.1:1");
    let watch = Watch::default();
    assert_eq!(locate_model_with(&unreachable, "tiny/model", &watch).unwrap(), files);
    assert!(watch.warnings().contains("cached copy of tiny/model@main"), "{}", watch.warnings());

    server.change("tiny/model", |repo| repo.token = Some("secret"));
    let watch = Watch::default();
    assert_eq!(locate_model_with(&settings(cache.path(), &server.endpoint), "tiny/model", &watch).unwrap(), files);
    assert!(watch.warnings().contains("HF_HUB_OFFLINE"), "a repository that became private: {}", watch.warnings());

    let empty = tempfile::tempdir().unwrap();
    let error = locate(&settings(empty.path(), "http://127.0.0.1:1"), "tiny/model").unwrap_err();
    assert!(error.contains("no answer from 127.0.0.1:1") && error.contains("HF_ENDPOINT"), "{error}");
}

#[test]
fn revisions_are_branches_tags_and_commits() {
    let mut files: Vec<(&str, &[u8])> =
        vec![("config.json", b"{}"), ("tokenizer.json", b"{}"), ("model.safetensors", b"the other weights")];
    let repo = model().with_revision("v2", NEXT, &files).with_revision("refs/pr/1", NEXT, &files);
    let server = HubServer::start(&[("tiny/model", repo)]);
    let cache = tempfile::tempdir().unwrap();
    let online = settings(cache.path(), &server.endpoint);
    for revision in ["v2", "refs/pr/1", NEXT] {
        let located = locate(&online, &format!("tiny/model@{revision}")).unwrap();
        assert_eq!(hashes(&located), [hex(b"the other weights")], "{revision}");
    }
    assert_eq!(hashes(&locate(&online, "tiny/model").unwrap()), expected());
    let error = locate(&online, "tiny/model@v3").unwrap_err();
    assert!(error.contains("no branch, tag or commit 'v3'") && error.contains("v2"), "{error}");

    files[2].1 = b"newer weights";
    let third = "c0ffee0123456789abcdef0123456789abcdef01";
    server.change("tiny/model", |repo| *repo = repo.clone().with_revision("v2", third, &files));
    let moved = locate(&online, "tiny/model@v2").unwrap();
    assert_eq!(hashes(&moved), [hex(b"newer weights")], "a tag that moved is fetched again");
    let requests = server.requests();
    let contents = requests.iter().filter(|r| r.path.ends_with(&hex(b"newer weights"))).count();
    assert_eq!(contents, 1);
}

#[test]
fn what_is_refused_or_missing_says_what_to_do() {
    let private = Repo { token: Some("secret"), ..model() };
    let gated = Repo { gated: true, ..private.clone() };
    let bare = Repo::new(&[("config.json", b"{}"), ("tokenizer.json", b"{}")]);
    let torn = Repo::new(&[
        ("config.json", b"{}"),
        ("tokenizer.json", b"{}"),
        ("model.safetensors.index.json", INDEX),
        ("model-1.safetensors", b"x"),
    ]);
    let server =
        HubServer::start(&[("tiny/private", private), ("tiny/gated", gated), ("tiny/bare", bare), ("tiny/torn", torn)]);
    let cache = tempfile::tempdir().unwrap();
    let nobody = settings(cache.path(), &server.endpoint);
    let member = HubSettings { token: Some("secret".into()), ..nobody.clone() };
    let stranger = HubSettings { token: Some("wrong".into()), ..nobody.clone() };
    let offline = HubSettings { offline: true, ..nobody.clone() };
    let cases: [(&HubSettings, &str, &[&str]); 7] = [
        (&nobody, "tiny/other", &["tiny/other", "check the spelling"]),
        (&nobody, "tiny/private", &["HF_TOKEN"]),
        (&stranger, "tiny/private", &["HF_TOKEN", "has no access"]),
        (&member, "tiny/gated", &["accept its licence", "/tiny/gated"]),
        (&nobody, "tiny/bare", &["model.safetensors of tiny/bare@main", "no such file"]),
        (&nobody, "tiny/torn", &["model-2.safetensors of tiny/torn@main", "no such file"]),
        (&offline, "tiny/private", &["without HF_HUB_OFFLINE"]),
    ];
    for (settings, reference, needles) in cases {
        let error = locate(settings, reference).unwrap_err();
        for needle in needles {
            assert!(error.contains(needle), "{reference}: '{needle}' is not in {error}");
        }
    }
    let broken = settings(cache.path(), "localhost:8080");
    assert!(locate(&broken, "tiny/bare").unwrap_err().contains("HF_ENDPOINT"));
}

#[test]
fn a_token_is_shown_to_the_hub_and_to_nobody_else() {
    let server = HubServer::start(&[("tiny/model", Repo { token: Some("secret"), ..model() })]);
    let cache = tempfile::tempdir().unwrap();
    let member = HubSettings { token: Some("secret".into()), ..settings(cache.path(), &server.endpoint) };
    assert_eq!(hashes(&locate(&member, "tiny/model").unwrap()), expected());
    let requests = server.requests();
    let (cdn, hub): (Vec<_>, Vec<_>) = requests.iter().partition(|request| request.cdn);
    assert_eq!(cdn.len(), 2, "both shards come from the other server");
    assert!(cdn.iter().all(|request| request.authorization.is_none()), "{cdn:?}");
    assert!(hub.iter().all(|request| request.authorization.as_deref() == Some("Bearer secret")), "{hub:?}");
}

#[test]
fn a_broken_connection_is_taken_up_where_it_broke() {
    let server = HubServer::start(&[("tiny/model", model())]);
    let cache = tempfile::tempdir().unwrap();
    // Three small files come first.
    let fine = Fault::Drop(usize::MAX);
    server.fail_with(&[
        fine,
        fine,
        fine,
        Fault::Drop(500_000),
        Fault::Drop(0),
        Fault::Status(503),
        Fault::Drop(600_000),
    ]);
    let files = locate(&settings(cache.path(), &server.endpoint), "tiny/model").unwrap();
    assert_eq!(hashes(&files), expected());
    let starts: Vec<usize> = server.requests().iter().filter(|r| r.cdn).map(|r| r.range.unwrap_or(0)).collect();
    assert_eq!(starts, [0, 500_000, 500_000, 500_000, 1_100_000, 0]);
}

#[test]
fn a_download_that_was_stopped_goes_on_where_it_stopped() {
    let server = HubServer::start(&[("tiny/model", model())]);
    let cache = tempfile::tempdir().unwrap();
    let online = settings(cache.path(), &server.endpoint);
    let watch = Watch { cancel_at: Some(600_000), ..Watch::default() };
    let error = locate_model_with(&online, "tiny/model", &watch).unwrap_err().to_string();
    assert!(error.contains("stopped") && error.contains("run the same command again"), "{error}");
    let (_, incomplete) = blobs(cache.path());
    assert_eq!(incomplete, [cache.path().join(format!("models--tiny--model/blobs/{}.incomplete", expected()[0]))]);
    let kept = std::fs::metadata(&incomplete[0]).unwrap().len();
    assert!((500_000..1_200_000).contains(&kept), "{kept} bytes");
    assert!(!cache.path().join("models--tiny--model/refs/main").exists(), "the branch is not there until it is whole");
    server.requests();

    let watch = Watch::default();
    let files = locate_model_with(&online, "tiny/model", &watch).unwrap();
    assert_eq!(hashes(&files), expected());
    let first = server.requests().into_iter().find(|r| r.cdn).unwrap();
    assert_eq!(first.range, Some(kept as usize));
    assert!(watch.starts.lock().unwrap().contains(&kept), "the bar begins where the download does");
    assert_eq!(blobs(cache.path()).1, Vec::<PathBuf>::new());
}

#[test]
fn a_download_that_is_not_what_was_announced_is_never_taken_for_whole() {
    let server = HubServer::start(&[("tiny/model", model())]);
    let cache = tempfile::tempdir().unwrap();
    let online = settings(cache.path(), &server.endpoint);
    let fine = Fault::Drop(usize::MAX);
    server.fail_with(&[fine, fine, fine, Fault::Corrupt]);
    let error = locate(&online, "tiny/model").unwrap_err();
    assert!(error.contains("model-1.safetensors") && error.contains("SHA-256"), "{error}");
    let named = |paths: Vec<PathBuf>| paths.iter().any(|p| p.to_string_lossy().contains(&expected()[0]));
    let (whole, incomplete) = blobs(cache.path());
    assert!(!named(whole) && !named(incomplete), "neither under its name nor to be continued");

    server.fail_with(&[Fault::Drop(500_000), Fault::Drop(0), Fault::Drop(0), Fault::Drop(0), Fault::Drop(0)]);
    let error = locate(&online, "tiny/model").unwrap_err();
    assert!(error.contains("the connection") && error.contains("what arrived is kept"), "{error}");
    let (whole, incomplete) = blobs(cache.path());
    assert!(!named(whole) && incomplete.len() == 1);

    // A part that another program damaged is noticed at the end, and fetched afresh.
    let mut part = std::fs::read(&incomplete[0]).unwrap();
    part[10] ^= 1;
    std::fs::write(&incomplete[0], part).unwrap();
    let watch = Watch::default();
    assert_eq!(hashes(&locate_model_with(&online, "tiny/model", &watch).unwrap()), expected());
    assert!(watch.warnings().contains("begins again"), "{}", watch.warnings());
}

#[test]
fn a_server_that_ignores_ranges_or_is_busy_is_put_up_with() {
    let server = HubServer::start(&[("tiny/model", model())]);
    let cache = tempfile::tempdir().unwrap();
    let fine = Fault::Drop(usize::MAX);
    server.fail_with(&[Fault::Status(429), fine, fine, fine, Fault::Drop(500_000), Fault::IgnoreRange]);
    let files = locate(&settings(cache.path(), &server.endpoint), "tiny/model").unwrap();
    assert_eq!(hashes(&files), expected());

    let down = tempfile::tempdir().unwrap();
    server.fail_with(&[Fault::Status(503); 4]);
    let error = locate(&settings(down.path(), &server.endpoint), "tiny/model").unwrap_err();
    assert!(error.contains("503") && error.contains("config.json"), "{error}");
}

#[test]
fn weights_of_pytorch_and_gguf_are_fetched_where_there_are_no_safetensors() {
    let index: &[u8] = br#"{"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}"#;
    let torch = Repo::new(&[
        ("config.json", b"{}"),
        ("tokenizer.json", b"{}"),
        ("pytorch_model.bin.index.json", index),
        ("pytorch_model-1.bin", b"one"),
        ("pytorch_model-2.bin", b"two"),
    ]);
    let gguf = Repo::new(&[
        ("README.md", b"about"),
        ("m.Q4_K_M.gguf", b"GGUF four"),
        ("m.Q8_0-00001-of-00002.gguf", b"GGUF eight"),
        ("m.Q8_0-00002-of-00002.gguf", b"GGUF eight, continued"),
    ]);
    let server = HubServer::start(&[("tiny/torch", torch), ("tiny/gguf", gguf)]);
    let cache = tempfile::tempdir().unwrap();
    let online = settings(cache.path(), &server.endpoint);
    assert_eq!(hashes(&locate(&online, "tiny/torch").unwrap()), [hex(b"one"), hex(b"two")]);
    let error = locate(&online, "tiny/gguf").unwrap_err();
    assert!(error.contains("m.Q4_K_M.gguf, m.Q8_0-00001-of-00002.gguf") && error.contains("name one"), "{error}");
    let four = locate(&online, "tiny/gguf:q4_k_m").unwrap();
    assert_eq!(hashes(&four), [hex(b"GGUF four")]);
    assert_eq!(four.config, four.weights[0], "a GGUF file is configuration and tokenizer as well");
    let offline = HubSettings { offline: true, ..online.clone() };
    assert_eq!(locate(&offline, "tiny/gguf:m.Q4_K_M.gguf").unwrap().weights, four.weights);
    let error = locate(&offline, "tiny/gguf:Q8_0").unwrap_err();
    assert!(error.contains("Q8_0"), "{error}");
    let eight = locate(&online, &format!("tiny/gguf@{COMMIT}:Q8_0")).unwrap();
    assert_eq!(hashes(&eight), [hex(b"GGUF eight"), hex(b"GGUF eight, continued")]);
    assert!(locate(&online, "tiny/gguf:Q5_0").unwrap_err().contains("0 with 'Q5_0'"));
    let mirror = HubServer::start(&[("tiny/gguf", Repo::new(&[("m.gguf", b"GGUF")]))]).without_listings();
    let elsewhere = tempfile::tempdir().unwrap();
    let found = locate(&settings(elsewhere.path(), &mirror.endpoint), "tiny/gguf:m.gguf").unwrap();
    assert_eq!(hashes(&found), [hex(b"GGUF")]);
}

#[test]
fn two_at_once_download_once() {
    let server = HubServer::start(&[("tiny/model", model())]);
    let cache = tempfile::tempdir().unwrap();
    let online = settings(cache.path(), &server.endpoint);
    std::thread::scope(|scope| {
        let both: Vec<_> = (0..2).map(|_| scope.spawn(|| locate(&online, "tiny/model").unwrap())).collect();
        for one in both {
            assert_eq!(hashes(&one.join().unwrap()), expected());
        }
    });
    assert_eq!(server.requests().iter().filter(|r| r.cdn).count(), 2, "each shard once");
}

#[test]
fn a_data_set_comes_the_same_way() {
    let repo = Repo::new(&[
        ("README.md", b"about"),
        ("en/train 0.parquet", &shard(1, 2000)),
        ("en/train 1.parquet", &shard(2, 2000)),
        ("en/test.parquet", &shard(3, 2000)),
        ("fr/train.parquet", &shard(4, 2000)),
    ]);
    let server = HubServer::start(&[("datasets/tiny/text", Repo { token: Some("secret"), ..repo })]);
    let cache = tempfile::tempdir().unwrap();
    let online = HubSettings { token: Some("secret".into()), ..settings(cache.path(), &server.endpoint) };
    server.fail_with(&[Fault::Drop(3000)]);
    let files = locate_dataset_with(&online, "tiny/text:en", &Watch::default()).unwrap();
    let found: Vec<String> = files.iter().map(|path| hex(&std::fs::read(path).unwrap())).collect();
    assert_eq!(found, [hex(&shard(1, 2000)), hex(&shard(2, 2000))]);
    assert!(files[0].ends_with(format!("datasets--tiny--text/snapshots/{COMMIT}/en/train 0.parquet")));
    let requests = server.requests();
    assert!(requests.iter().any(|r| r.cdn && r.range == Some(3000)), "{requests:?}");

    let watch = Watch::default();
    let unreachable = HubSettings { endpoint: "http://127.0.0.1:1".into(), ..online.clone() };
    assert_eq!(locate_dataset_with(&unreachable, "tiny/text:en", &watch).unwrap(), files);
    assert!(watch.warnings().contains("cached copy"), "{}", watch.warnings());
    let offline = HubSettings { offline: true, ..online.clone() };
    assert_eq!(locate_dataset_with(&offline, "tiny/text:en", &watch).unwrap(), files);
    let nobody = HubSettings { token: None, ..settings(Path::new("/nonexistent"), &server.endpoint) };
    let error = locate_dataset_with(&nobody, "tiny/text:en", &watch).unwrap_err().to_string();
    assert!(error.contains("no dataset of this name") && error.contains("HF_TOKEN"), "{error}");
    assert_eq!(server.requests().len(), 1);
}

/// The built-in model with its weights in two shards.
fn sharded_demo(cli: &Cli) -> Repo {
    let dir = cli.demo_dir();
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    let weights = candle_core::safetensors::load(dir.join("model.safetensors"), &candle_core::Device::Cpu).unwrap();
    let mut map = serde_json::Map::new();
    let mut shards = [std::collections::HashMap::new(), std::collections::HashMap::new()];
    let mut names: Vec<_> = weights.keys().cloned().collect();
    names.sort();
    for (i, name) in names.into_iter().enumerate() {
        map.insert(name.clone(), format!("model-{}.safetensors", i % 2).into());
        shards[i % 2].insert(name.clone(), weights[&name].clone());
    }
    let index = serde_json::json!({ "weight_map": map }).to_string();
    let [first, second] = shards.map(|shard| safetensors::serialize(&shard, None).unwrap());
    let mut files: Vec<(&str, Vec<u8>)> = vec![
        ("config.json", read("config.json")),
        ("tokenizer.json", read("tokenizer.json")),
        ("model.safetensors.index.json", index.into_bytes()),
        ("model-0.safetensors", first),
        ("model-1.safetensors", second),
    ];
    if dir.join("tokenizer_config.json").exists() {
        files.push(("tokenizer_config.json", read("tokenizer_config.json")));
    }
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, contents)| (*name, contents.as_slice())).collect();
    Repo { token: Some("secret"), ..Repo::new(&files) }
}

#[test]
fn info_and_run_open_a_private_sharded_model_of_the_hub() {
    let cli = Cli::new();
    let server = HubServer::start(&[("tiny/demo", sharded_demo(&cli))]);
    cli.write("token", "secret\n");
    let command = |line: &str| {
        let mut command = cli.command(line);
        command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", &server.endpoint).env("HF_HOME", cli.path(""));
        command.args(["--prompt", "the capital of France is"]).env("NO_PROXY", "127.0.0.1");
        command
    };
    let local = end(command("run demo --json")).json();
    let hub = end(command("run tiny/demo --json")).json();
    assert_eq!(hub, local, "the same weights in two shards compute the same");
    let info = |line: &str| {
        let mut info = cli.command(line);
        info.env("HF_HOME", cli.path(""));
        end(info)
    };
    let found = info("info tiny/demo --json").json();
    assert_eq!(found["weight_files"].as_array().unwrap().len(), 2, "from the cache, with HF_HUB_OFFLINE");
    assert_eq!(found["parameters"], info("info demo --json").json()["parameters"]);

    std::fs::remove_file(cli.path("token")).unwrap();
    std::fs::remove_dir_all(cli.path("hub")).unwrap();
    end(command("run tiny/demo")).error(&["tiny/demo@main", "HF_TOKEN", "hf auth login"]);
    info("info tiny/demo").error(&["without HF_HUB_OFFLINE"]);
}

#[test]
#[cfg(unix)]
fn ctrl_c_keeps_what_arrived_and_the_same_command_goes_on() {
    let cli = Cli::new();
    let server = HubServer::start(&[("tiny/demo", sharded_demo(&cli))]);
    let info = || {
        let mut command = cli.command("info tiny/demo");
        command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", &server.endpoint).env("HF_HOME", cli.path(""));
        command.env("HF_TOKEN", "secret").env("NO_PROXY", "127.0.0.1");
        command
    };
    let small = if cli.demo_dir().join("tokenizer_config.json").exists() { 4 } else { 3 };
    let mut faults = vec![Fault::Drop(usize::MAX); small];
    faults.push(Fault::Trickle);
    server.fail_with(&faults);
    let mut child = info().stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let blobs = cli.path("hub/models--tiny--demo/blobs");
    let arrived = || {
        let entries = std::fs::read_dir(&blobs).into_iter().flatten().flatten();
        entries.filter(|e| e.path().extension().is_some()).filter_map(|e| e.metadata().ok()).map(|m| m.len()).max()
    };
    let began = std::time::Instant::now();
    while arrived().unwrap_or(0) < 100_000 {
        assert!(began.elapsed().as_secs() < 60, "the download does not begin: {:?}", server.requests());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let kill = format!("kill -INT {}", child.id());
    assert!(std::process::Command::new("bash").args(["-c", &kill]).status().unwrap().success());
    let ended = child.wait().unwrap();
    let mut message = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut message).unwrap();
    assert_eq!(ended.code(), Some(2), "{message}");
    assert!(message.contains("stopped") && message.contains("run the same command again"), "{message}");
    let kept = arrived().unwrap();
    server.requests();
    end(info()).ok();
    let first = server.requests().into_iter().find(|request| request.cdn).unwrap();
    assert_eq!(first.range, Some(kept as usize));
}
