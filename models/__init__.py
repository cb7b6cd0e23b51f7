"""One file per architecture: its hyper-parameters, HF-to-GGUF tensor names, and the graph it builds. Adding one is
adding a file and its line here. A model's start imports its own file alone."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING

from ggpy.errors import GGPYError, quoted
from ggpy.gguf.metadata import TypedMetadata

if TYPE_CHECKING:
    from ggpy.gguf.file import GGUFFile
    from ggpy.models.base import Architecture
    from ggpy.models.hf_config import Config

#: The file and the class of each architecture, by what its GGUF files say under `general.architecture`.
HOMES: dict[str, str] = {
    "llama": "llama.Llama",
    "llama4": "llama4.Llama4",
    "qwen": "qwen.Qwen",
    "qwen2": "qwen2.Qwen2",
    "qwen3": "qwen3.Qwen3",
    "qwen2vl": "qwen2.Qwen2VL",
    "qwen3vl": "qwen3.Qwen3VL",
    "qwen3moe": "qwen3moe.Qwen3Moe",
    "qwen3vlmoe": "qwen3moe.Qwen3VLMoe",
    "qwen35": "qwen35.Qwen35",
    "qwen35moe": "qwen35.Qwen35Moe",
    "qwen3next": "qwen35.Qwen3Next",
    "gemma2": "gemma2.Gemma2",
    "gemma3": "gemma3.Gemma3",
    "gemma3n": "gemma3n.Gemma3n",
    "gemma4": "gemma4.Gemma4",
    "gpt-oss": "gptoss.GptOss",
    "lfm2": "lfm2.Lfm2",
    "lfm2moe": "lfm2.Lfm2Moe",
    "bert": "bert.Bert",
    "nomic-bert": "nomic_bert.NomicBert",
    "nomic-bert-moe": "nomic_bert.NomicBertMoe",
    "modern-bert": "modern_bert.ModernBert",
    "jina-bert-v2": "jina_bert.JinaBertV2",
    "jina-bert-v3": "jina_bert.JinaBertV3",
    "eurobert": "eurobert.EuroBert",
    "gemma-embedding": "gemma_embedding.GemmaEmbedding",
    "smollm3": "smollm3.SmolLM3",
    "phi3": "phi3.Phi3",
    "mistral3": "mistral3.Mistral3",
    "granite": "granite.Granite",
    "granitemoe": "granite.GraniteMoe",
    "minicpm": "minicpm.MiniCPM",
    "glm4": "glm4.Glm4",
    "glm4moe": "glm4.Glm4Moe",
    "olmo2": "olmo2.Olmo2",
    "olmoe": "olmo2.Olmoe",
    "hunyuan-dense": "hunyuan.HunyuanDense",
    "hunyuan-moe": "hunyuan.HunyuanMoe",
    "ernie4_5": "ernie45.Ernie45",
    "ernie4_5-moe": "ernie45.Ernie45Moe",
    "exaone4": "exaone4.Exaone4",
    "command-r": "cohere.CommandR",
    "cohere2": "cohere.Cohere2",
    "starcoder2": "starcoder2.StarCoder2",
    "phi2": "phi2.Phi2",
    "gptneox": "gptneox.GPTNeoX",
    "gpt2": "gpt2.GPT2",
    "stablelm": "stablelm.StableLM",
    "falcon": "falcon.Falcon",
    "bloom": "bloom.Bloom",
    "internlm2": "internlm2.InternLM2",
    "baichuan": "baichuan.Baichuan",
    "chatglm": "chatglm.ChatGLM",
    "deepseek2": "deepseek2.Deepseek2",
    "minicpm3": "minicpm3.MiniCPM3",
    "falcon-h1": "falcon_h1.FalconH1",
    "granitehybrid": "granite_hybrid.GraniteHybrid",
    "mamba": "mamba.Mamba",
    "mamba2": "mamba.Mamba2",
    "nemotron_h": "nemotron_h.NemotronH",
    "nemotron_h_moe": "nemotron_h.NemotronHMoe",
}


def by_gguf_name(name: str) -> type[Architecture]:
    """The architecture whose GGUF files say `general.architecture = name`."""
    if name not in HOMES:
        from difflib import get_close_matches

        alike = get_close_matches(name, HOMES, 3)
        known = f"; it knows {' and '.join(alike)}" if alike else f" among its {len(HOMES)}; `ggpy models` lists them"
        raise GGPYError(f"The model's architecture is {quoted(name)}, which ggpy does not know{known}.")
    module, _, kind = HOMES[name].partition(".")
    found: type[Architecture] = getattr(import_module(f"ggpy.models.{module}"), kind)
    return found


def architectures() -> Iterator[type[Architecture]]:
    """Every architecture, which imports them all."""
    return map(by_gguf_name, HOMES)


def by_hf_name(name: str, config: Config) -> type[Architecture]:
    """The architecture that a checkpoint with this config.json converts to: one with its model class of transformers,
    `name`, among its `hf_names`; where several have it, the config decides."""
    return next(kind for kind in architectures() if name in kind.hf_names and kind.converts(config))


def architecture_of(file: GGUFFile) -> Architecture:
    """The model family of a file, its hyper-parameters read."""
    where = str(file.path)
    name = TypedMetadata(file.metadata, where).find("general.architecture", str)
    if name is None:
        raise GGPYError(
            f"{file.path}: the metadata key 'general.architecture' is missing, so the file names no model to run."
        )
    embedding = file.tensors.get("token_embd.weight")
    if name not in HOMES:
        from ggpy.models.nearest import unknown_architecture

        raise unknown_architecture(file, name, HOMES, by_gguf_name)
    family = by_gguf_name(name)
    if embedding is None or len(embedding.shape) != 2:
        raise GGPYError(
            f"{file.path}: the tensor 'token_embd.weight' is missing or no matrix; a vocabulary-only file cannot run."
        )
    return family(file.metadata, embedding.shape[0], where)
