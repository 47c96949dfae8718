"""How byte-level vocabularies split text before merging, by the name GGUF gives the split.

Data only: each recipe is the pre-tokenizer of the tokenizer.json the vocabulary came from, and whether
that vocabulary normalizes, takes whole words before merging, and begins with a bos token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tuili.errors import UnsupportedModelError

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED_WORD = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|{_WORDS}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|{_WORDS}|\p{{N}}|{_SYMBOLS}|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_GPT4O = (
    rf"{_CASED_WORD % (_CONTRACTION + '?', _CONTRACTION + '?')}"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_TEKKEN = rf"{_CASED_WORD % ('', '')}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The letters that have case, as DeepSeek lists them.
_CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
    "\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b"
    "\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b"
    "\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_MARKS = "[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Regular expressions applied in turn: each isolates its matches within the pieces of the one before.

    source of the fields: `pre_tokenizer`, `normalizer`, `model.ignore_merges` and `post_processor` of a
    tokenizer.json.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


_GPT2_RECIPE = Recipe((_GPT2,))
_GPT2_DIGITS = Recipe((r"\p{N}", _GPT2))
_LLAMA3_RECIPE = Recipe((_LLAMA3,), ignore_merges=True, add_bos=True)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        # what llama.cpp does for a file that names no pre-tokenizer
        "default": Recipe((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
        "gpt-2": _GPT2_RECIPE,
        "phi-2": _GPT2_RECIPE,
        "mpt": Recipe((_GPT2,), nfc=True),
        "olmo": Recipe((_GPT2,), nfc=True),
        "exaone4": _GPT2_RECIPE,
        "smollm": _GPT2_DIGITS,
        "starcoder": _GPT2_DIGITS,
        "refact": _GPT2_DIGITS,
        "codeshell": _GPT2_DIGITS,
        "exaone": _GPT2_DIGITS,
        "minerva-7b": _GPT2_DIGITS,
        "command-r": Recipe((r"\p{N}", _GPT2), nfc=True),
        "falcon": Recipe((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
        "llama-bpe": _LLAMA3_RECIPE,
        "llama3": _LLAMA3_RECIPE,
        "llama-v3": _LLAMA3_RECIPE,
        "falcon3": _LLAMA3_RECIPE,
        "pixtral": _LLAMA3_RECIPE,
        "lfm2": _LLAMA3_RECIPE,
        "dbrx": Recipe((_LLAMA3,)),
        "smaug-bpe": Recipe((_LLAMA3,)),
        "chatglm-bpe": Recipe((_LLAMA3,)),
        "glm4": Recipe((_LLAMA3,), ignore_merges=True),
        "qwen2": Recipe((_QWEN2,), nfc=True),
        "deepseek-r1-qwen": Recipe((_QWEN2,), nfc=True),
        "megrez": Recipe((_QWEN2,), nfc=True),
        "qwen35": Recipe((_QWEN35,)),
        "stablelm2": Recipe((_QWEN2,), nfc=True),
        "hunyuan": Recipe((_QWEN2,), nfc=True),
        "gpt-4o": Recipe((_GPT4O,)),
        "llama4": Recipe((_GPT4O,)),
        "tekken": Recipe((_TEKKEN,), ignore_merges=True, add_bos=True),
        "deepseek-llm": Recipe(
            (r"[\r\n]", rf"\s?[{_CASED_LETTERS}]+", rf"\s?{_DEEPSEEK_MARKS}", r"\s+$", _DEEPSEEK_CJK, r"\p{N}+")
        ),
        "deepseek-coder": Recipe((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}")),
        "deepseek-v3": Recipe((r"\p{N}{1,3}", _CJK, _DEEPSEEK_V3)),
        "hunyuan-dense": Recipe((r"\p{N}{1,3}", _CJK, _DEEPSEEK_V3)),
        "bloom": Recipe((_BLOOM,)),
        "gpt3-finnish": Recipe((_BLOOM,)),
        "poro-chat": Recipe((_BLOOM,)),
        "viking": Recipe((_BLOOM, r"\p{N}")),
    }
)


def find_recipe(name: str) -> Recipe:
    """Raises UnsupportedModelError naming an unknown pre-tokenizer."""
    if name not in RECIPES:
        known = ", ".join(sorted(RECIPES))
        raise UnsupportedModelError(f"tokenizer.ggml.pre {name!r} is not supported; supported are {known}")
    return RECIPES[name]
