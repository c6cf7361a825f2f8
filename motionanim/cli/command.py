"""Shared by all commands: resolvers of the configurations, one-line errors with exit code 2, quiet libraries."""

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

from motionanim.cli.memory import is_out_of_memory, memory_advice
from motionanim.cli.settings import check_seed, explained, mistyped
from motionanim.models.svd.bases import motion_config, motion_setting
from motionanim.training.runs.folder import newest_run

# The package holds the configurations where it is installed; in a checkout they are beside it.
CONF = next(folder / "conf" for folder in Path(__file__).parents[1:3] if (folder / "conf").is_dir())
WANDB_PATIENCE = 10  # s


def wandb_offline() -> bool:
    """Whether W&B has no key: neither WANDB_API_KEY nor an entry for its host in the netrc file that it reads."""
    if os.environ.get("WANDB_API_KEY"):
        return False
    usual = [path for path in (Path("~/.netrc"), Path("~/_netrc")) if path.expanduser().exists()]
    path = Path(os.environ.get("NETRC") or (usual or ["~/.netrc"])[0]).expanduser()
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    try:
        return netrc.netrc(path).authenticators(host) is None
    except (OSError, netrc.NetrcParseError):
        return True


@functools.cache
def wandb_unreachable() -> str | None:
    """Why W&B's server does not answer within ten seconds; None if it does, or if the environment chose a mode.

    W&B itself would try for minutes on a compute node without a network.
    """
    if os.environ.get("WANDB_MODE", "online") != "online":
        return None
    url, answer = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai", queue.Queue()

    def ask() -> None:
        try:
            with urlopen(url, timeout=WANDB_PATIENCE):
                answer.put(None)
        except HTTPError:
            answer.put(None)  # an answer too
        except (OSError, ValueError) as error:
            answer.put(str(getattr(error, "reason", error)))

    threading.Thread(target=ask, daemon=True).start()  # a look-up of the host's name has no timeout
    try:
        return answer.get(timeout=WANDB_PATIENCE)
    except queue.Empty:
        return f"no answer in {WANDB_PATIENCE} s"


def run_name(ckpt_path: str | None, experiment: str, run: str, fresh: str) -> str:
    """Name of a run's folder: with ckpt_path=last and no run=NAME (`run` is the `fresh` one) that of the newest run."""
    return (newest_run(Path(experiment)) if ckpt_path == "last" and run == fresh else None) or run


def clips_at_once(batch: Any, most: int | None) -> Any:
    """Clips of one pass of a training step: the largest divisor of its batch up to `most`; None takes all.

    A batch that is no number above 0 is returned as it is: who reads it says what is wrong.
    """
    if most is None or not isinstance(batch, int) or batch < 1:
        return batch
    return max(clips for clips in range(1, min(batch, most) + 1) if batch % clips == 0)


def passes(batch: Any, most: int | None) -> int:
    """Passes of a training step, each with `clips_at_once`."""
    clips = clips_at_once(batch, most)
    return 1 if clips == batch else batch // clips


# ${package:assets/tiny-svd} is a path in the installed package, whatever the working folder.
OmegaConf.register_new_resolver("package", lambda path: str(Path(__file__).parents[1] / path), replace=True)
# ${unless:${.gamma},2.0} is 2.0, or null if gamma is given: of two settings that exclude each other one is enough.
OmegaConf.register_new_resolver("unless", lambda other, value: value if other is None else None, replace=True)
# ${of_base:${scale.base},channels,64} is the value with which the base's motion weights were trained, else 64.
OmegaConf.register_new_resolver("of_base", motion_setting, replace=True)
# ${control_of:${scale.base}} is motion where the base has motion weights, else warp.
OmegaConf.register_new_resolver("control_of", lambda base: "motion" if motion_config(base) else "warp", replace=True)
# ${place:${truth}} is the name of a folder, with that of the folder it lies in.
OmegaConf.register_new_resolver("place", lambda path: "_".join(Path(path or "").resolve().parts[-2:]), replace=True)
# ${clips_at_once:${scale.batch_size},${vram.clips}} clips are trained in one of ${passes:...} passes of a step.
OmegaConf.register_new_resolver("clips_at_once", clips_at_once, replace=True)
OmegaConf.register_new_resolver("passes", passes, replace=True)
OmegaConf.register_new_resolver("wandb_offline", wandb_offline, replace=True)
OmegaConf.register_new_resolver("run_name", run_name, replace=True, use_cache=True)


