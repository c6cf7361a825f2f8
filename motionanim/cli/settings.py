"""Settings on a command line: read as people write them, checked, and written back.

Hydra's own grammar allows few characters outside of quotes, and its errors take many lines.
"""

import difflib
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

# Hydra reads these words, which YAML 1.1 read as booleans, as text, which would count as true.
_YES_NO = {"yes", "no", "on", "off", "y", "n"}

MOST_SEED = 2**32 - 1  # the limit of NumPy's generators


def quoted(value: Any) -> str:
    """A plain Python value in Hydra's grammar.

    Example:
        >>> quoted(["it's", None, 0.5])
        "['it\\\\'s',null,0.5]"
    """
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{quoted(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(quoted, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    # In front of a quote Hydra reads two backslashes as one; elsewhere each is itself.
    return "'" + re.sub(r"(\\+)(?='|\Z)", r"\1\1", str(value)).replace("'", "\\'") + "'"


def _parsed(override: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def readable(argument: str) -> str:
    """An argument of a command line in Hydra's grammar: file names are quoted, and ~/ becomes the home folder.

    A value that Hydra cannot read is text, unless it begins with a bracket or quote. Commas separate the values of a
    sweep, unless a file of that name exists.

    Raises:
        ValueError: If the value is a word such as yes or no, which Hydra would read as text.
    """
    key, given, value = argument.partition("=")
    if not given or argument.startswith("-"):
        return argument
    if key == "vram":  # its choices are numbers, and Hydra's are text
        value = ",".join(quoted(each) if each.isdigit() else each for each in value.split(","))
    if value.startswith("~/"):
        value = os.path.expanduser(value)
    override, is_file = _parsed(f"{key}={value}"), os.path.isfile(value)
    if override is None and (is_file or value[:1] not in ("[", "{", "'", '"')):
        value = quoted(value) if is_file else ",".join(map(quoted, value.split(",")))
    elif override is not None and override.is_sweep_override() and is_file:
        value = quoted(value)
    elif override is not None and str(override.value()).lower() in _YES_NO and value.lower() in _YES_NO:
        raise ValueError(f"{argument}: write true or false")
    return f"{key}={value}"


def command(main: Callable[..., Any]) -> Callable[..., Any]:
    """Make a `hydra.main` read `readable` arguments; what Hydra refuses becomes `error: ...` and exit code 2."""

    @functools.wraps(main)
    def run(*args: Any) -> Any:
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises instead of printing
        try:
            sys.argv[1:] = [readable(argument) for argument in sys.argv[1:]]
            return main(*args)
        except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
            print(f"error: {' '.join(explained(error, sys.argv[1:]).split())}", file=sys.stderr)
            sys.exit(2)

    return run


def explained(error: Exception, arguments: Sequence[str]) -> str:
    """The message of an error of Hydra, OmegaConf or the system, with the argument that caused it and the remedy."""
    if isinstance(error, OverrideParseException):
        if "=" not in error.override:
            return f"{error.override}: no setting; give NAME=VALUE, or --help"
        return f"{error.override}: brackets or quotes do not match; text in quotes reads as it is: \"NAME='TEXT'\""
    cause = error.__cause__
    if isinstance(error, HydraException) and isinstance(cause, OmegaConfBaseException):
        name = (re.findall(r"Could not override '(.+?)'", str(error)) or [cause.full_key])[0]
        near = difflib.get_close_matches(str(name), list(_keys(cause.parent_node)), n=3)
        return f"{name}: no such setting" + f"; did you mean {' or '.join(near)}?" * bool(near)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is missing: give {error.full_key}=..."
    if isinstance(error, OmegaConfBaseException):
        gone = next((argument for argument in arguments if argument == f"~{error.full_key}"), None)
        return str(error) if gone is None else f"{gone}: this command needs {error.full_key}; leave that out"
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
        values = {argument.partition("=")[2].strip("'\""): argument for argument in arguments}
        given = [value for value in values if value and value in str(error.filename)]
        return f"{values[max(given, key=len)]}: {text}; choose another place" if given else text
    return str(error)


def _keys(node: Any) -> Iterator[str]:
    """Full names of all settings in a node."""
    for key in node if isinstance(node, DictConfig) else ():
        yield node._get_full_key(key)
        if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
            yield from _keys(node[key])


def mistyped(overrides: Sequence[str], defaults: DictConfig) -> str | None:
    """The first override whose value is of another kind than the default, and the right kind.

    Args:
        overrides: NAME=VALUE; other forms are skipped.
        defaults: The configuration without these overrides.
    """
    for text in overrides:
        override = _parsed(text)
        if override is None or override.type is not OverrideType.CHANGE or override.is_sweep_override():
            continue
        try:
            usual = OmegaConf.select(defaults, override.key_or_group)
        except OmegaConfBaseException:
            continue
        for kind, takes, told in (
            (bool, bool, "true or false"), (int, int | float, "a whole number"), (float, int | float, "a number"),
        ):  # fmt: skip
            if isinstance(usual, kind):
                value = override.value()
                if not isinstance(value, takes) or (kind is not bool and isinstance(value, bool)):
                    return f"{text}: must be {told}, such as {str(usual).lower()}"
                break
    return None


def check_seed(value: Any) -> None:
    """Raises ValueError unless `value` is an integer from 0 to MOST_SEED."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_SEED:
        raise ValueError(f"seed={value}: must be a whole number from 0 to {MOST_SEED}")


def check_control(control: Any, release: Mapping[str, Any]) -> None:
    """Raises ValueError unless `control` is motion or warp and the levels of `release` are numbers of at least 0."""
    if control not in ("motion", "warp"):
        raise ValueError(f"control={control}: must be motion, by the base's motion weights, or warp, which needs none")
    for name, level in release.items():
        if isinstance(level, bool) or not isinstance(level, int | float) or not level >= 0:
            raise ValueError(f"release.{name}={level}: must be a noise level of at least 0; 0 holds to the end")


def check_size(height: int, width: int, multiple: int, *, bucket_multiple: int = 0) -> None:
    """Check a size in pixels.

    Args:
        multiple: Of the base.
        bucket_multiple: Of the sides of further shapes; 0 where all clips have one shape.

    Raises:
        ValueError: Unless both sides and `bucket_multiple` are multiples of `multiple`.
    """
    if height < 1 or width < 1 or height % multiple or width % multiple:
        raise ValueError(f"scale.height={height}, scale.width={width}: must be multiples of {multiple} for this base")
    if bucket_multiple % multiple:
        raise ValueError(f"scale.bucket_multiple={bucket_multiple}: must be a multiple of {multiple} for this base")


def lora_weights(loras: Any) -> list[tuple[str, float]]:
    """Files and weights of the setting `loras`: {file: weight, ...}, or text of this form.

    Raises:
        ValueError: If it has another form.
    """
    given = loras
    if isinstance(given, str):
        try:
            given = yaml.safe_load(given)
        except yaml.YAMLError:
            given = loras
    weights = list(({} if given is None else given).values()) if isinstance(given, Mapping | None) else [None]
    if not all(isinstance(weight, int | float) and not isinstance(weight, bool) for weight in weights):
        shown = OmegaConf.to_container(loras) if OmegaConf.is_config(loras) else loras
        raise ValueError(f'loras={shown}: must be {{file: weight, ...}}, such as "loras={{lora.safetensors: 0.8}}"')
    return [(os.path.expanduser(str(path)), float(weight)) for path, weight in (given or {}).items()]
