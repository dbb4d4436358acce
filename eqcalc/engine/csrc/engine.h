// The network: edges in, atomic energies and their gradient in every edge vector out.
//
// Layer k, for an atom i (see eqcalc.models.nequip):
//
//     m_i  = s_i sum_j R_k(r_ij) (x~_j (x) Y(r_ij))  generated kernels, see eqcalc.engine.kernels;
//                                                    s_i = 1 but for crowded atoms
//     p_i  = own[z_i] x_i + mix m_i + out (a_i (x) a_i),   a_i = into m_i
//     x'_i = gate(p_i),   x~'_i = up x'_i
//
// Kept for the way back: x~, a and p of each layer. Atoms are worked on in blocks, from messages to
// the next layer's x~ while they are in the cache. Sums over neighbours are made in the order of the
// edges, those of gradients over the shares of the work in the order of the shares, of which there
// are as many as threads are asked for (see threads.h).

namespace {

constexpr int BLOCK = 16;     // atoms

// rows [dim, stride_in] of each atom times a matrix, or one per species
class LinearStep {
 public:
  explicit LinearStep(const Record &from) :
      at_in_(from.integer("at_in")), stride_in_(from.integer("stride_in")),
      dim_(from.integer("dim")), at_out_(from.integer("at_out")),
      stride_out_(from.integer("stride_out")), matrices_(from.array("matrices").length(0))
  {
    const I size = stride_in_ * stride_out_;
    const Array &values = from.array("matrices");
    T *plain = plain_.get(matrices_ * size), *turned = turned_.get(matrices_ * size);
    for (I n = 0; n < matrices_; n++)
      for (I a = 0; a < stride_in_; a++)
        for (I b = 0; b < stride_out_; b++) {
          const T x = static_cast<T>(values[n * size + a * stride_out_ + b]);
          plain[n * size + a * stride_out_ + b] = x;
          turned[n * size + b * stride_in_ + a] = x;
        }
  }

  // to += matrix from, for `count` <= BLOCK atoms
  void forward(int count, const int *species, T *const *from, T *const *to)
  {
    apply(count, species, from, at_in_, stride_in_, to, at_out_, stride_out_, plain_.data());
  }
  // from += matrix^T to
  void backward(int count, const int *species, T *const *to, T *const *from)
  {
    apply(count, species, to, at_out_, stride_out_, from, at_in_, stride_in_, turned_.data());
  }

 private:
  I at_in_, stride_in_, dim_, at_out_, stride_out_, matrices_;
  Buffer<T> plain_, turned_;

  void apply(int count, const int *species, T *const *from, I at_from, I stride_from, T *const *to,
             I at_to, I stride_to, const T *matrix)
  {
    const T *x[BLOCK * MOST_ROWS];
    T *y[BLOCK * MOST_ROWS];
    for (I s = 0; s < matrices_; s++, matrix += stride_from * stride_to) {
      int rows = 0;
      for (int b = 0; b < count; b++) {
        if (matrices_ > 1 && species[b] != s) continue;
        for (I m = 0; m < dim_; m++, rows++) {
          x[rows] = from[b] + at_from + m * stride_from;
          y[rows] = to[b] + at_to + m * stride_to;
        }
      }
      gemm(rows, static_cast<int>(stride_from), x, matrix, static_cast<int>(stride_to), y);
    }
  }
};

inline void read_linear(const Record &from, const char *name, std::vector<LinearStep> &maps)
{
  for (const Record &map : from.records(name)) maps.emplace_back(map);
}

struct ActivationScales {
  T silu, tanh, sigmoid;
};

class GateBlock {
 public:
  GateBlock(const Record &from, const ActivationScales &scales) :
      kind_(from.integer("kind")), at_in_(from.integer("at_in")), dim_(from.integer("dim")),
      mul_(from.integer("mul")), gate_(from.integer("gate")), at_out_(from.integer("at_out")),
      scales_(scales)
  {
  }

  void forward(const T *pre, T *out) const
  {
    const T *in = pre + at_in_;
    out += at_out_;
    for (I c = 0; c < mul_; c += L) {
      if (kind_ == 0) {
        const V x = load(in + c);
        store(out + c, scales_.silu * x * sigmoid(x));
      } else if (kind_ == 1) {
        store(out + c, scales_.tanh * (T(2) * sigmoid(T(2) * load(in + c)) - T(1)));
      } else {
        const V q = load(pre + gate_ + c), s = sigmoid(q);
        const V gate = kind_ == 3 ? scales_.silu * q * s : scales_.sigmoid * s;
        for (I m = 0; m < dim_; m++) store(out + m * mul_ + c, gate * load(in + m * mul_ + c));
      }
    }
  }

