//! Data inside a page: zlib in base64, in script elements of a type that browsers do not run.

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// Input bytes that are encoded at once, a multiple of three.
const PIECE: usize = 3 << 14;

/// `data`, deflated.
pub(super) fn deflated(data: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = ZlibEncoder::new(Vec::with_capacity(data.len() / 2), Compression::new(7));
    encoder.write_all(data)?;
    encoder.finish()
}

/// Writes the deflated `data` as the block `name`, a word of this program.
pub(super) fn write(out: &mut impl Write, name: &str, data: &[u8]) -> std::io::Result<()> {
    write!(out, "<script type=\"text/plain\" id=\"block-{name}\">")?;
    for piece in data.chunks(PIECE) {
        out.write_all(base64(piece).as_bytes())?;
    }
    out.write_all(b"</script>\n")
}

/// RFC 4648, with padding.
pub(super) fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for part in bytes.chunks(3) {
        let byte = |i: usize| u32::from(part.get(i).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let sextet = bits >> (18 - 6 * digit) & 63;
            text.push(if digit > part.len() { '=' } else { char::from(ALPHABET[sextet as usize]) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn long_blocks_are_one_text() {
        let data: Vec<u8> = (0..PIECE * 2 + 7).map(|i| (i * i % 251) as u8).collect();
        let mut out = Vec::new();
        write(&mut out, "x", &data).unwrap();
        let text = String::from_utf8(out).unwrap();
        let inner = text.split_once('>').unwrap().1.split_once('<').unwrap().0;
        assert_eq!(inner, base64(&data));
        let mut inflated = Vec::new();
        flate2::read::ZlibDecoder::new(&deflated(&data).unwrap()[..]).read_to_end(&mut inflated).unwrap();
        assert_eq!(inflated, data);
    }
}
