"""The process around a calculation: torch's settings, devices, memory, threads and forks."""

import contextlib
import copy
import os
import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.constraints import FixAtoms
from ase.io import write
from runs import tiny, write_frames
from typer.testing import CliRunner

from eqcalc import EquivariantCalculator, InputError, export
from eqcalc.cli import app
from eqcalc.runtime import TurnLock, choose_device, own_torch
from eqcalc.training.dryrun import dry_run
from eqcalc.training.run import train


@contextlib.contextmanager
def setting(change, restore):
    change()
    try:
        yield
    finally:
        restore()


def default_dtype(dtype):
    return setting(
        lambda: torch.set_default_dtype(dtype), lambda: torch.set_default_dtype(torch.float32)
    )


def default_device(name):
    return setting(lambda: torch.set_default_device(name), lambda: torch.set_default_device(None))


@contextlib.contextmanager
def strict():
    """Warnings are errors, and so is every rounding to zero, infinity or NaN in NumPy."""
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        yield


#: what a program around us may have set
WORLDS = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "float64": lambda: default_dtype(torch.float64),
    "meta": lambda: default_device("meta"),
    "strict": strict,
}


def everything(calc, atoms):
    """Energy, forces, stress, Hessian, descriptors and results of many, by one calculator."""
    atoms = atoms.copy()
    atoms.calc = calc
    return [
        np.asarray(atoms.get_potential_energy()),
        atoms.get_forces(),
        atoms.get_stress(),
        calc.get_hessian(atoms[:3]),
        calc.get_descriptors(atoms),
        calc.evaluate([atoms])[0]["forces"],
    ]


def fresh(calc):
    """A copy that has to calculate everything anew."""
    twin = copy.copy(calc)
    twin.reset()
    twin._kept = None, {}
    return twin


@pytest.fixture(scope="module", params=[("fused", "float64"), ("torch", "float32")])
def options(request):
    return {"engine": request.param[0], "dtype": request.param[1]}


@pytest.fixture(scope="module")
def plain(potential_path, options):
    return EquivariantCalculator(potential_path, **options)


@pytest.mark.parametrize("world", WORLDS)
def test_the_same_numbers_in_any_world(potential_path, crystal, plain, options, world):
    """For a calculator made outside, and for a file opened inside."""
    expected = everything(plain, crystal)
    outside = fresh(plain)
    with WORLDS[world]():
        got = everything(outside, crystal)
        inside = EquivariantCalculator(potential_path, **options)
        opened = everything(inside, crystal)
    later = everything(inside, crystal.copy())
    for results in (got, opened, later):
        for value, right in zip(results, expected, strict=True):
            assert np.array_equal(value, right)


def rounding(size=200):
    """Of a product of float32 matrices, on this processor and with the present settings."""
    a = torch.arange(size * size, dtype=torch.float64).sin().reshape(size, size)
    return float((a.float() @ a.T.contiguous().float() - a @ a.T.contiguous()).abs().max())


LOW_PRECISION = {
    "old name": lambda: torch.set_float32_matmul_precision("medium"),
    "TF32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "new name": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "of everything": lambda: setattr(torch.backends, "fp32_precision", "bf16"),
}


def products():
    read = torch._C._get_fp32_precision_getter
    names = [("cuda", "matmul"), ("mkldnn", "matmul"), ("mkldnn", "all"), ("generic", "all")]
    return [read(*name) for name in names]


def all_exact():
    torch.backends.fp32_precision = "none"
    for backend in (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul):
        backend.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")
    for backend in (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul):
        backend.fp32_precision = "none"


