/* ----------------------------------------------------------------------
   Part of eqcalc; compiled against the headers of LAMMPS (https://www.lammps.org) and therefore
   distributed under the GNU General Public License, version 2.
   SPDX-License-Identifier: GPL-2.0-only
------------------------------------------------------------------------- */

#include "fix_equivariant_monitor.h"

#include "elements.h"
#include "extended_xyz.h"

#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "error.h"
#include "force.h"
#include "update.h"
#include "utils.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

using namespace LAMMPS_NS;
using namespace FixConst;

/* ---------------------------------------------------------------------- */

FixEquivariantMonitor::FixEquivariantMonitor(LAMMPS *lmp, int narg, char **arg) :
    Fix(lmp, narg, arg), pair(nullptr), quantity(PairEquivariant::GRADE), warn_above(NEVER),
    stop_above(NEVER), interval(0.0), append(false), pending(false), warned(false), saved(false),
    saved_step(0), saved_time(0.0)
{
  if (narg < 5 || narg % 2 == 0)
    error->all(FLERR,
               "Fix equivariant/monitor: expected 'fix ID group equivariant/monitor N file' and "
               "pairs of keyword and value");
  nevery = utils::inumeric(FLERR, arg[3], false, lmp);
  if (nevery < 1)
    error->all(FLERR, "Fix equivariant/monitor: N must be at least 1, not {}", nevery);
  path = arg[4];
  for (int iarg = 5; iarg < narg; iarg += 2) {
    const std::string key = arg[iarg], value = arg[iarg + 1];
    if (key == "quantity") {
      wanted = value;
      if (!PairEquivariant::quantity_of(value, quantity))
        error->all(FLERR,
                   "Fix equivariant/monitor: quantity must be grade, force_deviation or "
                   "energy_deviation, not '{}'",
                   value);
    } else if (key == "warn") {
      warn_above = limit_of(arg[iarg], arg[iarg + 1]);
    } else if (key == "stop") {
      stop_above = limit_of(arg[iarg], arg[iarg + 1]);
    } else if (key == "save") {
      save_path = value;
    } else if (key == "interval") {
      interval = limit_of(arg[iarg], arg[iarg + 1]);
    } else if (key == "append") {
      append = utils::logical(FLERR, value, false, lmp) != 0;
    } else {
      error->all(FLERR,
                 "Fix equivariant/monitor does not know the keyword '{}'; it knows quantity, warn, "
                 "stop, save, interval and append",
                 key);
    }
  }
  if (warn_above >= stop_above && stop_above < NEVER && warn_above < NEVER)
    error->all(FLERR, "Fix equivariant/monitor: warn ({:g}) must be less than stop ({:g})",
               warn_above, stop_above);
  if (stop_above < NEVER && save_path.empty())
    error->all(FLERR,
               "Fix equivariant/monitor: stop needs 'save frames.xyz', to which the structure is "
               "written before the run ends");
  if (!save_path.empty() && stop_above == NEVER && warn_above == NEVER)
    error->all(FLERR, "Fix equivariant/monitor: save needs warn or stop: which frames?");

  vector_flag = 1;
  size_vector = 3;
  global_freq = 1;     // of the last step that was looked at
  extvector = 0;
  dynamic_group_allow = 1;

  if (comm->me == 0 && !append) {
    std::remove(path.c_str());
    if (!save_path.empty()) std::remove(save_path.c_str());
  }
  if (!append) write(path, "# step time largest mean atom\n");
}

/* ---------------------------------------------------------------------- */

double FixEquivariantMonitor::limit_of(const char *key, const char *word) const
{
  const double value = utils::numeric(FLERR, word, false, lmp);
  if (!(value > 0.0))
    error->all(FLERR, "Fix equivariant/monitor: {} must be positive, not {}", key, word);
  return value;
}

/* ---------------------------------------------------------------------- */

int FixEquivariantMonitor::setmask()
{
  return PRE_FORCE | POST_FORCE | MIN_PRE_FORCE | MIN_POST_FORCE | POST_RUN;
}

/* ---------------------------------------------------------------------- */

