"""Dictionaries in the formats of other tools, with rows and what those tools make of them.

    python3 tests/golden/make_foreign_dictionaries.py

Writes tests/golden/dictionaries/: the files, `index.json` (one entry a dictionary: where it is, what it says about
itself, what made it) and `golden/NAME.safetensors` with `x` [n, d_in], `codes` [n, d_sae] and `x_hat` [n, d_out].

Needs torch, numpy, safetensors and, for the formats of tools that can be installed, the tools:
`sae-lens==6.54.12`, `dictionary-learning==0.1.0`, `eai-sparsify==1.3.3` and `circuit-tracer==0.5.0`. What each entry
was written and computed by is its `tool`:
  * dictionary_learning and sparsify write their own files and encode with their own classes;
  * circuit-tracer writes and encodes its transcoders;
  * Gemma Scope, Gemma Scope 2, Llama Scope, Goodfire and Qwen Scope have no program of their own that can be
    installed: the files are written with numpy, torch and safetensors in the layout that SAELens' loaders read, and
    those loaders and SAELens' classes encode them, with the hub's download replaced by the local folder;
  * OpenAI's library is in no package registry: its state dict is written with torch, the codes are its equations
    (openai/sparse_autoencoder, model.py), spelled out below;
  * Llama Scope's own reader (OpenMOSS/Language-Model-SAEs, sae.py of November 2024) normalises decoder rows before it
    compares thresholds, which SAELens leaves out; `llama_scope_norms` is by its equations, spelled out below.
"""

import json
import math
import os
import pathlib
import shutil
import sys
import types

import numpy as np
import torch
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).parent
OUT = HERE / "dictionaries"
D, F, N, K = 8, 24, 16, 5
torch.set_grad_enabled(False)
torch.manual_seed(0)
shutil.rmtree(OUT, ignore_errors=True)
(OUT / "golden").mkdir(parents=True)
INDEX = []


def case(name, path, fmt, tool, x, codes, x_hat, **said):
    codes, x_hat = codes.detach().float(), x_hat.detach().float()
    active = (codes != 0).float().mean().item()
    assert 0.02 < active < 0.98, f"{name}: {active} of the codes are active"
    tensors = {"x": x, "codes": codes, "x_hat": x_hat}
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, OUT / "golden" / f"{name}.safetensors")
    INDEX.append({"name": name, "path": path, "format": fmt, "tool": tool, **said})


def folder(path):
    (OUT / path).mkdir(parents=True, exist_ok=True)
    return OUT / path


def rows(n=N, d=D, scale=1.0):
    return torch.randn(n, d) * scale


def weights(d_in=D, f=F, d_out=D):
    return {
        "W_enc": torch.randn(d_in, f) / d_in**0.5,
        "b_enc": torch.randn(f) * 0.1,
        "W_dec": torch.randn(f, d_out) / f**0.5,
        "b_dec": torch.randn(d_out) * 0.2,
    }


# dictionary_learning, by its own classes.

from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK

DL = "dictionary-learning 0.1.0"


def randomise(module):
    """Weights of the size that training leaves, in place of the initial ones, whose biases are zero."""
    for name, parameter in module.named_parameters():
        bias = parameter.dim() == 1
        parameter.data = torch.randn_like(parameter) * (0.2 if bias else parameter.shape[1] ** -0.5)
    return module


def dl_config(cls, **extra):
    trainer = {"trainer_class": "Trainer", "dict_class": cls, "activation_dim": D, "dict_size": F, "lr": 1e-3,
               "steps": 100, "seed": 0, "device": "cpu", "layer": 3, "lm_name": "EleutherAI/pythia-70m-deduped",
               "wandb_name": cls, "submodule_name": "resid_post_layer_3", **extra}
    return {"trainer": trainer, "buffer": {"d_submodule": D, "io": "out", "n_ctxs": 100, "ctx_len": 128,
                                           "refresh_batch_size": 8, "out_batch_size": 64, "device": "cpu"}}


