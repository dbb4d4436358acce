namespace {

// numbers in the order in which eqcalc.engine.fused writes them
class Reader {
 public:
  Reader(const char *data, I bytes) : at_(data), end_(data + bytes) {}
  I integer() { return next<I>(); }
  double number() { return next<double>(); }
  std::vector<double> numbers(I count)
  {
    std::vector<double> result(count);
    for (double &x : result) x = number();
    return result;
  }
  bool done() const { return at_ == end_; }

 private:
  const char *at_, *end_;
  template <class U> U next()
  {
    if (at_ + sizeof(U) > end_) throw std::runtime_error("the network's description is cut short");
    U x;
    std::memcpy(&x, at_, sizeof(U));
    at_ += sizeof(U);
    return x;
  }
};

}    // namespace
