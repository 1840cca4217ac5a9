"""Calibration from pictures: Parquet, zip and tar of class folders, and the preprocessing that makes inputs of them."""

from __future__ import annotations

import io
import json
import re
import resource
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pruning_core.calibration import Pictures, bind, prepare, read_dataset
from pruning_core.errors import DatasetError, InputError, RecipeError
from pruning_core.network import Input
from pruning_core.preprocess import Preprocess, resolve
from pruning_core.report import Report
from worker import sandbox
from worker.sandbox import Limits, Result

RGB = (Input(name="x", dtype=torch.float32, shape=(None, 3, 8, 8)),)
CLASSES = ("cat", "dög")


def pixels(seed: int, height: int = 12, width: int = 10, depth: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, depth), dtype=np.uint8)


def encoded(array: np.ndarray[Any, Any], kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array.squeeze()).save(out, kind, **options)
    return out.getvalue()


def members() -> dict[str, bytes]:
    """Six pictures in two classes, in no order, with what else lies in such archives."""
    found = {f"train/{CLASSES[i % 2]}/{i}.png": encoded(pixels(i)) for i in (4, 0, 3, 5, 1, 2)}
    return {"train/README.txt": b"hello", "__MACOSX/train/cat/._0.png": b"x", **found}


def zipped(path: Path, contents: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, contents: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as archive:
        folder = tarfile.TarInfo("train")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def hugging_face(path: Path, **options: Any) -> Path:
    """What `datasets.Dataset.to_parquet` writes of the same pictures, in the order of the folders."""
    order = [0, 2, 4, 1, 3, 5]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    image = pa.array([{"bytes": encoded(pixels(i)), "path": None} for i in order], kind)
    features = {"image": {"_type": "Image"}, "label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    schema = pa.schema(
        {"image": kind, "label": pa.int64()}, metadata={"huggingface": json.dumps({"info": {"features": features}})}
    )
    table = pa.table({"image": image, "label": pa.array([i % 2 for i in order])}, schema=schema)
    pq.write_table(table, path, **({"row_group_size": 4} | options))
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "zip": lambda path: zipped(path, members()),
    "tar": lambda path: tarred(path, members()),
    "parquet": hugging_face,
}


def gnu_tar(path: Path) -> Path:
    return tarred(path, {f"{'deep' * 30}/{name}": data for name, data in members().items()}, tarfile.GNU_FORMAT)


def opened(path: Path) -> None:
    """Read as the inspection does, and then as a job."""
    found = read_dataset(path)
    if isinstance(found, Pictures):
        found.probe()
        bind(found, RGB)


def refused(path: Path, says: str | None = None) -> DatasetError:
    with pytest.raises(DatasetError, match=says) as caught:
        opened(path)
    assert caught.value.problem()["status"] == 422
    return caught.value


@pytest.mark.parametrize("kind", WRITERS)
def test_every_carrier_gives_the_same_samples_in_the_same_order(tmp_path: Path, kind: str) -> None:
    found = read_dataset(WRITERS[kind](tmp_path / "data"))
    assert isinstance(found, Pictures)
    assert (found.format, found.samples, found.classes) == (kind, 6, CLASSES)
    assert found.probe() == [(12, 10)] * 6
    wanted = Preprocess(resize=(12, 10), crop=8, mean=(0.5, 0.25, 0.125), std=(0.5, 1.0, 2.0))
    data, record = prepare(found, RGB, wanted)
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    for row, i in enumerate([0, 2, 4, 1, 3, 5]):
        cut = torch.from_numpy(pixels(i)[2:10, 1:9]).permute(2, 0, 1).float() / 255
        expected = (cut - torch.tensor([0.5, 0.25, 0.125]).view(3, 1, 1)) / torch.tensor([0.5, 1, 2]).view(3, 1, 1)
        assert torch.equal(data.inputs[0][row], expected)
    assert (record.samples, record.of, record.crop, record.resize) == (6, 6, (8, 8), (12, 10))
    assert record.decoder.startswith("Pillow ")
    assert torch.equal(bind(found, RGB, wanted).inputs[0], data.inputs[0])


def test_long_names_of_gnu_tar(tmp_path: Path) -> None:
    found = read_dataset(gnu_tar(tmp_path / "d"))
    assert isinstance(found, Pictures)
    assert (found.samples, found.classes) == (6, CLASSES)


