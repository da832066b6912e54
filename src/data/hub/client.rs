//! HTTP as the hub speaks it: a token that only the hub gets to see, redirects to other hosts, patience with a
//! server that is busy.

use std::cell::Cell;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use ureq::http::{HeaderMap, Response, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::HubSettings;
use crate::base::{Error, Progress, Result};

/// How often one request is made before the hub counts as down.
const ATTEMPTS: u32 = 4;
/// The wait before the second attempt; it doubles every time.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest wait, also where the server asks for more.
const LONGEST_WAIT: Duration = Duration::from_secs(20);
/// Silence for this long ends a connection, as with `huggingface_hub`.
const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_REDIRECTS: usize = 8;
/// The longest list of files that is read.
const MAX_JSON: u64 = 64 << 20;

pub(super) type Reply = Response<Body>;

/// Why there is no answer to use.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server answered with an error status.
    Refused {
        status: u16,
        /// `X-Error-Code` of the hub, or nothing.
        code: String,
        /// `X-Error-Message` of the hub, or nothing.
        message: String,
    },
    /// No answer, or a connection that broke; the same request may succeed later.
    Network(String),
    /// No certificate that can be trusted.
    Untrusted(String),
    /// An answer that no hub gives.
    Strange(String),
    /// The user stopped the work.
    Stopped,
    /// The disk failed.
    Local(Error),
}

impl Failure {
    pub(super) fn status(&self) -> Option<u16> {
        if let Self::Refused { status, .. } = self { Some(*status) } else { None }
    }

    pub(super) fn code(&self) -> &str {
        if let Self::Refused { code, .. } = self { code } else { "" }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Local(error)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused { status, message, .. } if message.is_empty() => write!(f, "the server says {status}"),
            Self::Refused { status, message, .. } => write!(f, "the server says {status}: {message}"),
            Self::Untrusted(why) => write!(f, "no trusted connection to {why}"),
            Self::Network(why) | Self::Strange(why) => f.write_str(why),
            Self::Stopped => f.write_str("stopped"),
            Self::Local(error) => error.fmt(f),
        }
    }
}

/// A connection to one hub.
pub(super) struct Client<'a> {
    agent: Agent,
    hub: Uri,
    token: Option<&'a str>,
    progress: &'a dyn Progress,
    /// Whether the server ever answered. One that never did is not asked again and again.
    reached: Cell<bool>,
}

impl<'a> Client<'a> {
    /// # Errors
    /// `Flag` when the endpoint is no address of a web server, `Io` or `Malformed` when the certificates cannot be read.
    pub(super) fn new(settings: &'a HubSettings, progress: &'a dyn Progress) -> Result<Self> {
        let endpoint = &settings.endpoint;
        let hub = Uri::from_str(endpoint).ok().filter(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
        });
        let hub = hub.ok_or_else(|| Error::Flag {
            flag: "HF_ENDPOINT",
            expected: "the address of a hub, such as https://huggingface.co".into(),
            found: format!("'{endpoint}'"),
            remedy: "unset the variable, or write the address with https://".into(),
        })?;
        let roots = match settings.certificates.as_deref().filter(|_| !settings.offline) {
            Some(path) => certificates(path)?,
            None => RootCerts::WebPki,
        };
        let agent = Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("mechinterp/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_resolve(Some(TIMEOUT))
            .timeout_connect(Some(TIMEOUT))
            .timeout_recv_response(Some(TIMEOUT))
            .timeout_per_read(Some(TIMEOUT))
            .build()
            .new_agent();
        Ok(Self { agent, hub, token: settings.token.as_deref(), progress, reached: Cell::new(false) })
    }

    /// The headers of `url` where the hub itself answers: redirects within the hub are followed, and one that leads
    /// elsewhere is the answer, because it carries what the hub knows about the file.
    pub(super) fn head(&self, url: &str) -> Result<HeaderMap, Failure> {
        Ok(self.patiently(|| self.follow(url, true, 0))?.into_parts().0.headers)
    }

