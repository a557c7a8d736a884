"""metrics.jsonl first, then every logger that is asked for: names or objects of a user."""

import io
import json

import numpy as np
import pytest
import tensorboard_events
from PIL import Image

from balcap_jax.errors import UserError
from balcap_jax.reporting.rows import caption_row
from balcap_jax.runs.loggers import Logger, TensorBoardLogger, make_loggers
from balcap_jax.runs.logs import RHO_EDGES, MetricsLog, NoLog

NAN = float("nan")


class Own:
    """A user's logger with all there can be."""

    def __init__(self):
        self.calls = []

    def log(self, step, row):
        self.calls.append(("log", step, dict(row)))

    def log_samples(self, step, rows, images):
        self.calls.append(("log_samples", step, len(rows), [image.size for image in images]))

    def truncate_to(self, step):
        self.calls.append(("truncate_to", step))

    def close(self):
        self.calls.append(("close",))


class Least:
    """A user's logger with what there must be."""

    def __init__(self):
        self.rows = []

    def log(self, step, row):
        self.rows.append((step, row))


def sample(id, caption="A red circle.", precision=0.5):
    return caption_row(
        id=id, caption=caption, reference="A circle | a star.", verdict=None, units=(), rho=1.25,
        rewards={"precision": precision, "recall": 1.0},
    )  # fmt: skip


def picture(width, height, color="red"):
    return Image.new("RGB", (width, height), color)


def refusal(wanted, folder):
    with pytest.raises(UserError) as error:
        make_loggers(wanted, folder, config={})
    return str(error.value)


# ---- which


def test_names_and_objects_in_their_order(tmp_path):
    own = Least()
    loggers = make_loggers([own, "tensorboard"], tmp_path, config={})
    assert loggers[0] is own
    assert isinstance(loggers[1], TensorBoardLogger)
    assert all(isinstance(logger, Logger) for logger in loggers)
    assert make_loggers([], tmp_path, config={}) == []
    assert not list(tmp_path.iterdir())  # nothing is written before the first row


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["comet"], "loggers has 'comet', known are tensorboard, wandb"),
        (["jsonl"], "metrics.jsonl is always written"),
        (["tensorboard", "tensorboard"], "'tensorboard' twice"),
        ([7], "loggers has 7, which is neither a name nor an object with a method log(step, row)"),
        ([Least], "which is neither a name nor an object"),  # the class, not an object of it
    ],
)
def test_what_is_no_logger(tmp_path, wanted, message):
    assert message in refusal(wanted, tmp_path)


# ---- the log of a run


def test_every_logger_gets_every_call_that_it_has_a_method_for(tmp_path):
    own, least = Own(), Least()
    log = MetricsLog(tmp_path, loggers=[own, least])
    row = {"loss": 0.5, "kl": NAN}
    log.truncate_to(4)
    log.log(5, row)
    assert log.takes_samples
    log.log_samples(5, [sample("a"), sample("a"), sample("b")], [picture(8, 4), picture(4, 4)])
    log.close()
    log.close()
    assert own.calls == [
        ("truncate_to", 4), ("log", 5, row), ("log_samples", 5, 3, [(8, 4), (4, 4)]), ("close",),
    ]  # fmt: skip
    assert least.rows == [(5, row)]
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 5, "loss": 0.5, "kl": None,
    }  # fmt: skip
    assert not (tmp_path / "tensorboard").exists()


def test_tensorboard_is_the_default(tmp_path):
    log = MetricsLog(tmp_path)
    log.log(1, {"loss": 0.5})
    log.close()
    assert ("loss", 1) in tensorboard_events.values(tmp_path / "tensorboard")


def test_pictures_are_wanted_only_where_they_are_shown(tmp_path):
    assert not MetricsLog(tmp_path, loggers=[Least()]).takes_samples
    assert MetricsLog(tmp_path, loggers=[TensorBoardLogger(tmp_path)]).takes_samples
    assert not NoLog().takes_samples


def test_the_row_is_on_disk_before_a_logger_sees_it(tmp_path):
    class Reader(Least):
        def log(self, step, row):
            self.rows.append((tmp_path / "metrics.jsonl").read_text())

    reader = Reader()
    MetricsLog(tmp_path, loggers=[reader]).log(1, {"loss": 1.0})
    assert reader.rows == ['{"step": 1, "loss": 1.0}\n']


