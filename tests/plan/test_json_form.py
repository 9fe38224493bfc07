"""The JSON of a plan: read as it was written, and refused if it was not written so."""

import json
import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from fastinit import Fill, Plan
from fastinit.plan import json_form

HUGE = 10**400


def weights(name: str) -> dict[str, Fill]:
    padded = Fill.normal(std=0.02).with_part(torch.empty(9, 4)[3], Fill.constant(0.0))
    return {
        f"{name}.embed.weight": padded,
        **{f"{name}.h.{i}.{own}": Fill.uniform(-0.5, 0.5) for i in range(3) for own in ("w", "b")},
        f"{name}.norm": Fill.truncated_normal(0.0, 1.0, -math.inf, 2.0).scaled(0.1),
    }


W = torch.empty(4, 3, 2, 5, device="meta")  # heads, (q, k, v), a head's size, inputs

PLANS = {
    "none": Plan({}),
    "values": Plan(
        {
            "kv": Fill.fused({"k": (W[:, 0], Fill.eye()), "v": (W[:, 1:], Fill.constant(0.0))}),
            "dt": Fill.arange(1).then("log").then("clamp_min", 1e-4),
        }
    ),
    "layers": Plan(weights("m"), seed=2**64 - 1, aliases={"m.head": "m.embed.weight"}),
    "whole tensors": Plan(
        {
            "q": Fill.orthogonal(-2.0),
            "s": Fill.sparse(0.1),
            "e": Fill.eye(),
            "d": Fill.dirac(2).scaled(3.0),
            "copy": Fill("normal", (0.0, 1.0), stream="q"),
            "nan": Fill.constant(math.nan),
        }
    ),
}


def document(name: str = "layers") -> Any:
    return json.loads(PLANS[name].to_json())


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def changed(path: tuple[Any, ...], new: Any) -> str:
    """The text of a document with another value at a place; None takes away what is there."""
    value = document()
    if new is None:
        del at(value, path[:-1])[path[-1]]
    else:
        at(value, path[:-1])[path[-1]] = new
    return json.dumps(value)


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_its_own_round_trip(name: str) -> None:
    assert Plan.from_json(PLANS[name].to_json()) == PLANS[name]


@pytest.mark.parametrize(
    "name",
    [
        "h.0.a\nb",
        "h.\n.0.w",
        "h.1١.w",
        f"h.{10**30}.w",
        "h..0.w",
        ".0.w",
        "0.w",
        "h.00.w",
        "ünï.1.ü",
    ],
)
def test_names_are_kept_whatever_is_in_them(name: str) -> None:
    plan = Plan({name: Fill.normal(), f"{name}.1.w": Fill.normal()})
    assert list(Plan.from_json(plan.to_json())) == list(plan)


