"""Compares Baton's tokenizers with Hugging Face `tokenizers` on random texts (scripts/fuzz-tokenizers).

  hf_tokenizers.py PROGRAM COUNT [KIND ...]   COUNT texts for each kind; exit 1 if any differs
  hf_tokenizers.py PROGRAM --golden FOLDER    writes the small cases that tests/formats/tokenizer_oracle_test.cc reads

PROGRAM is tokenize_lines. Kinds: folders made here, one for each way that tokenizer.json can work; `pre:NAME`, the words of
each pre-tokenizer of GGUF; `smollm2` and `gemma3`, the GGUF files in models/ against the same vocabulary in tokenizer.json's form.
"""
import json
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SPACE = "\u2581"


# ---------------------------------------------------------------- texts
# Characters that every engine's Unicode tables agree on: those of Unicode 3.2, and some newer ones by hand.
OLD = unicodedata.ucd_3_2_0
ASSIGNED = [c for c in map(chr, range(0x20000)) if OLD.category(c) not in ("Cn", "Cs", "Co") and
            OLD.category(c) == unicodedata.category(c)]
BY_CATEGORY = {}
for _c in ASSIGNED:
    BY_CATEGORY.setdefault(unicodedata.category(_c), []).append(_c)
WHITE = ["\n", "\r", "\r\n", "\t", " ", "\u00a0", "\u0085", "\u2003", "\u3000", "\u2028", "\x0b", "\x0c", "\x1c", "\u200b"]
WORDS = ("the of attention KV-cache won't It'S we'LL they\u2019re DON'T HTTPServer camelCase snake_case naïve Straße "
         "Привет мир 世界 こんにちは カタカナ 한국어 عربى עברית हिन्दी ไทย ELSE iPhone 3rd \u017ft \u212aelvin "
         "foo.bar() x+=1; //comment \\n <b> ... --- !!! ??? #include \"q\" 'q' `q` {} [] () $5 100% a&b").split(" ")
EMOJI = ["\U0001F600", "\U0001F469\u200D\U0001F680", "\u2764\uFE0F", "\U0001F1E9\U0001F1EA", "\U0001F44D\U0001F3FD"]


def piece(r, specials):
    k = r.randrange(16)
    if k == 0 and specials:
        s = r.choice(specials)
        return r.choice([s, s, s, s[:-1], s + s, " " + s + "  ", s.lower(), s.replace("<", "< ")])
    if k <= 3:
        return r.choice(WORDS)
    if k == 4:
        return r.choice(WHITE) * r.choice([1, 1, 1, 2, 3, 7])
    if k == 5:
        return " " * r.choice([1, 2, 3, 4, 5, 8, 13, 40])
    if k == 6:
        return str(r.randrange(10 ** r.randrange(1, 12)))
    if k == 7:
        return "".join(r.choice(BY_CATEGORY[r.choice(list(BY_CATEGORY))]) for _ in range(r.randrange(1, 8)))
    if k == 8:
        c = r.choice(BY_CATEGORY[r.choice(list(BY_CATEGORY))])
        return c * r.randrange(1, 20)
    if k == 9:
        return unicodedata.normalize("NFD", r.choice(["é", "Ån", "ồ", "한글", "q\u0307\u0323", "ǖ"]))
    if k == 10:
        return r.choice("aeAEk") + "".join(r.choice(BY_CATEGORY["Mn"]) for _ in range(r.randrange(1, 4)))
    if k == 11:
        return r.choice(EMOJI)
    if k == 12:
        return "'" + r.choice(["s", "S", "ll", "LL", "lL", "t", "re", "VE", "d", "m", "\u017f", "x"])
    if k == 13:
        return r.choice(["\u2581", "\u180e", "\ufeff", "\u200d", "\x00", "\x7f", "\u00ad", "<0x0A>", "\ufffd"])
    if k == 14:
        return "".join(chr(r.randrange(0x21, 0x7F)) for _ in range(r.randrange(1, 12)))
    return r.choice(["a", "b", "ab", "aa", ".", "-", "=", "_", "0", "A", "世", "の"]) * r.randrange(1, 40)


def texts(seed, count, specials=()):
    r = random.Random(seed)
    return ["".join(piece(r, list(specials)) + r.choice(["", "", " "]) for _ in range(r.randrange(1, 14))) for _ in range(count)]


# ---------------------------------------------------------------- tokenizers
def training_text():
    files = sorted((ROOT / "docs").glob("*.md")) + [ROOT / "README.md", ROOT / "src/formats/bpe.h"]
    for f in files:
        yield from f.read_text().splitlines(keepends=True)
    yield from [w + " " for w in WORDS * 20]


ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
ADDED = [AddedToken("<|im_end|>", special=True, normalized=False), AddedToken("<|lead|>", special=True, lstrip=True, normalized=False),
         AddedToken("<|trail|>", special=True, rstrip=True, normalized=False), AddedToken("<user>", normalized=False),
         AddedToken("word", single_word=True, normalized=False), AddedToken("<both>", lstrip=True, rstrip=True, normalized=False),
         AddedToken("caf\u00e9", normalized=True), AddedToken("<n>", normalized=True, lstrip=True),
         AddedToken("<user><user>", normalized=False)]