def test_what_is_not_said_follows_from_the_network(tmp_path: Path) -> None:
    found = read_dataset(WRITERS["zip"](tmp_path / "d"))
    assert isinstance(found, Pictures)
    data, record = prepare(found, RGB, None)
    assert (record.resize, record.crop, record.channels, record.mean, record.std) == (
        8,
        (8, 8),
        "rgb",
        (0,) * 3,
        (1,) * 3,
    )
    shorter = Image.fromarray(pixels(0)).resize((8, 9), Image.Resampling.BILINEAR)
    assert torch.equal(data.inputs[0][0], torch.from_numpy(np.array(shorter)[:8]).permute(2, 0, 1).float() / 255)
    grey, record = prepare(found, (Input(name="x", dtype=torch.float32, shape=(4, 1, 8, 8)),), None)
    assert grey.inputs[0].shape == (6, 1, 8, 8)
    assert record.channels == "l"


def test_of_many_pictures_some_are_taken_evenly_and_only_these_are_decoded(tmp_path: Path) -> None:
    contents = {f"{c}/{i:03}.png": encoded(pixels(i)) for c in "ab" for i in range(50)}
    for broken in ("a/001.png", "b/013.png"):  # neither probed nor chosen
        contents[broken] = b"no picture"
    found = read_dataset(tarred(tmp_path / "d", contents))
    assert isinstance(found, Pictures)
    found.probe()
    data, record = prepare(found, RGB, Preprocess(samples=4))
    assert (record.samples, record.of) == (4, 100)
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(DatasetError, match="Picture 1 "):
        prepare(found, RGB, None)


def test_modes_and_formats_become_what_the_network_takes(tmp_path: Path) -> None:
    grey, colour, alpha = pixels(0, depth=1), pixels(1), pixels(2, depth=4)
    contents = {
        "c/0.png": encoded(grey),
        "c/1.jpg": encoded(colour, "JPEG"),
        "c/2.webp": encoded(colour, "WEBP", lossless=True),
        "c/3.bmp": encoded(colour, "BMP"),
        "c/4.png": encoded(alpha),
    }
    found = read_dataset(zipped(tmp_path / "d", contents))
    x = bind(found, RGB, Preprocess(resize=(12, 10), crop=8)).inputs[0]
    assert torch.equal(x[0, 0], x[0, 2])
    assert torch.equal(x[2], x[3])
    assert torch.equal(x[4], torch.from_numpy(alpha[2:10, 1:9, :3]).permute(2, 0, 1).float() / 255)
    deep = io.BytesIO()
    Image.fromarray(np.full((9, 9), 1000, np.uint16)).save(deep, "PNG")
    refused(zipped(tmp_path / "deep", {"c/0.png": deep.getvalue()}), "pixel format")
    gif = io.BytesIO()
    Image.fromarray(colour).save(gif, "GIF")
    refused(zipped(tmp_path / "gif", {"c/0.png": gif.getvalue()}), "cannot be decoded")


def test_a_picture_in_no_folder_has_no_class(tmp_path: Path) -> None:
    found = read_dataset(zipped(tmp_path / "d", {"1.png": encoded(pixels(1)), "0.png": encoded(pixels(0))}))
    assert isinstance(found, Pictures)
    assert not found.has_labels
    assert bind(found, RGB).labels is None


