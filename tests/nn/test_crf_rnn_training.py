"""CRF-RNN learns: trained on some images it labels others better, the same bits every time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from segfast.nn import CRFRNN, DenseCRF
from tests.nn.crf_scenes import LABELS, mean_iu, scenes

BATCH, STEPS, RATE = 4, 32, 0.03
TRAINING, HELD_OUT = (32, 0), (24, 1)  # images, seed

Scenes = tuple[Tensor, Tensor, Tensor]


def trained(images: Scenes) -> CRFRNN:
    """Gradient descent (Adam) from the published start, batches of 4, each image 4 times."""
    net = CRFRNN(nn.Identity(), LABELS)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    generator = torch.Generator().manual_seed(2)
    for _ in range(STEPS * BATCH // len(images[0])):
        for batch in torch.randperm(len(images[0]), generator=generator).split(BATCH):
            scores, photographs, truth = (part[batch] for part in images)
            loss = functional.cross_entropy(net(scores, photographs), truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


@torch.no_grad()
def refined(net: nn.Module, images: Scenes) -> Tensor:
    """Scores [N, L, H, W] behind the CRF."""
    batches = zip(images[0].split(BATCH), images[1].split(BATCH), strict=True)
    return torch.cat([net(scores, photographs) for scores, photographs in batches])


@pytest.fixture(scope="module")
def held_out() -> Scenes:
    return scenes(*HELD_OUT)


@pytest.fixture(scope="module")
def nets() -> list[CRFRNN]:
    """The same training, twice."""
    images = scenes(*TRAINING)
    return [trained(images), trained(images)]


def test_training_raises_the_mean_iu_of_other_images(nets: list[CRFRNN], held_out: Scenes) -> None:
    """By 5 points over the published start at least, which itself is better than no CRF."""
    scores, _, truth = held_out
    untrained = DenseCRF.from_preset("crf-rnn")  # the released layer before training
    before = mean_iu(refined(untrained, held_out).argmax(1), truth)
    after = mean_iu(refined(nets[0], held_out).argmax(1), truth)
    assert before > mean_iu(scores.argmax(1), truth) + 5
    assert after > before + 5


def test_training_again_gives_the_same_bits(nets: list[CRFRNN], held_out: Scenes) -> None:
    first, second = nets
    for (name, p), q in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert torch.equal(refined(first, held_out), refined(second, held_out))


def test_gradients_have_the_same_bits_for_any_number_of_threads(
    held_out: Scenes, restored_threads: None
) -> None:
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        net = CRFRNN(nn.Identity(), LABELS)
        scores = held_out[0][:BATCH].clone().requires_grad_()
        refinement = net(scores, held_out[1][:BATCH])
        refinement.backward(torch.linspace(-1, 1, scores.numel()).view_as(scores))
        found.append([refinement.detach(), scores.grad, *(p.grad for p in net.parameters())])
    for results in found[1:]:
        for one, other in zip(found[0], results, strict=True):
            assert torch.equal(one, other)  # type: ignore[arg-type]
