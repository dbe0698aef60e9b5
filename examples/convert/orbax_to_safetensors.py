#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Turns an Orbax checkpoint of the TTT-E2E authors' trainer into one safetensors file.

Tensor names stay the authors' own; the configuration goes into `__metadata__.config` as flat JSON.
What the tensors settle (sizes) is checked against the configuration; what they cannot settle
(heads, RoPE base, eps, window, chunk, which norms are on) has to be given and is never guessed.
"""

import argparse
import json
import logging
import math
import os
import pathlib
import struct
import sys
import warnings

ITEM = "model_weights"
ORBAX_MARK = "_METADATA"

POSITIVE, COUNT, RATE, FLAG, TEXT = "positive integer", "integer >= 0", "number", "bool", "text"
SCHEMA = {
    "vocab_size": POSITIVE,
    "hidden_size": POSITIVE,
    "num_attention_heads": POSITIVE,
    "intermediate_size": POSITIVE,
    "num_hidden_layers": POSITIVE,
    "suffix_len": COUNT,
    "prime": FLAG,
    "seq_modeling_block": TEXT,
    "mini_batch_size": POSITIVE,
    "sliding_window_size": POSITIVE,
    "tie_word_embeddings": FLAG,
    "rope_theta": RATE,
    "rms_norm_eps": RATE,
    "qk_norm": FLAG,
    "pre_norm": FLAG,
    "post_norm": FLAG,
    "inner_lr": RATE,
    "inner_clip": RATE,
}
OPTIONAL = ("inner_lr", "inner_clip")

MODEL = "language_model.model."
BLOCKS = MODEL + "h.blocks."
PRIME = MODEL + "h.prime_storage."


class Refused(Exception):
    """The input does not say enough, or contradicts itself; the message is for the user."""


# --- configuration -----------------------------------------------------------------------------


def flatten(loaded, source):
    """Returns (known keys, ignored keys) of a flat configuration or of the trainer's nested one."""
    if not isinstance(loaded, dict):
        raise Refused(f"{source}: expected a JSON object")
    if not isinstance(loaded.get("model"), dict):
        return ({k: v for k, v in loaded.items() if k in SCHEMA},
                [k for k in loaded if k not in SCHEMA])
    known, ignored = flatten({k: v for k, v in loaded["model"].items() if k != "model"}, source)
    mlp = loaded["model"].get("feed_forward_prime", "swiglu")
    if mlp != "swiglu":
        raise Refused(f"{source}: feed_forward_prime is {mlp!r}; only 'swiglu' can be converted")
    training = loaded.get("training") or {}
    inner = training.get("optimizer_inner") or {}
    if training.get("train_mode") == "meta":  # otherwise nothing learns and the rate means nothing
        kind = inner.get("optimizer_type", "sgd")
        if kind != "sgd":
            raise Refused(f"{source}: the inner optimizer is {kind!r}; only 'sgd' can be described")
        for key, theirs in (("inner_lr", "lr"), ("inner_clip", "clip_gradient")):
            if inner.get(theirs) is not None:
                known[key] = inner[theirs]
    return known, ignored


def read_config(pieces):
    """Merges files and key=value pairs, the later over the earlier."""
    config = {}
    for piece in pieces:
        if "=" in piece and not os.path.exists(piece):
            key, _, text = piece.partition("=")
            if key not in SCHEMA:
                raise Refused(f"--config {piece}: no such key; the keys are {', '.join(SCHEMA)}")
            try:
                config[key] = json.loads(text)
            except ValueError:
                config[key] = text
            continue
        try:
            with open(piece, encoding="utf-8") as file:
                loaded = json.load(file)
        except OSError as error:
            raise Refused(f"--config {piece}: {error.strerror}; give a JSON file or key=value")
        except ValueError as error:
            raise Refused(f"--config {piece}: not JSON: {error}")
        known, ignored = flatten(loaded, piece)
        config.update(known)
        if ignored:
            print(f"note: {piece}: not part of the schema, left out: {', '.join(ignored)}")
    return config


