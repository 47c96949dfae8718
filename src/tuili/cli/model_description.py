"""What `tuili show` says of a model, as plain values and as text.

Reads a checkpoint's headers and formats; never a weight's value.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tuili.cli.terminal import format_bytes, format_count, one_line
from tuili.config import store_dir
from tuili.models.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, MoeSpec
from tuili.store.store import Store

if TYPE_CHECKING:
    from tuili.runtime.front.sampling_defaults import SamplingDefaults
    from tuili.store.modelfile import Modelfile
    from tuili.store.records import ModelFiles
    from tuili.weights.checkpoint import Checkpoint


def describe(files: ModelFiles, checkpoint: Checkpoint, quantization: str | None = None) -> dict[str, Any]:
    """Everything `--json` prints: sizes in bytes, counts, and the template by its sha256.

    quantization is the recipe that `formats` are shown after; None shows them as the files hold them.
    """
    formats = _formats(checkpoint, quantization)
    template, sampling = template_of(files, checkpoint), sampling_of(files, checkpoint)
    return {
        "name": files.name,
        "source": files.source,
        "modelfile": None if files.modelfile is None else _settings(files.modelfile, checkpoint.spec.max_position),
        "license": files.license or checkpoint.license,
        "size": files.num_bytes,
        "num_parameters": sum(entry["num_parameters"] for entry in formats.values()),
        "formats": formats,
        "memory": _memory(checkpoint, quantization),
        "spec": _describe_spec(checkpoint.spec),
        "generation_config": dict(checkpoint.generation_config),
        "sampling": {name: {"value": _plain(sampling[name]), "source": sampling.layer_of(name)} for name in sampling},
        "eos_token_ids": list(checkpoint.eos_token_ids),
        "left_out": list(checkpoint.left_out),
        "chat_template": None if template is None else hashlib.sha256(template.encode()).hexdigest(),
    }


def template_of(files: ModelFiles, checkpoint: Checkpoint) -> str | None:
    """The source of a Modelfile's own template, else of the model's."""
    from tuili.runtime.front.text_parts import chat_template_source

    own = None if files.modelfile is None else files.modelfile.template
    return own or chat_template_source(checkpoint)


def sampling_of(files: ModelFiles, checkpoint: Checkpoint) -> SamplingDefaults:
    """What requests start from, by layer."""
    from tuili.runtime.front.modelfile_settings import model_sampling

    return model_sampling(files.name, files.modelfile, checkpoint.generation_config, Store(store_dir()))


def _settings(modelfile: Modelfile, limit: int) -> dict[str, Any]:
    """Checked as far as it can be without the tokenizer: a template of its own is compiled."""
    from tuili.runtime.front.modelfile_settings import model_context, model_template

    model_template(modelfile, {})
    return {
        "base": modelfile.base,
        "parameters": [list(parameter) for parameter in modelfile.parameters],
        "context": model_context(modelfile, limit),
        "system": modelfile.system,
        "messages": [list(message) for message in modelfile.messages],
        "has_template": modelfile.template is not None,
        "without_effect": [list(entry) for entry in modelfile.without_effect],
    }


def _settings_lines(settings: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if settings is None:
        return []
    return [
        ("made from", f"{settings['base']}, by this Modelfile"),
        *((f"  {name}", value) for name, value in settings["parameters"]),
        *(("  system", one_line(settings["system"])) for _ in [0] if settings["system"] is not None),
        *((f"  {role}", one_line(text)) for role, text in settings["messages"]),
        *(("  no effect", f"{name}: {why}") for name, why in settings["without_effect"]),
    ]


def _sampling_line(sampling: Mapping[str, Mapping[str, Any]]) -> str:
    told = (f"{name} {entry['value']} ({entry['source']})" for name, entry in sampling.items())
    return ", ".join(told) or "no defaults"


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def render_description(description: Mapping[str, Any]) -> str:
    """The same for people: one aligned line per fact."""
    spec = description["spec"]
    facts = [
        ("name", description["name"]),
        ("source", description["source"]),
        *_settings_lines(description["modelfile"]),
        ("license", description["license"] or "not stated"),
        ("size", format_bytes(description["size"])),
        ("parameters", format_count(description["num_parameters"])),
        *((f"  {name}", _format_line(entry)) for name, entry in description["formats"].items()),
        ("memory", _memory_line(description["memory"])),
        ("family", f"{spec['family']} ({spec['kind']})"),
        ("context", f"{spec['max_position']} tokens"),
        ("vocabulary", f"{spec['vocab_size']} tokens{', tied head' if spec['tie_word_embeddings'] else ''}"),
        ("hidden size", str(spec["hidden_size"])),
        *(("layers", f"{layer['count']} x {layer['what']}") for layer in spec["layers"]),
        *(("left out", _left_out(names)) for names in [description["left_out"]] if names),
        ("sampling", _sampling_line(description["sampling"])),
        ("end tokens", ", ".join(map(str, description["eos_token_ids"])) or "none"),
        ("template", _template_line(description)),
    ]
    width = max(len(label) for label, _ in facts)
    return "".join(f"{label.ljust(width)}  {fact}\n" for label, fact in facts)


def _template_line(description: Mapping[str, Any]) -> str:
    template, settings = description["chat_template"], description["modelfile"]
    if template is None:
        return "none: prompts are completed as they are"
    return f"sha256 {template[:16]}" + (" (the Modelfile's)" if settings and settings["has_template"] else "")


def _left_out(names: list[str]) -> str:
    """ "12 tensors: vision_tower, multi_modal_projector"."""
    parts = dict.fromkeys(name.removeprefix("model.").split(".")[0] for name in names)
    return f"{len(names)} tensors: {', '.join(parts)}"


def _formats(checkpoint: Checkpoint, quantization: str | None) -> dict[str, dict[str, int]]:
    """Tensors, parameters and bytes by quantization format, the largest first."""
    from tuili.weights.quantizing import check_quantizable, target_format
    from tuili.weights.recipes import find_recipe

    recipe = None if quantization is None else find_recipe(quantization)
    if recipe is not None:
        check_quantizable(checkpoint.weights, checkpoint.spec, recipe)
    formats: dict[str, dict[str, int]] = {}
    for name, tensor in checkpoint.weights.items():
        found = (
            tensor.format
            if recipe is None
            else target_format(tensor.format, tensor.shape, recipe, name, checkpoint.spec)
        )
        entry = formats.setdefault(found.name, {"num_tensors": 0, "num_parameters": 0, "num_bytes": 0})
        entry["num_tensors"] += 1
        entry["num_parameters"] += math.prod(tensor.shape)
        entry["num_bytes"] += len(tensor.data) * found.row_bytes(tensor.shape[-1])
    return dict(sorted(formats.items(), key=lambda item: -item[1]["num_bytes"]))


def _memory(checkpoint: Checkpoint, quantization: str | None) -> dict[str, Any]:
    """What the weights take once they are loaded, and what of their files is mapped until then; or why none can be."""
    from tuili.errors import UnsupportedModelError
    from tuili.runtime.plan.outline import outline_of
    from tuili.weights.recipes import find_recipe

    try:
        from tuili.backends.cpu.footprint import weight_bytes
    except ImportError:
        return {"refusal": "the native backend is not built"}
    recipe = None if quantization is None else find_recipe(quantization)
    try:
        own_bytes = weight_bytes(outline_of(checkpoint.path.name, checkpoint, recipe).stored)
    except UnsupportedModelError as error:
        return {"refusal": str(error)}
    return {"weights_own_bytes": own_bytes, "weights_mapped_bytes": checkpoint.num_bytes}


def _memory_line(memory: Mapping[str, Any]) -> str:
    if "refusal" in memory:
        return f"not known: {memory['refusal']}"
    own, mapped = format_bytes(memory["weights_own_bytes"]), format_bytes(memory["weights_mapped_bytes"])
    return f"{own} of its own for the weights; {mapped} mapped from files while loading, which the system may drop"


def _format_line(entry: Mapping[str, int]) -> str:
    tensors = "1 tensor" if entry["num_tensors"] == 1 else f"{entry['num_tensors']} tensors"
    return f"{tensors}, {format_count(entry['num_parameters'])} parameters, {format_bytes(entry['num_bytes'])}"


def _describe_spec(spec: ModelSpec) -> dict[str, Any]:
    layers = Counter(map(_describe_layer, spec.layers))  # keeps the order in which they first appear
    return {
        "family": spec.family,
        "kind": spec.kind,
        "num_layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "vocab_size": spec.vocab_size,
        "max_position": spec.max_position,
        "tie_word_embeddings": spec.tie_word_embeddings,
        "layers": [{"count": count, "what": what} for what, count in layers.items()],
    }


def _describe_layer(layer: LayerSpec) -> str:
    return f"{_describe_mixer(layer.mixer)}{' beside' if layer.parallel else ';'} {_describe_mlp(layer.mlp)}"


def _describe_mixer(mixer: object) -> str:
    if not isinstance(mixer, AttentionSpec):
        return type(mixer).__name__.removesuffix("Spec")
    words = [f"attention {mixer.num_heads} heads ({mixer.num_kv_heads} kv) of {mixer.head_dim}"]
    if mixer.sliding_window is not None:
        words.append(f"window {mixer.sliding_window}")
    if mixer.rope is not None:
        scaling = "" if mixer.rope.scaling is None else f" {mixer.rope.scaling.kind} x{mixer.rope.scaling.factor:g}"
        words.append(f"rope {mixer.rope.theta:g}{scaling}")
    return ", ".join(words)


def _describe_mlp(mlp: MlpSpec | MoeSpec) -> str:
    if isinstance(mlp, MoeSpec):
        return f"{mlp.num_experts_per_tok} of {mlp.num_experts} experts, {_describe_mlp(mlp.expert)}"
    return f"mlp {mlp.intermediate_size} {mlp.activation}{' gated' if mlp.gated else ''}"
