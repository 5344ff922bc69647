from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from spinevision.hub.folder import ModelConfig, ModelFolderError, read_config


def write(folder: Path, content: object) -> Path:
    (folder / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_every_key_is_written_in_full_and_comes_back(tmp_path, config):
    data = config.to_dict()
    assert data == {
        "library": "spinevision",
        "format_version": 3,
        "library_version": "1.2.3",
        "model_type": "spinevision",
        "architectures": ["UNet"],
        "architecture": "UNet",
        "arguments": {"width": 8, "kernel": [3, 3], "norm": None},
        "labels": ["nerve"],
        "id2label": {"0": "background", "1": "nerve"},
        "label2id": {"background": 0, "nerve": 1},
        "ignore_index": 255,
        "preprocess": {"size": [256, 256], "mean": [0.485, 0.456, 0.406]},
        "threshold": 0.4,
        "temperature": 2.5,
        "threshold_rule": "the best of all",
        "dtype": "float32",
        "license": "cc-by-4.0",
        "provenance": {"patients": 3},
        "trained": True,
        "base_model": None,
    }
    assert read_config(write(tmp_path, data)) == config


FIRST_FORMAT = """
{
  "library": "spinevision", "format_version": 1, "library_version": "0.1.0", "architecture": "UNet",
  "arguments": {"width": 8, "kernel": [3, 3], "norm": null},
  "labels": ["nerve"], "id2label": {"0": "background", "1": "nerve"}, "label2id": {"background": 0, "nerve": 1},
  "ignore_index": 255, "preprocess": {"size": [256, 256], "mean": [0.485, 0.456, 0.406]},
  "threshold": 0.4, "temperature": 2.5, "threshold_rule": "the best of all", "dtype": "float32",
  "license": "cc-by-4.0", "provenance": {"patients": 3}
}
"""
"""As the first format was written, to the letter."""


def test_the_first_format_is_still_read(tmp_path, config):
    assert read_config(write(tmp_path, FIRST_FORMAT)) == replace(config, library_version="0.1.0", trained=True, base_model=None)
    with pytest.raises(ModelFolderError, match="unknown key 'treshold'"):
        read_config(write(tmp_path, {**json.loads(FIRST_FORMAT), "treshold": 1}))
    with pytest.raises(ModelFolderError, match="missing key threshold"):
        read_config(write(tmp_path, {key: value for key, value in json.loads(FIRST_FORMAT).items() if key != "threshold"}))


def test_before_the_third_format_there_was_one_funet(tmp_path, config):
    funet = {"architecture": "FUNet", "arguments": {"frames": 5, "width": 8}}
    whole = {"inter_frame_attention": True, "channel_attention": True}
    for version in (1, 2):
        data = {**config.to_dict(), **funet, "architectures": ["FUNet"], "format_version": version}
        assert read_config(write(tmp_path, data)).arguments == {"frames": 5, "width": 8, **whole}
        data |= {"architecture": "SpineCascade", "architectures": ["SpineCascade"], "arguments": {"segmenter": funet, "gate": 0.5}}
        assert read_config(write(tmp_path, data)).arguments["segmenter"]["arguments"] == {"frames": 5, "width": 8, **whole}
    now = {**config.to_dict(), **funet, "architectures": ["FUNet"]}
    assert read_config(write(tmp_path, now)).arguments == funet["arguments"]  # and the model will say what is missing


def test_multiclass_labels_are_their_own_table(config):
    data = replace(config, labels=("background", "bone", "disc"), threshold=None, threshold_rule=None).to_dict()
    assert data["id2label"] == {"0": "background", "1": "bone", "2": "disc"}
    assert data["threshold"] is None
    assert ModelConfig.from_dict(data).labels == ("background", "bone", "disc")


def test_the_configuration_keeps_no_reference_to_the_arguments_given(config):
    arguments = {"sizes": [1, 2]}
    made = replace(config, arguments=arguments)
    arguments["sizes"].append(3)
    assert made.arguments == {"sizes": [1, 2]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "os.system"}, "architecture must be the name of a class"),
        ({"architecture": 5}, "architecture"),
        ({"arguments": [1]}, "arguments must be a dictionary"),
        ({"arguments": {"loss": object()}}, "arguments.loss is <object"),
        ({"arguments": {3: 1}}, "text keys"),
        ({"arguments": {"rate": float("nan")}}, "arguments.rate is nan"),
        ({"arguments": {"rate": [float("inf")]}}, "arguments.rate[0] is inf"),
        ({"arguments": {"name": "\ud800"}}, "Unicode"),
        ({"preprocess": None}, "preprocess must be a dictionary"),
        ({"provenance": []}, "provenance must be a dictionary"),
        ({"labels": "nerve"}, "labels must be a list"),
        ({"labels": ()}, "labels is empty"),
        ({"labels": ("nerve", 3)}, "class name"),
        ({"labels": ("bone", "bone")}, "repeated: bone"),
        ({"threshold": 1.0}, "between 0 and 1"),
        ({"threshold": True}, "between 0 and 1"),
        ({"threshold": "0.5"}, "between 0 and 1"),
        ({"threshold": None}, "a model with one label needs a number"),
        ({"threshold": None, "labels": ("background", "bone")}, "threshold_rule is 'the best of all', but there is no threshold"),
        ({"threshold_rule": ""}, "threshold_rule must be a text"),
        ({"threshold_rule": 3}, "threshold_rule must be a text"),
        ({"temperature": None}, "temperature must be a number from 0.05 to 20, found None"),
        ({"temperature": True}, "temperature must be a number"),
        ({"temperature": "1"}, "temperature must be a number"),
        ({"temperature": 0.049}, "temperature must be a number"),
        ({"temperature": 20.1}, "temperature must be a number"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"dtype": "float64"}, "float32, float16, bfloat16"),
        ({"dtype": ["float32"]}, "dtype must be one of"),
        ({"license": ""}, "license must be a text"),
        ({"license": 3}, "license must be a text"),
        ({"library_version": None}, "library_version must be a text"),
        ({"trained": None}, "trained must be true or false, found None"),
        ({"base_model": "org/name"}, "base_model must be org/name@commit or null"),
        ({"base_model": 3}, "base_model must be"),
        ({"base_model": "../x/y@" + 40 * "0"}, "base_model must be"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(config, changes, said):
    with pytest.raises(ModelFolderError) as refused:
        replace(config, **changes)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"library": "timm"}, "not a spinevision model"),
        ({"format_version": 4}, "upgrade spinevision"),
        ({"format_version": 4, "new_key": 1}, "upgrade spinevision"),
        ({"model_type": "bert"}, "model_type is 'bert', but the rest makes it 'spinevision'"),
        ({"format_version": 0}, "format_version must be"),
        ({"format_version": True}, "format_version must be"),
        ({"format_version": "1"}, "format_version must be"),
        ({"treshold": 0.5}, "unknown key 'treshold' (nearest: threshold)"),
        ({"labels": None}, "labels must be a list"),
        ({"id2label": {"0": "background", "1": "vessel"}}, "id2label is"),
        ({"label2id": {"nerve": 0}}, "label2id is"),
        ({"ignore_index": 0}, "ignore_index is 0"),
        ({"arguments": {"a": [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]}}, "inside each other"),
    ],
)
def test_a_file_that_differs_is_refused_with_its_name(tmp_path, config, changes, said):
    with pytest.raises(ModelFolderError) as refused:
        read_config(write(tmp_path, config.to_dict() | changes))
    assert said in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path / "config.json"))


@pytest.mark.parametrize(
    "key", ["architecture", "labels", "threshold", "temperature", "threshold_rule", "id2label", "ignore_index"]
)
def test_a_missing_key_is_named(tmp_path, config, key):
    data = config.to_dict()
    del data[key]
    with pytest.raises(ModelFolderError, match=f"missing key {key}"):
        read_config(write(tmp_path, data))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[1]", "not a spinevision model"),
        ("null", "not a spinevision model"),
        ('{"model_type": "segformer"}', "not a spinevision model"),
        ('{"library": "spinevision", "threshold": NaN}', "threshold is nan"),
        ('{"library": "spinevision", "threshold": 1e999}', "threshold is inf"),
        (" " * (2**20 + 1), "larger than 1048576 bytes"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, content, said):
    with pytest.raises(ModelFolderError) as refused:
        read_config(write(tmp_path, content))
    assert said in str(refused.value)
    assert len(str(refused.value)) < 500


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelFolderError, match="cannot be read as JSON"):
        read_config(tmp_path)


def test_the_hub_client_is_not_imported_before_it_is_needed():
    rooms = ", ".join(f"spinevision.hub.{room}" for room in ("folder", "transport", "card"))
    code = f"import sys, {rooms}; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
