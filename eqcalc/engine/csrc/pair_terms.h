// What the energy owes to pairs of atoms besides the network, and the crowding of atoms.

namespace {

// 1 at r = 0; value, slope and curvature zero at the cutoff: eqcalc.nn.radial
inline void envelope(double r, double cutoff, I power, double &u, double &slope)
{
  const double y = r / cutoff, p = static_cast<double>(power);
  const double a = (p + 1.0) * (p + 2.0) / 2.0, b = p * (p + 2.0), c = p * (p + 1.0) / 2.0;
  double q = 1.0;
  for (I n = 1; n < power; n++) q *= y;
  u = 1.0 + q * y * (-a + y * (b - c * y));
  slope = q * (-a * p + y * (b * (p + 1.0) - c * (p + 2.0) * y)) / cutoff;
}

// Ziegler, Biersack and Littmark (1985), see eqcalc.nn.reference; half to each atom of a pair
struct CoreRepulsion {
  I num_species = 0, power = 6;
  std::vector<double> charges, screening, cutoff;     // [species, species]; empty: none
  std::vector<double> amplitudes, decays;             // of the screening function

  void read(const Record &from, I species)
  {
    num_species = species;
    power = from.integer("power");
    charges = from.numbers("charges");
    screening = from.numbers("screening");
    cutoff = from.numbers("cutoff");
    amplitudes = from.numbers("amplitudes");
    decays = from.numbers("decays");
  }

  // adds the energy and its slope at r
  void add(I a, I b, double r, double &energy, double &slope) const
  {
    const I ab = a * num_species + b;
    if (charges.empty() || r >= cutoff[ab]) return;
    const double x = r / screening[ab];
    double phi = 0.0, phi_slope = 0.0;
    for (std::size_t n = 0; n < amplitudes.size(); n++) {
      const double term = amplitudes[n] * std::exp(-decays[n] * x);
      phi += term;
      phi_slope -= decays[n] * term / screening[ab];
    }
    double u, u_slope;
    envelope(r, cutoff[ab], power, u, u_slope);
    const double q = 0.5 * charges[ab] / r;
    energy += q * phi * u;
    slope += q * (phi_slope * u + phi * u_slope - phi * u / r);
  }
};

// fitted to the labels, see eqcalc.nn.reference; half to each atom of a pair
struct PairEnergy {
  I num_species = 0, terms = 0;                       // no terms: none
  double rate = 0.0, cutoff = 0.0;
  std::vector<double> coefficients;                   // [species, species, terms]

  void read(const Record &from, I species)
  {
    num_species = species;
    rate = from.number("rate");
    cutoff = from.number("cutoff");
    coefficients = from.numbers("coefficients");
    terms = from.array("coefficients").length(2);
  }

  // adds the energy and its slope at r
  void add(I a, I b, double r, double &energy, double &slope) const
  {
    if (!terms || r >= cutoff) return;
    const double *c = coefficients.data() + (a * num_species + b) * terms;
    const double decay = std::exp(-rate * r);
    double sum = 0.0, sum_slope = 0.0, power = 1.0;
    for (I k = 0; k < terms; k++) {
      power *= decay;
      sum += c[k] * power;
      sum_slope -= rate * static_cast<double>(k + 1) * c[k] * power;
    }
    double u, u_slope;
    envelope(r, cutoff, 6, u, u_slope);
    energy += 0.5 * sum * u;
    slope += 0.5 * (sum_slope * u + sum * u_slope);
  }
};

// 1 up to x = begin, 0 from x = end on, with two continuous derivatives
struct Fall {
  double begin = 0.0, end = 1.0;

  double at(double x, double &slope) const
  {
    const double t = (x - begin) / (end - begin);
    slope = 0.0;
    if (t <= 0.0) return 1.0;
    if (t >= 1.0) return 0.0;
    slope = -30.0 * t * t * (1.0 - t) * (1.0 - t) / (end - begin);
    return 1.0 - t * t * t * (10.0 + t * (6.0 * t - 15.0));
  }
};

// Messages to an atom that is more crowded than any of the training fade: eqcalc.nn.crowding.
// Older files measure it by c_i = sum (d/r)^8 u instead of neighbours, and know no close pairs
class Crowding {
 public:
  // of one atom, summed over its neighbours
  struct Measure {
    double number = 0.0, close = 0.0;
  };