def dl(name, ae, cls, said, config=True, **extra):
    at = folder(f"dictionary_learning/{name}/trainer_0")
    torch.save({k: v.cpu() for k, v in ae.state_dict().items()}, at / "ae.pt")
    if config:
        (at / "config.json").write_text(json.dumps(dl_config(cls, **extra), indent=4))
        said = {"hook_name": "blocks.3.hook_resid_post", "model_name": "EleutherAI/pythia-70m-deduped", "context_size": 128, **said}
    x = rows()
    codes = ae.encode(x)
    case(f"dl_{name}", f"dictionary_learning/{name}/trainer_0", "dictionary_learning", DL, x, codes, ae.decode(codes), **said)


dl("standard", randomise(AutoEncoder(D, F)), "AutoEncoder", {"architecture": "standard"}, l1_penalty=0.1, resample_steps=None)
dl("april", randomise(AutoEncoderNew(D, F)), "AutoEncoderNew", {"architecture": "standard"}, decay_start=None)
dl("bare", randomise(AutoEncoder(D, F)), "AutoEncoder", {"architecture": "standard", "hook_name": None}, config=False)
gated = GatedAutoEncoder(D, F)
dl("gated", randomise(gated), "GatedAutoEncoder", {"architecture": "gated"}, l1_penalty=0.1)
jump = randomise(JumpReluAutoEncoder(D, F))
jump.threshold.data = torch.rand(F) * 0.8
dl("jumprelu", jump, "JumpReluAutoEncoder", {"architecture": "jumprelu"}, bandwidth=0.001, target_l0=20)
top_k = randomise(AutoEncoderTopK(D, F, K))
top_k.threshold.fill_(0.3)
dl("topk", top_k, "AutoEncoderTopK", {"architecture": "topk", "k": K}, k=K, auxk_alpha=0.03125)
batch = randomise(BatchTopKSAE(D, F, K))
batch.threshold.fill_(0.4)
dl("batchtopk", batch, "BatchTopKSAE", {"architecture": "jumprelu"}, k=K, top_k_aux=4)
unset = randomise(BatchTopKSAE(D, F, K))
dl("batchtopk_unset", unset, "BatchTopKSAE", {"architecture": "jumprelu"}, k=K)
matryoshka = randomise(MatryoshkaBatchTopKSAE(D, F, K, [4, 8, 12]))
matryoshka.threshold.fill_(0.4)
dl("matryoshka", matryoshka, "MatryoshkaBatchTopKSAE", {"architecture": "jumprelu"}, k=K, group_sizes=[4, 8, 12],
   group_fractions=[1 / 6, 1 / 3, 1 / 2], group_weights=[1, 1, 1])

# The backup that training leaves when it is cut off (training.py), with weights of rows divided by norm_factor.
backup = randomise(BatchTopKSAE(D, F, K))
backup.threshold.fill_(0.3)
optimizer = torch.optim.Adam(backup.parameters())
at = folder("dictionary_learning/backup/trainer_0")
config = dl_config("BatchTopKSAE", k=K)
torch.save({"step": 10, "ae": backup.state_dict(), "optimizer": optimizer.state_dict(), "config": config["trainer"],
            "norm_factor": 7.5}, at / "ae.pt")
(at / "config.json").write_text(json.dumps(config))
backup.scale_biases(7.5)
x = rows(scale=7.5)
codes = backup.encode(x)
case("dl_backup", "dictionary_learning/backup/trainer_0", "dictionary_learning", DL, x, codes, backup.decode(codes),
     architecture="jumprelu", hook_name="blocks.3.hook_resid_post")

# sparsify, by its own class.

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
from sparsify import SparseCoder, SparseCoderConfig

SP = "eai-sparsify 1.3.3"


