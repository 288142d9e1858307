"""iidlib.distillation.captured: a step on fixed buffers is the plain step; elsewhere the plain step continues."""

import contextlib
import gc
import logging
import weakref

import pytest
import torch

from iidlib import augment
from iidlib.distillation import METHODS, LazyDraws, captured, captured_step
from iidlib.engine import cuda_graph
from iidlib.features import fixed_queue
from iidlib.rng import stream
from tests.factories import CC_FORMS, difference, on_buffers, ready_run, settings, tiny_dataset
from tests.fake_cuda import fake_cuda

EVEN = (12, 12, 12, 12)
RECORDED = tuple(METHODS)
ALL = range(len(EVEN))


@pytest.mark.parametrize("method", RECORDED)
@pytest.mark.parametrize("form", [CC_FORMS[0], CC_FORMS[2]], ids=str)
def test_a_step_on_buffers_is_the_plain_step(method, form):
    plain, buffered = (ready_run(settings(method, **form), tiny_dataset(EVEN)) for _ in range(2))
    start = plain.images.detach().clone()
    step = on_buffers(buffered)
    for iteration in range(4):
        plain.step(iteration)
        step.step(iteration)
        step.advance(iteration)
    assert difference(buffered.images.detach() - start, plain.images.detach().double() - start) < 1e-4


def test_without_augmentation_too():
    plain, buffered = (ready_run(settings("dm", match__augmentation="none"), tiny_dataset(EVEN)) for _ in range(2))
    step = on_buffers(buffered)
    for iteration in range(2):
        plain.step(iteration)
        step.step(iteration)
    assert difference(buffered.images.detach(), plain.images.detach().double()) < 1e-6


def test_mosaics_are_expanded():
    changes = {"syn__factor": 2, "syn__init": "crops", "match__cm": 0.1}
    plain, buffered = (ready_run(settings("dm-cm", 2, **changes), tiny_dataset(EVEN)) for _ in range(2))
    start = plain.images.detach().clone()
    step = on_buffers(buffered)
    for iteration in range(3):
        plain.step(iteration)
        step.step(iteration)
        step.advance(iteration)
    assert difference(buffered.images.detach() - start, plain.images.detach().double() - start) < 1e-4


def test_buffers_stay_where_they_are():
    """A recording replays addresses; those of the transforms are seen by replaying one, in the next test but one."""
    run = ready_run(settings("iid-dm"), tiny_dataset(EVEN))
    step = on_buffers(run)

    def places() -> list[int]:
        draws = step.draws
        networks = [*draws.matching.network.parameters(), *draws.pretrained.parameters()]
        held = [draws.buffers["real"], draws.buffers["op"], run.images, *networks]
        return [tensor.data_ptr() for tensor in held]

    before = places()
    for iteration in range(3):
        step.step(iteration)
    assert places() == before


@pytest.mark.parametrize("augmentation", ["color_crop_cutout_flip_scale_rotate", "none"])
def test_buffers_hold_the_draws_of_a_step_without_them(augmentation):
    run = ready_run(settings("iid-dm", match__augmentation=augmentation), tiny_dataset(EVEN))
    buffers, plain = on_buffers(run).draws, LazyDraws(run, 3)
    buffers.load(3)
    assert buffers.iteration == 3 and buffers.matching == plain.matching
    assert torch.allclose(buffers.real(ALL), plain.real(ALL), atol=1e-5) and torch.equal(buffers.counts, plain.counts)
    assert torch.equal(buffers.real(range(1, 3)), buffers.real(ALL)[6:18])
    for held, drawn in zip(buffers.pretrained.parameters(), plain.pretrained.parameters(), strict=True):
        assert torch.equal(held, drawn)
    images = run.images.detach()
    assert torch.allclose(buffers.augmented(images, ALL), plain.augmented(images, ALL), atol=1e-5)
    one = range(2, 3)
    assert torch.allclose(buffers.augmented(images[:3], one), plain.augmented(images[:3], one), atol=1e-5)


@pytest.mark.parametrize("method", RECORDED)
def test_a_recording_is_the_plain_step(method, monkeypatch, caplog):
    """Replayed with the draws of each iteration, on a stand-in for the device."""
    fake_cuda(monkeypatch)
    plain, run = (ready_run(settings(method), tiny_dataset(EVEN)) for _ in range(2))
    start = run.images.detach().clone()
    step = captured_step(run, run.terms, run.optimiser)
    assert step is not None and torch.equal(run.images, start) and not caplog.records
    monkeypatch.setattr(step, "compute", lambda: pytest.fail("the step is replayed"))
    for iteration in range(4):
        plain.step(iteration)
        step.step(iteration)
        step.advance(iteration)
    assert difference(run.images.detach() - start, plain.images.detach().double() - start) < 1e-4