  // pre becomes its own gradient
  void backward(T *pre, const T *gradient) const
  {
    T *in = pre + at_in_;
    gradient += at_out_;
    for (I c = 0; c < mul_; c += L) {
      if (kind_ == 0) {
        const V x = load(in + c), s = sigmoid(x);
        store(in + c, load(gradient + c) * scales_.silu * (s + x * s * (T(1) - s)));
      } else if (kind_ == 1) {
        const V t = T(2) * sigmoid(T(2) * load(in + c)) - T(1);
        store(in + c, load(gradient + c) * scales_.tanh * (T(1) - t * t));
      } else {
        const V q = load(pre + gate_ + c), s = sigmoid(q);
        const V gate = kind_ == 3 ? scales_.silu * q * s : scales_.sigmoid * s;
        const V slope = kind_ == 3 ? scales_.silu * (s + q * s * (T(1) - s)) : gate * (T(1) - s);
        V sum = {};
        for (I m = 0; m < dim_; m++) {
          const V g = load(gradient + m * mul_ + c);
          sum += g * load(in + m * mul_ + c);
          store(in + m * mul_ + c, g * gate);
        }
        store(pre + gate_ + c, sum * slope);
      }
    }
  }

 private:
  I kind_, at_in_, dim_, mul_, gate_, at_out_;
  ActivationScales scales_;
};

// products of messages with themselves, channel by channel (see eqcalc.nn.product)
struct MessageProduct {
  struct Term {
    I first, second, out;     // columns
    T coefficient;
  };
  I width_factors, width_products, channels;
  std::vector<LinearStep> into, out;
  std::vector<Term> terms;
  Buffer<T> factors;     // [own atoms, width_factors]

  explicit MessageProduct(const Record &from) :
      width_factors(from.integer("width_factors")),
      width_products(from.integer("width_products")), channels(from.integer("channels"))
  {
    read_linear(from, "into", into);
    read_linear(from, "out", out);
    const auto first_ = from.integers("first"), second_ = from.integers("second");
    const auto product_ = from.integers("product");
    const Array &coefficients = from.array("coefficients");
    for (std::size_t n = 0; n < first_.size(); n++)
      terms.push_back({first_[n], second_[n], product_[n], static_cast<T>(coefficients[n])});
  }

  void forward(const T *a, T *b) const
  {
    for (I c = 0; c < channels; c += L, a += L, b += L)
      for (const Term &t : terms)
        store(b + t.out, load(b + t.out) + t.coefficient * load(a + t.first) * load(a + t.second));
  }

  // da += (d b / d a)^T db
  void backward(const T *a, const T *db, T *da) const
  {
    for (I c = 0; c < channels; c += L, a += L, da += L, db += L)
      for (const Term &t : terms) {
        const V g = t.coefficient * load(db + t.out);
        store(da + t.first, load(da + t.first) + g * load(a + t.second));
        store(da + t.second, load(da + t.second) + g * load(a + t.first));
      }
  }
};

struct Readout {
  I scalars, hidden;
  Buffer<T> in, in_turned, out;

  Readout(const Array &weight, const Array &last) :
      scalars(weight.length(0)), hidden(weight.length(1))
  {
    T *a = in.get(scalars * hidden), *b = in_turned.get(scalars * hidden), *c = out.get(hidden);
    for (I s = 0; s < scalars; s++)
      for (I h = 0; h < hidden; h++)
        a[s * hidden + h] = b[h * scalars + s] = static_cast<T>(weight[s * hidden + h]);
    for (I h = 0; h < hidden; h++) c[h] = static_cast<T>(last[h]);
  }
};

struct Layer {
  const Kernels *kernels;
  I width_in, width_message, width_pre, width_out, num_weights;
  std::vector<LinearStep> up, own, mix;     // up and own act on the features before the layer
  Buffer<T> up_bias, pre_bias;           // rows that their sums begin with, mostly zeros
  std::unique_ptr<MessageProduct> product;
  std::vector<GateBlock> gate;
  std::unique_ptr<Readout> readout;
  RadialFunctions radial;