def sparsify(name, module, said, **cfg):
    coder = SparseCoder(D, SparseCoderConfig(**cfg))
    for parameter in coder.parameters():
        bias = parameter.dim() == 1
        parameter.data = torch.randn_like(parameter) * (0.2 if bias else parameter.shape[1] ** -0.5)
    at = OUT / f"sparsify/{name}"
    coder.save_to_disk(at / module)
    (at / "config.json").write_text(json.dumps({"sae": {}, "model": "HuggingFaceTB/SmolLM2-135M", "ctx_len": 2048, "dataset": "EleutherAI/fineweb-edu-dedup-10b"}))
    x = rows()
    top_acts, top_indices, _ = coder.encode(x)
    codes = torch.zeros(N, F).scatter(1, top_indices, top_acts)
    x_hat = (codes @ coder.W_dec + coder.b_dec) + (x @ coder.W_skip.mT if coder.W_skip is not None else 0)
    forward = coder(x).sae_out
    assert torch.allclose(forward, x_hat, atol=1e-5)
    case(f"sparsify_{name}", f"sparsify/{name}/{module}", "sparsify", SP, x, codes, forward,
         model_name="HuggingFaceTB/SmolLM2-135M", context_size=2048, **said)


resid = {"hook_name": "blocks.2.hook_resid_post"}
sparsify("topk", "layers.2", {**resid, "architecture": "topk", "k": K}, num_latents=F, k=K)
sparsify("expansion", "layers.2", {**resid, "architecture": "topk", "k": K}, expansion_factor=3, k=K, normalize_decoder=False)
sparsify("groupmax", "layers.2", {**resid, "architecture": "groupmax", "k": 6}, num_latents=F, k=6, activation="groupmax")
sparsify("skip", "layers.2.mlp", {"architecture": "topk", "k": K, "hook_name": "layers.2.mlp"}, num_latents=F, k=K, skip_connection=True)
sparsify("transcoder", "layers.2.mlp", {"architecture": "topk", "k": K, "hook_name": "layers.2.mlp.input",
         "hook_name_out": "layers.2.mlp"}, num_latents=F, k=K, skip_connection=True, transcode=True)
# As versions before groupmax wrote it.
sparsify("early", "h.1", {"architecture": "topk", "k": K, "hook_name": "blocks.1.hook_resid_post"}, num_latents=F, k=K)
early = OUT / "sparsify/early/h.1/cfg.json"
early.write_text(json.dumps({"expansion_factor": 3, "normalize_decoder": True, "num_latents": F, "k": K, "signed": False, "d_in": D}))

# Formats that SAELens' loaders read.

import sae_lens.loading.pretrained_sae_loaders as loaders
from sae_lens import SAE
from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting

SL = "files by hand, sae-lens 6.54.12 loads and encodes"


def local_hub(root):
    def download(repo_id, filename, subfolder=None, **_):
        return str(root / (subfolder or "") / filename)

    loaders.hf_hub_download = download
    loaders.get_safetensors_tensor_shapes = lambda repo, name: {k: list(v.shape) for k, v in load_file(root / name).items()}


def saelens(loader, root, repo, sub, factor=None, **overrides):
    """A SAELens dictionary from its own loader, folded as `SAE.from_pretrained` folds."""
    local_hub(root)
    cfg, state, _ = loader(repo, sub, "cpu", False, overrides or None)
    cfg = handle_config_defaulting({**cfg, "device": "cpu", "dtype": "float32"})
    sae = SAE.from_dict(cfg)
    sae.process_state_dict_for_loading(state)
    sae.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
    if factor is not None and sae.cfg.normalize_activations == "expected_average_only_in":
        sae.fold_activation_norm_scaling_factor(factor)
    return sae


def sae_case(name, path, fmt, sae, x=None, **said):
    x = rows(d=sae.cfg.d_in) if x is None else x
    codes = sae.encode(x)
    x_hat = sae(x) if hasattr(sae, "W_skip") else sae.decode(codes)
    case(name, path, fmt, SL, x, codes, x_hat, **said)