@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
def test_recording_leaves_images_and_momentum_as_they_were(wrong, monkeypatch, caplog):
    cuda = fake_cuda(monkeypatch)
    cuda.wrong = wrong
    run = ready_run(settings("iid-dm"), tiny_dataset(EVEN))
    step = on_buffers(run)
    step.step(0)
    images, momentum = run.images.detach().clone(), run.optimiser.velocity.clone()
    assert momentum.any()
    step.load(1)
    assert step.record() is not wrong
    assert ("its update differs by" in caplog.text) is wrong
    assert torch.equal(run.images, images) and torch.equal(run.optimiser.velocity, momentum)
    step.step(1)  # continues either way
    assert not torch.equal(run.images, images)


@pytest.mark.parametrize("method", ["dm", "iid-dm", "idm", "iid-plus"])
def test_a_logged_iteration_is_replayed_too_and_logs_what_a_plain_one_does(method, monkeypatch):
    fake_cuda(monkeypatch)
    plain, run = (ready_run(settings(method), tiny_dataset(EVEN)) for _ in range(2))
    start = run.images.detach().clone()
    run.record()
    assert run.recorded
    monkeypatch.setattr(run._recorded, "compute", lambda **given: pytest.fail("the step is replayed"))
    for iteration in range(3):
        expected, logged = (one.step(iteration, log=iteration != 1) for one in (plain, run))
        assert logged == pytest.approx(expected, rel=1e-3) and bool(logged) is (iteration != 1)
    assert difference(run.images.detach() - start, plain.images.detach().double() - start) < 1e-4


def test_a_logged_iteration_that_is_not_finite_leaves_the_images(monkeypatch):
    fake_cuda(monkeypatch)
    run = ready_run(settings("dm"), tiny_dataset(EVEN))
    run.record()
    run.step(0)
    with torch.no_grad():
        run.images[0, 0, 0, 0] = float("inf")
    images, velocity = run.images.detach().clone(), run.optimiser.velocity.clone()
    with pytest.raises(FloatingPointError, match="the term 'mean' is nan before iteration 1"):
        run.step(1, log=True)
    assert torch.equal(run.images, images) and torch.equal(run.optimiser.velocity, velocity)


def test_a_recorded_step_is_freed_with_its_run_and_without_the_garbage_collector(monkeypatch):
    fake_cuda(monkeypatch)
    for closed in (True, False):
        run = ready_run(settings("iid-idm"), tiny_dataset(EVEN))
        run.record()
        run.step(0)
        step, draws = weakref.ref(run._recorded), weakref.ref(run._recorded.draws)
        gc.disable()
        try:
            if closed:
                run.close()
                assert not run.recorded
                run.step(1)
            del run
            assert step() is None and draws() is None
        finally:
            gc.enable()


def test_all_recordings_of_a_process_share_a_memory_pool_and_the_stream_that_it_serves(monkeypatch):
    cuda = fake_cuda(monkeypatch)
    monkeypatch.setattr(cuda_graph, "_alive", weakref.WeakSet())  # private: other tests may have left some
    run = ready_run(settings("idm"), tiny_dataset(EVEN))
    step = captured_step(run, run.terms, run.optimiser)
    recordings = [*step._recordings.values(), step.draws.fixed._whole]
    assert len({recording._pool for recording in recordings}) == 1 and len(recordings) == 3
    captures = [done for done in cuda.log if done.startswith("capture")]
    assert captures == ["capture on side 2"] * 3, "free memory serves only the stream that it was made for"
    pool = recordings[0]._pool
    del step, recordings
    gc.collect()
    step = captured_step(run, run.terms, run.optimiser)
    assert step._recordings[False]._pool is not pool, "a pool ends with its last recording"


