/* -*- c++ -*- ----------------------------------------------------------
   Part of eqcalc; compiled against the headers of LAMMPS (https://www.lammps.org) and therefore
   distributed under the GNU General Public License, version 2.
   SPDX-License-Identifier: GPL-2.0-only
------------------------------------------------------------------------- */

#ifndef LMP_PAIR_EXCHANGE_H
#define LMP_PAIR_EXCHANGE_H

#include "pair_equivariant.h"

#include "engine.h"

#include "platform.h"

namespace LAMMPS_NS {

// What an engine says to other processes, through the pair style.

struct PairEquivariant::Exchange : eqcalc::RowExchange {
  PairEquivariant &pair;
  const std::vector<int> &row_of_atom;
  double seconds = 0.0;

  Exchange(PairEquivariant &pair, const std::vector<int> &row_of_atom) :
      pair(pair), row_of_atom(row_of_atom)
  {
  }

  void forward(const eqcalc::Rows &rows) override
  {
    const double start = platform::walltime();
    pair.forward(payload(rows));
    seconds += platform::walltime() - start;
  }

  void reverse(const eqcalc::Rows &rows) override
  {
    const double start = platform::walltime();
    pair.reverse(payload(rows));
    seconds += platform::walltime() - start;
  }

  Payload payload(const eqcalc::Rows &rows) const
  {
    Payload result;
    if (rows.single)
      result.singles = static_cast<float *>(rows.data);
    else
      result.values = static_cast<double *>(rows.data);
    result.width = rows.width;
    result.row_of_atom = row_of_atom.data();
    return result;
  }
};

}     // namespace LAMMPS_NS

#endif
