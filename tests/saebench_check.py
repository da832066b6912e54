"""Checks result files against SAEBench's own models: every required key is there, of its type, and none besides.

    pip install --no-deps sae-bench==0.6.0 && pip install pydantic && python tests/saebench_check.py FILE...
"""

import json
import sys
from dataclasses import fields, is_dataclass

from pydantic import TypeAdapter
from sae_bench.evals.core.eval_output import CoreEvalOutput


def no_more_than(value, parsed, path):
    if is_dataclass(parsed):
        unknown = set(value) - {f.name for f in fields(parsed)}
        assert not unknown, f"{path}: keys that SAEBench does not have: {unknown}"
        for f in fields(parsed):
            no_more_than(value[f.name], getattr(parsed, f.name), f"{path}.{f.name}")
    elif isinstance(parsed, list):
        for i, (v, p) in enumerate(zip(value, parsed, strict=True)):
            no_more_than(v, p, f"{path}[{i}]")


for name in sys.argv[1:]:
    text = open(name).read()
    result = TypeAdapter(CoreEvalOutput).validate_json(text, strict=True)
    no_more_than(json.loads(text), result, name)
    assert result.eval_type_id == "core" and len(result.eval_result_details) == result.sae_cfg_dict["d_sae"]
    print(f"{name}: SAEBench reads it, {len(result.eval_result_details)} features")
