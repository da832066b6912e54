"""Small tokenizers in GGUF metadata and what other programs make of the same text with them.

    python3 tests/golden/make_gguf_tokenizers.py    # transformers 4.57.3, gguf 0.19, sentencepiece, tokenizers, regex

Writes tests/golden/gguf/tokenizers/. Byte-level text is cut by llama.cpp's patterns (src/llama-vocab.cpp) or, where
those only approximate a tokenizer.json, by that file's; SentencePiece text is encoded by transformers' conversions.
"""
import io, json, pathlib, unicodedata
import gguf, regex, sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GemmaTokenizerFast, LlamaTokenizerFast

OUT = pathlib.Path(__file__).parent / "gguf/tokenizers"
OUT.mkdir(parents=True, exist_ok=True)
TRAINING = """The quick brown fox jumps over the lazy dog, and the dog doesn't care. It's 1969, we've 12345 reasons;
they'll say 'no' 42 times. I'M SURE YOU'D THINK SO. Das Mädchen läuft über die Straße. L'été dernier, à Noël.
    def main():\n        return [x + 1 for x in range(100)]\n\n\n\tprint("hello world", 3.14159)
你好，世界。こんにちは世界。 안녕하세요 Привет, мир! emoji 🚀🦙 naïve café 100% $5.00 <tag> a_b CamelCaseWords HTTPServer""".replace("\\n", "\n").replace("\\t", "\t")
TEXTS = TRAINING.split("\n") + [
    "", " ", "   ", "\n\n\n", " leading", "trailing  ", "a  b   c", "\t\ttabs", "x\r\ny", "don't DON'T we'Ve", "1 12 123 1234 12345678", " 7 77 777",
    "héllo e\u0301 Å\u030a", "🚀 🦙🦙", "!!!??? ... (a)[b]{c}", "foo/bar\\baz\n  indented", "你好 世界abc123", "<s> in text </s>", "<|end|> x", "\u00a0nbsp\u2003em", "_under_score", "ÀÉÎ ßſ ǅ",
]
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
CONTRACTION = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
LLAMA3 = CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = lambda tail: rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{tail}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{tail}"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CUTS = {
    "gpt-2": [GPT2], "olmo": [GPT2], "smollm": [r"\p{N}", GPT2], "falcon": [r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
    "llama-bpe": [LLAMA3], "dbrx": [LLAMA3], "qwen2": [LLAMA3.replace("{1,3}", "")], "tekken": [CASED("") + r"|\p{N}" + REST],
    "gpt-4o": [CASED(CONTRACTION + "?") + r"|\p{N}{1,3}" + REST],
    "deepseek-v3": [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""],
    "deepseek-coder": ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"],
}
COMPOSED = ("qwen2", "olmo")
TYPES = gguf.TokenType


def cut(patterns, text):
    """`unicode_regex_split` of llama.cpp: each pattern in turn; what lies between matches is a piece too."""
    pieces = [text]
    for pattern in patterns:
        finer = []
        for piece in pieces:
            at = 0
            for match in regex.finditer(pattern, piece):
                finer += [piece[at : match.start()], match.group()]
                at = match.end()
            finer.append(piece[at:])
        pieces = [piece for piece in finer if piece]
    return pieces


def write(name, model, tokens, types, **more):
    writer = gguf.GGUFWriter(OUT / f"{name}.gguf", "llama")
    writer.add_tokenizer_model(model); writer.add_token_list(tokens); writer.add_token_types(types)
    for key, value in more.items():
        getattr(writer, f"add_{key}")(value)
    writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.close()


level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer = level
bpe.train_from_iterator([TRAINING] * 3, trainers.BpeTrainer(vocab_size=420, initial_alphabet=level.alphabet(), special_tokens=["<s>", "</s>", "<|end|>"]))
trained = json.loads(bpe.to_str())["model"]
vocab = sorted(trained["vocab"], key=trained["vocab"].get)
types = [TYPES.CONTROL] * 3 + [TYPES.NORMAL] * (len(vocab) - 3)
merges = [" ".join(merge) for merge in trained["merges"]]
whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
golden = {}
for pre, patterns in CUTS.items():
    plain = Tokenizer(models.BPE(trained["vocab"], [tuple(m) for m in trained["merges"]], ignore_merges=pre in ("llama-bpe", "tekken")))
    plain.pre_tokenizer = whole
    def encode(text):
        ids = []
        for part in regex.split(r"(<s>|</s>|<\|end\|>)", text):
            if part in ("<s>", "</s>", "<|end|>"):
                ids.append(trained["vocab"][part])
                continue
            part = unicodedata.normalize("NFC", part) if pre in COMPOSED else part
            for piece in cut(patterns, part):
                ids += plain.encode(piece, add_special_tokens=False).ids
        return ids
    golden[pre] = [encode(text) for text in TEXTS]
    if pre != "gpt-2":
        continue
    write("bytes", "gpt2", vocab + ["[PAD420]"], types + [TYPES.UNUSED], token_merges=merges, tokenizer_pre=pre, bos_token_id=0, eos_token_id=1, add_bos_token=False)

model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TRAINING.split("\n") * 3), model_writer=model, vocab_size=400, model_type="bpe", byte_fallback=True,
                                         character_coverage=0.99, hard_vocab_limit=False, normalization_rule_name="identity", add_dummy_prefix=True, remove_extra_whitespaces=False,
                                         allow_whitespace_only_pieces=True, user_defined_symbols=["<|end|>"])
path = OUT / "tokenizer.model"
path.write_bytes(model.getvalue())
spm = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
count = spm.get_piece_size()
pieces, scores = [spm.id_to_piece(i) for i in range(count)], [spm.get_score(i) for i in range(count)]
kinds = [TYPES.UNKNOWN if spm.is_unknown(i) else TYPES.CONTROL if spm.is_control(i) else TYPES.BYTE if spm.is_byte(i) else TYPES.USER_DEFINED if pieces[i] == "<|end|>" else TYPES.NORMAL for i in range(count)]
for name, kind, prefix in (("llama", LlamaTokenizerFast, True), ("gemma", GemmaTokenizerFast, False)):
    write(name, "llama", pieces, kinds, token_scores=scores, tokenizer_pre="default", add_space_prefix=prefix, bos_token_id=1, eos_token_id=2, unk_token_id=0)
    special = dict(add_prefix_space=True, legacy=True) if prefix else dict(bos_token="<s>", eos_token="</s>", pad_token="<unk>", unk_token="<unk>")
    theirs = kind(vocab_file=str(path), **special)
    # Gemma's conversion takes it that the end-of-sequence token comes before the other.
    ids = {1: 2, 2: 1} if name == "gemma" else {}
    golden[name] = [[ids.get(i, i) for i in theirs.encode(text, add_special_tokens=False)] for text in TEXTS]
path.unlink()
(OUT / "golden.json").write_text(json.dumps({"texts": TEXTS, "ids": golden}, separators=(",", ":")) + "\n")
print({name: sum(map(len, ids)) for name, ids in golden.items()})
