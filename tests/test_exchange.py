"""Several processes of one machine add up through memory that they share: always in the same order, and never without one of them."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import Run
from processes import in_processes
from test_resume import results
from torch import Tensor, nn

from pipeline.runtime import exchange
from pipeline.runtime.elastic import in_pairs
from pipeline.runtime.exchange import Exchange, Gradients

LENGTHS = {"a number": 1, "none": 0, "few": 1000, "many": 200_001, "more than a slot holds": 1_100_000}


def joined(rank: int, size: int) -> Exchange:
    def agree(value: str) -> str:
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def any_(flag: bool) -> bool:
        flags = torch.tensor(float(flag))
        dist.all_reduce(flags)
        return bool(flags)

    found = exchange.join(rank, size, agree=agree, any_=any_)
    assert found is not None
    return found


def values(rank: int, length: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(length, dtype=dtype, generator=torch.Generator().manual_seed(rank))


def summed(rank: int, size: int) -> dict[str, Tensor]:
    through, found = joined(rank, size), {}
    for dtype in (torch.float32, torch.float64):
        for name, length in LENGTHS.items():
            found[f"{name}, {dtype}"] = values(rank, length, dtype)
            through.sum(found[f"{name}, {dtype}"])
    found["int64"] = torch.arange(5)
    through.sum(found["int64"])
    return found


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_sum_is_that_of_neighbours_in_pairs_to_the_bit_on_every_process(size: int) -> None:
    for found in in_processes(functools.partial(summed, size=size), size):
        for dtype in (torch.float32, torch.float64):
            for name, length in LENGTHS.items():
                expected = in_pairs([values(rank, length, dtype) for rank in range(size)])
                np.testing.assert_array_equal(found[f"{name}, {dtype}"], expected.numpy())
        assert found["int64"].tolist() == [size * value for value in range(5)]


def averaged(rank: int) -> dict[str, Tensor]:
    """The gradients of three parameters: the first used by both of two processes, the second by one, the third by none."""
    model = nn.ParameterList([nn.Parameter(torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)), torch.zeros(2), torch.zeros(2)])
    model[0].grad = torch.full((2, 3, 4, 4), 1.0 + rank)
    if rank:
        model[1].grad = torch.ones(2)
    Gradients(model).average(joined(rank, 2), 2)
    assert model[0].grad is not None
    assert model[0].grad.stride() == model[0].stride(), "as an optimizer wants it"
    return {str(number): parameter.grad for number, parameter in enumerate(model) if parameter.grad is not None}


def test_a_gradient_is_the_mean_and_there_is_none_where_no_process_has_one() -> None:
    for found in in_processes(averaged, 2):
        assert found.keys() == {"0", "1"}
        assert (found["0"] == 1.5).all()
        assert (found["1"] == 0.5).all()


def begins_elsewhere(rank: int) -> None:
    from pipeline.learning import models

    build = models.build

    def other(*arguments: object) -> nn.Module:
        model = build(*arguments)  # type: ignore[arg-type]
        for parameter in model.parameters():
            parameter.data += rank
        return model

    models.build = other  # type: ignore[assignment]


def test_all_begin_with_the_weights_of_the_main_process(run: Run, tmp_path: Path) -> None:
    for folder, before in (("alike", None), ("apart", begins_elsewhere)):
        assert run("train.epochs=1", until="train", processes=2, in_folder=folder, before=before).code == 0
    assert results(tmp_path / "apart") == results(tmp_path / "alike")


def shares_nothing(rank: int) -> None:
    """The last of two processes does not reach the other."""

    def connect(name: str) -> None:
        raise ConnectionRefusedError

    if rank == 1:
        exchange._connect = connect  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("words", "strategy"),
    [([], "ddp"), (["train.determinism=elastic"], "elastic")],
    ids=["DDP takes over", "elastic goes over the network"],
)
def test_where_memory_cannot_be_shared_it_says_so_and_the_result_is_the_same(
    run: Run, tmp_path: Path, words: list[str], strategy: str
) -> None:
    for folder, before in (("shared", None), ("not", shares_nothing)):
        ended = run(*words, "train.epochs=1", until="train", processes=2, in_folder=folder, before=before)
        assert ended.code == 0, ended.output
        assert ("the processes of this machine cannot share memory" in ended.output) == (folder == "not")
    assert f"2 processes ({strategy})" in ended.output
    assert results(tmp_path / "not") == results(tmp_path / "shared")  # of two processes there is but one order


def test_the_loss_of_a_process_ends_the_others_with_a_line(run: Run, tmp_path: Path) -> None:
    ended = run(until="train", processes=3, kill_at=15)
    assert ended.codes == [-9, 1, 1]
    for rank in (1, 2):
        text = (tmp_path / f"output-{rank}.txt").read_text() + (tmp_path / f"runs/tiny/logs/rank-{rank}.log").read_text()
        assert "another process was lost: connection closed by another process; the same command goes on" in text