ENTRY, LAYERS, NORM = (("parameters", place) for place in range(3))
PART = (*ENTRY, "parts", 0)
REFUSED: list[tuple[tuple[Any, ...], Any, str]] = [
    # the document
    (("format",), "other", '"format" is not'),
    (("version",), 2, "version is 2"),
    (("version",), True, "version must be an int"),
    (("version",), 1.0, "version must be an int"),
    (("version",), None, "version is missing"),
    (("stream_version",), 9, "stream_version is 9"),
    (("stream_version",), "1", "stream_version must be an int"),
    (("seed",), -1, "seed must be in"),
    (("seed",), 1 << 64, "seed must be in"),
    (("seed",), HUGE, "seed must be in"),
    (("seed",), "0", "seed must be an int"),
    (("seed",), True, "seed must be an int"),
    (("seed",), 1.5, "seed must be an int"),
    (("seed",), None, "seed is missing"),
    (("sed",), 1, "nobody knows the key sed"),
    (("parameters",), 3, "parameters must be a list"),
    (("parameters",), {}, "parameters must be a list"),
    (("parameters",), None, "parameters is missing"),
    (("aliases",), [], "aliases must be an object"),
    (("aliases", "x"), "nothing", "aliases must lead"),
    (("aliases", "x"), 3, r"aliases\.x must be text"),
    (("aliases", "m.norm"), "m.norm", "aliases must lead"),
    # an entry
    (ENTRY, 3, r"parameters\[0\] must be an object, but got 3"),
    (ENTRY, "normal", r"parameters\[0\] must be an object"),
    ((*ENTRY, "name"), None, r"parameters\[0\]\.name is missing"),
    ((*ENTRY, "name"), 3, r"parameters\[0\]\.name must be text"),
    ((*ENTRY, "name"), "\ud800", r"parameters\[0\]\.name is no text"),
    ((*ENTRY, "name"), "m.norm", "parameter m.norm appears twice"),
    ((*ENTRY, "name"), "m.h.2.w", r"parameter m\.h\.2\.w appears twice"),
    ((*ENTRY, "device"), "cuda", r"parameters\[0\], parameter m\.embed\.weight: .* the key device"),
    ((*ENTRY, "first"), 0, "nobody knows the key first"),
    # a Fill
    ((*NORM, "distribution"), None, "parameter m.norm: distribution is missing"),
    ((*NORM, "distribution"), "cauchy", "m.norm: distribution must be one of uniform"),
    ((*NORM, "distribution"), ["normal"], "m.norm: distribution must be text"),
    ((*NORM, "distribution"), "normal", "m.norm: nobody knows the keys a, b"),
    ((*NORM, "distribution"), "constant", "m.norm: value is missing"),
    ((*NORM, "std"), None, "m.norm: std is missing"),
    ((*NORM, "std"), True, "m.norm: std must be a number"),
    ((*NORM, "std"), "1.0", "m.norm: std must be a number"),
    ((*NORM, "std"), "Infinity", "m.norm: std must be a number"),
    ((*NORM, "std"), "+inf", "m.norm: std must be a number"),
    ((*NORM, "std"), "NaN", "m.norm: std must be a number"),
    ((*NORM, "std"), [1.0], "m.norm: std must be a number"),
    ((*NORM, "std"), HUGE, "m.norm: std must be a number that float64"),
    ((*NORM, "std"), -1.0, "m.norm: .*std=-1"),
    ((*NORM, "mean"), "nan", "m.norm: .*mean=nan"),
    ((*NORM, "scale"), 0, "m.norm: scale must be positive"),
    ((*NORM, "scale"), "inf", "m.norm: scale must be a number"),
    ((*NORM, "scale"), 1e39, "m.norm: scale must be within float32"),
    ((*NORM, "stream"), 3, "m.norm: stream must be text"),
    ((*NORM, "std_"), 1, "m.norm: nobody knows the key std_"),
    # layers
    ((*LAYERS, "layers"), 3, r"parameters\[1\]\.layers must be text"),
    ((*LAYERS, "first"), None, r"parameters\[1\]\.first is missing"),
    ((*LAYERS, "first"), -1, r"parameters\[1\]\.first must be at least 0"),
    ((*LAYERS, "first"), 0.0, r"parameters\[1\]\.first must be an int"),
    ((*LAYERS, "first"), 3, r"parameters\[1\]\.last must be at least first, 3, but got 2"),
    ((*LAYERS, "first"), True, r"parameters\[1\]\.first must be an int"),
    ((*LAYERS, "last"), -1, r"parameters\[1\]\.last must be at least"),
    ((*LAYERS, "last"), 10**12, "2,000,000,000,004 parameters, but .* at most 1,048,576"),
    ((*LAYERS, "last"), HUGE, r"parameters\[1\]\.last must be below 2\*\*63"),
    ((*LAYERS, "scale"), 2.0, r"parameters\[1\]\.nobody knows the key scale"),
    ((*LAYERS, "name"), "w", r"nobody knows the key name"),
    ((*LAYERS, "parameters"), {}, r"parameters\[1\]\.parameters must be a list"),
    ((*LAYERS, "parameters", 0), 3, r"parameters\[1\]\.parameters\[0\] must be an object"),
    ((*LAYERS, "parameters", 0, "name"), "b", r"parameter m\.h\.0\.b appears twice"),
    (
        (*LAYERS, "parameters", 0, "last"),
        1,
        r"parameters\[1\]\.parameters\[0\], parameter w: nobody",
    ),
    ((*LAYERS, "parameters", 0, "layers"), "x", "nobody knows the key layers"),
    # a part
    (PART, [], r"m\.embed\.weight: parts\[0\] must be an object"),
    ((*PART, "value"), None, r"m\.embed\.weight: parts\[0\]\.value is missing"),
    ((*PART, "size"), 1, r"parts\[0\]\.nobody knows the key size"),
    ((*PART, "parts"), 3, r"parts\[0\]\.parts must be a list"),
    ((*PART, "parts"), [document()["parameters"][0]["parts"][0]], "a part must be one law"),
    ((*PART, "distribution"), "eye", r"parts\[0\]\.nobody knows the key value"),
    ((*PART, "offset"), -1, r"parts\[0\]\.offset must be at least 0"),
    ((*PART, "offset"), 1.0, r"parts\[0\]\.offset must be an int"),
    ((*PART, "offset"), HUGE, r"parts\[0\]\.offset must be below 2\*\*63"),
    ((*PART, "offset"), 2**63 - 2, r"beyond the 2\^63 elements"),
    ((*PART, "sizes"), 4, r"parts\[0\]\.sizes must be a list"),
    ((*PART, "sizes"), [True], r"parts\[0\]\.sizes\[0\] must be an int"),
    ((*PART, "sizes"), [-4], r"parts\[0\]\.sizes\[0\] must be at least 0"),
    ((*PART, "sizes"), [4, 4], "2 sizes and 1 strides"),
    ((*PART, "sizes"), [1 << 63], r"sizes\[0\] must be below 2\*\*63"),
    ((*PART, "strides"), [], "1 sizes and 0 strides"),
    ((*PART, "strides"), [-1], r"parts\[0\]\.strides\[0\] must be at least 0"),
    ((*PART, "strides"), ["1"], r"parts\[0\]\.strides\[0\] must be an int"),
    ((*PART, "strides"), [0], "has elements twice"),
    ((*PART, "strides"), [1 << 62], r"beyond the 2\^63 elements"),
]


