"""docs/scaling.md's numbers are the program's."""

import math
import re
import shlex

import pytest

from benchmarks.layouts import (
    GPUS_PER_NODE,
    LAYOUTS,
    MESH_AXES,
    NETWORK,
    NVLINK,
    PAGE,
    ROWS,
    cells,
    costs,
    load,
)
from benchmarks.tables import row
from t6jax.config import RunConfig
from t6jax.programs.config_file import load_config, split_overrides
from t6jax.training.layout import mesh_for
from tests.conftest import ROOT

# the indented lines of both pages that train, those that end in \ joined to the next
COMMANDS = [
    line.split("  #")[0].strip()
    for page in (PAGE, ROOT / "README.md")
    for line in page.read_text().replace("\\\n", " ").splitlines()
    if re.match(r"    .*(train\.py --config|train_node\.sh|train_slurm\.sh) ?=?configs/", line)
]


@pytest.mark.parametrize(
    ("name", "devices", "number"), [("xl_tpa", 8, 1), ("xl_tpa", 64, 1), ("t6_7b", 512, 3)]
)
def test_lines_of_the_page_are_what_the_program_gives(name, devices, number):
    shown = row(cells(name, devices, LAYOUTS[devices][number])) + "\n"
    assert shown in PAGE.read_text()


def test_costs_of_data_and_fsdp_are_what_one_counts_by_hand():
    config = load("small_tpa")
    parameters = 124_000_000
    data = costs(config, {"data": 8}, ROWS["small_tpa"])
    # a ring's all-reduce of float32 gradients, once a step
    assert data.node == pytest.approx(2 * 7 / 8 * 4 * parameters, rel=0.01) and data.network == 0
    assert data.state == pytest.approx(16 * parameters, rel=0.01)
    nodes = costs(config, {"data": 16}, ROWS["small_tpa"])
    assert nodes.node == 0 and nodes.network == pytest.approx(
        2 * 15 / 16 * 4 * parameters, rel=0.01
    )
    assert nodes.seconds == pytest.approx(
        nodes.network / NETWORK
    ) and data.seconds == pytest.approx(data.node / NVLINK)
    assert costs(config, {"data": 1024}, 1) is None


def test_every_config_of_the_page_is_there_and_layouts_name_their_devices():
    page = PAGE.read_text()
    for name in ROWS:
        assert (ROOT / "configs" / f"{name}.py").exists() and f"**{name}**" in page
    for devices, layouts in LAYOUTS.items():
        for sizes in layouts:
            assert set(sizes) <= set(MESH_AXES)
            assert devices == math.prod(sizes.values())


def config_of(command: str) -> tuple[dict, int]:
    """The config that a command trains, and the GPUs that it has; a launch script's own flags come
    first, as in the script.
    """
    before, after = re.split(r"(?:python train\.py|scripts/train_\w+\.sh) ", command)
    nodes, given = int((re.search(r"--nodes=(\d+)", before) or [0, 1])[1]), shlex.split(after)
    if script := re.search(r"scripts/\w+\.sh", command):
        lines = [
            line for line in (ROOT / script[0]).read_text().splitlines() if not line.startswith("#")
        ]
        own = re.findall(
            r"--config\.mesh\.\w+=[-\w$]+",
            "\n".join(lines).replace("$SLURM_NTASKS_PER_NODE", str(GPUS_PER_NODE)),
        )
        assert len(own) == 2
        given = [f"--config={given[0]}", *own, *given[1:]]
    rest, overrides = split_overrides(given)
    (file,) = (flag.removeprefix("--config=") for flag in rest if flag.startswith("--config="))
    return load_config(str(ROOT / file), overrides).to_dict(), nodes * GPUS_PER_NODE


def test_the_pages_show_commands_of_all_kinds():
    for kind in (
        r"python train\.py .*mesh",
        r"scripts/train_node\.sh",
        r"sbatch --nodes=8 scripts/train_slurm\.sh",
    ):
        assert any(re.match(kind, command) for command in COMMANDS), COMMANDS


@pytest.mark.parametrize("command", COMMANDS, ids=range(len(COMMANDS)))
def test_a_command_of_the_pages_is_accepted_on_the_mesh_that_it_makes(command):
    config, devices = config_of(command)
    mesh = config["mesh"]
    known = math.prod(size for size in mesh.values() if size != -1)
    if known > 1:  # else on the one device at hand
        config["mesh"] = {
            axis: devices // known if size == -1 else size for axis, size in mesh.items()
        }
        assert math.prod(config["mesh"].values()) == devices
    mesh_for(RunConfig.from_dict(config), plan=True)