def gemma_scope(name, repo, sub, lower=False, compressed=False, d=D, fortran=False, **said):
    at = folder(f"gemma_scope/{repo}/{sub}")
    arrays = {k: v.numpy() for k, v in weights(d, F, d).items()} | {"threshold": (torch.rand(F) * 0.8).numpy()}
    if fortran:
        arrays["W_enc"] = np.asfortranarray(arrays["W_enc"])
    if lower:
        arrays = {k.replace("W_", "w_"): v for k, v in arrays.items()}
    (np.savez_compressed if compressed else np.savez)(at / "params.npz", **arrays)
    loader = loaders.gemma_2_sae_huggingface_loader
    sae = saelens(loader, OUT / f"gemma_scope/{repo}", repo, sub, d_in=d, d_sae=F)
    if sae.cfg.reshape_activations == "hook_z":
        sae.turn_off_forward_pass_hook_z_reshaping()
    sae_case(name, f"gemma_scope/{repo}/{sub}", "gemma_scope", sae, architecture="jumprelu", prepend_bos=True,
             context_size=1024, **said)


gemma_scope("gemma_scope_res", "gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71",
            hook_name="blocks.20.hook_resid_post", model_name="google/gemma-2-2b")
gemma_scope("gemma_scope_lower", "gemma-scope-9b-it-res", "layer_9/width_16k/average_l0_14", lower=True, compressed=True,
            hook_name="blocks.9.hook_resid_post", model_name="google/gemma-2-9b-it")
gemma_scope("gemma_scope_mlp", "gemma-scope-9b-pt-mlp", "layer_3/width_16k/average_l0_9", fortran=True,
            hook_name="blocks.3.hook_mlp_out", model_name="google/gemma-2-9b")
gemma_scope("gemma_scope_att", "gemma-scope-2b-pt-att", "layer_3/width_16k/average_l0_9",
            hook_name="blocks.3.attn.hook_z", model_name="google/gemma-2-2b")
gemma_scope("gemma_scope_embedding", "gemma-scope-2b-pt-res", "embedding/width_4k/average_l0_6",
            hook_name="hook_embed", model_name="google/gemma-2-2b")

at = folder("gemma_scope/gemma-scope-2b-pt-transcoders/layer_4/width_16k/average_l0_88")
w = weights() | {"threshold": torch.rand(F) * 0.8}
np.savez(at / "params.npz", **{k: v.numpy() for k, v in w.items()})
sub = "layer_4/width_16k/average_l0_88"
root = OUT / "gemma_scope/gemma-scope-2b-pt-transcoders"
sae = saelens(loaders.gemma_2_transcoder_huggingface_loader, root, "gemma-scope-2b-pt-transcoders", sub, d_in=D, d_sae=F, d_out=D)
sae_case("gemma_scope_transcoder", f"gemma_scope/gemma-scope-2b-pt-transcoders/{sub}", "gemma_scope", sae,
         architecture="jumprelu", hook_name="blocks.4.ln2.hook_normalized", hook_name_out="blocks.4.hook_mlp_out",
         model_name="google/gemma-2-2b")


def gemma_scope_2(name, sub, config, affine=False, **said):
    at = folder(f"gemma_scope_2/gemma-scope-2-270m-pt/{sub}")
    w = {k.lower(): v for k, v in weights().items()} | {"threshold": torch.rand(F) * 0.8}
    if affine:
        w["affine_skip_connection"] = torch.randn(D, D) * 0.3
    save_file(w, at / "params.safetensors")
    full = {"width": F, "model_name": "gemma-v3-270m-pt", "architecture": "jump_relu", "l0": 20, "affine_connection": affine,
            "type": "transcoder" if "transcoder" in sub else "sae", **(config or {})}
    (at / "config.json").write_text(json.dumps(full))
    root = OUT / "gemma_scope_2/gemma-scope-2-270m-pt"
    sae = saelens(loaders.gemma_3_sae_huggingface_loader, root, "google/gemma-scope-2-270m-pt", sub)
    if config is None:
        (at / "config.json").unlink()
    sae_case(name, f"gemma_scope_2/gemma-scope-2-270m-pt/{sub}", "gemma_scope_2", sae, architecture="jumprelu",
             model_name="google/gemma-3-270m", prepend_bos=True, **said)


gemma_scope_2("gemma_scope_2_res", "resid_post/layer_12_width_16k_l0_big",
              {"hf_hook_point_in": "model.layers.12.output", "hf_hook_point_out": "model.layers.12.output"},
              hook_name="blocks.12.hook_resid_post")
