//! GroupMax: features stand in `k` groups of `f / k` neighbours, and the largest of each group is active if positive
//! (EleutherAI's sparsify). Of equal values the lower feature wins.

use crate::ops::compact::Picked;

/// Keeps the largest of each group. `group` is `f / k`.
pub(super) fn finish_row(group: usize, row: &mut Picked) {
    let Picked { indices: features, values } = row;
    let mut kept = 0;
    for i in 0..features.len() {
        let same_group = kept > 0 && features[kept - 1] as usize / group == features[i] as usize / group;
        if same_group && values[i] <= values[kept - 1] {
            continue;
        }
        kept += usize::from(!same_group);
        features[kept - 1] = features[i];
        values[kept - 1] = values[i];
    }
    features.truncate(kept);
    values.truncate(kept);
}