@pytest.mark.parametrize(
    ("wanted", "shape", "says"),
    [
        (None, (None, 3, None, None), '"crop"'),
        (Preprocess(crop=7), (None, 3, 8, 8), r'"crop": \[8, 8\]'),
        (Preprocess(resize=7), (None, 3, 8, 8), '"resize" of at least 8'),
        (Preprocess(channels="l"), (None, 3, 8, 8), '"channels": "rgb"'),
        (None, (None, 4, 8, 8), "arrays"),
        (Preprocess(mean=(0.1, 0.2)), (None, 3, 8, 8), "1 or 3 numbers"),
        (Preprocess(std=(0.1, 0.2, 0.3)), (None, 1, 8, 8), "1 or 1 numbers"),
        (None, (None, 64), "arrays"),
    ],
)
def test_a_block_that_does_not_fit_says_what_to_give(wanted: Preprocess | None, shape: Any, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve(wanted, [("float32", shape)])
    assert caught.value.status == 422
    assert caught.value.advice is not None
    assert re.search(says, caught.value.advice)


def test_parquet_in_other_forms(tmp_path: Path) -> None:
    path = tmp_path / "d"
    pngs = [encoded(pixels(i)) for i in range(3)]
    pq.write_table(pa.table({"img": pngs, "label": ["b", "a", "b"], "note": ["x"] * 3}), path, compression="zstd")
    found = read_dataset(path)
    assert isinstance(found, Pictures)
    assert found.classes == ("a", "b")
    assert found.labels is not None
    assert found.labels.tolist() == [1, 0, 1]
    values = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    table = pa.table({"x": values.tolist(), "label": pa.array([0, 1, 2, 3], pa.int8()), "id": list("abcd")})
    pq.write_table(table, path, row_group_size=3)
    raw = read_dataset(path)
    assert not isinstance(raw, Pictures)
    data = bind(raw, (Input(name="x", dtype=torch.float32, shape=(None, 2, 3)),))
    assert torch.equal(data.inputs[0], torch.from_numpy(values))
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2, 3]
    assert read_dataset(path, max_bytes=1000).samples == 4
    with pytest.raises(DatasetError, match="more than 100 bytes"):
        read_dataset(path, max_bytes=100)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"x": [[1.0, 2.0], [1.0]]}, "different lengths"),
        ({"x": [[1.0], None]}, "without a value"),
        ({"x": [1.0, None]}, "without a value"),
        ({"x": [np.zeros(0, np.float32)] * 2}, "no numbers"),
        ({"x": ["a", "b"]}, "no column"),
        ({"x": [b"1", None]}, "no bytes|cannot be decoded"),
        ({"a": [b"1"], "b": [b"2"]}, "More than one column"),
        ({"image": [b"1"], "label": [-1]}, "holds -1"),
        ({"image": [b"1"], "label": [0.5]}, "is double"),
        ({"image": [b"1"], "label": [None]}, "is null"),
        ({"x": [[1.0]], "label": [1], "labels": [1]}, "Two columns"),
    ],
)
def test_parquet_that_cannot_be_a_dataset(tmp_path: Path, table: dict[str, Any], says: str) -> None:
    pq.write_table(pa.table(table), tmp_path / "d")
    refused(tmp_path / "d", says)


def test_a_dictionary_that_repeats_one_large_value_is_read_in_little_memory(tmp_path: Path) -> None:
    blank = encoded(np.zeros((1000, 1000, 3), np.uint8), compress_level=0)  # 3 MB, once in the file
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 600, pa.int32()), pa.array([blank]))
    pq.write_table(pa.table({"image": column}), tmp_path / "d", dictionary_pagesize_limit=2**30, store_schema=False)
    assert (tmp_path / "d").stat().st_size < 4e6
    found = read_dataset(tmp_path / "d")
    assert isinstance(found, Pictures)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert bind(found, RGB, Preprocess(samples=2)).inputs[0].shape == (2, 3, 8, 8)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # 1.8 GB if it were made at once


def test_hostile_names_and_members_of_zip(tmp_path: Path) -> None:
    png = encoded(pixels(0))
    for i, names in enumerate(
        (["../a.png"], ["/a.png"], ["a\\b.png"], ["c/\u202ea.png"], ["c/" + "a" * 600 + ".png"], ["c/a\nb.png"])
    ):
        refused(zipped(tmp_path / str(i), dict.fromkeys(names, png)), "named")
    for i, names in enumerate((["c/a.png", "c/A.png"], ["c/\u00e9.png", "c/e\u0301.png"])):
        refused(zipped(tmp_path / f"twice{i}", dict.fromkeys(names, png)), "twice")
    refused(zipped(tmp_path / "two", {"a/c/1.png": png, "b/c/1.png": png}), "side by side")
    refused(zipped(tmp_path / "mixed", {"a/1.png": png, "2.png": png}), "side by side")
    refused(zipped(tmp_path / "bomb", {"c/1.png": bytes(2**24)}), "inflate")
    with zipfile.ZipFile(tmp_path / "link", "w") as archive:
        entry = zipfile.ZipInfo("c/1.png")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    refused(tmp_path / "link", "link or a device")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_tar(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "d", "w") as archive:
        entry = tarfile.TarInfo("c/1.png")
        entry.type, entry.linkname = kind, "/etc/passwd"
        archive.addfile(entry)
    refused(tmp_path / "d", "no plain file")


def test_hostile_tar(tmp_path: Path) -> None:
    png = encoded(pixels(0))
    for i, name in enumerate(("../a.png", "/a.png", "a\\b.png")):
        refused(tarred(tmp_path / str(i), {name: png}), "named")
    refused(tarred(tmp_path / "twice", {"c/1.png": png, "c/1.PNG": png}), "twice")
    for i, headers in enumerate(
        ({"size": "1"}, {"GNU.sparse.major": "1"}, {"path": "../x.png"}, {"path": "a" * 70000})
    ):
        with tarfile.open(tmp_path / f"pax{i}", "w", format=tarfile.PAX_FORMAT) as archive:
            entry = tarfile.TarInfo("c/1.png")
            entry.size, entry.pax_headers = len(png), headers
            archive.addfile(entry, io.BytesIO(png))
        refused(tmp_path / f"pax{i}", "attribute|named")