gemma_scope_2("gemma_scope_2_inferred", "attn_out/layer_9_width_16k_l0_small", None, hook_name="blocks.9.attn.hook_z")
gemma_scope_2("gemma_scope_2_transcoder", "transcoder_all/layer_5_width_16k_l0_big_affine",
              {"hf_hook_point_in": "model.layers.5.pre_feedforward_layernorm.output",
               "hf_hook_point_out": "model.layers.5.post_feedforward_layernorm.output"}, affine=True,
              hook_name="blocks.5.mlp.hook_in", hook_name_out="blocks.5.hook_mlp_out")


def linear(w):
    return {"encoder.weight": w["W_enc"].T.contiguous(), "encoder.bias": w["b_enc"],
            "decoder.weight": w["W_dec"].T.contiguous(), "decoder.bias": w["b_dec"]}


def unit_rows(w):
    w["W_dec"] = w["W_dec"] / w["W_dec"].norm(dim=1, keepdim=True)
    return w


HYPER = {"device": "cuda", "seed": 42, "dtype": "torch.bfloat16", "hook_point_in": "blocks.15.hook_resid_post",
         "hook_point_out": "blocks.15.hook_resid_post", "use_decoder_bias": True,
         "apply_decoder_bias_to_pre_encoder": False, "expansion_factor": 3, "d_model": D, "d_sae": F,
         "bias_init_method": "all_zero", "act_fn": "jumprelu", "jump_relu_threshold": 0.6,
         "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": 6.0, "out": 6.0},
         "decoder_exactly_fixed_norm": False, "sparsity_include_decoder_norm": True, "use_glu_encoder": False,
         "init_decoder_norm": 0.5, "init_encoder_norm": None, "init_encoder_with_decoder_transpose": True, "lp": 1,
         "l1_coefficient": 8e-5, "l1_coefficient_warmup_steps": 0.1, "top_k": 50, "k_warmup_steps": 0.1,
         "use_batch_norm_mse": True, "use_ghost_grads": False, "tp_size": 1, "ddp_size": 1}


def llama_scope(path, hyper, w):
    at = folder(f"llama_scope/{path}")
    (at / "checkpoints").mkdir()
    (at / "hyperparams.json").write_text(json.dumps(hyper, indent=4))
    save_file(linear(w), at / "checkpoints/final.safetensors")


llama = {"model_name": "meta-llama/Llama-3.1-8B", "prepend_bos": True}
w = unit_rows(weights())
llama_scope("Llama3_1-8B-Base-L15R-8x", HYPER, w)
scale = math.sqrt(D) / 6.0
sae = saelens(loaders.llama_scope_sae_huggingface_loader, OUT / "llama_scope", "fnlp/Llama3_1-8B-Base-LXR-8x",
              "Llama3_1-8B-Base-L15R-8x", factor=scale, dtype="float32", jump_relu_threshold=0.6 * scale)
x = rows(scale=6.0 / math.sqrt(D))
sae_case("llama_scope", "llama_scope/Llama3_1-8B-Base-L15R-8x", "llama_scope", sae, x, architecture="jumprelu",
         hook_name="blocks.15.hook_resid_post", **llama)

# A transcoder with decoder rows of any norm, as its own library reads it: `from_config` with
# standardize_parameters_of_dataset_activation_scaling and transform_to_unit_decoder_norm, then the scalar threshold.
w = weights()
hyper = HYPER | {"hook_point_in": "blocks.8.ln2.hook_normalized", "hook_point_out": "blocks.8.hook_mlp_out",
                 "jump_relu_threshold": 0.25, "dataset_average_activation_norm": {"in": math.sqrt(D), "out": 0.7},
                 "act_fn": "topk"}