  Buffer<T> x;        // [rows, width_in], multiplied by `up`
  Buffer<T> pre;      // [own atoms, width_pre]; on the way back their gradients

  Layer(const Record &from, const ActivationScales &scales, const RadialBasis &basis)
  {
    kernels = &KERNELS[from.integer("kernels")];
    width_in = from.integer("width_in");
    width_message = from.integer("width_message");
    width_pre = from.integer("width_pre");
    width_out = from.integer("width_out");
    num_weights = from.integer("num_weights");
    read_linear(from, "up", up);
    read_linear(from, "own", own);
    read_linear(from, "mix", mix);
    read_row(from, "up_bias", width_in, up_bias);
    read_row(from, "pre_bias", width_pre, pre_bias);
    if (from.has("product")) product = std::make_unique<MessageProduct>(from.record("product"));
    for (const Record &block : from.records("gate")) gate.emplace_back(block, scales);
    if (from.has("readout_in"))
      readout = std::make_unique<Readout>(from.array("readout_in"), from.array("readout_out"));
    radial.read(from.record("radial"), num_weights, basis);
  }

  static void read_row(const Record &from, const char *name, I width, Buffer<T> &row)
  {
    T *to = row.get(width);
    std::fill_n(to, width, T(0));
    if (from.has(name)) from.array(name).copy(to);
  }

  // before `up` and `own` of `count` atoms are added
  void begin(int count, T *const *to_x, T *const *to_pre) const
  {
    for (int b = 0; b < count; b++) {
      std::copy_n(up_bias.get(), width_in, to_x[b]);
      std::copy_n(pre_bias.get(), width_pre, to_pre[b]);
    }
  }

  I bytes() const
  {
    return x.bytes() + pre.bytes() + radial.bytes() + (product ? product->factors.bytes() : 0);
  }
};

class Network {
 public:
  explicit Network(const Record &from) :
      num_species_(from.integer("num_species")), cutoff_(from.number("cutoff"))
  {
    const Record &scales = from.record("activation_scales");
    scales_ = {static_cast<T>(scales.number("silu")), static_cast<T>(scales.number("tanh")),
               static_cast<T>(scales.number("sigmoid"))};
    basis_.read(from, cutoff_);
    for (const Record &layer : from.records("layers")) layers_.emplace_back(layer, scales_, basis_);
    scale_ = from.numbers("scale");
    shift_ = from.numbers("shift");
    if (from.has("core")) core_.read(from.record("core"), num_species_);
    if (from.has("pair")) pair_.read(from.record("pair"), num_species_);
    if (from.has("inner_limits")) edges_.limit(num_species_, from.numbers("inner_limits"));
    if (from.has("crowding")) crowding_.read(from.record("crowding"), num_species_, cutoff_);
    const I width = layers_[0].width_in;
    const Array &embedding = from.array("embedding");

    // the first layer's features depend on the species only
    T *x = layers_[0].x.get(num_species_ * width);
    T *pre = first_pre_.get(num_species_ * layers_[0].width_pre);
    Buffer<T> row;
    for (int s = 0; s < num_species_; s++) {
      T *from = row.get(width), *to = x + s * width, *to_pre = pre + s * layers_[0].width_pre;
      for (I c = 0; c < width; c++) from[c] = static_cast<T>(embedding[s * width + c]);
      layers_[0].begin(1, &to, &to_pre);
      for (LinearStep &p : layers_[0].up) p.forward(1, &s, &from, &to);
      for (LinearStep &p : layers_[0].own) p.forward(1, &s, &from, &to_pre);
    }
  }

  I num_layers() const { return static_cast<I>(layers_.size()); }
  I width(I layer) const { return layers_[layer].width_in; }

  I bytes() const
  {
    I sum = edges_.bytes() + dx_.bytes() + dx_next_.bytes() + basis_.bytes();
    for (const Layer &layer : layers_) sum += layer.bytes();
    for (const Scratch &s : scratch_) sum += s.bytes();
    return sum;
  }

