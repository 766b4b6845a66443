"""docs/scaling.md's numbers are the program's."""

import math

import pytest

from t6jax.training.layouts import LAYOUTS, MESH_AXES, NETWORK, NVLINK, PAGE, ROWS, costs, line, load
from tests.conftest import ROOT


@pytest.mark.parametrize(("name", "devices", "number"), [("xl_tpa", 8, 1), ("xl_tpa", 64, 1), ("t6_7b", 512, 3)])
def test_lines_of_the_page_are_what_the_program_gives(name, devices, number):
    assert line(name, devices, LAYOUTS[devices][number]) + "\n" in PAGE.read_text()


def test_costs_of_data_and_fsdp_are_what_one_counts_by_hand():
    config = load("small_tpa")
    parameters = 124_000_000
    data = costs(config, {"data": 8}, ROWS["small_tpa"])
    # a ring's all-reduce of float32 gradients, once a step
    assert data.node == pytest.approx(2 * 7 / 8 * 4 * parameters, rel=0.01) and data.network == 0
    assert data.state == pytest.approx(16 * parameters, rel=0.01)
    nodes = costs(config, {"data": 16}, ROWS["small_tpa"])
    assert nodes.node == 0 and nodes.network == pytest.approx(2 * 15 / 16 * 4 * parameters, rel=0.01)
    assert nodes.seconds == pytest.approx(nodes.network / NETWORK) and data.seconds == pytest.approx(data.node / NVLINK)
    assert costs(config, {"data": 1024}, 1) is None


def test_every_config_of_the_page_is_there_and_layouts_name_their_devices():
    page = PAGE.read_text()
    for name in ROWS:
        assert (ROOT / "configs" / f"{name}.py").exists() and f"**{name}**" in page
    for devices, layouts in LAYOUTS.items():
        for sizes in layouts:
            assert set(sizes) <= set(MESH_AXES)
            assert devices == math.prod(sizes.values())
