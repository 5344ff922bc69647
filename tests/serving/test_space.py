"""What stands behind the page for trying a model: uploads, answers, texts and clips, without Gradio."""

from __future__ import annotations

import argparse
import csv
import struct
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from red_model import RedClipModel, RedModel, red_frame

from spinevision.labels import LabelSpace
from spinevision.models.resnet import ResNetClassifier
from spinevision.models.unet import UNet
from spinevision.preprocess import Preprocess
from spinevision.serving import limits
from spinevision.serving.space import answers, clips, uploads, words
from spinevision.serving.space.uploads import Upload, read_image, sentence_of
from spinevision.structures import MaskPrediction
from spinevision.video import VideoError, VideoWriter, read_mask_video

CLASSES = ["background", "nerve", "bleeding"]


def thirds(height: int = 48, width: int = 60) -> np.ndarray:
    """Ids: nerve in the left third, nothing in the middle, bleeding on the right."""
    ids = np.zeros((height, width), np.uint8)
    ids[:, : width // 3], ids[:, -(width // 3) :] = 1, 2
    return ids


def write_clip(path: Path, count: int, rate: float = 25) -> Path:
    with VideoWriter(path, rate=rate) as video:
        for _ in range(count):
            video.write(red_frame(thirds()))
    return path


# ------------------------------------------------------------------------------------------------------------------ uploads


def test_an_upload_keeps_its_name_and_gives_a_harmless_one_to_results(tmp_path: Path) -> None:
    file = tmp_path / "f.png"
    file.write_bytes(b"x")
    upload = Upload.of({"path": str(file), "orig_name": "../../<b>my scan</b> ü.png"})
    assert upload == Upload(file, "b> ü.png")
    assert Upload(file, "../=1+1 <img>.png").stem == "1-1-img"
    assert Upload(file, "神経.png").stem == "frame"
    assert Upload.of({"path": str(file)}) == Upload(file, "f.png")
    assert Upload.of(None) is None


@pytest.mark.parametrize("payload", ["/etc/hostname", {}, {"path": None}, {"path": 3}, {"path": "/nothing/here"}, []])
def test_what_is_no_upload_is_refused(payload: object) -> None:
    with pytest.raises(ValueError, match="not an uploaded file"):
        Upload.of(payload)


def test_a_picture_is_measured_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_LOGITS", 3 * 100 * 100)
    monkeypatch.setattr(uploads, "read_frame", lambda upload: pytest.fail("it was decoded"))
    Image.new("RGB", (101, 100)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match=r"large\.png is 101x100 pixels"):
        read_image(Upload(tmp_path / "large.png", "large.png"), RedModel(CLASSES))
    assert uploads.image_limits(RedModel(CLASSES)) == "At most 100 MB and 0.01 million pixels."


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", "half"])
def test_a_broken_picture_is_one_sentence_without_the_servers_path(tmp_path: Path, content: bytes | str) -> None:
    file = tmp_path / "secret-folder.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:2000] if isinstance(content, str) else content)
    upload = Upload(file, "my frame.png")
    with pytest.raises(ValueError) as refused:
        read_image(upload, RedModel(CLASSES))
    sentence = sentence_of(refused.value, upload)
    assert sentence.startswith("my frame.png ") and sentence.endswith(".")
    assert str(tmp_path) not in sentence and "secret" not in sentence and "\n" not in sentence


def test_an_error_that_was_not_foreseen_says_little() -> None:
    upload = Upload(Path("/srv/x.png"), "x.png")
    assert sentence_of(KeyError("/srv/secret"), upload) == "x.png cannot be used (KeyError); try another."
    assert (
        sentence_of(RuntimeError("CUDA out of memory. Tried"), upload) == "There is not enough memory for x.png; make it smaller."
    )
    for error in (
        ValueError("at /srv/secret"),
        OSError(2, "no", "/srv/secret"),
        struct.error("/srv/secret"),
        av.error.ExternalError(1, "/srv/secret"),
    ):
        assert "/srv" not in sentence_of(error, upload) and type(error).__name__ in sentence_of(error, upload)
    assert sentence_of(answers.RefusedError("the model finds none"), None) == "The model finds none."
    assert sentence_of(VideoError("/srv/x.png holds no frame"), upload) == "x.png holds no frame."


# ------------------------------------------------------------------------------------------------------------------ answers


def test_a_class_that_is_switched_off_leaves_the_frame_as_it_is() -> None:
    frame, ids = red_frame(thirds()), thirds()
    answer = answers.ask(RedModel(CLASSES), frame)
    assert isinstance(answer, MaskPrediction)
    assert answer.probability is None and np.array_equal(answer.mask, ids)
    both, one, none = (np.asarray(answers.draw(answer, names, 1.0)) for names in (["nerve", "bleeding"], ["nerve"], []))
    labels = LabelSpace(tuple(CLASSES))
    assert np.array_equal(none, frame)
    assert (both[ids == 1] == labels.color(1)).all() and (both[ids == 2] == labels.color(2)).all()
    assert (one[ids == 1] == labels.color(1)).all() and np.array_equal(one[ids != 1], frame[ids != 1])


def test_the_numbers_are_those_of_the_mask() -> None:
    model = RedModel(CLASSES)
    answer = answers.ask(model, red_frame(thirds()))
    text = words.numbers(model, answer)
    assert text.count("33.3 %") == 2 and "nerve" in text and "bleeding" in text


def test_a_class_that_is_found_is_never_nothing() -> None:
    ids = np.zeros((120, 120), np.uint8)
    ids[60, 60] = 1
    model = RedModel(CLASSES)
    answer = answers.ask(model, red_frame(ids))
    assert isinstance(answer, MaskPrediction) and (answer.mask == 1).any() and not (answer.mask == 2).any()
    text = words.numbers(model, answer)
    assert ">&lt; 0.1 %<" in text and ">not found<" in text and "0.0 %<" not in text


def test_a_classifier_tells_probabilities_and_shows_the_frame() -> None:
    model = ResNetClassifier(["nerve", "bone"], **ResNetClassifier.SMALL)
    frame = red_frame(thirds())
    answer = answers.ask(model, frame)
    chances = model.predict(frame).probability
    assert np.array_equal(np.asarray(answers.draw(answer, ["nerve"], 1.0)), frame)
    text = words.numbers(model, answer)
    assert all(f"{100 * chance:.1f} %" in text for chance in chances.values())
    picture, sentences = answers.full_gradient(model, frame, "bone")
    assert picture.size == (60, 48) and any("logit of bone" in sentence for sentence in sentences)


def test_a_segmenter_is_explained_or_refuses_in_a_sentence() -> None:
    model = UNet(CLASSES, width=4, preprocess=Preprocess((32, 32)))
    picture, sentences = answers.full_gradient(model, red_frame(thirds()), "nerve")
    assert picture.size == (60, 48)
    assert any("FullGrad's terms" in each for each in sentences) and not any("Grad-CAM" in each for each in sentences)
    with pytest.raises(answers.RefusedError, match="has no class 'bone'"):
        answers.full_gradient(model, red_frame(thirds()), "bone")


# -------------------------------------------------------------------------------------------------------------------- words


def test_nothing_that_comes_from_a_model_or_a_file_is_html() -> None:
    evil = "<img src=x onerror=alert(1)>${7*7}{{8*8}}`"
    model = RedModel(["background", evil, '"&</script>'])
    answer = answers.ask(model, red_frame(thirds()))
    for text in (words.header(model, evil), words.numbers(model, answer), words.note(evil), words.sentences([evil])):
        assert "<img" not in text and "</script" not in text
        assert not set("{}$`") & set(text)
    assert "&lt;img src=x onerror=alert(1)&gt;" in words.header(model, evil)
    assert evil not in words.style(model)


def test_the_header_names_model_classes_commit_and_what_it_is_not() -> None:
    from spinevision.hub.transport import HubInfo

    model = RedClipModel(["nerve"])
    assert "nerve" in words.header(model, "m") and "clips of 3 frames" in words.header(model, "m")
    assert "Not a medical device" in words.header(model, "m") and "huggingface.co" not in words.header(model, "m")
    model.hub_info = HubInfo("org/m", "c" * 40)
    assert f'href="https://huggingface.co/org/m/tree/{"c" * 40}"' in words.header(model, "org/m")


# -------------------------------------------------------------------------------------------------------------------- clips


@pytest.mark.parametrize("kind", [RedModel, RedClipModel])
def test_a_clip_gives_overlay_table_timeline_and_masks(tmp_path: Path, kind: type) -> None:
    file, seen = write_clip(tmp_path / "a.mp4", 6), list[tuple[int, int | None]]()
    result = clips.predict_clip(kind(CLASSES), Upload(file, "my clip.mp4"), tmp_path / "out", lambda *done: seen.append(done))
    assert (result.frames, result.broke_off) == (6, None)
    assert seen == [(done, 6) for done in range(1, 7)]
    table = [*csv.DictReader((tmp_path / "out" / "frames.csv").open())]
    assert [float(row["nerve"]) for row in table] == pytest.approx([1 / 3] * 6, abs=0.05)
    masks = [*read_mask_video(tmp_path / "out" / "masks.mkv")]
    assert len(masks) == 6 and (masks[0] == thirds()).mean() > 0.9
    assert result.overlay is not None and result.overlay.exists()
    assert Image.open(result.timeline).size[0] > 500


def test_a_clip_through_a_classifier_gives_probabilities(tmp_path: Path) -> None:
    model = ResNetClassifier(["nerve", "bone"], **ResNetClassifier.SMALL)
    result = clips.predict_clip(model, Upload(write_clip(tmp_path / "a.mp4", 3), "a.mp4"), tmp_path / "out", lambda *_: None)
    assert (result.frames, result.overlay, [path.name for path in result.tables]) == (3, None, ["frames.csv"])
    rows = [*csv.DictReader((tmp_path / "out" / "frames.csv").open())]
    assert [*rows[0]] == ["frame", "time_s", "nerve", "bone"]
    assert all(0 <= float(row["bone"]) <= 1 for row in rows)


def predict(file: Path, name: str, model: object = None) -> clips.ClipResult:
    return clips.predict_clip(model or RedModel(CLASSES), Upload(file, name), file.parent / "out", lambda *_: None)  # type: ignore[arg-type]


def test_clips_beyond_the_limits_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_clip(tmp_path / "a.mp4", 10, rate=10)
    for limit, value, said in [
        ("CLIP_S", 0.3, "1 seconds long"),
        ("CLIP_FRAMES", 9, "10 frames"),
        ("CLIP_PIXELS", 47 * 60, "60x48"),
        ("MAX_LOGITS", 47 * 60 * 3, "60x48"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(limits if limit == "MAX_LOGITS" else uploads, limit, value)
            with pytest.raises(VideoError, match=f"^c.mp4 (is|has) {said}"):
                try:
                    predict(file, "c.mp4")
                except VideoError as error:
                    raise VideoError(str(error).replace(str(file), "c.mp4")) from error


@pytest.mark.parametrize("classifier", [False, True])
def test_a_clip_longer_than_it_says_ends_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classifier: bool) -> None:
    monkeypatch.setattr(uploads, "CLIP_FRAMES", 4)
    monkeypatch.setattr(clips, "check_clip", lambda model, info, name: None)  # its header said less
    model = ResNetClassifier(["nerve"], **ResNetClassifier.SMALL) if classifier else None
    result = predict(write_clip(tmp_path / "a.mp4", 10), "c.mp4", model)
    assert result.frames == 4
    assert result.broke_off is not None and result.broke_off.startswith("c.mp4 goes on after")


@pytest.mark.slow
@pytest.mark.parametrize("classifier", [False, True])
def test_a_clip_ends_when_nobody_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classifier: bool) -> None:
    model = ResNetClassifier(["nerve"], **ResNetClassifier.SMALL) if classifier else RedModel(CLASSES)
    folders: list[Path] = []
    work = clips.predict_clip
    monkeypatch.setattr(
        clips,
        "predict_clip",
        lambda model, upload, output, report: (folders.append(output), work(model, upload, output, report))[1],
    )
    alone, closing = threading.Lock(), threading.Event()
    file = write_clip(tmp_path / "a.mp4", 200)
    for ending in ("leave", "close"):
        run = clips.ClipRun(model, Upload(file, "c.mp4"), alone, closing)
        check = run._report
        reached = threading.Event()
        monkeypatch.setattr(run, "_report", lambda done, total, check=check, reached=reached: (reached.set(), check(done, total)))
        run.start()
        assert reached.wait(10) and alone.locked()
        run.leave() if ending == "leave" else closing.set()
        assert run.wait(5) and isinstance(run.error, clips.StoppedError) and run.result is None
        assert 1 <= run._progress[0] < 200 and run.in_words.endswith("of 200 frames")
        end_s = time.monotonic() + 5
        while folders[-1].exists() and time.monotonic() < end_s:
            time.sleep(0.01)
        assert not folders[-1].exists() and not alone.locked()


def test_a_playlist_is_not_opened(tmp_path: Path) -> None:
    write_clip(tmp_path / "private.mp4", 3)
    (tmp_path / "a.m3u8").write_text(f"#EXTM3U\n#é\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/private.mp4\n#EXT-X-ENDLIST\n")
    with pytest.raises(VideoError, match=r"is not a video that can be read"):
        predict(tmp_path / "a.m3u8", "c.mp4")


def test_a_damaged_clip_gives_what_came_before(tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    rng = np.random.default_rng(0)
    with VideoWriter(file, rate=25) as video:
        for _ in range(40):
            video.write(rng.integers(0, 255, (48, 64, 3), np.uint8))
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    result = predict(file, "c.mp4")
    assert 5 < result.frames < 40
    assert result.broke_off is not None and result.broke_off.startswith("c.mp4 is damaged or cut off")
    assert result.overlay is not None


# ------------------------------------------------------------------------------------------------------------------ command


def test_the_command_names_a_local_model_without_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spinevision.commands import space as command
    from spinevision.serving import space

    shown: dict[str, object] = {}
    monkeypatch.setattr(
        space, "show_space", lambda model, name, **more: (shown.update(kind=type(model).__name__, name=name, **more), "closed")[1]
    )
    UNet(["nerve"], width=4).save_pretrained(tmp_path / "private" / "my-model", license="mit")
    parser = argparse.ArgumentParser()
    command.configure(parser)
    words_given = [str(tmp_path / "private" / "my-model"), "--port", "0", "--example", "a.png", "b.png", "--device", "cpu"]
    assert command.run(parser.parse_args(words_given)) == "closed"
    assert (shown["kind"], shown["name"], shown["host"], shown["port"]) == ("UNet", "my-model", "127.0.0.1", 0)
    assert shown["examples"] == [Path("a.png"), Path("b.png")]
