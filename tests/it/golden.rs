//! The checkpoints under `tests/golden/models` and what transformers computes on them, made by
//! `tests/golden/make_models.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use mechinterp::model::{HookPlan, HookPoint, Model, ModelConfig, Run, Site};

/// One checkpoint, opened, with its golden values.
pub(crate) struct Golden {
    pub(crate) model: Model,
    /// Every value that the file holds or that follows from it, by hook name.
    pub(crate) values: BTreeMap<String, Tensor>,
    pub(crate) tokens: Tensor,
    pub(crate) logits: Tensor,
}

/// The names of all checkpoints.
pub(crate) fn names() -> Vec<String> {
    let entries = FOLDERS.iter().flat_map(|folder| std::fs::read_dir(goldens().join(folder)).unwrap());
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// `config.json` of a checkpoint.
pub(crate) fn config_json(name: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(dir(name).join("config.json")).unwrap()).unwrap()
}

/// The model of a checkpoint under its own configuration.
pub(crate) fn open(name: &str) -> Model {
    open_as(name, DType::F32)
}

/// The model of a checkpoint with weights of that number type.
pub(crate) fn open_as(name: &str, dtype: DType) -> Model {
    open_files(name, &dir(name).join("config.json"), dtype).unwrap()
}

/// What a plan needs of a checkpoint's model.
pub(crate) fn open_for(name: &str, plan: &HookPlan) -> Model {
    Model::open_for(plan, &config_path(name), &weight_files(name), DType::F32, &Device::Cpu).unwrap()
}

/// The weights of a checkpoint under another configuration.
pub(crate) fn open_with(name: &str, config: &Path) -> mechinterp::base::Result<Model> {
    open_files(name, config, DType::F32)
}

fn open_files(name: &str, config: &Path, dtype: DType) -> mechinterp::base::Result<Model> {
    Model::open(config, &weight_files(name), dtype, &Device::Cpu)
}

/// `config.json` of a checkpoint.
pub(crate) fn config_path(name: &str) -> PathBuf {
    dir(name).join("config.json")
}

/// The files with a checkpoint's weights, in order.
pub(crate) fn weight_files(name: &str) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir(name)).unwrap().map(|entry| entry.unwrap().path());
    let is_weights =
        |p: &PathBuf| p.extension().unwrap() == "safetensors" && p.file_name().unwrap() != "golden.safetensors";
    let mut weights: Vec<PathBuf> = files.filter(is_weights).collect();
    weights.sort();
    weights
}

impl Golden {
    pub(crate) fn open(name: &str) -> Self {
        let model = open(name);
        let file = candle_core::safetensors::load(dir(name).join("golden.safetensors"), &Device::Cpu).unwrap();
        let mut values: BTreeMap<String, Tensor> = file.into_iter().collect();
        let tokens = values.remove("tokens").unwrap().to_dtype(DType::U32).unwrap();
        let logits = values.remove("logits").unwrap();
        complete(&mut values, &tokens, &logits, model.config());
        Self { model, values, tokens, logits }
    }

    /// The model's own value at every point, and its logits.
    pub(crate) fn run_everything(&self) -> Run {
        let points = HookPoint::all(self.model.config());
        let plan = points.into_iter().fold(HookPlan::new().with_logits(), HookPlan::capture);
        self.model.forward(&self.tokens, &plan).unwrap()
    }
}

/// Adds what the generator leaves out because another value is the same by definition.
fn complete(values: &mut BTreeMap<String, Tensor>, tokens: &Tensor, logits: &Tensor, config: &ModelConfig) {
    let name = |layer, site| HookPoint::block(layer, site).to_string();
    let mut resid = values["hook_embed"].clone();
    if let Some(positions) = values.get("hook_pos_embed") {
        resid = (resid + positions).unwrap();
    }
    for layer in 0..config.n_layers {
        let post = values[&name(layer, Site::ResidPost)].clone();
        values.insert(name(layer, Site::ResidPre), std::mem::replace(&mut resid, post));
        let same = [
            (Site::AttnAdded, Site::AttnOut),
            (Site::MlpAdded, Site::MlpOut),
            (Site::MlpHookOut, Site::MlpOut),
            (Site::MlpIn, Site::ResidMid),
            (Site::MlpIn, Site::ResidPre), // parallel blocks have nothing in the middle
        ];
        let pre = values[&name(layer, Site::ResidPre)].unsqueeze(2).unwrap();
        for site in [Site::AttnIn, Site::QInput, Site::KInput, Site::VInput] {
            if let Ok(point) = HookPoint::block(layer, site).check(config) {
                let copies = point.site.heads(config).unwrap();
                values.insert(point.to_string(), pre.repeat((1, 1, copies, 1)).unwrap());
            }
        }
        for (missing, source) in same {
            let exists = HookPoint::block(layer, missing).check(config).is_ok();
            if let (true, Some(source)) = (exists, values.get(&name(layer, source)).cloned()) {
                values.entry(name(layer, missing)).or_insert(source);
            }
        }
    }
    values.insert(Site::Tokens.name().into(), tokens.clone());
    values.entry(Site::UnembedOut.name().into()).or_insert_with(|| logits.clone());
}

/// Mixtures of experts have a folder of their own.
const FOLDERS: [&str; 2] = ["models", "mixtures"];

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn dir(name: &str) -> PathBuf {
    let mut folders = FOLDERS.iter().map(|folder| goldens().join(folder).join(name));
    folders.find(|dir| dir.is_dir()).unwrap_or_else(|| panic!("no checkpoint {name}"))
}
