// The functions of interface.h.

namespace {

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
}
