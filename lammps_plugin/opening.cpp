/* ----------------------------------------------------------------------
   Part of eqcalc; compiled against the headers of LAMMPS (https://www.lammps.org) and therefore
   distributed under the GNU General Public License, version 2.
   SPDX-License-Identifier: GPL-2.0-only
------------------------------------------------------------------------- */

#include "opening.h"

#include "devices.h"
#include "fused.h"

#include "comm.h"
#include "error.h"
#include "platform.h"
#include "universe.h"

#include <cstdlib>
#include <new>

#include <dlfcn.h>

using namespace LAMMPS_NS;

/* ----------------------------------------------------------------------
   The library with torch lies beside the plugin. It is opened when a potential needs it, so that
   LAMMPS starts without torch wherever that is not used.
------------------------------------------------------------------------- */

template <typename Function> static Function *find_in_engine(const char *name);

static std::unique_ptr<eqcalc::Engine> open_torch(const eqcalc::EngineOptions &options)
{
  const auto factory = find_in_engine<eqcalc::EngineFactory>(eqcalc::ENGINE_FACTORY_NAME);
  return std::unique_ptr<eqcalc::Engine>(factory(options));
}

template <typename Function> static Function *find_in_engine(const char *name)
{
  Dl_info plugin;
  dladdr(reinterpret_cast<const void *>(&open_torch), &plugin);
  std::string path = plugin.dli_fname;
  path = path.substr(0, path.rfind('/') + 1) + "equivariantengine.so";
  void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);     // stays open
  void *symbol = library ? dlsym(library, name) : nullptr;
  if (!symbol)
    throw eqcalc::EngineError(std::string("the engine cannot be loaded (") + dlerror() +
                              "): run 'eqcalc lammps doctor'");
  return reinterpret_cast<Function *>(symbol);
}

/* ---------------------------------------------------------------------- */

Opening::Opening(LAMMPS *lmp, Processes &processes, const Keywords &keywords, bool with_exchange) :
    Pointers(lmp), processes(processes), keywords(keywords)
{
  processes.problem.clear();
  options.precision = keywords.precision;
  options.device = choose_device();
  options.threads = keywords.threads;
  options.memory_limit = keywords.memory_limit;
  options.rank_on_machine = (options.device == "cuda") ? rank_on_machine() : 0;
  options.with_exchange = with_exchange;
}

/* ---------------------------------------------------------------------- */

std::vector<std::string> Opening::find(std::string word, const std::vector<std::string> &elements)
{
  const char *home = getenv("HOME");
  if (home && word.rfind("~/", 0) == 0) word.replace(0, 1, home);
  const std::string answer = processes.once_per_machine([&] {
    const bool folder = platform::path_is_directory(word);
    if (!folder && (word.find('/') != std::string::npos || platform::file_is_readable(word)))
      return "ready " + word;
    return eqcalc::find_model(word, elements);
  });
  const auto space = answer.find(' ');
  if (answer.substr(0, space) != "ready") processes.problem = answer.substr(space + 1);
  processes.stop_together();

  std::vector<std::string> paths;
  for (auto begin = space; begin != std::string::npos;) {
    const auto end = answer.find('\t', begin + 1);
    paths.push_back(answer.substr(begin + 1, end == std::string::npos ? end : end - begin - 1));
    begin = end;
  }
  return paths;
}

/* ---------------------------------------------------------------------- */

std::unique_ptr<eqcalc::Engine> Opening::open(const std::string &path)
{
  options.path = path;
  std::unique_ptr<eqcalc::Engine> engine;
  std::string reason;     // why not the generated kernels
  const std::string &name = keywords.engine;
  const bool on_gpu = options.device != "cpu";     // by name only: nothing is known of its speed
  if (name != "torch" && (!on_gpu || name == "fused")) {
    reason = open_fused(on_gpu ? "gpu" : name == "exact" ? "network" : "table", engine);
    if (reason.empty()) return engine;
    if (!keywords.engine.empty()) {
      processes.problem = reason;
      processes.stop_together();
    }
  }
  try {
    engine = open_torch(options);
  } catch (const std::bad_alloc &) {
    processes.problem = "out of memory while opening " + path;
  } catch (const std::exception &e) {
    processes.problem = e.what();
  }
  processes.stop_together();
  if (!reason.empty() && comm->me == 0)
    error->warning(FLERR, "Pair style equivariant runs on torch, which is many times slower: {}",
                   reason);
  return engine;
}

/* ----------------------------------------------------------------------
   One process of each machine has Python prepare the file. Empty, or on all processes the sentence
   of the first that has not got the kernels. What goes wrong with kernels that there are is an
   error.
------------------------------------------------------------------------- */

std::string Opening::open_fused(const std::string &radial, std::unique_ptr<eqcalc::Engine> &engine)
{
  const std::string answer = processes.once_per_machine(
      [&] { return eqcalc::prepare_fused(options.path, keywords.precision, radial); });

  std::string reason;
  eqcalc::EngineOptions kernels = options;
  if (kernels.threads == 0) kernels.threads = comm->nthreads;
  const auto space = answer.find(' ');
  const std::string state = answer.substr(0, space), rest = answer.substr(space + 1);
  if (state == "fault") {
    processes.problem = rest;
  } else if (state != "ready") {
    reason = rest;
  } else {
    try {
      engine = eqcalc::open_fused(rest, kernels, radial);
    } catch (const std::bad_alloc &) {
      processes.problem = "out of memory while opening " + options.path;
    } catch (const std::exception &e) {
      processes.problem = e.what();
    }
  }
  processes.stop_together();
  reason = processes.first(reason);
  if (!reason.empty()) engine.reset();
  return reason;
}

/* ---------------------------------------------------------------------- */

int Opening::rank_on_machine() const
{
  const int launched = eqcalc::rank_of_launcher();
  if (launched >= 0) return launched;

  // within this world, after the processes of the worlds before it, which others may wait for

  MPI_Comm machine;
  int rank;
  MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, comm->me, MPI_INFO_NULL, &machine);
  MPI_Comm_rank(machine, &rank);
  MPI_Comm_free(&machine);
  return rank + universe->root_proc[universe->iworld];
}

/* ----------------------------------------------------------------------
   'auto' is a GPU where every process has one that torch can use, else the CPU, with its kernels
------------------------------------------------------------------------- */

std::string Opening::choose_device() const
{
  if (keywords.device != "auto") return keywords.device;
  if (keywords.engine == "fused" || keywords.engine == "exact") return "cpu";
  if (!processes.everywhere(eqcalc::Driver().gpus > 0)) return "cpu";     // before torch is loaded
  bool usable;
  try {
    usable = find_in_engine<eqcalc::GpuCount>(eqcalc::GPU_COUNT_NAME)() > 0;
  } catch (const std::exception &) {
    usable = false;     // why is said where torch is really needed
  }
  return processes.everywhere(usable) ? "cuda" : "cpu";
}
