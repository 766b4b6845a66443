"""Markdown tables and the markers between which they stand."""

from benchmarks.tables import markdown, with_tables


def test_a_table_has_a_row_for_each_record():
    assert markdown(("a", "b"), [(1, 2), ("x", "")]) == [
        "| a | b |",
        "|---|---|",
        "| 1 | 2 |",
        "| x |  |",
    ]


def test_only_the_named_table_between_its_markers_changes():
    page = "before\n<!-- m: one -->\nold\n<!-- end -->\n<!-- m: two -->\nkept\n<!-- end -->\n"
    made = with_tables(page, "m", {"one": lambda: r"new \1", "three": lambda: 1 / 0})
    assert made == page.replace("old", r"new \1")
