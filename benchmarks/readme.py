"""Write the measured tables into README.md and the model cards, between the marks that name their result file.

python benchmarks/readme.py            # rewrite the tables
python benchmarks/readme.py --check    # only say whether they agree with the results; exit 1 if not
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from counterfactual_tables import bar_table, bars
from report import environment_line, read_result

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "gendiff" / "checkpoints").glob("*/README.md")))
MARK = re.compile(r"(<!-- measured: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, results: Path) -> str:
    """`text` with the table of every mark as its result file says.

    Raises:
        ValueError: a mark names a result that is not there.
    """

    def table(match: re.Match[str]) -> str:
        path = results / f"{match['name']}.json"
        result = read_result(path)
        if result is None:
            raise ValueError(f"a page names {path}, which does not exist.")
        return f"{match[1]}{bar_table(bars(result))}\n\n{environment_line(result['env'])}\n{match[3]}"

    return MARK.sub(table, text)


def main() -> None:
    """Rewrite or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args()
    results = Path(__file__).parent / "results"
    old = {page: page.read_text(encoding="utf-8") for page in PAGES}
    changed = {page: filled(text, results) for page, text in old.items() if filled(text, results) != text}
    if options.check and changed:
        sys.exit(f"{', '.join(map(str, changed))} differ from benchmarks/results: run python benchmarks/readme.py")
    for page, text in changed.items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