@pytest.mark.parametrize(("path", "new", "message"), REFUSED)
def test_what_is_not_a_plan(path: tuple[Any, ...], new: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^not a plan: .*{message}") as error:
        Plan.from_json(changed(path, new))
    assert len(str(error.value)) < 400


REGIONS = {
    "a stride of 0": ([4], [0], "twice"),
    "within each other's reach": ([3, 3], [1, 1], "twice"),
    "one element in common": ([2, 4], [6, 2], "twice"),
    "too many to be counted": ([10**9, 4], [3, 2], "twice"),
    "a product beyond 2^63, of nothing": ([0, 1 << 62, 4], [1, 1, 1], "beyond"),
    "a reach beyond 2^63": ([2, 2], [1 << 62, 1 << 62], "beyond"),
    "woven": ([2, 3], [3, 2], None),
    "turned": ([2, 3], [1, 2], None),
    "one element": ([1, 1], [0, 0], None),
    "none": ([0], [0], None),
}


@pytest.mark.parametrize("region", REGIONS)
def test_the_elements_of_a_part(region: str) -> None:
    sizes, strides, message = REGIONS[region]
    value = document()
    at(value, PART).update(sizes=sizes, strides=strides, offset=0)
    if message is None:
        assert Plan.from_json(json.dumps(value))["m.embed.weight"].parts[0].region.sizes == tuple(
            sizes
        )
    else:
        with pytest.raises(ValueError, match=rf"m\.embed\.weight: a part at .* {message}"):
            Plan.from_json(json.dumps(value))


TEXTS = {
    "nothing": ("", "not JSON"),
    "a list": ("[]", '"format"'),
    "a word": ('"fastinit.plan"', '"format"'),
    "half of it": (PLANS["layers"].to_json()[:-40], "not JSON"),
    "something behind": (PLANS["layers"].to_json() + "{}", "not JSON"),
    "deep": ("[" * 100_000, "not JSON"),
    "deep, and closed": ("[" * 100_000 + "]" * 100_000, "not JSON"),
    "digits": ("1" * 5000, "not JSON"),
    "NaN": (PLANS["layers"].to_json().replace("-0.5", "NaN"), "NaN is no number of JSON"),
    "-Infinity": (PLANS["layers"].to_json().replace("-0.5", "-Infinity"), "-Infinity is no"),
    "1e999": (PLANS["layers"].to_json().replace("-0.5", "-1e999"), "-1e999 is beyond float64"),
    "a seed twice": ('{"seed": 1,' + PLANS["none"].to_json()[1:], "key seed appears twice"),
    "a std twice": (
        PLANS["layers"].to_json().replace('"std"', '"std": 1.0, "std"'),
        "key std appears twice beside .*name",
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_not_even_json(text: str) -> None:
    given, message = TEXTS[text]
    with pytest.raises(ValueError, match=f"^not a plan: .*{message}"):
        Plan.from_json(given)


def test_deep_values_anywhere() -> None:
    """As deep as Python reads JSON, where what is wrong is said in a message."""
    for depth in (100, 300, 500, 700, 900, 950, 970, 980, 990, 2000):
        deep = "[" * depth + "]" * depth
        for key in ("seed", "parameters", "format", "other"):
            value = {**document("none"), key: "?"}
            with pytest.raises(ValueError, match="not a plan"):
                Plan.from_json(json.dumps(value).replace('"?"', deep))


@pytest.mark.parametrize("given", [None, b"{}", 3, {}])
def test_what_is_not_text(given: Any) -> None:
    with pytest.raises(TypeError, match="document must be a str"):
        Plan.from_json(given)


def test_a_file_is_named(tmp_path) -> None:
    for content, message in ((b"{", "not JSON"), (b"\xff", "not text in UTF-8")):
        (tmp_path / "some.json").write_bytes(content)
        with pytest.raises(ValueError, match=rf"some\.json: .*{message}"):
            Plan.load(tmp_path / "some.json")


def test_there_are_as_many_layers_as_can_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_form, "MOST", 4000)
    value = document("none")
    members = [{"name": own, "distribution": "constant", "value": 0.0} for own in "abcd"]
    layers = {"layers": "h", "first": 0, "last": 999, "parameters": members}
    value["parameters"] = [layers]
    plan = Plan.from_json(json.dumps(value))
    assert Plan.from_json(plan.to_json()) == plan
    assert len(plan) == 4000
    layers["last"] = 1000
    with pytest.raises(ValueError, match=r"4,004 parameters, but .* at most 4,000"):
        Plan.from_json(json.dumps(value))
    with pytest.raises(ValueError, match=r"4,001 parameters, but .* at most 4,000"):
        Plan({**plan, "one": Fill.normal()}).to_json()


# --- fuzz ------------------------------------------------------------------------------------------

OTHERS: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 3, 7, 1 << 62, 1 << 63, 10**12, HUGE, -HUGE),
    *(0.0, -0.0, 0.5, -1.5, 1e300, 5e-324, "", "x", "nan", "inf", "-inf", "1", "normal", "eye"),
    *([], [0], [1, 2], [[]], {}, {"x": 1}, {"name": "w"}, "h.0.w", "m.norm", "\ud800", "a\0b"),
]


