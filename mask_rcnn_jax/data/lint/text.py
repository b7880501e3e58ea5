"""A report as text for people."""

from collections.abc import Sequence

from mask_rcnn_jax.data.lint.counts import SplitCounts
from mask_rcnn_jax.data.lint.findings import CHECKS, Finding, Report

_CLASS_ROWS = 30  # of the table, unless everything is asked for


def describe(report: Report, shown: int | None) -> list[str]:
    """Counts, classes and findings, with at most `shown` findings of a kind (None: all)."""
    lines = [report.dataset]
    for name, counts in report.splits.items():
        lines += _describe_counts(name, counts)
    lines += ["", *_class_table(report.splits, None if shown is None else _CLASS_ROWS)]
    lines += ["", *_describe_findings(report.findings, shown)] if report.findings else [""]
    errors, warnings = report.count("error"), report.count("warning")
    return [*lines, f"{errors} {_plural(errors, 'error')}, {warnings} {_plural(warnings, 'warning')}"]


def _plural(number: int, word: str) -> str:
    return word if number == 1 else f"{word}s"


def _describe_counts(name: str, counts: SplitCounts) -> list[str]:
    (low_h, low_w), (mid_h, mid_w), (high_h, high_w) = counts.smallest_image, counts.median_image, counts.largest_image
    fullest = f" ({counts.fullest_image})" if counts.fullest_image else ""
    sizes = {"small": counts.small, "medium": counts.medium, "large": counts.large}
    total = max(sum(sizes.values()), 1)
    shares = ", ".join(f"{number} {size} ({100 * number / total:.0f} %)" for size, number in sizes.items())
    return [
        f"  {name}: {counts.images} images ({counts.images_without_objects} without objects), {counts.objects} objects,"
        f" {counts.crowds} crowds",
        f"    images {low_w} x {low_h} to {high_w} x {high_h}, median {mid_w} x {mid_h},"
        f" {counts.portrait_images} higher than wide",
        f"    objects an image: mean {counts.objects_per_image_mean:g}, median {counts.objects_per_image_median:g},"
        f" most {counts.objects_per_image_max}{fullest}",
        f"    objects by size: {shares}",
    ]


def _class_table(splits: dict[str, SplitCounts], rows: int | None) -> list[str]:
    """Objects, and images with any, by class and split; the most frequent first."""
    names: dict[int, str] = {}
    numbers: dict[int, dict[str, str]] = {}
    totals: dict[int, int] = {}
    for split, counts in splits.items():
        for entry in counts.classes:
            names.setdefault(entry.id, entry.name)
            numbers.setdefault(entry.id, {})[split] = f"{entry.objects} in {entry.images}"
            totals[entry.id] = totals.get(entry.id, 0) + entry.objects
    ordered = sorted(names, key=lambda id_: (-totals[id_], id_))
    left_out = 0 if rows is None else max(len(ordered) - rows, 0)
    half = (rows or 0) // 2
    listed = ordered[: len(ordered) - left_out - half] + ordered[-half:] if left_out else ordered
    table = [["class", *(f"{split}: objects in images" for split in splits)]]
    table += [[f"{names[id_]} ({id_})", *(numbers[id_].get(split, "-") for split in splits)] for id_ in listed]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = [
        "  " + "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in table
    ]
    if left_out:
        lines.insert(1 + len(listed) - half, f"  ... {left_out} classes between: --all lists them")
    return lines


def _describe_findings(findings: Sequence[Finding], shown: int | None) -> list[str]:
    kinds: dict[str, list[Finding]] = {}
    for finding in findings:
        kinds.setdefault(finding.code, []).append(finding)
    lines = []
    for code, of_kind in kinds.items():
        lines.append(f"{CHECKS[code].severity}: {code}: {len(of_kind)} {CHECKS[code].what}")
        lines += [f"    {finding.file}: {finding.message}" for finding in of_kind[:shown]]
        if shown is not None and len(of_kind) > shown:
            lines.append(f"    and {len(of_kind) - shown} more: --all lists them")
    return lines
