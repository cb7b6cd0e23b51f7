"""Models split into several files by the gguf package, in the way of llama.cpp's gguf-split."""

from __future__ import annotations

from pathlib import Path

import gguf


def split(path: Path, folder: Path, n_tensors: int, *, first_empty: bool = False) -> list[Path]:
    """Write the model of a file in shards of `n_tensors` tensors each. first_empty: the first has metadata alone."""
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(
        folder / path.name, architecture, split_max_tensors=n_tensors, small_first_shard=first_empty
    )
    for name, field in reader.fields.items():
        if name != "general.architecture" and not name.startswith("GGUF."):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob(f"{path.stem}-*-of-*.gguf"))
