use serde_json::json;

use super::*;
use crate::dictionary::tests::{architectures, random, random_transcoder};
use crate::dictionary::{NormalizeActivations, ReshapeActivations};

fn stored(architecture: Architecture) -> (tempfile::TempDir, Dictionary) {
    let mut dictionary = random(architecture, 6, 10);
    dictionary.config.metadata.hook_name = Some("blocks.3.hook_resid_post".into());
    dictionary.config.metadata.extra.insert("note".into(), json!({"any": [1, 2]}));
    (written(&dictionary), dictionary)
}

fn written(dictionary: &Dictionary) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), dictionary).unwrap();
    dir
}

/// Changes the configuration in `dir`.
fn edit(dir: &Path, edit: impl FnOnce(&mut Map<String, Value>)) {
    let path = dir.join(CONFIG_FILE);
    let mut cfg: Map<String, Value> = read_json("test", &path).unwrap();
    edit(&mut cfg);
    write_json(&path, &cfg).unwrap();
}

fn edited(change: impl FnOnce(&mut Map<String, Value>)) -> Error {
    let (dir, _) = stored(Architecture::Relu);
    edit(dir.path(), change);
    read(dir.path()).unwrap_err()
}

/// Every dictionary that SAELens has a name for.
fn storable() -> Vec<Dictionary> {
    let mut all = Vec::new();
    for architecture in architectures() {
        let autoencoder = random(architecture, 8, 20);
        match architecture {
            Architecture::JumpIdentity | Architecture::GroupMax { .. } => continue,
            Architecture::Relu | Architecture::JumpRelu => {
                let skip = random_transcoder(architecture, 8, 20, 5);
                let plain = Dictionary { w_skip: None, ..skip.clone() };
                all.extend([plain, skip]);
            }
            _ => {}
        }
        all.push(autoencoder);
    }
    for kind in [NormalizeActivations::LayerNorm, NormalizeActivations::ConstantNormRescale] {
        let mut normalised = random(Architecture::Relu, 8, 20);
        normalised.config.normalize_activations = kind;
        normalised.config.apply_b_dec_to_input = false;
        all.push(normalised);
    }
    let mut heads = random(Architecture::Relu, 8, 20);
    heads.config.reshape_activations = ReshapeActivations::HookZ;
    heads.config.metadata.hook_name = Some("blocks.0.attn.hook_z".into());
    all.push(heads);
    let mut centered = random(Architecture::Relu, 8, 20);
    centered.config.center_input = true;
    centered.config.metadata.hook_name = Some("blocks.0.hook_resid_post".into());
    let kwargs = json!({"center_writing_weights": true});
    centered.config.metadata.extra.insert("model_from_pretrained_kwargs".into(), kwargs);
    all.push(centered);
    all
}

#[test]
fn every_architecture_reads_back_as_written() {
    let all = storable();
    assert_eq!(all.len(), 15);
    for dictionary in all {
        let dir = written(&dictionary);
        assert_eq!(read(dir.path()).unwrap(), dictionary);
    }
}

#[test]
fn what_saelens_has_no_name_for_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let refused = [
        random(Architecture::GroupMax { k: 5 }, 8, 20),
        random(Architecture::JumpIdentity, 8, 20),
        random(Architecture::Relu, 8, 20).with_skip(vec![0.5; 64]).unwrap(),
        random_transcoder(Architecture::AbsTopK { k: 3, rescale_acts_by_decoder_norm: false }, 8, 20, 5),
    ];
    for dictionary in refused {
        let error = write(dir.path(), &dictionary).unwrap_err().to_string();
        assert!(error.contains(dictionary.config.architecture.name()), "{error}");
        assert!(!dir.path().join(WEIGHTS_FILE).exists());
    }
    let mut same = random(Architecture::JumpIdentity, 8, 20);
    same.activation = Activation::jump_identity(vec![0.25; 20]);
    write(dir.path(), &same).unwrap();
    let back = read(dir.path()).unwrap();
    let x = [0.3; 16];
    assert_eq!(back.config.architecture, Architecture::JumpRelu);
    assert_eq!(back.encode(&x).unwrap(), same.encode(&x).unwrap());
}