@pytest.mark.parametrize("name", LOW_PRECISION)
def test_products_are_not_rounded_to_fewer_digits(potential_path, crystal, name):
    calc = EquivariantCalculator(potential_path, engine="torch", dtype="float32")
    expected = everything(calc, crystal)
    exact = rounding()
    with setting(LOW_PRECISION[name], all_exact):
        before, rough = products(), rounding()
        got = everything(fresh(calc), crystal)
        with own_torch():
            assert rounding() == exact
            assert torch.backends.cuda.matmul.allow_tf32 is False
        assert products() == before
        assert rounding() == rough
    for value, right in zip(got, expected, strict=True):
        assert np.array_equal(value, right)
    assert torch.get_float32_matmul_precision() == "highest"


def test_fusion_is_off_inside_and_as_before_outside(potential_path, crystal):
    mine = [("DYNAMIC", 3)]
    before = torch._C._jit_set_fusion_strategy(mine)
    try:
        with own_torch(), own_torch():
            inside = torch._C._jit_set_fusion_strategy([("STATIC", 0)])
        crystal.calc = EquivariantCalculator(potential_path, engine="torch")
        crystal.get_forces()
        after = torch._C._jit_set_fusion_strategy(mine)
    finally:
        torch._C._jit_set_fusion_strategy(before)
    assert inside == [("STATIC", 0)]
    assert after == mine


def test_settings_stay_until_the_last_thread_is_done():
    """The first to come notes them; who leaves first does not bring them back."""
    first_inside, first_may_go, second_inside = (threading.Event() for _ in range(3))
    mine, seen = [("DYNAMIC", 3)], []
    before = torch._C._jit_set_fusion_strategy(mine)

    def first():
        with own_torch():
            first_inside.set()
            first_may_go.wait(60)

    def second():
        first_inside.wait(60)
        with own_torch():
            second_inside.set()
            one.join(60)
            seen.append(torch._C._jit_set_fusion_strategy([("STATIC", 0)]))

    one, two = threading.Thread(target=first), threading.Thread(target=second)
    try:
        one.start()
        two.start()
        second_inside.wait(60)
        first_may_go.set()
        two.join(60)
        after = torch._C._jit_set_fusion_strategy(mine)
    finally:
        torch._C._jit_set_fusion_strategy(before)
    assert seen == [[("STATIC", 0)]]
    assert after == mine


@pytest.mark.parametrize("engine", ["fused", "torch"])
def test_two_thread_counts_in_one_process(potential_path, crystal, engine):
    before, results = torch.get_num_threads(), []
    for threads in (2, 1, None):
        atoms = crystal.copy()
        atoms.calc = EquivariantCalculator(
            potential_path, dtype="float64", engine=engine, threads=threads
        )
        results.append(atoms.get_forces())
        assert torch.get_num_threads() == before
    assert max(np.abs(f - results[0]).max() for f in results) < 1e-12


@pytest.mark.parametrize("engine", ["fused", "torch"])
def test_threads_that_share_one_calculator(potential_path, crystal, engine):
    """Different structures at once: every one gets the numbers that it gets alone."""
    options = {"dtype": "float64", "engine": engine}
    structures = [crystal[: 3 + k % 6] for k in range(12)]
    for k, atoms in enumerate(structures):
        atoms.rattle(0.05, seed=k)
    expected = [tuple(everything_of(EquivariantCalculator(potential_path, **options), structures))]
    shared = EquivariantCalculator(potential_path, **options)
    start = threading.Barrier(8)

    def work(number):
        start.wait(60)
        order = np.random.default_rng(number).permutation(len(structures))
        return order, everything_of(shared, [structures[k] for k in order])

    with ThreadPoolExecutor(8) as pool:
        for order, got in pool.map(work, range(8)):
            for place, k in enumerate(order):
                for value, right in zip(got[place], expected[0][k], strict=True):
                    assert np.abs(value - right).max() < 1e-11


def everything_of(calc, structures):
    """Energy and forces asked for one after the other, virials, and several at once, of each."""
    found = []
    for one in structures:
        atoms = one.copy()
        atoms.calc = calc
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        virials = calc.get_atomic_virials(atoms)
        both = atoms.get_properties(["energy", "stress"])
        found.append([energy, forces, virials, both["energy"], both["stress"]])
    return found


