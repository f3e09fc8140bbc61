"""LoRA files that others made, and files that do not fit."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from denoisers import FAMILIES, fresh, part, pipe_of, predict, randomize, tuned
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from aig import adapters


def foreign(family, rank=4, **settings):
    """A LoRA that diffusers and PEFT made, without us: its denoiser and its state."""
    denoiser = fresh(family)
    denoiser.add_adapter(LoraConfig(r=rank, target_modules=["to_q", "to_v"], **settings), adapter_name="theirs")
    randomize(denoiser, "theirs")
    return denoiser, get_peft_model_state_dict(denoiser, adapter_name="theirs")


def write(family, folder, state, config=None, **more):
    metadata = {} if config is None else {f"{part(family)}_lora_adapter_metadata": config.to_dict()}
    type(pipe_of(family)).save_lora_weights(folder, **{f"{part(family)}_lora_layers": state}, **metadata, **more)
    return folder


def in_diffusers(family, folder):
    """The prediction of the family's pipeline after its own load_lora_weights."""
    pipe = type(pipe_of(family))(**{**pipe_of(family).components, part(family): fresh(family)})
    pipe.load_lora_weights(folder)
    return predict(getattr(pipe, part(family)))


@pytest.mark.parametrize("told", [True, False], ids=["with metadata", "without"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_that_diffusers_wrote_predicts_the_same_here(family, told, tmp_path):
    denoiser, state = foreign(family, lora_alpha=8 if told else 4)
    write(family, tmp_path, state, denoiser.peft_config["theirs"] if told else None)
    ours = fresh(family)
    adapters.load(ours, tmp_path, "x")
    expected = in_diffusers(family, tmp_path)
    assert torch.allclose(expected, predict(denoiser), atol=1e-6)
    assert torch.allclose(predict(ours, ["x"] * 4), expected, atol=1e-5)
    assert (predict(ours, [adapters.BASE] * 4) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_kohyas_names_and_network_alpha_predict_the_same_here(family, tmp_path):
    denoiser, state = foreign(family, lora_alpha=2)
    kohya = convert_state_dict_to_kohya({f"unet.{k}": v for k, v in state.items()})
    kohya |= {f"{name}.alpha": torch.tensor(2.0) for name in {k.split(".")[0] for k in kohya}}
    save_file(kohya, tmp_path / "anything.safetensors")
    ours = fresh(family)
    adapters.load(ours, tmp_path, "x")
    assert torch.allclose(in_diffusers(family, tmp_path / "anything.safetensors"), predict(denoiser), atol=1e-5)
    assert torch.allclose(predict(ours, ["x"] * 4), predict(denoiser), atol=1e-5)


def test_rank_stabilized_scaling_and_lora_biases_share_a_forward(tmp_path):
    denoiser, state = foreign("sd", use_rslora=True, lora_bias=True)
    write("sd", tmp_path, state, denoiser.peft_config["theirs"])
    ours = fresh("sd")
    adapters.load(ours, tmp_path, "x")
    assert torch.allclose(predict(ours, ["x"] * 4), predict(denoiser), atol=1e-5)
    with adapters.fusing(ours) as fuser, pytest.raises(ValueError, match=r"sampling\.fuse"):
        fuser.switch("x")


def test_text_encoders_of_a_lora_are_ignored_with_a_word(tmp_path):
    _, state = foreign("sd")
    text = copy.deepcopy(pipe_of("sd").text_encoder)
    text.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    write("sd", tmp_path, state, text_encoder_lora_layers=get_peft_model_state_dict(text, adapter_name="default"))
    ours = fresh("sd")
    with pytest.warns(UserWarning, match="4 of 'text_encoder'"):
        adapters.load(ours, tmp_path, "x")
    assert torch.allclose(predict(ours, ["x"] * 4), in_diffusers("sd", tmp_path), atol=1e-5)


@pytest.mark.parametrize("setting", [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["conv_out"]}])
def test_what_rows_cannot_take_turns_with_is_refused_with_its_name(setting, tmp_path):
    denoiser, state = foreign("sd", **setting)
    write("sd", tmp_path, {k: v for k, v in state.items() if "lora_" in k}, denoiser.peft_config["theirs"])
    with pytest.raises(ValueError, match="DoRA" if "use_dora" in setting else next(iter(setting))):
        adapters.load(fresh("sd"), tmp_path, "x")


def test_a_dora_that_another_program_attached_is_not_routed():
    denoiser, _ = foreign("sd", use_dora=True)
    with pytest.raises(ValueError, match=r"save_as_lora"), adapters.routed(denoiser, ["theirs"]):
        pass


def test_an_adapter_of_another_family_is_refused(tmp_path):
    adapters.save(tuned("sd3"), "a", tmp_path / "a", {})
    with pytest.raises(ValueError, match="made on a SD3Transformer2DModel"):
        adapters.load(fresh("flux"), tmp_path / "a", "x")
    (tmp_path / "a" / adapters.RECORD).unlink()
    with pytest.raises(ValueError, match=r"does not fit|no layer"):
        adapters.load(fresh("flux"), tmp_path / "a", "x")
    with pytest.raises(ValueError, match=r"begin with 'unet\.'"):
        adapters.load(fresh("sd"), tmp_path / "a", "x")


def test_an_adapter_on_other_weights_of_its_class_is_loaded_with_a_warning(tmp_path):
    adapters.save(tuned("sd"), "a", tmp_path / "a", {})
    other = fresh("sd")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapters.load(other, tmp_path / "a", "same")
        adapters.load(fresh("sd").to(torch.bfloat16), tmp_path / "a", "rounded")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.05)
    with pytest.warns(UserWarning, match="other weights"):
        adapters.load(other, tmp_path / "a", "x")


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_a_tensor_that_does_not_fit_is_named_with_both_shapes(family, tmp_path):
    folder = adapters.save(tuned(family), "a", tmp_path / "a", {})
    state = load_file(folder / adapters.WEIGHTS)
    name = sorted(k for k in state if ".lora_A." in k)[0]
    state[name] = torch.zeros(4, 7)
    save_file(state, folder / adapters.WEIGHTS)
    with pytest.raises(ValueError, match=rf"{name.removeprefix(part(family) + '.')}.*\(4, 7\).*\(16, "):
        adapters.load(fresh(family), folder, "x")


def test_a_copy_of_another_size_is_refused_by_tensor(tmp_path):
    denoiser = fresh("sd")
    adapters.full(denoiser, "a")
    folder = adapters.save(denoiser, "a", tmp_path / "a", {})
    state = load_file(folder / adapters.FULL_WEIGHTS)
    state["conv_in.bias"] = torch.zeros(3)
    save_file(state, folder / adapters.FULL_WEIGHTS)
    with pytest.raises(ValueError, match=r"conv_in\.bias: \(3,\) in the file, \(8,\)"):
        adapters.load(fresh("sd"), folder, "x")


def empty(path):
    path.write_bytes(b"")


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def without_tensors(path):
    save_file({}, path)


def misled(path):
    save_file(
        load_file(path), path, {"lora_adapter_metadata": json.dumps({"unet.r": 9, "unet.target_modules": ["to_q"]})}
    )


def unknown(path):
    save_file(load_file(path), path, {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.new_setting": 1})})


def odd(path):
    save_file({**load_file(path), "unet.conv_in.diff": torch.zeros(1)}, path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(empty, "corrupt"), (truncated, "corrupt"), (without_tensors, "nothing at all"), (misled, "PEFT cannot build"),
     (unknown, "new_setting"), (odd, r"conv_in\.diff")],
)  # fmt: skip
def test_a_spoilt_file_is_refused_by_name_and_leaves_the_denoiser_usable(spoil, said, tmp_path):
    folder = adapters.save(tuned("sd"), "a", tmp_path / "a", {})
    spoil(folder / adapters.WEIGHTS)
    denoiser = fresh("sd")
    base = predict(denoiser)
    with pytest.raises(ValueError, match=said) as failed:
        adapters.load(denoiser, folder, "x")
    assert str(folder) in str(failed.value)
    assert adapters.names(denoiser) == []
    assert torch.equal(predict(denoiser), base)
    adapters.load(denoiser, adapters.save(tuned("sd"), "a", tmp_path / "b", {}), "x")


def test_a_folder_of_several_files_asks_for_one(tmp_path):
    for name in ("one", "two"):
        save_file({"x": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"one\.safetensors, two\.safetensors"):
        adapters.load(fresh("sd"), tmp_path, "x")


def test_adapters_are_not_made_beside_a_fused_one(tmp_path):
    folder = adapters.save(tuned("sd"), "a", tmp_path / "a", {})
    denoiser = tuned("sd")
    denoiser.fuse_lora()
    for make in (adapters.attach, adapters.full, lambda d, name: adapters.load(d, folder, name)):
        with pytest.raises(RuntimeError, match="unfuse_lora"):
            make(denoiser, "b")
    with pytest.raises(RuntimeError, match="unfuse_lora"):
        adapters.save(denoiser, "a", tmp_path / "b", {})


def test_a_target_that_is_not_there_is_refused_with_near_names():
    with pytest.raises(ValueError, match=r"'to_qq'.*to_q"):
        adapters.attach(fresh("sd"), "a", targets=["to_k", "to_qq"])


def test_one_of_two_adapters_of_like_names_is_saved_alone(tmp_path):
    denoiser = tuned("sd")
    adapters.attach(denoiser, "ab", rank=3)
    adapters.scaled(denoiser, "a", 0.5)
    state = load_file(adapters.save(denoiser, "a", tmp_path / "a", {}) / adapters.WEIGHTS)
    assert {v.shape[0] for k, v in state.items() if "lora_A" in k} == {4}
    assert all(k.endswith(("lora_A.weight", "lora_B.weight")) for k in state)
    with pytest.raises(ValueError, match="at a scale"):
        adapters.save(denoiser, "a*0.5", tmp_path / "half", {})


def test_dropout_acts_where_gradient_flows_and_nowhere_else(tmp_path):
    denoiser, whole = tuned("sd", dropout=0.5), tuned("sd")
    folder = adapters.save(denoiser, "a", tmp_path / "a", {})
    loaded = fresh("sd")
    adapters.load(loaded, folder, "a")
    for model in (denoiser, loaded):
        assert torch.equal(predict(model, ["a"] * 4), predict(whole, ["a"] * 4))
        with torch.enable_grad():
            assert not torch.allclose(predict.__wrapped__(model, ["a"] * 4), predict(whole, ["a"] * 4), atol=1e-3)
    with pytest.raises(ValueError, match="dropout"):
        adapters.attach(denoiser, "b", dropout=1.0)