  void evaluate(const eqcalc_graph &graph, const eqcalc_exchange *exchange, int threads,
                double *energies, double *gradient)
  {
    threads_ = std::max(1, threads);
    if (static_cast<int>(scratch_.size()) < threads_) scratch_.resize(threads_);
    place_edges(graph);
    basis_.begin(edges_, threads_);
    add_references(graph, energies, gradient);
    for (I k = 0; k < num_layers(); k++) {
      if (k > 0 && exchange)
        exchange->forward(exchange->context, layers_[k].x.data(),
                          static_cast<int>(layers_[k].width_in));
      forward(k, graph, energies);
    }
    // a process without edges has no gradient to give, but the others wait for its exchanges
    if (!gradient && !exchange) return;
    edges_.clear_gradient(threads_);
    for (I k = num_layers() - 1; k >= 0; k--) {
      backward(k, graph);
      if (k > 0 && exchange)
        exchange->reverse(exchange->context, dx_.data(), static_cast<int>(layers_[k].width_in));
    }
    add_edge_gradients(graph, gradient);
  }

 private:
  // of one share of the work
  struct Scratch {
    Buffer<T> messages, features, gradients, hidden;     // rows of a block
    Buffer<T> factors, products;
    Buffer<T> again;                             // a message that was not kept
    Buffer<T> dx;                                // [rows, width]: gradients of neighbours' x
    I first_row = 0, end_row = 0;                // that this share's centres refer to

    // before threads start: running out of memory can be reported only there
    void reserve(const Layer &layer)
    {
      messages.get(BLOCK * layer.width_message);
      again.get(layer.width_message);
      features.get(BLOCK * layer.width_out);
      gradients.get(BLOCK * layer.width_out);
      if (layer.readout) hidden.get(BLOCK * layer.readout->hidden);
      if (!layer.product) return;
      factors.get(BLOCK * layer.product->width_factors);
      products.get(BLOCK * layer.product->width_products);
    }

    I bytes() const
    {
      return messages.bytes() + features.bytes() + gradients.bytes() + hidden.bytes() +
          factors.bytes() + products.bytes() + again.bytes() + dx.bytes();
    }
  };

  I num_species_;
  double cutoff_;
  ActivationScales scales_;
  std::vector<Layer> layers_;
  RadialBasis basis_;
  std::vector<double> scale_, shift_;
  CoreRepulsion core_;
  PairEnergy pair_;
  Crowding crowding_;
  Buffer<T> first_pre_;            // [species, width_pre of layer 0]
  int threads_ = 1;                // asked for, and shares
  Edges edges_;
  std::vector<I> first_edge_;      // [own + 1]
  std::vector<int> node_species_;
  std::vector<I> share_;           // first centre of each share
  std::vector<Scratch> scratch_;
  Buffer<T> dx_, dx_next_;         // gradients of x of the layer in work, and of the one above

  // what would be read or written out of bounds
  void check(const eqcalc_graph &graph) const
  {
    bool right = 0 <= graph.num_local && graph.num_local <= graph.num_nodes &&
        graph.num_nodes <= graph.num_rows && 0 <= graph.num_edges;
    for (I n = 0; right && n < graph.num_nodes; n++)
      right = 0 <= graph.species[n] && graph.species[n] < num_species_;
    I last = 0;
    for (I e = 0; right && e < graph.num_edges; last = graph.edge_dst[e++])
      right = last <= graph.edge_dst[e] && graph.edge_dst[e] < graph.num_local &&
          0 <= graph.edge_src[e] && graph.edge_src[e] < graph.num_nodes;
    if (!right)
      throw std::runtime_error("species or edges are out of range, or edges not sorted by centre");
  }

  void place_edges(const eqcalc_graph &graph)
  {
    check(graph);
    first_edge_.assign(graph.num_local + 1, 0);
    for (I e = 0; e < graph.num_edges; e++) first_edge_[graph.edge_dst[e] + 1]++;
    for (I i = 0; i < graph.num_local; i++) first_edge_[i + 1] += first_edge_[i];
    node_species_.assign(graph.species, graph.species + graph.num_nodes);
    edges_.begin(graph.num_local, first_edge_.data());
    share_ = shares(threads_, graph.num_local, first_edge_.back() + 8 * graph.num_local,
                    [&](I i) { return first_edge_[i + 1] + 8 * (i + 1); });
    in_parallel(threads_, threads_, [&](I t) {
      I lowest = graph.num_nodes, highest = -1;
      for (I i = share_[t]; i < share_[t + 1]; i++) {
        edges_.place(i, first_edge_[i], graph.edge_src, graph.edge_vec, node_species_.data());
        for (I e = first_edge_[i]; e < first_edge_[i + 1]; e++) {
          lowest = std::min(lowest, graph.edge_src[e]);
          highest = std::max(highest, graph.edge_src[e]);
        }
      }
      scratch_[t].first_row = lowest;
      scratch_[t].end_row = highest + 1;
    });
  }

