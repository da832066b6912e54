//! A page that is a program: one file that opens offline, with its script and the data that it reads.

use std::io::Write;

use sha2::{Digest, Sha256};

use super::{block, page};

/// What all files of one kind of page have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Application {
    /// Its look.
    pub(super) style: &'static str,
    /// From `<body>` to where the data begins.
    pub(super) body: &'static str,
    /// What runs.
    pub(super) script: &'static str,
}

impl Application {
    /// Writes the document. The blocks `first` stand before the script, so that it works while `rest` is being read.
    pub(super) fn write<'a, A: AsRef<str>, B: AsRef<str>>(
        &self,
        out: &mut impl Write,
        title: &str,
        first: impl IntoIterator<Item = (A, &'a [u8])>,
        rest: impl IntoIterator<Item = (B, &'a [u8])>,
    ) -> std::io::Result<()> {
        // The browser runs this script and no other, and refuses every request.
        let hash = block::base64(&Sha256::digest(self.script.as_bytes()));
        let head = page::head(title, &format!("{}; script-src 'sha256-{hash}'", page::POLICY), &[self.style]);
        write!(out, "<!doctype html>\n<html lang=\"en\">{head}\n{}", self.body)?;
        for (name, data) in first {
            block::write(out, name.as_ref(), data)?;
        }
        writeln!(out, "<script>{}</script>", self.script)?;
        for (name, data) in rest {
            block::write(out, name.as_ref(), data)?;
        }
        out.write_all(b"</body></html>\n")?;
        out.flush()
    }
}
