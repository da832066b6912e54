//! Feature activations of a batch, active ones only, in compressed-row form.

/// The active features of `rows()` rows. Within a row features ascend; zero activations are not stored.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SparseCodes {
    /// `rows + 1` offsets into `features` and `values`.
    pub offsets: Vec<usize>,
    /// Feature of each active pair.
    pub features: Vec<u32>,
    /// Activation of each active pair.
    pub values: Vec<f32>,
    /// Features in the dictionary, `f`.
    pub d_sae: usize,
}

impl SparseCodes {
    /// No rows yet, for a dictionary of `d_sae` features.
    pub fn new(d_sae: usize) -> Self {
        Self { offsets: vec![0], features: Vec::new(), values: Vec::new(), d_sae }
    }

    /// The rows of `parts`, one part after the other.
    pub(crate) fn joined(d_sae: usize, parts: Vec<Self>) -> Self {
        let total = parts.iter().map(Self::len).sum();
        let mut all = Self::new(d_sae);
        all.features.reserve_exact(total);
        all.values.reserve_exact(total);
        for part in parts {
            let before = all.len();
            all.offsets.extend(part.offsets[1..].iter().map(|offset| before + offset));
            all.features.extend_from_slice(&part.features);
            all.values.extend_from_slice(&part.values);
        }
        all
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Active pairs over all rows.
    pub fn len(&self) -> usize {
        self.features.len()
    }

    /// Whether nothing is active.
    pub fn is_empty(&self) -> bool {
        self.features.is_empty()
    }

    /// Features and activations of row `i`.
    pub fn row(&self, i: usize) -> (&[u32], &[f32]) {
        let range = self.offsets[i]..self.offsets[i + 1];
        (&self.features[range.clone()], &self.values[range])
    }

    /// Appends a row. `features` ascend.
    pub fn push_row(&mut self, features: &[u32], values: &[f32]) {
        debug_assert!(features.is_sorted() && features.len() == values.len());
        self.features.extend_from_slice(features);
        self.values.extend_from_slice(values);
        self.offsets.push(self.features.len());
    }

    /// All activations, zeros included, `[rows, d_sae]`. For small examples and other programs only.
    pub fn to_dense(&self) -> Vec<f32> {
        let mut dense = vec![0.0; self.rows() * self.d_sae];
        for (row, dense) in dense.chunks_exact_mut(self.d_sae.max(1)).enumerate() {
            let (features, values) = self.row(row);
            for (&feature, &value) in features.iter().zip(values) {
                dense[feature as usize] = value;
            }
        }
        dense
    }

    /// The same pairs grouped by feature: for each feature the rows where it is active, ascending.
    pub fn by_feature(&self) -> ByFeature {
        let mut offsets = vec![0usize; self.d_sae + 1];
        for &feature in &self.features {
            offsets[feature as usize + 1] += 1;
        }
        for i in 0..self.d_sae {
            offsets[i + 1] += offsets[i];
        }
        let mut next = offsets.clone();
        let mut rows = vec![0u32; self.len()];
        let mut pairs = vec![0u32; self.len()];
        for row in 0..self.rows() {
            for pair in self.offsets[row]..self.offsets[row + 1] {
                let slot = &mut next[self.features[pair] as usize];
                rows[*slot] = row as u32;
                pairs[*slot] = pair as u32;
                *slot += 1;
            }
        }
        ByFeature { offsets, rows, pairs }
    }
}

/// The transpose of [`SparseCodes`]: pairs grouped by feature.
#[derive(Debug, Clone, PartialEq)]
pub struct ByFeature {
    /// `d_sae + 1` offsets into `rows` and `pairs`.
    pub offsets: Vec<usize>,
    /// Row of each pair.
    pub rows: Vec<u32>,
    /// Index of each pair in the codes' `values`.
    pub pairs: Vec<u32>,
}

impl ByFeature {
    /// Rows and pair indices of one feature.
    pub fn feature(&self, feature: usize) -> (&[u32], &[u32]) {
        let range = self.offsets[feature]..self.offsets[feature + 1];
        (&self.rows[range.clone()], &self.pairs[range])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transpose_holds_the_same_pairs() {
        let mut codes = SparseCodes::new(4);
        codes.push_row(&[0, 3], &[1.0, 2.0]);
        codes.push_row(&[], &[]);
        codes.push_row(&[3], &[5.0]);
        let by_feature = codes.by_feature();
        assert_eq!(by_feature.feature(0), (&[0u32][..], &[0u32][..]));
        assert_eq!(by_feature.feature(1).0.len(), 0);
        let (rows, pairs) = by_feature.feature(3);
        assert_eq!(rows, [0, 2]);
        assert_eq!(pairs.iter().map(|&p| codes.values[p as usize]).collect::<Vec<_>>(), [2.0, 5.0]);
    }
}
