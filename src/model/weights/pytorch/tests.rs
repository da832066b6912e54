//! Against files that torch wrote (`tests/golden/make_weights.py`), whole and damaged.

use super::pickle::Objects;
use super::*;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/weights").join(name)
}

fn f32s(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_kind_of_view_reads_as_torch_reads_it() {
    let expected = candle_core::safetensors::load(golden("views.safetensors"), &Device::Cpu).unwrap();
    let expected = BTreeMap::from_iter(expected);
    let file = PyTorchFile::open(&golden("views.bin")).unwrap();
    let entries = file.entries();
    assert_eq!(entries.len(), expected.len() + 1, "all of the safetensors file, and the complex one");
    for (name, expected) in expected {
        let dtype = if name == "f64" { DType::F64 } else { DType::F32 };
        let ours = file.tensor(&name, expected.dims(), dtype, &Device::Cpu).unwrap();
        assert_eq!((ours.dims(), f32s(&ours)), (expected.dims(), f32s(&expected)), "{name}");
    }
    let dtype = |name: &str| entries.iter().find(|e| e.name == name).unwrap().dtype.clone();
    assert_eq!([dtype("f16"), dtype("tied"), dtype("complex")], ["f16", "bf16", "complexfloat"]);
    let error = file.tensor("complex", &[2], DType::F32, &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("'complex'") && error.contains("ComplexFloatStorage"), "{error}");
    let error = file.tensor("f32", &[6, 4], DType::F32, &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("[6, 4]") && error.contains("[4, 6]"), "{error}");
}

#[test]
fn newer_pickle_protocols_and_state_dicts_of_modules_are_read() {
    let file = PyTorchFile::open(&golden("module.bin")).unwrap();
    let shapes: Vec<_> = file.entries().into_iter().map(|e| (e.name, e.shape)).collect();
    assert_eq!(shapes, [("bias".to_owned(), vec![2]), ("weight".to_owned(), vec![2, 3])]);
}

#[test]
fn calls_and_legacy_files_are_refused_with_a_remedy() {
    for (name, needle) in [("attack.bin", "posix.system"), ("legacy.bin", "before 1.6")] {
        let error = PyTorchFile::open(&golden(name)).unwrap_err().to_string();
        assert!(error.contains(needle) && error.contains(name) && error.contains("safetensors"), "{error}");
    }
    assert!(!Path::new("attacked").exists());
}

/// Opens damaged contents and reads every tensor that is still described. It may fail, but not panic.
fn exercise(contents: &[u8]) -> bool {
    let Ok(views) = table(Path::new("damaged.bin"), contents) else { return false };
    let small = |view: &&View| view.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).is_some_and(|n| n < 4096);
    views.values().filter(small).for_each(|view| drop(view.bytes(contents, 4)));
    true
}

#[test]
fn damaged_files_are_errors_and_never_panics() {
    let whole = std::fs::read(golden("views.bin")).unwrap();
    assert!(exercise(&whole));
    for cut in 0..whole.len() {
        assert!(!exercise(&whole[..cut]), "cut at {cut}");
    }
    for bit in 0..whole.len() * 8 {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        exercise(&damaged);
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_as_a_pickle_end_in_an_object_or_a_refusal(bytes in proptest::collection::vec(0u8.., 0..400)) {
        drop(Objects::read(&bytes));
    }

    /// Opcodes alone reach further than random bytes.
    #[test]
    fn any_opcodes_as_a_pickle_end_in_an_object_or_a_refusal(
        picks in proptest::collection::vec(0usize..28, 0..300)
    ) {
        let codes = b".N\x88KMJ\x8aX\x8cUc\x93()\x85\x86\x87t]}aesuqh\x94R";
        drop(Objects::read(&picks.iter().map(|&pick| codes[pick]).collect::<Vec<_>>()));
    }
}

#[test]
fn a_view_outside_of_its_storage_has_no_bytes() {
    let view = |offset, shape: &[usize], strides: &[usize]| View {
        class: "FloatStorage".into(),
        storage: 4..24,
        offset,
        shape: shape.to_vec(),
        strides: strides.to_vec(),
    };
    let file = [0u8; 24];
    let ok = |view: View| view.bytes(&file, 4).is_some();
    assert!(ok(view(0, &[5], &[1])) && ok(view(3, &[2], &[1])) && ok(view(0, &[2, 2], &[1, 3])));
    assert!(ok(view(4, &[0, usize::MAX], &[9, 9])), "an empty view reads nothing");
    for bad in [
        view(0, &[6], &[1]),
        view(5, &[1], &[1]),
        view(usize::MAX, &[1], &[1]),
        view(0, &[2, 2], &[1, 4]),
        view(0, &[2], &[usize::MAX]),
        view(0, &[usize::MAX, 2], &[0, 0]),
    ] {
        assert!(bad.bytes(&file, 4).is_none(), "{bad:?}");
    }
}
