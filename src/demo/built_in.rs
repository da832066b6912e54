//! The built-in model: a Hugging Face directory inside the program, made by `examples/train_demo.rs`.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};

use crate::base::artifact::write_atomic;
use crate::base::{Context, Error, Result};
use crate::model::Model;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";

/// Names and contents of the model's files.
pub const FILES: [(&str, &[u8]); 4] = [
    (CONFIG, include_bytes!("../../assets/demo/config.json")),
    (WEIGHTS, include_bytes!("../../assets/demo/model.safetensors")),
    ("tokenizer.json", include_bytes!("../../assets/demo/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../assets/demo/tokenizer_config.json")),
];

/// Hash of all files, short, for the name of a directory that holds them.
pub fn fingerprint() -> String {
    let mut hasher = blake3::Hasher::new();
    for (name, contents) in FILES {
        hasher.update(name.as_bytes()).update(&(contents.len() as u64).to_le_bytes()).update(contents);
    }
    hasher.finalize().to_hex()[..12].to_owned()
}

/// Puts the files into `dir` unless they are there already, and returns it.
///
/// # Errors
/// `Io` when the directory cannot be written.
pub fn unpack(dir: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(dir).map_err(Error::io("make the directory of the built-in model", dir))?;
    for (name, contents) in FILES {
        let path = dir.join(name);
        if std::fs::read(&path).ok().as_deref() != Some(contents) {
            write_atomic(&path, contents)?;
        }
    }
    Ok(dir.to_path_buf())
}

/// The model, without touching the disk.
///
/// # Errors
/// When the device runs out of memory.
pub fn model(dtype: DType, device: &Device) -> Result<Model> {
    let [(_, config), (_, weights), ..] = FILES;
    let config = serde_json::from_slice(config).map_err(|e| damaged(CONFIG, e.to_string()))?;
    let tensors =
        candle_core::safetensors::load_buffer(weights, device).during(|| "reading the built-in model".into())?;
    Model::from_tensors(&config, tensors, dtype, device)
}

fn damaged(name: &str, found: String) -> Error {
    Error::malformed("built-in model", Path::new(name), "the file that was built in", found, "build the program again")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::quiz::quiz;
    use crate::demo::{Vocabulary, World};

    #[test]
    fn the_built_in_model_knows_its_world() {
        let world = World::new(World::BUILT_IN_SEED);
        let vocabulary = Vocabulary::new(&world);
        let model = model(DType::F32, &Device::Cpu).unwrap();
        let result = quiz(&model, &world, &vocabulary).unwrap();
        assert!(result.single_hop.accuracy() >= 0.99, "{:?}", result.single_hop);
        assert!(result.two_hop.accuracy() >= 0.90, "{:?}", result.two_hop);
        assert!(result.single_hop.asked > 2000 && result.two_hop_held_out.asked > 300, "{result:?}");
    }

    #[test]
    fn the_files_are_those_of_the_world() {
        let vocabulary = Vocabulary::new(&World::new(World::BUILT_IN_SEED));
        let stored: serde_json::Value = serde_json::from_slice(FILES[2].1).unwrap();
        assert_eq!(stored, vocabulary.tokenizer_json());
        assert!(FILES.iter().map(|(_, contents)| contents.len()).sum::<usize>() <= 4 << 20);
    }

    #[test]
    fn unpacking_repairs_a_damaged_file() {
        let dir = tempfile::tempdir().unwrap();
        let target = unpack(&dir.path().join("demo")).unwrap();
        std::fs::write(target.join(WEIGHTS), b"half").unwrap();
        unpack(&target).unwrap();
        for (name, contents) in FILES {
            assert_eq!(std::fs::read(target.join(name)).unwrap(), contents);
        }
    }
}
