//! The number types of GGUF tensors (`ggml.h`), with their blocks: so many numbers in so many bytes.

use candle_core::quantized::GgmlDType;

/// How the numbers of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorType {
    /// The name in llama.cpp, in lower case.
    pub name: &'static str,
    /// Numbers in a block.
    pub block: usize,
    /// Bytes of a block.
    pub bytes: usize,
    /// The type in candle, where candle turns it into floats.
    pub candle: Option<GgmlDType>,
}

impl TensorType {
    /// The type with the number `id` in files.
    pub(super) fn from_id(id: u32) -> Option<Self> {
        use GgmlDType as D;
        let (name, block, bytes, candle) = match id {
            0 => ("f32", 1, 4, Some(D::F32)),
            1 => ("f16", 1, 2, Some(D::F16)),
            2 => ("q4_0", 32, 18, Some(D::Q4_0)),
            3 => ("q4_1", 32, 20, Some(D::Q4_1)),
            6 => ("q5_0", 32, 22, Some(D::Q5_0)),
            7 => ("q5_1", 32, 24, Some(D::Q5_1)),
            8 => ("q8_0", 32, 34, Some(D::Q8_0)),
            9 => ("q8_1", 32, 36, Some(D::Q8_1)),
            10 => ("q2_k", 256, 84, Some(D::Q2K)),
            11 => ("q3_k", 256, 110, Some(D::Q3K)),
            12 => ("q4_k", 256, 144, Some(D::Q4K)),
            13 => ("q5_k", 256, 176, Some(D::Q5K)),
            14 => ("q6_k", 256, 210, Some(D::Q6K)),
            15 => ("q8_k", 256, 292, Some(D::Q8K)),
            16 => ("iq2_xxs", 256, 66, None),
            17 => ("iq2_xs", 256, 74, None),
            18 => ("iq3_xxs", 256, 98, None),
            19 => ("iq1_s", 256, 50, None),
            20 => ("iq4_nl", 32, 18, None),
            21 => ("iq3_s", 256, 110, None),
            22 => ("iq2_s", 256, 82, None),
            23 => ("iq4_xs", 256, 136, None),
            24 => ("i8", 1, 1, None),
            25 => ("i16", 1, 2, None),
            26 => ("i32", 1, 4, None),
            27 => ("i64", 1, 8, None),
            28 => ("f64", 1, 8, None),
            29 => ("iq1_m", 256, 56, None),
            30 => ("bf16", 1, 2, Some(D::BF16)),
            34 => ("tq1_0", 256, 54, None),
            35 => ("tq2_0", 256, 66, None),
            39 => ("mxfp4", 32, 17, None),
            40 => ("nvfp4", 64, 36, None),
            _ => return None,
        };
        Some(Self { name, block, bytes, candle })
    }

    /// Bytes of a tensor of `shape`; `None` when its rows are no whole blocks, or it is empty or too large to
    /// exist.
    pub(super) fn size(&self, shape: &[usize]) -> Option<usize> {
        let row = shape.last().copied().unwrap_or(1);
        if row % self.block != 0 {
            return None;
        }
        let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        (count / self.block).checked_mul(self.bytes).filter(|&size| size > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_as_large_as_candle_thinks() {
        let mut checked = 0;
        for ours in (0..64).filter_map(TensorType::from_id) {
            if let Some(candle) = ours.candle {
                assert_eq!((ours.block, ours.bytes), (candle.block_size(), candle.type_size()), "{}", ours.name);
                checked += 1;
            }
        }
        assert_eq!(checked, 15);
    }
}