#[test]
fn weights_of_every_float_type_are_read_and_others_refused_by_name() {
    use candle_core::{DType, Device};
    let (dir, dictionary) = stored(Architecture::JumpRelu);
    let path = dir.path().join(WEIGHTS_FILE);
    let whole = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    for (dtype, tolerance) in [(DType::F64, 0.0), (DType::F32, 0.0), (DType::F16, 1e-3), (DType::BF16, 1e-2)] {
        let tensors: std::collections::HashMap<_, _> =
            whole.iter().map(|(name, t)| (name.clone(), t.to_dtype(dtype).unwrap())).collect();
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let back = read(dir.path()).unwrap();
        let worst = back.w_enc.iter().zip(&dictionary.w_enc).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(worst <= tolerance && (worst > 0.0) == (tolerance > 0.0), "{dtype:?}: {worst}");
    }
    let mut tensors = whole.clone();
    tensors.insert("threshold".into(), whole["threshold"].to_dtype(DType::I64).unwrap());
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let error = read(dir.path()).unwrap_err().to_string();
    assert!(error.contains("threshold") && error.contains("I64"), "{error}");
}

#[test]
fn sparsity_reads_back_as_frequencies() {
    let dir = tempfile::tempdir().unwrap();
    assert!(read_sparsity(dir.path(), 3).unwrap().is_none());
    write_sparsity(dir.path(), &[0.0, 0.5, 1e-4]).unwrap();
    let back = read_sparsity(dir.path(), 3).unwrap().unwrap();
    assert!(back[0] < 1e-12 && (back[1] - 0.5).abs() < 1e-6 && (back[2] - 1e-4).abs() < 1e-9, "{back:?}");
    assert!(matches!(read_sparsity(dir.path(), 4), Err(Error::Malformed { .. })));
}

#[test]
fn configurations_that_mean_something_else_are_refused_by_name() {
    let error = edited(|cfg| drop(cfg.insert("architecture".into(), json!("temporal")))).to_string();
    assert!(error.contains("temporal") && error.contains("jumprelu") && error.contains("cfg.json"), "{error}");
    let error =
        edited(|cfg| drop(cfg.insert("normalize_activations".into(), json!("covariance_whitening")))).to_string();
    assert!(error.contains("covariance_whitening"), "{error}");
    let error = edited(|cfg| drop(cfg.insert("reshape_activations".into(), json!("rows")))).to_string();
    assert!(error.contains("reshape_activations") && error.contains("rows"), "{error}");
    let error = edited(|cfg| drop(cfg.insert("reshape_activations".into(), json!("hook_z")))).to_string();
    assert!(error.contains("hook_resid_post"), "{error}");
    let error = edited(|cfg| drop(cfg.insert("dtype".into(), json!("int8")))).to_string();
    assert!(error.contains("int8"), "{error}");
    let error = edited(|cfg| {
        cfg.insert("architecture".into(), json!("transcoder"));
        cfg.insert("d_out".into(), json!(6));
    });
    assert!(error.to_string().contains("apply_b_dec_to_input"), "{error}");
    for k in [json!(0), json!(11), json!(2.5), Value::Null] {
        let error = edited(|cfg| {
            cfg.insert("architecture".into(), json!("abstopk"));
            cfg.insert("k".into(), k.clone());
        });
        assert!(error.to_string().contains("'k'"), "{error}");
    }
    let error = edited(|cfg| drop(cfg.insert("activation_scale".into(), json!(2)))).to_string();
    assert!(error.contains("activation_scale"), "{error}");
    assert!(matches!(edited(|cfg| drop(cfg.insert("d_in".into(), json!(0)))), Error::Malformed { .. }));
    assert!(matches!(edited(|cfg| drop(cfg.insert("d_sae".into(), json!("x")))), Error::Malformed { .. }));
    let error = edited(|cfg| drop(cfg.insert("d_in".into(), json!(7)))).to_string();
    assert!(error.contains("[7, 10]") && error.contains("[6, 10]"), "{error}");
}

