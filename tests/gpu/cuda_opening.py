"""What is on the device after opening: the bytes of the files, through pinned memory and not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu.figures import Figures
from gpu.studio import FLUX, Drawing, Studio, find_gpu, find_opener, find_spec, list_tensors
from safetensors.torch import load_file, save_file

from worker import settings
from worker.bundle.open import make_shared
from worker.bundle.read import REQUEST_BYTES, FileReader
from worker.engine.quantise import NF4_STATE

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open what the files have: on a CPU small 4-bit weights are unpacked.

    And a part that is open already would be shared, which another kind of device has prepared.
    """
    monkeypatch.setattr("worker.engine.quantise.SMALL_WEIGHT", 0)
    monkeypatch.setattr("worker.families.opener.SHARED", make_shared())


def show_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's bytes on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def read_state(text: torch.Tensor) -> dict[str, Any]:
    """Return what bitsandbytes says of a 4-bit weight, of the bytes of its JSON."""
    state: dict[str, Any] = json.loads(bytes(text.tolist()))
    return state


@pytest.mark.parametrize("precision", ["bf16", "8bit", "4bit"])
@pytest.mark.parametrize("name", ["tiny-image", "tiny-edit", FLUX])
def test_every_tensor_on_the_device_has_the_files_bytes(
    studio: Studio, figures: Figures, name: str, precision: str
) -> None:
    """As the same bundle's on a CPU, which maps the files and copies nothing."""
    model = studio.open_again(name, precision)
    given = studio.read_settings(precision, studio.device)
    other = find_opener(name).make_ready(find_spec(name, given), given, None).open()
    assert isinstance(other, Drawing)
    ours, theirs = dict(list_tensors(model)), dict(list_tensors(other))
    # a GPU may keep more: weights with an adapter in them
    assert theirs.keys() <= ours.keys()
    wrong = [
        key
        for key, tensor in theirs.items()
        if not torch.equal(show_bytes(ours[key]), show_bytes(tensor))
    ]
    elsewhere = [key for key, tensor in ours.items() if tensor.device.type != studio.device.type]
    figures.put(tensors=len(ours), wrong=wrong[:10], elsewhere=elsewhere[:10])
    assert not wrong


def test_pinned_buffers_copy_every_byte_while_the_device_is_busy(
    tmp_path: Path, figures: Figures, device: torch.device
) -> None:
    """Tensors of many requests, none a multiple of one, into memory that queued work still uses."""
    made = torch.Generator().manual_seed(0)
    sizes = (3 * REQUEST_BYTES + 17, 1 << 20, REQUEST_BYTES, 5, 2 * REQUEST_BYTES - 1, 999_999)
    state = {
        f"tensor{n}": torch.randint(0, 256, (size,), dtype=torch.uint8, generator=made)
        for n, size in enumerate(sizes)
    }
    path = tmp_path / "weights-0.safetensors"
    save_file(state, path)
    expected = load_file(path)
    for _ in range(5):
        # memory that is given back while what writes to it is queued
        busy = torch.full((max(sizes) // 4,), 7.0, device=device)
        for _ in range(200):
            busy.mul_(1.0001)
        del busy
        with FileReader(device) as reader:
            reader.start(path)
            found = reader.take(path)
            wrong = [
                name
                for name, tensor in found.items()
                if not torch.equal(show_bytes(tensor), expected[name])
            ]
            assert not wrong
            del found
    figures.put(mib=round(sum(sizes) / 2**20))


def count_pinned() -> int:
    """Return how many pieces of pinned memory torch has of the system."""
    stats = torch.cuda.host_memory_stats()
    return int(stats["num_host_alloc"] - stats["num_host_free"])


@pytest.mark.cuda
def test_nothing_pinned_is_kept_after_opening(
    studio: Studio, figures: Figures, device: torch.device, tmp_path: Path
) -> None:
    """Of a bundle torch would keep 256 MiB, and a container's limit of locked memory counts it."""
    path = tmp_path / "weights-0.safetensors"
    save_file({"tensor": torch.zeros(4 * REQUEST_BYTES, dtype=torch.uint8)}, path)
    torch.cuda.synchronize(device)
    before = count_pinned()
    with FileReader(device) as reader:
        reader.start(path)
        reader.take(path)
        meanwhile = count_pinned()
    studio.open_again("tiny-image")
    after = count_pinned()
    figures.put(before=before, meanwhile=meanwhile, after=after)
    assert meanwhile > before
    assert after <= before


@pytest.mark.parametrize("name", ["tiny-edit", FLUX])
@pytest.mark.parametrize("precision", ["bf16", "8bit", "4bit"])
def test_a_bundle_prepared_here_is_compared_with_one_prepared_on_a_cpu(
    studio: Studio, figures: Figures, name: str, precision: str
) -> None:
    """What is copied is equal; what is computed, the quantised weights, is nearly all equal."""
    ours = dict(list_tensors(studio.open_again(name, precision)))
    theirs = dict(list_tensors(studio.open_again(name, precision, CPU)))
    different = total = 0
    for key, tensor in theirs.items():
        pair = show_bytes(ours[key]), show_bytes(tensor)
        if key.endswith(NF4_STATE):
            state, other = map(read_state, pair)
            mean = other.pop("nested_offset")  # its text is as long as its digits
            assert state.pop("nested_offset") == pytest.approx(mean, rel=1e-4)
            assert state == other
            continue
        total += len(pair[0])
        different += int((pair[0] != pair[1]).sum())
    figures.put(bytes=total, different=different, share=different / total)
    assert different <= (0 if precision == "bf16" else total // 100)


@pytest.mark.cuda
def test_the_gpu_is_found_as_torch_sees_it(figures: Figures, device: torch.device) -> None:
    gpu = find_gpu(device)
    assert gpu is not None
    seen = torch.cuda.get_device_properties(device)
    figures.put(name=gpu.name, capability=gpu.capability, total=gpu.total, torch=seen.total_memory)
    assert gpu.capability == (seen.major, seen.minor)
    assert settings.read({}).compile == "auto"