  // shift, core repulsion, pairs; the gradient, if wanted, begins with that of the latter two;
  // and how crowded the atoms are
  void add_references(const eqcalc_graph &graph, double *energies, double *gradient)
  {
    crowding_.begin(graph.num_local);
    in_ranges(graph.num_local, threads_, [&](I begin, I end) {
      for (I i = begin; i < end; i++) {
        const int a = node_species_[i];
        energies[i] = shift_[a];
        double crowd = 0.0;
        for (I e = first_edge_[i]; e < first_edge_[i + 1]; e++) {
          const double *v = graph.edge_vec + 3 * e;
          const double r = std::sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
          const int b = node_species_[graph.edge_src[e]];
          double slope = 0.0, unused;
          if (!crowding_.none()) crowd += crowding_.term(a, b, r, unused);
          core_.add(a, b, r, energies[i], slope);
          pair_.add(a, b, r, energies[i], slope);
          if (!gradient) continue;
          for (int d = 0; d < 3; d++) gradient[3 * e + d] = slope * v[d] / r;
        }
        crowding_.settle(i, a, crowd);
      }
    });
  }

  static void rows_of(T *data, I width, I first, int count, T **rows)
  {
    for (int b = 0; b < count; b++) rows[b] = data + (first + b) * width;
  }

  void forward(I k, const eqcalc_graph &graph, double *energies)
  {
    Layer &layer = layers_[k];
    Layer *next = k + 1 < num_layers() ? &layers_[k + 1] : nullptr;
    T *pre = layer.pre.get(graph.num_local * layer.width_pre);
    T *x_next = next ? next->x.get(graph.num_rows * next->width_in) : nullptr;
    T *pre_next = next ? next->pre.get(graph.num_local * next->width_pre) : nullptr;
    if (layer.product) layer.product->factors.get(graph.num_local * layer.product->width_factors);
    for (Scratch &scratch : scratch_) scratch.reserve(layer);
    const Radial radial = layer.radial.weights(basis_, edges_, threads_, false);
    const int *rows = edges_.rows(k == 0);
    in_parallel(threads_, threads_, [&](I t) {
      Scratch &mine = scratch_[t];
      T *m[BLOCK], *p[BLOCK], *x[BLOCK], *to_x[BLOCK], *to_pre[BLOCK];
      rows_of(mine.messages.data(), layer.width_message, 0, BLOCK, m);
      rows_of(mine.features.data(), layer.width_out, 0, BLOCK, x);
      for (I first = share_[t]; first < share_[t + 1]; first += BLOCK) {
        const int count = static_cast<int>(std::min<I>(BLOCK, share_[t + 1] - first));
        const int *species = node_species_.data() + first;
        rows_of(pre, layer.width_pre, first, count, p);
        std::fill_n(m[0], count * layer.width_message, T(0));
        std::fill_n(x[0], count * layer.width_out, T(0));
        for (int b = 0; b < count; b++) {
          layer.kernels->forward(radial, edges_.of(first + b), rows, layer.x.data(), m[b]);
          if (crowding_.acts(first + b)) crowding_.calm(first + b, m[b], layer.width_message);
          if (k == 0)
            std::copy_n(first_pre_.data() + species[b] * layer.width_pre, layer.width_pre, p[b]);
        }
        for (LinearStep &map : layer.mix) map.forward(count, species, m, p);
        if (layer.product) add_products(*layer.product, first, count, species, m, mine, p);
        for (int b = 0; b < count; b++)
          for (const GateBlock &block : layer.gate) block.forward(p[b], x[b]);
        if (layer.readout) {
          T *h[BLOCK];
          hidden(*layer.readout, count, x, mine.hidden, h);
          for (int b = 0; b < count; b++) {
            double sum = 0.0;
            for (I c = 0; c < layer.readout->hidden; c += L) {
              const V a = load(h[b] + c);
              const V terms = load(layer.readout->out.data() + c) * scales_.silu * a * sigmoid(a);
              for (int lane = 0; lane < L; lane++) sum += terms[lane];
            }
            energies[first + b] += scale_[species[b]] * sum;
          }
        }
        if (next) {
          rows_of(x_next, next->width_in, first, count, to_x);
          rows_of(pre_next, next->width_pre, first, count, to_pre);
          next->begin(count, to_x, to_pre);
          for (LinearStep &map : next->up) map.forward(count, species, x, to_x);
          for (LinearStep &map : next->own) map.forward(count, species, x, to_pre);
        }
      }
    });
  }