#[test]
fn damaged_weights_are_refused_by_file() {
    let (dir, _) = stored(Architecture::Relu);
    let path = dir.path().join(WEIGHTS_FILE);
    let whole = std::fs::read(&path).unwrap();
    for cut in [0, 7, 100, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let error = read(dir.path()).unwrap_err().to_string();
        assert!(error.contains(WEIGHTS_FILE), "{error}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(read(dir.path()), Err(Error::Missing { .. })));
    let (w, b) = ([0.5f32; 60], [0.0f32; 10]);
    let tensors = |b_dec: &'static [f32]| {
        vec![
            ("W_enc", vec![6, 10], Values::F32(&w)),
            ("b_enc", vec![10], Values::F32(&b)),
            ("W_dec", vec![10, 6], Values::F32(&w)),
            ("b_dec", vec![6], Values::F32(b_dec)),
        ]
    };
    write_tensors(&path, &tensors(&[0.0, 0.0, f32::NAN, 0.0, 0.0, 0.0])).unwrap();
    let error = read(dir.path()).unwrap_err();
    assert!(matches!(&error, Error::NonFinite { count: 1, .. }) && error.to_string().contains("b_dec"), "{error}");
    let mut extra = tensors(&[0.0; 6]);
    extra.push(("threshold", vec![10], Values::F32(&b)));
    write_tensors(&path, &extra).unwrap();
    assert!(read(dir.path()).unwrap_err().to_string().contains("threshold"));
    write_tensors(&path, &tensors(&[0.0; 6])[1..]).unwrap();
    assert!(read(dir.path()).unwrap_err().to_string().contains("W_enc"));
    write_tensors(&path, &tensors(&[0.0; 6])).unwrap();
    assert!(read(dir.path()).is_ok());
}

fn metadata(cfg: &mut Map<String, Value>) -> &mut Map<String, Value> {
    cfg["metadata"].as_object_mut().unwrap()
}

#[test]
fn a_known_factor_is_folded_and_an_unknown_one_is_noted() {
    let (dir, dictionary) = stored(Architecture::JumpRelu);
    edit(dir.path(), |cfg| drop(cfg.insert("normalize_activations".into(), json!("expected_average_only_in"))));
    let unfolded = read(dir.path()).unwrap();
    assert_eq!(unfolded.w_enc, dictionary.w_enc);
    assert!(unfolded.config.notes()[0].contains("norm_scaling_factor"), "{:?}", unfolded.config.notes());
    edit(dir.path(), |cfg| drop(metadata(cfg).insert("norm_scaling_factor".into(), json!(2.0))));
    let folded = read(dir.path()).unwrap();
    assert!(folded.config.notes().is_empty() && folded.w_enc[0] == 2.0 * dictionary.w_enc[0]);
    assert_eq!(folded.config.normalize_activations, NormalizeActivations::None);
    edit(dir.path(), |cfg| drop(metadata(cfg).insert("norm_scaling_factor".into(), json!(-2.0))));
    assert!(read(dir.path()).unwrap_err().to_string().contains("norm_scaling_factor"));
}

#[test]
fn rows_are_centred_where_centred_weights_change_them() {
    let centers = |hook: &str, model: &str, flag: Value| {
        let (dir, _) = stored(Architecture::Relu);
        edit(dir.path(), |cfg| {
            let metadata = metadata(cfg);
            metadata.insert("hook_name".into(), json!(hook));
            metadata.insert("model_name".into(), json!(model));
            metadata.insert("model_from_pretrained_kwargs".into(), json!({"center_writing_weights": flag}));
        });
        let config = read_config(dir.path()).unwrap();
        assert_eq!(config.notes().len(), usize::from(flag == json!(true)), "{:?}", config.notes());
        config.center_input
    };
    assert!(centers("blocks.8.hook_resid_pre", "gpt2-small", json!(true)));
    assert!(centers("blocks.8.hook_mlp_out", "EleutherAI/pythia-70m", json!(true)));
    assert!(!centers("blocks.8.hook_resid_pre", "gpt2-small", json!(false)));
    assert!(!centers("blocks.8.hook_resid_pre", "gpt2-small", Value::Null));
    assert!(!centers("blocks.8.attn.hook_z", "gpt2-small", json!(true)));
    assert!(!centers("blocks.8.hook_resid_pre", "google/gemma-2-2b", json!(true)));
}

#[test]
fn a_batchtopk_checkpoint_is_read_as_the_jumprelu_that_saelens_would_save() {
    for rescaled in [false, true] {
        let dictionary = random(Architecture::Relu, 6, 10);
        let dir = written(&dictionary);
        edit(dir.path(), |cfg| {
            cfg.insert("architecture".into(), json!("matryoshka_batchtopk"));
            cfg.insert("k".into(), json!(2.5));
            cfg.insert("rescale_acts_by_decoder_norm".into(), json!(rescaled));
            cfg.insert("matryoshka_widths".into(), json!([4, 10]));
        });
        let path = dir.path().join(WEIGHTS_FILE);
        assert!(read(dir.path()).unwrap_err().to_string().contains("topk_threshold"));
        let mut tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
        tensors.insert("topk_threshold".into(), candle_core::Tensor::new(0.75f64, &candle_core::Device::Cpu).unwrap());
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let back = read(dir.path()).unwrap();
        let mut expected = dictionary.clone();
        if rescaled {
            scale::fold_w_dec_norm(&mut expected).unwrap();
        }
        assert_eq!(back.activation, Activation::jump_relu(vec![0.75; 10]));
        assert!(back.w_enc == expected.w_enc && back.b_enc == expected.b_enc && back.w_dec == expected.w_dec);
        assert_eq!(back.config.architecture, Architecture::JumpRelu);
        assert_eq!(rescaled, back.w_enc != dictionary.w_enc);
    }
}

/// Writes `dictionary`'s weights under a flat configuration with these keys.
fn flat(dictionary: &Dictionary, keys: Value) -> tempfile::TempDir {
    let dir = written(dictionary);
    let mut cfg = json!({"d_in": dictionary.d_in(), "d_sae": dictionary.d_sae(), "dtype": "torch.float32"});
    cfg.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    write_json(&dir.path().join(CONFIG_FILE), &cfg).unwrap();
    dir
}

#[test]
fn flat_configurations_are_read_by_the_rules_of_their_time() {
    let relu = random(Architecture::Relu, 6, 10);
    let dir = flat(
        &relu,
        json!({"hook_point": "blocks.8.hook_resid_pre", "hook_point_layer": 8, "hook_point_head_index": null,
               "model_name": "gpt2-small", "context_size": 128, "l1_coefficient": 8e-5, "use_ghost_grads": false}),
    );
    let back = read(dir.path()).unwrap();
    let metadata = &back.config.metadata;
    assert_eq!(metadata.hook_name.as_deref(), Some("blocks.8.hook_resid_pre"));
    assert_eq!((metadata.prepend_bos, metadata.context_size), (Some(true), Some(128)));
    assert!(back.config.apply_b_dec_to_input && back.w_enc == relu.w_enc);
    assert_eq!(back.config.architecture, Architecture::Relu);
    let dir =
        flat(&relu, json!({"hook_name": "blocks.0.attn.hook_z", "normalize_activations": true, "prepend_bos": false}));
    let back = read(dir.path()).unwrap();
    assert_eq!(back.config.reshape_activations, ReshapeActivations::HookZ);
    assert_eq!(back.config.normalize_activations, NormalizeActivations::ExpectedAverageOnlyIn);
    assert_eq!(back.config.metadata.prepend_bos, Some(false));
    let dir = flat(
        &relu,
        json!({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}, "normalize_activations": false}),
    );
    let back = read(dir.path()).unwrap();
    assert_eq!(back.config.architecture, Architecture::TopK { k: 4, rescale_acts_by_decoder_norm: false });
    let gated = random(Architecture::Gated, 6, 10);
    assert_eq!(read(flat(&gated, json!({"architecture": "gated"})).path()).unwrap().activation, gated.activation);
    let refused = |keys: Value| read(flat(&relu, keys).path()).unwrap_err().to_string();
    assert!(refused(json!({"activation_fn_str": "tanh-relu"})).contains("tanh-relu"));
    assert!(refused(json!({"activation_fn": "topk"})).contains("activation_fn_kwargs.k"));
    assert!(refused(json!({"is_transcoder": true})).contains("is_transcoder"));
    assert!(refused(json!({"normalize_activations": "batch_norm"})).contains("batch_norm"));
}

