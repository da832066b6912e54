"""Tiny dictionaries trained and stored by SAELens itself, and what SAELens computes with them.

    pip install sae-lens==6.54.12
    python tests/golden/make_dictionaries.py        # torch 2.x on a CPU; the same seeds give the same files

Writes tests/golden/dictionaries/NAME/: `cfg.json` and `sae_weights.safetensors` as SAELens stores them, and
`check.safetensors` with 16 rows `x` [16, 8], their `codes` [16, 24] and reconstructions `x_hat` [16, d_out], float32.
Names ending in `_checkpoint` are SAELens' training checkpoints, whose outputs are those of the inference model that
SAELens makes of them; names beginning with `legacy` have the flat configuration from before version 6.
"""

import json
import pathlib
import shutil

import torch
from safetensors.torch import load_file, save_file

from sae_lens import (
    SAE,
    AbsTopKTrainingSAE,
    AbsTopKTrainingSAEConfig,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.transcoder import (
    JumpReLUSkipTranscoder,
    JumpReLUSkipTranscoderConfig,
    JumpReLUTranscoder,
    JumpReLUTranscoderConfig,
    SkipTranscoder,
    SkipTranscoderConfig,
    Transcoder,
    TranscoderConfig,
)
from sae_lens.training.sae_trainer import SAETrainer

ROOT = pathlib.Path(__file__).parent / "dictionaries"
D_IN, D_SAE, D_OUT, ROWS = 8, 24, 6, 16
BATCH, STEPS = 64, 400
HOOK = {"model_name": "gpt2", "hook_name": "blocks.8.hook_resid_pre", "context_size": 128, "prepend_bos": True}


def rows(n, seed):
    """Sparse sums of 16 fixed directions with an offset, so that there is something to learn."""
    directions = torch.randn(16, D_IN, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    strengths = torch.rand(n, 16, generator=generator) * (torch.rand(n, 16, generator=generator) < 0.15)
    return 3.0 * strengths @ directions + 0.1 * torch.randn(n, D_IN, generator=generator) + 0.4


def batches():
    seed = 100
    while True:
        seed += 1
        yield rows(BATCH, seed)


def trained(cls, config, **settings):
    """The training SAE after a few hundred steps of SAELens' own trainer."""
    torch.manual_seed(1)
    sae = cls(config(d_in=D_IN, d_sae=D_SAE, **settings))
    for key, value in HOOK.items():
        setattr(sae.cfg.metadata, key, value)
    trainer_cfg = SAETrainerConfig(
        total_training_samples=BATCH * STEPS,
        train_batch_size_samples=BATCH,
        lr=3e-3,
        lr_end=3e-4,
        n_batches_for_norm_estimate=20,
    )
    SAETrainer(trainer_cfg, sae, batches()).fit()
    return sae.eval()


@torch.no_grad()
def outputs(sae, x):
    """What SAELens encodes and puts out, the heads of hook_z joined."""
    given = x.reshape(len(x), 2, -1) if sae.cfg.reshape_activations == "hook_z" else x
    codes = sae.encode(given)
    return {"x": x, "codes": codes, "x_hat": sae(given).reshape(len(x), -1)}


def check(name, sae, x=None, tensors=None):
    """Stores what SAELens computes beside the dictionary, and says what it is."""
    tensors = tensors or outputs(sae, rows(ROWS, 7) if x is None else x)
    assert 0 < (tensors["codes"] != 0).float().mean() < 0.9, name
    save_file({key: value.contiguous() for key, value in tensors.items()}, ROOT / name / "check.safetensors")
    l0 = (tensors["codes"] != 0).sum(-1).float().mean()
    print(f"{name}: {sae.cfg.architecture()}, {sae.cfg.normalize_activations}, L0 {l0:.1f}")


def tidy(name):
    """The configuration, one key a line, without the machine's device."""
    path = ROOT / name / "cfg.json"
    cfg = json.loads(path.read_text())
    path.write_text(json.dumps(cfg, indent=1) + "\n")
    return cfg


def stored(name, sae):
    """A dictionary ready for use, opened again as a user would."""
    sae.save_inference_model(ROOT / name)
    tidy(name)
    check(name, SAE.load_from_disk(ROOT / name))


def checkpoint(name, sae, inference):
    sae.save_model(ROOT / f"{name}_checkpoint")
    tidy(f"{name}_checkpoint")
    check(f"{name}_checkpoint", SAE.load_from_disk(ROOT / inference))


def make_autoencoders():
    stored("standard", trained(StandardTrainingSAE, StandardTrainingSAEConfig, l1_coefficient=1.0))
    plain = {"l1_coefficient": 1.0, "apply_b_dec_to_input": False}
    stored("standard_raw_input", trained(StandardTrainingSAE, StandardTrainingSAEConfig, **plain))
    stored("gated", trained(GatedTrainingSAE, GatedTrainingSAEConfig, l1_coefficient=1.0))
    top_k = trained(TopKTrainingSAE, TopKTrainingSAEConfig, k=4)
    stored("topk", top_k)
    checkpoint("topk", top_k, "topk")
    stored("topk_plain", trained(TopKTrainingSAE, TopKTrainingSAEConfig, k=4, rescale_acts_by_decoder_norm=False))
    stored("abstopk", trained(AbsTopKTrainingSAE, AbsTopKTrainingSAEConfig, k=4))
    jump = trained(JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig, l0_coefficient=1.0, jumprelu_init_threshold=0.1)
    stored("jumprelu", jump)
    checkpoint("jumprelu", jump, "jumprelu")
    batch = trained(BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, k=3.5)
    stored("batchtopk", batch)
    checkpoint("batchtopk", batch, "batchtopk")
    nested = trained(MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig, k=3, matryoshka_widths=[8, 24])
    stored("matryoshka_batchtopk", nested)
    checkpoint("matryoshka_batchtopk", nested, "matryoshka_batchtopk")


def make_normalised():
    standard = (StandardTrainingSAE, StandardTrainingSAEConfig)
    stored("layer_norm", trained(*standard, l1_coefficient=1.0, normalize_activations="layer_norm"))
    stored("constant_norm_rescale", trained(*standard, l1_coefficient=1.0, normalize_activations="constant_norm_rescale"))
    stored("topk_layer_norm", trained(TopKTrainingSAE, TopKTrainingSAEConfig, k=4, normalize_activations="layer_norm"))
    # The trainer folds the factor it estimated; scaled back, the weights are those of a release that did not.
    folded = trained(*standard, l1_coefficient=1.0, normalize_activations="expected_average_only_in")
    stored("folded_average", folded)
    factor, name = 1.75, "unfolded_average"
    folded.fold_activation_norm_scaling_factor(1 / factor)
    folded.save_inference_model(ROOT / name)
    cfg = tidy(name)
    cfg["normalize_activations"] = "expected_average_only_in"
    cfg["metadata"]["norm_scaling_factor"] = factor
    (ROOT / name / "cfg.json").write_text(json.dumps(cfg, indent=1) + "\n")
    sae = SAE.load_from_disk(ROOT / name)
    sae.fold_activation_norm_scaling_factor(factor)
    check(name, sae)


def make_places():
    standard = (StandardTrainingSAE, StandardTrainingSAEConfig)
    heads = trained(*standard, l1_coefficient=1.0)
    heads.cfg.metadata.hook_name = "blocks.8.attn.hook_z"
    heads.cfg.reshape_activations = "hook_z"
    stored("hook_z", heads)
    # SAELens centres the model's weights instead of the rows, so it is given centred rows.
    centered = trained(*standard, l1_coefficient=1.0)
    centered.cfg.metadata.model_from_pretrained_kwargs = {"center_writing_weights": True}
    centered.save_inference_model(ROOT / "centered")
    tidy("centered")
    sae, x = SAE.load_from_disk(ROOT / "centered"), rows(ROWS, 7)
    mean = x.mean(-1, keepdim=True)
    seen = outputs(sae, x - mean)
    check("centered", sae, tensors={"x": x, "codes": seen["codes"], "x_hat": seen["x_hat"] + mean})


def make_transcoders():
    kinds = {
        "transcoder": (Transcoder, TranscoderConfig),
        "skip_transcoder": (SkipTranscoder, SkipTranscoderConfig),
        "jumprelu_transcoder": (JumpReLUTranscoder, JumpReLUTranscoderConfig),
        "jumprelu_skip_transcoder": (JumpReLUSkipTranscoder, JumpReLUSkipTranscoderConfig),
    }
    for seed, (name, (cls, config)) in enumerate(kinds.items()):
        torch.manual_seed(seed)
        sae = cls(config(d_in=D_IN, d_sae=D_SAE, d_out=D_OUT, apply_b_dec_to_input=False))
        # SAELens cannot train these and starts biases, thresholds and skip connections at zero.
        for parameter in (sae.b_enc, sae.b_dec, getattr(sae, "W_skip", None), getattr(sae, "threshold", None)):
            if parameter is not None:
                torch.nn.init.normal_(parameter, std=0.5)
        sae.cfg.metadata.hook_name = "blocks.3.hook_mlp_in"
        sae.cfg.metadata.hook_name_out = "blocks.3.hook_mlp_out"
        sae.save_model(ROOT / name)
        tidy(name)
        check(name, SAE.load_from_disk(ROOT / name))


def make_legacy():
    flat = {
        "model_name": "gpt2-small",
        "hook_point": "blocks.8.hook_resid_pre",
        "hook_point_layer": 8,
        "hook_point_head_index": None,
        "dataset_path": "Skylion007/openwebtext",
        "context_size": 128,
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "torch.float32",
        "device": "cpu",
        "l1_coefficient": 8e-05,
        "lp_norm": 1,
        "use_ghost_grads": False,
    }
    variants = {
        "legacy": ("standard", {}),
        "legacy_topk": ("topk_plain", {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}}),
        "legacy_jumprelu": ("jumprelu", {"architecture": "jumprelu", "hook_name": "blocks.8.attn.hook_z"}),
    }
    for name, (source, keys) in variants.items():
        cfg = flat | keys
        if "hook_name" in cfg:
            del cfg["hook_point"]
        weights = load_file(ROOT / source / "sae_weights.safetensors")
        # As files of that time: half precision here and there, and factors of one.
        if name == "legacy":
            weights = {key: value.half() for key, value in weights.items()}
            weights["scaling_factor"] = torch.ones(D_SAE)
        (ROOT / name).mkdir()
        save_file(weights, ROOT / name / "sae_weights.safetensors")
        (ROOT / name / "cfg.json").write_text(json.dumps(cfg, indent=1) + "\n")
        check(name, SAE.load_from_disk(ROOT / name))


def main():
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir()
    make_autoencoders()
    with torch.no_grad():
        make_transcoders()
    make_normalised()
    make_places()
    make_legacy()


if __name__ == "__main__":
    main()
