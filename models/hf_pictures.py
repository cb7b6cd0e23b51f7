"""Checkpoints of Qwen's models that see, taken for their text models: for text, the three numbers of a position that
their rope takes are all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ggpy.errors import GGPYError

if TYPE_CHECKING:
    from ggpy.models.hf import Layout
    from ggpy.models.hf_config import Config

#: Names of the text model, as several versions of transformers saved them.
RENAMES = (
    (r"^(model\.language_model|language_model\.model)\.", "model."),
    (r"^language_model\.lm_", "lm_"),
    (r"^model\.visual\.", "visual."),
)


def picture_sections(config: Config, usual: list[int]) -> np.ndarray:
    """How many of a head's rope pairs take a picture's time, height and width for a position, and a fourth number:
    int32 [4]. `usual`: where the config does not say."""
    rope = config.section("rope_scaling" if config.get("rope_scaling") else "rope_parameters")
    sections = rope.values.get("mrope_section", usual)
    sound = isinstance(sections, list) and len(sections) <= 4
    if not sound or not all(type(n) is int and 0 <= n < 1 << 16 for n in sections):
        raise GGPYError(f"{rope.where} gives 'mrope_section' as {sections!r:.60}; it must list up to 4 numbers.")
    return np.array(sections + [0] * (4 - len(sections)), np.int32)


def leave_pictures_out(layout: Layout, config: Config, *, deep: bool = False) -> None:
    """Make a text model's layout that of a checkpoint which sees. `deep`: what it sees goes into several layers."""
    layout.metadata[f"{layout.arch}.rope.dimension_sections"] = picture_sections(config, [16, 24, 24])
    if deep:
        layers = config.section("vision_config").get("deepstack_visual_indexes")
        if not isinstance(layers or [], list):
            raise GGPYError(f"{config.where} gives 'deepstack_visual_indexes' as {layers!r:.60}; it must list layers.")
        layout.metadata[f"{layout.arch}.n_deepstack_layers"] = len(layers or [])
    layout.renames = RENAMES
    layout.left_out = ((r"visual\.", "what the model sees with is left out: the file holds its text model."),)