  void read(const Record &from, I species, double cutoff)
  {
    num_species_ = species;
    cutoff_ = cutoff;
    distances_ = from.numbers("distances");
    largest_ = from.numbers("largest");
    crowded_ = fall(from, "crowded");
    cost_ = from.number("cost");
    counts_ = from.has("counted");
    if (!counts_) return;
    counted_ = fall(from, "counted");
    close_ = fall(from, "close");
    closest_ = from.numbers("closest");
  }

  bool none() const { return largest_.empty(); }

  void begin(I num_local)
  {
    if (!none()) atoms_.resize(num_local);
  }

  // a neighbour at r
  void add(int a, int b, double r, Measure &to) const
  {
    Measure unused;
    term(a, b, r, to, unused);
  }

  // of own atom i of species a; returns what being crowded costs
  double settle(I i, int a, const Measure &found)
  {
    if (none()) return 0.0;
    Atom &atom = atoms_[i];
    double by_number, by_close;
    const double few = crowded_.at(found.number / largest_[a], by_number);
    const double apart = Fall{}.at(found.close, by_close);
    atom = {few * apart, {by_number * apart / largest_[a], few * by_close}, -cost_};
    return cost_ * (1.0 - atom.calm);
  }

  bool acts(I i) const { return !none() && atoms_[i].calm < 1.0; }

  void calm(I i, T *message, I width) const
  {
    const T s = static_cast<T>(atoms_[i].calm);
    for (I c = 0; c < width; c += L) store(message + c, s > T(0) ? s * load(message + c) : V{});
  }

  // from the gradient in a message that has been calmed, and what it was before
  void pull(I i, const T *gradient, const T *message, I width)
  {
    double sum = 0.0;
    for (I c = 0; c < width; c++) sum += static_cast<double>(gradient[c]) * message[c];
    atoms_[i].pull += sum;
  }

  // dE/dr of own atom i and its neighbour, once all layers have pulled
  double gradient(I i, int a, int b, double r) const
  {
    Measure unused, slope;
    term(a, b, r, unused, slope);
    const Atom &atom = atoms_[i];
    return atom.pull * (atom.slope.number * slope.number + atom.slope.close * slope.close);
  }

 private:
  struct Atom {
    double calm;        // s_i
    Measure slope;      // derivatives of s_i
    double pull;        // dE/ds_i
  };

  static Fall fall(const Record &from, const char *name)
  {
    const std::vector<double> ends = from.numbers(name);
    return {ends.at(0), ends.at(1)};
  }

  // adds what a neighbour is, and its derivative by r
  void term(int a, int b, double r, Measure &value, Measure &slope) const
  {
    const double d = distances_[a * num_species_ + b];
    if (counts_) {
      const double near = closest_[a * num_species_ + b];
      double by_number, by_close;
      value.number += counted_.at(r / d, by_number);
      value.close += close_.at(r / near, by_close);
      slope.number += by_number / d;
      slope.close += by_close / near;
    } else if (r < cutoff_) {
      const double q = d / r, q2 = q * q, q4 = q2 * q2, q8 = q4 * q4;
      double u, u_slope;
      envelope(r, cutoff_, 6, u, u_slope);
      value.number += q8 * u;
      slope.number += q8 * (u_slope - 8.0 * u / r);
    }
  }

  I num_species_ = 0;
  double cutoff_ = 0.0, cost_ = 0.0;
  bool counts_ = false;
  Fall counted_, close_, crowded_;
  std::vector<double> distances_, closest_;     // [species, species]
  std::vector<double> largest_;                 // [species]; empty: none
  std::vector<Atom> atoms_;                     // own
};

}    // namespace
