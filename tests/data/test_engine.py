"""Engines give the same bytes for the same work, on any worker and after any death of one."""

import functools
import math
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from configs import ROOT, _fresh_hydra, composed  # noqa: F401  the fixture clears Hydra's global state
from kill import wait_until
from omegaconf import OmegaConf

from motionanim.data import encode as encode_module
from motionanim.data import engine as engine_module
from motionanim.data.encode import clip_source, make_shard, portable
from motionanim.data.engine import Engine, ProcessEngine, RayEngine
from motionanim.data.folder import folder_names
from motionanim.data.latents.encoding import encode_clips
from motionanim.data.latents.shards import finished_shard
from motionanim.data.prepare.collect import prepare
from motionanim.data.prepare.examine import Settings
from motionanim.data.video import write_video
from motionanim.data.video.index import READER
from motionanim.models.flow_estimator import DisFlow

SIZE = {"num_frames": 5, "height": 16, "width": 16}
SMALL = [*(f"scale.{name}={value}" for name, value in SIZE.items()), "scale.num_workers=0"]
encode_config = functools.partial(composed, config="encode")


def encoded(base: Path, folder: Path, engine: Engine, count: int) -> dict[str, bytes]:
    """Encode as `python -m motionanim.data.encode` does, by a given engine: bytes by file name."""
    config = portable(encode_config(f"out={folder}", f"scale.base={base}", *SMALL))
    encode_clips(
        functools.partial(make_shard, config=OmegaConf.to_yaml(config)), count=count, shard_clips=2,
        predict=config.predict, vae="v", size=SIZE, source={}, folder=folder, engine=engine,
    )  # fmt: skip
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def prepared(root: Path, out: Path, engine: Engine) -> tuple[set[str], dict[str, bytes]]:
    """Prepare videos by a given engine: the lines of the index, in any order, and the bytes of each flow."""
    settings = Settings(
        num_frames=4, height=32, width=32, fps=5, stride=None, max_frames=6, camera_fps=4, camera_pairs=2,
        camera_short_side=32, max_camera_speed=0.01, cache_moving=True,
    )  # fmt: skip
    prepare(
        root=root, names=folder_names(root), out=out, cache=out / "flow", settings=settings,
        flow_estimator=DisFlow(preset="ultrafast", min_side=1), engine=engine, max_static=10,
    )  # fmt: skip
    flows = {path.name: path.read_bytes() for path in (out / "flow").rglob("*.npy")}
    return set((out / "index.jsonl").read_text().splitlines()), flows


