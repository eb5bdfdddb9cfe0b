"""Times of layers: how they are measured, when they count, and the file that keeps them."""

from __future__ import annotations

import copy
import errno
import fcntl
import json
import math
import os
import pwd
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from lth_fast.nn import MaskedLinear, SparseLinear, calibration, choices, convert, plan, set_masks
from lth_fast.nn.calibration import Times, Work

pytestmark = pytest.mark.usefixtures("calibration_folder")


def network() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10), nn.ReLU(), nn.Linear(10, 5))


def under_masks(model: nn.Module, density: float = 0.3) -> nn.Module:
    """``model`` under masks that keep exactly that share of every weight."""
    weights = {name: weight for name, weight in model.named_parameters() if weight.dim() > 1}
    return set_masks(
        model,
        {
            name: (torch.arange(weight.numel()) < round(density * weight.numel())).view_as(weight)
            for name, weight in weights.items()
        },
    )


def small_layer() -> nn.Sequential:
    return set_masks(nn.Sequential(nn.Linear(64, 32)), {"0.weight": torch.arange(64 * 32).view(32, 64) % 2 == 0})


def test_measured_times_are_real_and_survive_in_the_file(calibration_folder):
    model = network()
    convert(under_masks(model), example_input=torch.randn(9, 20))
    chosen = choices(model)
    assert all(choice.masked_seconds > 0 and choice.sparse_seconds > 0 for choice in chosen.values())
    (machine,) = json.loads((calibration_folder / "calibration.json").read_text()).values()
    assert len(machine) == 3
    again = network()
    convert(under_masks(again), example_input=torch.randn(9, 20))
    assert {name: choice.masked_seconds for name, choice in choices(again).items()} == {
        name: choice.masked_seconds for name, choice in chosen.items()
    }


@pytest.mark.parametrize("frozen", [(), ("0.weight",), ("0.weight", "0.bias")], ids=["nothing", "weight", "layer"])
@pytest.mark.parametrize("input_grad", [False, True])
@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Linear(4, 3), (2, 4)), (nn.Conv2d(2, 3, 3), (2, 2, 6, 6))], ids=["linear", "conv2d"]
)
def test_a_layer_is_timed_with_the_gradients_that_it_needs(layer, shape, input_grad, frozen, monkeypatch):
    make_step, computed = calibration._step, []

    def watched(form, inputs, input_grad):
        step = make_step(form, inputs, input_grad)  # and take it once
        computed.append({name.replace("values", "weight"): p.grad is not None for name, p in form.named_parameters()})
        assert (inputs.grad is not None) == input_grad
        return step

    monkeypatch.setattr(calibration, "_step", watched)
    for without_gradient in ((), frozen):  # the times of one are not taken for the other's
        model = nn.Sequential(copy.deepcopy(layer))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in without_gradient)
        inputs = torch.randn(shape, requires_grad=input_grad)
        convert(model, {"0.weight": torch.arange(layer.weight.numel()).view_as(layer.weight) % 3 == 0}, "auto", inputs)
    trained = dict.fromkeys(("weight", "bias"), True)
    expected = {name: f"0.{name}" not in frozen for name in trained}
    assert computed == [trained] * 2 + ([expected] * 2 if frozen else [])


def test_a_ratio_that_comes_of_a_disturbed_measurement_is_not_believed(monkeypatch):
    # The first one tells how often to repeat; then another program steps in twice, and a little once more.
    masked = iter([1.0, 9.0, 5.0, 1.0, 1.2])
    steps = []

    def seconds(step, repeats, device):
        if step not in steps:
            steps.append(step)
        return next(masked, 1.0) if step is steps[0] else 2.0

    monkeypatch.setattr(calibration, "_seconds", seconds)
    model = nn.Sequential(nn.Linear(20, 30))
    convert(under_masks(model), example_input=torch.randn(9, 20))
    (choice,) = choices(model).values()
    assert (choice.form, choice.masked_seconds, choice.sparse_seconds) == ("masked", 1.0, 2.0)