def test_threads_and_the_methods_beyond_ase(potential_path, crystal):
    calc = EquivariantCalculator(potential_path, dtype="float64", threads=1)
    structures = [crystal[[k, (k + 1) % 8, (k + 2) % 8]] for k in range(6)]
    for atoms in structures:
        atoms.pbc = False
    alone = [(calc.get_hessian(a), calc.get_descriptors(a)) for a in structures]
    many = calc.evaluate(structures)

    def work(k):
        copies = copy.copy(calc), copy.deepcopy(calc)
        hessians = [c.get_hessian(structures[k]) for c in (calc, *copies)]
        return hessians, calc.get_descriptors(structures[k]), calc.evaluate(structures)

    with ThreadPoolExecutor(6) as pool:
        for k, (hessians, descriptors, results) in enumerate(pool.map(work, range(6))):
            assert all(np.array_equal(h, alone[k][0]) for h in hessians)
            assert np.array_equal(descriptors, alone[k][1])
            for got, right in zip(results, many, strict=True):
                assert np.array_equal(got["forces"], right["forces"])


def test_a_fork_while_another_thread_calculates(potential_path, crystal):
    """The child, which has one thread, finds every lock free."""
    calc = EquivariantCalculator(potential_path, dtype="float64")
    crystal.calc = calc
    expected = crystal.get_forces()
    held, done = threading.Event(), threading.Event()

    def holder():
        with calc._lock, calc.backend.potential._one_at_a_time, own_torch():
            held.set()
            done.wait(60)

    thread = threading.Thread(target=holder)
    thread.start()
    held.wait(60)
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            calc.reset()
            atoms = crystal.copy()
            atoms.calc = calc
            code = 0 if np.array_equal(atoms.get_forces(), expected) else 2
        os._exit(code)
    done.set()
    thread.join(60)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_locks_are_not_shared_by_copies():
    lock = TurnLock()
    with lock, lock:
        for other in (copy.copy(lock), copy.deepcopy(lock), pickle.loads(pickle.dumps(lock))):
            with ThreadPoolExecutor(1) as pool:  # who would wait for ever otherwise
                assert pool.submit(lambda o=other: o._lock.acquire(timeout=30)).result()


def test_results_cannot_be_changed_in_place(potential_path, crystal):
    calc = EquivariantCalculator(potential_path, dtype="float64")
    crystal.calc = calc
    crystal.get_stress()
    twins = [calc, copy.copy(calc), copy.deepcopy(calc), pickle.loads(pickle.dumps(calc))]
    for one in twins:
        expected = one.get_property("forces", crystal)
        with pytest.raises(ValueError, match="read-only"):
            one.results["forces"] *= 2.0
        assert np.array_equal(one.get_property("forces", crystal), expected)
        one.get_property("forces", crystal)[:] = 0.0
        one.get_atomic_virials(crystal)[:] = 0.0
        one.get_hessian(crystal[:2])[:] = 0.0
        assert np.array_equal(one.get_property("forces", crystal), expected)
        assert one.get_atomic_virials(crystal).any()
        assert one.get_hessian(crystal[:2]).any()
    calc.evaluate([crystal])[0]["forces"] *= 2.0  # is the caller's own


def test_a_failed_calculation_leaves_no_answer(potential_path, crystal):
    """Neither of the structure before nor of one that was refused."""
    calc = EquivariantCalculator(potential_path, dtype="float64")
    crystal.calc = calc
    energy = crystal.get_potential_energy()
    broken = crystal.copy()
    broken.positions[0] = broken.positions[1]
    broken.calc = calc
    with pytest.raises(InputError, match="0 Å apart"):
        broken.get_properties(["energy"])
    for _ in range(2):
        with pytest.raises(InputError, match="0 Å apart"):
            broken.get_potential_energy()
    assert calc.get_property("energy", broken, allow_calculation=False) is None
    with pytest.raises(InputError, match="There is no structure yet"):
        calc.get_property("energy")
    assert crystal.get_potential_energy() == energy
    assert calc.get_property("energy", crystal, allow_calculation=False) == energy
    with pytest.raises(InputError, match="There is no structure yet"):
        EquivariantCalculator(potential_path).calculate()