  // p += out (a (x) a), a = into m
  static void add_products(MessageProduct &layer, I first, int count, const int *species,
                           T *const *m, Scratch &mine, T *const *p)
  {
    T *a[BLOCK], *b[BLOCK];
    rows_of(layer.factors.data(), layer.width_factors, first, count, a);
    rows_of(mine.products.data(), layer.width_products, 0, count, b);
    std::fill_n(a[0], count * layer.width_factors, T(0));
    std::fill_n(b[0], count * layer.width_products, T(0));
    for (LinearStep &map : layer.into) map.forward(count, species, m, a);
    for (int n = 0; n < count; n++) layer.forward(a[n], b[n]);
    for (LinearStep &map : layer.out) map.forward(count, species, b, p);
  }

  // dm += what it owes to dp by way of the products
  static void add_product_gradients(MessageProduct &layer, I first, int count, const int *species,
                                    T *const *dp, Scratch &mine, T *const *dm)
  {
    T *a[BLOCK], *da[BLOCK], *db[BLOCK];
    rows_of(layer.factors.data(), layer.width_factors, first, count, a);
    rows_of(mine.factors.data(), layer.width_factors, 0, count, da);
    rows_of(mine.products.data(), layer.width_products, 0, count, db);
    std::fill_n(da[0], count * layer.width_factors, T(0));
    std::fill_n(db[0], count * layer.width_products, T(0));
    for (LinearStep &map : layer.out) map.backward(count, species, dp, db);
    for (int n = 0; n < count; n++) layer.backward(a[n], db[n], da[n]);
    for (LinearStep &map : layer.into) map.backward(count, species, da, dm);
  }

  // h = in^T x, before the activation
  static void hidden(Readout &readout, int count, T *const *x, Buffer<T> &memory, T **h)
  {
    rows_of(memory.data(), readout.hidden, 0, count, h);
    std::fill_n(memory.data(), count * readout.hidden, T(0));
    gemm(count, static_cast<int>(readout.scalars), x, readout.in.data(),
            static_cast<int>(readout.hidden), h);
  }

  // gradient of the energies in the features after the layer, from its own readout
  void readout_gradient(Layer &layer, int count, const int *species, T *const *p, T *const *x,
                        Buffer<T> &memory, T *const *dx)
  {
    Readout &readout = *layer.readout;
    for (int b = 0; b < count; b++)
      for (const GateBlock &block : layer.gate) block.forward(p[b], x[b]);
    T *h[BLOCK];
    hidden(readout, count, x, memory, h);
    for (int b = 0; b < count; b++)
      for (I c = 0; c < readout.hidden; c += L) {
        const V a = load(h[b] + c), s = sigmoid(a);
        const V slope = scales_.silu * (s + a * s * (T(1) - s));
        store(h[b] + c, static_cast<T>(scale_[species[b]]) * load(readout.out.data() + c) * slope);
      }
    gemm(count, static_cast<int>(readout.hidden), h, readout.in_turned.data(),
            static_cast<int>(readout.scalars), dx);
  }

