"""What every command shares: paths, resuming, and a user's mistake as one line with exit code 2."""

import functools
import logging
import netrc
import os
import queue
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from motionanim.cli.settings import check_seed, explained, mistyped
from motionanim.models.svd.bases import motion_setting
from motionanim.training.runs.folder import newest_run

# Inside the package where it was installed, beside it in a checkout.
CONF = next(folder / "conf" for folder in Path(__file__).parents[1:3] if (folder / "conf").is_dir())

# ${package:assets/tiny-svd} in a YAML is a path inside the installed package, wherever the command is run from.
OmegaConf.register_new_resolver("package", lambda path: str(Path(__file__).parents[1] / path), replace=True)

# ${unless:${.gamma},2.0} is 2.0, and null where gamma is given: of two keys that exclude each other either can be given
# alone, whichever has the default.
OmegaConf.register_new_resolver("unless", lambda other, value: value if other is None else None, replace=True)


# ${of_base:${scale.base},channels,64} is what the base's motion weights were made with, and 64 where it has none.
OmegaConf.register_new_resolver("of_base", motion_setting, replace=True)


def wandb_offline() -> bool:
    """True where there is no W&B key: neither WANDB_API_KEY nor an entry of W&B's host in the file that it reads."""
    if os.environ.get("WANDB_API_KEY"):
        return False
    usual = [path for path in (Path("~/.netrc"), Path("~/_netrc")) if path.expanduser().exists()]
    path = Path(os.environ.get("NETRC") or (usual or ["~/.netrc"])[0]).expanduser()
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    try:
        return netrc.netrc(path).authenticators(host) is None
    except (OSError, netrc.NetrcParseError):
        return True


OmegaConf.register_new_resolver("wandb_offline", wandb_offline, replace=True)


WANDB_PATIENCE = 10  # s


@functools.cache
def wandb_unreachable() -> str | None:
    """Why W&B's server does not answer within ten seconds; None if it does, or if the environment chose a mode.

    W&B itself tries for minutes, which a compute node without a network would wait for.
    """
    if os.environ.get("WANDB_MODE", "online") != "online":
        return None
    url, answer = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai", queue.Queue()

    def ask() -> None:
        try:
            with urlopen(url, timeout=WANDB_PATIENCE):
                answer.put(None)
        except HTTPError:
            answer.put(None)  # it answers
        except (OSError, ValueError) as error:
            answer.put(str(getattr(error, "reason", error)))

    threading.Thread(target=ask, daemon=True).start()  # looking up a name knows no time limit
    try:
        return answer.get(timeout=WANDB_PATIENCE)
    except queue.Empty:
        return f"no answer in {WANDB_PATIENCE} s"


# What to change where memory is short, cheapest first, by the part of a config that tells the commands apart.
MEMORY = {
    "trainer": {
        "scale.checkpoint_width": "1280: all blocks are computed twice",
        "scale.batch_size": "lower",
        "trainer.accumulate_grad_batches": "higher by as much",
        "scale.num_workers": "lower, for the host's memory",
    },
    "renderer": {
        "size": "[height,width], smaller",
        "sampling.dtype": "bfloat16",
        "long_video.batch_size": "lower",
        "scale.height": "lower, with scale.width",
    },
    "sampling": {
        "sampling.dtype": "bfloat16",
        "long_video.batch_size": "lower",
        "scale.height": "lower, with scale.width",
    },
    "codec": {"scale.height": "lower, with scale.width", "scale.num_frames": "lower", "engine.workers": "lower"},
    "engine": {"engine.workers": "lower", "scale.height": "lower, with scale.width"},
}


def memory_advice(cfg: DictConfig) -> str:
    """The settings of a command that decide about its memory, as they are, and where to move them."""
    part = next(part for part in MEMORY if part in cfg)
    missing = object()
    found = {name: (OmegaConf.select(cfg, name, default=missing), change) for name, change in MEMORY[part].items()}
    shown = {name: ("null" if value is None else value, change) for name, (value, change) in found.items()}
    return ", ".join(f"{name}={value} ({change})" for name, (value, change) in shown.items() if value is not missing)


