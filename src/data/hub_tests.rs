use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::base::Silent;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const INDEX_JSON: &str = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
const FILES: [(&str, &str); 5] = [
    ("config.json", "{\"model_type\": \"llama\"}"),
    ("tokenizer.json", "{}"),
    ("model.safetensors.index.json", INDEX_JSON),
    ("model-1.safetensors", "weights one"),
    ("model-2.safetensors", "weights two"),
];

/// A hub on the loopback interface with one model, `tiny/model`, that counts the requests it gets.
fn serve(listing: bool) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = requests.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            counter.fetch_add(1, Ordering::SeqCst);
            answer(stream, listing);
        }
    });
    (endpoint, requests)
}

fn answer(mut stream: TcpStream, listing: bool) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut request, mut start) = (String::new(), 0);
    reader.read_line(&mut request).unwrap();
    let mut end = usize::MAX;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header).unwrap() <= 2 {
            break;
        }
        if let Some(range) = header.to_ascii_lowercase().strip_prefix("range: bytes=") {
            let (from, to) = range.trim().split_once('-').unwrap();
            start = from.parse().unwrap();
            end = to.parse().map_or(usize::MAX, |to: usize| to + 1);
        }
    }
    let path = request.split(' ').nth(1).unwrap();
    let listed: Vec<_> = FILES.iter().map(|(name, _)| serde_json::json!({"rfilename": name})).collect();
    let info = serde_json::json!({"sha": COMMIT, "siblings": listed}).to_string();
    let file = path.strip_prefix("/tiny/model/resolve/").and_then(|rest| rest.split_once('/'));
    let body = match file {
        None if listing && path == "/api/models/tiny/model/revision/main" => Some(info.as_str()),
        Some((_, name)) => FILES.iter().find(|f| f.0 == name).map(|f| f.1),
        None => None,
    };
    let reply = match body {
        None if path.contains("gated") => {
            "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".into()
        }
        None => "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".into(),
        Some(body) => {
            let part = &body[start.min(body.len())..end.min(body.len())];
            let etag = blake3::hash(body.as_bytes()).to_hex();
            format!(
                "HTTP/1.1 206 Partial Content\r\ncontent-length: {}\r\nx-repo-commit: {COMMIT}\r\netag: \"{etag}\"\r\n\
                 content-range: bytes {start}-{}/{}\r\nconnection: close\r\n\r\n{part}",
                part.len(),
                start + part.len().max(1) - 1,
                body.len()
            )
        }
    };
    stream.write_all(reply.as_bytes()).unwrap();
}

fn settings(cache: &Path, endpoint: &str, offline: bool) -> HubSettings {
    HubSettings { cache: cache.into(), endpoint: endpoint.into(), token: None, offline }
}

fn names(files: &ModelFiles) -> Vec<String> {
    files.weights.iter().map(|p| std::fs::read_to_string(p).unwrap()).collect()
}

#[test]
fn a_model_is_downloaded_once_and_then_found_without_the_network() {
    for listing in [true, false] {
        let cache = tempfile::tempdir().unwrap();
        let (endpoint, requests) = serve(listing);
        let online = settings(cache.path(), &endpoint, false);
        let files = locate_model_with(&online, "tiny/model", &Silent).unwrap();
        assert_eq!(names(&files), ["weights one", "weights two"]);
        assert_eq!((files.tokenizer_config.as_ref(), files.dir_or_name.as_str()), (None, "tiny/model"));
        let before = requests.load(Ordering::SeqCst);
        assert!(before > 5, "the server was asked");
        let offline = settings(cache.path(), "http://127.0.0.1:1", true);
        assert_eq!(locate_model_with(&offline, "tiny/model", &Silent).unwrap(), files);
        assert_eq!(locate_model_with(&online, "tiny/model", &Silent).unwrap(), files);
        let pinned = format!("tiny/model@{COMMIT}");
        assert_eq!(locate_model_with(&offline, &pinned, &Silent).unwrap().weights, files.weights);
        assert_eq!(requests.load(Ordering::SeqCst), before, "a complete cache needs no request");

        std::fs::remove_file(&files.weights[1]).unwrap();
        let error = locate_model_with(&offline, "tiny/model", &Silent).unwrap_err().to_string();
        assert!(error.contains("model-2.safetensors") && error.contains("hf download tiny/model"), "{error}");
        assert_eq!(locate_model_with(&online, "tiny/model", &Silent).unwrap(), files, "only the missing file comes");
    }
}

#[test]
fn what_is_not_there_says_what_to_do() {
    let cache = tempfile::tempdir().unwrap();
    let (endpoint, _) = serve(true);
    let online = settings(cache.path(), &endpoint, false);
    let offline = settings(cache.path(), &endpoint, true);
    let unreachable = settings(cache.path(), "http://127.0.0.1:1", false);
    let cases = [
        (&online, "tiny/other", "check the spelling"),
        (&online, "tiny/gated", "HF_TOKEN"),
        (&offline, "tiny/model", "without HF_HUB_OFFLINE"),
        (&unreachable, "tiny/model", "HF_ENDPOINT"),
        (&online, "gpt2", "openai-community/gpt2"),
        (&online, "./no/such/dir", "check the path"),
        (&online, "a/b/c", "org/name"),
    ];
    for (settings, reference, expected) in cases {
        let error = locate_model_with(settings, reference, &Silent).unwrap_err().to_string();
        assert!(error.contains(expected), "{reference}: {error}");
    }
}

#[test]
fn the_hash_of_the_weights_depends_on_every_shard() {
    let dir = tempfile::tempdir().unwrap();
    for (name, contents) in FILES {
        std::fs::write(dir.path().join(name), contents).unwrap();
    }
    let reference = dir.path().to_str().unwrap();
    let files = locate_model(reference, &Silent).unwrap();
    let before = files.weights_hash().unwrap();
    std::fs::write(dir.path().join("model-2.safetensors"), "other").unwrap();
    assert_ne!(files.weights_hash().unwrap(), before);
}