llama_scope("Llama3_1-8B-Base-L8TC-8x", hyper, w)
s_in, s_out = 1.0, math.sqrt(D) / 0.7
own = linear(w)
own["encoder.bias"] = own["encoder.bias"] / s_in
own["decoder.bias"] = own["decoder.bias"] / s_out
own["decoder.weight"] = own["decoder.weight"] * s_in / s_out
norm = own["decoder.weight"].norm(dim=0)
own["decoder.weight"] = own["decoder.weight"] / norm
own["encoder.weight"] = own["encoder.weight"] * norm[:, None]
own["encoder.bias"] = own["encoder.bias"] * norm
x = rows()
hidden = x @ own["encoder.weight"].T + own["encoder.bias"]
# With s_out the norms that the threshold meets are those after scaling, W_dec·s_in/s_out.
acts = hidden.where(hidden > 0.25, 0)
x_hat = acts @ own["decoder.weight"].T + own["decoder.bias"]
case("llama_scope_norms", "llama_scope/Llama3_1-8B-Base-L8TC-8x", "llama_scope",
     "files by hand, equations of OpenMOSS' sae.py", x, acts / norm * s_in, x_hat, architecture="jumprelu",
     hook_name="blocks.8.ln2.hook_normalized", hook_name_out="blocks.8.hook_mlp_out", **llama)

w = unit_rows(weights())
sub = "800M-Slimpajama-0-OpenR1-Math-220k/L7R"
at = folder(f"llama_scope/Llama-Scope-R1-Distill/{sub}")
(at / "config.json").write_text(json.dumps({"d_model": D, "expansion_factor": 3, "hook_point_in": "blocks.7.hook_resid_post",
    "hook_point_out": "blocks.7.hook_resid_post", "use_decoder_bias": True, "act_fn": "jumprelu", "norm_activation": "dataset-wise",
    "sparsity_include_decoder_norm": True, "top_k": 50, "sae_type": "sae", "use_glu_encoder": False, "dtype": "torch.float32"}))
save_file(linear(w) | {"log_jumprelu_threshold": (torch.rand(F) * 0.8 + 0.1).log(),
                       "dataset_average_activation_norm.blocks.7.hook_resid_post": torch.tensor(6.0)},
          at / "sae_weights.safetensors")
sae = saelens(loaders.llama_scope_r1_distill_sae_huggingface_loader, OUT / "llama_scope/Llama-Scope-R1-Distill",
              "fnlp/Llama-Scope-R1-Distill", sub, factor=scale)
sae_case("llama_scope_r1", f"llama_scope/Llama-Scope-R1-Distill/{sub}", "llama_scope", sae, rows(scale=6.0 / math.sqrt(D)),
         architecture="jumprelu", hook_name="blocks.7.hook_resid_post", model_name="deepseek-ai/DeepSeek-R1-Distill-Llama-8B")

# Goodfire and Qwen Scope: SAELens knows their releases by name and size only, so its classes encode what its loaders'
# lines would give: Linear weights transposed, no b_dec at the input.

from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

w = weights()
at = folder("goodfire/Llama-3.1-8B-Instruct-SAE-l19")
torch.save({k.replace("er.", "er_linear."): v for k, v in linear(w).items()}, at / "Llama-3.1-8B-Instruct-SAE-l19.pth")
sae = StandardSAE(StandardSAEConfig(d_in=D, d_sae=F, apply_b_dec_to_input=False))
sae.load_state_dict(w)
sae_case("goodfire", "goodfire/Llama-3.1-8B-Instruct-SAE-l19/Llama-3.1-8B-Instruct-SAE-l19.pth", "goodfire", sae,
         architecture="standard", hook_name="blocks.19.hook_resid_post", model_name="meta-llama/Llama-3.1-8B-Instruct")

w = weights()
at = folder("qwen_scope/SAE-Res-Qwen3-1.7B-Base-W32K-L0_5")
torch.save({"W_enc": w["W_enc"].T.contiguous(), "W_dec": w["W_dec"].T.contiguous(), "b_enc": w["b_enc"], "b_dec": w["b_dec"]},
           at / "layer4.sae.pt")
sae = TopKSAE(TopKSAEConfig(d_in=D, d_sae=F, k=K, apply_b_dec_to_input=False, rescale_acts_by_decoder_norm=False))
sae.load_state_dict(w)
sae_case("qwen_scope", "qwen_scope/SAE-Res-Qwen3-1.7B-Base-W32K-L0_5/layer4.sae.pt", "qwen_scope", sae,
         architecture="topk", k=K, hook_name="blocks.4.hook_resid_post", model_name="Qwen/Qwen3-1.7B-Base", prepend_bos=True)