def is_out_of_memory(error: BaseException) -> bool:
    """A GPU's or the host's; PyTorch has no type of its own for the latter."""
    torch = sys.modules.get("torch")  # what is not imported has raised nothing
    gpu = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return gpu or isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def is_mistake(error: BaseException) -> bool:
    """Whether an error is a user's mistake or the system's; of Lightning's own type too, whose import takes seconds."""
    module = sys.modules.get("lightning.pytorch.utilities.exceptions")
    known = (ValueError, OSError, InstantiationException, MemoryError, OmegaConfBaseException)
    return isinstance(error, known) or (module is not None and isinstance(error, module.MisconfigurationException))


def wrong_setting() -> str | None:
    """Of a running Hydra command that failed, the first setting of another kind than its default, and what is right.

    Asked only then, because it composes the configuration a second time.
    """
    if not (HydraConfig.initialized() and GlobalHydra.instance().is_initialized()):
        return None
    ran = HydraConfig.get()
    names = [override.partition("=")[0] for override in ran.overrides.task]
    kept = [
        override
        for override, name in zip(ran.overrides.task, names, strict=True)
        if name.partition("@")[0] in ran.runtime.choices or name.startswith(("+", "~"))
    ]
    return mistyped(ran.overrides.task, hydra.compose(ran.job.config_name, kept))


def one_line_errors(main: Callable[..., Any]) -> Callable[..., Any]:
    """Turn a user's mistakes, failures of the system, Ctrl-C and lack of memory into `error: ...` and exit code 2.

    `ValueError`, `OSError` and bad configurations are mistakes; so is any error of Python's where a setting is of
    another kind than its default.
    """

    @functools.wraps(main)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            if args and OmegaConf.is_config(args[0]) and "seed" in args[0]:
                check_seed(args[0].seed)
            return main(*args, **kwargs)
        except KeyboardInterrupt:
            print("error: stopped by Ctrl-C; what was finished before is kept", file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            # Hydra wraps what a constructor raised; the innermost cause is the line the user needs.
            cause, target = error, ""
            while isinstance(cause, InstantiationException) and isinstance(cause.__cause__, Exception):
                cause, target = cause.__cause__, str(cause)
            text = explained(cause, sys.argv[1:]).strip()
            if text.startswith("Caught ") and "worker process" in text:
                # A loader worker sends its whole traceback as the message; its last line is the error itself.
                text = text.rsplit("\n", 1)[-1].partition(": ")[2]
            of_python = isinstance(cause, TypeError | AttributeError | RuntimeError)
            of_python = of_python and not isinstance(cause, OmegaConfBaseException)
            unread = of_python or "could not convert" in text or "invalid literal" in text
            if is_out_of_memory(cause):
                text = f"out of memory ({text}): change {memory_advice(args[0])}; what was finished before is kept"
            elif unread and (wrong := wrong_setting()):
                text = wrong
            elif isinstance(cause, RuntimeError) or not is_mistake(error):
                raise  # a bug of ours
            elif of_python:
                text = target  # which names what was called
            print(f"error: {' '.join(text.split())}", file=sys.stderr)
            sys.exit(2)

    return run


def run_name(ckpt_path: str | None, experiment: str, run: str, fresh: str) -> str:
    """The folder of a run: its name, or with ckpt_path=last and none given (it is the `fresh` one) the newest run's."""
    return (newest_run(Path(experiment)) if ckpt_path == "last" and run == fresh else None) or run


OmegaConf.register_new_resolver("run_name", run_name, replace=True, use_cache=True)


def quiet(*, networks: bool = True) -> None:
    """Silence known chatter that hides a run's own messages.

    Args:
        networks: Silence diffusers and transformers too. It imports them, which takes seconds.
    """
    for chatter in (
        "does not have many workers",  # the embedded base needs none
        "in eval mode at the start of training",  # the frozen VAE and CLIP, on purpose
        "exists and is not empty",  # Hydra's log is in the run's folder already
        "isinstance.treespec, LeafSpec",
        "FSDP2-wrapped module .* returned a view tensor",  # nothing is done in place to what the UNet's blocks return
    ):
        warnings.filterwarnings("ignore", message=f".*{chatter}")
    for name in ("lightning.pytorch.utilities.rank_zero", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if networks:
        import diffusers
        import transformers

        for library in (diffusers.utils.logging, transformers.utils.logging):
            library.set_verbosity_error()
            library.disable_progress_bar()  # of reading files; downloads keep theirs
