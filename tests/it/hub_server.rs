//! A small Hugging Face hub on the loopback interface, with a second server that large files are redirected to.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest, Sha256};

/// The commit that `main` of every repository stands at first.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One repository.
#[derive(Clone, Default)]
pub(crate) struct Repo {
    /// Commit by branch or tag.
    pub(crate) revisions: BTreeMap<String, String>,
    /// Contents by commit and file name.
    pub(crate) commits: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// The token that may read it; anyone may without.
    pub(crate) token: Option<&'static str>,
    /// Whether the token's owner has yet to accept the licence.
    pub(crate) gated: bool,
}

impl Repo {
    /// `main` at [`COMMIT`] with these files.
    pub(crate) fn new(files: &[(&str, &[u8])]) -> Self {
        Self::default().with_revision("main", COMMIT, files)
    }

    pub(crate) fn with_revision(mut self, name: &str, commit: &str, files: &[(&str, &[u8])]) -> Self {
        self.revisions.insert(name.into(), commit.into());
        let files = files.iter().map(|(name, contents)| ((*name).to_owned(), contents.to_vec())).collect();
        self.commits.insert(commit.into(), files);
        self
    }
}

/// Something that goes wrong with one answer, in the order of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The connection breaks after so many bytes of a file's contents.
    Drop(usize),
    /// The contents come in pieces of 64 KiB, twenty a second.
    Trickle,
    /// One byte of the contents is another.
    Corrupt,
    /// An answer with this status and nothing else.
    Status(u16),
    /// The whole contents although a part was asked for.
    IgnoreRange,
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) cdn: bool,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) range: Option<usize>,
    pub(crate) authorization: Option<String>,
}

#[derive(Default)]
struct State {
    repos: HashMap<String, Repo>,
    requests: Vec<Request>,
    /// Faults of requests for file contents; requests for the listing and for headers are answered well.
    faults: Vec<Fault>,
    /// Whether the server knows no listings, as plain mirrors.
    mirror: bool,
    cdn: String,
}

/// Both servers.
pub(crate) struct HubServer {
    pub(crate) endpoint: String,
    state: Arc<Mutex<State>>,
}

impl HubServer {
    pub(crate) fn start(repos: &[(&str, Repo)]) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        state.lock().unwrap().repos = repos.iter().map(|(name, repo)| ((*name).to_owned(), repo.clone())).collect();
        let endpoint = listen(&state, false);
        let cdn = listen(&state, true);
        state.lock().unwrap().cdn = cdn;
        Self { endpoint, state }
    }

    pub(crate) fn change(&self, name: &str, change: impl FnOnce(&mut Repo)) {
        change(self.state.lock().unwrap().repos.get_mut(name).unwrap());
    }

    pub(crate) fn fail_with(&self, faults: &[Fault]) {
        self.state.lock().unwrap().faults = faults.iter().rev().copied().collect();
    }

    pub(crate) fn without_listings(self) -> Self {
        self.state.lock().unwrap().mirror = true;
        self
    }

    /// The requests since the last call.
    pub(crate) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }
}

fn listen(state: &Arc<Mutex<State>>, cdn: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let state = Arc::clone(state);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let state = Arc::clone(&state);
            std::thread::spawn(move || answer(stream, &state, cdn));
        }
    });
    address
}

fn read_request(stream: &TcpStream, cdn: bool) -> Option<Request> {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut request = Request { cdn, method, path, range: None, authorization: None };
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim().split_once(": ") else { return Some(request) };
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = value.strip_prefix("bytes=")?.split('-').next()?.parse().ok(),
            "authorization" => request.authorization = Some(value.to_owned()),
            _ => {}
        }
    }
}

/// A reply before it is written.
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Reply {
    fn error(status: u16, code: &str) -> Self {
        let headers = if code.is_empty() { Vec::new() } else { vec![("X-Error-Code", code.to_owned())] };
        Self { status, headers, body: Vec::new() }
    }
}

