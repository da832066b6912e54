//! Weights out of GGUF files, under Hugging Face's names and in its layout: what llama.cpp's conversion did to them is
//! undone, and quantised numbers become floats, when a tensor is asked for.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use candle_core::{CpuStorage, DType, Device, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::base::nearest::nearest;
use crate::base::{Context, Error, Result};
use crate::data::gguf::{Gguf, TensorInfo};

use super::Entry;
use arch::{Arch, FALCON_TWO_NORMS, Fused};
use meta::Meta;

mod arch;
pub(super) mod config;
mod meta;

#[cfg(test)]
mod tests;

/// Tensors that change how positions rotate; the configuration holds what they say.
const ROTARY_FACTORS: [&str; 3] = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// Numbers that one task turns into floats: a multiple of every block.
const CHUNK: usize = 1 << 16;

/// What turns a stored tensor into Hugging Face's.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    None,
    /// Rows of that many heads from neighbours-rotate order to halves-rotate order.
    Deinterleave {
        heads: usize,
    },
    /// One is taken off every value.
    MinusOne,
    Transpose,
    /// Rows from queries, keys, values to groups of some queries, a key and a value.
    Group {
        heads: usize,
        groups: usize,
    },
    /// Some of the rows.
    Rows(Range<usize>),
    /// One row, without the dimension of rows.
    Row(usize),
}

impl Change {
    /// The shape after the change; `None` when `stored` is not what the change works on.
    fn shape(&self, stored: &[usize]) -> Option<Vec<usize>> {
        let rows = stored.first().copied();
        Some(match self {
            Self::None | Self::MinusOne => stored.to_vec(),
            Self::Transpose => stored.iter().rev().copied().collect(),
            Self::Deinterleave { heads } => (*heads > 0 && rows? % (2 * heads) == 0).then(|| stored.to_vec())?,
            Self::Group { heads, groups } => {
                let fit = (1..=rows?).contains(heads) && (1..=*heads).contains(groups);
                let whole = fit && heads % groups == 0 && rows? % (heads + 2 * groups) == 0;
                whole.then(|| stored.to_vec())?
            }
            Self::Rows(range) => {
                (range.end <= rows?).then(|| [&[range.len()], stored.get(1..).unwrap_or_default()].concat())?
            }
            Self::Row(row) => (*row < rows?).then(|| stored.get(1..).unwrap_or_default().to_vec())?,
        })
    }

    fn apply(&self, tensor: Tensor) -> candle_core::Result<Tensor> {
        let stored = tensor.dims().to_vec();
        let rest = stored.get(1..).unwrap_or_default();
        let rows = stored.first().copied().unwrap_or_default();
        match self {
            Self::None => Ok(tensor),
            Self::MinusOne => tensor.affine(1.0, -1.0),
            Self::Transpose => tensor.t()?.contiguous(),
            Self::Deinterleave { heads } => {
                let pairs = [&[*heads, rows / heads / 2, 2], rest].concat();
                tensor.reshape(pairs)?.transpose(1, 2)?.contiguous()?.reshape(stored)
            }
            Self::Group { heads, groups } => {
                let width = rows / (heads + 2 * groups);
                let part = |first: usize, heads: usize| {
                    let shape = [&[*groups, heads / groups * width], rest].concat();
                    tensor.narrow(0, first * width, heads * width)?.reshape(shape)
                };
                let parts = [part(0, *heads)?, part(*heads, *groups)?, part(heads + groups, *groups)?];
                Tensor::cat(&parts, 1)?.reshape(stored)
            }
            Self::Rows(range) => tensor.narrow(0, range.start, range.len())?.contiguous(),
            Self::Row(row) => tensor.get(*row),
        }
    }
}

/// One open GGUF file with the Hugging Face names of its tensors.
#[derive(Debug)]
pub(super) struct GgufFile {
    file: Gguf,
    /// From Hugging Face's name to the stored tensor's and what is to be done to it.
    names: BTreeMap<String, (String, Change)>,
}

