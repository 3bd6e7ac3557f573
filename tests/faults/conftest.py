"""Fixtures of the fault rows: a stage to set up, a row to fill in, a seed that is printed."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eventdriven_sync.devserver import Mongod, NatsServer
from tests.conftest import or_skip
from tests.faults.cluster import Cluster
from tests.faults.results import Row
from tests.faults.scene import Scene
from tests.faults.workload import Load

StageFactory = Callable[..., Scene]
RowFactory = Callable[[str, str], Row]


@pytest.fixture
def drawn_seed(seed: int | None) -> int:
    """The seed of this row: the one asked for, or one by chance; it is printed either way."""
    chosen = random.randrange(1_000_000) if seed is None else seed
    print(f"seed {chosen}; again: --seed {chosen}")
    return chosen


@pytest.fixture
def stage(tmp_path: Path, drawn_seed: int) -> Iterator[StageFactory]:
    """Makes the scene of a test; ``with stage(load=Load(events=100)) as scene``."""
    for server in (NatsServer(tmp_path), Mongod(tmp_path)):
        or_skip(server.find_binary)

    def build(
        *,
        load: Load,
        nats: int = 1,
        mongo: int = 1,
        sync_always: bool = False,
        seed: int | None = None,
        **options: Any,
    ) -> Scene:
        directory = tmp_path / f"scene-{len(list(tmp_path.iterdir()))}"
        directory.mkdir()
        cluster = options.pop("cluster", None) or Cluster(
            directory, nats=nats, mongo=mongo, sync_always=sync_always
        )
        chosen = drawn_seed if seed is None else seed
        return Scene(directory, seed=chosen, load=load, cluster=cluster, **options)

    return build


@pytest.fixture
def row(request: pytest.FixtureRequest, drawn_seed: int) -> RowFactory:
    """Makes the row of a test: ``row("F2", "kill -9 nats-server x20")``."""
    file = request.config.getoption("--results")

    def build(name: str, fault: str, seed: int | None = None) -> Row:
        return Row(
            name=name,
            fault=fault,
            seed=drawn_seed if seed is None else seed,
            file=Path(file) if file else None,
        )

    return build
