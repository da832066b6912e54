"""Writes core_fields.json: the keys and types of SAEBench's core result, from SAEBench's own pydantic models.

    pip install --no-deps sae-bench==0.6.0 && pip install pydantic && python make_core_fields.py
"""

import json
from pathlib import Path

from pydantic import TypeAdapter
from sae_bench.evals.core.eval_output import CoreEvalOutput

OPAQUE = ["sae_cfg_dict", "eval_result_unstructured"]


def shape(schema: dict, definitions: dict):
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rsplit("/", 1)[1]]
    if "anyOf" in schema:
        schema = next(s for s in schema["anyOf"] if s.get("type") != "null")
    if schema.get("type") == "object":
        fields = schema["properties"].items()
        return {k: "object" if k in OPAQUE else shape(v, definitions) for k, v in sorted(fields)}
    if schema.get("type") == "array":
        return [shape(schema["items"], definitions)]
    return schema["type"]


schema = TypeAdapter(CoreEvalOutput).json_schema()
fields = shape(schema, schema["$defs"])
Path(__file__).with_name("core_fields.json").write_text(json.dumps(fields, indent=1) + "\n")