    /// The contents of `url` from byte `start` on, wherever the hub keeps them.
    pub(super) fn get(&self, url: &str, start: u64) -> Result<Reply, Failure> {
        self.patiently(|| self.follow(url, false, start))
    }

    /// A JSON document.
    pub(super) fn json(&self, url: &str) -> Result<serde_json::Value, Failure> {
        let mut text = Vec::new();
        let reader = self.get(url, 0)?.into_body().into_reader();
        reader.take(MAX_JSON).read_to_end(&mut text).map_err(|e| Failure::Network(e.to_string()))?;
        serde_json::from_slice(&text).map_err(|e| Failure::Strange(format!("the answer of {url} is no JSON: {e}")))
    }

    /// Waits before attempt `attempt + 1`, at least `asked`.
    ///
    /// # Errors
    /// `Stopped` as soon as the user asks for it.
    pub(super) fn wait(&self, attempt: u32, asked: Duration) -> Result<(), Failure> {
        let mut left = (FIRST_WAIT * 2u32.saturating_pow(attempt.min(10))).max(asked).min(LONGEST_WAIT);
        while !left.is_zero() {
            if self.progress.cancelled() {
                return Err(Failure::Stopped);
            }
            let nap = left.min(Duration::from_millis(50));
            std::thread::sleep(nap);
            left -= nap;
        }
        Ok(())
    }

    fn patiently(&self, request: impl Fn() -> Result<Reply, Failure>) -> Result<Reply, Failure> {
        let mut attempt = 0;
        loop {
            let (failure, asked) = match request() {
                Ok(reply) if reply.status().as_u16() < 400 => return Ok(reply),
                Ok(reply) => (refusal(&reply), retry_after(reply.headers())),
                Err(failure) => (failure, Duration::ZERO),
            };
            let worth = match &failure {
                Failure::Refused { status, .. } => matches!(status, 408 | 429 | 500..=599),
                Failure::Network(_) => self.reached.get(),
                Failure::Untrusted(_) | Failure::Strange(_) | Failure::Stopped | Failure::Local(_) => false,
            };
            attempt += 1;
            if !worth || attempt == ATTEMPTS {
                return Err(failure);
            }
            self.wait(attempt - 1, asked)?;
        }
    }

    fn follow(&self, url: &str, head: bool, start: u64) -> Result<Reply, Failure> {
        let bad = |text: &str| Failure::Strange(format!("'{text}' is no address"));
        let mut at = Uri::from_str(url).map_err(|_| bad(url))?;
        for _ in 0..MAX_REDIRECTS {
            let mut request = if head { self.agent.head(&at) } else { self.agent.get(&at) };
            if let Some(token) = self.token.filter(|_| same_origin(&self.hub, &at)) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if start > 0 {
                request = request.header("range", format!("bytes={start}-"));
            }
            let reply = request.call().map_err(|e| unanswered(&at, &e))?;
            self.reached.set(true);
            if !matches!(reply.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(reply);
            }
            let location = text_of(reply.headers(), "location").unwrap_or_default();
            let next = join(&at, location).ok_or_else(|| bad(location))?;
            if head && !same_origin(&at, &next) {
                return Ok(reply);
            }
            at = next;
        }
        Err(Failure::Strange(format!("{url} is redirected more than {MAX_REDIRECTS} times")))
    }
}

/// The certificates in a PEM file, in place of those that come with this program.
fn certificates(path: &Path) -> Result<RootCerts> {
    let pem = std::fs::read(path).map_err(Error::io("read the trusted certificates (SSL_CERT_FILE)", path))?;
    let items = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let found: Vec<_> = items.collect();
    if found.is_empty() {
        let remedy = "set SSL_CERT_FILE to the bundle of certificates your network's proxy is signed with, or unset it";
        return Err(Error::malformed("certificate bundle", path, "certificates in PEM", "none", remedy));
    }
    Ok(RootCerts::new_with_certs(&found))
}

