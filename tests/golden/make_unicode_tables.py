#!/usr/bin/env python3
"""Writes models/unicode_tables.inc: what the Rust `tokenizers` package does with every code point.

The tables are measured, not taken from a Unicode database, because the fast BERT tokenizer mixes
several Unicode versions (categories 8.0, decompositions 9.0, lower case of the Rust compiler it was
built with).

  python make_unicode_tables.py ../../models/unicode_tables.inc
"""

import sys

import tokenizers
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
HANGUL = range(0xAC00, 0xAC00 + 11172)


def bert(**flags):
    off = dict(clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=False)
    return normalizers.BertNormalizer(**{**off, **flags}).normalize_str


def measure_sets(decomposed):
    clean, spaced, stripped = (
        bert(clean_text=True),
        bert(handle_chinese_chars=True),
        bert(strip_accents=True),
    )
    cut = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    marks = normalizers.StripAccents().normalize_str
    sets = {
        name: []
        for name in (
            "control",
            "white_space",
            "punctuation",
            "chinese",
            "nonspacing_mark",
            "combining_mark",
            "word_character",
        )
    }
    become_space = set()
    for c in CODE_POINTS:
        text = chr(c)
        cleaned = clean(text)
        if cleaned == "":
            sets["control"].append(c)
        elif cleaned == " ":
            become_space.add(c)
        else:
            assert cleaned == text, hex(c)
        around = spaced(text)
        if around == f" {text} ":
            sets["chinese"].append(c)
        else:
            assert around == text, hex(c)
        # A character that decomposes never reaches the removal of accents: no entry needed.
        if c not in decomposed and stripped(text) == "":
            sets["nonspacing_mark"].append(c)
        if marks(text) == "":
            sets["combining_mark"].append(c)
        pieces = [piece for piece, _ in cut(f"a{text}b")]
        if pieces == ["a", text, "b"]:
            sets["punctuation"].append(c)
        elif pieces == ["a", "b"]:
            sets["white_space"].append(c)
        else:
            assert pieces == [f"a{text}b"], hex(c)
    # Normaliser and splitter agree on white space, apart from controls, which are dropped first.
    assert become_space == set(sets["white_space"]) - set(sets["control"])
    sets["word_character"] = measure_word_characters()
    return sets


def measure_word_characters():
    """A `single_word` token matches only when no word character (regex \\w) touches it."""
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.add_tokens([AddedToken("@@", single_word=True, normalized=False)])
    one = tokenizer.token_to_id("@@")
    found = []
    for c in CODE_POINTS:
        before = one not in tokenizer.encode(chr(c) + "@@").ids
        after = one not in tokenizer.encode("@@" + chr(c)).ids
        assert before == after, hex(c)
        if before and c != ord("@"):
            found.append(c)
    return found