impl GgufFile {
    /// Maps `path` and names its tensors. The later files of a split model take the architecture from the first.
    ///
    /// # Errors
    /// As [`Gguf::open`]; `Unknown` for an architecture, `Unsupported` for a tensor that cannot be placed.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = Gguf::open(path)?;
        let names = match first_of_split(&file)? {
            Some(first) => names(&file, &Gguf::open(&first)?)?,
            None => names(&file, &file)?,
        };
        Ok(Self { file, names })
    }

    /// Every tensor under Hugging Face's name and shape, sorted.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let tensors = self.file.tensors();
        let entry = |(name, (stored, change)): (&String, &(String, Change))| {
            let info = tensors.get(stored)?;
            let shape = change.shape(&info.shape)?;
            let (whole, part): (usize, usize) = (info.shape.iter().product(), shape.iter().product());
            let bytes = info.bytes() as u64 * part as u64 / whole.max(1) as u64;
            Some(Entry { name: name.clone(), dtype: info.dtype.name.into(), shape, bytes })
        };
        self.names.iter().filter_map(entry).collect()
    }

    /// As [`crate::base::mapped::MappedBytes::release`].
    pub(super) fn release(&self) {
        self.file.release();
    }

    /// Tensor `name`, which must have `shape`, as `dtype`.
    ///
    /// # Errors
    /// `Malformed` when it is absent or has another shape, `Unsupported` when its numbers cannot become floats.
    pub(super) fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let stored = self.names.get(name).and_then(|(n, change)| Some((n, change, self.file.tensors().get(n)?)));
        let (stored, change, info) = stored.ok_or_else(|| self.file.lacks(&format!("a tensor for '{name}'")))?;
        let found = change.shape(&info.shape);
        if found.as_deref() != Some(shape) {
            return Err(super::wrong_shape(self.file.path(), stored, shape, &found.unwrap_or(info.shape.clone())));
        }
        // Taking one off is exact enough only in full precision.
        let work = if *change == Change::MinusOne { DType::F32 } else { dtype };
        let tensor = floats(&self.file, stored, info, work)?;
        let placed = change.apply(tensor).and_then(|t| t.to_dtype(dtype)).and_then(|t| t.to_device(device));
        placed.during(|| format!("loading '{stored}'"))
    }
}

/// A stored tensor as floats of `dtype` on the CPU.
fn floats(file: &Gguf, name: &str, info: &TensorInfo, dtype: DType) -> Result<Tensor> {
    let bytes = file.bytes(info);
    let context = || format!("reading '{name}'");
    let Some(stored) = info.dtype.candle else {
        return Err(Error::Unsupported {
            what: format!("'{name}' in {}", file.path().display()),
            why: format!("its numbers are stored as {}, which cannot be turned into floats here", info.dtype.name),
            remedy: "take a conversion in f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1 or a k-quant (q2_k to q6_k)".into(),
        });
    };
    let plain = match stored {
        GgmlDType::F32 => Some(DType::F32),
        GgmlDType::F16 => Some(DType::F16),
        GgmlDType::BF16 => Some(DType::BF16),
        _ => None,
    };
    if let Some(plain) = plain {
        let tensor = Tensor::from_raw_buffer(bytes, plain, &info.shape, &Device::Cpu);
        return tensor.and_then(|t| t.to_dtype(dtype)).during(context);
    }
    let shape = info.shape.as_slice();
    let tensor = match dtype {
        DType::BF16 => Tensor::from_vec(dequantised(stored, bytes, bf16::from_f32)?, shape, &Device::Cpu),
        DType::F16 => Tensor::from_vec(dequantised(stored, bytes, f16::from_f32)?, shape, &Device::Cpu),
        _ => Tensor::from_vec(dequantised(stored, bytes, |x| x)?, shape, &Device::Cpu),
    };
    tensor.and_then(|t| t.to_dtype(dtype)).during(context)
}

/// All numbers of a quantised tensor, each turned into `T`, chunk by chunk, so that no second copy of the tensor exists.
fn dequantised<T: Send + Default + Clone>(
    stored: GgmlDType,
    bytes: &[u8],
    convert: impl Fn(f32) -> T + Sync,
) -> Result<Vec<T>> {
    let chunk_bytes = CHUNK / stored.block_size() * stored.type_size();
    let mut all = vec![T::default(); bytes.len() / stored.type_size() * stored.block_size()];
    all.par_chunks_mut(CHUNK).zip(bytes.par_chunks(chunk_bytes)).try_for_each(|(out, chunk)| {
        let CpuStorage::F32(values) = stored.from_data(chunk.into()).dequantize(out.len())? else {
            return Err(candle_core::Error::Msg("a dequantised tensor is not f32".into()));
        };
        out.iter_mut().zip(values).for_each(|(out, value)| *out = convert(value));
        Ok(())
    })?;
    Ok(all)
}

/// The first file of a split model, when `file` is a later one.
fn first_of_split(file: &Gguf) -> Result<Option<PathBuf>> {
    let (Some(number), Some(count)) = (file.usize("split.no")?, file.usize("split.count")?) else { return Ok(None) };
    if number == 0 || file.text("general.architecture")?.is_some() {
        return Ok(None);
    }
    let name = file.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let suffix = |number: usize| format!("-{number:05}-of-{count:05}.gguf");
    let stem = name.strip_suffix(suffix(number.saturating_add(1)).as_str());
    let stem = stem.ok_or_else(|| file.wrong("a file name that ends in its number among the parts", name.clone()))?;
    Ok(Some(file.path().with_file_name(format!("{stem}{}", suffix(1)))))
}