void FixEquivariantMonitor::init()
{
  pair = dynamic_cast<PairEquivariant *>(force->pair_match("equivariant", 1, 0));
  if (!pair)
    error->all(FLERR,
               "Fix equivariant/monitor needs pair_style equivariant, alone or once among "
               "the parts of a hybrid style");
  if (wanted.empty())
    quantity = pair->is_committee() ? PairEquivariant::FORCE_DEVIATION : PairEquivariant::GRADE;
  const std::string reason = pair->lacking(quantity);
  if (!reason.empty()) error->all(FLERR, "Fix equivariant/monitor: {}", reason);
  warned = false;
  pending = false;
}

/* ----------------------------------------------------------------------
   A minimiser evaluates several trial positions per step, of which it accepts the last: that one is
   acted upon when the next step begins, or the run ends.
------------------------------------------------------------------------- */

bool FixEquivariantMonitor::due() const
{
  return update->ntimestep % nevery == 0;
}

void FixEquivariantMonitor::setup_pre_force(int vflag)
{
  pre_force(vflag);
}

void FixEquivariantMonitor::pre_force(int)
{
  if (due()) pair->trigger(quantity, true);
}

void FixEquivariantMonitor::min_pre_force(int vflag)
{
  if (pending && last.step != update->ntimestep) act();
  pre_force(vflag);
}

void FixEquivariantMonitor::setup(int vflag)
{
  post_force(vflag);
}

void FixEquivariantMonitor::min_setup(int vflag)
{
  min_post_force(vflag);
}

void FixEquivariantMonitor::post_force(int)
{
  if (!due()) return;
  pair->trigger(quantity, false);
  last = look();
  act();
}

void FixEquivariantMonitor::min_post_force(int)
{
  if (!due()) return;
  pair->trigger(quantity, false);
  last = look();
  pending = true;
}

void FixEquivariantMonitor::post_run()
{
  if (pending) act();
}

/* ---------------------------------------------------------------------- */

double FixEquivariantMonitor::now() const
{
  return update->atime + static_cast<double>(update->ntimestep - update->atimestep) * update->dt;
}

/* ---------------------------------------------------------------------- */

FixEquivariantMonitor::Sample FixEquivariantMonitor::look() const
{
  const double *values = pair->values(quantity);
  const int nlocal = atom->nlocal;
  double own_largest = 0.0, own[2] = {0.0, 0.0}, sums[2];
  for (int i = 0; i < nlocal; i++) {
    if (!(atom->mask[i] & groupbit)) continue;
    own_largest = std::max(own_largest, values[i]);
    own[0] += values[i];
    own[1] += 1.0;
  }
  Sample sample;
  sample.step = update->ntimestep;
  sample.time = now();
  MPI_Allreduce(&own_largest, &sample.largest, 1, MPI_DOUBLE, MPI_MAX, world);
  MPI_Allreduce(own, sums, 2, MPI_DOUBLE, MPI_SUM, world);
  if (sums[1] == 0.0) return sample;     // nobody in the group
  sample.mean = sums[0] / sums[1];

  // of atoms with the same value that with the lowest id, whatever process has it

  bigint first = MAXBIGINT;
  for (int i = 0; i < nlocal; i++)
    if ((atom->mask[i] & groupbit) && values[i] == sample.largest)
      first = std::min<bigint>(first, atom->tag[i]);
  MPI_Allreduce(&first, &sample.atom, 1, MPI_LMP_BIGINT, MPI_MIN, world);
  if (!save_path.empty() && sample.largest > std::min(warn_above, stop_above))
    sample.frame = gather();
  return sample;
}

/* ----------------------------------------------------------------------
   all atoms, on the first process
------------------------------------------------------------------------- */

