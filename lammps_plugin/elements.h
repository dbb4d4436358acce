// SPDX-License-Identifier: GPL-2.0-only
//
// Symbols of the elements by atomic number.

#ifndef EQCALC_ELEMENTS_H
#define EQCALC_ELEMENTS_H

#include <algorithm>
#include <iterator>
#include <string>

namespace eqcalc {

inline constexpr const char *SYMBOLS[] = {
    "X",  "H",  "He", "Li", "Be", "B",  "C",  "N",  "O",  "F",  "Ne", "Na", "Mg", "Al", "Si",
    "P",  "S",  "Cl", "Ar", "K",  "Ca", "Sc", "Ti", "V",  "Cr", "Mn", "Fe", "Co", "Ni", "Cu",
    "Zn", "Ga", "Ge", "As", "Se", "Br", "Kr", "Rb", "Sr", "Y",  "Zr", "Nb", "Mo", "Tc", "Ru",
    "Rh", "Pd", "Ag", "Cd", "In", "Sn", "Sb", "Te", "I",  "Xe", "Cs", "Ba", "La", "Ce", "Pr",
    "Nd", "Pm", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Hf", "Ta", "W",
    "Re", "Os", "Ir", "Pt", "Au", "Hg", "Tl", "Pb", "Bi", "Po", "At", "Rn", "Fr", "Ra", "Ac",
    "Th", "Pa", "U",  "Np", "Pu", "Am", "Cm", "Bk", "Cf", "Es", "Fm", "Md", "No", "Lr", "Rf",
    "Db", "Sg", "Bh", "Hs", "Mt", "Ds", "Rg", "Cn", "Nh", "Fl", "Mc", "Lv", "Ts", "Og"};

// 0 for what is no element's symbol
inline int atomic_number(const std::string &symbol)
{
  const auto found = std::find(std::begin(SYMBOLS) + 1, std::end(SYMBOLS), symbol);
  return found == std::end(SYMBOLS) ? 0 : static_cast<int>(found - std::begin(SYMBOLS));
}

}     // namespace eqcalc

#endif