@pytest.mark.parametrize(
    ("masked", "sparse", "rounds", "repeats"),
    [
        pytest.param(1.0, 2.0, 2, {1}, id="one is clearly faster"),
        pytest.param(2.0, 1.0, 2, {1}, id="the other is"),
        pytest.param(1.0, 1.2, 7, {1}, id="alike, and slow"),
        pytest.param(0.01, 0.012, 10, {1}, id="alike: a fifth of a second"),
        pytest.param(0.0009, 0.00075, 40, {3}, id="alike, and quick: 2 ms in one go"),
    ],
)
def test_a_layer_is_timed_until_the_faster_form_is_clear_or_for_a_while(masked, sparse, rounds, repeats, monkeypatch):
    clock, steps, asked = [0.0], [], []

    def seconds(step, repeats, device):
        if step not in steps:
            steps.append(step)
        asked.append((steps.index(step), repeats))
        clock[0] += repeats * (masked, sparse)[steps.index(step)]
        return (masked, sparse)[steps.index(step)]

    monkeypatch.setattr(calibration, "_seconds", seconds)
    monkeypatch.setattr(calibration, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    model = convert(under_masks(nn.Sequential(nn.Linear(20, 30))))
    (choice,) = choices(model).values()
    assert (choice.masked_seconds, choice.sparse_seconds) == (masked, sparse)
    estimates, measured = asked[:2], asked[2:]
    assert estimates == [(0, 1), (1, 1)]
    assert [form for form, _ in measured] == [0, 1] * rounds
    assert {repeats for _, repeats in measured} == repeats


def test_times_are_shared_by_what_takes_the_same_time_and_by_nothing_else(monkeypatch):
    timed_at = []

    def measure(layer, density, work, forms):
        timed_at.append(density)
        return Times(1.0, 0.5)

    def ask(layer, density, work):
        calibration.measured_times(layer, density, work, lambda plain, mask: (plain, plain))

    monkeypatch.setattr(calibration, "_measure", measure)
    layer, work = nn.Linear(20, 30), Work((9, 20))
    for alike in ((layer, 0.3, work), (nn.Linear(20, 30), 0.3, work), (layer, 0.31, work)):
        ask(*alike)
    assert timed_at == [2 ** (-7 / 4)]
    ask(layer, 0.25, work)
    ask(layer, 0.0, work)
    assert timed_at[1:] == [2**-2, 2**-16]
    ask(nn.Linear(20, 30, bias=False), 0.3, work)
    ask(nn.Linear(20, 30).double(), 0.3, work)
    ask(layer, 0.3, Work((8, 20)))
    ask(layer, 0.3, Work((9, 20), input_grad=False))
    monkeypatch.setattr(calibration, "machine_name", lambda device: "another machine")
    ask(layer, 0.3, work)
    assert len(timed_at) == 8


def test_the_time_of_a_step_is_that_of_one_of_its_repeats(monkeypatch):
    clock = [0.0]

    def step():
        clock[0] += 0.5

    monkeypatch.setattr(calibration, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert calibration._seconds(step, 4, torch.device("cpu")) == 0.5
    assert clock == [2.0]


@pytest.mark.parametrize("layer", [nn.Linear(40, 50, bias=False), nn.Linear(40, 50).double()], ids=str)
def test_forms_are_timed_in_the_layers_own_dtype_at_its_density_and_without_its_hooks(layer, monkeypatch):
    def refuse(*_):
        raise AssertionError("a hook ran")

    hooks = [
        layer.register_forward_hook(refuse),
        layer.register_forward_pre_hook(refuse),
        layer.register_full_backward_hook(refuse),
        layer.register_full_backward_pre_hook(refuse),
    ]
    step, seen = calibration._step, []

    def watched(form, inputs, input_grad):
        seen.append((form.density, inputs.dtype))
        return step(form, inputs, input_grad)

    monkeypatch.setattr(calibration, "_step", watched)
    model = nn.Sequential(layer)
    convert(under_masks(model, 0.25))
    assert choices(model)["0.weight"].sparse_seconds > 0
    assert len(seen) == 2
    for density, dtype in seen:
        assert density == pytest.approx(0.25, abs=0.05)
        assert dtype == layer.weight.dtype
    for hook in hooks:
        hook.remove()


def test_a_second_process_waits_for_the_measurement_of_the_first_and_takes_it(monkeypatch, calibration_folder):
    def ask(seconds: float) -> Times:
        monkeypatch.setattr(calibration, "_measure", lambda *_: Times(seconds, seconds))
        return calibration.measured_times(nn.Linear(2, 3), 0.5, Work((4, 2)), lambda plain, mask: (plain, plain))

    file = calibration_folder / "calibration.json"
    ask(1.0)
    measured = file.read_bytes()
    file.unlink()
    with (calibration_folder / "calibration.lock").open() as lock:  # as the first one has it
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = os.fork()
        if second == 0:
            try:
                os._exit(0 if ask(2.0) == Times(1.0, 1.0) else 1)
            finally:
                os._exit(2)
        time.sleep(0.3)
        assert os.waitpid(second, os.WNOHANG) == (0, 0)
        file.write_bytes(measured)
        fcntl.flock(lock, fcntl.LOCK_UN)  # which the second one inherits
    assert os.waitpid(second, 0) == (second, 0)
    assert file.read_bytes() == measured


def test_times_leave_no_file_open(timed, calibration_folder):
    timed(1.0, 0.5)
    convert(small_layer())
    before = os.listdir("/proc/self/fd")
    for _ in range(2):  # recalled and measured
        convert(small_layer())
        (calibration_folder / "calibration.json").unlink()
    assert os.listdir("/proc/self/fd") == before


def test_folders_of_the_file_of_times_are_made(timed, monkeypatch, tmp_path):
    timed(1.0, 0.5)
    monkeypatch.setenv("LTH_FAST_CACHE", str(tmp_path / "a" / "b"))
    convert(small_layer())
    assert (tmp_path / "a" / "b" / "calibration.json").exists()


def test_the_file_of_times_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LTH_FAST_CACHE", "~/times")
    assert calibration.cache_file() == tmp_path / "times" / "calibration.json"
    monkeypatch.delenv("LTH_FAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert calibration.cache_file() == tmp_path / "user" / "lth_fast" / "calibration.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert calibration.cache_file() == tmp_path / ".cache" / "lth_fast" / "calibration.json"


@pytest.mark.parametrize("damaged", [b'{"half a', b"\xff\xfe\xff", b"[" * 100_000, b"[]", b""], ids=range(5))
def test_a_damaged_file_of_times_is_measured_anew(damaged, calibration_folder):
    (calibration_folder / "calibration.json").write_bytes(damaged)
    model = convert(under_masks(network()))
    assert len(plan(model)) == 3
    assert json.loads((calibration_folder / "calibration.json").read_text())


def test_a_folder_that_cannot_be_written_is_said_once_per_layer_and_stops_nothing(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LTH_FAST_CACHE", str(tmp_path / "file" / "below"))
    with pytest.warns(UserWarning, match="cannot be remembered"):
        model = convert(under_masks(network()))
    assert len(plan(model)) == 3


def test_known_times_are_taken_from_a_folder_that_cannot_be_written(calibration_folder, monkeypatch):
    model, again = small_layer(), small_layer()
    convert(model)

    def refuse(*_, **__):  # as a file system mounted to be read only
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    convert(again)  # a warning would be an error
    assert choices(again) == choices(model)
    monkeypatch.setattr(calibration, "_measure", lambda *_: Times(3.0, 2.0))
    with pytest.warns(UserWarning, match="cannot be remembered"):
        other = convert(under_masks(network()))
    assert {choice.masked_seconds for choice in choices(other).values()} == {3.0}


def test_what_stands_in_the_way_of_the_times_and_cannot_be_removed_is_said_and_stops_nothing(calibration_folder):
    (calibration_folder / "calibration.partial").mkdir()
    with pytest.warns(UserWarning, match="cannot be remembered"):
        model = convert(small_layer())
    assert choices(model)["0.weight"].sparse_seconds > 0


@pytest.mark.parametrize(
    "mode",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_the_callers_modes_change_neither_the_times_nor_what_can_be_trained_afterwards(mode, calibration_folder):
    def one_layer():
        return set_masks(nn.Sequential(nn.Linear(512, 256)), {"0.weight": torch.rand(256, 512) < 0.05})

    timed_in = {}

    def look(layer, inputs, output):
        timed_in.setdefault(type(layer), set()).add((output.dtype, output.requires_grad, output.is_inference()))

    model, other = one_layer(), one_layer()
    with register_module_forward_hook(look), mode():
        convert(model)
    training = {(torch.float32, True, False)}
    assert timed_in == {MaskedLinear: training, SparseLinear: training}
    (measured,) = choices(model).values()
    convert(other)
    assert choices(other)["0.weight"].sparse_seconds == measured.sparse_seconds
    convert(model, form="sparse")
    with mode():
        convert(model, form="sparse")
    model(torch.randn(3, 512)).sum().backward()
    assert next(model.parameters()).grad is not None


def test_a_compiled_layer_is_timed_as_a_layer_of_its_own_and_leaves_no_gradient():
    model, inputs = nn.Sequential(nn.Linear(64, 32)), torch.randn(4, 64)
    model[0].compile(backend="eager")
    mask = torch.rand(32, 64) < 0.3
    expected = set_masks(copy.deepcopy(model), {"0.weight": mask})(inputs)
    convert(model, {"0.weight": mask}, example_input=inputs)
    assert choices(model)["0.weight"].masked_seconds > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.testing.assert_close(model(inputs), expected)
    convert(model, form="masked")
    plain = model[0].to_dense()
    plain.weight = nn.Parameter(torch.zeros(32, 64))
    torch.testing.assert_close(plain(inputs), plain.bias.expand(4, 32))


def test_ctrl_c_while_times_are_written_leaves_those_of_before_and_nothing_else(calibration_folder, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    convert(small_layer())
    before = (calibration_folder / "calibration.json").read_bytes()
    other = set_masks(nn.Sequential(nn.Linear(64, 16)), {"0.weight": torch.arange(64 * 16).view(16, 64) % 2 == 0})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupt)
        convert(other)
    assert (calibration_folder / "calibration.json").read_bytes() == before
    assert {path.name for path in calibration_folder.iterdir()} == {"calibration.json", "calibration.lock"}


def test_ctrl_c_as_the_lock_is_had_keeps_nobody_from_timing(calibration_folder, monkeypatch):
    lock = fcntl.flock

    def interrupt(descriptor, how):
        lock(descriptor, how)
        if how == fcntl.LOCK_EX:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fcntl, "flock", interrupt)
        convert(small_layer())
    with (calibration_folder / "calibration.lock").open() as file:
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_times_that_are_no_times_are_measured_anew(calibration_folder):
    convert(set_masks(nn.Sequential(nn.Linear(64, 32)), {"0.weight": torch.rand(32, 64) < 0.5}))
    file = calibration_folder / "calibration.json"
    (machine,) = json.loads(file.read_text())
    (key,) = json.loads(file.read_text())[machine]
    no_times = ({"masked": 1.0}, {"masked": "1", "sparse": "2"}, {"masked": 0.0, "sparse": 0.0})
    no_times += ({"masked": math.nan, "sparse": 1.0}, {"masked": 1.0, "sparse": None}, {"masked": -1.0, "sparse": 1.0})
    no_times += ({"masked": math.inf, "sparse": 1.0}, 3, {"masked": 1.0, "sparse": 1.0, "dense": 1.0})
    for damaged in ({machine: 3}, *({machine: {key: entry}} for entry in no_times)):
        file.write_text(json.dumps(damaged))
        model = set_masks(nn.Sequential(nn.Linear(64, 32)), {"0.weight": torch.rand(32, 64) < 0.5})
        convert(model)
        assert choices(model)["0.weight"].sparse_seconds > 0
        assert json.loads(file.read_text())[machine][key]["masked"] == choices(model)["0.weight"].masked_seconds


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As some network file systems are."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


def without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users of containers are that have a number and no name."""
    for variable in ("LTH_FAST_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)


@pytest.mark.parametrize("situation", [without_locks, without_a_home])
def test_where_times_cannot_be_kept_they_are_measured_anew(situation, monkeypatch):
    situation(monkeypatch)
    with pytest.warns(UserWarning, match="cannot be remembered"):
        model = convert(small_layer())
    assert choices(model)["0.weight"].sparse_seconds > 0


def test_a_process_that_is_forked_while_a_layer_is_timed_keeps_nobody_from_timing(
    timed, calibration_folder, monkeypatch
):
    timed(1.0, 0.5)
    measure, children = calibration._measure, []

    def forking(*arguments):
        children.append(os.fork())  # as a DataLoader's worker
        if children[-1] == 0:
            time.sleep(20)
            os._exit(0)
        return measure(*arguments)

    monkeypatch.setattr(calibration, "_measure", forking)
    began = time.monotonic()
    try:
        for _ in range(2):
            convert(small_layer())
            (calibration_folder / "calibration.json").unlink()
        assert len(children) == 2 and time.monotonic() - began < 15  # the first child is still at work
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_the_default_device_has_no_part_in_the_times_of_a_model_that_lies_elsewhere():
    model = set_masks(nn.Sequential(nn.Linear(64, 32)), {"0.weight": torch.rand(32, 64) < 0.5})
    with torch.device("meta"):
        convert(model)
    assert choices(model)["0.weight"].sparse_seconds > 0
    assert model(torch.randn(2, 64)).device.type == "cpu"
