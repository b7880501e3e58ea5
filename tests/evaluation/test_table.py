import math

from mask_rcnn_jax.evaluation import format_table


def test_a_line_for_each_kind_and_a_dash_for_what_is_undefined() -> None:
    table = format_table({"bbox/AP": 0.5, "bbox/APs": math.nan, "segm/AP": 0.25, "segm/APs": 1.0})
    assert [line.split() for line in table.splitlines()] == [
        ["AP", "APs"],
        ["bbox", "0.500", "-"],
        ["segm", "0.250", "1.000"],
    ]


def test_classes_are_listed_downwards_in_columns() -> None:
    names = [f"class{k}" for k in range(7)]
    metrics = {"bbox/AP": 0.5} | {f"bbox/AP/{name}": k / 10 for k, name in enumerate(names)}
    lines = format_table(metrics).splitlines()
    assert lines[2] == ""
    assert lines[3].count("AP by class") == 4
    assert lines[4].split() == ["class0", "0.000", "class2", "0.200", "class4", "0.400", "class6", "0.600"]
    assert all(len(line) <= 120 for line in lines)


def test_one_class_gets_no_line_of_its_own() -> None:
    assert len(format_table({"segm/AP": 0.5, "segm/AP/nucleus": 0.5}).splitlines()) == 2