def test_constraints_and_charges(potential_path, crystal):
    calc = EquivariantCalculator(potential_path, dtype="float64")
    crystal.calc = calc
    free = crystal.get_forces()
    crystal.set_constraint(FixAtoms([0]))
    crystal.set_initial_charges(np.arange(8.0))
    crystal.set_initial_magnetic_moments(np.ones(8))
    assert np.array_equal(crystal.get_forces(apply_constraint=False), free)
    assert not crystal.get_forces()[0].any()
    assert np.array_equal(crystal.get_forces()[1:], free[1:])


@pytest.mark.parametrize("engine", ["fused", "torch"])
def test_no_atoms(potential_path, engine):
    calc = EquivariantCalculator(potential_path, engine=engine)
    atoms = Atoms(cell=[5, 5, 5], pbc=True)
    atoms.calc = calc
    assert atoms.get_potential_energy() == 0.0
    assert atoms.get_forces().shape == (0, 3)
    assert not atoms.get_stress().any()
    assert calc.get_hessian(atoms).shape == (0, 0)
    assert len(calc.get_descriptors(atoms)) == 0


@pytest.mark.parametrize("bad", [{"skin": np.nan}, {"skin": np.inf}, {"threads": 1.5}])
def test_options_that_are_no_numbers(potential_path, bad):
    with pytest.raises(InputError, match="it must be"):
        EquivariantCalculator(potential_path, **bad)


NO_GPU = "sees no CUDA GPU"


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("gpu", "There is no device 'gpu': write 'cpu', 'cuda'"),
        ("CUDA", "There is no device 'CUDA'"),
        ("cuda:", "There is no device 'cuda:'"),
        ("cuda:-1", "There is no device 'cuda:-1'"),
        ("cpu:3", "There is no device 'cpu:3'"),
        ("meta", "There is no device 'meta'"),
        ("", "There is no device ''"),
        (0, "There is no device '0'"),
        ("mps", "Apple's GPUs have no double precision"),
        ("mps:0", "Apple's GPUs have no double precision"),
    ],
)
def test_names_of_devices(potential_path, device, sentence):
    for make in (EquivariantCalculator, export.load):
        with pytest.raises(InputError, match=sentence):
            make(potential_path, device=device)


@pytest.fixture
def gpus(monkeypatch):
    """torch's own probes, as on a machine with so many GPUs."""

    def pretend(count, *, cuda="13.0", error=None):
        def init():
            if error:
                raise RuntimeError(error)

        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "init", init)

    return pretend


def test_no_gpu_and_auto(potential_path, crystal, gpus):
    gpus(0, cuda=None)
    for name in ("cuda", "cuda:0", "cuda:9"):
        with pytest.raises(InputError, match=f"'{name}' .* {NO_GPU} .* install a CUDA build"):
            choose_device(name)
    gpus(0, error="Found no NVIDIA driver on your system.")
    with pytest.raises(InputError, match=f"{NO_GPU} .* look with nvidia-smi"):
        choose_device("cuda")
    assert choose_device("auto") == torch.device("cpu")
    calc = EquivariantCalculator(potential_path, device="auto", dtype="float64")
    assert calc.backend.name == "fused"
    twin = pickle.loads(pickle.dumps(calc))
    alone = EquivariantCalculator(potential_path, dtype="float64")
    for one in (calc, twin):
        expected = alone.get_property("forces", crystal)
        assert np.array_equal(one.get_property("forces", crystal), expected)