  void backward(I k, const eqcalc_graph &graph)
  {
    Layer &layer = layers_[k];
    Layer *next = k + 1 < num_layers() ? &layers_[k + 1] : nullptr;
    T *pre = layer.pre.data();
    T *pre_next = next ? next->pre.data() : nullptr;
    std::swap(dx_, dx_next_);     // what was computed for the layer above
    T *dx_next = dx_next_.data();
    const I num_rows = k > 0 ? graph.num_rows : 0;
    T *dx = dx_.get(num_rows * layer.width_in);
    for (int t = 0; t < threads_; t++) {
      scratch_[t].reserve(layer);
      if (t > 0) scratch_[t].dx.get(num_rows * layer.width_in);
    }
    const Radial radial = layer.radial.weights(basis_, edges_, threads_, true);
    const int *rows = edges_.rows(k == 0);
    in_parallel(threads_, threads_, [&](I t) {
      Scratch &mine = scratch_[t];
      T *to = k == 0 ? nullptr : (t == 0 ? dx : mine.dx.data());
      if (k > 0 && t == 0)
        std::fill_n(to, num_rows * layer.width_in, T(0));
      else if (k > 0 && mine.first_row < mine.end_row)
        std::fill_n(to + mine.first_row * layer.width_in,
                    (mine.end_row - mine.first_row) * layer.width_in, T(0));

      T *dm[BLOCK], *p[BLOCK], *x[BLOCK], *g[BLOCK], *from_x[BLOCK], *from_pre[BLOCK];
      rows_of(mine.messages.data(), layer.width_message, 0, BLOCK, dm);
      rows_of(mine.features.data(), layer.width_out, 0, BLOCK, x);
      rows_of(mine.gradients.data(), layer.width_out, 0, BLOCK, g);
      for (I first = share_[t]; first < share_[t + 1]; first += BLOCK) {
        const int count = static_cast<int>(std::min<I>(BLOCK, share_[t + 1] - first));
        const int *species = node_species_.data() + first;
        rows_of(pre, layer.width_pre, first, count, p);
        std::fill_n(g[0], count * layer.width_out, T(0));
        if (layer.readout) readout_gradient(layer, count, species, p, x, mine.hidden, g);
        if (next) {
          rows_of(dx_next, next->width_in, first, count, from_x);
          rows_of(pre_next, next->width_pre, first, count, from_pre);
          for (LinearStep &map : next->up) map.backward(count, species, from_x, g);
          for (LinearStep &map : next->own) map.backward(count, species, from_pre, g);
        }
        for (int b = 0; b < count; b++)
          for (const GateBlock &block : layer.gate) block.backward(p[b], g[b]);
        std::fill_n(dm[0], count * layer.width_message, T(0));
        for (LinearStep &map : layer.mix) map.backward(count, species, p, dm);
        if (layer.product)
          add_product_gradients(*layer.product, first, count, species, p, mine, dm);
        for (int b = 0; b < count; b++) {
          if (crowding_.acts(first + b)) {
            T *message = mine.again.data();
            std::fill_n(message, layer.width_message, T(0));
            layer.kernels->forward(radial, edges_.of(first + b), rows, layer.x.data(), message);
            crowding_.pull(first + b, dm[b], message, layer.width_message);
            crowding_.calm(first + b, dm[b], layer.width_message);
          }
          layer.kernels->backward(radial, edges_.of(first + b), rows, layer.x.data(), dm[b], to,
                                  edges_.gradient());
        }
      }
    });
    if (k == 0 || threads_ == 1) return;
    in_ranges(num_rows, threads_, [&](I begin, I end) {
      for (int t = 1; t < threads_; t++) {
        const Scratch &theirs = scratch_[t];
        const I low = std::max(begin, theirs.first_row) * layer.width_in;
        const I high = std::min(end, theirs.end_row) * layer.width_in;
        const T *from = theirs.dx.get();
        for (I c = low; c < high; c += L) store(dx + c, load(dx + c) + load(from + c));
      }
    });
  }

  void add_crowding_gradient(I i, const eqcalc_graph &graph, double *gradient) const
  {
    for (I e = first_edge_[i]; e < first_edge_[i + 1]; e++) {
      const double *v = graph.edge_vec + 3 * e;
      const double r = std::sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
      double slope;
      crowding_.term(node_species_[i], node_species_[graph.edge_src[e]], r, slope);
      for (int d = 0; d < 3; d++) gradient[3 * e + d] += crowding_.gradient(i) * slope * v[d] / r;
    }
  }

  void add_edge_gradients(const eqcalc_graph &graph, double *gradient)
  {
    in_ranges(graph.num_local, threads_, [&](I begin, I end) {
      for (I i = begin; i < end; i++) {
        edges_.add_gradient(i, gradient + 3 * first_edge_[i]);
        if (crowding_.acts(i)) add_crowding_gradient(i, graph, gradient);
      }
    });
  }
};

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
    Words words(network, bytes);
    const Value description(words);
    if (description.tag != Value::RECORD || !words.done() ||
        description.record->integer("version") != DESCRIPTION_VERSION)
      throw std::runtime_error("the network's description was made by another eqcalc");
    *engine = new Network(*description.record);
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
  try {
    static_cast<Network *>(engine)->evaluate(*graph, exchange, threads, energies, gradient);
    return 0;
  } catch (const std::bad_alloc &) {
    failed(std::runtime_error("out of memory: use fewer atoms per process"), error, size);
    return EQCALC_OUT_OF_MEMORY;
  } catch (const std::exception &e) {
    return failed(e, error, size);
  }
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
