//! Near matches for mistyped names.

/// The `limit` members of `known` with the smallest edit distance to `name`, nearest first; ties keep their order.
pub fn nearest<S: AsRef<str>>(name: &str, known: impl IntoIterator<Item = S>, limit: usize) -> Vec<String> {
    let mut scored: Vec<(usize, String)> =
        known.into_iter().map(|k| (edit_distance(name, k.as_ref()), k.as_ref().to_owned())).collect();
    scored.sort_by_key(|(distance, _)| *distance);
    scored.truncate(limit);
    scored.into_iter().map(|(_, k)| k).collect()
}

/// Levenshtein distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_comes_first() {
        let known = ["hook_resid_pre", "hook_resid_post", "attn.hook_z"];
        assert_eq!(nearest("hook_resid_pst", known, 2), ["hook_resid_post", "hook_resid_pre"]);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
    }
}