def measure_decompositions():
    decompose = normalizers.NFD().normalize_str
    table = {}
    for c in CODE_POINTS:
        result = decompose(chr(c))
        if result == chr(c):
            continue
        if c in HANGUL:  # computed by arithmetic in the program; checked here
            index = c - 0xAC00
            expected = [0x1100 + index // 588, 0x1161 + index % 588 // 28]
            expected += [0x11A7 + index % 28] if index % 28 else []
            assert [ord(x) for x in result] == expected, hex(c)
        table[c] = [ord(x) for x in result]
    assert all(c in table for c in HANGUL)
    return table


def measure_combining_classes(decomposed):
    """Combining classes by comparison: NFD swaps "ab" exactly when 0 < class(b) < class(a)."""
    decompose = normalizers.NFD().normalize_str

    def before(a, b):  # class(a) < class(b), both above 0, or b a starter and unswapped
        return decompose(chr(b) + chr(a)) == chr(a) + chr(b)

    plain = [c for c in CODE_POINTS if c not in decomposed]
    # U+0345 has the highest class, 240; U+0334 the lowest, 1.
    marks = [c for c in plain if c == 0x345 or before(c, 0x345)]
    marks += [c for c in plain if c not in set(marks) and before(0x334, c)]
    # Ranks instead of Unicode's numbers: only the order matters. One representative a class.
    representatives, members = [], {}
    for c in marks:
        low, high = 0, len(representatives)
        while low < high:
            middle = (low + high) // 2
            if before(representatives[middle], c):
                low = middle + 1
            else:
                high = middle
        if low < len(representatives) and not before(c, representatives[low]):
            members[representatives[low]].append(c)
        else:
            representatives.insert(low, c)
            members[c] = [c]
    return {c: rank + 1 for rank, r in enumerate(representatives) for c in members[r]}


def measure_lowercase():
    lower = bert(lowercase=True)
    table = {c: [ord(x) for x in lower(chr(c))] for c in CODE_POINTS if lower(chr(c)) != chr(c)}
    other = normalizers.Lowercase().normalize_str
    assert all(other(chr(c)) == lower(chr(c)) for c in CODE_POINTS)
    assert [c for c in table if len(table[c]) > 1] == [0x130]  # capital I with dot: i and U+0307
    return {c: to[0] for c, to in table.items() if c != 0x130}


def ranges(points):
    result = []
    for c in sorted(points):
        if result and result[-1][1] == c - 1:
            result[-1][1] = c
        else:
            result.append([c, c])
    return result


def mapped_ranges(table):
    """Runs [first, last, step, delta]: every step-th code point c of the run becomes c + delta."""
    result = []
    for c in sorted(table):
        delta = table[c] - c
        if result:
            first, last, step, same = result[-1]
            if same == delta and c - last in (1, 2) and step in (0, c - last):
                result[-1] = [first, c, c - last, delta]
                continue
        result.append([c, c, 0, delta])
    return [[first, last, step or 1, delta] for first, last, step, delta in result]


def class_ranges(classes):
    result = []
    for c in sorted(classes):
        if result and result[-1][1] == c - 1 and result[-1][2] == classes[c]:
            result[-1][1] = c
        else:
            result.append([c, c, classes[c]])
    return result


def emit(out, declaration, items):
    out.append(f"inline constexpr {declaration}[] = {{")
    line = "   "
    for item in items:
        if len(line) + len(item) + 2 > 100:
            out.append(line)
            line = "   "
        line += f" {item},"
    out += [line, "};", ""]


def main():
    decompositions = measure_decompositions()
    sets = measure_sets(decompositions)
    lowercase = measure_lowercase()
    classes = measure_combining_classes(decompositions)
    out = [
        "// Generated by tests/golden/make_unicode_tables.py from what the Python package",
        f"// tokenizers {tokenizers.__version__} does with every code point. Do not edit.",
        "",
        f'inline constexpr char table_source[] = "tokenizers {tokenizers.__version__}";',
        "",
    ]
    for name, points in sets.items():
        emit(out, f"Range {name}_ranges", [f"{{0x{a:X}, 0x{b:X}}}" for a, b in ranges(points)])
    emit(
        out,
        "CombiningRange combining_ranges",
        [f"{{0x{a:X}, 0x{b:X}, {k}}}" for a, b, k in class_ranges(classes)],
    )
    emit(
        out,
        "LowercaseRange lowercase_ranges",
        [f"{{0x{a:X}, 0x{b:X}, {s}, {d}}}" for a, b, s, d in mapped_ranges(lowercase)],
    )
    plain = {c: to for c, to in decompositions.items() if c not in HANGUL}
    assert max(map(len, plain.values())) <= 4
    emit(
        out,
        "Decomposition decompositions",
        [
            f"{{0x{c:X}, {{{', '.join(f'0x{x:X}' for x in to)}}}}}"
            for c, to in sorted(plain.items())
        ],
    )
    with open(sys.argv[1], "w", encoding="ascii") as file:
        file.write("\n".join(out).rstrip("\n") + "\n")
    print(
        {k: len(ranges(v)) for k, v in sets.items()},
        len(plain),
        "decompositions",
        len(set(classes.values())),
        "combining classes",
        len(mapped_ranges(lowercase)),
        "lower-case runs",
    )


if __name__ == "__main__":
    main()
