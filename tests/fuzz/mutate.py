"""Changes to valid files, each a function of (generator of chance, bytes) -> bytes.

Named after what they aim at; one file may get several. They know their format: a header stays
JSON, a zip stays a zip, so that the change is met deep inside a reader and not at its door.
"""

import base64
import io
import json
import math
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
    """Return the starts of all instructions that can be distinguished, and the last end."""
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


# LoRAs


def _tensors(raw):
    """Return (header, {name: (dtype, shape, bytes)}) of a safetensors file."""
    header, body = _split(raw)
    header = json.loads(header)
    about = header.pop("__metadata__", None)
    entries = {
        k: [v["dtype"], v["shape"], body[slice(*v["data_offsets"])]] for k, v in header.items()
    }
    return about, entries


def _packed(about, entries):
    header, body = {} if about is None else {"__metadata__": about}, b""
    for key, (dtype, shape, data) in entries.items():
        header[key] = {"dtype": dtype, "shape": shape}
        header[key]["data_offsets"] = [len(body), len(body) + len(data)]
        body += data
    return _join(json.dumps(header).encode(), body)


WIDE = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "BOOL": 1, "F8_E4M3": 1}
WIDE |= {"F8_E5M2": 1, "C64": 8, "F8_E8M0": 1, "I16": 2, "F4": 0.5, "F6_E2M3": 0.75}
"""Code of a dtype -> bytes per value."""


def other_dtype(chance, raw):
    """Say of one tensor's bytes that they are of another dtype, the shape made to fit."""
    about, entries = _tensors(raw)
    entry = chance.choice(list(entries.values()))
    dtype = chance.choice(list(WIDE))
    before = WIDE.get(entry[0], 4)
    if WIDE[dtype] == before or not entry[1]:
        entry[0] = dtype
    elif chance.randrange(2):
        values = int(len(entry[2]) / before)
        entry[0], entry[2] = dtype, bytes(int(values * WIDE[dtype]))
    else:
        entry[0], entry[1] = dtype, [*entry[1][:-1], int(entry[1][-1] * before / WIDE[dtype])]
    return _packed(about, entries)


