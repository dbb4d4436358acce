"""Which tests are slow, and what they need: markers by file, so that no test is forgotten.

    pytest -m "not slow"            the quick run
    pytest -m "train and not slow"  and so on

A test that takes more than SLOW seconds of CPU in a quick file is marked there with
`pytest.mark.slow`.
"""

from pathlib import Path

import precompiled
import pytest

#: s of CPU time, of a test that belongs to the quick run
SLOW = 4.0

#: files by what they need; those of tests/lammps need the real `lmp`
NEEDS = {
    "train": (
        *("test_training", "test_training_architectures", "test_training_data"),
        "test_training_distributed",
        *("test_training_extended", "test_training_finetune", "test_training_options"),
        "test_training_outputs",
        *("test_training_pairs", "test_training_pretrain", "test_training_setup"),
        *("test_training_store", "test_uncertainty_training"),
        "test_active_loop",
        *("test_training_tools", "test_sample", "test_committee", "test_evaluate", "test_muon"),
    ),
    "compile": (
        *("test_adapters", "test_check_suite", "test_checks", "test_compression", "test_crowding"),
        *("test_cuda_architectures", "test_cuda_compilers", "test_cuda_device"),
        *("test_cuda_driver", "test_cuda_engine"),
        *("test_cuda_faults", "test_cuda_memory", "test_cuda_slices", "test_cuda_training"),
        *("test_engine_build", "test_examples", "test_fused", "test_fused_messages"),
        *("test_fused_programs", "test_importers", "test_importers_mace", "test_importers_nequip"),
        *("test_importers_peers", "test_kernels", "test_properties", "test_sanitizers"),
        *("test_smoothness", "test_threads", "test_runtime", "test_readme", "test_domain"),
        *("test_uncertainty", "test_uncertainty_ase"),
    ),
}

#: of these, files whose tests are quick all the same
QUICK = {"test_muon", "test_domain"}

#: files whose kernels are compiled as users' are
OPTIMISED = {
    *("test_fused", "test_fused_programs", "test_kernels", "test_threads", "test_sanitizers"),
    "test_engine_build",
}

#: files with small networks, each of which does a few structures: kernels take three times as long
#: (of the bundled model five times), and two thirds of the time to compile. Elsewhere -O1
UNOPTIMISED = {
    *("test_cuda_architectures", "test_cuda_device", "test_cuda_driver", "test_cuda_engine"),
    "test_cuda_faults",
    *("test_cuda_memory", "test_cuda_slices", "test_cuda_training"),
    *("test_importers", "test_importers_mace", "test_importers_nequip", "test_importers_peers"),
    *("test_description", "test_evaluate", "test_former_files", "test_outputs"),
    *("test_committee", "test_uncertainty", "test_uncertainty_training"),
    *("test_training", "test_training_architectures", "test_training_data"),
    *("test_training_distributed", "test_training_extended", "test_training_options"),
    *("test_training_outputs", "test_training_pairs", "test_training_setup"),
    *("test_training_store", "test_training_tools"),
    *("test_build", "test_committee_lammps", "test_cuda_lammps", "test_devices", "test_engines"),
    *("test_errors", "test_lammps_outputs", "test_monitor_lammps", "test_own_architecture"),
    *("test_parity", "test_physics", "test_training_domain"),
}


def compiler_flags(item: pytest.Item) -> str:
    """Beside those of the engine."""
    name = Path(item.path).stem
    if name in OPTIMISED:
        return ""
    return precompiled.options("-O0" if name in UNOPTIMISED else "-O1")


def mark(item: pytest.Item) -> None:
    """Adds the markers of a test's file."""
    path = Path(item.path)
    needs = [name for name, files in NEEDS.items() if path.stem in files]
    if path.parent.name == "lammps":
        needs.append("lammps")
    for name in needs:
        item.add_marker(name)
    if needs and path.stem not in QUICK:
        item.add_marker("slow")