def is_mistake(error: BaseException) -> bool:
    """Whether an error is the user's or the system's, not a fault of the code."""
    lightning = sys.modules.get("lightning.pytorch.utilities.exceptions")  # importing it takes seconds
    known = (ValueError, OSError, InstantiationException, MemoryError, OmegaConfBaseException)
    return isinstance(error, known) or (
        lightning is not None and isinstance(error, lightning.MisconfigurationException)
    )


def wrong_setting() -> str | None:
    """The first setting of the running command whose value is of another kind than the default, and the right kind.

    It composes the configuration a second time, so it is called after an error only.
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


def one_line(error: Exception, cfg: DictConfig | None) -> str | None:
    """An error as one line for the user; None for a fault of the code, which needs a traceback."""
    # Hydra wraps the exception of a constructor, which says what is wrong.
    cause, target = error, ""
    while isinstance(cause, InstantiationException) and isinstance(cause.__cause__, Exception):
        cause, target = cause.__cause__, str(cause)
    text = explained(cause, sys.argv[1:]).strip()
    if text.startswith("Caught ") and "worker process" in text:
        # The message of a loader process is its traceback, whose last line is the error.
        text = text.rsplit("\n", 1)[-1].partition(": ")[2]
    of_python = isinstance(cause, TypeError | AttributeError | AssertionError | RuntimeError)
    of_python = of_python and not isinstance(cause, OmegaConfBaseException)
    unread = of_python or "could not convert" in text or "invalid literal" in text
    if is_out_of_memory(cause):
        during = getattr(cause, "phase", None)
        where = f" in {during}" if during else ""
        text = f"out of memory{where} ({text}): change {memory_advice(cfg, during)}; what was finished before is kept"
    elif unread and (wrong := wrong_setting()):
        text = wrong
    elif isinstance(cause, RuntimeError) or not is_mistake(error):
        return None
    elif of_python:
        text = target  # names the class or function that was called
    return " ".join(text.split())


def one_line_errors(main: Callable[..., Any]) -> Callable[..., Any]:
    """Turn mistakes of the user, failures of the system, Ctrl-C and lack of memory into `error: ...` and exit code 2.

    Mistakes are `ValueError`, `OSError` and wrong configurations, and any of Python's own errors if a setting is of
    another kind than its default.
    """

    @functools.wraps(main)
    def run(*args: Any, **kwargs: Any) -> Any:
        cfg = args[0] if args and OmegaConf.is_config(args[0]) else None
        try:
            if cfg is not None and "seed" in cfg:
                check_seed(cfg.seed)
            return main(*args, **kwargs)
        except KeyboardInterrupt:
            print("error: stopped by Ctrl-C; what was finished before is kept", file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            text = one_line(error, cfg)
            if text is None:
                raise
            print(f"error: {text}", file=sys.stderr)
            sys.exit(2)

    return run


def quiet(*, networks: bool = True) -> None:
    """Silence warnings of libraries that hide a run's own messages.

    Args:
        networks: Also silence diffusers and transformers, which imports them and so takes seconds.
    """
    for chatter in (
        "does not have many workers",  # the embedded base needs none
        "in eval mode at the start of training",  # the frozen VAE and CLIP, on purpose
        "exists and is not empty",  # the run's folder holds Hydra's log
        "isinstance.treespec, LeafSpec",
        "FSDP2-wrapped module .* returned a view tensor",  # no code changes the outputs of the UNet's blocks in place
    ):
        warnings.filterwarnings("ignore", message=f".*{chatter}")
    for name in ("lightning.pytorch.utilities.rank_zero", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if networks:
        import diffusers
        import transformers

        for library in (diffusers.utils.logging, transformers.utils.logging):
            library.set_verbosity_error()
            library.disable_progress_bar()  # of loading files; downloads keep theirs
