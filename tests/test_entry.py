"""A user's mistake is one line and exit code 2, also when it happened in a loader's worker."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from motionanim.entry import one_line_errors


class Broken(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        raise ValueError("3 of 5 clips cannot be used: see rejected.csv")


@pytest.mark.parametrize("workers", [0, 1])
def test_the_line_is_the_error_itself(workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    @one_line_errors
    def main() -> None:
        next(iter(DataLoader(Broken(), num_workers=workers)))

    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: 3 of 5 clips cannot be used: see rejected.csv\n"


def test_a_bug_of_ours_keeps_its_traceback() -> None:
    @one_line_errors
    def main() -> None:
        raise AssertionError("impossible")

    with pytest.raises(AssertionError, match="impossible"):
        main()


def test_what_main_returns_is_returned() -> None:
    assert one_line_errors(lambda value: value + 1)(2) == 3