def byte_level(patterns, normalizer=None, ignore_merges=False, size=400, byte=None, split="isolated", invert=False):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    steps = [pre_tokenizers.Split(Regex(p), split, invert) for p in patterns]
    t.pre_tokenizer = pre_tokenizers.Sequence(steps + [byte or pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not patterns)])
    if normalizer:
        t.normalizer = normalizer
    t.train_from_iterator(training_text(), trainers.BpeTrainer(vocab_size=size, initial_alphabet=ALPHABET, show_progress=False))
    t.add_tokens(ADDED)
    t.add_special_tokens([a for a in ADDED if a.special])
    return t


def pieces(normalizer=None, pre=None, fallback=True, fuse=True, size=420):
    """SentencePiece's manner: trained on words that begin with U+2581."""
    t = Tokenizer(models.BPE(unk_token="<unk>"))
    t.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE)
    head = ["<unk>", "<s>", "</s>"] + ([f"<0x{i:02X}>" for i in range(256)])
    t.train_from_iterator(training_text(), trainers.BpeTrainer(vocab_size=size - len(head), show_progress=False, limit_alphabet=90))
    j = json.loads(t.to_str())
    names = head + [w for w, _ in sorted(j["model"]["vocab"].items(), key=lambda x: x[1]) if w not in head] + [SPACE * 2, SPACE * 3]
    vocab = {w: i for i, w in enumerate(dict.fromkeys(names))}
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in j["model"]["merges"]]
    merges = [(SPACE, SPACE), (SPACE * 2, SPACE)] + merges
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=fallback, fuse_unk=fuse))
    if normalizer:
        t.normalizer = normalizer
    if pre:
        t.pre_tokenizer = pre
    t.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in ("<unk>", "<s>", "</s>")])
    t.add_tokens(ADDED)
    t.add_special_tokens([a for a in ADDED if a.special])
    return t


GPT4 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")
ODD = r"[a-z&&[^aeiou]]+|\h{2,4}+|[[:alpha:][0-9]]{2,}+|\b\w|[^\S\n]+|[\u4e00-\u9fff]+|."
SPLIT2 = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])

KINDS = {
    "gpt2": lambda: byte_level([]),
    "qwen": lambda: byte_level([r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
                               normalizers.NFC()),
    "llama3": lambda: byte_level([r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
                                 ignore_merges=True),
    "gpt4": lambda: byte_level([GPT4], split="removed", invert=True),
    "odd_classes": lambda: byte_level([ODD]),
    "next": lambda: byte_level([r"\s"], split="merged_with_next"),
    "previous": lambda: byte_level([r"[\s.]"], normalizers.NFKC(), split="merged_with_previous"),
    "contiguous": lambda: byte_level([r"\d"], normalizers.NFD(), split="contiguous"),
    "prefix_space": lambda: byte_level([], byte=pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)),
    "llama2": lambda: pieces(SPLIT2),
    "gemma": lambda: pieces(normalizers.Replace(" ", SPACE), pre_tokenizers.Split(" ", "merged_with_previous")),
    "metaspace": lambda: pieces(None, pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=True)),
    "metaspace_first": lambda: pieces(None, pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first", split=False)),
    "metaspace_never": lambda: pieces(normalizers.NFKC(), pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=True)),
    "unknown": lambda: pieces(SPLIT2, None, fallback=False, fuse=False),
    "unknown_fused": lambda: pieces(SPLIT2, None, fallback=False, fuse=True),
}


def gguf_metadata(path):
    """The metadata of a GGUF file."""
    formats = ["B", "b", "H", "h", "I", "i", "f", "?", None, None, "Q", "q", "d"]
    with open(path, "rb") as f:
        def number(code):
            return struct.unpack("<" + code, f.read(struct.calcsize("<" + code)))[0]

        def value(kind):
            if kind == 8:
                return f.read(number("Q")).decode("utf-8")
            if kind == 9:
                element, count = number("I"), number("Q")
                return [value(element) for _ in range(count)]
            return number(formats[kind])
        assert f.read(4) == b"GGUF"
        number("I"), number("Q")
        count = number("Q")
        keys = {}
        for _ in range(count):
            key = value(8)
            keys[key] = value(number("I"))
        return keys


def of_gguf(path):
    """The vocabulary of a GGUF file as a Hugging Face tokenizer."""
    fields = gguf_metadata(path)
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    model = fields["tokenizer.ggml.model"]
    added = [AddedToken(t, special=k in (2, 3), normalized=k == 4) for t, k in zip(tokens, types) if k in (2, 3, 4)]
    if model == "gpt2":
        merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"]]
        t = Tokenizer(models.BPE(vocab={x: i for i, x in enumerate(tokens)}, merges=merges))
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    else:
        scores = fields["tokenizer.ggml.scores"]
        score = {x: s for x, s, k in zip(tokens, scores, types) if k in (1, 4)}
        merges = []
        for x, s in score.items():
            merges += [(-s, x[:i], x[i:]) for i in range(1, len(x)) if x[:i] in score and x[i:] in score]
        merges.sort(key=lambda m: (m[0], -len(m[1]), -len(m[2])))
        t = Tokenizer(models.BPE(vocab={x: i for i, x in enumerate(tokens)}, merges=[m[1:] for m in merges], unk_token="<unk>",
                                 byte_fallback=True, fuse_unk=True))
        t.normalizer = SPLIT2 if fields.get("tokenizer.ggml.add_space_prefix", True) else normalizers.Replace(" ", SPACE)
    t.add_special_tokens([a for a in added if a.special])
    t.add_tokens([a for a in added if not a.special])
    return t


