// SPDX-License-Identifier: GPL-2.0-only
//
// Names of devices, which GPU a process takes, and what drivers say; without torch and LAMMPS.

#ifndef EQCALC_DEVICES_H
#define EQCALC_DEVICES_H

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <string>

#include <dlfcn.h>

namespace eqcalc {

// what is wrong with the name that a user gives a device; empty if nothing is
inline std::string device_problem(const std::string &name)
{
  if (name == "cpu" || name == "cuda" || name == "auto") return "";
  if (name.substr(0, name.find(':')) == "mps")
    return "device '" + name +
        "': Apple's GPUs have no double precision, which energies are summed in; use device cpu";
  const bool numbered = name.rfind("cuda:", 0) == 0 && name.size() > 5 && name.size() < 9 &&
      std::all_of(name.begin() + 5, name.end(), [](unsigned char c) { return std::isdigit(c); });
  if (numbered) return "";
  return "there is no device '" + name +
      "': write cpu, cuda (an NVIDIA GPU for each process), cuda:1 (the second of several) or auto";
}

// This process among those of its machine, in the whole of the launcher's job: partitions, replicas
// and programs that give LAMMPS a part of their processes do not change it. -1 where no launcher
// tells.
inline int rank_of_launcher()
{
  for (const char *name :
       {"MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK",
        "PALS_LOCAL_RANKID", "JSM_NAMESPACE_LOCAL_RANK", "FLUX_TASK_LOCAL_ID", "SLURM_LOCALID"}) {
    const char *value = std::getenv(name);
    if (!value || !std::isdigit(static_cast<unsigned char>(*value))) continue;
    return static_cast<int>(std::strtol(value, nullptr, 10));
  }
  return -1;
}

// whether a message of torch or CUDA, which TorchScript passes on as text only, says so
inline bool says_out_of_memory(std::string text)
{
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  for (const char *words :
       {"out of memory", "not enough memory", "allocate memory", "alloc_failed"})
    if (text.find(words) != std::string::npos) return true;
  return false;
}

// NVIDIA's driver, asked without torch
struct Driver {
  int gpus = 0;        // visible to this process
  int version = 0;     // of CUDA that it reaches, such as 12020; 0 without a driver

  Driver()
  {
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);     // stays open
    if (!library) return;
    const auto call = [library](const char *name, auto... arguments) {
      using Function = int (*)(decltype(arguments)...);
      const auto function = reinterpret_cast<Function>(dlsym(library, name));
      return function && function(arguments...) == 0;
    };
    if (!call("cuDriverGetVersion", &version)) version = 0;
    if (!call("cuInit", 0u) || !call("cuDeviceGetCount", &gpus)) gpus = 0;
  }
};

}     // namespace eqcalc

#endif
