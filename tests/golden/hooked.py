"""What TransformerLens has to be told of a tiny checkpoint."""


def sizes(config):
    """The shape of a transformers configuration as arguments of HookedTransformerConfig."""
    heads = config.num_attention_heads
    return dict(
        d_model=config.hidden_size, n_layers=config.num_hidden_layers, n_heads=heads, d_vocab=config.vocab_size,
        d_head=getattr(config, "head_dim", None) or config.hidden_size // heads, n_ctx=config.max_position_embeddings,
        d_mlp=getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
