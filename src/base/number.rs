//! Numbers in JSON that may be none: JSON has no NaN, and `serde_json` writes `null` in its place.

use serde::{Deserialize, Deserializer};

/// Reads `null` as NaN, so that a broken figure comes back from its file as one.
///
/// # Errors
/// What is neither a number nor `null`.
pub fn or_nan<'de, D: Deserializer<'de>, T: Deserialize<'de> + From<f32>>(source: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(source)?.unwrap_or_else(|| f32::NAN.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Serialize, Deserialize)]
    struct Figures {
        #[serde(deserialize_with = "or_nan")]
        wide: f64,
        #[serde(deserialize_with = "or_nan")]
        narrow: f32,
    }

    #[test]
    fn what_is_no_number_comes_back_as_none() {
        let text = serde_json::to_string(&Figures { wide: f64::NAN, narrow: f32::INFINITY }).unwrap();
        let back: Figures = serde_json::from_str(&text).unwrap();
        assert!(back.wide.is_nan() && back.narrow.is_nan());
        let back: Figures = serde_json::from_str(r#"{"wide": 1.5, "narrow": -2}"#).unwrap();
        assert!(back.wide == 1.5 && back.narrow == -2.0);
        assert!(serde_json::from_str::<Figures>(r#"{"wide": "x", "narrow": 1}"#).is_err());
    }
}
