"""fastinit.fills.fans: shapes to fans, gains, standard deviations and laws."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from fastinit import init
from fastinit.fills import fans

GAINS = [
    ("linear", None),
    ("conv1d", None),
    ("conv2d", 3),
    ("conv3d", None),
    ("conv_transpose1d", None),
    ("conv_transpose2d", None),
    ("conv_transpose3d", None),
    ("sigmoid", None),
    ("tanh", None),
    ("relu", None),
    ("leaky_relu", None),
    ("leaky_relu", 0),
    ("leaky_relu", 0.2),
    ("leaky_relu", -3),
    ("selu", None),
]


@pytest.mark.parametrize(("name", "param"), GAINS)
def test_gains_are_torchs(name: str, param: float | None) -> None:
    assert init.calculate_gain(name, param) == torch.nn.init.calculate_gain(name, param)


@pytest.mark.parametrize("param", [True, "0.1", torch.tensor([0.1]), [0.1]])
def test_a_slope_must_be_a_number(param: object) -> None:
    for function in (init.calculate_gain, torch.nn.init.calculate_gain):
        with pytest.raises(ValueError, match=r"not a valid number|param must be a number, but got"):
            function("leaky_relu", param)


def test_unknown_nonlinearity() -> None:
    with pytest.raises(ValueError, match="Unsupported nonlinearity gelu"):
        init.calculate_gain("gelu")


@pytest.mark.parametrize(
    "shape", [(3, 5), (16, 2, 3, 3), (8, 16, 3, 3), (4, 0), (0, 0, 3), (2, 3, 4, 5, 6)]
)
def test_fans_are_torchs(shape: tuple[int, ...]) -> None:
    w = torch.empty(shape, device="meta")
    expected = torch.nn.init._calculate_fan_in_and_fan_out(w)
    assert init._calculate_fan_in_and_fan_out(w) == fans.fans_of(shape) == expected
    for mode in ("fan_in", "FAN_OUT"):
        assert init._calculate_correct_fan(w, mode) == torch.nn.init._calculate_correct_fan(w, mode)


def test_fans_ignore_groups_and_transposition_as_in_torch() -> None:
    grouped = torch.nn.Conv2d(8, 16, 3, groups=4).weight
    assert init._calculate_fan_in_and_fan_out(grouped) == (18, 144)
    transposed = torch.nn.ConvTranspose2d(8, 16, 3).weight
    assert init._calculate_fan_in_and_fan_out(transposed) == (144, 72)


@pytest.mark.parametrize("shape", [(), (3,), (0,)])
def test_fans_need_two_dimensions(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"fewer than 2 dimensions.*shape"):
        init._calculate_fan_in_and_fan_out(torch.empty(shape))


def test_mode_message_names_it() -> None:
    with pytest.raises(ValueError, match="Mode both not supported"):
        init._calculate_correct_fan(torch.empty(2, 2), "both")


def test_variance_scaling_modes() -> None:
    std = {m: fans.variance_scaling_std((4, 9), 36.0, m) for m in fans.FAN_MODES}
    assert std == {
        "fan_in": 3.0,
        "fan_out": 2.0,
        "fan_avg": math.sqrt(36 / 6.5),
        "fan_geo_avg": math.sqrt(6.0),
    }


def test_every_distribution_has_the_std_asked_for() -> None:
    # Against SciPy's moments of the laws; 1e-9 is what its truncated normal is good for.
    law = fans.variance_scaling((4, 9), 2.0, "fan_out", "truncated_normal")
    mean, std, a, b = law.arguments
    assert stats.truncnorm.std(a / std, b / std, mean, std) == pytest.approx(
        math.sqrt(2 / 9), rel=1e-9
    )
    assert (a, b) == (-2 * std, 2 * std)
    law = fans.variance_scaling((4, 9), 2.0, "fan_out", "uniform")
    assert (law.p1 - law.p0) / math.sqrt(12) == pytest.approx(math.sqrt(2 / 9), rel=1e-15)
    law = fans.variance_scaling((4, 9), 2.0, "fan_out", "normal")
    assert law.p1 == math.sqrt(2 / 9)


def test_truncated_std_is_jaxs_constant() -> None:
    assert fans.truncated_std(2.0) == pytest.approx(0.87962566103423978, rel=1e-15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1.0,), "scale must be.* -1.0"),
        ((math.nan,), "scale must be.* nan"),
        ((math.inf,), "scale must be.* inf"),
        ((1.0, "fan"), "mode must be one of .*'fan'"),
        ((1.0, "fan_in", "cauchy"), "distribution must be one of .*'cauchy'"),
    ],
)
def test_variance_scaling_refuses(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fans.variance_scaling((3, 3), *arguments)


@pytest.mark.parametrize("fan", [(1, 2, 3), 3, ("a", 2), (True, 2), None])
def test_fan_must_be_a_pair_of_numbers(fan: object) -> None:
    with pytest.raises(TypeError, match=r"fan must be a pair|fan\[0\] must be a number"):
        fans.check_fans(fan)


@pytest.mark.parametrize("fan", [(0, 2), (2, -1), (math.nan, 2), (2, math.inf)])
def test_fan_must_be_positive(fan: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"fan\[[01]\] must be positive"):
        fans.check_fans(fan)
