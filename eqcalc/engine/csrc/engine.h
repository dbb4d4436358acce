// The functions of interface.h.

namespace {

inline bool within(I count, I index) { return 0 <= index && index < count; }

int failed(const std::exception &error, char *text, I size)
{
  std::snprintf(text, size, "%s", error.what());
  return 1;
}

}    // namespace

extern "C" {

int eqcalc_interface_version() { return EQCALC_INTERFACE_VERSION; }

int eqcalc_open(const char *network, I bytes, void **engine, char *error, I size)
{
  try {
    *engine = new Network(read_description(network, bytes));
    return 0;
  } catch (const std::bad_alloc &) {
    return failed(std::runtime_error("out of memory"), error, size);
  } catch (const std::exception &e) {
    return failed(e, error, size);
  }
}

void eqcalc_close(void *engine) { delete static_cast<Network *>(engine); }

int eqcalc_evaluate(void *engine, const eqcalc_graph *graph, const eqcalc_exchange *exchange,
                    int threads, double *energies, double *gradient, char *error, I size)
{
  return eqcalc_evaluate_uncertainty(engine, graph, exchange, threads, energies, gradient, nullptr,
                                     error, size);
}

int eqcalc_evaluate_uncertainty(void *engine, const eqcalc_graph *graph,
                                const eqcalc_exchange *exchange, int threads, double *energies,
                                double *gradient, const eqcalc_uncertainty *uncertainty, char *error,
                                I size)
{
  const eqcalc_uncertainty nothing = {nullptr, nullptr, nullptr};
  try {
    static_cast<Network *>(engine)->evaluate(*graph, exchange, threads, energies, gradient,
                                             uncertainty ? *uncertainty : nothing);
    return 0;
  } catch (const std::bad_alloc &) {
    failed(std::runtime_error("out of memory: use fewer atoms per process"), error, size);
    return EQCALC_OUT_OF_MEMORY;
  } catch (const std::exception &e) {
    return failed(e, error, size);
  }
}

int eqcalc_num_features(void *engine)
{
  return static_cast<int>(static_cast<Network *>(engine)->num_features());
}

int eqcalc_has_uncertainty(void *engine)
{
  return static_cast<Network *>(engine)->has_uncertainty();
}

int eqcalc_exchange_widths(void *engine, int *widths, int count)
{
  const auto &network = *static_cast<Network *>(engine);
  const int layers = static_cast<int>(network.num_layers());
  for (int k = 1; k < layers && k <= count; k++) widths[k - 1] = static_cast<int>(network.width(k));
  return layers - 1;
}

I eqcalc_memory(void *engine) { return static_cast<Network *>(engine)->bytes(); }

int eqcalc_forces(I num_atoms, I num_edges, const I *edge_src, const I *edge_dst,
                  const double *edge_vec, const double *gradient, double *forces, double *virials)
{
  std::fill_n(forces, 3 * num_atoms, 0.0);
  if (virials) std::fill_n(virials, 9 * num_atoms, 0.0);
  for (I e = 0; e < num_edges; e++) {
    if (!within(num_atoms, edge_src[e]) || !within(num_atoms, edge_dst[e])) return 1;
    const double *g = gradient + 3 * e, *v = edge_vec + 3 * e;
    double *fi = forces + 3 * edge_dst[e], *fj = forces + 3 * edge_src[e];
    for (int a = 0; a < 3; a++) {
      fi[a] += g[a];
      fj[a] -= g[a];
    }
    if (!virials) continue;
    double *w = virials + 9 * edge_src[e];
    for (int a = 0; a < 3; a++)
      for (int b = 0; b < 3; b++) w[3 * a + b] -= v[a] * g[b];
  }
  return 0;
}

I eqcalc_select(I num_atoms, I num_pairs, const I *src, const I *dst, const double *shifts,
                const double *positions, double cutoff, I *edge_src, I *edge_dst, double *edge_vec,
                I *nearest)
{
  const double cutoff_sq = cutoff * cutoff;
  double shortest_sq = cutoff_sq;
  I count = 0;
  *nearest = -1;
  for (I p = 0; p < num_pairs; p++) {
    if (!within(num_atoms, src[p]) || !within(num_atoms, dst[p])) return -1;
    const double *a = positions + 3 * dst[p], *b = positions + 3 * src[p], *s = shifts + 3 * p;
    const double x = b[0] - a[0] + s[0], y = b[1] - a[1] + s[1], z = b[2] - a[2] + s[2];
    const double r_sq = x * x + y * y + z * z;
    if (!(r_sq < cutoff_sq)) continue;
    if (r_sq < shortest_sq) {
      shortest_sq = r_sq;
      *nearest = count;
    }
    edge_src[count] = src[p];
    edge_dst[count] = dst[p];
    edge_vec[3 * count] = x;
    edge_vec[3 * count + 1] = y;
    edge_vec[3 * count + 2] = z;
    count++;
  }
  return count;
}
}
