"""Claims about reading weights: every kind of source gives the same tensors, only what is asked for is read, faults are named."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from shiftscope.core.kernels import tensors


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(3, 4))


def everything(name: str, shape: tuple[int, ...]) -> bool:
    return True


def convolutions(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 4


def test_modules_state_dicts_files_folders_and_nested_training_states_give_the_same_tensors(tmp_path):
    state = net().state_dict()
    model = net()
    model.load_state_dict(state)
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pt")
    sources: list[tensors.Source] = [model, state, tmp_path / "a.safetensors", str(tmp_path / "a.pt")]
    for key in tensors.NESTED:
        torch.save({"epoch": 3, key: state}, tmp_path / f"{key}.ckpt")
        sources.append(tmp_path / f"{key}.ckpt")
    (tmp_path / "shards").mkdir()
    for name in state:
        save_file({name: state[name]}, tmp_path / "shards" / f"{name}.safetensors")
    torch.save({"another": torch.ones(2)}, tmp_path / "shards" / "training_args.bin")  # safetensors come first
    sources.append(tmp_path / "shards")
    for source in sources:
        read = tensors.read(source, everything)
        assert read.found.keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in read.found.items())
        assert read.seen == len(state)


def test_only_what_is_asked_for_is_read_and_all_is_counted(tmp_path):
    save_file(net().state_dict(), tmp_path / "a.safetensors")
    read = tensors.read(tmp_path / "a.safetensors", convolutions)
    assert list(read.found) == ["0.weight"]
    assert read.seen == len(net().state_dict())
    assert len(read.provenance["sha256"]["a.safetensors"]) == 64


def test_a_module_keeps_its_mode_its_gradients_and_its_bits():
    model = net()
    model.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    read = tensors.read(model, convolutions)
    assert model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not read.found["0.weight"].requires_grad


class Code:
    """What runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch harm",)


def test_no_code_of_a_file_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"0.weight": torch.ones(1, 1, 3, 3), "x": Code()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt is broken, or holds other objects than tensors"):
        tensors.read(tmp_path / "a.pt", everything)
    assert not (tmp_path / "harm").exists()


def test_files_that_are_no_weights_are_named_in_one_line(tmp_path):
    torch.save(net(), tmp_path / "module.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"x": 3}, tmp_path / "numbers.pt")
    torch.save(net().state_dict(), tmp_path / "whole.pt")
    (tmp_path / "half.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:900])
    save_file(net().state_dict(), tmp_path / "whole.safetensors")
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:200])
    (tmp_path / "a.csv").write_text("1,2")
    (tmp_path / "empty").mkdir()
    for name, sentence in (
        ("module.pt", r"holds other objects than tensors \(a whole model\?\)"),
        ("list.pt", "holds a list: save `model.state_dict"),
        ("numbers.pt", "holds no tensors"),
        ("half.pt", "cannot be read as a torch state dict: PytorchStreamReader failed"),
        ("half.safetensors", "cannot be read as safetensors"),
        ("a.csv", r"ends in \.csv"),
        ("empty", "holds no weights"),
        ("missing.pt", "is not a file"),
    ):
        with pytest.raises(ValueError, match=sentence) as raised:
            tensors.read(tmp_path / name, everything)
        assert len(str(raised.value).splitlines()) == 1
        assert "\x1b" not in str(raised.value)


def test_the_same_weights_twice_in_a_folder_are_refused_and_not_mixed(tmp_path):
    save_file(net().state_dict(), tmp_path / "model.safetensors")
    save_file({name: value.half() for name, value in net().state_dict().items()}, tmp_path / "model.fp16.safetensors")
    with pytest.raises(ValueError, match=r"holds 0\.weight twice, again in model\.safetensors: give the one file"):
        tensors.read(tmp_path, convolutions)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [({}, "it is empty"), ({"a": 3}, "'a' is a int"), ("no/such/folder", "is no checkpoint")],
)
def test_what_is_no_checkpoint_is_named(source, sentence):
    with pytest.raises(ValueError, match=sentence):
        tensors.read(source, everything)
