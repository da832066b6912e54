"""PyTorch `.bin` files, whole, sharded and hostile, and the tensors they hold.

    python3 tests/golden/make_weights.py        # torch, safetensors

Writes tests/golden/weights/. The values are those of tests/golden/gguf/llama.safetensors (make_gguf.py) and
of a few awkward tensors.
"""
import json, os, pathlib, pickle, zipfile
import torch
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).parent
OUT = HERE / "weights"
OUT.mkdir(exist_ok=True)
torch.manual_seed(0)

# A model as Hugging Face saved it before safetensors: one file, and two shards with an index.
model = {k: v for k, v in load_file(HERE / "gguf/llama.safetensors").items() if not k.startswith("golden.")}
torch.save(model, OUT / "pytorch_model.bin")
names, index = sorted(model), {}
for n, part in enumerate([names[: len(names) // 2], names[len(names) // 2 :]]):
    file = f"pytorch_model-{n + 1:05}-of-00002.bin"
    torch.save({k: model[k] for k in part}, OUT / file)
    index |= {k: file for k in part}
(OUT / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}, indent=1))

# Views of storages in every way that torch writes them.
storage = torch.randn(4, 6)
views = {
    "f32": storage,
    "f32.transposed": storage.t(),
    "f32.tail": storage[2:],
    "f32.columns": storage[:, 1:4],
    "f32.strided": storage[::2, ::3],
    "f32.permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
    "f32.expanded": torch.randn(1, 5).expand(3, 5),
    "f32.scalar": torch.tensor(1.5),
    "f32.empty": torch.empty(0, 3),
    "bf16": torch.randn(3, 5).bfloat16(),
    "f16": torch.randn(3, 5).half(),
    "f64": torch.randn(3, dtype=torch.float64),
    "i64": torch.tensor([3, -1]),
    "u8": torch.tensor([3, 255], dtype=torch.uint8),
    "parameter": torch.nn.Parameter(torch.randn(2, 2)),
}
views["tied"] = views["bf16"]
torch.save({**views, "step": 7, "name": "a test", "complex": torch.zeros(2, dtype=torch.complex64)}, OUT / "views.bin")
save_file({k: v.detach().float().contiguous().clone() for k, v in views.items()}, OUT / "views.safetensors")
state = torch.nn.Linear(3, 2).state_dict()
torch.save(state, OUT / "module.bin", pickle_protocol=4)
torch.save(state, OUT / "legacy.bin", _use_new_zipfile_serialization=False)


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


with zipfile.ZipFile(OUT / "attack.bin", "w") as archive:
    archive.writestr(zipfile.ZipInfo("attack/data.pkl"), pickle.dumps({"weight": Attack()}, protocol=2))
print(sum(f.stat().st_size for f in OUT.iterdir()) // 1024, "KiB")