# OpenAI, in bf16 for one of the weights as a check of number types.


def openai(name, path, activation, settings, normalise, **said):
    w = weights()
    state = {"pre_bias": w["b_dec"], "latent_bias": w["b_enc"], "stats_last_nonzero": torch.zeros(F, dtype=torch.long),
             "latents_activation_frequency": torch.ones(F), "latents_mean_square": torch.zeros(F),
             "encoder.weight": w["W_enc"].T.contiguous(), "decoder.weight": w["W_dec"].T.contiguous().bfloat16()}
    from collections import OrderedDict

    state = OrderedDict(state)
    state["activation"] = activation
    state["activation_state_dict"] = settings
    at = folder(os.path.dirname(path))
    torch.save(state, OUT / path)
    x = rows(scale=3.0) + 0.7
    mu = x.mean(-1, keepdim=True)
    std = (x - mu).std(-1, keepdim=True)
    rows_in = (x - mu) / (std + 1e-5) if normalise else x
    latents = (rows_in - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    if "k" in settings:
        top = torch.topk(latents, settings["k"], dim=-1)
        codes = torch.zeros_like(latents).scatter(-1, top.indices, torch.relu(top.values))
    else:
        codes = torch.relu(latents)
    x_hat = codes @ w["W_dec"].bfloat16().float() + w["b_dec"]
    x_hat = x_hat * std + mu if normalise else x_hat
    case(name, path, "openai", "file and equations by hand (openai/sparse_autoencoder model.py)", x, codes, x_hat,
         model_name="gpt2", **said)


openai("openai_topk", "openai/resid_post_mlp_v5_32k/autoencoders/7.pt", "TopK", {"k": K, "postact_fn": "ReLU"}, True,
       architecture="topk", k=K, hook_name="blocks.7.hook_resid_post")
openai("openai_relu", "openai/mlp_post_act_v4/autoencoders/2.pt", "ReLU", {}, False, architecture="standard",
       hook_name="blocks.2.mlp.hook_post")

# circuit-tracer, by its own class.

from circuit_tracer.transcoder.single_layer_transcoder import JumpReLU, SingleLayerTranscoder

CT = "circuit-tracer 0.5.0"


def circuit_tracer(name, activation, negative, skip, **said):
    coder = SingleLayerTranscoder(D, F, activation, 1, skip_connection=skip)
    w = weights()
    coder.W_enc.data, coder.W_dec.data = w["W_enc"].T.contiguous(), w["W_dec"]
    coder.b_enc.data, coder.b_dec.data = w["b_enc"], w["b_dec"]
    if skip:
        coder.W_skip.data = torch.randn(D, D) * 0.3
    at = folder(f"circuit_tracer/{name}")
    (at / "config.yaml").write_text("model_name: meta-llama/Llama-3.2-1B\nmodel_kind: transcoder_set\n"
                                    "feature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n")
    coder.to_safetensors(str(at / "layer_1.safetensors"))
    x = rows()
    codes = coder.encode(x)
    case(f"circuit_tracer_{name}", f"circuit_tracer/{name}/layer_1.safetensors", "circuit_tracer", CT, x, codes,
         coder.decode(codes, x) if skip else coder.decode(codes), hook_name="blocks.1.mlp.hook_in",
         hook_name_out="blocks.1.hook_mlp_out", model_name="meta-llama/Llama-3.2-1B", **said)


circuit_tracer("relu", torch.relu, False, True, architecture="standard")
circuit_tracer("jump", JumpReLU(torch.rand(F) * 0.6, 0.1), False, False, architecture="jumprelu")
circuit_tracer("signed", JumpReLU(torch.rand(F) * 0.6 - 0.3, 0.1), True, False, architecture="jumprelu without ReLU")

(OUT / "index.json").write_text(json.dumps(INDEX, indent=1) + "\n")
size = sum(f.stat().st_size for f in OUT.rglob("*") if f.is_file())
print(f"{len(INDEX)} dictionaries, {size // 1024} KiB")
