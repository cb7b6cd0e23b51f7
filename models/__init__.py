"""One file per architecture: its hyper-parameters, HF-to-GGUF tensor names, and the graph it builds. Adding one is
adding a file and its line here."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from ggpy.errors import GGPYError, quoted
from ggpy.gguf.metadata import TypedMetadata
from ggpy.models.base import Architecture
from ggpy.models.bert import Bert
from ggpy.models.bloom import Bloom
from ggpy.models.cohere import Cohere2, CommandR
from ggpy.models.ernie45 import Ernie45, Ernie45Moe
from ggpy.models.exaone4 import Exaone4
from ggpy.models.falcon import Falcon
from ggpy.models.gemma2 import Gemma2
from ggpy.models.gemma3 import Gemma3
from ggpy.models.glm4 import Glm4, Glm4Moe
from ggpy.models.gpt2 import GPT2
from ggpy.models.gptneox import GPTNeoX
from ggpy.models.gptoss import GptOss
from ggpy.models.granite import Granite, GraniteMoe
from ggpy.models.hunyuan import HunyuanDense, HunyuanMoe
from ggpy.models.lfm2 import Lfm2, Lfm2Moe
from ggpy.models.llama import Llama
from ggpy.models.minicpm import MiniCPM
from ggpy.models.mistral3 import Mistral3
from ggpy.models.olmo2 import Olmo2, Olmoe
from ggpy.models.phi2 import Phi2
from ggpy.models.phi3 import Phi3
from ggpy.models.qwen import Qwen
from ggpy.models.qwen2 import Qwen2
from ggpy.models.qwen3 import Qwen3
from ggpy.models.qwen3moe import Qwen3Moe
from ggpy.models.qwen35 import Qwen3Next, Qwen35, Qwen35Moe
from ggpy.models.smollm3 import SmolLM3
from ggpy.models.stablelm import StableLM
from ggpy.models.starcoder2 import StarCoder2

if TYPE_CHECKING:
    from ggpy.gguf.file import GGUFFile

ARCHITECTURES: tuple[type[Architecture], ...] = (
    Llama, Qwen, Qwen2, Qwen3, Qwen3Moe, Qwen35, Qwen35Moe, Qwen3Next, Gemma2, Gemma3, GptOss, Lfm2, Lfm2Moe, Bert,
    SmolLM3, Phi3, Mistral3, Granite, GraniteMoe, MiniCPM, Glm4, Glm4Moe, Olmo2, Olmoe, HunyuanDense, HunyuanMoe,
    Ernie45, Ernie45Moe, Exaone4, CommandR, Cohere2, StarCoder2, Phi2, GPTNeoX, GPT2, StableLM, Falcon, Bloom,
)  # fmt: skip


def by_gguf_name(name: str) -> type[Architecture]:
    """The architecture whose GGUF files say `general.architecture = name`."""
    for architecture in ARCHITECTURES:
        if architecture.name == name:
            return architecture
    alike = get_close_matches(name, [a.name for a in ARCHITECTURES], 3)
    known = f"; it knows {' and '.join(alike)}" if alike else f" among its {len(ARCHITECTURES)}; the README lists them"
    raise GGPYError(f"The model's architecture is {quoted(name)}, which ggpy does not know{known}.")


def by_hf_name(name: str) -> type[Architecture]:
    """The architecture that checkpoints of a model class of transformers convert to; `name` is one of `hf_names`."""
    return next(architecture for architecture in ARCHITECTURES if name in architecture.hf_names)


def architecture_of(file: GGUFFile) -> Architecture:
    """The model family of a file, its hyper-parameters read."""
    where = str(file.path)
    name = TypedMetadata(file.metadata, where).find("general.architecture", str)
    if name is None:
        raise GGPYError(
            f"{file.path}: the metadata key 'general.architecture' is missing, so the file names no model to run."
        )
    embedding = file.tensors.get("token_embd.weight")
    family = by_gguf_name(name)
    if embedding is None or len(embedding.shape) != 2:
        raise GGPYError(
            f"{file.path}: the tensor 'token_embd.weight' is missing or no matrix; a vocabulary-only file cannot run."
        )
    return family(file.metadata, embedding.shape[0], where)
