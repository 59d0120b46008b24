"""Changes to valid files, each a function of (generator of chance, bytes) -> bytes.

Named after what they aim at; one file may get several. They know their format: a header stays
JSON, a zip stays a zip, so that the change is met deep inside a reader and not at its door.
"""

import io
import json
import pickletools
import struct
import warnings
import zipfile
import zlib
from functools import cache

from fuzz import gadgets

NUMBERS = (
    *(0, 1, -1, 2, 7, 255, 2**31 - 1, 2**31, 2**32, 2**40, 2**53, 2**63 - 1, 2**63, 2**64),
    -(2**63),
)
ODD = (
    *(None, True, False, [], {}, "", "x", 1.5, -0.0, 1e308, float("nan"), float("inf"), [[]]),
    {"": {}},
)
DTYPES = (
    *("F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "C64", "X"),
    "",
)
TRAVERSALS = (
    *("../../x", "/etc/hostname", "..", ".", "", "a/../../b", "..\\x", "C:\\x", "x\0y", "~/x"),
)
DEPTH = 20_000


# Any bytes


def flip(chance, raw):
    made = bytearray(raw)
    for _ in range(chance.choice((1, 1, 2, 8))):
        if made:
            made[chance.randrange(len(made))] ^= 1 << chance.randrange(8)
    return bytes(made)


def flip_early(chance, raw):
    """As `flip`, where headers are."""
    return flip(chance, raw[:200]) + raw[200:]


def truncate(chance, raw):
    return raw[: chance.randrange(len(raw) + 1)]


def cut(chance, raw):
    at = chance.randrange(len(raw) + 1)
    return raw[:at] + raw[at + chance.randrange(1, 40) :]


def repeat(chance, raw):
    at = chance.randrange(len(raw) + 1)
    part = raw[at : at + chance.randrange(1, 200)]
    return raw[:at] + part * chance.randrange(2, 5) + raw[at:]


def insert(chance, raw):
    at = chance.randrange(len(raw) + 1)
    return raw[:at] + chance.randbytes(chance.randrange(1, 16)) + raw[at:]


def number(chance, raw):
    at = chance.randrange(len(raw) + 1)
    size = chance.choice((1, 2, 4, 8))
    value = chance.choice(NUMBERS) % 256**size
    return raw[:at] + value.to_bytes(size, chance.choice(("little", "big"))) + raw[at + size :]


def append(chance, raw):
    return raw + chance.choice((b"\0" * 64, b"PK\x05\x06" + b"\0" * 18, raw, b"\n}"))


ANY = (flip, flip, flip_early, truncate, cut, repeat, insert, number, append)


# JSON


def odd(chance):
    """Return some JSON value that is not the expected one."""
    pick = chance.randrange(4)
    if pick == 0:
        return chance.choice(NUMBERS)
    if pick == 1:
        return [odd(chance) for _ in range(chance.randrange(3))]
    if pick == 2:
        return {chance.choice(("a", "", "weight", "threshold")): odd(chance)}
    return chance.choice(ODD)


def places(value, path=()):
    """Yield (container, key) of everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in list(items):
        yield value, key
        if isinstance(child, dict | list):
            yield from places(child, (*path, key))


def change_json(chance, value):
    """Change one place of a JSON value in place."""
    container, key = chance.choice(list(places(value)) or [(value, 0)])
    action = chance.randrange(5)
    if action == 0:
        del container[key]
    elif action == 1 and isinstance(container, dict):
        container[chance.choice(("x", "", "__metadata__", key.upper()))] = container.pop(key)
    elif action == 2 and isinstance(container, list):
        container.extend(container[:20])
    else:
        container[key] = odd(chance)


def nested(chance, opening, closing, inner="1"):
    depth = chance.choice((100, 900, DEPTH))
    return opening * depth + inner + closing * chance.choice((depth, depth, 0))


def json_text(chance, raw):
    """Change JSON as a text: deep nesting, long numbers, doubled keys."""
    where = raw.find(b":", chance.randrange(len(raw) + 1)) + 1
    tail = raw[where:]
    for stop in (b",", b"}", b"\n"):
        tail = tail[max(0, tail.find(stop)) :]
    pick = chance.randrange(6)
    new = (
        nested(chance, "[", "]"),
        nested(chance, '{"a":', "}"),
        "9" * chance.choice((30, 400, 5000)),
        "1e999",
        "-1",
        '"\\ud800"',
    )[pick]
    return raw[:where] + new.encode() + tail


def as_json(chance, raw):
    """Change one to three places of JSON."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return flip(chance, raw)
    if not isinstance(value, dict | list):
        return flip(chance, raw)
    for _ in range(chance.randrange(1, 4)):
        if value:
            change_json(chance, value)
    return json.dumps(value, indent=1).encode()


JSON = (as_json, as_json, as_json, json_text)


# safetensors


def _split(raw):
    length = int.from_bytes(raw[:8], "little")
    return raw[8 : 8 + length], raw[8 + length :]


def _join(header, body):
    return struct.pack("<Q", len(header)) + header + body


def header_length(chance, raw):
    change = chance.choice((*NUMBERS, 100_000_000, len(raw), len(raw) - 8, len(raw) - 9))
    return struct.pack("<Q", change % 2**64) + raw[8:]


def header_bytes(chance, raw):
    header, body = _split(raw)
    return _join(chance.choice(ANY)(chance, header), body)


def header_text(chance, raw):
    header, body = _split(raw)
    return _join(json_text(chance, header), body)


def header_values(chance, raw):
    header, body = _split(raw)
    return _join(as_json(chance, header), body)


def tensor_entry(chance, raw):
    """Change dtype, shape or offsets of one tensor, plausibly or not."""
    header, body = _split(raw)
    try:
        value = json.loads(header)
        key = chance.choice([k for k in value if k != "__metadata__"])
        entry = value[key]
        what = chance.randrange(6)
        if what == 0:
            entry["dtype"] = chance.choice(DTYPES)
        elif what == 1:
            entry["shape"] = [chance.choice(NUMBERS) for _ in range(chance.randrange(5))]
        elif what == 2:
            entry["data_offsets"][chance.randrange(2)] = chance.choice(NUMBERS)
        elif what == 3:
            entry["shape"] = [1, *entry["shape"]][:: chance.choice((1, -1))]
        elif what == 4:
            value[chance.choice(("emb_params", "clip_l", "unet.x", "a" * 5000, key))] = entry
        else:
            entry["data_offsets"] = [0, 0]
            entry["shape"] = [0, 2**40]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return flip(chance, raw)
    return _join(json.dumps(value).encode(), body)


def doubled_key(chance, raw):
    header, body = _split(raw)
    return _join(header.rstrip()[:-1] + b"," + header.strip()[1:], body)


def not_numbers(chance, raw):
    """Put NaN and infinity into the data."""
    header, body = _split(raw)
    at = 4 * chance.randrange(len(body) // 4 + 1)
    value = struct.pack("<f", chance.choice((float("nan"), float("inf"), 1e38)))
    return _join(header, (body[:at] + value + body[at + 4 :])[: len(body)])


SAFETENSORS = (
    *(header_length, header_bytes, header_text, header_values, header_values, tensor_entry),
    *(tensor_entry, tensor_entry, doubled_key, not_numbers),
)


# Pickles


def _steps(raw):
    """Return the starts of all instructions that can be told apart, and the last end."""
    starts, file = [], io.BytesIO(raw)
    try:
        while True:
            for _, _, at in pickletools.genops(file):
                starts.append(at)
    except Exception:
        return starts or [0]


def swap_step(chance, raw):
    made, starts = bytearray(raw), _steps(raw)
    codes = [ord(op.code) for op in pickletools.opcodes]
    for _ in range(chance.choice((1, 1, 3))):
        made[chance.choice(starts)] = chance.choice(codes)
    return bytes(made)


def move_steps(chance, raw):
    starts = _steps(raw)
    a, b = sorted(chance.choice(starts) for _ in range(2))
    return chance.choice((raw[:a] + raw[b:], raw[:b] + raw[a:]))


def big_number(chance, raw):
    """Replace a number: sizes of storages, shapes, strides, offsets, memo."""
    starts = [at for at in _steps(raw) if raw[at : at + 1] in (b"K", b"M", b"J", b"r", b"q")]
    if not starts:
        return flip(chance, raw)
    at = chance.choice(starts)
    length = {b"K": 2, b"M": 3, b"J": 5, b"r": 5, b"q": 2}[raw[at : at + 1]]
    value = chance.choice(NUMBERS)
    if raw[at : at + 1] in (b"r", b"q"):
        new = b"r" + struct.pack("<I", value % 2**32)
    else:
        new = b"\x8a\x09" + value.to_bytes(9, "little", signed=True)
    return raw[:at] + new + raw[at + length :]


def other_name(chance, raw):
    """Replace a class or function that the pickle names."""
    starts = [at for at in _steps(raw) if raw[at : at + 1] == b"c"]
    if not starts:
        return flip(chance, raw)
    at = chance.choice(starts)
    end = raw.index(b"\n", raw.index(b"\n", at) + 1) + 1
    pairs = (
        *(("torch", "DoubleStorage"), ("torch", "ByteStorage"), ("torch", "BoolStorage")),
        *(("torch", "LongStorage"), ("torch", "QInt8Storage"), ("torch", "ComplexFloatStorage")),
        *(("torch._utils", "_rebuild_tensor"), ("torch._utils", "_rebuild_parameter")),
        *(("torch._utils", "_rebuild_meta_tensor_no_storage"), ("torch", "FloatTensor")),
        *(("torch._utils", "_rebuild_sparse_tensor"), ("torch._utils", "_rebuild_qtensor")),
        *(("torch", "Size"), ("torch", "device"), ("torch.storage", "UntypedStorage")),
        *(("builtins", "bytearray"), ("builtins", "set"), ("_codecs", "encode")),
        *(("collections", "Counter"), ("os", "system"), ("builtins", "eval")),
        *(("torch.nn.parameter", "Parameter"), ("torch.storage", "_load_from_bytes")),
        *(("torch", "float32"), ("torch.serialization", "_get_layout")),
    )
    return raw[:at] + gadgets.name(*chance.choice(pairs)) + raw[end:]


def put_code(chance, raw):
    """Put a call that makes a canary before some instruction."""
    evil = chance.choice([g for g in GADGETS.values() if g[:1] == b"\x80"])[2:-1]
    at = chance.choice(_steps(raw))
    return raw[:at] + evil + chance.choice((b"0", b"")) + raw[at:]


def bomb(chance, raw):
    """Replace the whole by a short program that takes much memory or time."""
    huge = b"\x8a\x06" + (2**40).to_bytes(6, "little")
    many = b"\x8a\x05" + (2**33).to_bytes(5, "little")
    tuples = b"K\x01" + b"\x85" + b"2\x86" * 60
    bodies = (
        gadgets.call(gadgets.name("builtins", "bytearray"), many),
        gadgets.call(gadgets.name("torch", "FloatTensor"), many),
        gadgets.call(gadgets.name("torch.storage", "UntypedStorage"), many),
        gadgets.call(gadgets.name("torch", "FloatStorage"), many),
        b"}" + tuples + b"K\x01s",
        b"}"
        + gadgets.text("w")
        + b"("
        + gadgets.text("storage")
        + gadgets.name("torch", "FloatStorage")
        + gadgets.text("0")
        + gadgets.text("cpu")
        + huge
        + b"tQs",
        b"X" + b"\xff\xff\xff\x7f",
        b"}" * 3000,
        b"]" + b"2\x85" * DEPTH,
        b"}r\xff\xff\xff\xff",
        b"(" * DEPTH,
    )
    body = chance.choice(bodies)
    tail = raw[chance.choice((len(raw), raw.find(b".") + 1)) :]
    return gadgets.program(body) + tail


PICKLE = (swap_step, swap_step, move_steps, big_number, big_number, other_name, put_code, bomb)


def legacy(chance, raw):
    """Change one of the pickles of a torch file from before 1.6, mostly that of the object."""
    ends = [at + 1 for at in _steps(raw) if raw[at : at + 1] == b"."]
    if len(ends) < 4:
        return flip(chance, raw)
    which = chance.choice((1, 2, 3, 3, 3, 3, 4)) if len(ends) > 4 else 3
    start, stop = ends[which - 1], ends[which]
    return raw[:start] + chance.choice((*PICKLE, *ANY))(chance, raw[start:stop]) + raw[stop:]


# Zip archives


def _members(raw):
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def _zipped(members, compressed=zipfile.ZIP_STORED):
    made = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(made, "w") as archive:
        warnings.simplefilter("ignore")  # that a name is there twice
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compressed)
    return made.getvalue()


def zip_pickle(chance, raw):
    members = _members(raw)
    change = chance.choice((*PICKLE, *PICKLE, *ANY))
    return _zipped([(n, change(chance, c) if n.endswith("data.pkl") else c) for n, c in members])


def zip_names(chance, raw):
    members = _members(raw)
    at = chance.randrange(len(members))
    name, content = members[at]
    prefix = name.split("/")[0]
    action = chance.randrange(4)
    if action == 0:
        members[at] = (chance.choice(TRAVERSALS).replace("\0", "_"), content)
    elif action == 1:
        members[at] = (f"{prefix}/{chance.choice(TRAVERSALS)}".replace("\0", "_"), content)
    elif action == 2:
        members.append((chance.choice((name, name.upper())), content[::-1]))
    else:
        other = chance.choice(
            ("constants.pkl", "data.pkl", "data/0", ".format_version", "byteorder")
        )
        members.append((f"{prefix}/{other}", chance.choice((b"1", b"big", b"", content))))
    chance.shuffle(members) if chance.randrange(2) else None
    return _zipped(members)


def zip_members(chance, raw):
    members = _members(raw)
    at = chance.randrange(len(members))
    action = chance.randrange(4)
    if action == 0:
        del members[at]
    elif action == 1:
        name, content = members[at]
        members[at] = (name, chance.choice(ANY)(chance, content))
    elif action == 2:
        name, _ = members[at]
        members[at] = (name, raw)
    else:
        other = chance.randrange(len(members))
        names = [n for n, _ in members]
        names[at], names[other] = names[other], names[at]
        members = [(n, c) for n, (_, c) in zip(names, members, strict=True)]
    return _zipped(members, chance.choice((0, 0, 0, 8)))


def zip_claims(chance, raw):
    """Let a directory entry or a local header claim other sizes, offsets or methods."""
    made = bytearray(raw)
    central = chance.randrange(3)
    mark, fields = b"PK\x03\x04", (8, 18, 22, 26, 28)
    if central:
        mark, fields = b"PK\x01\x02", (10, 20, 24, 28, 30, 42)
    spots, at = [], raw.find(mark)
    while at >= 0:
        spots.append(at)
        at = raw.find(mark, at + 4)
    if not spots:
        return flip(chance, raw)
    at = chance.choice(spots) + chance.choice(fields)
    size = 2 if fields.index(at - max(s for s in spots if s <= at)) in (0, len(fields) - 1) else 4
    made[at : at + size] = (chance.choice(NUMBERS) % 256**size).to_bytes(size, "little")
    return bytes(made)


def zip_end(chance, raw):
    at = raw.rfind(b"PK\x05\x06")
    return raw[:at] + chance.choice((number, flip, truncate, append))(chance, raw[at:])


@cache
def zeros():
    """Return 300 MB of zeros, deflated; 300 kB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    chunk = bytes(10_000_000)
    return b"".join(packer.compress(chunk) for _ in range(30)) + packer.flush()


def zip_bomb(chance, raw):
    """Deflate a member that grows a thousandfold; the sizes are true."""
    members = _members(raw)
    size, packed = 300_000_000, zeros()
    target = chance.choice([n for n, _ in members])
    out, directory = b"", b""
    for name, content in members:
        encoded = name.encode()
        method, plain, stored = (8, size, packed) if name == target else (0, len(content), content)
        # Checksum 0: torch does not look.
        fields = (20, 0, method, 0, 0, 0, len(stored), plain, len(encoded), 0)
        common = struct.pack("<HHHHHIIIHH", *fields)
        directory += struct.pack("<IH", 0x02014B50, 20) + common
        directory += struct.pack("<HHHII", 0, 0, 0, 0, len(out)) + encoded
        out += struct.pack("<I", 0x04034B50) + common + encoded + stored
    count = len(members)
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, count, count, len(directory), len(out), 0)
    return out + directory + end


ZIP = (
    *(zip_pickle, zip_pickle, zip_pickle, zip_pickle, zip_names, zip_members, zip_claims),
    *(zip_claims, zip_end),
)


# YAML


def yaml_values(chance, raw):
    lines = raw.decode("utf-8", "replace").split("\n")
    at = chance.randrange(len(lines))
    head = lines[at].split(":")[0]
    values = (
        *("2001-99-99", "!!timestamp x", "!!int x", "!!bool x", "!!float x", "!!binary x"),
        *("!!python/object/apply:os.system ['touch canary']", "!!set {[a]: b}", "!!omap [1]"),
        *("0b_", "0x_", "1:99999999999999999999:1", ".nan", "1e999", "9" * 5000, "~", "*x", "&x"),
        *("[[", "{", "? [a]", "<<", "!!str", "!", "%", "@", "\t", "|2", "\ud800", "\x07"),
        nested(chance, "[", "]"),
        nested(chance, "{a: ", "}"),
        "&a [*a, *a]",
        "{<<: *nouns}",
        json.dumps(odd(chance)),
    )
    lines[at] = f"{head}: {chance.choice(values)}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def yaml_lines(chance, raw):
    lines = raw.split(b"\n")
    a, b = (chance.randrange(len(lines)) for _ in range(2))
    action = chance.randrange(4)
    if action == 0:
        lines[a], lines[b] = lines[b], lines[a]
    elif action == 1:
        lines.insert(a, lines[b])
    elif action == 2:
        del lines[a]
    else:
        lines[a] = b"  " + lines[a]
    return b"\n".join(lines)


def yaml_bomb(chance, raw):
    """Put lists of aliases of lists of aliases where texts are expected, or merged mappings."""
    depth = chance.choice((3, 8, 30))
    if chance.randrange(2):
        made = ["a0: &a0 [x, x]"]
        made += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, depth)]
        target = chance.choice(("about", "plural", "prompt_nouns", "words"))
        made += [f"{target}: *a{depth - 1}"]
    else:
        made = ["a0: &a0 {x: y}"]
        made += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, depth)]
        made += [f"prompt_sets: *a{depth - 1}"]
    return raw + "\n".join(["", *made, ""]).encode()


def yaml_long(chance, raw):
    """Many values: what a parser takes quadratic time for."""
    many = chance.choice(
        (b"nouns: [" + b"a, " * 3000 + b"]", b"? " * 500, b"a: " * 800, b"- " * 800)
    )
    return raw + b"\n" + many


YAML = (yaml_values, yaml_values, yaml_values, yaml_lines, yaml_lines, yaml_bomb, yaml_long)


# Folders: JSON of {file name: text or hex}


def folder(chance, raw):
    files = json.loads(raw)
    names = [n for n in files if n.endswith(".json")]
    shards = [n for n in files if n not in names]
    action = chance.randrange(6)
    if action == 0:
        name = chance.choice(shards)
        files[name] = chance.choice((*SAFETENSORS, *ANY))(chance, bytes.fromhex(files[name])).hex()
    elif action == 1 and len(names) > 1:
        index = json.loads(files[names[1]])
        for key in index["weight_map"]:
            if chance.randrange(2):
                index["weight_map"][key] = chance.choice((*TRAVERSALS, "config.json", names[1]))
        files[names[1]] = json.dumps(index)
    else:
        name = chance.choice(names)
        change = chance.choice((*JSON, *ANY))
        files[name] = change(chance, files[name].encode()).decode("latin-1")
    return json.dumps(files).encode()


GADGETS = gadgets.gadgets()

FORMATS = {
    ".safetensors": SAFETENSORS,
    ".pt": ZIP,
    ".ckpt": (legacy,),
    ".bin": (legacy,),
    ".yaml": YAML,
    ".json": JSON,
    ".jsonl": JSON,
    ".csv": (repeat, insert),
    "": (folder,),
}


UNCHANGEABLE = (
    *(zipfile.BadZipFile, zlib.error, ValueError, LookupError, TypeError, NotImplementedError),
    *(RecursionError, EOFError, OSError, RuntimeError),
)
"""What a change raises on a file that an earlier change took out of its format."""


def mutated(chance, raw, ending):
    """Return a changed file; in one of 20 cases by more than one change."""
    formats = FORMATS[ending]
    rounds = chance.choice((1,) * 15 + (2, 2, 2, 3, 5))
    for _ in range(rounds):
        pool = formats if chance.random() < 0.75 or not ending else ANY
        change = chance.choice(pool)
        if ending == ".pt" and chance.random() < 0.002:
            change = zip_bomb
        try:
            raw = change(chance, raw)
        except UNCHANGEABLE:
            raw = flip(chance, raw) if ending else raw  # a folder's JSON is ours, not a reader's
    return raw