@pytest.mark.parametrize("method", ["log", "log_samples", "truncate_to", "close"])
def test_a_failing_logger_of_a_user_is_named(tmp_path, method):
    def fail(*_):
        raise RuntimeError("no\nroute")

    own = Own()
    setattr(own, method, fail)
    log = MetricsLog(tmp_path, loggers=[own])
    calls = {
        "log": lambda: log.log(7, {"loss": 1.0}),
        "log_samples": lambda: log.log_samples(7, [], []),
        "truncate_to": lambda: log.truncate_to(7),
        "close": log.close,
    }
    with pytest.raises(UserError) as error:
        calls[method]()
    step = 0 if method == "close" else 7
    assert (
        f"The logger Own failed in {method} at step {step} (RuntimeError: no route); correct"
        in str(error.value)
    )
    log.close()  # also after a failed close, and then without asking again


def test_the_row_of_a_failing_logger_is_kept(tmp_path):
    class Failing:
        def log(self, step, row):
            raise KeyError("loss")

    log = MetricsLog(tmp_path, loggers=[Failing()])
    with pytest.raises(UserError, match="Failing failed in log at step 3"):
        log.log(3, {"words": 1.0})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 3, "words": 1.0}


# ---- TensorBoard


def test_tensorboard_numbers_and_histograms(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.log(3, {"reward/recall/mean": 0.25, "kl": NAN, "rho/hist": [0, 0, 0, 1, 1] + 6 * [0]})
    logger.close()
    logger.close()
    found = tensorboard_events.values(tmp_path / "tensorboard")
    assert found["reward/recall/mean", 3].simple_value == 0.25
    assert ("kl", 3) not in found  # a gap
    histogram = found["rho/hist", 3].histo
    assert histogram.num == 2
    assert list(histogram.bucket_limit[:-1]) == list(RHO_EDGES)
    # the middles of (0.75, 1] and (1, 1.25]: 0.875 + 1.125
    assert histogram.sum == 2.0


def test_tensorboard_tables_with_pictures(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    rows = [
        sample("scene-7", "A *bold* <b>circle</b> | star\nand `code`.", precision=NAN),
        sample("scene-7"),
        sample("scene-8"),
    ]
    logger.log_samples(10, rows, [picture(64, 48, (255, 0, 0)), picture(2048, 1024, (0, 0, 255))])
    logger.close()
    found = tensorboard_events.values(tmp_path / "tensorboard")
    pictures = [found[f"samples/{place}", 10].image for place in (1, 2)]
    assert [(image.width, image.height) for image in pictures] == [(64, 48), (512, 256)]
    colors = [
        np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))[5, 5] for image in pictures
    ]
    np.testing.assert_array_equal(colors, [(255, 0, 0), (0, 0, 255)])
    (tag,) = {tag for tag, _ in found if tag.startswith("samples/captions")}
    lines = found[tag, 10].tensor.string_val[0].decode().split("\n")
    assert lines[0] == "| image | id | caption | precision | recall | words | rho | reference |"
    assert lines[1] == "| --- | --- | --- | --- | --- | --- | --- | --- |"
    assert lines[2] == (
        r"| samples/1 | scene\-7 | A \*bold\* &lt;b&gt;circle&lt;/b&gt; \| star and \`code\`. "
        r"| – | 1 | 7 | 1.25 | A circle \| a star. |"
    )
    assert [line[:12] for line in lines[3:]] == ["| samples/1 ", "| samples/2 "]


def test_tensorboard_forgets_what_is_made_anew(tmp_path):
    first = TensorBoardLogger(tmp_path)
    for step in (1, 2, 3):
        first.log(step, {"loss": 1.0})
    first.truncate_to(1)  # in the same process or a later one
    first.log(2, {"loss": 2.0})
    first.close()
    starts = [
        event.step
        for event in tensorboard_events.events(tmp_path / "tensorboard")
        if event.HasField("session_log")
    ]
    assert starts == [2]
    assert tensorboard_events.values(tmp_path / "tensorboard")["loss", 2].simple_value == 2.0


def test_tensorboard_on_a_disk_that_refuses(tmp_path):
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="Cannot write .*tensorboard"):
        TensorBoardLogger(tmp_path).log(1, {"loss": 1.0})
