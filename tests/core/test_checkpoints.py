"""Loading: every way of naming a checkpoint, and every way in which a name can be wrong."""

import shutil

import pytest
import torch

from shiftscope.core import checkpoints


def test_a_zoo_name_a_folder_and_a_loaded_model_are_the_same_checkpoint(tmp_path):
    by_name = checkpoints.load("sums-base")
    shutil.copytree(checkpoints.ZOO / "sums-base", tmp_path / "copy")
    by_folder = checkpoints.load(str(tmp_path / "copy"))
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        assert torch.equal(by_name.model(ids).logits, by_folder.model(ids).logits)
    assert by_name.provenance["sha256"] == by_folder.provenance["sha256"]
    assert checkpoints.wrap(by_name.model, by_name.tokenizer).vocabulary_size == by_name.vocabulary_size


@pytest.mark.parametrize(
    ("name", "path", "revision", "adapter"),
    [
        ("org/name", "org/name", None, None),
        ("org/name@v1.2", "org/name", "v1.2", None),
        ("org/name@abc+org/lora", "org/name", "abc", "org/lora"),
    ],
)
def test_hub_ids_are_split_into_path_revision_and_adapter(name, path, revision, adapter):
    assert checkpoints.parse(name) == checkpoints.Source(path, revision, adapter)


def test_a_name_that_is_nothing_lists_what_ships():
    with pytest.raises(ValueError, match=r"no such folder.*docs-base.*sums-rlvr"):
        checkpoints.load("no-such-thing")


def test_a_folder_without_a_configuration_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        checkpoints.load(str(tmp_path))


def test_a_file_is_not_a_checkpoint(tmp_path):
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ValueError, match="is a file"):
        checkpoints.load(str(tmp_path / "weights.bin"))


def test_a_broken_folder_says_that_it_cannot_be_loaded_in_one_line(tmp_path):
    shutil.copytree(checkpoints.ZOO / "sums-base", tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="cannot be loaded as a causal language model") as caught:
        checkpoints.load(str(tmp_path / "broken"))
    assert "\n" not in str(caught.value)


def test_a_hub_id_that_cannot_be_fetched_is_an_error_in_one_line():
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        checkpoints.load("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_an_adapter_changes_the_logits_as_merging_it_by_hand_does(tmp_path):
    peft = pytest.importorskip("peft")
    base = checkpoints.load("sums-base")
    torch.manual_seed(0)
    lora = peft.get_peft_model(
        checkpoints.load("sums-base").model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2)
    )
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    lora.save_pretrained(tmp_path / "lora")
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        expected, plain = lora.eval()(ids).logits, base.model(ids).logits
        found = checkpoints.load(f"sums-base+{tmp_path / 'lora'}").model(ids).logits
    assert not torch.allclose(expected, plain, atol=1e-2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)  # merged in float32: rounding of one product


def test_different_vocabularies_are_refused_with_the_first_difference():
    with pytest.raises(ValueError, match=r"vocabularies differ; use `compare bytes` instead"):
        checkpoints.check_same_vocabulary(checkpoints.load("sums-base"), checkpoints.load("styles-base"))


def test_float32_is_the_default_on_a_cpu_and_other_types_are_kept_when_asked_for():
    assert checkpoints.load("docs-base").model.dtype == torch.float32
    assert checkpoints.load("docs-base", dtype="bfloat16").model.dtype == torch.bfloat16


def test_a_checkpoint_that_lacks_weights_is_refused_instead_of_filled_with_random_ones(tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoints.ZOO / "sums-base", tmp_path / "partial")
    weights = load_file(tmp_path / "partial" / "model.safetensors")
    del weights["model.layers.0.self_attn.q_proj.weight"]
    save_file(weights, tmp_path / "partial" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"hold no model\.layers\.0\.self_attn\.q_proj\.weight \(1 weights"):
        checkpoints.load(str(tmp_path / "partial"))