FILES = {"smollm2": "models/SmolLM2-135M-Instruct.Q4_1.gguf", "gemma3": "models/gemma-3-270m-q4_k_m.gguf"}


def word_splitter(patterns):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(p), "isolated") for p in patterns])


# ---------------------------------------------------------------- comparison
def baton(program, mode, what, lines):
    data = "".join(json.dumps(t) + "\n" for t in lines).encode()
    out = subprocess.run([program, mode, what], input=data, stdout=subprocess.PIPE, check=True).stdout
    return [json.loads(line) for line in out.splitlines()]


def hugging_face(kind, program):
    """(mode, what to give to PROGRAM, function from texts to expected lists, special texts)"""
    if kind.startswith("pre:"):
        patterns = json.loads(subprocess.run([program, "patterns"], stdout=subprocess.PIPE, check=True).stdout)[kind[4:]]
        splitter = word_splitter(patterns)
        return "words", kind[4:], lambda ts: [[w for w, _ in splitter.pre_tokenize_str(t)] for t in ts], []
    if kind in FILES:
        t = of_gguf(str(ROOT / FILES[kind]))
        what = str(ROOT / FILES[kind])
    else:
        t = KINDS[kind]()
        what = tempfile.mkdtemp(prefix="baton-tokenizer-")
        t.save(os.path.join(what, "tokenizer.json"))
    specials = [a.content for a in t.get_added_tokens_decoder().values()]
    encode = lambda ts: [e.ids for e in t.encode_batch(ts, add_special_tokens=False)]
    return "ids", what, encode, specials[:40]


def compare(program, kind, count):
    mode, what, expected, specials = hugging_face(kind, program)
    differences = 0
    for begin in range(0, count, 20000):
        lines = texts(f"{kind} {begin}", min(20000, count - begin), specials)
        for text, got, want in zip(lines, baton(program, mode, what, lines), expected(lines)):
            if got != want:
                differences += 1
                if differences <= 3:
                    print(f"  {text!r}\n    Baton        {got}\n    Hugging Face {want}")
    print(f"{kind}: {count} texts, {differences} differ", flush=True)
    return differences


def golden(program, folder):
    for kind in KINDS:
        t = KINDS[kind]()
        at = pathlib.Path(folder) / kind
        at.mkdir(parents=True, exist_ok=True)
        j = json.loads(t.to_str())
        (at / "tokenizer.json").write_text(json.dumps(j, ensure_ascii=False, separators=(",", ":")) + "\n")
        write_cases(at / "cases.jsonl", kind, hugging_face_of(t), [a.content for a in ADDED], 60)
    for kind in FILES:
        _, _, expected, specials = hugging_face(kind, program)
        at = pathlib.Path(folder) / kind
        at.mkdir(parents=True, exist_ok=True)
        write_cases(at / "cases.jsonl", kind, expected, specials, 60)
    names = json.loads(subprocess.run([program, "patterns"], stdout=subprocess.PIPE, check=True).stdout)
    seen = {}
    with open(pathlib.Path(folder) / "words.jsonl", "w") as f:
        for name, patterns in sorted(names.items()):
            if seen.setdefault(json.dumps(patterns), name) != name:
                continue
            splitter = word_splitter(patterns)
            for t in texts(f"golden {name}", 25):
                f.write(json.dumps([name, t, [w for w, _ in splitter.pre_tokenize_str(t)]], ensure_ascii=True) + "\n")


def hugging_face_of(t):
    return lambda ts: [e.ids for e in t.encode_batch(ts, add_special_tokens=False)]


def write_cases(path, kind, expected, specials, count):
    lines = texts(f"golden {kind}", count, specials)
    with open(path, "w") as f:
        for text, ids in zip(lines, expected(lines)):
            f.write(json.dumps([text, ids], separators=(",", ":")) + "\n")


def main():
    program = sys.argv[1]
    if sys.argv[2] == "--golden":
        return golden(program, sys.argv[3])
    count = int(sys.argv[2])
    names = json.loads(subprocess.run([program, "patterns"], stdout=subprocess.PIPE, check=True).stdout)
    distinct = {json.dumps(p): n for n, p in reversed(names.items())}.values()  # many names share their patterns
    kinds = sys.argv[3:] or [*KINDS, *[k for k, f in FILES.items() if (ROOT / f).exists()], *["pre:" + n for n in sorted(distinct)]]
    return 1 if sum(compare(program, kind, count) for kind in kinds) else 0


if __name__ == "__main__":
    sys.exit(main())