#[test]
fn flat_files_of_repositories_that_saelens_knows_as_centred_are_centred() {
    let relu = random(Architecture::Relu, 6, 10);
    let dir = flat(&relu, json!({"hook_point": "blocks.8.hook_resid_pre", "model_name": "gpt2-small"}));
    let config = read_config(dir.path()).unwrap();
    assert!(!config.center_input && config.notes()[0].contains("center_writing_weights"), "{:?}", config.notes());
    for parent in ["models--jbloom--GPT2-Small-SAEs-Reformatted", "gpt2-small-saes-reformatted"] {
        let copy = dir.path().join(parent).join("blocks.8.hook_resid_pre");
        std::fs::create_dir_all(&copy).unwrap();
        for name in [CONFIG_FILE, WEIGHTS_FILE] {
            std::fs::copy(dir.path().join(name), copy.join(name)).unwrap();
        }
        assert!(read(&copy).unwrap().config.center_input, "{parent}");
        edit(&copy, |cfg| drop(cfg.insert("model_from_pretrained_kwargs".into(), json!({}))));
        assert!(!read(&copy).unwrap().config.center_input, "{parent}: the file itself decides");
    }
}

#[test]
fn what_was_flat_is_written_in_the_present_format() {
    let relu = random(Architecture::Relu, 6, 10);
    let dir = flat(&relu, json!({"hook_point": "blocks.8.hook_resid_pre", "model_name": "gpt2-small"}));
    let dictionary = read(dir.path()).unwrap();
    let again = written(&dictionary);
    let cfg: Value = read_json("test", &again.path().join(CONFIG_FILE)).unwrap();
    assert_eq!(cfg["metadata"]["sae_lens_version"], crate::dictionary::metadata::SAE_LENS_VERSION);
    let back = read_config(again.path()).unwrap();
    assert_eq!(back.metadata.hook_name.as_deref(), Some("blocks.8.hook_resid_pre"));
}