def lora_pairs(chance, raw):
    """Take a half away, turn it, give it another rank, or give a module two of them."""
    about, entries = _tensors(raw)
    key = chance.choice(list(entries))
    dtype, shape, data = entries[key]
    action = chance.randrange(8)
    if action == 0:
        del entries[key]
    elif action == 1:
        entries[key] = [dtype, shape[::-1], data]
    elif action == 2:
        other = chance.choice(list(entries))
        entries[key], entries[other] = entries[other], entries[key]
    elif action == 3:
        rank = chance.choice((0, 1, 3, 2**16))
        size = WIDE[dtype] * rank * 4
        entries[key] = [dtype, chance.choice(([rank, 4], [4, rank])), bytes(size)]
    elif action == 4:
        entries[lora_name(chance, key)] = [dtype, shape, data[::-1]]
    elif action == 5:
        entries[lora_name(chance, key)] = entries.pop(key)
    elif action == 6:
        entries[key] = [dtype, [*shape, 1, 1][: chance.choice((1, 3, 4, 6))], data]
    else:
        value = chance.choice((math.nan, math.inf, 1e38, -1e30, 0.0, 1e-40))
        entries[key] = [dtype, shape, struct.pack("<f", value) * (len(data) // 4)]
    return _packed(about, entries)


def lora_name(chance, key):
    """Return another spelling of a LoRA's key, or a key of something else."""
    module = key.split(".lora")[0]
    names = (
        key.removeprefix("unet."),
        f"unet.{key}",
        f"base_model.model.{key}",
        f"text_encoder.{key}",
        key.replace(".weight", ".default.weight"),
        key.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B."),
        key.replace("lora_A", "lora_down").replace("lora_B", "lora_up"),
        f"{module}.alpha",
        f"{module}.lora_mid.weight",
        f"{module}.lora_magnitude_vector.weight",
        f"{module}.hada_w1_a",
        f"lora_unet_{module.removeprefix('unet.').replace('.', '_')}.lora_up.weight",
        ".lora_up.weight",
        "lora_unet_.lora_down.weight",
        "bundle_emb.x.y",
    )
    return chance.choice(names)


def lora_alpha(chance, raw):
    """State an alpha: of no module, not a number, several numbers, huge."""
    about, entries = _tensors(raw)
    modules = [key.split(".lora")[0] for key in entries]
    value = chance.choice((0.0, math.nan, math.inf, -math.inf, -1.0, 1e38, 1e30, 1e-40))
    data = struct.pack("<f", value)
    shape = chance.choice(([], [], [1], [1, 1], [2], [0]))
    count = math.prod(shape)
    key = chance.choice((*modules, "x", ""))
    entries[f"{key}.alpha"] = chance.choice(
        (["F32", shape, data * count], ["I64", shape, bytes(8 * count)], ["BOOL", [], b"\1"])
    )
    return _packed(about, entries)


def lora_settings(chance, raw):
    """Write settings as diffusers does into the header: flat, and mostly not plain."""
    about, entries = _tensors(raw)
    keys = ("unet.lora_alpha", "unet.alpha_pattern", "text_encoder.use_dora", "unet", "r", ".")
    table = {chance.choice(keys): odd(chance) for _ in range(3)}
    text = chance.choice((json.dumps(table), nested(chance, "[", "]"), "1", "[]", '"x"'))
    return _packed({**(about or {}), "lora_adapter_metadata": text}, entries)


TENSORS = (lora_pairs, lora_pairs, lora_pairs, lora_alpha, lora_settings, other_dtype)


# Pictures


def _chunks(raw):
    """Return [kind, bytes] of a PNG's chunks."""
    found, at = [], 8
    while at + 12 <= len(raw):
        length = int.from_bytes(raw[at : at + 4], "big")
        found.append([raw[at + 4 : at + 8], raw[at + 8 : at + 8 + length]])
        at += 12 + length
    return found


def _png(chunks, chance=None):
    made = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        made += len(data).to_bytes(4, "big") + kind + data
        made += (zlib.crc32(kind + data)).to_bytes(4, "big")
    return made


def png_claims(chance, raw):
    """Let a chunk claim another length or checksum."""
    made, at, spots = bytearray(raw), 8, []
    while at + 12 <= len(raw):
        length = int.from_bytes(raw[at : at + 4], "big")
        spots += [at, at + 8 + length]
        at += 12 + length
    at = chance.choice(spots)
    made[at : at + 4] = (chance.choice(NUMBERS) % 2**32).to_bytes(4, "big")
    return bytes(made)


def png_head(chance, raw):
    """Claim another size, depth, kind of colours or interlacing; the checksum is right."""
    chunks = _chunks(raw)
    head = bytearray(chunks[0][1])
    if chance.randrange(2):
        sizes = (0, 1, 255, 4000, 4097, 2**14, 2**15, 60_000, 2**20, 2**31 - 1, 2**31, 2**32 - 1)
        for at in chance.choice(((0,), (4,), (0, 4))):
            head[at : at + 4] = chance.choice(sizes).to_bytes(4, "big")
    else:
        head[chance.randrange(8, 13)] = chance.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
    chunks[0][1] = bytes(head)
    return _png(chunks)


def png_chunks(chance, raw):
    chunks = _chunks(raw)
    at = chance.randrange(len(chunks))
    action = chance.randrange(4)
    if action == 0:
        del chunks[at]
    elif action == 1:
        chunks.insert(at, list(chance.choice(chunks)))
    elif action == 2:
        kinds = (b"tEXt", b"zTXt", b"iTXt", b"IDAT", b"IEND", b"PLTE", b"tRNS", b"acTL", b"fdAT")
        chunks[at][0] = chance.choice((*kinds, b"fcTL", b"eXIf", b"iCCP", b"cHRM", b"pHYs"))
    else:
        chunks[at][1] = chance.choice(ANY)(chance, chunks[at][1])
    return _png(chunks)


def png_text(chance, raw):
    """Put JSON of A1111 into a text chunk, changed, nested, or growing a thousandfold."""
    table = {"TORCHTENSOR": [[0.5, 1.0], [2.0, 3.0]]}
    value = {"string_to_param": {"*": table}, "name": "x", "step": 1, "sd_checkpoint": None}
    text = json.dumps(value).encode()
    if chance.randrange(3):
        text = chance.choice((as_json, as_json, json_text, *ANY))(chance, text)
    text = chance.choice((text, text, text, b"[" * 200_000, b'{"a":' * 100_000, b"0" * 3_000_000))
    coded = base64.b64encode(text)
    if not chance.randrange(10):
        coded = chance.choice(ANY)(chance, coded)
    name = b"sd-ti-embedding"
    size = chance.choice((len(coded), 10**6, 3 * 10**8))
    packed = zlib.compress(coded) if size == len(coded) else _deflated(size)
    chunk = chance.choice(
        (
            [b"tEXt", name + b"\0" + coded],
            [b"zTXt", name + b"\0\0" + packed],
            [b"iTXt", name + b"\0\1\0\0\0" + packed],
            [b"iTXt", name + b"\0\0\0\0\0" + coded],
        )
    )
    chunks = _chunks(raw)
    return _png([chunks[0], chunk, *chunks[1:]])


def png_pixels(chance, raw):
    """Change the pixels: lines of a flat picture, large and cheap, or some bytes."""
    chunks = _chunks(raw)
    across, down = chance.choice(((2**11, 2**12), (2**13, 2**10), (2**12, 2**12), (2**23, 1)))
    head = struct.pack(">IIBBBBB", across, down, 8, chance.choice((0, 2, 6)), 0, 0, 0)
    line = b"\0" + bytes([chance.choice((0, 16, 17, 200))]) * (across * 4)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(line) for _ in range(min(down, 4096)))
    data += packer.flush()
    return _png([[b"IHDR", head], [b"IDAT", data], chunks[-1]])


def pixel_bytes(chance, raw):
    """Change bytes of the picture itself, below its compression."""
    chunks = _chunks(raw)
    at = next(n for n, (kind, _) in enumerate(chunks) if kind == b"IDAT")
    plain = zlib.decompress(chunks[at][1])
    chunks[at][1] = zlib.compress(chance.choice((flip, flip, cut, repeat, truncate))(chance, plain))
    return _png(chunks)


@cache
def _deflated(size):
    return zlib.compress(b"A" * size, 9)


PNG = (png_claims, png_head, png_head, png_chunks, png_chunks, png_text, png_text, pixel_bytes)


def riff(chance, raw):
    """Change lengths or sizes of a WebP or AVIF file, near its beginning."""
    at = chance.randrange(min(len(raw) - 4, 400))
    made = bytearray(raw)
    made[at : at + 4] = (chance.choice(NUMBERS) % 2**32).to_bytes(
        4, chance.choice(("little", "big"))
    )
    return bytes(made)


# What is typed: layers, prompts, files of prompts


PIECES = (
    *(
        ":",
        ":0.5",
        ":1e400",
        ":nan",
        ":inf",
        ":-0",
        ":1_0",
        ":0x1",
        ":\u0663",
        "~",
        "~root/x",
        "~x/y",
    ),
    *("/", "../", "\0", "\n", "\udcff", "//", ".", " ", "\ufeff", "C:\\x", "%s", "{}", "$HOME"),
    *("(", ")", "[", "]", "\\", "\\(", ":1.5)", ":.5)", ":-1)", ": 2 )", ":9e9)", ":1.2.3)", "()"),
    *("\u2028", "\x0b", "\r\n", "\x85", "#", "a", "dog ", "<|endoftext|>", "\u0301", "\U0001f525"),
)


def typed(chance, raw):
    """Put some pieces of what people and programs type somewhere into a text."""
    text = raw.decode("utf-8", "surrogateescape")
    for _ in range(chance.choice((1, 2, 5, 20))):
        at = chance.randrange(len(text) + 1)
        text = text[:at] + chance.choice(PIECES) + text[at:]
    return text.encode("utf-8", "surrogateescape")


def repeated(chance, raw):
    """Repeat one piece or two very often, before and after the text."""
    count = chance.choice((50, 3000, 20_000))
    one, two = chance.choice(PIECES), chance.choice(PIECES)
    pairs = (("(", ")"), ("[", "]"), ("(", ":1.3)"), ("(", ":0.0)"), ("([", "])"), ("(a", ")"))
    numbers = ((":" + "9" * count, ")"), ("(a:" + "1" * count, ""), (":" + " " * count, ":"))
    if chance.randrange(5) == 0:
        one, two = chance.choice(numbers)
        count = chance.choice((1, 3))
    elif chance.randrange(2):
        one, two = chance.choice(pairs)
    both = one.encode("utf-8", "surrogateescape"), two.encode("utf-8", "surrogateescape")
    return both[0] * count + raw + both[1] * chance.choice((count, 0, count // 2))


TYPED = (typed, typed, typed, repeated)


# Folders: JSON of {file name: text or hex}


def folders(chance, raw):
    """Change one file of a folder, by its kind; or take it away, or give it another's content."""
    files = json.loads(raw)
    names = [n for n, content in files.items() if content is not None]
    name = chance.choice(names)
    action = chance.randrange(12)
    if action == 0:
        del files[name]
    elif action == 1:
        files[name] = files[chance.choice(names)]
        if name.endswith(BINARY):
            files[name] = bytes(chance.randrange(40)).hex()
    elif name.endswith(BINARY):
        plain = bytes.fromhex(files[name])
        pools = (SAFETENSORS, (other_dtype,), ANY)
        if name.endswith(".bin"):
            pools = (ZIP, ZIP, ANY) if plain[:2] == b"PK" else ((legacy,), (legacy,), ANY)
        files[name] = chance.choice(chance.choice(pools))(chance, plain).hex()
    elif name.endswith("index.json") and action < 8 and "weight_map" in files[name]:
        index = json.loads(files[name])
        for key in index["weight_map"]:
            if chance.randrange(2):
                index["weight_map"][key] = chance.choice((*TRAVERSALS, *names))
        files[name] = json.dumps(index)
    else:
        change = chance.choice((*JSON, *JSON, settings, settings, settings, *ANY))
        files[name] = change(chance, files[name].encode("latin-1")).decode("latin-1")
    return json.dumps(files).encode()


BINARY = (".safetensors", ".bin")
SETTINGS = {
    "quantization_config": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, {}),
    "auto_map": ({"AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]},),
    "attn_implementation": ("flash_attention_2", "x/y", "eager"),
    "_attn_implementation": ("x/y", "sdpa"),
    "_attn_implementation_internal": ("x/y",),
    "tokenizer_file": TRAVERSALS,
    "vocab_file": TRAVERSALS,
    "gguf_file": TRAVERSALS,
    "fast_tokenizer_files": (["tokenizer.../../x.json"], ["tokenizer.9.9.9.json"]),
    "post_processor": (1, "x"),
    "vocab": ({"a": 0}, "/etc/hostname"),
    "init_inputs": ([1, 2],),
    "extra_special_tokens": (["<y>"], {"y": "<y>"}),
    "added_tokens_decoder": ({"99999999999": {"content": "<y>"}}, {"20": {"content": "<y>"}}),
    "padding": ({"strategy": {"Fixed": 2**40}, "direction": "Right", "pad_to_multiple_of": None},),
    "truncation": ({"max_length": 0, "strategy": "LongestFirst", "stride": 0},),
    "text_config": ({"vocab_size": 2**40},),
    "_use_default_values": (["act_fn", "x"], 5),
    "_class_name": ("UNet3DConditionModel", "FlaxUNet2DConditionModel", "os.system", 1),
    "torch_dtype": ("float64", "os", 1),
    "dtype": ("float64", "os", 1),
    "trained_betas": ([0.1] * 100, [0.1], "x", [float("nan")] * 100),
    "attention_type": ("gated", "gated-text-image"),
    "addition_embed_type": ("text", "text_time", "image"),
    "time_embedding_type": ("fourier",),
    "encoder_hid_dim": (2**20, 8),
    "class_embed_type": ("timestep", "identity"),
    "num_class_embeds": (2**30, 10),
    "use_linear_projection": (True,),
    "mid_block_type": (None, "UNetMidBlock2D"),
    "weight_map": ({}, {"x": "../../x"}),
    "lora_alpha": (0, -1, 1e400, "8", [8], 10**400, True),
    "alpha_pattern": (5, True, [1], {"x": []}, {".*": 1e300}, {"": 1}),
    "use_rslora": (True, "x"),
}
"""What settings of such names could do: ask for code, other files, other devices, memory."""


def settings(chance, raw):
    """Set something that a library might act on, or make one number of a setting extreme."""
    value = json.loads(raw)
    if not isinstance(value, dict):
        return flip(chance, raw)
    numbers = [k for k, v in value.items() if isinstance(v, int | float | list)]
    if numbers and chance.randrange(2):
        name = chance.choice(numbers)
        old, extreme = value[name], chance.choice((*NUMBERS, 3, 1.5, 1e300, float("nan")))
        listed = isinstance(old, list)
        value[name] = (
            chance.choice(([extreme] * len(old), old * 3, [], old[:1])) if listed else extreme
        )
    else:
        name = chance.choice(list(SETTINGS))
        value[name] = chance.choice(SETTINGS[name])
    return json.dumps(value).encode()


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
    ".png": PNG,
    ".webp": (riff,),
    ".avif": (riff,),
    ".txt": TYPED,
    "": (folder,),
}
BY_READER = {
    ("lora", ".safetensors"): (*TENSORS, *TENSORS, *SAFETENSORS),
    ("erased", ".safetensors"): (*SAFETENSORS, other_dtype, other_dtype),
    ("layout", ".safetensors"): (*SAFETENSORS, other_dtype, other_dtype),
    ("state", ".safetensors"): (*SAFETENSORS, other_dtype, other_dtype, other_dtype),
    ("lora folder", ""): (folders,),
    ("pipeline", ""): (folders,),
    ("model", ""): (folders,),
}
"""Changes to kinds of files whose ending does not name them."""


UNCHANGEABLE = (
    *(zipfile.BadZipFile, zlib.error, ValueError, LookupError, TypeError, NotImplementedError),
    *(RecursionError, EOFError, OSError, RuntimeError, struct.error, StopIteration),
    AttributeError,
)
"""What a change raises on a file that an earlier change took out of its format."""


def mutated(chance, raw, ending, reader=""):
    """Return a changed file; in one of 20 cases by more than one change."""
    formats = BY_READER.get((reader, ending)) or FORMATS[ending]
    rounds = chance.choice((1,) * 15 + (2, 2, 2, 3, 5))
    for _ in range(rounds):
        pool = formats if chance.random() < 0.75 or not ending else ANY
        change = chance.choice(pool)
        if ending == ".pt" and chance.random() < 0.002:
            change = zip_bomb
        if ending == ".png" and chance.random() < 0.01:
            change = png_pixels
        try:
            raw = change(chance, raw)
        except UNCHANGEABLE:
            raw = flip(chance, raw) if ending else raw  # a folder's JSON is ours, not a reader's
    return raw
