"""Opens attribution graphs with the programs that they are for.

    pip install circuit-tracer==0.5.0 jsonschema
    git clone https://github.com/hijohnnylin/neuronpedia
    python tests/graph_check.py GRAPH.json… --schema neuronpedia/apps/webapp/app/api/graph/graph-schema.json
    python tests/graph_check.py --write       makes tests/golden/graph-json/circuit-tracer.json

Each file must satisfy Neuronpedia's schema and circuit-tracer's pydantic models, keep what its page takes apart, and
have unique ids; feature files beside it must be those that its `scan` leads to. With `--site DIR` circuit-tracer is taken
from DIR, where it need not be importable as a whole.
"""

import argparse
import json
import math
import pathlib

from one_file import module

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("graphs", type=pathlib.Path, nargs="*")
parser.add_argument("--schema", type=pathlib.Path)
parser.add_argument("--site", type=pathlib.Path)
parser.add_argument("--write", action="store_true")
args = parser.parse_args()
models = module("circuit_tracer.frontend.graph_models", args.site)
features = module("circuit_tracer.frontend.feature_models", args.site)


def unpair(z):
    w = (math.isqrt(8 * z + 1) - 1) // 2
    y = z - w * (w + 1) // 2
    return w - y, y


def write():
    """A graph in which an error has the id of a feature, as circuit-tracer's own writer orders and saves it."""
    node = models.Node
    nodes = [
        node.feature_node(0, 1, 2, influence=0.3, activation=1.5),
        node.feature_node(1, 1, 5, influence=0.5, activation=2.0),
        node.feature_node(3, 2, 9, influence=0.7, activation=0.5),
        node.error_node(0, 2, influence=0.95),
        node.error_node(2, 1, influence=0.9),
        *(node.token_node(i, token, influence=0.99) for i, token in enumerate([2, 10, 11, 12])),
        node.logit_node(3, 77, ' x"y', 4, target_logit=True, token_prob=0.8),
        node.logit_node(3, 78, " z", 4, token_prob=0.1),
    ]
    assert nodes[0].node_id == nodes[4].node_id
    edges = [(0, 1, 1.0), (6, 1, 0.25), (1, 2, 0.5), (4, 2, 0.75), (6, 2, 0.125)]
    edges += [(0, 9, 0.5), (2, 9, 2.0), (3, 9, -0.5), (4, 9, -0.25), (8, 9, 0.0625), (2, 10, -1.0)]
    links = [{"source": nodes[s].node_id, "target": nodes[t].node_id, "weight": w} for s, t, w in edges]
    meta = models.Metadata(
        slug="golden", scan="org/set", transcoder_list=[], prompt_tokens=["<bos>", "a", ' "b"', " c"],
        prompt='<bos>a "b" c', node_threshold=0.8,
    )
    params = models.QParams(
        pinnedIds=["0_2_1", "E_10_1", "9_9_9"], supernodes=[["last", "3_9_2"], ["gone", "9_9_9"]], linkType="both",
        clickedId="5_77_3", sg_pos="",
    )
    model = models.Model(metadata=meta, qParams=params, nodes=nodes, links=links)
    value = json.loads(model.model_dump_json())
    # What circuit-tracer's server adds when its page saves.
    value["qParams"] |= {"pruningThreshold": "0.6", "clerps": json.dumps([[str(nodes[2].feature), "renamed"]])}
    path = pathlib.Path(__file__).parent / "golden/graph-json/circuit-tracer.json"
    path.write_text(json.dumps(value, indent=1) + "\n")


def check(path):
    text = path.read_text()
    value = json.loads(text)
    if args.schema:
        import jsonschema

        schema = json.loads(args.schema.read_text())
        jsonschema.Draft7Validator.check_schema(schema)
        errors = list(jsonschema.Draft7Validator(schema).iter_errors(value))
        assert not errors, errors[:3]
    model = models.Model.model_validate_json(text)
    ids = [node.node_id for node in model.nodes]
    assert len(set(ids)) == len(ids), "ids are unique"
    known = set(ids)
    for link in model.links:
        link = models.Link(**link)
        assert link.source in known and link.target in known, link
    tokens = value["metadata"]["prompt_tokens"]
    for node in model.nodes:
        assert 0 <= node.ctx_idx < len(tokens)
        if node.feature_type == "cross layer transcoder":
            layer, feature = unpair(node.feature)
            mine = models.Node.feature_node(layer, node.ctx_idx, feature, node.influence, node.activation)
            assert mine.model_dump() | {"clerp": node.clerp} == node.model_dump(), node
        elif node.feature_type == "logit":
            # As the page takes it apart.
            probability = float(node.clerp.split("(p=")[1].split(")")[0])
            assert abs(probability - node.token_prob) < 1e-3, node
            assert node.clerp.split('"')[1]
        elif node.feature_type == "embedding":
            assert node.layer == "E" and node.feature == node.ctx_idx, node
        else:
            assert node.feature_type == "mlp reconstruction error" and node.feature == -1, node
    clerps = value["qParams"].get("clerps")
    assert clerps is None or all(len(pair) == 2 for pair in json.loads(clerps))
    listed = json.loads((path.parent / "graph-metadata.json").read_text())["graphs"]
    (entry,) = [graph for graph in listed if graph["slug"] == path.stem]
    models.Metadata(**entry)
    scan, found = value["metadata"]["scan"], 0
    if scan.startswith("./data/"):
        for node in model.nodes:
            file = path.parent / scan.removeprefix("./data/") / f"{node.feature}.json"
            if node.feature_type == "cross layer transcoder" and file.exists():
                feature = features.Model.model_validate_json(file.read_text(), strict=False)
                assert feature.index == unpair(node.feature)[1]
                found += 1
        assert found, "features beside the graph"
    print(f"{path}: {len(ids)} nodes, {len(model.links)} links, {found} with their features")


if args.write:
    write()
for graph in args.graphs:
    check(graph)
