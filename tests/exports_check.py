"""Opens exported features with the programs that they are for, and compares what those make of them.

    mechinterp features --index index --sae sae --export saedashboard --out dashboard
    mechinterp features --index index --sae sae --export neuronpedia --out exports
    mechinterp features --index index --export circuit-tracer --out panel
    pip install sae-dashboard==0.8.0 circuit-tracer==0.5.0 neuronpedia==1.2.1 orjson python-dotenv typer
    git clone https://github.com/hijohnnylin/neuronpedia
    python tests/exports_check.py dashboard exports panel neuronpedia

Neuronpedia's own converter is run on the SAEDashboard batches; what it writes must be the export. With `--site DIR` the
packages are taken from DIR, where they need not be importable as a whole.
"""

import argparse
import gzip
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

from one_file import module

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("dashboard", type=pathlib.Path)
parser.add_argument("exports", type=pathlib.Path)
parser.add_argument("panel", type=pathlib.Path)
parser.add_argument("neuronpedia", type=pathlib.Path)
parser.add_argument("--site", type=pathlib.Path)
args = parser.parse_args()


def lines(path):
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else open(path)
    with opened as file:
        return [json.loads(line) for line in file]


def same(ours, theirs, where):
    if isinstance(ours, float) or isinstance(theirs, float):
        assert math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-12), (where, ours, theirs)
    else:
        assert ours == theirs, (where, ours, theirs)


# SAEDashboard reads its batches and writes the same again.
Batch = module("sae_dashboard.neuronpedia.neuronpedia_dashboard", args.site).NeuronpediaDashboardBatch
features = 0
for path in sorted(args.dashboard.glob("batch-*.json")):
    text = json.loads(path.read_text())
    again = Batch(**text).to_dict()
    assert again == text, path
    assert list(again["features"][0]) == list(text["features"][0]), "the order of keys"
    features += len(text["features"])
print(f"SAEDashboard reads {features} features")

# Neuronpedia's tables take every row, and its converter makes the same rows of the batches.
(source,) = [path.parent for path in args.exports.glob("*/*/source.jsonl")]
utils = (args.neuronpedia / "utils/neuronpedia-utils").resolve()
sys.path.insert(0, str(utils))
from neuronpedia_utils.db_models.activation import Activation  # noqa: E402
from neuronpedia_utils.db_models.explanation import Explanation  # noqa: E402
from neuronpedia_utils.db_models.feature import Feature  # noqa: E402
from neuronpedia_utils.db_models.model import Model  # noqa: E402
from neuronpedia_utils.db_models.source import Source  # noqa: E402
from neuronpedia_utils.db_models.source_release import SourceRelease  # noqa: E402
from neuronpedia_utils.db_models.source_set import SourceSet  # noqa: E402

for name, table in [("release", SourceRelease), ("model", Model), ("sourceset", SourceSet), ("source", Source)]:
    (row,) = lines(source / f"{name}.jsonl")
    table(**row)
tables = {"features": Feature, "activations": Activation, "explanations": Explanation}
rows = {part: [row for path in sorted((source / part).glob("batch-*")) for row in lines(path)] for part in tables}
for part, table in tables.items():
    for row in rows[part]:
        table(**row)
ids = [row["id"] for part in ("activations", "explanations") for row in rows[part]]
assert len(set(ids)) == len(ids), "identifiers are unique"
print("Neuronpedia takes", ", ".join(f"{len(found)} {part}" for part, found in rows.items()))

about = lines(source / "source.jsonl")[0]
with tempfile.TemporaryDirectory() as work:
    options = {
        "saedashboard-output-dir": args.dashboard.resolve(),
        "creator-name": "x",
        "release-id": "x",
        "release-title": "x",
        "url": "x",
        "model-name": about["modelId"],
        "neuronpedia-source-set-id": about["setName"],
        "neuronpedia-source-set-description": "x",
        "hf-weights-repo-id": "x",
        "hf-weights-path": "x",
        "hook-point": "hook_resid_post",
        "layer-num": about["id"].split("-")[0],
        "prompts-huggingface-dataset-path": about["dataset"],
        "n-prompts-total": about["num_prompts"],
        "n-tokens-in-prompt": about["num_tokens_in_prompt"],
    }
    script = utils / "neuronpedia_utils/convert-saedashboard-to-neuronpedia-export.py"
    command = [sys.executable, str(script), *(f"--{name}={value}" for name, value in options.items())]
    creator = rows["activations"][0]["creatorId"]
    paths = os.pathsep.join([str(utils), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "DEFAULT_CREATOR_ID": creator, "PYTHONPATH": paths}
    command.append("--zero-out-bos-token")
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    theirs = pathlib.Path(work) / "exports" / about["modelId"] / about["id"]
    in_order = {part: sorted((theirs / part).glob("batch-*"), key=lambda path: int(path.name.split(".")[0][6:])) for part in ("features", "activations")}
    converted = {part: [row for path in paths for row in lines(path)] for part, paths in in_order.items()}
ours = {str(row["index"]): row for row in rows["features"]}
own = {"id", "createdAt", "index", "topkCosSimIndices", "topkCosSimValues", "sourceSetName"}
for row in converted["features"]:
    for key in row.keys() - own:
        same(ours[str(row["index"])].get(key), row[key], ("feature", row["index"], key))
assert len(rows["activations"]) == len(converted["activations"])
for mine, row in zip(rows["activations"], converted["activations"]):
    same(str(mine["index"]), str(row["index"]), "order")
    for key in row.keys() - own:
        # Columns that stay empty may be left out.
        same(mine.get(key), row[key], ("activation", row["index"], key))
print(f"Neuronpedia's converter makes the same of {len(converted['features'])} features")

# circuit-tracer's panel.
Model = module("circuit_tracer.frontend.feature_models", args.site).Model
panels = sorted(args.panel.glob("features/*/*.json"))
for path in panels:
    feature = Model.model_validate_json(path.read_text(), strict=False)
    z = int(path.stem)
    w = (math.isqrt(8 * z + 1) - 1) // 2
    assert z - w * (w + 1) // 2 == feature.index, path
    for quantile in feature.examples_quantiles:
        for example in quantile.examples:
            assert len(example.tokens) == len(example.tokens_acts_list) > example.train_token_ind
print(f"circuit-tracer reads {len(panels)} features")
