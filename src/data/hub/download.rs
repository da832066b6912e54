//! One file from the hub to the disk: what is there already is kept, what arrives is checked.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use ureq::http::HeaderMap;

use super::client::{Client, Failure, text_of};
use crate::base::{Error, Progress, Unit};

/// Broken connections in a row, none of which brought a byte, after which the download fails.
const FRUITLESS: u32 = 4;
const BLOCK: usize = 256 << 10;

/// What the hub says about a file before it is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Announced {
    /// The name of the contents: SHA-256 for large files, a git hash for others.
    pub(super) etag: String,
    pub(super) size: Option<u64>,
    pub(super) commit: Option<String>,
}

impl Announced {
    /// Reads the headers that the hub sends with a file or with the redirect to it.
    pub(super) fn from_headers(headers: &HeaderMap) -> Result<Self, Failure> {
        let etag = text_of(headers, "x-linked-etag").or_else(|| text_of(headers, "etag"));
        let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned());
        let plain = |etag: &String| {
            (1..=128).contains(&etag.len()) && etag.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
        };
        let etag = etag.filter(plain).ok_or_else(|| {
            Failure::Strange("the server names no ETag, so it is neither a Hugging Face hub nor a mirror of one".into())
        })?;
        let linked = text_of(headers, "x-linked-size");
        let own = || text_of(headers, "content-length").filter(|_| !headers.contains_key("location"));
        let size = linked.or_else(own).and_then(|text| text.parse().ok());
        Ok(Self { etag, size, commit: text_of(headers, "x-repo-commit").map(str::to_owned) })
    }

    /// The SHA-256 of the contents, where the entity tag is one.
    fn sha256(&self) -> Option<&str> {
        Some(self.etag.as_str()).filter(|etag| etag.len() == 64 && etag.chars().all(|c| c.is_ascii_hexdigit()))
    }
}

/// The beginning of a file on disk, with what is needed to check the whole.
struct Part {
    path: PathBuf,
    file: File,
    len: u64,
    hasher: Option<Sha256>,
}

impl Part {
    /// Opens what an earlier download left, or an empty file.
    fn open(path: PathBuf, announced: &Announced) -> Result<Self, Error> {
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let file = file.map_err(Error::io("open the part of a download", &path))?;
        let mut part = Self { path, file, len: 0, hasher: announced.sha256().map(|_| Sha256::new()) };
        part.len = part.file.metadata().map_err(Error::io("look at the part of a download", &part.path))?.len();
        if announced.size.is_none_or(|size| part.len > size) {
            part.clear()?;
        }
        if let Some(hasher) = &mut part.hasher {
            std::io::copy(&mut part.file, hasher).map_err(Error::io("read the part of a download", &part.path))?;
        }
        part.file.seek(SeekFrom::End(0)).map_err(Error::io("go on with the part of a download", &part.path))?;
        Ok(part)
    }

    fn clear(&mut self) -> Result<(), Error> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(Error::io("begin the download again", &self.path))?;
        self.len = 0;
        self.hasher = self.hasher.as_ref().map(|_| Sha256::new());
        Ok(())
    }

    fn append(&mut self, block: &[u8]) -> Result<(), Error> {
        self.file.write_all(block).map_err(Error::io("write the download", &self.path))?;
        self.len += block.len() as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(block);
        }
        Ok(())
    }

    /// What is wrong with the finished part, if anything.
    fn flaw(&mut self, announced: &Announced) -> Option<String> {
        if let Some(size) = announced.size.filter(|size| *size != self.len) {
            return Some(format!("{} bytes arrived where the hub announced {size}", self.len));
        }
        let found = format!("{:x}", self.hasher.take()?.finalize());
        let expected = announced.sha256()?;
        (!found.eq_ignore_ascii_case(expected))
            .then(|| format!("what arrived has SHA-256 {found} where the hub announced {expected}"))
    }
}

/// Fetches `url` into `blob`, continuing `blob.incomplete`. The file appears under its name only when its length and,
/// where the hub tells it, its SHA-256 are right.
pub(super) fn download(
    client: &Client<'_>,
    url: &str,
    announced: &Announced,
    blob: &Path,
    label: &str,
    progress: &dyn Progress,
) -> Result<(), Failure> {
    let mut name = blob.as_os_str().to_owned();
    name.push(".incomplete");
    let partial = PathBuf::from(name);
    progress.begin(&format!("downloading {label}"), announced.size.unwrap_or(0), Unit::Bytes);
    let done = fetch_checked(client, url, announced, &partial, progress);
    progress.end();
    done?;
    fs::rename(&partial, blob).map_err(Error::io("name the finished download", blob))?;
    Ok(())
}

