"""Times the GDPO kernel against numpy and, where installed, TRL's torch code, in one run."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from balcap_jax.bench import trl_formula
from balcap_jax.errors import UserError
from balcap_jax.rl.advantages import gdpo_advantages

Shape = tuple[int, int, int]

SHAPES: tuple[Shape, ...] = ((64, 8, 3), (512, 8, 3), (4096, 8, 3), (16384, 16, 3), (65536, 16, 3))
# Random rewards have no constant group, so all sides differ by float32 rounding only.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Result:
    """One shape.

    Attributes:
      batch, group, rewards: B, G, K.
      compile_seconds: first call of our kernel, over a later one; not part of `balcap_ms`.
      balcap_ms, numpy_ms, trl_ms: median milliseconds per call; None where TRL is not installed.
      max_difference: largest difference of any side from ours.
    """

    batch: int
    group: int
    rewards: int
    compile_seconds: float
    balcap_ms: float
    numpy_ms: float
    trl_ms: float | None
    max_difference: float

    @property
    def times_numpy(self) -> float:
        """How many times faster than numpy our kernel is."""
        return self.numpy_ms / self.balcap_ms

    @property
    def times_trl(self) -> float | None:
        """How many times faster than TRL our kernel is."""
        return None if self.trl_ms is None else self.trl_ms / self.balcap_ms


def run(shapes: Sequence[Shape] = SHAPES, *, repeats: int = 15) -> list[Result]:
    """Times every side on the same random rewards, a tenth of them without signal.

    The sides take turns, so that other work on the machine slows all of them alike. Inputs are
    already where each side wants them: no transfer is timed.

    Raises:
      UserError: `repeats` is below 1.
    """
    if repeats < 1:
        raise UserError(f"repeats={repeats} must be at least 1; 15 gives a steady median.")
    return [_run_shape(shape, repeats=repeats) for shape in shapes]


def table(results: Sequence[Result]) -> Table:
    """The results for people."""
    title = "GDPO advantages: median ms per call, x = times ours"
    rendered = Table(title=title, box=box.SIMPLE)
    for column in ("B x G x K", "ours", "numpy", "x", "TRL", "x", "compile", "differ"):
        rendered.add_column(column, justify="right", no_wrap=True)
    for result in results:
        rendered.add_row(
            f"{result.batch} x {result.group} x {result.rewards}",
            _digits(result.balcap_ms),
            _digits(result.numpy_ms),
            f"{result.times_numpy:.1f}",
            "-" if result.trl_ms is None else _digits(result.trl_ms),
            "-" if result.times_trl is None else f"{result.times_trl:.1f}",
            f"{result.compile_seconds:.1f} s",
            f"{result.max_difference:.0e}",
        )
    return rendered


def versions() -> str:
    """What was compared, on which devices."""
    sides = [f"jax {jax.__version__} on {jax.devices()[0].platform}", f"numpy {version('numpy')}"]
    if trl_formula.installed():
        sides.append(trl_formula.describe())
    return "; ".join(sides)


def run_and_print(
    *, json: bool = False, shapes: Sequence[Shape] = SHAPES, repeats: int = 15
) -> None:
    """`balcap bench advantages`: a table, or JSON for programs."""
    console = Console()
    results = run(shapes, repeats=repeats)
    if json:
        rows = [
            dataclasses.asdict(r) | {"times_numpy": r.times_numpy, "times_trl": r.times_trl}
            for r in results
        ]
        console.print_json(data={"versions": versions(), "results": rows})
    else:
        console.print(table(results))
        console.print(versions())
        if not trl_formula.installed():
            console.print("TRL is compared where it is installed: pip install 'balcap_jax[test]'.")


def numpy_gdpo(rewards: np.ndarray, *, eps: float = 1e-4) -> np.ndarray:
    """GDPO with unit weights in plain numpy, in the dtype of `rewards`: the reference to beat."""
    signal = ~np.isnan(rewards)
    values = np.where(signal, rewards, 0)
    count = np.maximum(signal.sum(axis=1, keepdims=True), 1)
    mean = values.sum(axis=1, keepdims=True) / count.astype(rewards.dtype)
    centred = np.where(signal, values - mean, 0)
    freedom = np.maximum(count - 1, 1).astype(rewards.dtype)
    std = np.sqrt((centred * centred).sum(axis=1, keepdims=True) / freedom)
    summed = (centred / (std + rewards.dtype.type(eps))).sum(axis=-1)
    valid = summed[signal.any(axis=-1)]
    whitened = (summed - valid.mean()) / (valid.std(ddof=1) + rewards.dtype.type(eps))
    return np.where(signal.any(axis=-1), whitened, 0)


def _run_shape(shape: Shape, *, repeats: int) -> Result:
    generator = np.random.default_rng(0)
    rewards = generator.random(shape, dtype=np.float32)
    rewards[generator.random(shape) < 0.1] = np.nan

    on_device = jax.device_put(rewards)
    sides: dict[str, Callable[[], object]] = {
        "balcap": lambda: jax.block_until_ready(gdpo_advantages(on_device)),
        "numpy": lambda: numpy_gdpo(rewards),
    }
    if trl_formula.installed():
        import torch

        formula = trl_formula.load("normalize_then_sum", weights=(1.0,) * shape[-1])
        tensor = torch.from_numpy(rewards)
        sides["trl"] = lambda: formula(tensor)

    first = {name: _seconds(side) for name, side in sides.items()}
    times = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            times[name].append(_seconds(side))
    median = {name: statistics.median(seconds) for name, seconds in times.items()}

    answers = {name: np.asarray(side()) for name, side in sides.items()}
    difference = max(float(np.abs(a - answers["balcap"]).max()) for a in answers.values())
    assert difference < TOLERANCE, f"the sides differ by {difference} at {shape}"
    return Result(
        *shape,
        compile_seconds=max(first["balcap"] - median["balcap"], 0.0),
        balcap_ms=1e3 * median["balcap"],
        numpy_ms=1e3 * median["numpy"],
        trl_ms=1e3 * median["trl"] if "trl" in median else None,
        max_difference=difference,
    )


def _digits(milliseconds: float) -> str:
    """Three significant digits, in few characters."""
    return f"{milliseconds:.3g}" if milliseconds < 100.0 else f"{milliseconds:.0f}"


def _seconds(side: Callable[[], object]) -> float:
    start = time.perf_counter()
    side()
    return time.perf_counter() - start
