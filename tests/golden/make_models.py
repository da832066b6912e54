"""Tiny random checkpoints with awkward settings, and what transformers computes on them, under TransformerLens names.

    python3 tests/golden/make_models.py [NAME...]       # transformers 4.57.3, torch, safetensors
    python3 tests/golden/make_models.py --mixtures      # mixtures of experts, to tests/golden/mixtures

Writes tests/golden/models/NAME/{config.json, model*.safetensors, golden.safetensors}: all checkpoints, or those named.
The checkpoints are listed in families/checkpoints.py, module names in families/modules.py, and families/capture.py
picks the values. Computed in float32 from weights rounded to bfloat16, so that every stored number type holds them.
"""
import json, pathlib, shutil, sys, zlib
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, logging
from transformers.models.opt.modeling_opt import OPTPreTrainedModel
from transformers.models.stablelm.modeling_stablelm import StableLmPreTrainedModel
from families.capture import capture
from families.checkpoints import CHECKPOINTS, MIXTURES

HERE = pathlib.Path(__file__).parent
VISION = ("model.vision_tower", "model.multi_modal_projector")
for crashing in (OPTPreTrainedModel, StableLmPreTrainedModel):  # on norms without bias; all weights are set below anyway
    crashing._init_weights = lambda self, module: None


def make(checkpoint):
    """The model with random weights: norms near their neutral weight, biases near zero."""
    kind = AutoModelForImageTextToText if checkpoint.config.model_type == "gemma3" else AutoModelForCausalLM
    model = kind.from_config(checkpoint.config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        spread = torch.randn_like(parameter)
        parameter.copy_(parameter + 0.2 * spread if parameter.ndim == 1 else 1.4 * spread / parameter.shape[-1] ** 0.5)
        parameter.copy_(parameter.bfloat16().float())
    return model


def stored_weights(model, checkpoint):
    """The tensors of the file: a tied head is not in it, buffers that old files carry are."""
    state, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        name = name.removeprefix(checkpoint.strip)
        old, new = checkpoint.rename
        if old and name.startswith("model.language_model."):
            name = "language_model.model." + name.removeprefix("model.language_model.")
        elif old and name.startswith(VISION):
            name = new + name.removeprefix(old)
        state[name] = tensor.to(getattr(torch, checkpoint.dtype)).contiguous()
    return state | {name: torch.ones(1, 1, 4, 4) for name in checkpoint.extra}


def save_weights(state, out, shards):
    if shards == 1:
        return save_file(state, out / "model.safetensors", {"format": "pt"})
    keys, index = sorted(state), {}
    for n in range(shards):
        file = f"model-{n + 1:05}-of-{shards:05}.safetensors"
        part = keys[len(keys) * n // shards : len(keys) * (n + 1) // shards]
        save_file({key: state[key] for key in part}, out / file)
        index |= dict.fromkeys(part, file)
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}, indent=1))


def config_json(checkpoint):
    """config.json with the checkpoint's overrides; a sparse one leaves out what equals the class's default."""
    def written(config, overrides):
        text = json.loads(config.to_json_string())
        default = json.loads(type(config)().to_json_string()) if checkpoint.sparse else {}
        own = lambda key: key == "model_type" or key not in default or text[key] != default[key]
        text = {key: value for key, value in text.items() if own(key)}
        text |= overrides
        return {key: value for key, value in text.items() if value is not None or key not in overrides}

    config, overrides = checkpoint.config, checkpoint.written
    if hasattr(config, "text_config"):
        text = written(config, {"text_config": written(config.text_config, overrides), "vision_config": written(config.vision_config, {})})
    else:
        text = written(config, overrides)
    return json.dumps(text, indent=1, sort_keys=True) + "\n"


def write(name, checkpoint, out):
    torch.manual_seed(zlib.crc32(name.encode()))
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    model = make(checkpoint)
    checkpoint.config.architectures = [type(model).__name__]
    golden = capture(model, torch.randint(3, 40, (checkpoint.batch, checkpoint.length)))
    save_file(golden, out / "golden.safetensors")
    save_weights(stored_weights(model, checkpoint), out, checkpoint.shards)
    checkpoint.config.dtype = checkpoint.dtype
    (out / "config.json").write_text(config_json(checkpoint))
    size = sum(file.stat().st_size for file in out.iterdir()) // 1024
    print(f"{name}: {size} KiB, {len(golden)} values, largest logit {golden['logits'].abs().max():.2f}")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    logging.set_verbosity_error()
    names = sys.argv[1:]
    mixtures = "--mixtures" in names
    wanted = [name for name in names if not name.startswith("--")]
    for name, checkpoint in (MIXTURES if mixtures else CHECKPOINTS).items():
        if not wanted or name in wanted:
            write(name, checkpoint, HERE / ("mixtures" if mixtures else "models") / name)