@pytest.mark.parametrize(
    ("data", "given"),
    [
        ("folder", "data.root"), ("hdvila", "data.names.jsonl"), ("hdvila_static", "data.names.names"),
        ("holynski", "data.root"), ("synthetic", "data.latents"),
    ],
)  # fmt: skip
def test_workers_are_sent_no_path_that_depends_on_a_folder(data, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("base", "weights"):
        (tmp_path / "given" / name).mkdir(parents=True)
    paths = ["out=given/out", "scale.base=given/base", "flow_estimator=raft", "flow_estimator.weights=given/weights"]
    config = portable(encode_config(f"data={data}", *paths, f"{given}=given/source"))
    sent = re.findall(r"(?:: |- )(\S*/\S*)$", OmegaConf.to_yaml(config), flags=re.M)
    assert len(sent) >= 10
    assert [text for text in sent if not Path(text).is_absolute()] == []


def test_names_of_downloads_and_urls_are_sent_as_they_are():
    config = portable(encode_config("out=s3://x", "scale=svd", "flow_estimator=raft"))
    assert config.codec.base == "stabilityai/stable-video-diffusion-img2vid-xt"
    assert (config.out, config.flow_estimator.weights) == ("s3://x", "download")


@pytest.mark.slow
def test_a_worker_in_another_folder_reads_the_same_videos(base, tmp_path, monkeypatch):
    here, there, out = (tmp_path / name for name in ("here", "there", "out"))
    for folder in (here / "videos", there, out):
        folder.mkdir(parents=True)
    for name in "ab":
        write_video(here / f"videos/{name}.mp4", torch.rand(16, 3, 32, 32) * 2 - 1, 10)
    monkeypatch.chdir(here)
    given = ["data=folder", "data.root=videos", f"out={out}", f"scale.base={base}"]
    config = OmegaConf.to_yaml(portable(encode_config(*given, *SMALL)))
    monkeypatch.chdir(there)
    make_shard(range(2), out, config=config)
    assert finished_shard(out, range(2)) is not None
    assert list(there.iterdir()) == []


@pytest.mark.slow
def test_a_source_is_told_by_its_clips_and_not_by_where_lists_are_kept(monkeypatch):
    def source(*overrides: str, names: tuple[str, ...] = ("a", "b"), data: str = "hdvila") -> dict:
        config = portable(encode_config(f"data={data}", "data.root=/videos", "out=/out", *overrides))
        return clip_source(config.data, names)

    before = source()
    assert before == source("paths.cache=/elsewhere", "data.names.index=/there")
    assert source(data="hdvila_static") == source("paths.cache=/elsewhere", data="hdvila_static")
    others = (source("scale.fps=9"), source("data.seed=1"), source(names=("b", "a")), source("data.root=/x"))
    assert all(before != other for other in others)
    monkeypatch.setattr(encode_module, "READER", READER + 1)
    assert source() != before, "the same videos give other frames"


@pytest.fixture
def forked_pools(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes engines fork their workers, which takes no time; lists the number of workers of each pool."""
    begun: list[int] = []

    def pool(workers: int) -> ProcessPoolExecutor:
        begun.append(workers)
        return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"))

    monkeypatch.setattr(engine_module, "_pool", pool)
    return begun


def divided(number: int, by: int) -> float:
    if by == 0:
        raise ValueError(f"by={by}: must not be 0")
    return number / by


@pytest.mark.parametrize("workers", [0, 2])
def test_results_and_errors_come_back_and_tasks_are_a_stream(workers, forked_pools):
    done, waiting = [], []

    def tasks(bad: int) -> Iterator[tuple[int, int]]:
        for number in range(40):
            waiting.append(number - len(done))
            yield number, 0 if number == bad else 2

    engine = ProcessEngine(workers=workers)
    for result in engine(divided, tasks(bad=-1)):
        done.append(result)
    assert sorted(done) == [number / 2 for number in range(40)]
    assert max(waiting) <= 4 * workers
    with pytest.raises(ValueError, match="by=0: must not be 0"):
        list(engine(divided, tasks(bad=3)))


def ended(number: int, by: int) -> float:
    """As `divided`, but a division by zero ends the process."""
    if by == 0:
        os._exit(1)
    return number / by


@pytest.mark.slow
def test_a_task_that_ends_its_process_is_known_and_the_others_go_on(forked_pools):
    tasks = [(number, 0 if number in (3, 17) else 2) for number in range(20)]
    results = list(ProcessEngine(workers=2)(ended, tasks, lambda *_: math.nan))
    assert sum(map(math.isnan, results)) == 2
    assert sorted(r for r in results if r == r) == [number / 2 for number in range(20) if number not in (3, 17)]
    assert forked_pools.count(1) <= 4, "a new process only after one that ended"
    with pytest.raises(ValueError, match="a worker process died while it worked on one of"):
        list(ProcessEngine(workers=2)(ended, tasks))


@pytest.mark.slow
def test_workers_are_spawned_and_leave_ctrl_c_to_the_first_process():
    assert list(ProcessEngine(workers=1)(signal.getsignal, [(signal.SIGINT,)])) == [signal.SIG_IGN]


def ray_engine(address: str | None = None, retries: int = 0) -> RayEngine:
    return RayEngine(address=address, cpus=1, gpus=0, retries=retries)


def test_an_engine_whose_package_is_missing_says_so_in_a_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"engine=ray needs Ray: pip install -e .\[ray\]"):
        list(ray_engine()(divided, [(1, 1)]))


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_does_not_answer_is_named(scheme):
    pytest.importorskip("ray", reason="needs Ray: pip install -e .[ray]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, but not listening
        address = f"{scheme}127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"engine.address={address}: no Ray cluster answers .*refused"):
            list(ray_engine(address)(divided, [(1, 1)]))


NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_log_monitor": False}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """A Ray cluster of one node with one core, as processes of this machine."""
    ray = pytest.importorskip("ray", reason="needs Ray: pip install -e .[ray]")
    from ray.cluster_utils import Cluster

    # So that workers find the package of this checkout and the tests' functions.
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}:{Path(__file__).parent}")
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "4")
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False, "no_monitor": True})
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def noted(function, log: Path, positions: range, folder: Path) -> None:
    """Do the work, and note the node that began it."""
    import ray

    log.joinpath(f"{positions.start} {ray.get_runtime_context().get_node_id()}").touch()
    function(positions, folder)


@pytest.mark.long
@pytest.mark.slow
def test_a_ray_cluster_that_loses_a_node_leaves_the_same_bytes(base, tmp_path, cluster):
    alone = encoded(base, tmp_path / "alone", ProcessEngine(workers=0), count=40)
    node = cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    log = tmp_path / "log"
    log.mkdir()

    def kill_when_it_works() -> None:
        wait_until(lambda: bool(list(log.glob(f"* {node.node_id}"))))
        cluster.remove_node(node, allow_graceful=False)

    class Ray(RayEngine):
        def __call__(self, function, tasks):
            return super().__call__(functools.partial(noted, function, log), tasks)

    killer = threading.Thread(target=kill_when_it_works, daemon=True)
    killer.start()
    made = encoded(base, tmp_path / "out", Ray(address=cluster.address, cpus=1, gpus=0, retries=5), count=40)
    assert not killer.is_alive()
    assert made == alone
    begun = [path.name.split(" ") for path in log.iterdir()]
    lost = {start for start, where in begun if where == node.node_id}
    assert lost & {start for start, where in begun if where != node.node_id}, "what the node had begun was done again"

    (tmp_path / "videos").mkdir()
    for name in "ab":
        write_video(tmp_path / f"videos/{name}.mp4", (torch.rand(3, 32, 32) * 2 - 1).expand(16, 3, 32, 32), 10)
    engine = ray_engine(cluster.address)
    one = prepared(tmp_path / "videos", tmp_path / "one", ProcessEngine(workers=0))
    assert one == prepared(tmp_path / "videos", tmp_path / "other", engine)
    assert len(one[0]) == len(one[1]) == 2
    with pytest.raises(ValueError, match="by=0: must not be 0"):  # the error itself, not Ray's wrapping
        list(engine(divided, [(1, 0)]))
