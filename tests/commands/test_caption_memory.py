"""`balcap caption` of many large photos: they are never in memory together."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

PHOTOS, SIZE = 40, (4000, 3000)
MOST = 1200  # MB: Python, JAX, the compiler, and eight photos at their final size

CAPTION = """
import sys
from balcap_jax.cli.main import main

code = main(["caption", *sys.argv[1:], "--max-new-tokens", "8"])
# Not getrusage, which counts the process that this one was forked from.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print("peak", int(status["VmHWM"].split()[0]) // 1024)
sys.exit(code)
"""


def photo():
    """The bytes of a JPEG with as much in it as a camera's."""
    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(0, 256, (75, 100, 3), np.uint8))
    image = rough.resize(SIZE, Image.Resampling.BICUBIC)
    grain = Image.effect_noise(SIZE, 24).convert("RGB")
    buffer = io.BytesIO()
    Image.blend(image, grain, 0.2).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_forty_photos_of_12_megapixels_fit_in_little_memory(tmp_path):
    data = photo()
    assert len(data) > 2_000_000
    paths = [tmp_path / f"{i}.jpg" for i in range(PHOTOS)]
    for i, path in enumerate(paths):  # a comment behind the start of the image: no two are equal
        path.write_bytes(data[:2] + b"\xff\xfe\x00\x03" + bytes([i]) + data[2:])
    # As users start it: the flags of the tests change what compiling takes.
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-c", CAPTION, *map(str, paths)]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    *captions, peak = run.stdout.splitlines()
    assert [line.partition(": ")[0] for line in captions] == list(map(str, paths))
    assert int(peak.removeprefix("peak ")) < MOST
