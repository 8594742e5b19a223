"""Shrink the configuration of a language model, so that a random copy of the model can be run on a CPU in a moment.

Ratios of widths are preserved, because the configurations of many models check how these numbers are related: the numbers of
heads and all widths are divided by the same number, and, where the model accepts it, the widths of a head and all widths by
another one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_VOCABULARY = 128
WINDOW = 8  # tokens of a shrunken sliding window or attention chunk
# Experts of a layer, groups of experts, and experts of a token: two experts in each of two groups.
EXPERTS = {
    r"experts$|expert_num$": 4,
    r"^n_group$|^n_groups_moe$|expert_groups?$": 2,
    r"^topk_group$": 1,
    r"experts_per_tok|experts_top_?k|top_?k_experts|^moe_top_?k$|^moe_k$": 2,
}
LAYERS_OF_A_TYPE = 2
HEAD_WIDTH = 32
FREE_MULTIPLE = 16  # of inner widths, because kernels for experts need aligned rows
MAX_LAYERS = 8  # without a list of layer types, unless the layers alternate with a longer period

HEADS = re.compile(r"(^|_)(n_heads?|num_heads?|num_\w*_heads|\w*_heads|\w*_head_kv|num_kv|n_groups|num_groups)$")
HEAD_WIDTHS = re.compile(r"(^|_)(head_dim|head_size|d_head|d_kv|kv_channels|mamba_d_head)$")
WIDTHS = re.compile(r"hidden|intermediate|ffn|inner|embd|embed|emb_dim|d_model|d_ff|width|rank|d_ssm|mlp_dim")
NO_WIDTHS = re.compile(r"layer|head_dim|max_|vocab|experts|position|_id$|_type|num_|_act|eps|dropout|loss|coef")
WINDOWS = re.compile(r"window(_size)?$|chunk_size$|^local_attn")
PERIODS = re.compile(r"(period|interval|pattern|_step|_freq\w*|every_\w+)$")
FIRST_LAYERS = re.compile(r"first_k|dense_layers|num_kv_shared")
LAYER_NUMBERS = re.compile(r"(layers|indices|ids|idxs?|per_layer_config)$")
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")


def shrunken_configs(config: Any) -> Iterator[Any]:
    """Yield smaller copies of a configuration, the one that changes most first.

    A copy may be invalid: then building the model, or its first forward pass, raises an exception. Copies that the class of the
    configuration rejects are skipped.

    Args:
        config: the configuration of a causal language model, an object of transformers.
    """
    content = config.to_dict()
    for divisor in _divisors(content):
        for changes in _CHANGES:
            try:
                yield type(config).from_dict(_shrunken(content, divisor, changes))
            # The classes of transformers reject a configuration with many kinds of exceptions.
            except Exception:
                continue


def _divisors(content: dict[str, Any]) -> list[int]:
    """Return the numbers by which widths can be divided, best first."""
    counts = [value for block in _blocks(content) for key, value in block.items() if HEADS.search(key) and _above_one(value)]
    common = math.gcd(*counts) if counts else 16
    divisors = [number for number in range(common, 0, -1) if common % number == 0]
    # A model with a single head would hide mistakes in the order of heads.
    several = [number for number in divisors if not counts or max(counts) >= 2 * number]
    return list(dict.fromkeys([*several[:1], *divisors[:1], *several[1:3]]))


@dataclass(frozen=True)
class _Changes:
    """What is shrunken besides widths and numbers of heads.

    Attributes:
        head_widths: the widths of a head, to about ``HEAD_WIDTH``.
        free_widths: the inner widths of feed-forward layers, to a small number.
        layers: the number of layers.
    """

    head_widths: bool
    free_widths: bool
    layers: bool


_CHANGES = (_Changes(True, True, True), _Changes(False, True, True), _Changes(False, False, True), _Changes(False, False, False))


def _shrunken(content: dict[str, Any], divisor: int, changes: _Changes) -> dict[str, Any]:
    """Return a smaller copy of the configuration, or of the block of a part of the model.

    ``divisor`` is the number by which widths and numbers of heads are divided.
    """
    small: dict[str, Any] = {}
    head_divisor = _head_divisor(content) if changes.head_widths else 1
    for key, value in (content | _fewer_layers(content) if changes.layers else content).items():
        if isinstance(value, dict) and key.endswith("_config") and key != "per_layer_config":
            small[key] = _shrunken(value, divisor, changes)
        elif key.endswith("token_id") and isinstance(value, int):
            small[key] = value if 0 <= value < MAX_VOCABULARY else 0
        elif key.endswith("token_id") and isinstance(value, list):
            small[key] = [entry if entry < MAX_VOCABULARY else 0 for entry in value]
        elif isinstance(value, list) and WIDTHS.search(key) and all(map(_above_one, value)):
            # A few models have a width for each layer.
            small[key] = [_shrunken_number(key, entry, (divisor, head_divisor), changes.free_widths) for entry in value]
        elif _above_one(value) and key not in LAYER_COUNTS:
            small[key] = _shrunken_number(key, value, (divisor, head_divisor), changes.free_widths)
        else:
            small[key] = value
    return small


def _head_divisor(content: dict[str, Any]) -> int:
    """Return the number by which the widths of a head can be divided."""
    widths = [value for key, value in content.items() if HEAD_WIDTHS.search(key) and _above_one(value)]
    heads = next((content[key] for key in ("num_attention_heads", "n_head", "num_heads") if _above_one(content.get(key))), None)
    hidden = next((content[key] for key in ("hidden_size", "n_embd", "d_model") if _above_one(content.get(key))), None)
    if not widths and heads and hidden:
        widths = [hidden // heads]
    common = math.gcd(*widths) if widths else 1
    return max(1, common // HEAD_WIDTH)


def _shrunken_number(key: str, value: int, divisors: tuple[int, int], free_widths: bool) -> int:
    divisor, head_divisor = divisors
    if "vocab" in key:
        return min(value, MAX_VOCABULARY)
    if WINDOWS.search(key):
        return min(value, WINDOW)
    for pattern, limit in EXPERTS.items():
        if re.search(pattern, key):
            return min(value, limit)
    if HEAD_WIDTHS.search(key):
        return max(1, value // head_divisor)
    is_width = WIDTHS.search(key) and not NO_WIDTHS.search(key)
    if HEADS.search(key) or is_width:
        divided = max(1, value // (divisor * head_divisor if is_width and not HEADS.search(key) else divisor))
        is_free = free_widths and re.search(r"intermediate|ffn|inner|d_ff", key)
        return min(math.ceil(divided / FREE_MULTIPLE) * FREE_MULTIPLE, 128) if is_free else divided
    return value


def _fewer_layers(content: dict[str, Any]) -> dict[str, Any]:
    """Return the changed keys: two layers of each type, or one period of layers that alternate, twice."""
    names = [name for name in LAYER_COUNTS if _above_one(content.get(name))]
    kinds = next((value for key, value in content.items() if key.endswith("block_type") and isinstance(value, list)), [])
    if not names and not kinds:
        return {}
    number = content[names[0]] if names else len(kinds)
    numbers = {key: _layer_numbers(key, value, number) for key, value in content.items()}
    numbers = {key: value for key, value in numbers.items() if value}
    lists = {key: value for key, value in content.items() if _is_per_layer(value, number) and key not in numbers}
    periods = [value for key, value in content.items() if PERIODS.search(key) and _above_one(value) and value <= MAX_LAYERS]
    # The types of the first layers, which are repeated.
    periods += [len(value) for key, value in content.items() if key.endswith("_types") and isinstance(value, list)]
    if lists or numbers:
        chosen: dict[str, list[int]] = {}
        for index in range(number):
            kind = [[value[index] for value in lists.values()], [index in value for value in numbers.values()]]
            chosen.setdefault(repr(kind), []).append(index)
        indices = sorted(index for group in chosen.values() for index in group[:LAYERS_OF_A_TYPE])
    else:
        indices = list(range(min(number, max([LAYERS_OF_A_TYPE, *(2 * period for period in periods)]))))
    changes: dict[str, Any] = dict.fromkeys(names, len(indices))
    for key, value in lists.items():
        subset = [value[index] for index in indices]
        changes[key] = "".join(subset) if isinstance(value, str) else subset
    for key, layers in numbers.items():
        moved = {index: position for position, index in enumerate(indices) if index in layers}
        value = content[key]
        changes[key] = (
            {moved[int(k)]: v for k, v in value.items() if int(k) in moved} if isinstance(value, dict) else [*moved.values()]
        )
    # The number of dense layers at the start.
    changes |= {key: 1 for key, value in content.items() if FIRST_LAYERS.search(key) and _above_one(value)}
    return changes


def _layer_numbers(key: str, value: Any, number: int) -> set[int]:
    """Return the layers whose numbers are in a list, or are the keys of a block; an empty set for other values."""
    if not isinstance(value, list | dict) or not value or not LAYER_NUMBERS.search(key):
        return set()
    texts = [str(entry) for entry in value]
    are_numbers = len(set(texts)) == len(texts) and all(text.isdigit() and int(text) < number for text in texts)
    return {int(text) for text in texts} if are_numbers else set()


def _is_per_layer(value: Any, number: int) -> bool:
    return isinstance(value, list | tuple | str) and len(value) == number


def _blocks(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield content
    for key, value in content.items():
        if isinstance(value, dict) and key.endswith("_config"):
            yield from _blocks(value)


def _above_one(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 1
