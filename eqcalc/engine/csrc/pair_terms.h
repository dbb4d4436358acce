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

// Messages to an atom that is more crowded than any of the training fade: eqcalc.nn.crowding
class Crowding {
 public:
  void read(const Record &from, I species, double cutoff)
  {
    num_species_ = species;
    cutoff_ = cutoff;
    distances_ = from.numbers("distances");
    onset_ = from.numbers("onset");
  }

  bool none() const { return onset_.empty(); }

  void begin(I num_local)
  {
    if (!none()) atoms_.resize(num_local);
  }

  // what a neighbour adds, and its slope at r
  double term(int a, int b, double r, double &slope) const
  {
    if (r >= cutoff_) return slope = 0.0;
    const double q = distances_[a * num_species_ + b] / r, q2 = q * q, q4 = q2 * q2, q8 = q4 * q4;
    double u, u_slope;
    envelope(r, cutoff_, 6, u, u_slope);
    slope = q8 * (u_slope - 8.0 * u / r);
    return q8 * u;
  }

  // of own atom i of species a, with the sum of its neighbours' terms
  void settle(I i, int a, double crowd)
  {
    if (none()) return;
    const double t = std::min(1.0, crowd / onset_[a] - 1.0);
    Atom &atom = atoms_[i];
    atom = {1.0, 0.0, 0.0};
    if (t <= 0.0) return;
    atom.calm = t < 1.0 ? 1.0 - t * t * t * (10.0 + t * (6.0 * t - 15.0)) : 0.0;
    atom.slope = -30.0 * t * t * (1.0 - t) * (1.0 - t) / onset_[a];
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

  // dE/dc_i, once all layers have pulled
  double gradient(I i) const { return atoms_[i].pull * atoms_[i].slope; }

 private:
  struct Atom {
    double calm, slope;     // s_i, ds_i/dc_i
    double pull;            // dE/ds_i
  };
  I num_species_ = 0;
  double cutoff_ = 0.0;
  std::vector<double> distances_, onset_;     // [species, species], [species]; empty: none
  std::vector<Atom> atoms_;                   // own
};

}    // namespace
