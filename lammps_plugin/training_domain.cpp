// SPDX-License-Identifier: GPL-2.0-only

#include "training_domain.h"

#include <algorithm>
#include <cmath>
#include <sstream>

namespace eqcalc {

TrainingDomain::TrainingDomain(const std::string &text, const std::vector<std::string> &symbols) :
    num_species_(static_cast<int>(symbols.size())), shortest_(symbols.size() * symbols.size(), 0.0),
    neighbors_(symbols.size())
{
  const auto species = [&symbols](const std::string &symbol) {
    const auto found = std::find(symbols.begin(), symbols.end(), symbol);
    return found == symbols.end() ? -1 : static_cast<int>(found - symbols.begin());
  };
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string tag, first, second, figure;
    words >> tag;
    Range range;
    if (tag == "shortest_distance" && words >> first >> second >> figure) {
      const int a = species(first), b = species(second);
      if (a < 0 || b < 0) continue;
      const double limit = std::stod(figure);     // "inf", too
      shortest_[a * num_species_ + b] = shortest_[b * num_species_ + a] = limit;
    } else if (tag == "neighbors" && words >> first >> range.low >> range.high) {
      if (species(first) >= 0) neighbors_[species(first)] = range;
    } else if (words >> range.low >> range.high) {
      if (tag == "density") ranges_[DENSITY] = range;
      if (tag == "pressure") ranges_[PRESSURE] = range;
      if (tag == "energy_per_atom") ranges_[ENERGY] = range;
    } else
      continue;
    known_ = true;
  }
  begin_run();
}

void TrainingDomain::begin_run()
{
  told_.fill(false);
  near_sq_.resize(shortest_.size());
  std::transform(shortest_.begin(), shortest_.end(), near_sq_.begin(),
                 [](double r) { return r * r; });
}

void TrainingDomain::told(Quantity quantity)
{
  told_[quantity] = true;
  if (quantity == DISTANCE) std::fill(near_sq_.begin(), near_sq_.end(), 0.0);
}

void TrainingDomain::note_pair(int i, int j, int a, int b, double distance_sq)
{
  const double distance = std::sqrt(distance_sq);
  const double severity = distance / shortest(a, b) - 1.0;
  if (severity < pair_.severity) pair_ = {severity, i, j, distance};
}

void TrainingDomain::note_count(int i, int species, int number)
{
  const Range &range = neighbors_[species];
  if (told_[NEIGHBORS] || range.contains(number)) return;
  const double severity = -std::max(range.low - number, number - range.high);
  if (severity < count_.severity) count_ = {severity, i, -1, static_cast<double>(number)};
}

}     // namespace eqcalc