fn answer(mut stream: TcpStream, state: &Mutex<State>, cdn: bool) {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let Some(request) = read_request(&stream, cdn) else { return };
    let (mut reply, mut fault) = (Reply::error(404, ""), None);
    {
        let mut state = state.lock().unwrap();
        state.requests.push(request.clone());
        if cdn {
            reply = contents(&state, request.path.trim_start_matches('/'));
        } else {
            reply = hub(&state, &request).unwrap_or(reply);
        }
        if reply.status == 200 && request.method == "GET" && !request.path.starts_with("/api/") {
            fault = state.faults.pop();
        }
    }
    let whole = reply.body.len();
    match (fault, request.range.filter(|_| reply.status == 200)) {
        (Some(Fault::Status(status)), _) => reply = Reply::error(status, ""),
        (Some(Fault::IgnoreRange), _) | (_, None) => {}
        (_, Some(start)) if start >= whole => reply = Reply::error(416, ""),
        (_, Some(start)) => {
            reply.status = 206;
            reply.body.drain(..start);
            reply.headers.push(("Content-Range", format!("bytes {start}-{}/{whole}", whole - 1)));
        }
    }
    let length = ("Content-Length", reply.body.len().to_string());
    let headers = reply.headers.iter().chain([&length]).map(|(name, value)| format!("{name}: {value}\r\n"));
    let head = format!("HTTP/1.1 {} -\r\nConnection: close\r\n{}", reply.status, headers.collect::<String>());
    let sent = match fault {
        Some(Fault::Drop(n)) => n.min(reply.body.len()),
        _ if request.method == "HEAD" => 0,
        _ => reply.body.len(),
    };
    if let (Some(Fault::Corrupt), Some(last)) = (fault, reply.body.last_mut()) {
        *last ^= 1;
    }
    // The client may have gone away, as one that is stopped does.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(b"\r\n"));
    let piece = if fault == Some(Fault::Trickle) { 64 << 10 } else { usize::MAX };
    for (i, piece) in reply.body[..sent].chunks(piece).enumerate() {
        if i > 0 {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = stream.write_all(piece);
    }
}

/// The contents of the file with this SHA-256.
fn contents(state: &State, sha: &str) -> Reply {
    let all = state.repos.values().flat_map(|repo| repo.commits.values()).flat_map(BTreeMap::values);
    match all.into_iter().find(|contents| hex(contents) == sha) {
        Some(contents) => Reply { status: 200, headers: Vec::new(), body: contents.clone() },
        None => Reply::error(403, ""),
    }
}

fn hub(state: &State, request: &Request) -> Option<Reply> {
    let path = request.path.trim_start_matches('/');
    let (name, rest) = if let Some(rest) = path.strip_prefix("api/") {
        let rest = rest.strip_prefix("models/").unwrap_or(rest);
        let at = rest.find("/re")?;
        (rest[..at].to_owned(), &rest[at + 1..])
    } else {
        let at = path.find("/resolve/")?;
        (path[..at].to_owned(), &path[at + 1..])
    };
    let Some(repo) = state.repos.get(&name) else { return Some(Reply::error(401, "RepoNotFound")) };
    if repo.token.is_some_and(|token| request.authorization.as_deref() != Some(&format!("Bearer {token}"))) {
        return Some(Reply::error(401, "RepoNotFound"));
    }
    if path.starts_with("api/") && state.mirror {
        return None;
    }
    if rest == "refs" {
        let names: Vec<_> = repo.revisions.keys().map(|name| serde_json::json!({ "name": name })).collect();
        return Some(json(&serde_json::json!({ "branches": names, "tags": [], "converts": [] })));
    }
    let (kind, rest) = rest.split_once('/')?;
    let (revision, file) =
        if kind == "revision" { (rest, None) } else { rest.split_once('/').map(|(r, f)| (r, Some(f)))? };
    let revision = revision.replace("%2F", "/");
    let commit =
        repo.revisions.get(&revision).cloned().or_else(|| repo.commits.contains_key(&revision).then_some(revision));
    let Some(commit) = commit else { return Some(Reply::error(404, "RevisionNotFound")) };
    let files = &repo.commits[&commit];
    let Some(file) = file else {
        let listed: Vec<_> = files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        return Some(json(&serde_json::json!({ "id": name, "sha": commit, "siblings": listed })));
    };
    if repo.gated {
        return Some(Reply::error(403, "GatedRepo"));
    }
    let commit_header = ("X-Repo-Commit", commit.clone());
    let Some(body) = files.get(&file.replace("%20", " ")) else {
        let mut reply = Reply::error(404, "EntryNotFound");
        reply.headers.push(commit_header);
        return Some(reply);
    };
    let large = [".safetensors", ".bin", ".parquet", ".gguf"].iter().any(|end| file.ends_with(end));
    Some(if large {
        let sha = hex(body);
        Reply {
            status: 302,
            headers: vec![
                commit_header,
                ("Location", format!("{}/{sha}", state.cdn)),
                ("X-Linked-Etag", format!("\"{sha}\"")),
                ("X-Linked-Size", body.len().to_string()),
                ("ETag", "\"of the redirect\"".into()),
            ],
            body: Vec::new(),
        }
    } else {
        let etag = format!("\"{}\"", &hex(body)[..40]);
        Reply { status: 200, headers: vec![commit_header, ("ETag", etag)], body: body.clone() }
    })
}

fn json(value: &serde_json::Value) -> Reply {
    Reply { status: 200, headers: Vec::new(), body: value.to_string().into_bytes() }
}

pub(crate) fn hex(contents: &[u8]) -> String {
    format!("{:x}", Sha256::digest(contents))
}