def check_values(config):
    """Checks type and range of every key that is there."""
    def is_number(value):
        return isinstance(value, (int, float)) and not isinstance(value, bool)

    for key, value in config.items():
        kind = SCHEMA[key]
        good = {
            POSITIVE: type(value) is int and value > 0,
            COUNT: type(value) is int and value >= 0,
            RATE: is_number(value) and math.isfinite(value) and value >= 0,
            FLAG: type(value) is bool,
            TEXT: isinstance(value, str),
        }[kind]
        if not good:
            raise Refused(f"configuration: {key} is {value!r}; expected a {kind}")
    for key in ("rope_theta", "rms_norm_eps"):
        if config.get(key) == 0:
            raise Refused(f"configuration: {key} is 0; expected a positive number")
    if config.get("seq_modeling_block") == "SWAFull":  # the same function, run over whole sequences
        config["seq_modeling_block"] = "SWA"
    if config.get("seq_modeling_block") not in (None, "SWA", "self_attention"):
        raise Refused(f"configuration: seq_modeling_block is {config['seq_modeling_block']!r}; "
                      "expected 'SWA' or 'self_attention'")


def seen_in(shapes):
    """The settings that tensor shapes alone decide."""
    seen = {
        "tie_word_embeddings": "language_model.lm_head.weight" not in shapes,
        "prime": any(name.startswith(PRIME) for name in shapes),
    }
    for name, keys in (
        (MODEL + "wte.weight", ("vocab_size", "hidden_size")),
        (BLOCKS + "feed_forward.w1.weight", ("num_hidden_layers", None, "intermediate_size")),
        (PRIME + "feed_forward_prime.w1.weight", ("suffix_len", None, None)),
    ):
        if len(shapes.get(name, ())) == len(keys):
            seen.update({k: n for k, n in zip(keys, shapes[name]) if k})
    return seen


