"""Checks a feature index against brute force in NumPy, from the shards of the cache and the weights of the dictionary.

    pip install numpy safetensors && python tests/features_check.py INDEX CACHE SAE [MODEL]

Activations are computed here in float64, in the index in float32, so values may differ in the last bits, and two
positions whose activations are closer than that may change places, which is counted; nothing else may differ. MODEL is
a Hugging Face directory, for the promoted tokens.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

TOLERANCE = 1e-6  # of the terms that an activation is the sum of: norm of the row times norm of the encoder column
ROWS = 2048


def tensors(path):
    """Also bfloat16, which NumPy lacks."""
    out = {}
    with safe_open(path, "np") as file:
        for name in file.keys():
            try:
                out[name] = file.get_tensor(name)
            except TypeError:
                import torch  # only for bfloat16
                from safetensors.torch import load_file as load
                return {k: v.to(torch.float32).numpy() for k, v in load(path).items()}
    return out


def read_cache(directory, hook):
    manifest = json.load(open(directory / "cache.json"))
    names = [h["name"] for h in manifest["settings"]["hooks"]]
    assert hook in names, f"{hook} is not in the cache: {names}"
    shards = [load_file(directory / s["file"]) for s in manifest["shards"]]
    join = lambda name: np.concatenate([s[name] for s in shards])
    return manifest["settings"], join("tokens"), join("documents"), join(hook)


def kept_rows(settings, tokens, rows, rules):
    kept = np.ones(tokens.shape, bool)
    if rules["skip_first"]:
        kept[:, 0] = False
    if rules["skip_special"]:
        kept &= ~np.isin(tokens, settings["special_token_ids"])
    if rules["max_norm_multiple"] is not None:
        norms = np.sqrt((rows.astype(np.float64) ** 2).sum(-1)).astype(np.float32)
        counted = np.sort(norms[kept])
        kept &= norms <= np.float32(rules["max_norm_multiple"]) * counted[len(counted) // 2]
    return kept


def encode(x, cfg, w):
    """Active (row, feature, value) of rows x."""
    if cfg["apply_b_dec_to_input"]:
        x = x - w["b_dec"]
    pre = x @ w["W_enc"] + w["b_enc"]
    kind = cfg["architecture"]
    if kind == "standard":
        z = np.maximum(pre, 0)
    elif kind == "jumprelu":
        z = np.where(pre > w["threshold"], np.maximum(pre, 0), 0)
    elif kind == "topk":
        k = cfg["k"]
        bound = np.partition(pre, -k, axis=1)[:, -k][:, None]
        z = np.where(pre >= bound, np.maximum(pre, 0), 0)
    else:
        sys.exit(f"this check does not know the architecture '{kind}'")
    row, feature = np.nonzero(z)
    return row, feature, z[row, feature]


def strongest_apart(places, values, context, k, window):
    """The k strongest positions, none inside the window of a stronger one of its sequence; places ascend."""
    taken = []
    for i in np.argsort(-values, kind="stable"):
        sequence, position = divmod(int(places[i]), context)
        near = any(s == sequence and p - window["before"] <= position <= p + window["after"] for s, p, _ in taken)
        if not near:
            taken.append((sequence, position, values[i]))
            if len(taken) == k:
                break
    return taken


def main(index_dir, cache_dir, sae_dir, model_dir=None):
    header = json.load(open(index_dir / "index.json"))
    run = json.load(open(index_dir / "run.json"))["settings"]
    index = load_file(index_dir / "features.safetensors")
    cfg = json.load(open(sae_dir / "cfg.json"))
    assert cfg.get("normalize_activations", "none") == "none", "this check knows no input normalisation"
    w = {name: value.astype(np.float64) for name, value in tensors(sae_dir / "sae_weights.safetensors").items()}
    settings, tokens, documents, rows = read_cache(cache_dir, header["hook_name"])
    context, f = settings["context_size"], header["d_sae"]
    kept = kept_rows(settings, tokens, rows, run["filter"]).ravel()
    assert (kept.sum(), (~kept).sum()) == (header["rows"], header["rows_left_out"]), "other rows are counted"
    rows = rows.reshape(-1, rows.shape[-1])
    places = np.flatnonzero(kept)
    found = ([], [], [])
    for first in range(0, len(places), ROWS):
        part = places[first : first + ROWS]
        row, feature, value = encode(rows[part].astype(np.float64), cfg, w)
        for to, what in zip(found, (part[row], feature, value)):
            to.append(what)
    place, feature, value = map(np.concatenate, found)
    norms = np.linalg.norm(rows[places[:: max(1, len(places) // 2000)]].astype(np.float64), axis=1)
    terms = np.median(norms) * np.linalg.norm(w["W_enc"], axis=0)
    order = np.argsort(feature, kind="stable")  # places stay ascending within a feature
    place, feature, value = place[order], feature[order], value[order]
    bounds = np.searchsorted(feature, np.arange(f + 1))

    offsets, k, window = index["examples.offsets"], header["settings"]["top_k"], header["settings"]["window"]
    swapped = miscounted = checked = drawn_checked = 0
    worst = 0.0
    active = []
    for i in range(f):
        at, v = place[bounds[i] : bounds[i + 1]], value[bounds[i] : bounds[i + 1]]
        active.append((at, v))
        # A pre-activation within rounding of zero may fall on either side.
        difference = abs(int(index["count"][i]) - len(v))
        miscounted += difference > 0
        assert difference <= 2 + len(v) // 10000, f"feature {i} fires {index['count'][i]} times, here {len(v)}"
        if len(v) == 0:
            continue
        close = TOLERANCE * max(v.max(), terms[i])
        own = range(offsets[i], offsets[i + 1])
        top = [e for e in own if index["examples.interval"][e] == 255]
        expected = strongest_apart(at, v, context, k, window)
        assert len(top) == len(expected), f"feature {i}: {len(top)} examples, here {len(expected)}"
        where = dict(zip(at.tolist(), v.tolist()))
        for e, (sequence, position, strength) in zip(top, expected):
            s, p, x = (int(index["examples.sequence"][e]), int(index["examples.position"][e]), index["examples.value"][e])
            here = where[s * context + p]
            worst = max(worst, abs(x - here) / max(v.max(), terms[i]))
            assert abs(x - here) <= close, f"feature {i}: {x} at {s}:{p}, here {here}"
            if (s, p) != (sequence, position):
                assert abs(x - strength) <= 2 * close, f"feature {i}: {s}:{p}, here {sequence}:{position}"
                swapped += 1
            checked += 1
        for e in own:
            s, p = int(index["examples.sequence"][e]), int(index["examples.position"][e])
            assert documents[s, p] == index["examples.document"][e]
            text = index["examples.text"][e]
            assert index["text.sequence"][text] == s and (index["text.tokens"][text] == tokens[s]).all()
            a, b = index["examples.firings"][e], index["examples.firings"][e + 1]
            around = dict(zip(index["firings.position"][a:b].tolist(), index["firings.value"][a:b].tolist()))
            for q in range(max(0, p - window["before"]), min(context, p + window["after"] + 1)):
                here = where.get(s * context + q, 0.0)
                assert abs(around.get(q, 0.0) - here) <= close, f"feature {i} around {s}:{p} at {q}: {around.get(q, 0.0)}, here {here} {close}"
            if index["examples.interval"][e] != 255:
                interval = int(index["examples.interval"][e])
                to = index["intervals.to"][i]
                low = 0.0 if interval == 0 else to[interval - 1]
                assert low <= index["examples.value"][e] < to[interval]
                drawn_checked += 1
        inside = np.histogram(v, np.concatenate([[0.0], index["intervals.to"][i]]))[0]
        assert np.abs(inside.astype(int) - index["intervals.count"][i].astype(int)).sum() <= 4, f"feature {i}"
        for name, here in [("mean", v.mean()), ("std", v.std()), ("max", v.max()), ("min", v.min())]:
            assert abs(index[name][i] - here) <= 1e-3 * v.max() + close, f"feature {i}: {name} {index[name][i]}, here {here}"
    print(f"{checked} strongest and {drawn_checked} drawn examples of {f} features agree in sequence, position, document,"
          f" text and activations; {swapped} changed places within rounding, {miscounted} features differ in count;"
          f" largest difference {worst:.1e} of the terms")

    unit = w["W_dec"] / np.maximum(np.linalg.norm(w["W_dec"], axis=1, keepdims=True), 1e-30)
    some = np.random.default_rng(0).choice(f, min(f, 300), replace=False)
    for i in some:
        cosines = unit @ unit[i]
        cosines[i] = -2
        listed = index["nearest.feature"][i]
        if np.linalg.norm(w["W_dec"][i]) > 0:
            np.testing.assert_allclose(np.sort(cosines)[::-1][: len(listed)], cosines[listed], atol=1e-5)
            np.testing.assert_allclose(index["nearest.cosine"][i], cosines[listed], atol=1e-5)
        largest = np.sort(np.abs(w["W_dec"][i]))[::-1][:3]
        np.testing.assert_allclose(np.abs(index["alignment.value"][i]), largest, rtol=1e-6)
    print(f"nearest features of {len(some)} features agree")

    exact = errors = 0
    worst = 0.0
    for i in some:
        for other, jaccard in zip(index["coactive.feature"][i], index["coactive.jaccard"][i]):
            if other == 2**32 - 1:
                break
            a, b = active[i][0], active[other][0]
            both = len(np.intersect1d(a, b, assume_unique=True))
            here = both / (len(a) + len(b) - both)
            if max(len(a), len(b)) < 192:
                assert abs(here - jaccard) < 2e-2, f"{i} and {other}: {jaccard}, here {here}"
                exact += 1
            else:
                errors += 1
                worst = max(worst, abs(here - jaccard))
    print(f"{exact} pairs of rare features fire together as often as listed; of {errors} estimated ones the worst is"
          f" {worst:.3f} off")

    if model_dir is not None:
        model = {}
        for path in sorted(model_dir.glob("*.safetensors")):
            model.update(tensors(path))
        end = lambda *names: next(v for n in names for k, v in model.items() if k.endswith(n)).astype(np.float64)
        unembed = end("lm_head.weight", "embed_tokens.weight", "wte.weight")
        gain = end("model.norm.weight")
        for lists, rows_ in [("", w["W_dec"]), ("_through_norm", w["W_dec"] * gain)]:
            for i in some:
                effects = unembed @ rows_[i]
                for name, sign in [("promoted", -1), ("suppressed", 1)]:
                    listed = index[f"{name}{lists}.token"][i]
                    size = 1e-5 * max(1.0, np.abs(effects).max())
                    np.testing.assert_allclose(effects[listed], effects[np.argsort(sign * effects)[: len(listed)]], atol=size)
                    np.testing.assert_allclose(index[f"{name}{lists}.logit"][i], effects[listed], atol=size)
        print(f"promoted and suppressed tokens of {len(some)} features agree, raw and through the RMSNorm")


if len(sys.argv) < 4:
    sys.exit(__doc__)
main(*map(Path, sys.argv[1:5]))
