/* ----------------------------------------------------------------------
   Part of eqcalc; compiled against the headers of LAMMPS (https://www.lammps.org) and therefore
   distributed under the GNU General Public License, version 2.
   SPDX-License-Identifier: GPL-2.0-only
------------------------------------------------------------------------- */

// Deviations of a committee, per atom: for fix pair.

#include "pair_equivariant.h"

#include "error.h"
#include "update.h"

#include <algorithm>

using namespace LAMMPS_NS;

/* ---------------------------------------------------------------------- */

bool PairEquivariant::wants_deviations() const
{
  return potentials.size() > 1 &&
      std::any_of(per_atom.begin(), per_atom.end(),
                  [](const PerAtom &q) { return q.triggered || q.lasting; });
}

/* ----------------------------------------------------------------------
   why these potentials do not have it; empty if they do
------------------------------------------------------------------------- */

std::string PairEquivariant::lacking(Quantity quantity) const
{
  if (potentials.size() > 1) return "";
  return fmt::format("{} is of a committee: name several potentials in pair_coeff",
                     QUANTITY_NAMES[quantity]);
}

/* ---------------------------------------------------------------------- */

void PairEquivariant::store_deviations()
{
  const std::vector<double> *rows[NUM_QUANTITIES] = {&deviations.energies, &deviations.forces};
  for (int q = 0; q < NUM_QUANTITIES; q++) {
    auto &values = per_atom[q].values;
    values.assign(atom->nmax, 0.0);
    for (std::size_t row = 0; row < atom_of_row.size(); row++)
      values[atom_of_row[row]] = energy_unit * (*rows[q])[row];
  }
}

/* ----------------------------------------------------------------------
   Fix pair asks twice: when it is made, with trigger 0 for what it wants at every step and else with
   a trigger that it sets before the steps that it looks at, and after forces have been computed.
------------------------------------------------------------------------- */

void *PairEquivariant::extract_peratom(const char *name, int &columns)
{
  const auto found = std::find(std::begin(QUANTITY_NAMES), std::end(QUANTITY_NAMES),
                               std::string(name));
  if (found == std::end(QUANTITY_NAMES)) return nullptr;
  const auto quantity = static_cast<Quantity>(found - std::begin(QUANTITY_NAMES));
  auto &[triggered, lasting, values] = per_atom[quantity];
  columns = 0;
  if (update->whichflag == 0) {     // between runs
    lasting++;
    values.resize(atom->nmax, 0.0);
  } else if (!have_deviations) {
    const std::string reason = lacking(quantity);
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
