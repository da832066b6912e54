//! Damage that knows what it damages.

use mechinterp::base::zip;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::pick;
use crate::targets::Seed;

/// Words that mean something to one parser or another.
const WORDS: &[&[u8]] = &[
    b"null",
    b"true",
    b"-1",
    b"0",
    b"1e999",
    b"18446744073709551615",
    b"9223372036854775807",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b",",
    b":",
    b"[[[[[[[[[[[[[[[[",
    b"'shape': (",
    b"(1000000, 1000000)",
    b"(0, 24)",
    b"'<f8'",
    b"'|O'",
    b"True",
    b"\"F32\"",
    b"\"I64\"",
    b"[0,18446744073709551615]",
    b"data_offsets",
    b"__metadata__",
    b"cos\nsystem\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"(",
    b")",
    b"t",
    b"R",
    b"Q",
    b"}",
    b"u",
    b"q\x00",
    b"h\x00",
    b"X\xff\xff\xff\x7f",
    b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"J\xff\xff\xff\x7f",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"0",
    b"2",
    b".",
    b"FloatStorage",
    b"LongStorage",
    b"BoolStorage",
    b"PK\x01\x02",
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"PK\x06\x06",
    b"PK\x06\x07",
    b"\xff\xff\xff\xff",
    b"\x08\x00",
    b"\x00\x00",
    b"PAR1",
    b"\x15\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
];

/// A damaged version of `seed`.
pub(crate) fn mutate(seed: &Seed, seeds: &[Seed], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let other = &pick(seeds, rng).whole;
    let inside = rng.random_bool(0.8);
    let mut bytes = seed.whole.clone();
    let archive = bytes.starts_with(b"PK");
    let tensors = seed.file.extension().is_some_and(|e| e == "safetensors");
    if inside && archive {
        bytes = archived(&bytes, other, rng);
    } else if inside && tensors {
        bytes = headed(&bytes, other, rng);
    } else {
        damage(&mut bytes, other, rng);
    }
    bytes
}

/// A few changes anywhere.
fn damage(bytes: &mut Vec<u8>, other: &[u8], rng: &mut ChaCha8Rng) {
    for _ in 0..1 << rng.random_range(0..4) {
        once(bytes, other, rng);
    }
}

fn once(bytes: &mut Vec<u8>, other: &[u8], rng: &mut ChaCha8Rng) {
    let len = bytes.len();
    let at = rng.random_range(0..=len);
    let run = rng.random_range(0..=64.min(len - at));
    match rng.random_range(0..10) {
        0 if at < len => bytes[at] ^= 1 << rng.random_range(0..8),
        1 if at < len => bytes[at] = *pick(&[0, 1, 0x7f, 0x80, 0xff, b'0', b'9', b'"'], rng),
        2 => drop(bytes.drain(at..at + run)),
        3 => {
            let copy = bytes[at..at + run].to_vec();
            bytes.splice(at..at, copy);
        }
        4 => bytes.truncate(at),
        5 => drop(bytes.splice(at..at, pick(WORDS, rng).iter().copied())),
        6 => {
            let word = pick(WORDS, rng);
            let end = (at + word.len()).min(len);
            bytes.splice(at..end, word.iter().copied());
        }
        7 => {
            // A little-endian number made extreme or shifted by a little.
            let width = *pick(&[2, 4, 8], rng);
            if let Some(number) = bytes.get_mut(at..at + width) {
                let extreme = *pick(&[0, 1, u64::MAX, 1 << 31, 1 << 40, 1 << 62, (1 << 63) - 1], rng);
                number.copy_from_slice(&extreme.to_le_bytes()[..width]);
            }
        }
        8 if !other.is_empty() => {
            let from = rng.random_range(0..other.len());
            let to = (from + rng.random_range(1..=128)).min(other.len());
            bytes.splice(at..at + run, other[from..to].iter().copied());
        }
        _ => digits(bytes, rng),
    }
}

/// Replaces a decimal number somewhere by another.
fn digits(bytes: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    let starts: Vec<usize> = (0..bytes.len())
        .filter(|&i| bytes[i].is_ascii_digit() && (i == 0 || !bytes[i - 1].is_ascii_digit()))
        .take(512)
        .collect();
    if starts.is_empty() {
        return;
    }
    let start = *pick(&starts, rng);
    let end = (start..bytes.len()).find(|&i| !bytes[i].is_ascii_digit()).unwrap_or(bytes.len());
    let number =
        *pick(&["0", "1", "7", "23", "25", "65537", "4294967296", "1000000000000", "99999999999999999999"], rng);
    bytes.splice(start..end, number.bytes());
}

/// Damages the JSON header of a safetensors file and repairs its length, or damages the numbers.
fn headed(file: &[u8], other: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut file = file.to_vec();
    let Some((length, rest)) = file.split_at_checked(8) else { return file };
    let length = length.iter().rev().fold(0usize, |n, byte| n << 8 | usize::from(*byte)).min(rest.len());
    let (header, numbers) = rest.split_at(length);
    let (mut header, mut numbers) = (header.to_vec(), numbers.to_vec());
    if rng.random_bool(0.2) {
        once(&mut numbers, other, rng);
    } else {
        damage(&mut header, other, rng);
    }
    file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(numbers);
    file
}

/// Damages one member of an archive and writes the archive anew, with the right checksums and, at random, deflated.
fn archived(file: &[u8], other: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let Ok(members) = zip::members(file) else { return file.to_vec() };
    let mut parts: Vec<(String, Vec<u8>)> = Vec::new();
    for (name, member) in members {
        let Ok(contents) = member.read(file) else { return file.to_vec() };
        parts.push((name, contents.into_owned()));
    }
    let described: Vec<usize> = (0..parts.len())
        .filter(|&i| parts[i].0.ends_with("data.pkl") || parts[i].0.strip_suffix(".npy").is_some())
        .collect();
    let chosen = if described.is_empty() || rng.random_bool(0.1) {
        rng.random_range(0..parts.len())
    } else {
        *pick(&described, rng)
    };
    let (name, contents) = &mut parts[chosen];
    if contents.starts_with(b"\x93NUMPY") && rng.random_bool(0.8) {
        let start = 10.min(contents.len());
        let end = contents.iter().position(|&byte| byte == b'\n').unwrap_or(start).max(start);
        let mut header = contents[start..end].to_vec();
        damage(&mut header, other, rng);
        let mut whole = contents[..start].to_vec();
        if let Some(length) = whole.get_mut(8..10) {
            length.copy_from_slice(&(header.len() as u16 + 1).to_le_bytes());
        }
        whole.extend(header);
        whole.extend(&contents[end..]);
        *contents = whole;
    } else if rng.random_bool(0.02) {
        // What a bomb unpacks to.
        *contents = vec![0; 1 << 23];
    } else {
        damage(contents, other, rng);
    }
    if rng.random_bool(0.02) {
        name.push('x');
    }
    let deflated = rng.random_bool(0.2);
    let mut out = archive(&parts, deflated);
    if rng.random_bool(0.1) {
        once(&mut out, other, rng);
    }
    out
}

fn archive(parts: &[(String, Vec<u8>)], deflated: bool) -> Vec<u8> {
    use std::io::Write;
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, contents) in parts {
        let mut crc = flate2::Crc::new();
        crc.update(contents);
        let stored = if deflated {
            let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(contents).unwrap();
            encoder.finish().unwrap()
        } else {
            contents.clone()
        };
        let method = if deflated { 8u16 } else { 0 };
        let mut fields = method.to_le_bytes().to_vec();
        fields.extend([0; 4]);
        for field in [crc.sum(), stored.len() as u32, contents.len() as u32] {
            fields.extend(field.to_le_bytes());
        }
        fields.extend((name.len() as u16).to_le_bytes());
        fields.extend([0; 2]);
        directory.extend(b"PK\x01\x02\x14\x00\x14\x00\x00\x00");
        directory.extend(&fields);
        directory.extend([0; 10]);
        directory.extend((out.len() as u32).to_le_bytes());
        directory.extend(name.bytes());
        out.extend(b"PK\x03\x04\x14\x00\x00\x00");
        out.extend(&fields);
        out.extend(name.bytes());
        out.extend(&stored);
    }
    let (at, count) = (out.len() as u32, parts.len() as u16);
    let length = directory.len() as u32;
    out.extend(directory);
    out.extend(b"PK\x05\x06\x00\x00\x00\x00");
    out.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    out.extend([length.to_le_bytes(), at.to_le_bytes()].concat());
    out.extend([0, 0]);
    out
}
