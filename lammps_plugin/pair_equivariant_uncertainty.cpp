/* ----------------------------------------------------------------------
   Part of eqcalc; compiled against the headers of LAMMPS (https://www.lammps.org) and therefore
   distributed under the GNU General Public License, version 2.
   SPDX-License-Identifier: GPL-2.0-only
------------------------------------------------------------------------- */

// Deviations and grades of atoms: for fix pair and fix equivariant/monitor.

#include "pair_equivariant.h"

#include "atom.h"
#include "error.h"
#include "update.h"

using namespace LAMMPS_NS;

/* ---------------------------------------------------------------------- */

bool PairEquivariant::quantity_of(const std::string &name, Quantity &quantity)
{
  for (int q = 0; q < NUM_QUANTITIES; q++)
    if (name == QUANTITY_NAMES[q]) {
      quantity = static_cast<Quantity>(q);
      return true;
    }
  return false;
}

/* ---------------------------------------------------------------------- */

bool PairEquivariant::wants_uncertainty() const
{
  for (int q = 0; q < NUM_QUANTITIES; q++)
    if ((per_atom[q].triggered || per_atom[q].lasting) && lacking(static_cast<Quantity>(q)).empty())
      return true;
  return false;
}

/* ---------------------------------------------------------------------- */

std::string PairEquivariant::lacking(Quantity quantity) const
{
  const char *name = QUANTITY_NAMES[quantity];
  if (potentials.empty()) return "pair_coeff must follow pair_style";
  if (is_committee()) {
    if (quantity != GRADE) return "";
    return fmt::format(
        "{} is of one potential, but pair_coeff names several: take "
        "force_deviation or energy_deviation",
        name);
  }
  if (quantity == FORCE_DEVIATION)
    return fmt::format("{} is of a committee: name several potentials in pair_coeff", name);
  const auto &member = potentials.members().front();
  const std::string reason = member.engine->lacks_uncertainty();
  return reason.empty() ? "" : fmt::format("{} is not known: {} {}", name, member.path, reason);
}

/* ---------------------------------------------------------------------- */

void PairEquivariant::trigger(Quantity quantity, bool wanted)
{
  per_atom[quantity].triggered = wanted;
}

/* ---------------------------------------------------------------------- */

const double *PairEquivariant::values(Quantity quantity) const
{
  return per_atom[quantity].values.data();
}

/* ---------------------------------------------------------------------- */

int PairEquivariant::atomic_number_of_type(int itype) const
{
  const int species = type2species[itype];
  return species < 0 ? 0 : potentials.atomic_numbers()[species];
}

/* ---------------------------------------------------------------------- */

void PairEquivariant::store_uncertainty()
{
  const auto store = [this](Quantity quantity, const std::vector<double> &rows, double unit) {
    auto &values = per_atom[quantity].values;
    values.assign(atom->nmax, 0.0);
    for (std::size_t row = 0; row < atom_of_row.size(); row++)
      values[atom_of_row[row]] = unit * rows[row];
  };
  store(ENERGY_DEVIATION, uncertainty.energies, energy_unit);
  if (is_committee())
    store(FORCE_DEVIATION, uncertainty.forces, energy_unit);
  else
    store(GRADE, uncertainty.grades, 1.0);
}

/* ----------------------------------------------------------------------
   Fix pair asks twice: when it is made, with trigger 0 for what it wants at every step and else with
   a trigger that it sets before the steps that it looks at, and after forces have been computed.
------------------------------------------------------------------------- */

void *PairEquivariant::extract_peratom(const char *name, int &columns)
{
  Quantity quantity;
  if (!quantity_of(name, quantity)) return nullptr;
  auto &[triggered, lasting, values] = per_atom[quantity];
  columns = 0;
  if (update->whichflag == 0) {     // between runs
    lasting++;
    values.resize(atom->nmax, 0.0);
  } else if (const std::string reason = lacking(quantity); !reason.empty() || !have_uncertainty) {
    error->all(FLERR, "Pair style equivariant: {}",
               reason.empty() ? "define fix pair after pair_style" : reason);
  }
  return values.data();
}

/* ---------------------------------------------------------------------- */

void *PairEquivariant::extract(const char *name, int &dimension)
{
  dimension = 0;
  for (int q = 0; q < NUM_QUANTITIES; q++)
    if (name == std::string(QUANTITY_NAMES[q]) + "_flag") {
      if (update->whichflag == 0) per_atom[q].lasting--;
      return &per_atom[q].triggered;
    }
  return nullptr;
}