/// The architecture of the model whose metadata `file` holds.
fn arch_of(file: &Gguf) -> Result<&'static Arch> {
    let name = file.text("general.architecture")?.ok_or_else(|| file.lacks("'general.architecture'"))?;
    arch::all().find(|arch| arch.name == name).ok_or_else(|| Error::Unknown {
        kind: "architecture of the GGUF file",
        found: name.to_owned(),
        nearest: nearest(name, arch::all().map(|arch| arch.name), 5),
    })
}

/// Hugging Face's names for the tensors of `file`, whose model is described by the metadata of `first`.
fn names(file: &Gguf, first: &Gguf) -> Result<BTreeMap<String, (String, Change)>> {
    let arch = arch_of(first)?;
    let meta = Meta::new(first, arch.name);
    let heads = meta.usize("attention.head_count")?;
    let shape = Heads { heads, key_value: meta.usize_or("attention.head_count_kv", heads)? };
    let two_norms = file.tensors().keys().any(|name| name.contains(".attn_norm_2."));
    let mut names = BTreeMap::new();
    for (stored, info) in file.tensors() {
        if ROTARY_FACTORS.contains(&stored.as_str()) {
            continue;
        }
        let placed = match stored.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((layer, part)) => in_block(arch, two_norms, part)
                .map(|(part, suffix, hf)| (format!("{}{layer}.{hf}", arch.block), part, suffix)),
            None => stored.rsplit_once('.').and_then(|(part, suffix)| {
                let (_, hf) = arch.top.iter().find(|(gguf, _)| *gguf == part)?;
                Some(((*hf).to_owned(), part, suffix))
            }),
        };
        let Some((hf, part, suffix)) = placed else {
            return Err(Error::Unsupported {
                what: format!("the tensor '{stored}' in {}", file.path().display()),
                why: format!("it is not part of the architecture '{}' as it is known here", arch.name),
                remedy: "use the model's Hugging Face directory".into(),
            });
        };
        for (name, change) in changed(arch, &shape, part, suffix, &hf, info) {
            names.insert(name, (stored.clone(), change));
        }
    }
    Ok(names)
}

/// `part.suffix` inside a block, taken apart, with Hugging Face's name for the part.
fn in_block<'a>(arch: &Arch, two_norms: bool, name: &'a str) -> Option<(&'a str, &'a str, &'static str)> {
    let (part, suffix) = name.rsplit_once('.').filter(|(_, suffix)| matches!(*suffix, "weight" | "bias"))?;
    let own: &[_] = if two_norms && arch.name == "falcon" { FALCON_TWO_NORMS } else { &[] };
    let fused: &[_] = if arch.name == "phi2" { &[("attn_qkv", "self_attn")] } else { &[] };
    let mut known = own.iter().chain(fused).chain(arch.parts.iter().copied().flatten());
    Some((part, suffix, known.find(|(gguf, _)| *gguf == part)?.1))
}

struct Heads {
    heads: usize,
    key_value: usize,
}

/// The tensors that Hugging Face has in place of one stored tensor, each with what makes it out of the stored one.
fn changed(arch: &Arch, shape: &Heads, part: &str, suffix: &str, hf: &str, info: &TensorInfo) -> Vec<(String, Change)> {
    let &Heads { heads, key_value } = shape;
    let one = |change| vec![(format!("{hf}.{suffix}"), change)];
    let matrix = suffix == "weight" && info.shape.len() == 2;
    match part {
        "attn_q" if arch.interleaved => one(Change::Deinterleave { heads }),
        "attn_k" if arch.interleaved => one(Change::Deinterleave { heads: key_value }),
        "attn_qkv" if arch.fused == Fused::ByHead => one(Change::Group { heads, groups: heads }),
        "attn_qkv" if arch.fused == Fused::ByGroup => one(Change::Group { heads, groups: key_value }),
        "attn_qkv" if arch.name == "phi2" => {
            let all = heads.saturating_add(key_value.saturating_mul(2));
            let width = info.shape.first().copied().unwrap_or_default() / all.max(1);
            let starts = [0, heads, heads.saturating_add(key_value), all].map(|n| n.saturating_mul(width));
            let range = |n: usize| starts[n]..starts[n + 1];
            let part = |n, letter| (format!("{hf}.{letter}_proj.{suffix}"), Change::Rows(range(n)));
            vec![part(0, 'q'), part(1, 'k'), part(2, 'v')]
        }
        "attn_q_norm" | "attn_k_norm" if arch.name == "stablelm" => {
            let rows = info.shape.first().copied().unwrap_or_default();
            (0..rows).map(|head| (format!("{hf}.norms.{head}.{suffix}"), Change::Row(head))).collect()
        }
        _ if arch.norms_plus_one && part.ends_with("norm") => one(Change::MinusOne),
        _ if arch.transposed && matrix && !matches!(part, "token_embd" | "position_embd" | "output") => {
            one(Change::Transpose)
        }
        _ => one(Change::None),
    }
}