WHERE = "parameters|parameter |aliases|seed|version|stream_version|format|key "


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a document but itself."""
    steps = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for step in steps:
        yield (*path, step)
        yield from nodes(value[step], (*path, step))


def mutations(whole: Any) -> Iterator[Any]:
    """Documents with one thing otherwise: another value, one gone, twice, more, or of another name."""
    text = json.dumps(whole)
    for path in nodes(whole):

        def otherwise(change: Callable[[Any, Any], None]) -> Any:
            value = json.loads(text)  # a copy
            change(at(value, path[:-1]), path[-1])  # noqa: B023
            return value

        for new in OTHERS:
            yield otherwise(lambda holder, key: holder.__setitem__(key, new))  # noqa: B023
        yield otherwise(lambda holder, key: holder.pop(key))
        if isinstance(path[-1], str):
            yield otherwise(lambda holder, key: holder.__setitem__(f"{key}s", holder.pop(key)))
            yield otherwise(lambda holder, key: holder.__setitem__("more", holder[key]))
        else:
            yield otherwise(lambda holder, key: holder.append(holder[key]))


EMPTY: list[tuple[str, Any]] = [("own", False), ("steps", [])]


def unfolded(whole: Any) -> dict[str, dict[str, Any]]:
    """What a document says of each parameter, with floats for numbers: read without any check."""

    def plain(fields: dict[str, Any]) -> dict[str, Any]:
        said = {}
        for key, value in fields.items():
            if key == "parts":
                if value:
                    said[key] = [plain(part) for part in value]
            elif not (key == "scale" and value == 1) and (key, value) not in EMPTY:
                is_number = type(value) in (int, float) or value in ("nan", "inf", "-inf")
                said[key] = str(float(value) + 0.0) if is_number else value
        return said

    found = {}
    for entry in whole["parameters"]:
        for index in range(entry["first"], entry["last"] + 1) if "layers" in entry else [None]:
            for member in entry["parameters"] if index is not None else [entry]:
                prefix = "" if index is None else f"{entry['layers']}.{index}."
                found[prefix + member["name"]] = {**plain(member), "name": ""}
    return found


@pytest.mark.parametrize("name", PLANS)
def test_a_changed_document_is_refused_or_says_all_of_it(name: str) -> None:
    """No other exception, no time, and nothing that was left out, added or taken for something else."""
    taken, refused = 0, 0
    for value in mutations(document(name)):
        text = json.dumps(value)
        start = time.process_time()
        try:
            plan = Plan.from_json(text)
        except ValueError as error:
            refused += 1
            said = str(error)
        else:
            taken += 1
            again = json.loads(plan.to_json())
            assert list(unfolded(again).items()) == list(unfolded(value).items()), text
            assert again["seed"] == value["seed"]
            assert again.get("aliases", {}) == value.get("aliases", {})
            assert Plan.from_json(plan.to_json()) == plan
            said = "not a plan: seed"
        assert time.process_time() - start < 1.0, text
        assert re.match(rf"not a plan: .*({WHERE})", said, re.DOTALL), said
    assert taken > 3
    assert refused > 100