/// Why a request had no answer, without ureq's types in it.
fn unanswered(at: &Uri, error: &ureq::Error) -> Failure {
    let host = at.authority().map_or("the server", |authority| authority.as_str());
    match error {
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => Failure::Strange(format!("'{at}' is no address: {error}")),
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => Failure::Untrusted(format!("{host}: {error}")),
        ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::InvalidData => Failure::Untrusted(format!("{host}: {e}")),
        ureq::Error::Io(e) => Failure::Network(format!("no answer from {host}: {e}")),
        _ => Failure::Network(format!("no answer from {host}: {error}")),
    }
}

fn refusal(reply: &Reply) -> Failure {
    let header = |name| text_of(reply.headers(), name).unwrap_or_default().to_owned();
    Failure::Refused {
        status: reply.status().as_u16(),
        code: header("x-error-code"),
        message: header("x-error-message"),
    }
}

/// The value of a header, if it is text.
pub(super) fn text_of<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn retry_after(headers: &HeaderMap) -> Duration {
    let seconds = text_of(headers, "retry-after").and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(0))
}

/// Whether both addresses belong to one server, so that what one may see the other may see.
fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    let same_host = a.host().zip(b.host()).is_some_and(|(a, b)| a.eq_ignore_ascii_case(b));
    same_host && a.scheme_str() == b.scheme_str() && port(a) == port(b)
}

/// `location` as seen from `base`.
fn join(base: &Uri, location: &str) -> Option<Uri> {
    let scheme = base.scheme_str()?;
    if location.is_empty() {
        None
    } else if location.contains("://") {
        Uri::from_str(location).ok()
    } else if location.starts_with("//") {
        Uri::from_str(&format!("{scheme}:{location}")).ok()
    } else if location.starts_with('/') {
        Uri::from_str(&format!("{scheme}://{}{location}", base.authority()?)).ok()
    } else {
        let (dir, _) = base.path().rsplit_once('/')?;
        Uri::from_str(&format!("{scheme}://{}{dir}/{location}", base.authority()?)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Silent;

    #[test]
    fn redirects_are_seen_from_where_they_stand() {
        let base = Uri::from_static("https://hub.example:8443/org/name/resolve/main/a.json?x=1");
        let cases = [
            ("https://cdn.example/f?sig=1", "https://cdn.example/f?sig=1"),
            ("//cdn.example/f", "https://cdn.example/f"),
            ("/new/name", "https://hub.example:8443/new/name"),
            ("b.json", "https://hub.example:8443/org/name/resolve/main/b.json"),
        ];
        for (location, expected) in cases {
            assert_eq!(join(&base, location).unwrap().to_string(), expected);
        }
        assert!(join(&base, "").is_none());
    }

    #[test]
    fn another_scheme_host_or_port_is_another_server() {
        let hub = Uri::from_static("https://hub.example");
        for same in ["https://hub.example/a", "https://HUB.example:443/"] {
            assert!(same_origin(&hub, &Uri::from_static(same)), "{same}");
        }
        for other in
            ["http://hub.example", "https://hub.example:444", "https://hub.example.evil", "https://cdn.example"]
        {
            assert!(!same_origin(&hub, &Uri::from_static(other)), "{other}");
        }
    }

    #[test]
    fn an_endpoint_without_a_scheme_is_refused() {
        let mut settings = HubSettings { endpoint: "https://hub.example".into(), ..HubSettings::from_env() };
        settings.certificates = None;
        assert!(Client::new(&settings, &Silent).is_ok());
        for bad in ["hub.example", "", "ftp://hub.example", "https://"] {
            let settings = HubSettings { endpoint: bad.into(), ..settings.clone() };
            let error = Client::new(&settings, &Silent).err().unwrap().to_string();
            assert!(error.contains("HF_ENDPOINT"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_file_of_certificates_without_any_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bundle.pem");
        std::fs::write(&path, "no certificate").unwrap();
        let settings = HubSettings { certificates: Some(path), offline: false, ..HubSettings::from_env() };
        let error = Client::new(&settings, &Silent).err().unwrap().to_string();
        assert!(error.contains("SSL_CERT_FILE"), "{error}");
        assert!(Client::new(&HubSettings { offline: true, ..settings }, &Silent).is_ok(), "nobody is asked offline");
    }
}