def test_a_driver_that_is_too_old_says_so(gpus):
    gpus(
        0,
        error="The NVIDIA driver on your system is too old (found version 12020). Please update "
        "your GPU driver by downloading and installing a new version from the URL: ...",
    )
    with pytest.raises(InputError, match=r"which reaches CUDA 12.2, is too old .* for CUDA 13.0"):
        choose_device("cuda:1")


def test_gpus_by_number(gpus):
    gpus(2)
    for name in ("auto", "cuda", "cuda:1"):
        assert choose_device(name).type == "cuda"
    assert choose_device(torch.device("cuda", 1)).index == 1
    with pytest.raises(InputError, match=r"'cuda:9' .* there is only cuda:0 to cuda:1 here"):
        choose_device("cuda:9")
    gpus(1)
    with pytest.raises(InputError, match="there is only cuda:0 here"):
        choose_device("cuda:1")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError(
            "The following operation failed in the TorchScript interpreter.\nTraceback ...\n"
            "RuntimeError: CUDA out of memory. Tried to allocate 20.00 GiB."
        ),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError("Unable to allocate 3.00 GiB for an array"),
    ],
    ids=["torch", "TorchScript", "CPU", "cuBLAS", "numpy"],
)
def test_too_little_memory_is_one_sentence(potential_path, crystal, monkeypatch, error):
    calc = EquivariantCalculator(potential_path, engine="torch")

    def fail(*_):
        raise error

    monkeypatch.setattr(type(calc.potential), "evaluate", fail)
    crystal.calc = calc
    with pytest.raises(InputError, match=r"too little memory for 8 atoms with .* pairs at once: "):
        crystal.get_forces()
    monkeypatch.undo()
    assert np.isfinite(crystal.get_forces()).all()


def test_other_errors_of_torch_are_not_taken_for_memory(potential_path, crystal, monkeypatch):
    calc = EquivariantCalculator(potential_path, engine="torch")
    bug = RuntimeError("index out of range")

    def fail(*_):
        raise bug

    monkeypatch.setattr(type(calc.potential), "evaluate", fail)
    with pytest.raises(RuntimeError, match="index out of range") as caught:
        calc.get_property("forces", crystal)
    assert caught.value is bug


def test_subclasses_may_add_to_results(potential_path, crystal):
    """ASE's usual way to correct a calculator."""

    class Shifted(EquivariantCalculator):
        def calculate(self, *args, **options):
            super().calculate(*args, **options)
            self.results["energy"] += 1.0

    assert issubclass(Shifted, Calculator)
    energies = [
        kind(potential_path, dtype="float64").get_property("energy", crystal)
        for kind in (Shifted, EquivariantCalculator)
    ]
    assert energies[0] == energies[1] + 1.0


def test_devices_on_the_command_line(potential_path, crystal, tmp_path, gpus):
    """auto without a GPU is the fused engine on the CPU; training names what is missing, too."""
    gpus(0, cuda=None)
    crystal.calc = EquivariantCalculator(potential_path, dtype="float64")
    crystal.get_forces()
    write(tmp_path / "frame.xyz", crystal)
    command = ["evaluate", str(potential_path), str(tmp_path / "frame.xyz"), "--dtype", "float64"]
    shown = [
        CliRunner().invoke(app, [*command, *device], catch_exceptions=False).output
        for device in ([], ["--device", "auto"], ["--device", "auto", "--engine", "fused"])
    ]
    assert "forces" in shown[0]
    assert shown[1] == shown[2] == shown[0]
    refused = CliRunner().invoke(app, [*command, "--device", "cuda"])
    assert isinstance(refused.exception, InputError)
    assert NO_GPU in str(refused.exception)
    config = tiny(write_frames(tmp_path / "in.xyz", 8), device="cuda")
    with pytest.raises(InputError, match=NO_GPU):
        train(config, tmp_path / "out")
    with pytest.raises(InputError, match=NO_GPU):
        dry_run(config)
    assert not (tmp_path / "out").exists()