def complete(config, shapes):
    """Fills in what the shapes decide and refuses to go on when anything else is missing."""
    wrong = []
    for key, value in seen_in(shapes).items():
        if config.setdefault(key, value) != value:
            wrong.append(f"{key} is {json.dumps(config[key])}, "
                         f"but the checkpoint's tensors say {json.dumps(value)}")
    if wrong:
        raise Refused("configuration: " + "\n  ".join(wrong))
    missing = [k for k in SCHEMA if k not in config and k not in OPTIONAL]
    if missing:
        raise Refused("configuration: missing " + ", ".join(missing) +
                      "\n  (the tensors do not tell, and a wrong value would go unnoticed; "
                      "take them from the training run's configuration)")
    width, heads = config["hidden_size"], config["num_attention_heads"]
    if width % heads or (width // heads) % 2:
        raise Refused(f"configuration: hidden_size {width} does not split into "
                      f"{heads} heads of even size")
    if config["suffix_len"] > config["num_hidden_layers"]:
        raise Refused(f"configuration: suffix_len {config['suffix_len']} exceeds "
                      f"num_hidden_layers {config['num_hidden_layers']}")
    if config["prime"] and config["suffix_len"] == 0:
        raise Refused("configuration: prime is true but suffix_len is 0")
    return {key: config[key] for key in SCHEMA if key in config}  # in the schema's order


def expected_shapes(config):
    """Every tensor such a model has; norms that are switched off have theirs all the same."""
    n, s = config["num_hidden_layers"], config["suffix_len"]
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    shapes = {MODEL + "wte.weight": (v, d), MODEL + "ln_f.weight": (d,)}
    if not config["tie_word_embeddings"]:
        shapes["language_model.lm_head.weight"] = (d, v)
    for name in ("wq", "wk", "wv", "wo"):
        shapes[f"{BLOCKS}seq_modeling_block.{name}.weight"] = (n, d, d)
    head = d // config["num_attention_heads"]
    for name in ("q_norm", "k_norm"):
        shapes[f"{BLOCKS}seq_modeling_block.{name}.weight"] = (n, head)
    for name in ("seq_norm", "ffn_norm", "seq_post_norm", "ffn_post_norm"):
        shapes[f"{BLOCKS}{name}.weight"] = (n, d)
    for name, rows, columns in (("w1", d, f), ("w2", f, d), ("w3", d, f)):
        shapes[f"{BLOCKS}feed_forward.{name}.weight"] = (n, rows, columns)
        if config["prime"]:
            shapes[f"{PRIME}feed_forward_prime.{name}.weight"] = (s, rows, columns)
    if config["prime"]:
        for name in ("ffn_prime_norm", "ffn_prime_post_norm"):
            shapes[f"{PRIME}{name}.weight"] = (s, d)
    return shapes


def compare_shapes(found, expected):
    """Names everything that is missing, unexpected or of another shape, in one message."""
    wrong = [f"missing     {n} {list(expected[n])}" for n in sorted(expected.keys() - found.keys())]
    wrong += [f"unexpected  {n} {list(found[n])}" for n in sorted(found.keys() - expected.keys())]
    wrong += [f"shape       {n} is {list(found[n])}, the configuration asks for {list(expected[n])}"
              for n in sorted(found.keys() & expected.keys()) if tuple(found[n]) != expected[n]]
    if wrong:
        raise Refused("the checkpoint does not fit the configuration:\n  " + "\n  ".join(wrong))


# --- the checkpoint ----------------------------------------------------------------------------


def find_item(directory):
    """Accepts the item, the step that holds it, or a run directory with exactly one step."""
    path = pathlib.Path(directory).resolve()  # Orbax wants absolute paths
    if not path.is_dir():
        raise Refused(f"{directory}: no such directory")
    for candidate in (path, path / ITEM):
        if (candidate / ORBAX_MARK).is_file():
            return candidate
    steps = sorted((p.name for p in path.iterdir() if (p / ITEM / ORBAX_MARK).is_file()),
                   key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
    steps = [name for name in steps if ".orbax-checkpoint-tmp" not in name]  # never finished
    if len(steps) == 1:
        return path / steps[0] / ITEM
    if steps:
        raise Refused(f"{directory}: several steps ({', '.join(steps)}); name one, "
                      f"for example {path / steps[-1]}")
    raise Refused(f"{directory}: no Orbax item '{ITEM}' here")


def load_orbax():
    """Imports Orbax late, so that a wrong command line is answered at once."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    warnings.filterwarnings("ignore", module=r"orbax\..*")
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise Refused(f"{error}; pip install -r requirements.txt (beside this script)")
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it would repeat what we report
    return orbax.checkpoint


def asking_orbax(function, item, *rest):
    """Calls function(item, ...), turning Orbax's many kinds of failure into one sentence."""
    try:
        return function(item, *rest)
    except Refused:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise Refused(f"{item}: Orbax cannot read it: {reason}") from error


def walk(tree, prefix=""):
    """Yields (dotted name, leaf) of nested dictionaries and lists."""
    items = tree.items() if hasattr(tree, "items") else (
        enumerate(tree) if isinstance(tree, (list, tuple)) else None)
    if items is None:
        yield prefix, tree
        return
    for key, child in items:
        yield from walk(child, f"{prefix}.{key}" if prefix else str(key))


def metadata_tree(item, orbax):
    """The tree of array descriptions; leaves that hold nothing (None) are dropped later."""
    found = orbax.PyTreeCheckpointer().metadata(item)
    found = getattr(found, "item_metadata", found)
    return getattr(found, "tree", found)


def map_tree(function, tree):
    if hasattr(tree, "items"):
        return {key: map_tree(function, child) for key, child in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [map_tree(function, child) for child in tree]
    return function(tree)


def is_array(leaf):
    return getattr(leaf, "shape", None) is not None and getattr(leaf, "dtype", None) is not None


def arrays_of(tree):
    return {name: leaf for name, leaf in walk(tree) if is_array(leaf)}


def restore(item, orbax, metadata):
    """Restores host arrays, whatever the devices were that the checkpoint was written from."""
    import numpy

    arguments = map_tree(lambda _: orbax.RestoreArgs(restore_type=numpy.ndarray), metadata)
    tree = orbax.PyTreeCheckpointer().restore(item, restore_args=arguments)
    return {name: numpy.asarray(leaf) for name, leaf in arrays_of(tree).items()}


def restore_again(item, orbax, metadata):
    """A second opinion for --check: the other checkpointer, through device arrays."""
    import jax
    import numpy

    place = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])

    def describe(leaf):
        if not is_array(leaf):
            return None
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    tree = orbax.StandardCheckpointer().restore(item, map_tree(describe, metadata))
    return {name: numpy.asarray(leaf) for name, leaf in arrays_of(tree).items()}


# --- the file ----------------------------------------------------------------------------------


def encode(name, array, dtype):
    """Returns (safetensors type, little-endian array); refuses what is not finite."""
    import ml_dtypes
    import numpy

    stored = {"float32": "F32", "bfloat16": "BF16"}
    target = dtype or str(array.dtype)
    if target not in stored:
        raise Refused(f"{name}: stored as {target}; say --dtype float32 or --dtype bfloat16")
    wide = array.astype(numpy.float32)
    if not numpy.isfinite(wide).all():
        raise Refused(f"{name}: holds values that are not finite")
    if target == "float32":
        return "F32", numpy.ascontiguousarray(wide, dtype="<f4")
    # One rounding from whatever is stored, to nearest even.
    narrow = array.astype(ml_dtypes.bfloat16)
    if not numpy.isfinite(narrow.astype(numpy.float32)).all():
        raise Refused(f"{name}: holds values that bfloat16 cannot hold")
    return "BF16", numpy.ascontiguousarray(narrow).view(numpy.uint16).astype("<u2")


def write_safetensors(path, tensors, config):
    """Writes the tensors, wide types first so that each is aligned to its own size."""
    order = sorted(tensors, key=lambda name: (-tensors[name][1].itemsize, name))
    header = {"__metadata__": {"config": json.dumps(config)}}
    offset = 0
    for name in order:
        kind, array = tensors[name]
        header[name] = {"dtype": kind, "shape": list(array.shape),
                        "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(memoryview(tensors[name][1]).cast("B"))
        file.flush()
        os.fsync(file.fileno())


def bits_of(array, kind):
    """The bytes that `kind` should hold, by integer arithmetic alone where it can be."""
    import numpy

    if kind == "F32":
        return numpy.asarray(array, dtype="<f4").tobytes()
    if str(array.dtype) == "bfloat16":
        return array.view(numpy.uint16).astype("<u2").tobytes()
    if str(array.dtype) != "float32":
        raise Refused(f"--check cannot tell how {array.dtype} should round to bfloat16")
    bits = numpy.ascontiguousarray(array).view(numpy.uint32).astype(numpy.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def check_file(path, reference, config):
    """Reads the file back and compares it, bit for bit, with a second restore."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        if json.loads(header.pop("__metadata__")["config"]) != config:
            raise Refused("--check: the configuration did not survive")
        if header.keys() != reference.keys():
            raise Refused(f"--check: tensors differ: {sorted(header.keys() ^ reference.keys())}")
        end = 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, stop = entry["data_offsets"]
            if begin != end or tuple(entry["shape"]) != reference[name].shape:
                raise Refused(f"--check: {name} lies or is shaped wrongly")
            end = stop
            file.seek(8 + length + begin)
            if file.read(stop - begin) != bits_of(reference[name], entry["dtype"]):
                raise Refused(f"--check: {name} differs from the checkpoint")
        if os.path.getsize(path) != 8 + length + end:
            raise Refused("--check: the file is longer or shorter than its header says")


def convert(arguments):
    out = pathlib.Path(arguments.out)
    if not out.parent.is_dir():
        raise Refused(f"{out.parent}: no such directory")
    config = read_config(arguments.config)
    check_values(config)
    item = find_item(arguments.checkpoint)
    orbax = load_orbax()
    metadata = asking_orbax(metadata_tree, item, orbax)
    found = {name: tuple(leaf.shape) for name, leaf in arrays_of(metadata).items()}
    config = complete(config, found)
    compare_shapes(found, expected_shapes(config))

    restored = asking_orbax(restore, item, orbax, metadata)
    compare_shapes({name: array.shape for name, array in restored.items()}, expected_shapes(config))
    tensors = {}
    for name in sorted(restored):
        tensors[name] = encode(name, restored.pop(name), arguments.dtype)

    draft = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        write_safetensors(draft, tensors, config)
        if arguments.check:
            tensors.clear()
            check_file(draft, asking_orbax(restore_again, item, orbax, metadata), config)
        os.replace(draft, out)
    finally:
        draft.unlink(missing_ok=True)
    checked = ", bits checked against a second restore" if arguments.check else ""
    weights = sum(math.prod(shape) for shape in found.values())
    print(f"{out}: {len(found)} tensors, {weights} weights{checked}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", metavar="CHECKPOINT_DIR",
                        help=f"the item '{ITEM}', the step that holds it, or a run of one step")
    parser.add_argument("out", metavar="OUT.safetensors")
    parser.add_argument("--config", nargs="+", action="extend", required=True,
                        metavar="config.json|key=value",
                        help="later pieces override earlier ones; keys: " + ", ".join(SCHEMA))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"),
                        help="default: what the checkpoint stores")
    parser.add_argument("--check", action="store_true",
                        help="compare the written file bit for bit with a second restore")
    try:
        convert(parser.parse_args())
    except (Refused, OSError) as error:
        sys.exit(f"orbax_to_safetensors: {error}")


if __name__ == "__main__":
    main()
