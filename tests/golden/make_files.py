"""Writes the small weight files under tests/golden/files: torch.save archives and safetensors, good and bad.

Run once with torch and safetensors installed; the results are committed, so the tests need no Python. Every value
follows a formula that the tests repeat: element i of a tensor is (i % 17) / 4 - 2, exact in every float type.
"""
import collections
import io
import json
import pathlib
import pickle
import zipfile

import safetensors.torch
import torch

FOLDER = pathlib.Path(__file__).parent / "files"


def values(*shape, dtype=torch.float32):
    count = 1
    for size in shape:
        count *= size
    numbers = torch.arange(count, dtype=torch.float64) % 17
    if dtype == torch.bool:
        return (numbers.reshape(shape) % 2).to(dtype)
    if not dtype.is_floating_point:
        return numbers.reshape(shape).to(dtype)
    return (numbers / 4 - 2).reshape(shape).to(dtype)


def save(name, value, **options):
    torch.save(value, FOLDER / name, **options)


def good_archives():
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(values(*parameter.shape))
    save("ordered.bin", module.state_dict())  # OrderedDict with _metadata
    save("parameter.bin", {"weight": torch.nn.Parameter(values(2, 3)), "frozen": values(4)})
    save("nested.bin", {"epoch": 3, "rate": 0.5, "state_dict": collections.OrderedDict(a=values(5)),
                        "best": None, "names": ["x", ("y", True)], "big": 1 << 40})
    save("types.bin", {
        "f32": values(5), "f16": values(5, dtype=torch.float16), "bf16": values(5, dtype=torch.bfloat16),
        "f64": values(5, dtype=torch.float64), "i64": values(5, dtype=torch.int64),
        "i32": values(5, dtype=torch.int32), "i16": values(5, dtype=torch.int16),
        "i8": values(5, dtype=torch.int8), "u8": values(5, dtype=torch.uint8),
        "bool": values(5, dtype=torch.bool), "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)})
    whole = values(4, 6)
    save("views.bin", {
        "whole": whole, "rows": whole[1:3], "transposed": whole.t(), "columns": whole[:, 2:5],
        "every_second": whole[::2, ::3], "cube": values(2, 3, 4).permute(2, 0, 1),
        "one_row": whole[3:4], "tied": whole})


def bad_archives():
    class Command:
        def __reduce__(self):
            import os
            return os.system, ("echo this must never run",)

    save("bad_command.bin", {"weight": values(2), "run": Command()})
    save("bad_expanded.bin", {"weight": values(1).expand(1000)})
    save("bad_float8.bin", {"weight": values(4).to(torch.float8_e4m3fn)})
    save("bad_protocol.bin", {"weight": values(2)}, pickle_protocol=4)
    save("bad_legacy.bin", {"weight": values(2)}, _use_new_zipfile_serialization=False)
    save("bad_list.bin", [values(2)])
    save("bad_entry.bin", {"weight": values(2), "step": 7})
    buffer = io.BytesIO()
    torch.save({"weight": values(8)}, buffer)
    source = zipfile.ZipFile(io.BytesIO(buffer.getvalue()))
    with zipfile.ZipFile(FOLDER / "bad_compressed.bin", "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.namelist():
            target.writestr(entry, source.read(entry))
    with zipfile.ZipFile(FOLDER / "bad_big_endian.bin", "w") as target:
        for entry in source.namelist():
            target.writestr(entry, b"big" if entry.endswith("byteorder") else source.read(entry))
    with zipfile.ZipFile(FOLDER / "zipped_by_python.bin", "w") as target:  # no alignment, no zip64 end
        for entry in source.namelist():
            target.writestr(entry, source.read(entry))


def safetensors_files():
    tensors = {"weight": values(2, 3), "bias": values(3, dtype=torch.bfloat16), "half": values(7, dtype=torch.float16),
               "count": values(2, dtype=torch.int64), "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4),
               "flag": values(3, dtype=torch.bool), "eighth": values(5).to(torch.float8_e4m3fn),
               "double": values(3, dtype=torch.float64)}
    safetensors.torch.save_file(tensors, FOLDER / "types.safetensors", metadata={"format": "pt", "note": "ä \n"})
    sharded = FOLDER / "sharded"
    sharded.mkdir(exist_ok=True)
    parts = {"model-00001-of-00002.safetensors": {"a": values(2, 2)},
             "model-00002-of-00002.safetensors": {"b": values(3), "c": values(1)}}
    weight_map = {}
    for name, part in parts.items():
        safetensors.torch.save_file(part, sharded / name)
        weight_map.update({key: name for key in part})
    index = {"metadata": {"total_size": 32}, "weight_map": weight_map}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    torch.manual_seed(0)
    good_archives()
    bad_archives()
    safetensors_files()
    for path in sorted(FOLDER.rglob("*")):
        if path.is_file():
            print(path.stat().st_size, path.relative_to(FOLDER))
