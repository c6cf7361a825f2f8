from collections.abc import Iterator

import pytest
from pixabay_site import Site, serve, write_videos


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve() as site:
        yield site


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return write_videos(tmp_path_factory.mktemp("videos"))
