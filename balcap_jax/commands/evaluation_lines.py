"""What `balcap eval` prints of one benchmark: the numbers with their intervals, counts, cost."""

from rich import box
from rich.markup import escape
from rich.table import Table

from balcap_jax.evaluation import results


def table(found: results.Results) -> Table:
    """Numbers of one benchmark with their intervals."""
    record = found.record
    rendered = Table(
        title=escape(f"{record['title']}: {record['model']}"), box=box.SIMPLE, title_justify="left"
    )
    for column in ("", "value", "95 % interval"):
        rendered.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for name, value in record["values"].items():
        bounds = f"{_number(value['low'])} to {_number(value['high'])}"
        rendered.add_row(name.replace("_", " "), _number(value["value"]), bounds)
    return rendered


def lines(found: results.Results) -> list[str]:
    """What else there is to say: counts, words, cost."""
    record = found.record
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in
                       record["counts"].items())  # fmt: skip
    words = record["words"]
    said = [counts, f"{words['split']:.1f} words ({words['arena']:.1f} by single blanks)"]
    if (share := record.get("flip_share")) is not None:
        said.append(f"{100 * share:.1f} % of verdicts change with the order of the captions")
    if between := record.get("strict_between"):
        said.append(
            f"strict is between {_number(between[0])} and {_number(between[1])}, whatever the "
            f"questions without an answer had come to ({record.get('failures', '')})"
        )
    if spent := record.get("spent"):
        price = f", price {spent['price']:.4f}" if spent["price"] else ""
        each = f", {spent['cpu_ms_per_call']:.2f} ms of CPU per call" if spent["calls"] else ""
        said.append(
            f"{spent['calls']:.0f} calls, {spent['cache_hits']:.0f} answers from the cache, "
            f"{spent['prompt_tokens']:.0f} + {spent['completion_tokens']:.0f} tokens{price}, "
            f"{spent['seconds']:.1f} s{each}"
        )
    return said


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.2f}"