std::string FixEquivariantMonitor::gather() const
{
  enum { ID, TYPE, X, F = X + 3, VALUE = F + 3, WIDTH };
  const double *values = pair->values(quantity);
  std::vector<double> own;
  own.reserve(static_cast<std::size_t>(WIDTH) * atom->nlocal);
  for (int i = 0; i < atom->nlocal; i++) {
    const double *x = atom->x[i], *f = atom->f[i];
    own.insert(own.end(),
               {static_cast<double>(atom->tag[i]), static_cast<double>(atom->type[i]), x[0], x[1],
                x[2], f[0], f[1], f[2], values[i]});
  }
  int count = static_cast<int>(own.size());
  std::vector<int> counts(comm->nprocs), places(comm->nprocs, 0);
  MPI_Gather(&count, 1, MPI_INT, counts.data(), 1, MPI_INT, 0, world);
  for (int p = 1; p < comm->nprocs; p++) places[p] = places[p - 1] + counts[p - 1];
  std::vector<double> all(comm->me == 0 ? places.back() + counts.back() : 0);
  MPI_Gatherv(own.data(), count, MPI_DOUBLE, all.data(), counts.data(), places.data(), MPI_DOUBLE,
              0, world);
  if (comm->me != 0) return "";

  const double eV = pair->unit_of_energy();
  const double in_eV = quantity == PairEquivariant::GRADE ? 1.0 : eV;
  eqcalc::Frame frame;
  frame.cell = {domain->xprd, 0.0,        0.0,        domain->xy,  domain->yprd,
                0.0,          domain->xz, domain->yz, domain->zprd};
  frame.periodic = {domain->xperiodic != 0, domain->yperiodic != 0, domain->zperiodic != 0};
  frame.step = update->ntimestep;
  frame.time = now() * (strcmp(update->unit_style, "metal") == 0 ? 1000.0 : 1.0);
  frame.column = PairEquivariant::QUANTITY_NAMES[quantity];
  for (std::size_t k = 0; k < all.size(); k += WIDTH) {
    const double *row = &all[k];
    eqcalc::Frame::Atom one;
    one.id = static_cast<int64_t>(row[ID]);
    one.symbol = eqcalc::SYMBOLS[pair->atomic_number_of_type(static_cast<int>(row[TYPE]))];
    for (int a = 0; a < 3; a++) {
      one.position[a] = row[X + a] - domain->boxlo[a];
      one.force[a] = row[F + a] / eV;
    }
    one.value = row[VALUE] / in_eV;
    frame.atoms.push_back(one);
  }
  return eqcalc::extended_xyz(std::move(frame));
}

/* ----------------------------------------------------------------------
   The line, the frame and what is said of the last sample. At most one frame per interval of time;
   the frame that ends the run is always there.
------------------------------------------------------------------------- */

void FixEquivariantMonitor::act()
{
  pending = false;
  write(path,
        fmt::format("{} {:.10g} {:.8g} {:.8g} {}\n", last.step, last.time, last.largest, last.mean,
                    last.atom));
  if (!(last.largest > std::min(warn_above, stop_above))) return;
  const bool stops = last.largest > stop_above;

  const bool same = saved && last.step == saved_step && last.time == saved_time;
  const double since = last.time - saved_time;
  const bool early = saved && since >= 0.0 && since < interval * (1.0 - 1e-9);
  if (!save_path.empty() && !same && (stops || !early)) {
    write(save_path, last.frame);
    saved = true;
    saved_step = last.step;
    saved_time = last.time;
  }
  if (stops)
    error->all(FLERR, "Fix equivariant/monitor: {}; the structure is the last frame of {}",
               sentence(stop_above), save_path);
  if (!warned && comm->me == 0)
    error->warning(FLERR, "Fix equivariant/monitor: {}", sentence(warn_above));
  warned = true;
}

/* ---------------------------------------------------------------------- */

std::string FixEquivariantMonitor::sentence(double limit) const
{
  std::string unit;
  if (quantity != PairEquivariant::GRADE)
    unit = strcmp(update->unit_style, "metal") == 0 ? " eV" : " kcal/mol";
  if (quantity == PairEquivariant::FORCE_DEVIATION) unit += "/Å";
  return fmt::format("the {} of atom {} is {:.4g}{} in step {}, more than the limit of {:g}{}",
                     PairEquivariant::QUANTITY_NAMES[quantity], last.atom, last.largest, unit,
                     last.step, limit, unit);
}

/* ----------------------------------------------------------------------
   whole, by the first process; the others wait for it, so that an error ends all of them
------------------------------------------------------------------------- */

void FixEquivariantMonitor::write(const std::string &file, const std::string &text) const
{
  if (comm->me != 0) return;
  const std::string problem = eqcalc::append_whole(file, text);
  if (!problem.empty()) error->one(FLERR, "Fix equivariant/monitor: {}", problem);
}

/* ---------------------------------------------------------------------- */

double FixEquivariantMonitor::compute_vector(int k)
{
  return k == 0 ? last.largest : k == 1 ? last.mean : static_cast<double>(last.atom);
}
