"""Write the measured tables into README.md and the model cards, between the marks that name their result file.

`<!-- measured: NAME -->` stands for all of benchmarks/results/NAME.json, `<!-- measured: NAME:ROW -->` for the cases of
one row, or of all rows ROW/...; the table ends at `<!-- end -->`. What a table looks like is up to the function that
`TABLES` names.

python benchmarks/readme.py            # rewrite the tables
python benchmarks/readme.py --check    # only say whether they agree with the results; exit 1 if not
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import causal_video_quality_tables
import causal_video_tables
import classifiers_table
import emoji_quality
import leaderboard_tables
import lina_tables
import masked_cost_tables
import masked_tables
import next_frequency_quality_tables
import next_frequency_tables
import sensitivity_table
from counterfactual_tables import bar_table, bars
from report import environment_line, read_result

ROOT = Path(__file__).parent.parent
PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "metrics.md",
    *sorted((ROOT / "gendiff" / "checkpoints").glob("*/README.md")),
)
MARK = re.compile(r"(<!-- measured: (?P<name>[\w-]+)(?::(?P<row>[\w.-]+))? -->\n).*?(<!-- end -->)", re.DOTALL)
TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "causal-video": causal_video_tables.result_table,
    "causal-video-quality": causal_video_quality_tables.result_table,
    "classifiers": classifiers_table.result_table,
    "emoji": emoji_quality.result_table,
    "leaderboard": leaderboard_tables.result_table,
    "lina": lina_tables.result_table,
    "masked-generation": masked_tables.result_table,
    "masked-generation-cost": masked_cost_tables.result_table,
    "next-frequency": next_frequency_tables.result_table,
    "next-frequency-quality": next_frequency_quality_tables.result_table,
    "sensitivity": sensitivity_table.result_table,
    "counterfactual": lambda result: bar_table(bars(result)),
}
"""Beginning of a result's name -> what turns such a result into Markdown; the longest beginning wins."""


def filled(text: str, results: Path) -> str:
    """`text` with the table of every mark as its result file says.

    Raises:
        ValueError: a mark names a result or a row that is not there, or a result that no function makes a table of.
    """

    def table(match: re.Match[str]) -> str:
        path = results / f"{match['name']}.json"
        result = read_result(path)
        if result is None:
            raise ValueError(f"a page names {path}, which does not exist.")
        if match["row"] is not None:
            result = _row(result, match["row"], path)
        shown = table_function(match["name"])(result)
        return f"{match[1]}{shown}\n\n{environment_line(result['env'])}\n{match[match.lastindex or 0]}"

    return MARK.sub(table, text)


def table_function(name: str) -> Callable[[Mapping[str, Any]], str]:
    """What makes the Markdown table of the result called `name`.

    Raises:
        ValueError: no entry of `TABLES` fits.
    """
    fitting = [beginning for beginning in TABLES if name == beginning or name.startswith(f"{beginning}-")]
    if not fitting:
        raise ValueError(f"no table for the result {name!r}; known: {', '.join(TABLES)}.")
    return TABLES[max(fitting, key=len)]


def _row(result: dict[str, Any], row: str, path: Path) -> dict[str, Any]:
    """The result with the cases of `row` and of rows ROW/... alone; a timed case goes by its `id`."""
    names = [str(case.get("row", case.get("id"))) for case in result["cases"]]
    cases = [
        case for case, name in zip(result["cases"], names, strict=True) if name == row or name.startswith(f"{row}/")
    ]
    if not cases:
        known = ", ".join(sorted(set(names)))
        raise ValueError(f"a page names the row {row!r} of {path}, which has only {known or 'no rows'}.")
    return {**result, "cases": cases}


def main() -> None:
    """Rewrite or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args()
    results = Path(__file__).parent / "results"
    old = {page: page.read_text(encoding="utf-8") for page in PAGES}
    new = {page: filled(text, results) for page, text in old.items()}
    changed = {page: text for page, text in new.items() if text != old[page]}
    if options.check and changed:
        sys.exit(f"{', '.join(map(str, changed))} differ from benchmarks/results: run python benchmarks/readme.py")
    for page, text in changed.items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