def test_a_step_is_recorded_in_the_precision_of_the_run(monkeypatch):
    fake_cuda(monkeypatch)
    entered = []

    @contextlib.contextmanager
    def noted(device, name):
        entered.append(name)
        yield
        entered.append("end")

    monkeypatch.setattr(captured, "precision", noted)
    run = ready_run(settings("dm", compute__precision="fp32"), tiny_dataset(EVEN))
    monkeypatch.setattr(captured.CapturedStep, "record", lambda step: entered.append("record") or True)
    assert captured_step(run, run.terms, run.optimiser) is not None
    assert entered == ["fp32", "record", "end"]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_operations_on_every_image_are_those_on_their_own(layout):
    images = torch.randn(36, 3, 8, 8, dtype=torch.float64).contiguous(memory_format=layout)
    draws = augment.sample(augment.OPERATIONS, 36, stream(0, 0, "draws"))
    assert len(draws.op.unique()) == 6
    mine, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    found = augment.apply_everywhere(mine, draws.op, draws.u)
    expected = augment.apply(theirs, draws)
    assert difference(found.detach(), expected.detach()) < 1e-12
    assert found.is_contiguous(memory_format=layout)
    cotangent = torch.randn_like(images)
    gradients = [torch.autograd.grad(out, x, cotangent)[0] for out, x in ((found, mine), (expected, theirs))]
    assert difference(*gradients) < 1e-12


@pytest.mark.parametrize(
    ("per_class", "changes", "message"),
    [((8, 5), {}, "unequal size"), ((8, 8), {"match__statistics": "cached"}, "cached statistics")],
)
def test_what_has_no_fixed_shapes(per_class, changes, message):
    with pytest.raises(ValueError, match=message):
        on_buffers(ready_run(settings("dm", **changes), tiny_dataset(per_class)))
    with pytest.raises(ValueError, match="not there from the start"):
        on_buffers(ready_run(settings("idm", 1, queue__start=1, queue__train=3), tiny_dataset(EVEN)))


def test_on_a_cpu_there_is_none():
    run = ready_run(settings("dm"), tiny_dataset(EVEN))
    assert captured_step(run, run.terms, run.optimiser) is None


def test_a_recording_that_fails_is_said_once_and_given_up(monkeypatch, caplog):
    def failing(*given):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    fake_cuda(monkeypatch)
    monkeypatch.setattr(captured, "CapturedStep", failing)
    caplog.set_level(logging.WARNING, "iidlib")
    run = ready_run(settings("dm"), tiny_dataset(EVEN))
    assert captured_step(run, run.terms, run.optimiser) is None
    (record,) = caplog.records
    assert record.message == (
        "no CUDA graph of the step (operation not permitted when stream is capturing); "
        "launching kernels one by one, which is slower"
    )


def test_iterations_whose_queue_trains_without_a_recording_are_not_called_recorded(monkeypatch):
    fake_cuda(monkeypatch)
    run = ready_run(settings("idm"), tiny_dataset(EVEN))
    run.record()
    assert run.recorded
    monkeypatch.setattr(fixed_queue, "recorded", lambda *given, **named: None)
    run.record()
    assert run._recorded is not None and not run.recorded


def test_a_run_without_fixed_shapes_is_said_once_and_continues(monkeypatch, caplog):
    cuda = fake_cuda(monkeypatch)
    caplog.set_level(logging.WARNING, "iidlib")
    run = ready_run(settings("dm"), tiny_dataset((8, 5)))
    run.record()
    run.step(0)
    (record,) = caplog.records
    assert "no CUDA graph of the step (classes of unequal size have no fixed shapes)" in record.message
    assert not cuda.log, "nothing was captured"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compile", ["off", "auto"])
@pytest.mark.parametrize("method", RECORDED)
def test_a_recording_is_the_plain_step_on_a_gpu(method, compile):
    from iidlib.data import Dataset

    data = tiny_dataset(EVEN)
    moved = Dataset(data.name, data.train.to("cuda"), data.test.to("cuda"), data.spec)
    config = settings(method, compute__precision="fp32", compute__compile=compile)
    plain, recorded = (ready_run(config, moved) for _ in range(2))
    for run in (plain, recorded):
        for network in run.pool.networks if run.pool else ():
            network.cuda()
        if run.source.from_pool:
            run.source.use_pool(run.pool)  # again, since it keeps a copy
    step = captured_step(recorded, recorded.terms, recorded.optimiser)
    assert step is not None
    for iteration in range(4):
        plain.step(iteration)
        step.step(iteration)
        step.advance(iteration)
    assert difference(recorded.images.detach().cpu(), plain.images.detach().cpu().double()) < 1e-4