@pytest.mark.parametrize("kind", WRITERS)
def test_cut_short_anywhere(tmp_path: Path, kind: str) -> None:
    whole = WRITERS[kind](tmp_path / "whole").read_bytes()
    path = tmp_path / "cut"
    last = len(whole) - (tarfile.RECORDSIZE if kind == "tar" else 1)
    for end in {*range(0, last, max(1, last // 150)), last - 1, last - 512}:
        path.write_bytes(whole[:end])
        refused(path)


@pytest.mark.parametrize("kind", WRITERS)
def test_damaged_bytes_are_refused_or_read_never_worse(tmp_path: Path, kind: str) -> None:
    whole = WRITERS[kind](tmp_path / "whole").read_bytes()
    path, chance = tmp_path / "damaged", np.random.default_rng(0)
    read = 0
    for _ in range(150):
        data = bytearray(whole)
        for place in chance.integers(0, len(data), int(chance.integers(1, 4))):
            data[place] = int(chance.integers(0, 256))
        path.write_bytes(data)
        try:
            opened(path)
            read += 1
        except InputError:
            pass
    assert 0 < read < 150


def test_pictures_that_are_bombs(tmp_path: Path) -> None:
    wide = encoded(np.zeros((1, 20_000, 1), np.uint8))
    zipped(tmp_path / "wide", {"c/0.png": wide})
    narrow = (Input(name="x", dtype=torch.float32, shape=(None, 3, 256, 256)),)
    with pytest.raises(DatasetError, match="pixels"):
        bind(read_dataset(tmp_path / "wide"), narrow)
    huge = bytearray(encoded(np.zeros((4, 4, 1), np.uint8)))
    huge[16:24] = (60_000).to_bytes(4, "big") * 2
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    refused(zipped(tmp_path / "huge", {"c/0.png": bytes(huge)}), "pixels|cannot be decoded")


def test_the_sandbox_inspects_and_prunes_with_pictures(tmp_path: Path) -> None:
    limits = Limits(memory_bytes=3 * 2**30, cpu_seconds=120, file_bytes=2**28, wall_seconds=100)

    def run(task: str, arguments: dict[str, Any]) -> Result:
        return sandbox.run(task, tmp_path, arguments, limits=limits, on_progress=lambda _: None, stop=lambda: None)

    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2))
    batch = {0: torch.export.Dim("batch")}
    torch.export.save(
        torch.export.export(body.eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=(batch,)), tmp_path / "m.pt2"
    )
    (tmp_path / "m.pt2").rename(tmp_path / "model")
    hugging_face(tmp_path / "dataset")
    found = run("inspect_dataset", {})
    assert found.value is not None, found.problem
    assert (found.value["format"], found.value["samples"], found.value["labels"]) == ("parquet", 6, True)
    assert found.value["pictures"] == {"probed": [[12, 10]] * 6, "classes": list(CLASSES)}
    (tmp_path / "dataset").rename(tmp_path / "calibration")
    zipped(tmp_path / "validation", members())
    recipe = {
        "select": {"algorithm": "wanda", "sparsity": 0.5},
        "preprocess": {"resize": 9, "mean": [0.5], "std": [0.5]},
    }
    ended = run("prune", {"recipe": recipe})
    assert ended.status == "ok", ended.problem
    report = Report.model_validate_json((tmp_path / "report.json").read_text())
    assert report.pruning.data == "validation"
    assert report.preprocessing.keys() == {"calibration", "validation"}
    how = report.preprocessing["calibration"]
    assert (how.samples, how.of, how.resize, how.crop, how.mean, how.channels) == (6, 6, 9, (8, 8), (0.5,) * 3, "rgb")
    ended = run("prune", {"recipe": {**recipe, "preprocess": {"crop": 9}}})
    assert ended.problem is not None
    assert ended.problem["status"] == 422
    assert '"crop": [8, 8]' in ended.problem["advice"]
    for name in ("calibration", "validation"):
        np.savez(tmp_path / "a.npz", x=np.zeros((6, 3, 8, 8), np.float32))
        (tmp_path / "a.npz").rename(tmp_path / name)
    ended = run("prune", {"recipe": recipe})
    assert ended.problem is not None
    assert "arrays" in ended.problem["detail"]
