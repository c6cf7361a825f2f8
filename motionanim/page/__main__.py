"""The drawing page: python -m motionanim.page [image=photo.jpg] [folder=.] [port=7860]

It opens in a browser on this machine. PyTorch is imported after it is served.
"""

import os
import socket
import threading
import webbrowser
from contextlib import suppress
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from motionanim.animate import composed
from motionanim.cli.command import CONF, one_line_errors
from motionanim.cli.settings import command, quoted
from motionanim.page.settings import DEFAULTS, checked


@command
@hydra.main(config_path=str(CONF), config_name="page", version_base="1.3")
@one_line_errors
def main(config: DictConfig) -> None:
    """Serve the page until Ctrl-C."""
    try:
        import uvicorn

        from motionanim.page.server import Page
    except ImportError as error:
        raise ValueError(f"the page needs {error.name}: pip install 'motionanim[page]'") from error
    folder, image = Path(config.folder), None if config.image is None else Path(config.image)
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"folder={config.folder}: must be a folder that can be written")
    if image is not None:
        try:
            image.open("rb").close()
        except OSError as error:
            raise ValueError(f"image={image} cannot be opened: {error.strerror}; give an image file") from error
    # What chooses the base goes on to the jobs.
    base = [_absolute(each) for each in HydraConfig.get().overrides.task if each.startswith(("scale=", "scale."))]
    defaults = checked({name: config[name] for name in DEFAULTS if name in config})
    GlobalHydra.instance().clear()  # this command's own composition, so that the jobs' can be made
    if config.host in ("0.0.0.0", "::"):
        raise ValueError(f"host={config.host}: give the one address by which the page is opened, such as 192.168.1.5")
    server = _listening(config.host, config.port)
    host, port = server.getsockname()[:2]
    page = Page(folder, composed(base), base=base, defaults=defaults, image=image)
    names = {"localhost", "127.0.0.1", "[::1]", f"[{config.host}]" if ":" in config.host else config.host}
    app = page.app([f"{name}:{port}" for name in names] + (list(names) if port == 80 else []))
    url = f"http://{'localhost' if config.host == '127.0.0.1' else host}:{port}/"
    print(f"{url} shows the page; Ctrl-C ends it", flush=True)
    if config.open:
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
    with suppress(KeyboardInterrupt):  # the usual end
        uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)).run(sockets=[server])


def _absolute(override: str) -> str:
    """The override with a base's folder from the root: the jobs run in the page's folder."""
    name, _, value = override.partition("=")
    return f"{name}={quoted(os.path.abspath(value))}" if name == "scale.base" and Path(value).is_dir() else override


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ValueError if the address cannot be used."""
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 2**16:
        raise ValueError(f"port={port}: must be a whole number from 0 to {2**16 - 1}; 0 takes a free one")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except socket.gaierror as error:
        raise ValueError(f"host={host}: no address of this machine ({error.strerror})") from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise ValueError(f"port={port}: {host} cannot be listened to ({reason}): give another port") from error


if __name__ == "__main__":
    main()
