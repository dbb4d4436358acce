/* ----------------------------------------------------------------------
   Part of eqcalc; compiled against the headers of LAMMPS (https://www.lammps.org) and therefore
   distributed under the GNU General Public License, version 2.
   SPDX-License-Identifier: GPL-2.0-only
------------------------------------------------------------------------- */

#include "fix_equivariant_monitor.h"
#include "pair_equivariant.h"

#include "lammps.h"

#include <cstdio>
#include <cstring>

using namespace LAMMPS_NS;

// LAMMPS's documented binary interface for plugins, declared here because the header with it is
// not installed everywhere
extern "C" {
struct PluginRecord {
  const char *version, *style, *name, *info, *author;
  void *creator;
  void *handle;
};
using PluginRegister = void(PluginRecord *, void *);

__attribute__((visibility("default"))) void lammpsplugin_init(void *lmp, void *handle,
                                                              void *regfunc);
}

static Pair *create_pair(LAMMPS *lmp)
{
  return new PairEquivariant(lmp);
}

static Fix *create_monitor(LAMMPS *lmp, int narg, char **arg)
{
  return new FixEquivariantMonitor(lmp, narg, arg);
}

void lammpsplugin_init(void *lmp, void *handle, void *regfunc)
{
  // The layout of LAMMPS's classes changes even between updates of one release, so nothing of
  // lmp may be touched before the two are known to be the same. Static functions are safe.
  const char *running = LAMMPS::git_descriptor();
  if (strcmp(running, EQCALC_LAMMPS_DESCRIPTOR) != 0) {
    fprintf(stderr,
            "eqcalc: pair_style equivariant is not available: it was compiled for LAMMPS %s, but "
            "this is LAMMPS %s; run 'eqcalc lammps build' in the environment of this LAMMPS.\n",
            EQCALC_LAMMPS_DESCRIPTOR, running);
    return;
  }
  static PluginRecord record = {};
  record.version = static_cast<LAMMPS *>(lmp)->version;
  record.style = "pair";
  record.name = "equivariant";
  record.info = "E(3)-equivariant interatomic potentials of eqcalc";
  record.author = "eqcalc";
  record.creator = reinterpret_cast<void *>(&create_pair);
  record.handle = handle;
  reinterpret_cast<PluginRegister *>(regfunc)(&record, lmp);

  static PluginRecord monitor = record;
  monitor.style = "fix";
  monitor.name = "equivariant/monitor";
  monitor.info = "watches deviations and extrapolation grades of pair_style equivariant";
  monitor.creator = reinterpret_cast<void *>(&create_monitor);
  reinterpret_cast<PluginRegister *>(regfunc)(&monitor, lmp);
}
