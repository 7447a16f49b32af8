"""Checkpoint folders of a Hugging Face Trainer are imported, or refused by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trainer_files import RATE, change, change_optimizer, refusal

from g2is_ray.errors import InputError
from g2is_ray.models import checkpoints
from g2is_ray.models.loading import lora_parameters
from g2is_ray.training.trainer_folders import digests, import_checkpoints, require_files

# ---- imports -----------------------------------------------------------------


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_imported_moments_are_the_live_optimizers_by_name(optim, train, settings, workspace):
    trainer = train(optim)
    import_checkpoints(workspace, [Path(trainer.args.output_dir, "checkpoint-4")], settings)
    model = checkpoints.load_model(workspace, settings)
    moments = checkpoints.put(model, checkpoints.read(workspace, 1))
    live = lora_parameters(trainer.model)
    assert moments.keys() == live.keys() == lora_parameters(model).keys()
    for name, parameter in live.items():
        state = trainer.optimizer.state[parameter]
        assert torch.equal(moments[name][0], state["exp_avg"])
        assert torch.equal(moments[name][1], state["exp_avg_sq"])
        assert state["exp_avg_sq"].any()
        assert torch.equal(lora_parameters(model)[name].cpu(), parameter.detach())


def test_the_adapter_is_imported_unchanged(folders, settings, workspace):
    import_checkpoints(workspace, folders[1:], settings)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        held = workspace.storage.read_bytes(f"warmup/checkpoint-1/adapter/{name}")
        assert held == (folders[1] / name).read_bytes()


def test_several_folders_become_checkpoints_in_order(folders, settings, workspace):
    receipt = import_checkpoints(workspace, folders, settings)
    assert receipt["imported"] == ["checkpoint-2", "checkpoint-4"]
    assert workspace.stage("warmup").verified() == receipt
    for number, folder in enumerate(folders, start=1):
        adapter = load_file(folder / "adapter_model.safetensors")
        model = checkpoints.load_model(workspace, settings)
        checkpoints.put(model, checkpoints.read(workspace, number))
        for name, parameter in lora_parameters(model).items():
            assert torch.equal(parameter.cpu(), adapter[f"base_model.model.{name}"])


def test_learning_rates_are_the_means_of_those_logged_since_the_folder_before(
    folders, settings, workspace
):
    receipt = import_checkpoints(workspace, folders, settings)
    wanted = [RATE * (4 / 4 + 3 / 4) / 2, RATE * (2 / 4 + 1 / 4) / 2]  # linear, of four steps
    assert receipt["learning_rates"] == pytest.approx(wanted)
    assert checkpoints.weights(workspace) == pytest.approx([0.7, 0.3])


def test_a_single_folder_needs_no_log(folders, settings, workspace):
    (folders[1] / "trainer_state.json").unlink()
    import_checkpoints(workspace, folders[1:], settings)
    assert checkpoints.weights(workspace) == [1.0]


def test_half_precision_moments_become_float32(folders, settings, workspace):
    def halve(state):
        for held in state["state"].values():
            held["exp_avg"] = held["exp_avg"].bfloat16()

    change_optimizer(folders[1], halve)
    import_checkpoints(workspace, folders[1:], settings)
    model = checkpoints.load_model(workspace, settings)
    moments = checkpoints.put(model, checkpoints.read(workspace, 1))
    assert {m.dtype for pair in moments.values() for m in pair} == {torch.float32}


def test_another_content_has_another_digest(folders, other):
    before = digests(folders)
    assert digests(folders) == before
    shutil.copy(other / "checkpoint-4/optimizer.pt", folders[1] / "optimizer.pt")
    after = digests(folders)
    assert after[0] == before[0]
    assert after[1].keys() == before[1].keys() == {"checkpoint-4"}
    assert after[1] != before[1]


# ---- folders and files -------------------------------------------------------


LACKING = {
    "adapter_config.json": "has no adapter_config.json; give checkpoint folders",
    "adapter_model.safetensors": "has adapter_config.json but no adapter_model.safetensors",
    "optimizer.pt": "has an adapter but no optimizer.pt: it was saved without AdamW's moments",
}


@pytest.mark.parametrize(("name", "said"), LACKING.items(), ids=LACKING)
def test_a_missing_file_is_named(name, said, folders, settings, workspace):
    (folders[1] / name).unlink()
    assert refusal(workspace, folders, settings).startswith(f"{folders[1]} {said}")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"/checkpoint-9 does not exist; warmup_from takes"):
        require_files([tmp_path / "checkpoint-9"])


def test_the_folder_of_a_training_names_its_checkpoints(folders):
    with pytest.raises(InputError, match=r"is the folder of a training; .* as checkpoint-4"):
        require_files([folders[1].parent])


def test_a_full_fine_tuning_is_named(folders):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folders[1] / name).unlink()
    (folders[1] / "model.safetensors").touch()
    with pytest.raises(InputError, match=r"but model\.safetensors: it is of a full fine-tuning"):
        require_files(folders)


@pytest.mark.parametrize(
    ("name", "maker"),
    [("global_step4", "DeepSpeed"), ("optimizer.bin", "FSDP"), ("optimizer_0", "FSDP")],
)
def test_software_that_saves_moments_in_another_way_is_named(name, maker, folders):
    (folders[1] / "optimizer.pt").rename(folders[1] / name)
    with pytest.raises(InputError, match=rf"has no optimizer\.pt but {name}: files of {maker} "):
        require_files(folders)


# ---- missing learning rates --------------------------------------------------


def test_folders_out_of_order_are_refused(folders, settings, workspace):
    sentence = refusal(workspace, folders[::-1], settings)
    assert "is of step 2, but the folder before it is of step 4" in sentence


def test_several_folders_need_trainers_state(folders, settings, workspace):
    (folders[0] / "trainer_state.json").unlink()
    assert "checkpoint-2 has no trainer_state.json" in refusal(workspace, folders, settings)


def test_a_gap_in_the_log_is_named(folders, settings, workspace):
    state = json.loads((folders[1] / "trainer_state.json").read_text())
    kept = [entry for entry in state["log_history"] if entry["step"] <= 2]
    change(folders[1] / "trainer_state.json", log_history=kept)
    sentence = refusal(workspace, folders, settings)
    assert "logs no learning rate above 0 after step 2 up to 4" in sentence


def test_a_state_that_is_not_trainers_is_refused(folders, settings, workspace):
    (folders[1] / "trainer_state.json").write_text('{"global_step": 4}')
    assert "is not the state of a Hugging Face Trainer" in refusal(workspace, folders, settings)
