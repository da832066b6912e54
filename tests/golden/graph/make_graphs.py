"""Attribution graphs of circuit-tracer on tiny random models and transcoder sets.

    python3 tests/golden/graph/make_graphs.py     # circuit-tracer 0.5.0, transformer-lens 3.2.1, transformers 4.57.3

Writes beside itself a Llama-like and a Gemma-2-like checkpoint of four layers; sets/ with three transcoder sets in
circuit-tracer's layout that fit both (JumpReLU; ReLU with a linear skip; a cross-layer transcoder), one for each place
that features can read; and MODEL/graphs.safetensors with what `attribute`, `prune_graph` and `compute_graph_scores` give
in float32. Rows of errors and tokens, which are zero, and columns of logits are left out of the matrices.
"""
import copy, pathlib, sys
import torch
import transformers as hf
import yaml
from safetensors.torch import save_file
from transformer_lens import HookedTransformerConfig

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from make_circuits import FAMILIES
from make_models import make
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.graph import compute_graph_scores, compute_node_influence, prune_graph
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet

LAYERS, D, F = 4, 24, 32
TOKENS = [1, 9, 21, 17, 8, 30]
SIZE = dict(vocab_size=40, hidden_size=D, intermediate_size=36, num_hidden_layers=LAYERS, num_attention_heads=4,
            num_key_value_heads=2, head_dim=6, max_position_embeddings=32, bos_token_id=1, eos_token_id=2)
MODELS = dict(
    llama=hf.LlamaConfig(**SIZE, rms_norm_eps=1e-6, tie_word_embeddings=False),
    gemma2=hf.Gemma2Config(**SIZE, query_pre_attn_scalar=7, sliding_window=3, attn_logit_softcapping=3.0,
                           final_logit_softcapping=4.0))
HOOKS = {"jumprelu": ("mlp.hook_in", "mlp.hook_out"), "skip": ("ln2.hook_normalized", "hook_mlp_out"),
         "cross-layer": ("hook_resid_mid", "hook_mlp_out")}


class Numbers:
    """In place of a tokenizer: tokens are their numbers."""
    all_special_ids, vocab_size, padding_side = [1], SIZE["vocab_size"], "right"

    def decode(self, token):
        return str(token)


def random(*shape):
    return torch.randn(shape) / shape[-1] ** 0.5


def per_layer(name):
    layers = {}
    for i in range(LAYERS):
        activation = JumpReLU(0.3 + 0.2 * torch.rand(F)) if name == "jumprelu" else torch.nn.functional.relu
        layer = SingleLayerTranscoder(D, F, activation, i, skip_connection=name == "skip", dtype=torch.float32)
        layer.W_enc.data, layer.W_dec.data = random(F, D), random(F, D)
        layer.b_enc.data, layer.b_dec.data = 0.3 * torch.randn(F) - 1.1, 0.3 * torch.randn(D)
        if name == "skip":
            layer.W_skip.data = 0.5 * random(D, D)
        layers[i] = layer
    return TranscoderSet(layers, *HOOKS[name], scan=name)


def cross_layer(name):
    hooks = dict(zip(("feature_input_hook", "feature_output_hook"), HOOKS[name]))
    clt = CrossLayerTranscoder(LAYERS, F, D, "relu", lazy_decoder=False, scan=name, dtype=torch.float32, **hooks)
    clt.W_enc.data, clt.b_enc.data = 0.5 * random(LAYERS, F, D), 0.3 * torch.randn(LAYERS, F) - 1.3
    clt.b_dec.data = 0.3 * torch.randn(LAYERS, D)
    for i in range(LAYERS):
        clt.W_dec[i].data = random(F, LAYERS - i, D)
    return clt


def write_set(name, transcoders):
    out = HERE / "sets" / name
    out.mkdir(parents=True, exist_ok=True)
    transcoders.to_safetensors(str(out))
    kind = "cross_layer_transcoder" if name == "cross-layer" else "transcoder_set"
    settings = dict(model_name="tiny", model_kind=kind, feature_input_hook=HOOKS[name][0], feature_output_hook=HOOKS[name][1], scan=name)
    (out / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))


def checkpoint(name, config):
    """A random model, rounded to bfloat16, on disk."""
    with torch.no_grad():
        model = make(type("Checkpoint", (), {"config": config}))
    copy.deepcopy(model).bfloat16().save_pretrained(HERE / name)
    (HERE / name / "generation_config.json").unlink(missing_ok=True)
    return model


def replacement(name, reference, transcoders):
    config = reference.config
    convert, axes = FAMILIES[name](config)
    sizes = dict(d_model=D, n_layers=LAYERS, n_heads=4, d_vocab=config.vocab_size, d_head=6, n_ctx=32, d_mlp=config.intermediate_size)
    cfg = HookedTransformerConfig(**(sizes | axes), original_architecture=type(reference).__name__, dtype=torch.float32, device="cpu", seed=0)
    model = TransformerLensReplacementModel(cfg)
    model.load_and_process_state_dict(
        convert(reference, cfg), fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False,
        refactor_factored_attn_matrices=False)
    tokens = torch.tensor([TOKENS])
    with torch.no_grad():
        assert (model(tokens) - reference(tokens).logits).abs().max() < 1e-4
    model._configure_replacement_model(transcoders)
    model.tokenizer = Numbers()
    return model


def trace(model, out, key, **settings):
    graph = attribute(torch.tensor(TOKENS), model, max_n_logits=3, desired_logit_prob=0.8, **settings)
    pruned = prune_graph(graph, node_threshold=0.9, edge_threshold=0.95)
    features, logits = len(graph.selected_features), len(graph.logit_targets)
    rows = list(range(features)) + list(range(len(graph.adjacency_matrix) - logits, len(graph.adjacency_matrix)))
    weights = torch.zeros(len(graph.adjacency_matrix))
    weights[-logits:] = graph.logit_probabilities
    found = dict(
        adjacency=graph.adjacency_matrix[rows, :-logits], selected=graph.active_features[graph.selected_features].int(),
        activations=graph.activation_values[graph.selected_features], active=torch.tensor([len(graph.active_features)]).int(),
        targets=graph.logit_token_ids.int(), probabilities=graph.logit_probabilities,
        influence=compute_node_influence(graph.adjacency_matrix, weights), cumulative=pruned.cumulative_scores,
        nodes=pruned.node_mask.to(torch.uint8), edges=pruned.edge_mask[rows, :-logits].to(torch.uint8),
        scores=torch.tensor(compute_graph_scores(graph)))
    for name, value in found.items():
        out[f"{key}.{name}"] = value.detach().contiguous().clone()
    kept = int(pruned.node_mask.sum()), int(pruned.edge_mask.sum())
    print(f"{key}: {features} of {len(graph.active_features)} features, {logits} logits, {kept} nodes and edges kept, scores {found['scores'].tolist()}")


if __name__ == "__main__":
    torch.manual_seed(6)
    sets = {name: cross_layer(name) if name == "cross-layer" else per_layer(name) for name in HOOKS}
    for name, transcoders in sets.items():
        write_set(name, transcoders)
    for name, config in MODELS.items():
        reference = checkpoint(name, config)
        out = dict(tokens=torch.tensor(TOKENS).int())
        for key, transcoders in sets.items():
            model = replacement(name, reference, transcoders)
            trace(model, out, key, batch_size=64)
            if key != "skip":
                trace(model, out, f"{key}-limited", batch_size=5, max_feature_nodes=30)
        save_file(out, HERE / name / "graphs.safetensors")