fn fetch_checked(
    client: &Client<'_>,
    url: &str,
    announced: &Announced,
    partial: &Path,
    progress: &dyn Progress,
) -> Result<(), Failure> {
    loop {
        let mut part = Part::open(partial.into(), announced)?;
        let continued = part.len > 0;
        progress.set(part.len);
        fill(client, url, announced, &mut part, progress)?;
        part.file.sync_all().map_err(Error::io("write the download", partial))?;
        let Some(flaw) = part.flaw(announced) else { return Ok(()) };
        drop(part);
        fs::remove_file(partial).map_err(Error::io("remove a damaged download", partial))?;
        if !continued {
            return Err(Failure::Strange(flaw));
        }
        progress.warn("the earlier part of the download was damaged; it begins again");
    }
}

/// Appends to `part` until it is as long as the hub announced, over as many connections as it takes.
fn fill(
    client: &Client<'_>,
    url: &str,
    announced: &Announced,
    part: &mut Part,
    progress: &dyn Progress,
) -> Result<(), Failure> {
    let mut fruitless = 0;
    while announced.size.is_none_or(|size| part.len < size) {
        let before = part.len;
        let broken = match receive(client, url, part, progress) {
            Ok(()) if announced.size.is_none() => return Ok(()),
            Ok(()) => Failure::Network("the connection ended early".into()),
            Err(Failure::Network(why)) => Failure::Network(why),
            Err(other) => return Err(other),
        };
        if part.len > before {
            fruitless = 0;
            continue;
        }
        fruitless += 1;
        if fruitless == FRUITLESS {
            return Err(broken);
        }
        client.wait(fruitless - 1, Duration::ZERO)?;
        if announced.size.is_none() {
            part.clear()?;
        }
    }
    Ok(())
}

/// One connection's worth of the file.
fn receive(client: &Client<'_>, url: &str, part: &mut Part, progress: &dyn Progress) -> Result<(), Failure> {
    let reply = client.get(url, part.len)?;
    if part.len > 0 && range_start(&reply) != Some(part.len) {
        // The server ignored the range, or answered another one.
        part.clear()?;
        progress.set(0);
        if reply.status().as_u16() == 206 {
            return Ok(());
        }
    }
    let mut reader = reply.into_body().into_reader();
    let mut block = vec![0; BLOCK];
    loop {
        if progress.cancelled() {
            return Err(Failure::Stopped);
        }
        let n = reader.read(&mut block).map_err(|e| Failure::Network(format!("the connection broke: {e}")))?;
        if n == 0 {
            return Ok(());
        }
        part.append(&block[..n])?;
        progress.advance(n as u64);
    }
}

/// The first byte of a partial answer; `None` for a whole one.
fn range_start(reply: &super::client::Reply) -> Option<u64> {
    let range = text_of(reply.headers(), "content-range").filter(|_| reply.status().as_u16() == 206)?;
    range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_redirect_announces_the_file_it_leads_to() {
        let sha = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        let reply = headers(&[
            ("etag", "\"of-the-redirect\""),
            ("x-linked-etag", "\"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\""),
            ("x-linked-size", "4"),
            ("content-length", "1234"),
            ("location", "https://cdn.example/x"),
            ("x-repo-commit", "abc"),
        ]);
        let announced = Announced::from_headers(&reply).unwrap();
        assert_eq!(
            (announced.sha256(), announced.size, announced.commit.as_deref()),
            (Some(sha), Some(4), Some("abc"))
        );
        let plain = Announced::from_headers(&headers(&[("etag", "W/\"12ab\""), ("content-length", "7")])).unwrap();
        assert_eq!((plain.etag.as_str(), plain.sha256(), plain.size), ("12ab", None, Some(7)));
        for bad in ["../x", "", "a/b"] {
            assert!(Announced::from_headers(&headers(&[("etag", bad)])).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_part_is_checked_against_what_was_announced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.incomplete");
        let etag = format!("{:x}", Sha256::digest(b"whole"));
        let announced = Announced { etag, size: Some(5), commit: None };
        std::fs::write(&path, "who").unwrap();
        let mut part = Part::open(path.clone(), &announced).unwrap();
        assert_eq!(part.len, 3, "the part is kept");
        part.append(b"le").unwrap();
        assert_eq!(part.flaw(&announced), None);
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");

        for (contents, expected) in [("whose", "SHA-256"), ("whol", "4 bytes arrived where the hub announced 5")] {
            std::fs::write(&path, contents).unwrap();
            let flaw = Part::open(path.clone(), &announced).unwrap().flaw(&announced).unwrap();
            assert!(flaw.contains(expected), "{flaw}");
        }
        std::fs::write(&path, "longer than announced").unwrap();
        assert_eq!(Part::open(path, &announced).unwrap().len, 0, "too long a part is of another file");
    }
}