#[test]
fn a_fine_tuned_scaling_factor_goes_into_the_decoder_rows() {
    let relu = random(Architecture::Relu, 6, 10);
    let with_factors = |factors: Vec<f32>, announced: bool| {
        let dir = flat(&relu, json!({"finetuning_scaling_factor": announced}));
        let path = dir.path().join(WEIGHTS_FILE);
        let mut tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
        tensors.insert("scaling_factor".into(), candle_core::Tensor::new(factors, &candle_core::Device::Cpu).unwrap());
        candle_core::safetensors::save(&tensors, &path).unwrap();
        read(dir.path())
    };
    assert_eq!(with_factors(vec![1.0; 10], false).unwrap().w_dec, relu.w_dec);
    let scaled = with_factors((0..10).map(|i| 1.0 + i as f32).collect(), true).unwrap();
    assert!(scaled.w_dec[..6] == relu.w_dec[..6] && scaled.w_dec[6] == 2.0 * relu.w_dec[6]);
    assert!(with_factors(vec![2.0; 10], false).unwrap_err().to_string().contains("scaling_factor"));
}

/// Leaves directories for `tests/saelens_check.py` where `MECHINTERP_SAELENS_CHECK` points, one a dictionary.
#[test]
fn saelens_is_given_what_it_needs_to_check_us() {
    let tmp = tempfile::tempdir().unwrap();
    let root = std::env::var_os("MECHINTERP_SAELENS_CHECK").map_or(tmp.path().into(), std::path::PathBuf::from);
    for (i, mut dictionary) in storable().into_iter().enumerate() {
        scale::fold(&mut dictionary, 0.37);
        dictionary.config.metadata.hook_name.get_or_insert_with(|| "blocks.0.hook_resid_post".into());
        let cfg = to_json::to_json(&dictionary).unwrap();
        let dir = root.join(format!("{i:02}-{}", cfg["architecture"].as_str().unwrap()));
        std::fs::create_dir_all(&dir).unwrap();
        let (d_in, d_out) = (dictionary.d_in(), dictionary.d_out());
        let x: Vec<f32> = crate::ops::gemm::tests::numbers(64 * d_in, "x").iter().map(|x| 3.0 * x + 0.5).collect();
        let codes = dictionary.encode(&x).unwrap();
        let x_hat = dictionary.reconstruct(&x).unwrap();
        let dense = codes.to_dense();
        assert!(dense.iter().any(|z| *z != 0.0));
        write(&dir, &dictionary).unwrap();
        let tensors = [
            ("x", vec![64, d_in], Values::F32(&x)),
            ("codes", vec![64, dictionary.d_sae()], Values::F32(&dense)),
            ("x_hat", vec![64, d_out], Values::F32(&x_hat)),
        ];
        write_tensors(&dir.join("check.safetensors"), &tensors).unwrap();
        assert_eq!(read(&dir).unwrap(), dictionary);
    }
}
